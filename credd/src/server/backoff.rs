//! How long to wait before asking again.

use std::time::Duration;

use super::clock::Dice;

/// Doubling waits between a first and a longest one, each shortened at random by up to half, so that thousands of nodes
/// that lost credvend in one moment do not come back in one moment.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
}

impl Backoff {
    /// From `first` to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Backoff { first, longest }
    }

    /// The wait after `failures` failures in a row (at least one).
    pub fn wait(self, failures: u32, dice: &dyn Dice) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let whole = self.first.saturating_mul(1 << doublings).min(self.longest);
        whole.mul_f64(1.0 - dice.roll() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::clock::fake::Loaded;
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_are_shortened_by_at_most_half() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        let waits = |roll| [1, 2, 3, 4, 5, u32::MAX].map(|n| backoff.wait(n, &Loaded(roll)).as_secs_f64());
        assert_eq!(waits(0.0), [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]);
        assert_eq!(waits(1.0), [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]);
    }
}
