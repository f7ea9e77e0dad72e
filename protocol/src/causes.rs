//! Why something failed, down to its first cause, in one sentence.

use std::error::Error;
use std::fmt::Write as _;

/// The causes below `error`, each after a colon; its own text, which may name an address, is left out. Many errors show
/// their cause themselves: what was said already is not said again.
pub fn causes(error: &dyn Error) -> String {
    below(error, String::new())
}

/// The error itself, and its causes.
pub fn chain(error: &dyn Error) -> String {
    below(error, error.to_string())
}

fn below(error: &dyn Error, mut text: String) -> String {
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            let _ = write!(text, ": {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Said(&'static str, #[source] Option<Box<Said>>);

    #[test]
    fn each_cause_is_said_once() {
        let refused = Said("connection refused", None);
        let connect = Said("cannot connect: connection refused", Some(Box::new(refused)));
        let top = Said("https://secret.example failed", Some(Box::new(connect)));
        assert_eq!(causes(&top), ": cannot connect: connection refused");
        assert_eq!(chain(&top), "https://secret.example failed: cannot connect: connection refused");
        assert_eq!(causes(&Said("alone", None)), "");
    }
}
