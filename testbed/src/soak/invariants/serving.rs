//! What jobs are given, and when they must not be given it, or must.

use super::{Violation, reconnected};
use crate::soak::clock::Ms;
use crate::soak::faults::Target;
use crate::soak::history::{History, Run};
use crate::soak::{CAUTIOUS, MAX_UNHEARD};

/// A node that hears credvend has dropped what was revoked within a second; the other second is for a machine on which
/// all hosts, and other tests, share two cores.
const HEARD: Ms = 2_000;

/// Slurm says that a job is over when its processes are gone from its nodes: nobody is there to ask. With room for the
/// clock of a record, which is in whole seconds at places.
const LEFT: Ms = 5_000;

/// After a fault of Slurm's a node learns that it runs what slurmctld has given up when it registers again.
const REGISTERED: Ms = 40_000;

/// A job's processes may be told that it is over while they are being ended.
const ENDING: Ms = 6_000;

/// A new job's session is opened while the job starts; under load, with Slurm asked once, in so long.
const OPENED: Ms = 12_000;

/// For so long after a revocation nothing is issued under the revoked names, a job of the same user included that began
/// afterwards (`issuing` in credvend), and what the user's next session needs comes on top.
const NAMES_RESTED: Ms = 25_000;

/// For so long after a session's end its nodes are asked to answer a revocation (`EPILOGS` in credvend), less a minute for
/// the clocks.
const EPILOGS: Ms = 14 * 60_000;

/// SDKs try again for about so long; a run without credentials for longer, with nobody to blame, is a defect.
const PATIENCE: Ms = 10_000;

/// From when on a node surely acts on what credvend says at `at`.
fn hears(history: &History, node: &str, at: Ms) -> Ms {
    let concerns = |target: &Target| match target {
        Target::Credd(of) | Target::CreddServer(of) | Target::Network(of) | Target::Munged(of) => {
            of == node || of == "head"
        }
        Target::Credvend => true,
        _ => false,
    };
    // A fault that begins before the node could act counts too.
    let clear = history.clear_from(at, concerns, reconnected);
    let heard = history.bound(clear, HEARD);
    let soon = history.clear_from(clear + heard, concerns, reconnected);
    if soon > clear + heard { soon + heard } else { clear + heard }
}

/// Until when a node may run what Slurm, asked at `at`, calls over.
fn left(history: &History, node: &str, at: Ms) -> Ms {
    let concerns = |target: &Target| match target {
        Target::Slurmctld => true,
        Target::Credd(of) | Target::CreddServer(of) => of == node,
        Target::Slurmd(of) | Target::Network(of) | Target::Munged(of) => of == node || of == "head",
        Target::Credvend | Target::Aws => false,
    };
    let before = at.saturating_sub(LEFT);
    history.clear_from(before, concerns, |_| REGISTERED).max(at) + history.bound(at, LEFT)
}

/// Until when a run may be served what was revoked at `at`: until its node has heard of it, and where its partition asks for
/// that, no longer than the node may serve unheard.
fn revoked_until(history: &History, run: &Run, at: Ms) -> Ms {
    let hears = hears(history, &run.begin.node, at);
    if run.begin.partition == CAUTIOUS { hears.min(at + MAX_UNHEARD + history.bound(at, HEARD)) } else { hears }
}

fn subject(run: &Run) -> String {
    let begin = &run.begin;
    format!("job {} ({} in {}) on {}", begin.job, begin.user, begin.account, begin.node)
}

/// Nobody is served the credentials of a session that has ended.
pub fn after_the_sessions_end(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    for run in history.runs.values() {
        for (key, served) in &run.keys {
            let Some(issued) = history.issued.get(key) else { continue };
            let Some(session) = history.sessions.get(&issued.session) else { continue };
            let Some(ended) = session.ended.filter(|ended| served.last > *ended) else { continue };
            let node = &run.begin.node;
            let limit = if session.status == "COMPLETED" {
                left(history, node, ended)
            } else {
                revoked_until(history, run, ended)
            };
            if served.last > limit {
                found.push(Violation::new(
                    "nobody is served after the session's end",
                    format!("{} with {key}", subject(run)),
                    format!(
                        "{} was served {key} {} ms after session {} was {} ({:?}); allowed were {} ms",
                        subject(run),
                        served.last - ended,
                        session.id,
                        session.status,
                        session.why,
                        limit - ended
                    ),
                ));
            }
        }
    }
    found
}

