//! What must hold whatever is done to the cluster. Each check reads the history alone, and gives everything it finds.

use std::collections::BTreeMap;

use serde::Serialize;

use super::clock::Ms;
use super::history::History;

pub mod daemons;
pub mod jobs;
pub mod serving;
pub mod sessions;

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Which invariant.
    pub invariant: &'static str,
    /// Of whom: one is reported once.
    pub subject: String,
    /// What was seen, and what should have been.
    pub what: String,
}

impl Violation {
    fn new(invariant: &'static str, subject: impl Into<String>, what: impl Into<String>) -> Self {
        Violation { invariant, subject: subject.into(), what: what.into() }
    }
}

/// What was found, each once.
#[derive(Debug, Clone, Default)]
pub struct Found(BTreeMap<(&'static str, String), Violation>);

impl Found {
    /// Takes what a check gave; returns what is new.
    pub fn add(&mut self, violations: Vec<Violation>) -> Vec<Violation> {
        let mut new = Vec::new();
        for violation in violations {
            let key = (violation.invariant, violation.subject.clone());
            self.0.entry(key).or_insert_with(|| {
                new.push(violation.clone());
                violation
            });
        }
        new
    }

    /// All.
    pub fn all(&self) -> Vec<Violation> {
        self.0.values().cloned().collect()
    }
}

/// The checks of a run that goes on.
pub fn meanwhile(history: &History) -> Vec<Violation> {
    let checks = [
        serving::after_the_sessions_end,
        serving::after_the_revocation,
        serving::refused_without_cause,
        serving::unequipped,
        serving::left_without,
        serving::wrong_answers,
        serving::another_identity,
        sessions::without_a_job,
        sessions::of_a_bystander,
        jobs::hurt,
        jobs::drained,
    ];
    checks.iter().flat_map(|check| check(history)).collect()
}

/// The checks of a run that is over, those above included.
pub fn at_the_end(history: &History) -> Vec<Violation> {
    let mut all = meanwhile(history);
    for check in [serving::unknown_keys, sessions::still_open, daemons::grown] {
        all.extend(check(history));
    }
    all
}

/// After an outage of some length a node has tried credvend again: it waits twice as long each time, 2 s at first and a
/// minute at last, and a wire that carries again carries what TCP sends again after at most as long as it was dead.
pub(super) fn reconnected(outage: Ms) -> Ms {
    (2 * outage + 2_000).min(60_000) + 3_000
}

#[cfg(test)]
pub(super) mod fixture {
    use super::*;
    use crate::soak::faults::{Fault, How, Target};
    use crate::soak::history::{Issued, Session, Span};
    use crate::soak::records::{Asked, Begin, Line};

    /// A history of one run of alice's job 7 on n1, with its session and key.
    pub fn history() -> History {
        let mut history = History { now: 1_000_000, ..History::default() };
        history.take(Line::Begin(Begin {
            run: "r".into(),
            job: 7,
            node: "n1".into(),
            user: "alice".into(),
            account: "genomics".into(),
            at: 10_000,
            equipped: true,
            ..Begin::default()
        }));
        let session = Session {
            id: "s".into(),
            status: "ACTIVE".into(),
            user: "alice".into(),
            project: "genomics".into(),
            job: Some(7),
            submitted: 5,
            seen: 10_000,
            ..Session::default()
        };
        history.sessions.insert("s".into(), session);
        let issued =
            Issued { session: "s".into(), node: Some("n1".into()), user: "alice".into(), project: "genomics".into() };
        history.issued.insert("K".into(), issued);
        history
    }

    /// A request of that run.
    pub fn ask(history: &mut History, sent: Ms, status: u16) {
        let (key, role) = if status == 200 { ("K", "arn:aws:iam::1:role/projects/genomics") } else { ("", "") };
        history.take(Line::Asked(Asked {
            run: "r".into(),
            sent,
            got: sent + 10,
            status,
            key: key.into(),
            role: role.into(),
            ..Asked::default()
        }));
    }

    /// A fault that was.
    pub fn fault(history: &mut History, target: Target, from: Ms, until: Ms) {
        history.faults.push(Span { fault: Fault { target, how: How::Freeze }, from, until: Some(until) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_reported_once() {
        let mut found = Found::default();
        let of = |subject: &str, what: &str| Violation::new("i", subject, what);
        assert_eq!(found.add(vec![of("a", "1"), of("b", "2")]).len(), 2);
        assert_eq!(found.add(vec![of("a", "another text"), of("c", "3")]), [of("c", "3")]);
        assert_eq!(found.all().len(), 3);
    }

    #[test]
    fn a_sound_history_has_nothing_to_report() {
        let mut history = fixture::history();
        history.jobs.insert((7, 5), crate::soak::history::Job::default());
        for at in [20_000, 21_000] {
            fixture::ask(&mut history, at, 200);
        }
        assert_eq!(meanwhile(&history), []);
    }
}
