//! Closes sessions whose jobs Slurm no longer has. Absence counts only in a complete answer, and then Slurm is asked
//! about that very job before its session is closed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use credd_protocol::JobId;
use credd_protocol::seed_api::SessionStatus;
use time::{Duration, OffsetDateTime};
use tokio::task::JoinSet;

use super::{ClusterName, Vending};
use crate::attest::{Answer, AttestError, Attestor, JobState};
use crate::refusal::Refusal;
use crate::store::{Ended, Origin, Session, SessionFilter};

/// Ended sessions, expired issuances and revocations are kept this long, for questions about the past.
pub const KEPT: Duration = Duration::days(90);

/// How often old rows are looked for.
const PRUNE_EVERY: Duration = Duration::hours(1);

/// The most sessions of a cluster that one sweep closes; the next one goes on.
const MAX_CLOSED: usize = 5000;

/// Single questions at the same time: the attestor puts them together.
const AT_ONCE: usize = 64;

/// How long one sweep works on Deny policies: IAM being slow must not keep sessions open. What was cut off is made again.
const DENYING: std::time::Duration = std::time::Duration::from_secs(10);

/// Runs the futures at the same time.
async fn all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.map(Box::pin).collect();
    let mut done = vec![];
    std::future::poll_fn(|context| {
        running.retain_mut(|future| match future.as_mut().poll(context) {
            Poll::Ready(output) => {
                done.push(output);
                false
            }
            Poll::Pending => true,
        });
        if running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done
}

#[derive(Default)]
pub(super) struct Sweeping {
    pruned: Mutex<Option<OffsetDateTime>>,
    /// One sweep at a time.
    turn: tokio::sync::Mutex<()>,
}

/// What Slurm's answer means for the session of one run.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// That run is over, and why.
    Over(String),
    /// Slurm is ending it.
    Ending,
    /// It runs.
    Lives,
}

pub(super) fn verdict(session: &Session, restart: u32, answer: &Answer) -> Verdict {
    let Answer::Known(facts) = answer else { return Verdict::Over("Slurm no longer knows the job".into()) };
    if facts.restart > restart {
        return Verdict::Over(format!("requeued: Slurm is at restart {}", facts.restart));
    }
    if facts.restart < restart || session.uid.is_some_and(|uid| uid != facts.uid) {
        return Verdict::Over("Slurm has another job under this number".into());
    }
    match facts.state {
        JobState::Over => Verdict::Over("Slurm says that the job is over".into()),
        JobState::Pending => Verdict::Over("requeued: Slurm has the job waiting".into()),
        JobState::Completing => Verdict::Ending,
        JobState::Running => Verdict::Lives,
    }
}

