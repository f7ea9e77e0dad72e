//! Closes sessions whose jobs Slurm no longer has. Absence counts only in a complete answer, and then Slurm is asked
//! about that very job before its session is closed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::{JobId, Uid};
use time::{Duration, OffsetDateTime};
use tokio::task::JoinSet;

use super::{ClusterName, Vending};
use crate::attest::{Answer, AttestError, Attestor, JobFacts, JobState};
use crate::refusal::Refusal;
use crate::store::{Ended, OpenRun, Origin, Run, SessionFilter};

/// Ended sessions, expired issuances and revocations are kept this long, for questions about the past.
pub const KEPT: Duration = Duration::days(90);

/// What AWS need not deny any more is kept this long: longer than a credvend that starts looks back for policies that were
/// left behind.
const DENIALS_KEPT: Duration = Duration::days(3);

/// How often old rows are looked for.
const PRUNE_EVERY: Duration = Duration::hours(1);

/// The most sessions of a cluster that one sweep closes; the next one goes on.
const MAX_CLOSED: usize = 5000;

/// Single questions at the same time: the attestor puts them together.
const AT_ONCE: usize = 64;

/// How long one sweep works on Deny policies: IAM being slow must not keep sessions open. What was cut off is made again.
const DENYING: std::time::Duration = std::time::Duration::from_secs(10);

/// How long one sweep prunes: sessions of jobs that are over are closed in between. What was cut off is gone on with.
const PRUNING: std::time::Duration = std::time::Duration::from_secs(10);

/// Runs the futures at the same time.
pub(super) async fn all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
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
    /// Why the last one did not see everything, where it was this process' to do.
    trouble: Mutex<Option<String>>,
}

