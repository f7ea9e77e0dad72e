//! Why something failed, down to its first cause, in one sentence.

use std::error::Error;
use std::fmt::Write as _;

/// The causes below `error`, each after a colon; its own text, which may name an address, is left out. Many errors show
/// their cause themselves: what was said already is not said again.
pub fn causes(error: &dyn Error) -> String {
    let (mut text, mut last) = (String::new(), String::new());
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !last.contains(&said) {
            let _ = write!(text, ": {said}");
        }
        last = said;
        cause = error.source();
    }
    text
}
