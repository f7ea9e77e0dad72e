//! A run's session with credvend, from the record that the keeper found to the end that credvend acknowledged.

use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use credd_protocol::SessionId;
use credd_protocol::node_api::{OpenRequest, OpenResponse};
use credd_protocol::record::OnError;

use super::Server;
use super::backoff::Backoff;
use super::jobs::{News, Run, State};
use super::trouble::Trouble;
use super::vend;
use crate::control::{Job, RunId, ToKeeper};

/// A job waits; but 10,000 nodes may have lost credvend together.
const AFTER_OUTAGE: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
/// An administrator mends it, or nobody does.
const AFTER_NO: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(60));
/// An end may take its time.
const LEAVE_AGAIN: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// A waiting process of the job shortens the wait to this, but not below.
const SOONEST: Duration = Duration::from_secs(1);
const SOONEST_AFTER_NO: Duration = Duration::from_secs(10);

/// The keeper found a record.
pub fn found(server: &Rc<Server>, job: Job) {
    let news = server.jobs.borrow_mut().found(job);
    match news {
        News::None => {}
        News::Over(run) => end(server, &run),
        News::New(run) => {
            if run.ended() {
                tokio::task::spawn_local(deliver_end(server.clone(), run));
                return;
            }
            match run.state() {
                State::Opening(_) if run.job.first_node || credentials_first(&run.job) => want(server, &run),
                State::Open(_) if credentials_first(&run.job) => {
                    tokio::task::spawn_local(vend::prefetch(server.clone(), run));
                }
                _ => {}
            }
        }
    }
}

/// Whether "open" promises the first credentials, too. With on-error=fail the job's own steps wait for the outcome, on
/// every node: a session of a role that AWS does not give is no reason to start.
fn credentials_first(job: &Job) -> bool {
    job.options.prefetch || job.options.on_error == OnError::Fail
}

/// Somebody needs the run's session: it is opened, or asked for again sooner.
pub fn want(server: &Rc<Server>, run: &Rc<Run>) {
    if run.opening.replace(true) {
        run.wanted.notify_one();
    } else {
        tokio::task::spawn_local(open(server.clone(), run.clone()));
    }
}

/// The job is over on this node.
pub fn end(server: &Rc<Server>, run: &RunId) {
    let Some(run) = server.jobs.borrow_mut().end(run) else { return };
    if let Some(session) = run.session() {
        let session = HashSet::from([session]);
        if server.jobs.borrow().of_sessions(&session).is_empty() {
            server.cache.borrow_mut().forget(&session);
        }
    }
    if run.opening.get() {
        // The answer on its way may be a session: whoever waits for it leaves it.
        run.wanted.notify_one();
    } else {
        tokio::task::spawn_local(deliver_end(server.clone(), run));
    }
}

/// Opens the run's session, however long it takes.
async fn open(server: Rc<Server>, run: Rc<Run>) {
    let job = &run.job;
    let request = OpenRequest {
        job: job.job,
        restart: job.restart,
        uid: job.uid,
        account: job.account.clone(),
        partition: Some(job.partition.clone()),
    };
    let mut failures = 0u32;
    let mut told = String::new();
    while !run.ended() {
        let outcome = server.credvend.open(&request).await;
        server.look_after_credvend();
        match outcome.and_then(|answer| own(job, answer)) {
            Ok(session) => {
                run.opened(session);
                if !run.ended() {
                    tracing::info!(job = %job.job, %session, "session open");
                    opened(&server, &run, session);
                }
                break;
            }
            Err(Trouble::Over(reason)) => {
                over(&server, &run, &reason);
                break;
            }
            Err(Trouble::Never(reason) | Trouble::Gone(reason)) => {
                refuse(&server, &run, &reason);
                break;
            }
            Err(trouble) => {
                failures = failures.saturating_add(1);
                if told != trouble.reason() && !run.ended() {
                    told = trouble.reason().to_owned();
                    tracing::warn!(job = %job.job, why = told, "no session yet");
                    server.keeper.tell(ToKeeper::Waiting { run: job.run, reason: told.clone() });
                }
                let (backoff, soonest) = match trouble {
                    Trouble::No(_) | Trouble::Site(_) => (AFTER_NO, SOONEST_AFTER_NO),
                    _ => (AFTER_OUTAGE, SOONEST),
                };
                run.set(State::Opening(Some(trouble)));
                pause(&run, backoff.wait(failures, &*server.dice), soonest).await;
            }
        }
    }
    run.opening.set(false);
    if run.ended() {
        deliver_end(server, run).await;
    }
}

/// Waits `whole`, or `soonest` if a process of the job asks meanwhile, or not at all if the job ends.
async fn pause(run: &Run, whole: Duration, soonest: Duration) {
    let start = tokio::time::Instant::now();
    let until = start + whole;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(until) => return,
            () = run.wanted.notified() => {
                if run.ended() {
                    return;
                }
                let soon = (start + soonest.min(whole)).min(until);
                tokio::select! {
                    () = tokio::time::sleep_until(soon) => return,
                    () = run.wanted.notified() => if run.ended() { return },
                }
            }
        }
    }
}