/// A running job of a user whose credentials were revoked is never served again. This does not look into the store: who
/// had been served before the revocation was asked for had a session then.
pub fn after_the_revocation(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    for revoked in &history.revocations {
        let Some(done) = revoked.done else { continue };
        for run in history.runs.values().filter(|run| history.concerns(revoked, run)) {
            let before = run.keys.values().map(|served| served.first).min();
            if before.is_none_or(|first| first >= revoked.asked) {
                continue;
            }
            if run.keys.keys().any(|key| had_ended(history, key, revoked.asked)) {
                continue;
            }
            let Some(last) = run.keys.values().map(|served| served.last).max().filter(|last| *last > done) else {
                continue;
            };
            // A node that said that it has dropped them has no more time at all.
            let said = revoked.unheard.as_ref().is_some_and(|unheard| !unheard.contains(&run.begin.node));
            let limit = if said { done } else { revoked_until(history, run, done) };
            if last > limit {
                found.push(Violation::new(
                    "nobody is served after the revocation",
                    subject(run),
                    format!(
                        "{} was served {} ms after the revocation of {} was done; allowed were {} ms{}",
                        subject(run),
                        last - done,
                        revoked.whom,
                        limit - done,
                        if said { ", since the node had said that it follows" } else { "" }
                    ),
                ));
            }
        }
    }
    found
}

/// Whether the session of a key had ended long before the revocation: Slurm had lost the job while its processes ran on.
/// credvend does not wait for the nodes of such a session; [`after_the_sessions_end`] judges it.
fn had_ended(history: &History, key: &str, asked: Ms) -> bool {
    let session = history.issued.get(key).and_then(|issued| history.sessions.get(&issued.session));
    session.is_some_and(|session| {
        session.status == "COMPLETED" && session.ended.is_some_and(|ended| ended + EPILOGS < asked)
    })
}

/// How many pairs of a revocation and a run that asked on after it there were; and how many of them with a strict bound:
/// the node had said that it follows, or no fault was near. A check that only ever forgave would show nothing.
pub fn judged(history: &History) -> (usize, usize) {
    let (mut all, mut strict) = (0, 0);
    for revoked in &history.revocations {
        let Some(done) = revoked.done else { continue };
        for run in history.runs.values().filter(|run| history.concerns(revoked, run)) {
            let served_before = run.keys.values().any(|served| served.first < revoked.asked);
            let asked_after = run.last.is_some_and(|(last, _)| last > done);
            if served_before && asked_after {
                all += 1;
                let said = revoked.unheard.as_ref().is_some_and(|unheard| !unheard.contains(&run.begin.node));
                strict +=
                    usize::from(said || hears(history, &run.begin.node, done) <= done + history.bound(done, HEARD));
            }
        }
    }
    (all, strict)
}

fn revoked_by(history: &History, run: &Run, at: Ms) -> bool {
    history
        .revocations
        .iter()
        .filter(|revoked| history.concerns(revoked, run))
        .any(|revoked| revoked.asked <= at && revoked.done.is_none_or(|done| run.begin.at <= done + OPENED))
}

/// A job that runs and was not revoked is not told a final no.
pub fn refused_without_cause(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    for run in history.runs.values() {
        let node = &run.begin.node;
        let slurms = |target: &Target| match target {
            Target::Slurmctld => true,
            Target::Slurmd(of) | Target::Network(of) | Target::Munged(of) => of == node || of == "head",
            _ => false,
        };
        for (at, code) in &run.refusals {
            let still_ran = history
                .jobs
                .iter()
                .filter(|((id, _), job)| *id == run.begin.job && job.seen <= *at + OPENED)
                .any(|(_, job)| job.over.is_none() && job.alive > *at + ENDING);
            let known_over = history
                .jobs
                .iter()
                .any(|((id, _), job)| *id == run.begin.job && job.over.is_some_and(|over| over <= *at + ENDING));
            if known_over || !still_ran || revoked_by(history, run, *at) || history.ours.contains(&run.begin.job) {
                continue;
            }
            // slurmctld that was killed may have lost the job's start, and a node that it gave up runs on.
            if history.troubled(*at, slurms, |_| REGISTERED).is_some() {
                continue;
            }
            found.push(Violation::new(
                "no running job is refused without cause",
                format!("{}: {code}", subject(run)),
                format!("{} was told {code} although it ran for more than {ENDING} ms on", subject(run)),
            ));
        }
    }
    found
}

