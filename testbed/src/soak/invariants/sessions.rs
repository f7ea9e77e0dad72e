//! Sessions and the jobs that they are of.

use super::Violation;
use crate::soak::clock::Ms;
use crate::soak::faults::Target;
use crate::soak::history::{History, Job, Session};

/// credvend looks at all open sessions every five seconds, a fifth more or less, and asks Slurm twice; a third such round
/// is for an answer that did not come in time on a loaded machine.
const SWEPT: Ms = 20_000;

/// After a fault of what the sweep needs: it starts, and slurmctld answers again.
const WELL_AGAIN: Ms = 10_000;

/// The jobs that may be this session's: its id, and its submission where Slurm told it.
fn jobs<'a>(history: &'a History, session: &Session) -> impl Iterator<Item = &'a Job> {
    let (id, submitted) = (session.job, session.submitted);
    let of = history.jobs.iter().filter(move |((job, _), _)| Some(*job) == id);
    of.filter(move |((_, at), _)| submitted == 0 || *at == submitted).map(|(_, job)| job)
}

/// No session stays open whose job is over.
pub fn without_a_job(history: &History) -> Vec<Violation> {
    let concerns = |target: &Target| match target {
        Target::Credvend | Target::Slurmctld => true,
        Target::Munged(host) => host == "head",
        _ => false,
    };
    let mut found = Vec::new();
    for session in history.sessions.values().filter(|session| session.ended.is_none()) {
        let lives: Vec<&Job> = jobs(history, session).collect();
        if lives.iter().any(|job| job.over.is_none()) {
            continue;
        }
        // Of no job that was ever seen: since the session was.
        let over = lives.iter().filter_map(|job| job.over).max().unwrap_or(session.seen).max(session.seen);
        let mut limit = over;
        // What began within the time that is allowed takes it anew.
        loop {
            let clear = history.clear_from(limit, concerns, |_| WELL_AGAIN);
            let disturbed = history
                .faults
                .iter()
                .filter(|span| concerns(&span.fault.target) && span.from > clear && span.from <= clear + SWEPT)
                .map(|span| span.from)
                .min();
            match disturbed {
                Some(from) => limit = from,
                None => {
                    limit = clear.saturating_add(history.bound(clear, SWEPT));
                    break;
                }
            }
        }
        if history.now > limit {
            let job = session.job.map_or("no job".to_owned(), |job| format!("job {job}"));
            found.push(Violation::new(
                "no session is open without a job",
                session.id.clone(),
                format!(
                    "session {} of {} ({job}) is open {} ms after its job was over; allowed were {} ms",
                    session.id,
                    session.user,
                    history.now - over,
                    limit - over
                ),
            ));
        }
    }
    found
}

/// When all jobs are over, every session has ended: no end was lost.
pub fn still_open(history: &History) -> Vec<Violation> {
    history
        .open_sessions()
        .map(|session| {
            let what = format!("session {} of {} (job {:?}) is still open", session.id, session.user, session.job);
            Violation::new("no end is lost", session.id.clone(), what)
        })
        .collect()
}

/// Whoever's credentials were not revoked has no revoked session: bob is not bobby.
pub fn of_a_bystander(history: &History) -> Vec<Violation> {
    let revoked = |session: &Session| history.revocations.iter().any(|revoked| revoked.is_about(session));
    let hit = history.sessions.values().filter(|session| session.status == "INVALIDATED" && !revoked(session));
    hit.map(|session| {
        let what = format!("session {} of {} was revoked: {:?}", session.id, session.user, session.why);
        Violation::new("a revocation hits nobody else", session.id.clone(), what)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{fault, history};
    use super::*;
    use crate::soak::history::Whom;

    #[test]
    fn an_open_session_of_a_job_that_is_over_is_caught_after_the_sweeps_bound() {
        let mut history = history();
        history.jobs.insert((7, 5), Job::default());
        assert_eq!(without_a_job(&history), []);
        history.jobs.insert((7, 5), Job { over: Some(50_000), ..Job::default() });
        history.now = 70_000;
        assert_eq!(without_a_job(&history), []);
        history.now = 70_001;
        assert_eq!(without_a_job(&history).len(), 1);
        fault(&mut history, Target::Credvend, 69_000, 72_000);
        assert_eq!(without_a_job(&history), [], "the sweep was interrupted");
        history.now = 102_002;
        assert_eq!(without_a_job(&history).len(), 1, "and had its time again");
        history.sessions.get_mut("s").unwrap().ended = Some(60_000);
        assert_eq!(without_a_job(&history), []);
    }

    #[test]
    fn another_job_under_the_same_number_does_not_keep_a_session() {
        let mut history = history();
        history.jobs.insert((7, 5), Job { over: Some(50_000), ..Job::default() });
        history.jobs.insert((7, 400), Job::default());
        assert_eq!(without_a_job(&history).len(), 1);
    }

    #[test]
    fn a_session_of_no_job_at_all_is_caught() {
        let mut history = history();
        history.now = 20_000;
        assert_eq!(without_a_job(&history), []);
        history.now = 40_000;
        assert_eq!(without_a_job(&history).len(), 1);
    }

    #[test]
    fn a_session_of_a_job_that_slurm_lists_and_does_not_know_may_stay_open() {
        let mut history = history();
        history.jobs.insert((7, 5), Job::default());
        assert_eq!(still_open(&history).len(), 1);
        history.ghosts.insert(7);
        assert_eq!(still_open(&history), []);
        history.jobs.insert((7, 5), Job { over: Some(50_000), ..Job::default() });
        assert_eq!(still_open(&history).len(), 1, "it is listed no more");
    }

    #[test]
    fn at_the_end_nothing_is_open() {
        let mut history = history();
        assert_eq!(still_open(&history).len(), 1);
        history.sessions.get_mut("s").unwrap().ended = Some(1);
        assert_eq!(still_open(&history), []);
    }

    #[test]
    fn a_bystander_who_was_hit_is_caught() {
        let mut history = history();
        let whom = Whom::User("bob".into());
        history.revocations.push(crate::soak::history::Revoked { whom, ..Default::default() });
        let session = history.sessions.get_mut("s").unwrap();
        (session.status, session.user) = ("INVALIDATED".into(), "bobby".into());
        assert_eq!(of_a_bystander(&history).len(), 1);
        history.revocations[0].whom = Whom::Job(7);
        assert_eq!(of_a_bystander(&history), []);
        history.revocations[0].whom = Whom::User("bob".into());
        history.sessions.get_mut("s").unwrap().user = "bob".into();
        assert_eq!(of_a_bystander(&history), []);
    }
}
