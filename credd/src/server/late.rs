//! The runs of which only a late record is here: credvend is asked what Slurm says of them, and the keeper completes the
//! record with that. From then on they are runs like any other.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use credd_protocol::node_api::AttestRequest;
use credd_protocol::{JobId, TokenHash, Uid};
use tokio::sync::Notify;

use super::Server;
use super::answer::Denial;
use super::backoff::Backoff;
use super::trouble::Trouble;
use crate::control::{LateJob, RunId, ToKeeper};

/// A job waits; but credvend or Slurm may be away for all nodes together.
const AGAIN: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
/// A step leaves one where a prolog did not run: they are few. A keeper that says otherwise is not believed.
const MAX_LATE: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// credvend is being asked; the last obstacle.
    Asking(Option<String>),
    /// The keeper knows the answer.
    Attested,
    /// No credentials, and why.
    Refused(String),
    /// The job is over on this node.
    Ended,
}

/// One of them.
struct LateRun {
    job: LateJob,
    state: RefCell<State>,
    /// Ask at once: credvend is back, or the job is over.
    hurry: Notify,
}

/// All of them.
#[derive(Default)]
pub struct Late {
    by_token: HashMap<TokenHash, Rc<LateRun>>,
}

/// What a process of such a job is told if it cannot wait any longer; an error is final.
pub enum Waiting {
    /// The token is not of such a job.
    NotLate,
    /// Why there is nothing yet.
    For(Denial),
}

impl Late {
    fn of_run(&self, run: &RunId) -> Option<&Rc<LateRun>> {
        self.by_token.values().find(|late| late.job.run == *run)
    }

    fn remove(&mut self, run: &RunId) -> Option<Rc<LateRun>> {
        let token = self.of_run(run)?.job.token;
        self.by_token.remove(&token)
    }

    /// Whether a caller with this token, or with another node's and this job's path, waits for Slurm's word about its job.
    ///
    /// # Errors
    /// What it is told at once: the kernel says that it is another user's process, or there will be no credentials.
    pub fn waiting(&self, token: &TokenHash, asked: JobId, caller: Uid) -> Result<Waiting, Denial> {
        let meant = |late: &&Rc<LateRun>| (late.job.job, late.job.uid) == (asked, caller);
        let Some(late) = self.by_token.get(token).or_else(|| self.by_token.values().find(meant)) else {
            return Ok(Waiting::NotLate);
        };
        let job = late.job.job;
        if late.job.uid != caller {
            return Err(Denial::OtherUser { job, caller });
        }
        let reason = match &*late.state.borrow() {
            State::Refused(reason) => return Err(Denial::Refused { job, reason: reason.clone() }),
            State::Ended => return Err(Denial::JobEnded(job)),
            State::Asking(Some(reason)) => reason.clone(),
            State::Asking(None) | State::Attested => "credvend has not answered yet.".to_owned(),
        };
        Ok(Waiting::For(Denial::NotNow { job, reason }))
    }

    /// Those that wait, for a listing.
    pub fn jobs(&self) -> impl Iterator<Item = LateJob> {
        self.by_token.values().map(|late| {
            let refused = match &*late.state.borrow() {
                State::Refused(reason) => Some(reason.clone()),
                _ => None,
            };
            LateJob { refused, ..late.job.clone() }
        })
    }

    /// credvend is back: those that wait for it ask at once.
    pub fn hurry(&self) {
        for late in self.by_token.values() {
            late.hurry.notify_one();
        }
    }
}

/// The keeper found a late record, knows that it gets no credentials, or could not keep what Slurm says of it.
pub fn found(server: &Rc<Server>, job: LateJob) {
    let known = server.late.borrow().of_run(&job.run).cloned();
    let state = job.refused.clone().map_or(State::Asking(None), State::Refused);
    let again = known.is_some();
    let late = known.unwrap_or_else(|| {
        let late = Rc::new(LateRun { job, state: RefCell::new(State::Attested), hurry: Notify::new() });
        let mut all = server.late.borrow_mut();
        if all.by_token.len() < MAX_LATE {
            all.by_token.insert(late.job.token, late.clone());
        }
        late
    });
    let asking = matches!(*late.state.borrow(), State::Asking(_));
    let ask = matches!(state, State::Asking(_)) && !asking;
    set(server, &late, state);
    if ask {
        tokio::task::spawn_local(attest(server.clone(), late, u32::from(again)));
    }
}

/// The keeper has completed the record.
pub fn completed(server: &Server, run: &RunId) {
    server.late.borrow_mut().remove(run);
}

/// The job is over on this node.
pub fn end(server: &Server, run: &RunId) {
    let removed = server.late.borrow_mut().remove(run);
    if let Some(late) = removed {
        set(server, &late, State::Ended);
        late.hurry.notify_one();
    }
}

fn set(server: &Server, late: &LateRun, state: State) {
    *late.state.borrow_mut() = state;
    server.jobs.borrow().changed.notify_waiters();
}

/// Asks credvend, however long it takes; after `failures` failures it begins with a pause.
async fn attest(server: Rc<Server>, late: Rc<LateRun>, mut failures: u32) {
    let request = AttestRequest { job: late.job.job, uid: late.job.uid };
    loop {
        if failures > 0 {
            tokio::select! {
                () = tokio::time::sleep(AGAIN.wait(failures, &*server.dice)) => {}
                () = late.hurry.notified() => {}
            }
        }
        if *late.state.borrow() == State::Ended {
            return;
        }
        let answer = server.credvend.attest(&request).await;
        server.look_after_credvend();
        if *late.state.borrow() == State::Ended {
            return;
        }
        match answer {
            Ok(facts) => {
                tracing::info!(job = %request.job, partition = %facts.partition, restart = facts.restart, "Slurm's word about a job without a prolog");
                set(&server, &late, State::Attested);
                server.keeper.tell(ToKeeper::Attested { run: late.job.run, facts });
                return;
            }
            Err(Trouble::Never(reason) | Trouble::Over(reason) | Trouble::Gone(reason)) => {
                tracing::warn!(job = %request.job, why = reason, "job refused");
                set(&server, &late, State::Refused(reason.clone()));
                server.keeper.tell(ToKeeper::Refused { run: late.job.run, reason });
                return;
            }
            Err(trouble) => {
                failures = failures.saturating_add(1);
                let reason = trouble.reason().to_owned();
                if *late.state.borrow() != State::Asking(Some(reason.clone())) {
                    tracing::warn!(job = %request.job, why = reason, "Slurm's word about a job without a prolog is not there yet");
                    server.keeper.tell(ToKeeper::Waiting { run: late.job.run, reason: reason.clone() });
                    set(&server, &late, State::Asking(Some(reason)));
                }
            }
        }
    }
}
