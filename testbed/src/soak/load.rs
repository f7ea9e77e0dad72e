//! The stream of jobs: short and long, alone and in arrays, on one node and on two, of several users and projects.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::Result;

use super::clock::{Ms, now};
use super::dice::Dice;
use super::history::{History, Revoked};
use super::locked;
use super::schedule::REVOKED;
use crate::cluster::Cluster;

/// Who submits, under which account.
const WHO: [(&str, &str); 6] = [
    ("alice", "genomics"),
    ("alice", "shared"),
    // The first of a user is the standing job's: of bob it has the role that bobby has, too.
    ("bob", "shared"),
    ("bob", "climate"),
    ("bobby", "genomics"),
    ("bobby", "shared"),
];

/// What is submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// By whom.
    pub user: &'static str,
    /// Under which account.
    pub account: &'static str,
    /// In which partition.
    pub partition: &'static str,
    /// On how many nodes.
    pub nodes: u64,
    /// How many tasks of an array; 1 is none.
    pub tasks: u64,
    /// For how long its clients ask.
    pub lasts: Ms,
    /// How often.
    pub every: Ms,
    /// Whether AWS is asked, too.
    pub identity: bool,
    /// Whether it copies its credentials away.
    pub take: bool,
    /// What is done to it, and how long after its submission.
    pub then: Option<(Ms, Then)>,
}

/// What the harness does to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// `scancel`.
    Cancel,
    /// `scontrol requeue`.
    Requeue,
}

/// The next job.
pub fn next(dice: &mut Dice) -> Spec {
    let &(user, account) = dice.one(&WHO);
    let long = dice.once_in(4);
    let tasks = if dice.once_in(5) { dice.between(2, 5) } else { 1 };
    let then = match dice.between(0, 12) {
        // Not an array's: its tasks have ids of their own, which would all have to be known.
        0 | 1 if tasks == 1 => Some((dice.between(500, 6_000), Then::Cancel)),
        2 if tasks == 1 => Some((dice.between(3_000, 8_000), Then::Requeue)),
        _ => None,
    };
    Spec {
        user,
        account,
        partition: dice.one::<&str>(&["batch", "batch", "batch", "prefetch", "tokenfile", super::CAUTIOUS]),
        nodes: if dice.once_in(4) { 2 } else { 1 },
        tasks,
        lasts: if long { dice.between(15_000, 45_000) } else { dice.between(500, 5_000) },
        every: dice.between(300, 900),
        identity: dice.once_in(25),
        take: dice.once_in(4),
        then,
    }
}

impl Spec {
    /// What sbatch is told, the script aside.
    pub fn options(&self) -> Vec<String> {
        let mut options = vec![
            format!("--account={}", self.account),
            format!("--partition={}", self.partition),
            format!("--nodes={}", self.nodes),
            "--output=/dev/null".to_owned(),
            "--job-name=soak".to_owned(),
        ];
        if self.tasks > 1 {
            options.push(format!("--array=1-{}", self.tasks));
        }
        options
    }

    /// The batch script. It succeeds whatever its client is told, so a job that fails was failed.
    pub fn script(&self, client: &str) -> String {
        let srun =
            if self.nodes > 1 { format!("srun --ntasks={} --ntasks-per-node=1 ", self.nodes) } else { String::new() };
        let take = if self.take { " --take" } else { "" };
        let identity = if self.identity { " --identity" } else { "" };
        let (lasts, every) = (self.lasts, self.every);
        format!("{srun}{client} soak-client --lasts {lasts} --every {every}{take}{identity}\nexit 0")
    }
}

/// A job of a user whose credentials will be revoked, on two nodes, that asks on afterwards: without one, a revocation
/// would as a rule find nobody to judge it by.
struct Standing {
    user: &'static str,
    account: &'static str,
    job: Option<u32>,
    submitted: Ms,
}

/// For so long it goes on after the revocation.
const SPENT: Ms = 10_000;

impl Standing {
    fn of_all() -> [Self; 2] {
        REVOKED.map(|user| {
            let account = WHO.iter().find(|(who, _)| *who == user).map_or("", |(_, account)| account);
            Standing { user, account, job: None, submitted: 0 }
        })
    }

