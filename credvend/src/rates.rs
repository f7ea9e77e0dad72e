//! A rate limit for each address, or for each node: a bounded table of token buckets.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Maximum number of buckets. The largest Slurm clusters have fewer nodes. Further addresses share one bucket, so that a
/// flood from many addresses cannot fill the memory.
const MAX_BUCKETS: usize = 65_536;

/// Minimum interval between two searches for full buckets, which can be removed.
const FORGET_EVERY: Duration = Duration::from_secs(1);

/// A rate limit for each address.
pub type AddressRates = Rates<IpAddr>;

/// A rate limit for each `K`.
pub struct Rates<K> {
    per_second: f64,
    burst: f64,
    most: usize,
    state: Mutex<State<K>>,
}

struct State<K> {
    buckets: HashMap<K, Bucket>,
    /// The bucket of all that have none in the full table.
    others: Option<Bucket>,
    forgot: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl<K: Eq + Hash> Rates<K> {
    /// Allows each `per_second` operations a second, and `burst` at once after a pause.
    pub fn new(per_second: u32, burst: u32) -> Self {
        Self::bounded(per_second, burst, MAX_BUCKETS)
    }

    fn bounded(per_second: u32, burst: u32, most: usize) -> Self {
        let state = State { buckets: HashMap::new(), others: None, forgot: None };
        Rates {
            per_second: f64::from(per_second.max(1)),
            burst: f64::from(burst.max(1)),
            most,
            state: Mutex::new(state),
        }
    }

    /// Takes a token from the bucket of `of`.
    ///
    /// # Errors
    /// The bucket is empty: how long until it has a token again.
    pub fn take(&self, of: K, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let full = Bucket { left: self.burst, at: now };
        if !state.buckets.contains_key(&of) && state.buckets.len() >= self.most {
            self.forget_full(&mut state, now);
        }
        let room = state.buckets.len() < self.most;
        let bucket = match state.buckets.get_mut(&of) {
            Some(bucket) => bucket,
            None if room => state.buckets.entry(of).or_insert(full),
            None => state.others.get_or_insert(full),
        };
        bucket.left = self.filled(bucket, now);
        bucket.at = now;
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - bucket.left) / self.per_second))
    }

    fn filled(&self, bucket: &Bucket, now: Instant) -> f64 {
        let since = now.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.left + since * self.per_second).min(self.burst)
    }

    /// Removes full buckets: whoever has no bucket begins with a full one.
    fn forget_full(&self, state: &mut State<K>, now: Instant) {
        if state.forgot.is_some_and(|at| now.saturating_duration_since(at) < FORGET_EVERY) {
            return;
        }
        state.forgot = Some(now);
        state.buckets.retain(|_, bucket| self.filled(bucket, now) < self.burst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u32) -> IpAddr {
        IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + last))
    }

    #[test]
    fn each_address_has_a_burst_and_a_rate_of_its_own() {
        let (rates, start) = (AddressRates::new(2, 3), Instant::now());
        for _ in 0..3 {
            assert_eq!(rates.take(address(1), start), Ok(()));
        }
        assert_eq!(rates.take(address(1), start), Err(Duration::from_millis(500)));
        assert_eq!(rates.take(address(2), start), Ok(()), "another address has its own");
        assert_eq!(rates.take(address(1), start + Duration::from_millis(500)), Ok(()));
        assert!(rates.take(address(1), start + Duration::from_millis(500)).is_err());
        let later = start + Duration::from_secs(3600);
        let granted = (0..10).filter(|_| rates.take(address(1), later).is_ok()).count();
        assert_eq!(granted, 3, "a pause saves up one burst, no more");
    }

    #[test]
    fn the_table_is_bounded_and_the_others_share_one_bucket() {
        let (rates, start) = (AddressRates::bounded(1, 2, 8), Instant::now());
        let granted = (0..100).filter(|n| rates.take(address(*n), start).is_ok()).count();
        assert_eq!(granted, 8 + 2);
        assert!(rates.state.lock().unwrap().buckets.len() <= 8);
        let later = start + Duration::from_secs(60);
        assert_eq!(rates.take(address(200), later), Ok(()), "full buckets make room");
        assert_eq!(rates.state.lock().unwrap().buckets.len(), 1);
    }
}