/// Every job finds URL and token in its environment, also where nothing of ours runs at that moment, and where slurmd ran
/// no prolog for it.
pub fn unequipped(history: &History) -> Vec<Violation> {
    let lacking = history.runs.values().filter(|run| !run.begin.run.is_empty() && !run.begin.equipped);
    lacking
        .map(|run| {
            let what = format!("{} found no URL or no token in its environment", subject(run));
            Violation::new("every job finds its environment", subject(run), what)
        })
        .collect()
}

/// A job that runs, is not revoked and asks on is not left without credentials for longer than SDKs try, unless a fault is
/// the reason.
pub fn left_without(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    for run in history.runs.values() {
        let node = &run.begin.node;
        let any = |target: &Target| match target {
            Target::Credd(of) | Target::CreddServer(of) | Target::Network(of) | Target::Munged(of) => {
                of == node || of == "head"
            }
            Target::Credvend | Target::Slurmctld | Target::Aws => true,
            Target::Slurmd(_) => false,
        };
        for streak in &run.streaks {
            let rested = history
                .revocations
                .iter()
                .filter(|revoked| revoked.users.contains(&run.begin.user))
                .map(|revoked| revoked.done.unwrap_or(revoked.asked))
                .filter(|at| *at <= streak.until)
                .map(|at| at + NAMES_RESTED)
                .max();
            let from = streak.from.max(run.begin.at + OPENED).max(rested.unwrap_or_default());
            // The longest part of it that no fault explains.
            let (mut calm, mut at) = (0, from);
            while at < streak.until {
                let clear = history.clear_from(at, any, |outage| reconnected(outage) + OPENED);
                let next = history.faults.iter().filter(|span| any(&span.fault.target) && span.from > clear);
                let next = next.map(|span| span.from).min().unwrap_or(Ms::MAX).min(streak.until);
                calm = calm.max(next.saturating_sub(clear));
                at = next.max(clear).max(at + 1);
            }
            if calm > history.bound(streak.until, PATIENCE) {
                found.push(Violation::new(
                    "no running job is left without credentials",
                    subject(run),
                    format!(
                        "{} was given none for {} ms ({}), {calm} ms of them with no fault near",
                        subject(run),
                        streak.until - streak.from,
                        streak.code
                    ),
                ));
            }
        }
    }
    found
}

/// A 200 is a whole document that is still good; nothing is answered but 200, 403 and 503.
pub fn wrong_answers(history: &History) -> Vec<Violation> {
    let wrong = history.wrong_answers.iter();
    wrong.map(|what| Violation::new("every answer is one that SDKs take right", what, what)).collect()
}

/// Who is served is served as the user, project, node and job that it is, by the store's word, the document's and AWS's.
pub fn another_identity(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut wrong = |run: &Run, what: String| {
        let what = format!("{}: {what}", subject(run));
        found.push(Violation::new("everyone is served as who they are", what.clone(), what));
    };
    for run in history.runs.values() {
        let begin = &run.begin;
        for (key, served) in &run.keys {
            if !served.role.ends_with(&format!("/{}", begin.account)) {
                wrong(run, format!("{key} is of the role {:?}", served.role));
            }
            let Some(issued) = history.issued.get(key) else { continue };
            let elsewhere = issued.node.as_ref().is_some_and(|node| *node != begin.node);
            if issued.user != begin.user || issued.project != begin.account || elsewhere {
                wrong(run, format!("{key} was issued to {issued:?}"));
            }
            let Some(session) = history.sessions.get(&issued.session) else { continue };
            if session.job != Some(begin.job) || session.restart != begin.restart || session.user != begin.user {
                wrong(run, format!("{key} is of {session:?}, and this is restart {}", begin.restart));
            }
        }
        for arn in run.identities.iter().filter(|arn| arn.contains("assumed-role/")) {
            let role = format!("assumed-role/{}/", begin.account);
            if !arn.contains(&role) || !arn.split(['/', '-']).any(|part| part == begin.user) {
                wrong(run, format!("AWS says that it is {arn}"));
            }
        }
    }
    found
}

