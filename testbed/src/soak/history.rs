//! What was done and what was seen, as the invariants read it. Plain data: the checks need no cluster.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::clock::Ms;
use super::faults::{Fault, How, Target};
use super::records::{Asked, Begin, Line};

/// A fault that was dealt.
#[derive(Debug, Clone, Serialize)]
pub struct Span {
    /// What.
    pub fault: Fault,
    /// When it began.
    pub from: Ms,
    /// When it was undone; absent while it is in force.
    pub until: Option<Ms>,
}

/// Whom a revocation is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Whom {
    /// All jobs of this user.
    User(String),
    /// All jobs of this project.
    Project(String),
    /// This job.
    Job(u32),
    /// Every job that has this node.
    Node(String),
}

impl Default for Whom {
    fn default() -> Self {
        Whom::User(String::new())
    }
}

impl std::fmt::Display for Whom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Whom::User(user) => write!(f, "user {user}"),
            Whom::Project(project) => write!(f, "project {project}"),
            Whom::Job(job) => write!(f, "job {job}"),
            Whom::Node(node) => write!(f, "node {node}"),
        }
    }
}

/// A revocation that was asked for.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Revoked {
    /// Whose.
    pub whom: Whom,
    /// Whose other sessions it may touch: AWS denies by role-session name, which a user's jobs on a node share.
    pub users: BTreeSet<String>,
    /// When it was asked for.
    pub asked: Ms,
    /// When credvend said that it is done; absent if it did not say so.
    pub done: Option<Ms>,
    /// Whether AWS had taken in all of it by then.
    pub denied: bool,
    /// The nodes that had not said by then that they follow; absent where the report does not cover all.
    pub unheard: Option<BTreeSet<String>>,
}

/// Who was served one key in one run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Served {
    /// When it was first there: its session was open before.
    pub first: Ms,
    /// When the last request that got it was sent.
    pub last: Ms,
    /// How often.
    pub times: u64,
    /// The role in the document.
    pub role: String,
}

/// Requests without credentials that followed each other, no 200 among them.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Streak {
    /// When the first was sent.
    pub from: Ms,
    /// When the last was answered.
    pub until: Ms,
    /// The last one's code.
    pub code: String,
}

/// One run of a job on one node, as its client saw it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Run {
    /// Who it is.
    pub begin: Begin,
    /// When its client ended by itself.
    pub end: Option<Ms>,
    /// What it was served, by key.
    pub keys: BTreeMap<String, Served>,
    /// 503s and connections without an answer.
    pub streaks: Vec<Streak>,
    /// 403s: when they came, and the code. The first hundred.
    pub refusals: Vec<(Ms, String)>,
    /// Whether the last answer was a 200, and when it was asked for.
    pub last: Option<(Ms, bool)>,
    /// Who AWS says that it is.
    pub identities: Vec<String>,
    streak_open: bool,
}

/// A session as the store has it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Session {
    /// Its UUID.
    pub id: String,
    /// `ACTIVE`, `COMPLETED`, `INVALIDATED`.
    pub status: String,
    /// Whose.
    pub user: String,
    /// Its project.
    pub project: String,
    /// The nodes that it was opened for.
    pub nodes: BTreeSet<String>,
    /// Of which job; absent for a head's.
    pub job: Option<u32>,
    /// Of which of its runs.
    pub restart: u32,
    /// When its run was submitted, seconds since 1970.
    pub submitted: u64,
    /// When it ended.
    pub ended: Option<Ms>,
    /// Why.
    pub why: String,
    /// When it was first seen.
    pub seen: Ms,
}

/// Credentials that the store says were issued.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Issued {
    /// For which session.
    pub session: String,
    /// For which node, if for one.
    pub node: Option<String>,
    /// Whose.
    pub user: String,
    /// Of which project.
    pub project: String,
}

/// A job as slurmctld told it. One id may have had several lives; they are told apart by their submission.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Job {
    /// Its state when last seen.
    pub state: String,
    /// When it was first seen.
    pub seen: Ms,
    /// When it was last seen running or completing.
    pub alive: Ms,
    /// When it was first seen to be over, or found absent from a whole answer.
    pub over: Option<Ms>,
    /// Where it was seen.
    pub nodes: BTreeSet<String>,
    /// What was wrong: held, requeued, failed, and when it was seen.
    pub odd: Vec<(Ms, String)>,
}

