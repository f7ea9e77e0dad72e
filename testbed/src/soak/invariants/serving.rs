//! What jobs are given, and when they must not be given it, or must.

use super::{Violation, reconnected};
use crate::soak::clock::Ms;
use crate::soak::faults::{How, Target};
use crate::soak::history::{History, Run, Served};
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
/// no prolog for it. A step of a job that was revoked before it began gets none, and its user a notice.
pub fn unequipped(history: &History) -> Vec<Violation> {
    let lacking = history.runs.values().filter(|run| !run.begin.run.is_empty() && !run.begin.equipped);
    let lacking = lacking.filter(|run| !revoked_by(history, run, run.begin.at));
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
            if is_of_an_earlier_job(history, run, key, served) {
                continue;
            }
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

/// Whether a key is that of an earlier job of the same number, user and node, which a killed slurmctld has lost and slurmd
/// still runs: then slurmd runs no prolog for the new job, whose step finds the earlier one's record. Until credvend has told
/// the node that the earlier job's session is over.
fn is_of_an_earlier_job(history: &History, run: &Run, key: &str, served: &Served) -> bool {
    let begin = &run.begin;
    let Some(session) = history.issued.get(key).and_then(|issued| history.sessions.get(&issued.session)) else {
        return false;
    };
    let same = session.job == Some(begin.job) && session.user == begin.user && session.nodes.contains(&begin.node);
    let given_again = history.jobs.keys().any(|(id, submitted)| *id == begin.job && *submitted > session.submitted);
    let lost = history.faults.iter().any(|span| {
        span.fault.target == Target::Slurmctld
            && span.fault.how == How::Kill
            && span.from <= begin.at
            && span.from + OPENED >= session.seen
    });
    let told = session.ended.is_none_or(|ended| served.last <= ended + history.bound(ended, HEARD));
    same && given_again && lost && told
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
mod tests;
