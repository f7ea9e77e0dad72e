//! How old a document may be: pure arithmetic, no clock of its own.
//!
//! botocore fetches on every call once less than 15 minutes remain, other SDKs later. So, as long as credvend answers,
//! nobody sees a document below its *floor*: a third of its life, and 20 minutes where its life allows them. Renewal
//! starts *ahead* of that, at about 55 % of its life (33 minutes of an hour), spread by jitter.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;

use super::clock::Now;

/// What botocore's advisory refresh (15 minutes) and a margin need.
const COMFORT: Duration = Duration::from_secs(20 * 60);

/// The life of one document.
#[derive(Debug, Clone, Copy)]
pub struct Life {
    expires: OffsetDateTime,
    fetched: Instant,
    whole: Duration,
    // What follows from the others, computed once: it is compared with at every request.
    floor: Duration,
    ahead: Duration,
    margin: Duration,
    at_fetch: Duration,
}

/// What may be done with a document now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Fresh.
    Serve,
    /// Good enough to serve, old enough to renew behind the answer.
    ServeAndRenew,
    /// Below the floor: ask credvend first, serve it only if credvend cannot be had.
    RenewFirst,
    /// Expired, or so near to it that the caller could not use it.
    Dead,
}

impl Life {
    /// Of a document issued and expiring at these wall-clock times, just fetched. `jitter` (`0.0..1.0`) says where in its
    /// range this document's renewal lies.
    pub fn new(issued: OffsetDateTime, expires: OffsetDateTime, fetched: Now, jitter: f64) -> Self {
        let since = |from: OffsetDateTime| Duration::try_from(expires - from).unwrap_or_default();
        // A document that credvend took from its own cache has lived already, if the clocks agree. Where they do not, it
        // lives no longer than credvend says it was made for; an issue time after the expiry is disregarded.
        let whole = if issued < expires { since(issued) } else { since(fetched.wall) };
        let floor = floor(whole);
        let middle = whole.mul_f64(0.55).max(floor + (whole - floor).mul_f64(0.3));
        // Six per cent of the life wide: of an hour, renewals spread over 3.6 minutes.
        let ahead = middle.mul_f64(0.97) + whole.mul_f64(0.06 * jitter.clamp(0.0, 1.0));
        // Signing, travel and AWS' own clock take some of the end.
        let margin = (whole / 20).min(Duration::from_secs(5));
        let at_fetch = since(fetched.wall).min(whole);
        Life { expires, fetched: fetched.mono, whole, floor, ahead, margin, at_fetch }
    }

    /// The time left: by the wall clock, or by what was left at the fetch less the time elapsed since, whichever is
    /// less. So a wall clock set back does not prolong a document's life.
    pub fn left(&self, now: Now) -> Duration {
        let by_wall = Duration::try_from(self.expires - now.wall).unwrap_or_default();
        by_wall.min(self.at_fetch.saturating_sub(now.mono.saturating_duration_since(self.fetched)))
    }

    /// The whole lifetime.
    pub fn whole(&self) -> Duration {
        self.whole
    }

    /// When AWS stops accepting it.
    pub fn expires(&self) -> OffsetDateTime {
        self.expires
    }

    /// Nobody gets it below this while credvend answers.
    pub fn floor(&self) -> Duration {
        self.floor
    }

    /// It is renewed from here on.
    pub fn ahead(&self) -> Duration {
        self.ahead
    }

    /// The life to ask of credvend when renewing: much more than what is here.
    pub fn wanted(&self) -> Duration {
        self.whole.mul_f64(0.75)
    }

    /// See [`Verdict`].
    pub fn verdict(&self, now: Now) -> Verdict {
        let left = self.left(now);
        if left <= self.margin {
            Verdict::Dead
        } else if left < self.floor() {
            Verdict::RenewFirst
        } else if left < self.ahead() {
            Verdict::ServeAndRenew
        } else {
            Verdict::Serve
        }
    }
}

/// The floor of a life of this length: see the module.
fn floor(whole: Duration) -> Duration {
    (whole / 3).max(COMFORT.min(whole.mul_f64(2.0 / 3.0)))
}

