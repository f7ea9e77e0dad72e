//! What is known of each job's session, for those who wait for it at the root socket.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use credd_protocol::JobId;
use credd_protocol::local::Outcome;

use crate::control::RunId;

/// The outcomes of all jobs on this node.
#[derive(Debug, Default)]
pub struct Board {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    jobs: HashMap<JobId, (RunId, Outcome)>,
    obstacle: Option<String>,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a run; one that is known already keeps its outcome.
    pub fn enter(&self, job: JobId, run: &RunId, outcome: Outcome) {
        let mut inner = self.lock();
        if inner.jobs.get(&job).is_none_or(|(known, _)| known != run) {
            inner.jobs.insert(job, (*run, outcome));
            self.changed.notify_all();
        }
    }

    /// News of a run. An outcome that stands (open, refused) does not fall back to opening.
    pub fn set(&self, job: JobId, run: &RunId, outcome: Outcome) {
        let mut inner = self.lock();
        let Some((known, current)) = inner.jobs.get_mut(&job) else { return };
        let falls_back = matches!(outcome, Outcome::Opening { .. }) && !matches!(current, Outcome::Opening { .. });
        if known == run && !falls_back {
            *current = outcome;
            self.changed.notify_all();
        }
    }

    /// The run is over here.
    pub fn leave(&self, job: JobId, run: &RunId) {
        let mut inner = self.lock();
        if inner.jobs.get(&job).is_some_and(|(known, _)| known == run) {
            inner.jobs.remove(&job);
            self.changed.notify_all();
        }
    }

    /// What stands in the way of all jobs, a sentence; `None` if nothing does.
    pub fn set_obstacle(&self, obstacle: Option<String>) {
        self.lock().obstacle = obstacle;
    }

    /// The sentence of [`Board::set_obstacle`].
    pub fn obstacle(&self) -> Option<String> {
        self.lock().obstacle.clone()
    }

    /// The job's outcome, once it is known, at the latest at `deadline`.
    pub fn wait(&self, job: JobId, deadline: Instant) -> Outcome {
        let mut inner = self.lock();
        loop {
            let outcome = match inner.jobs.get(&job) {
                None => return Outcome::Unknown,
                Some((_, Outcome::Opening { reason })) => {
                    Outcome::Opening { reason: reason.clone().or_else(|| inner.obstacle.clone()) }
                }
                Some((_, outcome)) => return outcome.clone(),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return outcome;
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use credd_protocol::TokenHash;

    #[test]
    fn those_who_wait_hear_at_once_and_only_of_their_run() {
        let board = Board::default();
        let job = JobId::try_from(5).unwrap();
        let (old, new) = (RunId::of(TokenHash::of("old")), RunId::of(TokenHash::of("new")));
        assert_eq!(board.wait(job, Instant::now()), Outcome::Unknown);
        board.enter(job, &old, Outcome::Open);
        board.enter(job, &new, Outcome::Opening { reason: None });
        board.set(job, &old, Outcome::Open);
        board.leave(job, &old);
        board.set_obstacle(Some("no endpoint".into()));
        assert_eq!(board.wait(job, Instant::now()), Outcome::Opening { reason: Some("no endpoint".into()) });
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| board.wait(job, Instant::now() + Duration::from_secs(30)));
            board.set(job, &new, Outcome::Opening { reason: Some("busy".into()) });
            board.set(job, &new, Outcome::Refused { reason: "no role".into() });
            assert_eq!(waiting.join().unwrap(), Outcome::Refused { reason: "no role".into() });
        });
        board.set(job, &new, Outcome::Opening { reason: None });
        assert!(matches!(board.wait(job, Instant::now()), Outcome::Refused { .. }));
    }
}