/// A job's id and its submission, seconds since 1970.
pub type JobKey = (u32, u64);

/// What one daemon uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Use {
    /// Its resident memory, KiB.
    pub rss: u64,
    /// Its open descriptors.
    pub fds: u64,
}

/// A daemon's use over the run.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Uses {
    /// When the load had begun.
    pub early: Use,
    /// The most ever.
    pub most: Use,
    /// When all was over.
    pub last: Use,
}

/// How often there was what.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Counts {
    /// Jobs that Slurm took.
    pub submitted: u64,
    /// Submissions that it did not.
    pub not_submitted: u64,
    /// Jobs cancelled by the harness.
    pub cancelled: u64,
    /// Jobs requeued by the harness.
    pub requeued: u64,
    /// Nodes that Slurm drained for reasons of its own.
    pub slurms_own_drains: u64,
    /// Records that stayed since Slurm lost the job's epilog.
    pub lost_epilogs: usize,
    /// Credentials that were copied away and tried at the end.
    pub tried: usize,
    /// Requests by status; 0: no answer.
    pub answers: BTreeMap<u16, u64>,
}

impl Revoked {
    /// Whether it is about this session.
    pub fn is_about(&self, session: &Session) -> bool {
        match &self.whom {
            Whom::User(user) => *user == session.user,
            Whom::Project(project) => *project == session.project,
            Whom::Job(job) => Some(*job) == session.job,
            Whom::Node(node) => session.nodes.contains(node),
        }
    }
}

/// Everything.
#[derive(Debug, Clone, Default, Serialize)]
pub struct History {
    /// When it began.
    pub begun: Ms,
    /// Until when it is known; the checks of a run that goes on judge no later.
    pub now: Ms,
    /// The faults.
    pub faults: Vec<Span>,
    /// The revocations.
    pub revocations: Vec<Revoked>,
    /// The runs, by their name.
    pub runs: HashMap<String, Run>,
    /// The sessions.
    pub sessions: HashMap<String, Session>,
    /// What was issued, by key.
    pub issued: HashMap<String, Issued>,
    /// Whether `issued` is complete.
    pub all_issued: bool,
    /// The jobs.
    #[serde(skip)]
    pub jobs: HashMap<JobKey, Job>,
    /// Jobs whose odd states are the harness's own doing.
    pub ours: BTreeSet<u32>,
    /// Jobs that a killed slurmctld lists and does not know: they cannot be cancelled.
    #[serde(default)]
    pub ghosts: BTreeSet<u32>,
    /// Nodes that were seen drained, and Slurm's reason.
    pub drained: BTreeMap<String, String>,
    /// Daemons by host and name.
    pub uses: BTreeMap<String, Uses>,
    /// Pieces of tokens and keys.
    #[serde(skip)]
    pub secrets: BTreeSet<String>,
    /// Wrong documents and statuses, as they came.
    pub wrong_answers: Vec<String>,
    /// How crowded the machine was, now and then: tasks that want a core, over four times as many as there are cores.
    pub crowds: Vec<(Ms, f64)>,
    /// The counts.
    pub counts: Counts,
}

/// The machine's load of a minute counts as long around it.
const LOAD_LASTS: Ms = 60_000;

/// No run has more refusals than these on record; it got the point.
const MAX_REFUSALS: usize = 100;

/// After a job's begin so long at most Slurm was seen to run it: looks are a second apart, and a slurmctld that is disturbed
/// answers none.
const SEEN_BY_THEN: Ms = 12_000;

/// So long after a job's end slurmctld may still have to tell a node of it that did not answer.
const TELLS_OF_ENDS: Ms = 60_000;
/// How long after its node was cut off slurmstepd takes a step for one that cannot be killed (`UnkillableStepTimeout`), and
/// slurmctld is told and seen to say so.
const UNKILLABLE: Ms = 90_000;

impl History {
    /// The sessions that are open. One whose job Slurm lists for ever, although it does not know it, is rightly open.
    pub fn open_sessions(&self) -> impl Iterator<Item = &Session> {
        let listed = |id: u32| self.jobs.iter().any(|((job, _), seen)| *job == id && seen.over.is_none());
        let is_ghosts = move |session: &Session| session.job.is_some_and(|id| self.ghosts.contains(&id) && listed(id));
        self.sessions.values().filter(move |session| session.ended.is_none() && !is_ghosts(session))
    }

