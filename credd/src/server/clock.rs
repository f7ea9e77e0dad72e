//! Time and chance, injected: expiry, backoff and jitter are decided on what these say.

use std::cell::Cell;

use time::OffsetDateTime;
use tokio::time::Instant;

/// One moment on both clocks. Expirations are wall-clock times, but a wall clock can jump; elapsed time cannot.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The wall clock.
    pub wall: OffsetDateTime,
    /// The monotonic clock, which stands still while the machine sleeps.
    pub mono: Instant,
}

/// Where the time comes from.
pub trait Clock {
    /// This moment.
    fn now(&self) -> Now;
}

/// The machine's clocks.
#[derive(Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Now {
        Now { wall: OffsetDateTime::now_utc(), mono: Instant::now() }
    }
}

/// Where jitter comes from. It spreads load; nothing secret hangs on it.
pub trait Dice {
    /// A number in `0.0..1.0`.
    fn roll(&self) -> f64;
}

/// A xorshift generator, seeded by the kernel.
#[derive(Debug)]
pub struct SystemDice(Cell<u64>);

impl Default for SystemDice {
    fn default() -> Self {
        let mut seed = [0u8; 8];
        // Without a seed all nodes would roll alike; the address-free fallback still works.
        let _ = getrandom::fill(&mut seed);
        SystemDice::seeded(u64::from_ne_bytes(seed))
    }
}

impl SystemDice {
    /// The same numbers for the same seed. The generator never leaves 0, so that is no seed.
    pub fn seeded(seed: u64) -> Self {
        SystemDice(Cell::new(seed | 1))
    }
}

impl Dice for SystemDice {
    fn roll(&self) -> f64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        // 53 bits are what a double holds exactly.
        (x >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
pub mod fake {
    use super::*;
    use std::rc::Rc;
    use std::time::Duration;

    /// Runs with tokio's clock, which a test may pause; the wall can be made to jump on its own.
    #[derive(Debug, Clone)]
    pub struct FakeClock {
        start: Now,
        jump: Rc<Cell<time::Duration>>,
    }

    impl FakeClock {
        pub fn new() -> Self {
            let start = Now { wall: OffsetDateTime::now_utc(), mono: Instant::now() };
            FakeClock { start, jump: Rc::default() }
        }
        pub fn jump(&self, by: time::Duration) {
            self.jump.set(self.jump.get() + by);
        }
    }

    impl Clock for FakeClock {
        fn now(&self) -> Now {
            let mono = Instant::now();
            let elapsed: Duration = mono - self.start.mono;
            Now { wall: self.start.wall + elapsed + self.jump.get(), mono }
        }
    }

    /// Always the same number.
    pub struct Loaded(pub f64);

    impl Dice for Loaded {
        fn roll(&self) -> f64 {
            self.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dice_roll_within_their_range_and_differ() {
        let dice = SystemDice::default();
        let rolls: Vec<f64> = (0..1000).map(|_| dice.roll()).collect();
        assert!(rolls.iter().all(|r| (0.0..1.0).contains(r)));
        assert!(rolls.iter().any(|r| *r < 0.2) && rolls.iter().any(|r| *r > 0.8));
    }
}
