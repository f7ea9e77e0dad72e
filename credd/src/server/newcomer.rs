//! A request whose token is not known here.
//!
//! Its job's record may not have been read yet, since a job's first process can be faster than the word of its start; the
//! token may be of a job that ended; it may be wrong. Or it is another node's: launchers of MPI and frameworks start
//! processes on other nodes with the first node's environment. A node cannot verify another node's token, so there it
//! proves nothing, and the kernel must say that the process belongs to the job that the path names.

use std::rc::Rc;

use credd_protocol::{JobId, JobToken, TokenHash};
use tokio::time::Instant;

use super::answer::{Denial, Unproven};
use super::gate::Asked;
use super::jobs::Run;
use super::late::Waiting;
use super::proof::{self, Proof};
use super::settings::ProofOfJob;
use super::whois::Caller;
use super::{Counted, Load, Server};

/// The run that serves this request.
///
/// It is refused, which SDKs take as final, only after the keeper has looked once more for the job's record.
///
/// # Errors
/// What to tell the process.
pub async fn run_of(
    server: &Rc<Server>,
    caller: &Result<Caller, String>,
    load: &Load,
    asked: &Asked<'_>,
    token: &TokenHash,
) -> Result<Rc<Run>, Denial> {
    if let Some(job) = server.jobs.borrow().ended_lately(token) {
        return Err(Denial::JobEnded(job));
    }
    if asked.token.parse::<JobToken>().is_err() {
        return Err(Denial::NotAToken);
    }
    let caller = caller.as_ref().map_err(|why| Denial::NoCaller(why.clone()))?;
    let Some(_waiting) = Counted::one(&load.waiting, server.settings.get().limits.waiting_per_user) else {
        return Err(Denial::Crowded(asked.job));
    };
    let request = Request { server, caller, load, job: asked.job, token };
    let begun = Instant::now();
    if request.is_known_foreign()
        && let Ok(run) = request.of_another_node(begun + server.settings.get().newcomer_patience).await
    {
        return Ok(run);
    }
    request.wait(begun).await
}

struct Request<'a> {
    server: &'a Rc<Server>,
    caller: &'a Caller,
    load: &'a Load,
    job: JobId,
    token: &'a TokenHash,
}

impl Request<'_> {
    /// Waits for the record of the token's job; and, once it is certain that there is none, for nothing but its turn.
    async fn wait(&self, begun: Instant) -> Result<Rc<Run>, Denial> {
        let mut looked = self.server.keeper.look(self.job);
        let mut certain = false;
        let mut refused = None;
        let news = self.server.jobs.borrow().changed.clone();
        loop {
            let changed = news.notified();
            let (own, scanned) = {
                let jobs = self.server.jobs.borrow();
                (jobs.by_token(self.token).cloned(), jobs.scanned)
            };
            if let Some(run) = own {
                return of_the_path(run, self.job);
            }
            let late = self.server.late.borrow().waiting(self.token, self.job, self.caller.uid)?;
            let deadline = begun
                + match late {
                    Waiting::NotLate => self.server.settings.get().newcomer_patience,
                    // As long as for any session that is opening.
                    Waiting::For(_) => self.server.settings.get().patience,
                };
            let own_late = matches!(late, Waiting::For(_));
            // The token may be of a record that has not been read.
            if certain && scanned && !own_late && matches!(refused, None | Some(Denial::UnknownToken { .. })) {
                match self.of_another_node(deadline).await {
                    Ok(run) => return Ok(run),
                    Err(denial) => refused = Some(denial),
                }
            }
            let answered = async {
                match &mut looked {
                    Some(looked) => looked.await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = changed => {}
                well = answered, if !certain => {
                    (certain, looked) = (well, None);
                }
                () = tokio::time::sleep_until(deadline) => {
                    return Err(match refused {
                        _ if let Waiting::For(denial) = late => denial,
                        _ if !scanned => Denial::Starting,
                        _ if !certain => Denial::RecordsUnread(self.job),
                        Some(denial) => denial,
                        None => self.unknown(),
                    });
                }
            }
        }
    }

    /// Whether the token was found to be another node's before.
    fn is_known_foreign(&self) -> bool {
        let runs = self.server.jobs.borrow().meant_by(self.job, self.caller.uid);
        runs.iter().any(|run| run.is_foreign(self.token))
    }

    /// The run of which the kernel says that this process is, whatever its token. It is for tokens that are no job's here.
    async fn of_another_node(&self, deadline: Instant) -> Result<Rc<Run>, Denial> {
        let (job, allowed) = (self.job, self.server.settings.get().foreign_token);
        let runs = self.server.jobs.borrow().meant_by(job, self.caller.uid);
        if runs.is_empty() {
            let ended = self.server.jobs.borrow().has_ended(job, self.caller.uid);
            return Err(if ended { Denial::JobEnded(job) } else { self.unknown() });
        }
        let unproven = |why| Err(Denial::OtherNodesToken { job, why });
        if allowed == ProofOfJob::Off {
            return unproven(Unproven::Off);
        }
        let run = match proof::job_of(self.server, self.caller, self.load, &runs, deadline).await {
            Err(proof::Crowded) => return Err(Denial::Crowded(job)),
            Ok(Proof::Job(run)) => run,
            Ok(Proof::NoneOfThese | Proof::Unclear) => return Err(Denial::OutsideJob(job)),
            Ok(Proof::UidOnly) if allowed == ProofOfJob::Cgroup => return unproven(Unproven::NoCgroups),
            Ok(Proof::UidOnly) => match runs.as_slice() {
                [only] => only.clone(),
                [leader, ..] if leader.job.job == job => leader.clone(),
                _ => return unproven(Unproven::SeveralComponents),
            },
        };
        // Its turn may have been long in coming.
        if run.ended() {
            return Err(Denial::JobEnded(run.job.job));
        }
        run.note_foreign(self.token);
        Ok(run)
    }

    fn unknown(&self) -> Denial {
        Denial::UnknownToken { job: self.job, caller: self.caller.uid }
    }
}

/// A run whose token is known serves its own path only.
///
/// # Errors
/// [`Denial::OtherJob`].
pub fn of_the_path(run: Rc<Run>, asked: JobId) -> Result<Rc<Run>, Denial> {
    let own = run.job.job;
    if own != asked {
        return Err(Denial::OtherJob { asked, own });
    }
    Ok(run)
}