impl Vending {
    /// Closes the sessions whose jobs Slurm, in one complete answer, no longer has; prunes what is old; brings the Deny
    /// policies in line. Called every few seconds; must be cheap when nothing is open. Returns how many it closed.
    ///
    /// # Errors
    /// Slurm or the store out of reach: nothing is closed on a guess. The other clusters are swept all the same.
    pub async fn sweep(&self) -> Result<usize, Refusal> {
        let _turn = self.sweeping.turn.lock().await;
        let mut closed = 0;
        let mut failed: Option<Refusal> = None;
        // All clusters at once: one that hangs keeps no other waiting.
        let sweeps = self.parts.clusters.iter().filter_map(|(name, cluster)| {
            let attestor = cluster.attestor.as_ref()?;
            Some(async move { (name, self.sweep_cluster(name, attestor).await) })
        });
        for (name, result) in all(sweeps).await {
            match result {
                Ok(n) => closed += n,
                Err(e) => {
                    tracing::warn!(cluster = %name, why = %e, "nothing is closed on a guess");
                    failed = Some(e);
                }
            }
        }
        match tokio::time::timeout(DENYING, self.denying.reconcile()).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => failed = Some(e.into()),
            Err(_) => tracing::warn!("IAM is slow; the next sweep goes on with the Deny policies"),
        }
        if let Err(e) = self.prune().await {
            failed = Some(e);
        }
        failed.map_or(Ok(closed), Err)
    }

    async fn prune(&self) -> Result<(), Refusal> {
        let now = self.now();
        let due = |last: &Option<OffsetDateTime>| last.is_none_or(|at| now < at || now - at >= PRUNE_EVERY);
        if !due(&self.sweeping.pruned.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(());
        }
        let gone = self.parts.store.prune(now - KEPT).await?;
        *self.sweeping.pruned.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        if gone > 0 {
            tracing::info!(rows = gone, "old rows pruned");
        }
        Ok(())
    }

    async fn sweep_cluster(&self, name: &ClusterName, attestor: &Arc<dyn Attestor>) -> Result<usize, Refusal> {
        let filter =
            SessionFilter { status: Some(SessionStatus::Active), cluster: Some(name.clone()), ..Default::default() };
        let mut page = self.parts.store.list(&filter, None).await?;
        if !page.items.iter().any(|s| matches!(s.origin, Origin::Slurm { .. })) && page.next.is_none() {
            return Ok(0);
        }
        let runs: HashMap<JobId, (u32, JobState, u32)> = attestor
            .all_jobs()
            .await?
            .into_iter()
            .map(|facts| (facts.job, (facts.restart, facts.state, facts.uid.0)))
            .collect();
        // Listed before Slurm was asked, or a page of it after: the single question below settles every doubt.
        let mut doubtful = vec![];
        loop {
            for session in page.items {
                let Origin::Slurm { job, restart } = session.origin else { continue };
                let lives = runs.get(&job).is_some_and(|(r, state, uid)| {
                    *r == restart
                        && matches!(state, JobState::Running | JobState::Completing)
                        && session.uid.is_none_or(|own| own.0 == *uid)
                });
                if !lives && doubtful.len() < MAX_CLOSED {
                    doubtful.push((session, job, restart));
                }
            }
            match page.next {
                Some(next) => page = self.parts.store.list(&filter, Some(&next)).await?,
                None => break,
            }
        }
        self.settle(attestor, doubtful).await
    }

    /// Asks about each job by itself, and closes what is over.
    async fn settle(
        &self,
        attestor: &Arc<dyn Attestor>,
        doubtful: Vec<(Session, JobId, u32)>,
    ) -> Result<usize, Refusal> {
        let mut closed = 0;
        let mut waiting = doubtful.into_iter();
        loop {
            let mut questions = JoinSet::new();
            for (session, job, restart) in waiting.by_ref().take(AT_ONCE) {
                let attestor = attestor.clone();
                questions.spawn(async move { (attestor.job(job).await, session, restart) });
            }
            if questions.is_empty() {
                return Ok(closed);
            }
            let mut failed: Option<AttestError> = None;
            let mut over = vec![];
            while let Some(answer) = questions.join_next().await {
                match answer {
                    Ok((Ok(answer), session, restart)) => {
                        if let Verdict::Over(why) = verdict(&session, restart, &answer) {
                            over.push((session, why));
                        }
                    }
                    Ok((Err(e), ..)) => failed = Some(e),
                    Err(e) => tracing::error!(error = %e, "a question to Slurm ended abnormally"),
                }
            }
            let mut ends = JoinSet::new();
            for (session, why) in over {
                let (store, at) = (self.parts.store.clone(), self.now());
                ends.spawn(async move { (store.end(session.id, SessionStatus::Completed, at, &why).await, why) });
            }
            while let Some(ended) = ends.join_next().await {
                let Ok((ended, why)) = ended else { continue };
                if let Ended::Now(session) = ended? {
                    self.ended(&session, &why);
                    closed += 1;
                }
            }
            if let Some(e) = failed {
                return Err(e.into());
            }
        }
    }
}