    /// Takes a line of a client's.
    pub fn take(&mut self, line: Line) {
        match line {
            Line::Begin(begin) => {
                let run = self.runs.entry(begin.run.clone()).or_default();
                run.begin = begin;
                run.end = None;
            }
            Line::Asked(asked) => self.asked(asked),
            Line::Secrets { texts } => self.secrets.extend(texts),
            Line::Identity { run, arn } => self.runs.entry(run).or_default().identities.push(arn),
            Line::End { run, at } => self.runs.entry(run).or_default().end = Some(at),
        }
    }

    fn asked(&mut self, asked: Asked) {
        *self.counts.answers.entry(asked.status).or_default() += 1;
        let run = self.runs.entry(asked.run.clone()).or_default();
        run.last = Some((asked.sent, asked.status == 200));
        let of = format!("job {} of {} on {}", run.begin.job, run.begin.user, run.begin.node);
        match asked.status {
            200 => {
                run.streak_open = false;
                if !asked.wrong.is_empty() {
                    self.wrong_answers.push(format!("{of} was given a 200, but {}", asked.wrong));
                    return;
                }
                let served = run.keys.entry(asked.key).or_default();
                if served.times == 0 {
                    served.first = asked.got;
                }
                served.last = served.last.max(asked.sent);
                served.times += 1;
                served.role = asked.role;
            }
            403 if run.refusals.len() < MAX_REFUSALS => run.refusals.push((asked.got, asked.code)),
            403 => {}
            0 | 503 if run.streak_open => {
                if let Some(streak) = run.streaks.last_mut() {
                    streak.until = asked.got;
                    streak.code = asked.code;
                }
            }
            0 | 503 => {
                run.streak_open = true;
                run.streaks.push(Streak { from: asked.sent, until: asked.got, code: asked.code });
            }
            other => self.wrong_answers.push(format!("{of} was answered {other} ({})", asked.code)),
        }
        if asked.status == 403 {
            run.streak_open = false;
        }
    }

    /// Whether Slurm itself may have lost a job's epilog on a node: slurmctld was killed and forgot what it had told, and
    /// slurmd there was disturbed in what it had been told, both while the job lived or ended. Or slurmctld forgot the job
    /// and gave its id again: then slurmd, which still has the first one, refuses the second copy, and ends neither. Or slurmd
    /// was killed when it had been told of the end, and runs no epilog when it is back. The node learns from credvend then that
    /// the session is COMPLETED, but not of a revoked one, whose record serves nobody any more.
    pub fn lost_epilog(&self, job: u32, node: &str) -> bool {
        let lives = || self.jobs.iter().filter(|((id, _), _)| *id == job).map(|(_, job)| job);
        let within = |span: &Span| {
            lives().any(|job| {
                let ended = |over| span.from <= over + TELLS_OF_ENDS;
                job.seen <= span.until.unwrap_or(Ms::MAX) && job.over.is_none_or(ended)
            })
        };
        let meanwhile = || self.faults.iter().filter(|span| within(span));
        let forgot = meanwhile().any(|span| span.fault.target == Target::Slurmctld && span.fault.how == How::Kill);
        let disturbed = || meanwhile().any(|span| span.fault.target.is_slurms() && span.fault.target.host() == node);
        let killed_there = || {
            meanwhile().any(|span| span.fault.target == Target::Slurmd(node.to_owned()) && span.fault.how == How::Kill)
        };
        let revoked = || {
            self.sessions
                .values()
                .any(|of| of.job == Some(job) && of.status == "INVALIDATED" && of.nodes.contains(node))
        };
        forgot && (lives().count() > 1 || disturbed()) || killed_there() && revoked()
    }