/// The life to ask for when nothing is known about the role's lifetime yet.
pub const FIRST_WANTED: Duration = Duration::from_secs(25 * 60);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn start() -> Now {
        Now { wall: time::macros::datetime!(2026-01-31 12:00 UTC), mono: Instant::now() }
    }

    fn after(now: Now, seconds: u64) -> Now {
        let by = Duration::from_secs(seconds);
        Now { wall: now.wall + by, mono: now.mono + by }
    }

    fn hour(jitter: f64) -> (Now, Life) {
        let now = start();
        (now, Life::new(now.wall, now.wall + Duration::from_secs(3600), now, jitter))
    }

    #[test]
    fn an_hour_is_renewed_between_30_and_36_minutes_and_never_served_below_20() {
        for jitter in [0.0, 0.5, 0.999] {
            let (now, life) = hour(jitter);
            assert_eq!(life.floor(), Duration::from_secs(1200));
            let ahead = life.ahead().as_secs();
            assert!((30 * 60..36 * 60).contains(&ahead), "{ahead}");
            assert_eq!(life.verdict(after(now, 3600 - ahead - 2)), Verdict::Serve);
            assert_eq!(life.verdict(after(now, 3600 - ahead + 2)), Verdict::ServeAndRenew);
            assert_eq!(life.verdict(after(now, 2401)), Verdict::RenewFirst);
            assert_eq!(life.verdict(after(now, 3594)), Verdict::RenewFirst);
            assert_eq!(life.verdict(after(now, 3595)), Verdict::Dead);
            assert_eq!(life.verdict(after(now, 999_999)), Verdict::Dead);
        }
    }

    #[test]
    fn a_wall_clock_that_jumps_never_prolongs_a_life() {
        let (now, life) = hour(0.5);
        let set_back = Now { wall: now.wall - Duration::from_secs(86_400), mono: now.mono + Duration::from_secs(3599) };
        assert_eq!(life.verdict(set_back), Verdict::Dead);
        let set_on = Now { wall: now.wall + Duration::from_secs(3599), mono: now.mono };
        assert_eq!(life.verdict(set_on), Verdict::Dead);
    }

    #[test]
    fn a_clock_that_is_hours_behind_credvends_does_not_prolong_a_life() {
        let now = start();
        let issued = now.wall + Duration::from_secs(5 * 3600);
        let life = Life::new(issued, issued + Duration::from_secs(3600), now, 0.5);
        assert_eq!((life.whole(), life.left(now)), (Duration::from_secs(3600), Duration::from_secs(3600)));
        assert_eq!(life.verdict(after(now, 3596)), Verdict::Dead);
    }

    #[test]
    fn a_document_from_credvends_cache_keeps_its_true_life() {
        let now = start();
        let life = Life::new(now.wall - Duration::from_secs(3000), now.wall + Duration::from_secs(600), now, 0.5);
        assert_eq!(life.whole(), Duration::from_secs(3600));
        assert_eq!(life.verdict(now), Verdict::RenewFirst);
    }

    proptest! {
        #[test]
        fn the_order_holds_for_every_life(whole in 1u64..43_200, jitter in 0.0..1.0f64, at in 0u64..50_000) {
            let now = start();
            let life = Life::new(now.wall, now.wall + Duration::from_secs(whole), now, jitter);
            prop_assert!(life.floor() >= Duration::from_secs(whole) / 3);
            prop_assert!(life.floor() < life.ahead() && life.ahead() < life.whole());
            let then = after(now, at);
            if life.left(then) < Duration::from_secs(whole) / 3 {
                prop_assert!(matches!(life.verdict(then), Verdict::RenewFirst | Verdict::Dead));
            }
        }

        #[test]
        fn no_times_panic(issued in -100_000i64..100_000, expires in -100_000i64..100_000, then in -100_000i64..100_000) {
            let now = start();
            let at = |s: i64| now.wall + time::Duration::seconds(s);
            let life = Life::new(at(issued), at(expires), now, 0.9);
            let then = Now { wall: at(then), mono: now.mono };
            let _ = (life.verdict(then), life.ahead(), life.wanted());
        }
    }
}
