//! Random numbers from a printed seed (SplitMix64): the same seed, the same schedule, on every machine.

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The stream of this seed and name: streams of other names do not disturb it.
    pub fn new(seed: u64, stream: &str) -> Self {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Dice(stream.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, step))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` up to, and without, `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low).max(1)
    }

    /// True once in `of` times.
    pub fn once_in(&mut self, of: u64) -> bool {
        self.between(0, of) == 0
    }

    /// One of these.
    pub fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let index = usize::try_from(self.between(0, of.len() as u64)).unwrap_or_default();
        &of[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_stream_and_streams_do_not_disturb_each_other() {
        let of = |seed, name| {
            let mut dice = Dice::new(seed, name);
            [0; 8].map(|_| dice.between(0, 1000))
        };
        assert_eq!(of(7, "faults"), of(7, "faults"));
        assert_ne!(of(7, "faults"), of(8, "faults"));
        assert_ne!(of(7, "faults"), of(7, "load"));
        let mut dice = Dice::new(1, "");
        let all: std::collections::BTreeSet<u64> = (0..200).map(|_| dice.between(3, 6)).collect();
        assert_eq!(all.into_iter().collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(dice.one(&["only"]), &"only");
    }
}