/// Whatever is served was recorded first: without that nothing can be revoked.
pub fn unknown_keys(history: &History) -> Vec<Violation> {
    if !history.all_issued {
        return Vec::new();
    }
    let served = history.runs.values().flat_map(|run| run.keys.keys().map(move |key| (run, key)));
    served
        .filter(|(_, key)| !history.issued.contains_key(*key))
        .map(|(run, key)| {
            let what = format!("{} was served {key}, of which the store knows nothing", subject(run));
            Violation::new("what is served is recorded", key, what)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{ask, fault, history};
    use super::*;
    use crate::soak::history::{Issued, Job, Revoked, Whom};

    fn revoke(history: &mut History, asked: Ms, done: Option<Ms>) {
        history.revocations.push(Revoked {
            whom: Whom::User("alice".into()),
            users: ["alice".to_owned()].into(),
            asked,
            done,
            ..Revoked::default()
        });
    }

    fn runs(history: &mut History, seen: Ms, alive: Ms, over: Option<Ms>) {
        history.jobs.insert((7, 5), Job { seen, alive, over, ..Job::default() });
    }

    #[test]
    fn service_after_a_revocation_is_caught_also_without_the_store() {
        let mut history = history();
        ask(&mut history, 20_000, 200);
        ask(&mut history, 31_900, 200);
        revoke(&mut history, 29_900, Some(30_000));
        assert_eq!(after_the_revocation(&history), [], "within the bound");
        ask(&mut history, 32_100, 200);
        history.sessions.clear();
        assert_eq!(after_the_revocation(&history).len(), 1);
        assert_eq!(judged(&history), (1, 1));
    }

    #[test]
    fn a_node_that_said_that_it_follows_has_no_more_time() {
        let mut history = history();
        ask(&mut history, 20_000, 200);
        ask(&mut history, 30_100, 200);
        revoke(&mut history, 29_900, Some(30_000));
        fault(&mut history, Target::Credvend, 29_000, 29_500);
        assert_eq!(after_the_revocation(&history), []);
        history.revocations[0].unheard = Some(["n1".to_owned()].into());
        assert_eq!(after_the_revocation(&history), []);
        history.revocations[0].unheard = Some(["n2".to_owned()].into());
        assert_eq!(after_the_revocation(&history).len(), 1);
    }

    #[test]
    fn a_session_that_was_over_long_before_is_judged_by_its_end() {
        let mut history = history();
        ask(&mut history, 20_000, 200);
        ask(&mut history, 990_000, 200);
        revoke(&mut history, 899_900, Some(900_000));
        let session = history.sessions.get_mut("s").unwrap();
        (session.status, session.ended) = ("COMPLETED".into(), Some(59_000));
        assert_eq!((after_the_revocation(&history).len(), after_the_sessions_end(&history).len()), (0, 1));
        for lately in [60_000, 899_000, 901_000] {
            history.sessions.get_mut("s").unwrap().ended = Some(lately);
            assert_eq!(after_the_revocation(&history).len(), 1, "its nodes are told");
        }
    }

    #[test]
    fn projects_jobs_and_nodes_are_revoked_too() {
        let mut history = history();
        ask(&mut history, 20_000, 200);
        ask(&mut history, 90_000, 200);
        revoke(&mut history, 29_900, Some(30_000));
        let mut found = |whom| {
            history.revocations[0].whom = whom;
            after_the_revocation(&history).len()
        };
        assert_eq!([Whom::Project("genomics".into()), Whom::Job(7), Whom::Node("n1".into())].map(&mut found), [1; 3]);
        assert_eq!([Whom::Project("climate".into()), Whom::Job(8), Whom::Node("n2".into())].map(&mut found), [0; 3]);
    }

    /// As job 236 of seed 777: its first run was on n1, it was requeued onto n3, and then n1 was revoked.
    #[test]
    fn a_node_is_revoked_for_the_run_that_has_it_and_not_for_an_earlier_one() {
        let mut history = history();
        let on = |seen, over, nodes: &[&str]| {
            let nodes = nodes.iter().map(|&node| node.to_owned()).collect();
            Job { seen, over, nodes, ..Job::default() }
        };
        history.jobs.insert((7, 5), on(1_000, Some(9_500), &["n3", "n2"]));
        history.jobs.insert((7, 6), on(9_800, None, &["n1"]));
        history.runs.get_mut("r").unwrap().begin.restart = 1;
        ask(&mut history, 20_000, 200);
        ask(&mut history, 90_000, 200);
        revoke(&mut history, 29_900, Some(30_000));
        history.revocations[0].whom = Whom::Node("n3".into());
        assert_eq!(after_the_revocation(&history), []);
        // Its first run's record outlived that run's end in our eyes: still another node's.
        history.jobs.insert((7, 5), on(1_000, Some(11_000), &["n3", "n2"]));
        assert_eq!(after_the_revocation(&history), []);
        // The other node of the same run counts.
        history.jobs.insert((7, 6), on(9_800, None, &["n1", "n3"]));
        assert_eq!(after_the_revocation(&history).len(), 1);
        // Both runs were on this node; a look came late.
        history.jobs.insert((7, 5), on(1_000, Some(11_000), &["n1", "n3"]));
        history.jobs.insert((7, 6), on(11_000, None, &["n1"]));
        assert_eq!(after_the_revocation(&history), []);
        history.runs.get_mut("r").unwrap().begin.restart = 0;
        assert_eq!(after_the_revocation(&history).len(), 1);
    }

    #[test]
    fn a_revocation_that_credvend_did_not_confirm_and_later_jobs_prove_nothing() {
        let mut history = history();
        revoke(&mut history, 15_000, Some(15_100));
        ask(&mut history, 30_000, 200);
        assert_eq!(after_the_revocation(&history), [], "its session was opened after the revocation");
        revoke(&mut history, 40_000, None);
        ask(&mut history, 90_000, 200);
        assert_eq!(after_the_revocation(&history), []);
    }

    #[test]
    fn a_node_that_could_not_hear_has_its_own_bound_and_not_more() {
        let mut history = history();
        ask(&mut history, 20_000, 200);
        revoke(&mut history, 29_900, Some(30_000));
        fault(&mut history, Target::Network("n1".into()), 28_000, 36_000);
        ask(&mut history, 50_000, 200);
        assert_eq!(after_the_revocation(&history), [], "36 s, 16 + 2 + 3 s to connect, 2 s");
        assert_eq!(judged(&history), (1, 0));
        ask(&mut history, 60_000, 200);
        assert_eq!(after_the_revocation(&history).len(), 1);
        history.faults[0].fault.target = Target::Network("n2".into());
        assert_eq!(judged(&history), (1, 1), "another node's wire excuses nothing");
        history.faults[0].fault.target = Target::Network("n1".into());
        history.faults[0].until = None;
        assert_eq!(after_the_revocation(&history), [], "it is still unplugged");
    }

    #[test]
    fn where_the_partition_says_so_an_unplugged_node_stops_by_itself() {
        let mut history = history();
        ask(&mut history, 20_000, 200);
        revoke(&mut history, 29_900, Some(30_000));
        fault(&mut history, Target::Network("n1".into()), 28_000, 90_000);
        ask(&mut history, 63_000, 200);
        assert_eq!(after_the_revocation(&history), []);
        history.runs.get_mut("r").unwrap().begin.partition = CAUTIOUS.into();
        assert_eq!(after_the_revocation(&history).len(), 1);
    }

    #[test]
    fn service_after_the_sessions_end_is_caught() {
        let mut history = history();
        ask(&mut history, 20_000, 200);
        ask(&mut history, 40_000, 200);
        let end = |history: &mut History, status: &str, at| {
            let session = history.sessions.get_mut("s").unwrap();
            (session.status, session.ended) = (status.into(), Some(at));
        };
        end(&mut history, "INVALIDATED", 39_000);
        assert_eq!(after_the_sessions_end(&history), []);
        end(&mut history, "INVALIDATED", 37_000);
        assert_eq!(after_the_sessions_end(&history).len(), 1);
        end(&mut history, "COMPLETED", 37_000);
        assert_eq!(after_the_sessions_end(&history), []);
        end(&mut history, "COMPLETED", 30_000);
        assert_eq!(after_the_sessions_end(&history).len(), 1);
        fault(&mut history, Target::Slurmd("n1".into()), 25_000, 27_000);
        assert_eq!(after_the_sessions_end(&history), [], "slurmd may not have been told to end it");
    }

    #[test]
    fn a_final_no_needs_a_cause() {
        let mut history = history();
        ask(&mut history, 20_000, 200);
        ask(&mut history, 30_000, 403);
        runs(&mut history, 9_000, 33_000, None);
        assert_eq!(refused_without_cause(&history), [], "it may be about to end");
        runs(&mut history, 9_000, 60_000, None);
        assert_eq!(refused_without_cause(&history).len(), 1);
        runs(&mut history, 9_000, 30_500, Some(31_000));
        assert_eq!(refused_without_cause(&history), []);
        runs(&mut history, 9_000, 60_000, None);
        revoke(&mut history, 29_000, Some(29_100));
        assert_eq!(refused_without_cause(&history), []);
        history.revocations[0].whom = Whom::User("alicette".into());
        assert_eq!(refused_without_cause(&history).len(), 1);
    }

    #[test]
    fn a_keeper_that_hangs_is_no_cause_to_refuse() {
        let mut history = history();
        ask(&mut history, 30_000, 403);
        runs(&mut history, 9_000, 60_000, None);
        history.runs.get_mut("r").unwrap().refusals[0].1 = "UnknownToken".into();
        fault(&mut history, Target::CreddServer("n1".into()), 29_000, 31_000);
        fault(&mut history, Target::Credd("n1".into()), 29_000, 31_000);
        assert_eq!(refused_without_cause(&history).len(), 1);
    }

    #[test]
    fn a_job_without_its_environment_is_caught() {
        let mut history = history();
        assert_eq!(unequipped(&history), []);
        history.runs.get_mut("r").unwrap().begin.equipped = false;
        fault(&mut history, Target::Credd("n1".into()), 9_000, 11_000);
        assert_eq!(unequipped(&history).len(), 1);
        fault(&mut history, Target::Slurmctld, 2_000, 3_000);
        assert_eq!(unequipped(&history).len(), 1, "also where slurmd ran no prolog");
    }

    #[test]
    fn to_be_left_without_credentials_needs_a_fault() {
        let mut history = history();
        ask(&mut history, 30_000, 200);
        for at in (40_000..=49_000).step_by(1_000) {
            ask(&mut history, at, 503);
        }
        assert_eq!(left_without(&history), []);
        ask(&mut history, 51_000, 0);
        assert_eq!(left_without(&history).len(), 1);
        fault(&mut history, Target::Slurmd("n1".into()), 39_000, 45_000);
        assert_eq!(left_without(&history).len(), 1, "slurmd has no part in it");
        fault(&mut history, Target::Credvend, 39_000, 41_000);
        assert_eq!(left_without(&history), []);
        // The outage is long over, and it goes on.
        for at in (52_000..=90_000).step_by(1_000) {
            ask(&mut history, at, 503);
        }
        assert_eq!(left_without(&history).len(), 1);
    }

    #[test]
    fn a_success_in_between_ends_the_streak() {
        let mut history = history();
        for at in (30_000..90_000).step_by(8_000) {
            ask(&mut history, at, 503);
            ask(&mut history, at + 4_000, 200);
        }
        assert_eq!(left_without(&history), []);
    }

    #[test]
    fn a_strangers_key_is_caught() {
        let mut history = history();
        ask(&mut history, 20_000, 200);
        assert_eq!(another_identity(&history), []);
        let sound = history.issued["K"].clone();
        for issued in [
            Issued { user: "bob".into(), ..sound.clone() },
            Issued { project: "climate".into(), ..sound.clone() },
            Issued { node: Some("n2".into()), ..sound.clone() },
        ] {
            history.issued.insert("K".into(), issued);
            assert_eq!(another_identity(&history).len(), 1);
        }
        history.issued.insert("K".into(), Issued { node: None, ..sound });
        assert_eq!(another_identity(&history), [], "one AssumeRole may serve all nodes of a job");
        history.sessions.get_mut("s").unwrap().restart = 1;
        assert_eq!(another_identity(&history).len(), 1);
    }

    #[test]
    fn what_aws_says_counts_and_bob_is_not_bobby() {
        let mut history = history();
        let mut says = |user: &str, arn: &str| {
            let run = history.runs.get_mut("r").unwrap();
            run.begin.user = user.into();
            run.identities = vec![arn.into()];
            another_identity(&history).len()
        };
        assert_eq!(says("bob", "arn:aws:sts::1:assumed-role/genomics/lab-bob-n1"), 0);
        assert_eq!(says("bob", "arn:aws:sts::1:assumed-role/genomics/lab-bobby-n1"), 1);
        assert_eq!(says("bob", "arn:aws:sts::1:assumed-role/climate/lab-bob-n1"), 1);
        assert_eq!(says("bob", "Unable to locate credentials"), 0, "an outage, which others judge");
    }

    #[test]
    fn a_key_that_the_store_does_not_know_is_caught_when_all_are_read() {
        let mut history = history();
        ask(&mut history, 20_000, 200);
        history.issued.clear();
        assert_eq!(unknown_keys(&history), []);
        history.all_issued = true;
        assert_eq!(unknown_keys(&history).len(), 1);
    }

    #[test]
    fn other_statuses_are_wrong() {
        let mut history = history();
        ask(&mut history, 20_000, 429);
        ask(&mut history, 21_000, 500);
        assert_eq!(wrong_answers(&history).len(), 2);
    }
}