impl Sweeping {
    /// For `status`.
    pub(super) fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        trouble.map(|why| format!("sessions of jobs that are over are not all closed: {why}"))
    }

    fn note(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
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

/// Why a session of `run` is over when Slurm has `now` under its job id.
pub(super) fn another_run(run: &Run, now: &Run) -> String {
    if now.restart > run.restart {
        return format!("requeued: Slurm is at restart {}", now.restart);
    }
    format!("Slurm has another job under this number, submitted at {}", now.submitted)
}

pub(super) fn verdict(session: &OpenRun, answer: &Answer) -> Verdict {
    let Answer::Known(facts) = answer else { return Verdict::Over("Slurm no longer knows the job".into()) };
    let now = facts.run();
    if !session.run.is(&now) || session.uid.is_some_and(|uid| uid != facts.uid) {
        return Verdict::Over(another_run(&session.run, &now));
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
    pub async fn sweep(self: &Arc<Self>) -> Result<usize, Refusal> {
        let _turn = self.sweeping.turn.lock().await;
        let mut closed = 0;
        let mut failed: Option<Refusal> = None;
        // All clusters at once: one that hangs keeps no other waiting.
        let sweeps = self.parts.clusters.iter().filter_map(|(name, cluster)| {
            let attestor = cluster.attestor.as_ref()?;
            Some(async move { (name, self.sweep_cluster(name, attestor).await) })
        });
        let (sweeps, heads) = tokio::join!(
            all(sweeps),
            all(self.parts.clusters.iter().map(|(name, cluster)| self.end_forgotten(name, cluster.head_session_max)))
        );
        for noted in all(self.parts.clusters.keys().map(|name| self.note_head_sessions(name))).await {
            failed = failed.or(noted.err().map(Refusal::from));
        }
        for result in heads {
            match result {
                Ok(n) => closed += n,
                Err(e) => failed = Some(e),
            }
        }
        for (name, result) in sweeps {
            match result {
                Ok(n) => closed += n,
                Err(e) => {
                    tracing::warn!(cluster = %name, why = %e, "nothing is closed on a guess");
                    failed = Some(e);
                }
            }
        }
        let denying = async {
            // Not within the time for IAM: what is on record and whom it hits must not come apart.
            let recorded = self.deny_ended(true).await;
            (recorded, tokio::time::timeout(DENYING, self.denying.reconcile()).await)
        };
        let (resumed, (recorded, denied)) = tokio::join!(self.go_on_with_orders(), denying);
        for e in [resumed.err(), recorded.err()].into_iter().flatten() {
            failed = Some(e.into());
        }
        match denied {
            Ok(Ok(())) => {}
            Ok(Err(e)) => failed = Some(e.into()),
            Err(_) => tracing::warn!("IAM is slow; the next sweep goes on with the Deny policies"),
        }
        if let Err(e) = self.renew_hit_late().await {
            failed = Some(e.into());
        }
        if let Err(e) = self.prune().await {
            failed = Some(e);
        }
        self.sweeping.note(failed.as_ref().map(ToString::to_string));
        failed.map_or(Ok(closed), Err)
    }

    async fn prune(&self) -> Result<(), Refusal> {
        let now = self.now();
        let due = |last: &Option<OffsetDateTime>| last.is_none_or(|at| now < at || now - at >= PRUNE_EVERY);
        if !due(&self.sweeping.pruned.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(());
        }
        let store = &self.parts.store;
        let pruning = async { Ok(store.prune_revocations(now - DENIALS_KEPT).await? + store.prune(now - KEPT).await?) };
        let Ok(gone) = tokio::time::timeout(PRUNING, pruning).await else {
            tracing::info!("much is old; the next sweep goes on with pruning");
            return Ok(());
        };
        let gone = gone.map_err(|e: crate::store::StoreError| Refusal::from(e))?;
        *self.sweeping.pruned.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        if gone > 0 {
            tracing::info!(rows = gone, "old rows pruned");
        }
        Ok(())
    }

    async fn sweep_cluster(&self, name: &ClusterName, attestor: &Arc<dyn Attestor>) -> Result<usize, Refusal> {
        let mut page = self.parts.store.list_runs(name, None).await?;
        if page.items.is_empty() {
            self.parts.metrics.sessions_open(name, 0);
            return Ok(0);
        }
        let mut open = 0;
        let listing = self.facts.listing();
        let facts: HashMap<JobId, JobFacts> =
            attestor.all_jobs().await?.into_iter().map(|facts| (facts.job, facts)).collect();
        let runs: HashMap<JobId, (Run, JobState, Uid)> =
            facts.values().map(|facts| (facts.job, (facts.run(), facts.state, facts.uid))).collect();
        self.facts.listed(name, listing, facts);
        // Listed before Slurm was asked, or a page of it after: the single question below settles every doubt.
        let mut doubtful = vec![];
        loop {
            open += page.items.len();
            for session in page.items {
                let lives = runs.get(&session.run.job).is_some_and(|(now, state, uid)| {
                    session.run.is(now)
                        && matches!(state, JobState::Running | JobState::Completing)
                        && session.uid.is_none_or(|own| own == *uid)
                });
                if !lives && doubtful.len() < MAX_CLOSED {
                    doubtful.push(session);
                }
            }
            match page.next {
                Some(next) => page = self.parts.store.list_runs(name, Some(&next)).await?,
                None => break,
            }
        }
        let closed = self.settle(attestor, doubtful).await?;
        self.parts.metrics.sessions_open(name, open.saturating_sub(closed));
        Ok(closed)
    }

    /// Ends the sessions that a head opened so long ago that it must have forgotten them.
    async fn end_forgotten(&self, name: &ClusterName, most: Duration) -> Result<usize, Refusal> {
        let filter = SessionFilter {
            status: Some(SessionStatus::Active),
            cluster: Some(name.clone()),
            opened_before: Some(self.now() - most),
            ..Default::default()
        };
        let (mut closed, mut from) = (0, None);
        let why = format!("its head opened it more than {} days ago and never ended it", most.whole_days());
        // Jobs of that age are few, and looked at by the other sweep.
        while closed < MAX_CLOSED {
            let page = self.parts.store.list(&filter, from.as_ref()).await?;
            for session in page.items.iter().filter(|s| matches!(s.origin, Origin::Head { .. })) {
                if let Ended::Now(_) = self.end(session.id, SessionStatus::Completed, &why).await? {
                    closed += 1;
                }
            }
            match page.next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        Ok(closed)
    }

    /// Asks about each job by itself, and closes what is over.
    async fn settle(&self, attestor: &Arc<dyn Attestor>, doubtful: Vec<OpenRun>) -> Result<usize, Refusal> {
        let mut closed = 0;
        let mut waiting = doubtful.into_iter();
        loop {
            let mut questions = JoinSet::new();
            for session in waiting.by_ref().take(AT_ONCE) {
                let attestor = attestor.clone();
                questions.spawn(async move { (attestor.job_unasked(session.run.job).await, session) });
            }
            if questions.is_empty() {
                return Ok(closed);
            }
            let mut failed: Option<AttestError> = None;
            let mut over = vec![];
            while let Some(answer) = questions.join_next().await {
                match answer {
                    Ok((Ok(answer), session)) => {
                        if let Verdict::Over(why) = verdict(&session, &answer) {
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
            // One that fails must not keep the others, which have ended, from being told.
            let mut not_ended = None;
            while let Some(ended) = ends.join_next().await {
                match ended {
                    Ok((Ok(Ended::Now(session)), why)) => {
                        self.ended(&session, &why);
                        closed += 1;
                    }
                    Ok((Ok(_), _)) => {}
                    Ok((Err(e), _)) => not_ended = not_ended.or(Some(Refusal::from(e))),
                    Err(e) => tracing::error!(error = %e, "an end ended abnormally"),
                }
            }
            if let Some(e) = not_ended.or(failed.map(Refusal::from)) {
                return Err(e);
            }
        }
    }
}
