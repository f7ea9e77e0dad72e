//! The log of denials: a process that asks a thousand times a second must not fill the disk.

use tokio::time::Instant;

use super::answer::Denial;
use super::whois::Caller;

const BURST: f64 = 20.0;
const PER_SECOND: f64 = 1.0;

/// Lets 20 lines through at once and one a second from then on, and counts the others.
#[derive(Debug)]
pub struct DenialLog {
    left: f64,
    at: Option<Instant>,
    kept_back: u64,
}

impl Default for DenialLog {
    fn default() -> Self {
        DenialLog { left: BURST, at: None, kept_back: 0 }
    }
}

impl DenialLog {
    /// Logs it, or counts it.
    pub fn note(&mut self, denial: &Denial, caller: &Result<Caller, String>) {
        let Some(kept_back) = self.admit(Instant::now()) else { return };
        let uid = caller.as_ref().map_or(-1, |caller| i64::from(caller.uid.0));
        tracing::warn!(code = denial.code(), caller_uid = uid, kept_back, why = denial.message(), "request denied");
    }

    /// `Some` with the number of lines kept back since the last one if this one may pass.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let since = self.at.replace(now).map_or(0.0, |at| (now - at).as_secs_f64());
        self.left = (self.left + since * PER_SECOND).min(BURST);
        if self.left < 1.0 {
            self.kept_back += 1;
            return None;
        }
        self.left -= 1.0;
        Some(std::mem::take(&mut self.kept_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flood_is_counted_not_logged() {
        let mut log = DenialLog::default();
        let now = Instant::now();
        let passed = (0..1000).filter(|_| log.admit(now).is_some()).count();
        assert_eq!(passed, 20);
        assert_eq!(log.admit(now + Duration::from_millis(1001)), Some(980));
    }
}