    /// Sees to it that there is one that was not revoked.
    fn renew(&mut self, cluster: &Cluster, history: &Mutex<History>, client: &str) {
        let spent = {
            let history = locked(history);
            let run = |job| history.runs.values().find(|run| Some(run.begin.job) == job);
            let concerned = |r: &&Revoked| run(self.job).is_some_and(|run| history.concerns(r, run));
            let revoked = history.revocations.iter().filter(|r| r.asked >= self.submitted).filter(concerned);
            let revoked = revoked.map(|r| r.done.unwrap_or(r.asked)).max().is_some_and(|at| at + SPENT < now());
            let over = |job| history.jobs.iter().any(|((id, _), seen)| *id == job && seen.over.is_some());
            self.job.is_none_or(|job| revoked || over(job))
        };
        if !spent {
            return;
        }
        if let Some(job) = self.job.take() {
            act(cluster, history, job, Then::Cancel);
        }
        let spec = Spec {
            user: self.user,
            account: self.account,
            partition: "batch",
            nodes: 2,
            tasks: 1,
            lasts: 3_600_000,
            every: 400,
            identity: false,
            take: true,
            then: None,
        };
        self.submitted = now();
        self.job = submitted(cluster, &spec, client).ok();
        let counts = &mut locked(history).counts;
        *if self.job.is_some() { &mut counts.submitted } else { &mut counts.not_submitted } += 1;
    }
}

/// How much there is at a time.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// The pause between two submissions.
    pub pause: Duration,
    /// No more while so many jobs wait or run.
    pub alive: usize,
}

/// Submits until told to stop, and cancels and requeues what is to be.
pub fn submit(cluster: &Cluster, history: &Mutex<History>, seed: u64, rate: Rate, client: &str, stop: &Receiver<()>) {
    let mut dice = Dice::new(seed, "load");
    let mut due: Vec<(Ms, u32, Then)> = Vec::new();
    let mut standing = Standing::of_all();
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(rate.pause) {
        let at = now();
        for (_, job, then) in due.extract_if(.., |(when, ..)| *when <= at) {
            act(cluster, history, job, then);
        }
        for standing in &mut standing {
            standing.renew(cluster, history, client);
        }
        let alive = locked(history).jobs.values().filter(|job| job.over.is_none()).count();
        if alive >= rate.alive {
            continue;
        }
        let spec = next(&mut dice);
        match submitted(cluster, &spec, client) {
            Ok(job) => {
                locked(history).counts.submitted += spec.tasks;
                due.extend(spec.then.map(|(after, then)| (now() + after, job, then)));
            }
            // slurmctld is away: a user would try again.
            Err(_) => locked(history).counts.not_submitted += 1,
        }
    }
}

fn submitted(cluster: &Cluster, spec: &Spec, client: &str) -> Result<u32> {
    let options = spec.options();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    cluster.as_user(spec.user).sbatch(&spec.script(client), &options)
}

fn act(cluster: &Cluster, history: &Mutex<History>, job: u32, then: Then) {
    // Noted first: the job's fate is the harness's doing from now on, whether or not slurmctld hears of it.
    {
        let mut history = locked(history);
        history.ours.insert(job);
        match then {
            Then::Cancel => history.counts.cancelled += 1,
            Then::Requeue => history.counts.requeued += 1,
        }
    }
    let verb = match then {
        Then::Cancel => format!("scancel {job}"),
        Then::Requeue => format!("scontrol requeue {job}"),
    };
    cluster.head().run_as_root(&verb);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_the_seeds_and_has_all_kinds() {
        let of = |seed| {
            let mut dice = Dice::new(seed, "load");
            (0..200).map(|_| next(&mut dice)).collect::<Vec<_>>()
        };
        assert_eq!(of(1), of(1));
        let specs = of(2);
        for user in ["alice", "bob", "bobby"] {
            assert!(specs.iter().any(|spec| spec.user == user));
        }
        assert!(specs.iter().any(|s| s.tasks > 1) && specs.iter().any(|s| s.nodes > 1));
        assert!(specs.iter().any(|s| matches!(s.then, Some((_, Then::Requeue)))));
        assert!(specs.iter().any(|s| s.identity) && specs.iter().filter(|s| s.identity).count() < 30);
    }

    #[test]
    fn a_script_succeeds_whatever_its_client_is_told() {
        let spec = Spec { nodes: 2, identity: true, ..next(&mut Dice::new(1, "load")) };
        let script = spec.script("/bin/client");
        assert!(script.starts_with("srun --ntasks=2") && script.ends_with("\nexit 0"), "{script}");
    }
}