/// The session, if credvend speaks of the job that was asked about.
fn own(job: &Job, answer: OpenResponse) -> Result<SessionId, Trouble> {
    if answer.job != job.job || answer.uid != job.uid {
        return Err(Trouble::Never(format!(
            "credvend answered for job {} of uid {}, this node's record says uid {}; tell the administrators",
            answer.job, answer.uid, job.uid
        )));
    }
    // The record's options are its partition's. A credvend of an older release does not compare it.
    if let Some(partition) = answer.partition.filter(|partition| *partition != job.partition) {
        return Err(Trouble::Never(format!(
            "this node's record of job {} says partition {}, Slurm says {partition}; tell the administrators",
            job.job, job.partition
        )));
    }
    Ok(answer.session)
}

fn opened(server: &Rc<Server>, run: &Rc<Run>, session: SessionId) {
    // Without a cache a prefetch has nothing to keep, but on-error=fail still has something to learn.
    if credentials_first(&run.job) && (server.settings.get().cache.store || run.job.options.on_error == OnError::Fail) {
        tokio::task::spawn_local(vend::prefetch(server.clone(), run.clone()));
    } else {
        server.keeper.tell(ToKeeper::Opened { run: run.job.run, session });
    }
}

fn refuse(server: &Server, run: &Run, reason: &str) {
    if run.ended() || matches!(run.state(), State::Refused(_)) {
        return;
    }
    tracing::warn!(job = %run.job.job, why = reason, "job refused");
    run.set(State::Refused(reason.to_owned()));
    server.keeper.tell(ToKeeper::Refused { run: run.job.run, reason: reason.to_owned() });
}

/// Refuses a run that is over by Slurm's word. Should a step of the job begin here all the same, the record was an earlier
/// run's, whose end nobody noted: the step sees it by the keeper's note, and makes another one.
fn over(server: &Server, run: &Run, reason: &str) {
    if !run.ended() {
        server.keeper.tell(ToKeeper::Over { run: run.job.run });
    }
    refuse(server, run, reason);
}

/// Tells credvend that the run is over, as often as it takes.
async fn deliver_end(server: Rc<Server>, run: Rc<Run>) {
    let mut failures = 0u32;
    while let Some(session) = run.session() {
        let permit = server.leaving.acquire().await.expect("never closed");
        let outcome = server.credvend.leave(session).await;
        drop(permit);
        server.metrics.told_end(outcome.is_ok());
        server.look_after_credvend();
        match outcome {
            Ok(()) => break,
            Err(Trouble::Never(reason) | Trouble::Over(reason) | Trouble::Gone(reason)) => {
                tracing::info!(job = %run.job.job, %session, why = reason, "credvend has no use for this end");
                break;
            }
            Err(trouble) => {
                failures = failures.saturating_add(1);
                if failures.is_power_of_two() {
                    let why = trouble.reason();
                    tracing::warn!(job = %run.job.job, %session, why, failures, "end not delivered yet");
                }
                tokio::time::sleep(LEAVE_AGAIN.wait(failures, &*server.dice)).await;
            }
        }
    }
    server.jobs.borrow_mut().remove(&run.job.run);
    server.keeper.tell(ToKeeper::EndDelivered { run: run.job.run });
}

impl Server {
    /// Sessions are over by credvend's word: nothing of them is served from now on.
    pub(super) fn refuse_sessions(&self, sessions: &HashSet<SessionId>, reason: &str) {
        self.metrics.invalidated(sessions.len());
        self.cache.borrow_mut().forget(sessions);
        let runs = self.jobs.borrow().of_sessions(sessions);
        for run in runs {
            refuse(self, &run, reason);
        }
    }

    /// Sessions are over by Slurm's word: nothing of them is served from now on.
    pub(super) fn end_sessions(&self, sessions: &HashSet<SessionId>, reason: &str) {
        self.metrics.invalidated(sessions.len());
        self.cache.borrow_mut().forget(sessions);
        let runs = self.jobs.borrow().of_sessions(sessions);
        for run in runs {
            over(self, &run, reason);
        }
    }

    /// What the sessions were given so far is dead in AWS by credvend's word: none of it is served from now on.
    pub(super) fn renew_sessions(&self, sessions: &HashSet<SessionId>, reason: &str) {
        self.cache.borrow_mut().renew(sessions, self.clock.now());
        for run in self.jobs.borrow().of_sessions(sessions) {
            tracing::info!(job = %run.job.job, why = ?reason, "its credentials are fetched anew");
        }
        self.look.notify_one();
    }

    /// credvend does not know a session that it had opened: its store was replaced. It is asked to look anew.
    pub(super) fn reopen_session(self: &Rc<Self>, session: SessionId, reason: &str) {
        let session = HashSet::from([session]);
        self.cache.borrow_mut().forget(&session);
        let runs = self.jobs.borrow().of_sessions(&session);
        for run in runs {
            if run.reopen() {
                want(self, &run);
            } else {
                refuse(self, &run, reason);
            }
        }
    }

    /// If credvend has just come back, what waits for it is tried at once.
    pub(super) fn look_after_credvend(&self) {
        if !self.credvend.came_back() {
            return;
        }
        self.cache.borrow_mut().heard_again();
        self.look.notify_one();
        self.late.borrow().hurry();
        for run in self.jobs.borrow().all().filter(|run| run.opening.get()) {
            run.wanted.notify_one();
        }
    }
}
