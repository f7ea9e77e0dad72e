//! One clock for the harness and the clients in jobs: the kernel's monotonic one, which all hosts of a testbed share.

use nix::time::{ClockId, clock_gettime};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Milliseconds of the kernel's monotonic clock.
pub type Ms = u64;

/// Now.
pub fn now() -> Ms {
    let at = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock");
    u64::try_from(at.tv_sec()).unwrap_or_default() * 1000 + u64::try_from(at.tv_nsec()).unwrap_or_default() / 1_000_000
}

/// What the store's times of day are on the monotonic clock. A time of day that is set during a run moves them.
#[derive(Debug, Clone, Copy)]
pub struct Wall {
    /// Milliseconds since 1970 at monotonic zero.
    zero: i128,
}

impl Wall {
    /// As it is now.
    pub fn measured() -> Self {
        Wall { zero: OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000 - i128::from(now()) }
    }

    /// Of an RFC 3339 text; `None` if it is none.
    pub fn of_text(self, text: &str) -> Option<Ms> {
        let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        Some(self.of_unix_ms(at.unix_timestamp_nanos() / 1_000_000))
    }

    /// Of seconds since 1970.
    pub fn of_unix(self, seconds: u64) -> Ms {
        self.of_unix_ms(i128::from(seconds) * 1000)
    }

    fn of_unix_ms(self, at: i128) -> Ms {
        Ms::try_from(at - self.zero).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_now_is_now() {
        let wall = Wall::measured();
        let text = OffsetDateTime::now_utc().format(&Rfc3339).unwrap();
        assert!(wall.of_text(&text).unwrap().abs_diff(now()) < 1000, "{text}");
        assert_eq!(wall.of_text("yesterday"), None);
        assert_eq!(wall.of_unix(0), 0, "what was before the machine's start is its start");
    }
}
