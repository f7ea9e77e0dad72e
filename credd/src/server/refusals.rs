//! Whether credvend refuses this node's jobs one and all: what `credd health` must not call well.
//!
//! A refusal is an answer, so credvend counts as reached. That a job is refused is as a rule that job's own matter; it is
//! the node's if credvend says so of the node or its cluster, or if job after job is refused.

use std::cell::RefCell;

use credd_protocol::{JobId, SessionId};

use super::status::Reader;
use super::trouble::Trouble;

/// So many different jobs that are refused one after the other, and none that is not, are no coincidence.
const IN_A_ROW: usize = 3;

/// What credvend has refused since it last gave what was asked.
#[derive(Debug, Default)]
pub struct Refusals {
    stream: RefCell<Option<String>>,
    sessions: Row<JobId>,
    credentials: Row<SessionId>,
}

/// Refusals of one kind of question.
#[derive(Debug)]
struct Row<Of> {
    /// About this node or its cluster, whatever the job.
    site: RefCell<Option<String>>,
    /// Of which jobs, at most [`IN_A_ROW`], and what the last one was told.
    jobs: RefCell<(Vec<Of>, String)>,
}

impl<Of> Default for Row<Of> {
    fn default() -> Self {
        Row { site: RefCell::default(), jobs: RefCell::new((vec![], String::new())) }
    }
}

impl<Of: PartialEq> Row<Of> {
    fn given(&self) {
        self.site.take();
        *self.jobs.borrow_mut() = (vec![], String::new());
    }

    fn refused(&self, job: Of, reason: &str) {
        self.site.take();
        let (jobs, last) = &mut *self.jobs.borrow_mut();
        reason.clone_into(last);
        if jobs.len() < IN_A_ROW && !jobs.contains(&job) {
            jobs.push(job);
        }
    }

    fn refused_all(&self, reason: &str) {
        *self.site.borrow_mut() = Some(reason.to_owned());
    }

    fn problem(&self, what: &str, reader: Reader) -> Option<String> {
        if let Some(site) = &*self.site.borrow() {
            return Some(format!("credvend refuses every job of this node: {site}"));
        }
        let (jobs, last) = &*self.jobs.borrow();
        let many = jobs.len() >= IN_A_ROW;
        many.then(|| {
            let told = match reader {
                Reader::Root => format!("it said last: {last}"),
                // That names the last job's account.
                Reader::User(_) => "credd health shows root what it said last".to_owned(),
            };
            format!("credvend refused the last {IN_A_ROW} jobs or more that asked for {what} here; {told}")
        })
    }
}

impl Refusals {
    /// How a stream was opened, or not.
    pub fn stream<T>(&self, outcome: &Result<T, Trouble>) {
        *self.stream.borrow_mut() = match outcome {
            Err(
                Trouble::Site(reason)
                | Trouble::No(reason)
                | Trouble::Never(reason)
                | Trouble::Over(reason)
                | Trouble::Gone(reason),
            ) => Some(format!("credvend refuses this node: {reason}")),
            Ok(_) | Err(Trouble::Outage(_) | Trouble::Busy(..)) => None,
        };
    }

    /// How a job's session was opened, or not.
    pub fn session<T>(&self, job: JobId, outcome: &Result<T, Trouble>) {
        match outcome {
            Ok(_) => self.sessions.given(),
            Err(Trouble::Site(reason)) => self.sessions.refused_all(reason),
            Err(Trouble::No(reason) | Trouble::Never(reason) | Trouble::Over(reason)) => {
                self.sessions.refused(job, reason)
            }
            Err(Trouble::Outage(_) | Trouble::Busy(..) | Trouble::Gone(_)) => {}
        }
    }

    /// How a session got credentials, or not. That one is over for good is no misconfiguration.
    pub fn credentials<T>(&self, session: SessionId, outcome: &Result<T, Trouble>) {
        match outcome {
            Ok(_) => self.credentials.given(),
            Err(Trouble::Site(reason)) => self.credentials.refused_all(reason),
            Err(Trouble::No(reason)) => self.credentials.refused(session, reason),
            Err(Trouble::Never(_) | Trouble::Over(_) | Trouble::Outage(_) | Trouble::Busy(..) | Trouble::Gone(_)) => {}
        }
    }

    /// What needs an administrator, if anything does.
    pub fn problem(&self, reader: Reader) -> Option<String> {
        let stream = self.stream.borrow().clone();
        stream
            .or_else(|| self.sessions.problem("a session", reader))
            .or_else(|| self.credentials.problem("credentials", reader))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: u32) -> JobId {
        id.try_into().unwrap()
    }

    fn no(why: &str) -> Result<(), Trouble> {
        Err(Trouble::No(why.into()))
    }

    #[test]
    fn one_jobs_refusal_is_its_own_and_many_in_a_row_are_the_nodes() {
        let refusals = Refusals::default();
        for id in [1, 1, 1, 1, 2] {
            refusals.session(job(id), &no("no project"));
        }
        assert_eq!(refusals.problem(Reader::Root), None, "two jobs");
        refusals.session(job(3), &Err::<(), _>(Trouble::Never("not running".into())));
        assert!(refusals.problem(Reader::Root).unwrap().ends_with("not running"));
        let told_to_a_user = refusals.problem(Reader::User(1001)).unwrap();
        assert!(told_to_a_user.contains("last 3 jobs") && !told_to_a_user.contains("not running"), "{told_to_a_user}");
        refusals.session(job(4), &Err::<(), _>(Trouble::Outage("down".into())));
        assert!(refusals.problem(Reader::Root).is_some(), "an outage says nothing of it");
        refusals.session(job(5), &Ok(()));
        assert_eq!(refusals.problem(Reader::Root), None);
        for id in [6, 7, 8] {
            refusals.session(job(id), &Ok(()));
            refusals.credentials(SessionId::random(), &no("trust policy"));
        }
        assert!(refusals.problem(Reader::Root).unwrap().contains("asked for credentials"));
        refusals.credentials(SessionId::random(), &Ok(()));
        assert_eq!(refusals.problem(Reader::Root), None);
    }

    #[test]
    fn what_is_said_of_the_node_counts_at_once() {
        let refusals = Refusals::default();
        refusals.session(job(1), &Err::<(), _>(Trouble::Site("unknown cluster".into())));
        assert!(refusals.problem(Reader::Root).unwrap().contains("every job of this node: unknown cluster"));
        refusals.session(job(1), &Ok(()));
        assert_eq!(refusals.problem(Reader::Root), None);
        refusals.stream(&Err::<(), _>(Trouble::Never("the head states its jobs".into())));
        assert!(refusals.problem(Reader::Root).unwrap().contains("the head states its jobs"));
        refusals.stream(&Ok(()));
        assert_eq!(refusals.problem(Reader::Root), None);
    }
}