    /// Whether Slurm itself had a reason to drain a node. For "Duplicate jobid" there are two, for "Kill task failed" one; all
    /// were seen without anything of ours. A slurmctld that was killed gives ids again that it lost. A job that ran on when
    /// its node was cut off, and was given up and requeued, may be given to that node again: slurmctld asks a node that
    /// answers again not what it runs, and slurmd launches no second copy. And a step that ended while slurmctld could not
    /// be told is reported a minute later only, when slurmstepd has taken it for one that cannot be killed.
    pub fn is_slurms_own_drain(&self, node: &str, reason: &str) -> bool {
        let killed = |span: &Span| span.fault.target == Target::Slurmctld && span.fault.how == How::Kill;
        let cut_off = |span: &Span| matches!(&span.fault.target, Target::Network(of) if of == node);
        let mut faults = self.faults.iter();
        match reason {
            "Duplicate jobid" => faults.any(|span| killed(span) || cut_off(span) && self.was_given_again(node, span)),
            "Kill task failed" => faults.any(|span| cut_off(span) && self.ended_unheard(node, span)),
            _ => false,
        }
    }

    /// Whether a job may have ended on a node while it was cut off, so lately that slurmstepd may only now have given up.
    fn ended_unheard(&self, node: &str, cut: &Span) -> bool {
        let until = cut.until.unwrap_or(self.now);
        let was_there = |job: &Job| {
            job.nodes.contains(node)
                && job.seen <= until
                && job.over.is_none_or(|over| over + TELLS_OF_ENDS >= cut.from)
        };
        self.now <= until + UNKILLABLE && self.jobs.values().any(was_there)
    }

    /// Whether a job ran on a node when it was cut off, and then began anew, on that node or nobody saw where.
    fn was_given_again(&self, node: &str, cut: &Span) -> bool {
        self.jobs.iter().any(|((id, submitted), first)| {
            let ran_then = first.seen <= cut.from && first.over.is_none_or(|over| over >= cut.from);
            let anew = |((other, later), job): (&JobKey, &Job)| {
                other == id && later > submitted && (job.nodes.is_empty() || job.nodes.contains(node))
            };
            ran_then && first.nodes.contains(node) && self.jobs.iter().any(anew)
        })
    }

    /// The life of its job that a run belongs to, if Slurm was seen to have it on the run's node: a job that is requeued
    /// has another one, perhaps on other nodes.
    fn life_of(&self, run: &Run) -> Option<&Job> {
        let begin = &run.begin;
        let lives = self.jobs.iter().filter(|((id, _), life)| {
            *id == begin.job
                && life.nodes.contains(&begin.node)
                && life.seen <= begin.at + SEEN_BY_THEN
                && life.over.is_none_or(|over| over >= begin.at)
        });
        // Where one ends and another begins between two looks, the run's own count of restarts tells them apart.
        let submitted = |(key, _): &(&JobKey, &Job)| key.1;
        let life = if begin.restart == 0 { lives.min_by_key(submitted) } else { lives.max_by_key(submitted) };
        life.map(|(_, life)| life)
    }

