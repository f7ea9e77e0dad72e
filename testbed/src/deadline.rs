//! Waiting for something to become true, with a bound.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks until there is an answer. `what` completes "… did not happen".
pub fn wait_for<T>(what: &str, within: Duration, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        if start.elapsed() > within {
            bail!("waited {within:?} in vain for {what}");
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "other programs' states are asked for, and they announce no change"
        )]
        std::thread::sleep(Duration::from_millis(15));
    }
}
