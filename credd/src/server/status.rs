//! How the server is, and what it knows of the jobs: for the keeper's root socket and the users' socket.

use credd_protocol::credentials::rfc3339_z;
use credd_protocol::local::{Health, JobStatus};

use super::Server;
use super::jobs::{Run, State};
use super::trouble::Trouble;
use crate::control::{MAX_LINE_BYTES, NOT_NAMED, late_status};

/// So many bytes of an answer's line are for jobs; with more jobs than fit, the ones with the highest ids are shown.
const MAX_JOBS_BYTES: usize = MAX_LINE_BYTES - 4096;

/// Who reads an answer about the whole node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// root, who administers the node.
    Root,
    /// A user, who must not learn of other users' jobs what Slurm does not show it (`PrivateData=jobs`).
    User(u32),
}

impl Reader {
    /// The user behind a connection.
    pub(super) fn of_uid(uid: u32) -> Self {
        if uid == 0 { Reader::Root } else { Reader::User(uid) }
    }

    fn may_see(self, run: &Run) -> bool {
        self == Reader::Root || self == Reader::User(run.job.uid.0)
    }
}

impl Server {
    /// How this process is, as far as it is the reader's business.
    pub(super) fn health(&self, reader: Reader) -> Health {
        let jobs = self.jobs.borrow();
        Health {
            serving: true,
            endpoint_problem: None,
            // What cannot be asked yet is no problem: the first job's record says in whose name.
            credvend_problem: self.credvend.problem().filter(|p| p != NOT_NAMED).or_else(|| self.unanswered(reader)),
            refusal_problem: self.credvend.refusals.problem(reader),
            record_problem: None,
            note: self.credvend.problem().filter(|problem| problem == NOT_NAMED),
            jobs: jobs.all().filter(|run| !run.ended()).count(),
            undelivered_ends: jobs.all().filter(|run| run.ended()).count(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// A job that has no session, or no credentials, because credvend could not answer for it, although it may answer
    /// other requests of this node: Slurm or AWS does not answer credvend, for example.
    fn unanswered(&self, reader: Reader) -> Option<String> {
        let jobs = self.jobs.borrow();
        let cache = self.cache.borrow();
        let (shown, hidden): (Vec<_>, Vec<_>) = jobs.all().partition(|run| reader.may_see(run));
        shown.into_iter().chain(hidden).find_map(|run| {
            let lacks = run.with_state(|state| match state {
                State::Opening(trouble) => trouble.as_ref().and_then(outage).map(|reason| ("session", reason)),
                State::Open(key) => cache.lacks(key).and_then(outage).map(|reason| ("credentials", reason)),
                State::Refused(_) | State::Ended => None,
            });
            lacks.map(|(what, reason)| match reader.may_see(run) {
                true => format!("job {} has no {what}: {reason}", run.job.job),
                false => format!("a job of another user has no {what}, since credvend cannot answer for it"),
            })
        })
    }

    /// The jobs of a user, or all; as many as fit an answer.
    pub(super) fn jobs_of(&self, uid: Option<u32>) -> Vec<JobStatus> {
        let jobs = self.jobs.borrow();
        let mut runs: Vec<_> = jobs.all().filter(|run| uid.is_none_or(|uid| run.job.uid.0 == uid)).collect();
        runs.sort_by_key(|run| (std::cmp::Reverse(run.job.job), run.job.restart));
        let (mut shown, mut bytes) = (Vec::new(), 0);
        let late: Vec<_> = self
            .late
            .borrow()
            .jobs()
            .filter(|job| uid.is_none_or(|uid| job.uid.0 == uid))
            .map(|job| late_status(&job))
            .collect();
        for status in late.into_iter().chain(runs.into_iter().map(|run| self.status(run))) {
            bytes += serde_json::to_vec(&status).map_or(0, |text| text.len() + 1);
            if bytes > MAX_JOBS_BYTES {
                break;
            }
            shown.push(status);
        }
        shown
    }

    fn status(&self, run: &Run) -> JobStatus {
        let job = &run.job;
        let (state, reason, until) = run.with_state(|state| match state {
            State::Opening(trouble) => ("opening", trouble.as_ref().map(|t| t.reason().to_owned()), None),
            State::Open(key) => {
                let cache = self.cache.borrow();
                ("open", cache.lacks(key).map(|trouble| trouble.reason().to_owned()), cache.until(key))
            }
            State::Refused(reason) => ("refused", Some(reason.clone()), None),
            State::Ended => ("ending", None, None),
        });
        JobStatus {
            job: job.job,
            user: job.user.as_str().to_owned(),
            uid: job.uid.0,
            project: job.account.as_ref().map(|account| account.as_str().to_owned()),
            state: state.to_owned(),
            session: run.session().map(|session| session.to_string()),
            reason,
            credentials_until: until.map(rfc3339_z::format),
        }
    }
}

/// The reason, if credvend could not answer.
fn outage(trouble: &Trouble) -> Option<String> {
    match trouble {
        Trouble::Outage(reason) if reason != NOT_NAMED => Some(reason.clone()),
        _ => None,
    }
}