    /// A bound for what takes processor time: as promised, and where others crowd the machine in proportion longer.
    pub fn bound(&self, at: Ms, promised: Ms) -> Ms {
        let near = self.crowds.iter().filter(|(when, _)| when.abs_diff(at) <= LOAD_LASTS).map(|(_, crowd)| *crowd);
        let crowd = near.fold(1.0, f64::max).min(10.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few seconds, and not negative")]
        let bound = (promised as f64 * crowd) as Ms;
        bound
    }

    /// How many faults of each kind were dealt.
    pub fn faults_by_kind(&self) -> BTreeMap<(&'static str, How), usize> {
        let mut counts = BTreeMap::new();
        for span in &self.faults {
            *counts.entry((span.fault.target.kind(), span.fault.how)).or_default() += 1;
        }
        counts
    }

    /// Whether a revocation is about this run.
    pub fn concerns(&self, revoked: &Revoked, run: &Run) -> bool {
        let begin = &run.begin;
        match &revoked.whom {
            Whom::User(user) => *user == begin.user,
            Whom::Project(project) => *project == begin.account,
            Whom::Job(job) => *job == begin.job,
            Whom::Node(node) => *node == begin.node || self.life_of(run).is_some_and(|job| job.nodes.contains(node)),
        }
    }

    /// Whether a fault of one of these targets is in force at a time or was shortly before, `slack` of the fault's own
    /// length later; gives until when.
    pub fn troubled(&self, at: Ms, concerns: impl Fn(&Target) -> bool, slack: impl Fn(Ms) -> Ms) -> Option<Ms> {
        let mut latest = None;
        for span in self.faults.iter().filter(|span| span.from <= at && concerns(&span.fault.target)) {
            let until = span.until.unwrap_or(Ms::MAX / 4);
            let over = until.saturating_add(slack(until.min(self.now.max(at)).saturating_sub(span.from)));
            if over >= at {
                latest = latest.max(Some(over));
            }
        }
        latest
    }

    /// The first moment from `at` on at which none of these faults has an effect any more.
    pub fn clear_from(&self, at: Ms, concerns: impl Fn(&Target) -> bool, slack: impl Fn(Ms) -> Ms) -> Ms {
        let mut clear = at;
        while let Some(over) = self.troubled(clear, &concerns, &slack) {
            clear = over.saturating_add(1);
            if clear > Ms::MAX / 8 {
                break;
            }
        }
        clear
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_crowded_machine_stretches_a_bound() {
        let mut history = History::default();
        assert_eq!(history.bound(100_000, 2_000), 2_000);
        history.crowds = vec![(90_000, 0.4), (95_000, 2.5), (500_000, 9.0), (900_000, 99.0)];
        assert_eq!(history.bound(100_000, 2_000), 5_000);
        assert_eq!(history.bound(300_000, 2_000), 2_000);
        assert_eq!(history.bound(900_000, 2_000), 20_000, "and not without an end");
    }

    #[test]
    fn slurm_loses_an_epilog_only_when_both_its_daemons_were_disturbed_meanwhile() {
        let mut history = History::default();
        history.jobs.insert((7, 1), Job { seen: 100, over: Some(900), ..Job::default() });
        let span = |target, how, from| Span { fault: Fault { target, how }, from, until: Some(from + 50) };
        history.faults.push(span(Target::Slurmd("n1".into()), How::Kill, 500));
        assert!(!history.lost_epilog(7, "n1"));
        history.faults.push(span(Target::Slurmctld, How::Freeze, 500));
        history.faults.push(span(Target::Slurmctld, How::Kill, 20));
        assert!(!history.lost_epilog(7, "n1"), "a freeze forgets nothing, and the kill was earlier");
        history.faults.push(span(Target::Slurmctld, How::Kill, 400));
        assert!(history.lost_epilog(7, "n1"));
        assert!(!history.lost_epilog(7, "n2") && !history.lost_epilog(8, "n1"));
        // It tells a node that is away of the end again and again.
        history.faults.pop();
        history.faults.push(span(Target::Slurmctld, How::Kill, 900 + TELLS_OF_ENDS));
        assert!(history.lost_epilog(7, "n1"));
        history.faults.pop();
        history.faults.push(span(Target::Slurmctld, How::Kill, 901 + TELLS_OF_ENDS));
        assert!(!history.lost_epilog(7, "n1"));
        // An id that was given twice.
        history.faults = vec![span(Target::Slurmctld, How::Kill, 500)];
        assert!(!history.lost_epilog(7, "n2"));
        history.jobs.insert((7, 2), Job { seen: 600, ..Job::default() });
        assert!(history.lost_epilog(7, "n2"));
    }

    #[test]
    fn a_killed_slurmd_loses_the_epilog_of_a_revoked_job_for_good() {
        let mut history = History::default();
        history.jobs.insert((7, 1), Job { seen: 100, over: Some(900), ..Job::default() });
        let fault = Fault { target: Target::Slurmd("n1".into()), how: How::Kill };
        history.faults.push(Span { fault, from: 880, until: Some(950) });
        let nodes = ["n1".to_owned()].into();
        let of = |status: &str| Session { job: Some(7), status: status.into(), nodes, ..Session::default() };
        let session = of("COMPLETED");
        history.sessions.insert("s".into(), session);
        assert!(!history.lost_epilog(7, "n1"), "the node is told of it");
        history.sessions.get_mut("s").unwrap().status = "INVALIDATED".into();
        assert!(history.lost_epilog(7, "n1") && !history.lost_epilog(7, "n2"));
        history.faults[0].from = 901 + TELLS_OF_ENDS;
        assert!(!history.lost_epilog(7, "n1"), "it was killed long after");
    }
}
