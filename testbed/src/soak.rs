//! The soak: a real cluster under load, to which faults are dealt from a seed, and what must hold all the while.
//!
//! [`schedule`] says from the seed which fault when, [`faults`] deals it, [`load`] submits jobs whose [`asking`] clients
//! write down what they are told, [`observer`] reads that and looks at Slurm, the store and the daemons, [`invariants`]
//! judge the [`history`], [`quiet`] ends it, [`report`] tells it, and [`sabotage`] shows that it would be noticed.
//! `docs/torture.md` is for who runs it.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{Scope, scope};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::people;
use crate::plan::Plan;
use crate::software;

pub mod asking;
pub mod clock;
pub mod command;
pub mod dice;
pub mod faults;
pub mod history;
pub mod invariants;
pub mod load;
pub mod logs;
pub mod observer;
pub mod quiet;
pub mod records;
pub mod report;
pub mod sabotage;
pub mod schedule;
pub mod taken;
pub mod trail;

use clock::{Ms, now};
use faults::{Dealt, deal, heal};
use history::{History, Revoked, Span, Whom};
use invariants::{Found, Violation};
use observer::Observer;
use schedule::{Deed, Length, Planned, Wanted};

/// The pause between two looks.
const LOOK: Duration = Duration::from_millis(2_000);
/// The pause between two lines of progress.
const TELL: Ms = 10_000;
/// The load begins alone, so that there is something to disturb.
const ALONE: Ms = 4_000;
/// A revocation waits for AWS; the command has its own limit, and this one is above it.
const REVOCATION: &str = "100";
/// So often is it asked for again where it was not done.
const REPEATED: usize = 20;

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Where the randomness comes from.
    pub seed: u64,
    /// For how long faults are dealt; the start and the end come on top.
    pub lasts: Duration,
    /// How long the longest of them last.
    pub length: Length,
    /// How much load there is.
    pub rate: load::Rate,
}

impl Options {
    /// A run of a minute or so, as `make test` has it.
    pub fn short(seed: u64) -> Self {
        let rate = load::Rate { pause: Duration::from_millis(700), alive: 12 };
        Options { seed, lasts: Duration::from_secs(50), length: Length::Short, rate }
    }

    /// A run of so many minutes.
    pub fn long(seed: u64, minutes: f64) -> Self {
        let rate = load::Rate { pause: Duration::from_millis(350), alive: 30 };
        Options { seed, lasts: Duration::from_secs_f64(minutes * 60.0), length: Length::Long, rate }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// What was done and seen.
    pub history: History,
    /// What should not have been.
    pub violations: Vec<Violation>,
    /// Revocations whose runs asked on afterwards, and of these how many with the strict bound.
    pub judged: (usize, usize),
}

/// A partition whose jobs prefer no credentials to those of a node that cannot hear of revocations.
pub const CAUTIOUS: &str = "cautious";
/// For how long its jobs are served unheard.
pub const MAX_UNHEARD: Ms = 30_000;

/// The cluster of a soak: three nodes, and a Slurm that gives a node up soon enough to be seen.
pub fn plan() -> Plan {
    let options = format!("on,max-unheard={}s", MAX_UNHEARD / 1000);
    Plan { nodes: 3, ..Plan::default() }
        .partition(CAUTIOUS, "", Some(&options))
        .slurm_conf("SlurmdTimeout=20\nMessageTimeout=8\nMinJobAge=120\nSchedulerParameters=bf_interval=5")
}

/// What the threads of a run share.
pub struct Soak<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// What was done and seen.
    pub history: Mutex<History>,
    /// What should not have been.
    pub found: Mutex<Found>,
    /// The client that jobs run.
    pub client: PathBuf,
}

/// Its content, also if a thread died with it in its hands: the reason stands elsewhere.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Soak<'a> {
    /// On a cluster that is up.
    pub fn new(cluster: &'a Cluster) -> Result<Self> {
        let client = cluster.run_dir().join("bin/testbed");
        software::take(&software::program("testbed")?, &client)?;
        let history = History { begun: now(), now: now(), ..History::default() };
        Ok(Soak { cluster, history: Mutex::new(history), found: Mutex::default(), client })
    }

    /// Runs the whole: load, faults, and the quiet end. `tell` is given a line now and then.
    ///
    /// # Errors
    /// The harness itself could not go on; what is wrong with the cluster is in the outcome.
    pub fn run(&self, options: &Options, tell: &(dyn Fn(&str) + Sync)) -> Result<Outcome> {
        let nodes: Vec<String> = self.cluster.nodes().iter().map(|node| node.name().to_owned()).collect();
        let plan = schedule::schedule(options.seed, options.lasts, &nodes, options.length);
        let client = self.client.display().to_string();
        let survivors = quiet::survivors(self, options)?;
        let mut observer = scope(|scope| -> Result<Observer<'_>> {
            let (stop_load, load_stops) = channel();
            let (stop_looking, looking_stops) = channel();
            let loading = scope.spawn(move || {
                load::submit(self.cluster, &self.history, options.seed, options.rate, &client, &load_stops);
            });
            let looking = scope.spawn(move || self.look_on(&looking_stops, options, tell));
            let dealt = self.deal_all(scope, &plan, options, tell);
            drop(stop_load);
            loading.join().expect("the load's thread does not panic");
            // The revocations that still run end by themselves; the scope waits for them.
            drop(stop_looking);
            let observer = looking.join().expect("the observer's thread does not panic");
            dealt.map(|()| observer)
        })?;
        tell("no more faults, no more jobs: everything must come to rest now");
        quiet::come_to_rest(self, &mut observer, &survivors, tell)?;
        let history = std::mem::take(&mut *locked(&self.history));
        let mut found = std::mem::take(&mut *locked(&self.found));
        found.add(invariants::at_the_end(&history));
        found.add(logs::check(self.cluster, &history.secrets));
        found.add(trail::Trail::of(self.cluster).check(&history));
        let judged = invariants::serving::judged(&history);
        Ok(Outcome { history, violations: found.all(), judged })
    }

    /// Looks and judges until told to stop.
    fn look_on(&self, stop: &Receiver<()>, options: &Options, tell: &(dyn Fn(&str) + Sync)) -> Observer<'a> {
        let mut observer = Observer::new(self.cluster);
        let warm = now() + Ms::try_from(options.lasts.as_millis() / 4).unwrap_or_default().min(60_000);
        let mut is_warm = false;
        while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(LOOK) {
            observer.look(&self.history);
            if !is_warm && now() >= warm {
                is_warm = true;
                observer.forget_early(&self.history);
            }
            self.judge(tell);
        }
        observer
    }

    /// Judges what is known so far.
    pub fn judge(&self, tell: &(dyn Fn(&str) + Sync)) {
        let violations = invariants::meanwhile(&locked(&self.history));
        for violation in locked(&self.found).add(violations) {
            tell(&format!("VIOLATION {}: {}", violation.invariant, violation.what));
        }
    }

    /// Deals everything in its time, and undoes it.
    fn deal_all<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        plan: &[Planned],
        options: &Options,
        tell: &(dyn Fn(&str) + Sync),
    ) -> Result<()> {
        let begun = now() + ALONE;
        let mut end = begun + Ms::try_from(options.lasts.as_millis()).unwrap_or(Ms::MAX / 2);
        // A daemon that takes its time to stop moves all that follows, so that what must not overlap does not.
        let mut late = 0;
        // Nothing is ever sent: this waits for the time of the next deed.
        let (_silence, next_deed): (Sender<()>, Receiver<()>) = channel();
        let mut coming = plan.iter().map(|(at, deed)| (begun + at, deed)).peekable();
        let mut in_force: Vec<(Ms, usize, Dealt)> = Vec::new();
        let mut told = now();
        loop {
            let at = now();
            for (_, number, dealt) in in_force.extract_if(.., |(until, ..)| *until <= at) {
                heal(self.cluster, &dealt).with_context(|| format!("undo {dealt:?}"))?;
                locked(&self.history).faults[number].until = Some(now());
            }
            while let Some((when, deed)) = coming.next_if(|(when, deed)| {
                let in_its_way = matches!(deed, Deed::Fault(fault, _) if in_force.iter().any(|(.., d)| d.is_at(fault)));
                *when + late <= at && !in_its_way
            }) {
                // What waited for another's end moves all that follows.
                end += at - (when + late);
                late = at - when;
                match deed {
                    Deed::Fault(fault, lasts) => {
                        let number = self.begins(fault);
                        tell(&format!("{fault} for {lasts} ms"));
                        let dealing = now();
                        match deal(self.cluster, fault) {
                            Ok(dealt) => in_force.push((now() + lasts, number, dealt)),
                            Err(why) => self.ended_by_itself(number, fault, &why, tell),
                        }
                        late += now() - dealing;
                        end += now() - dealing;
                    }
                    Deed::Revoke(wanted) => {
                        tell(&format!("revoke {wanted:?}"));
                        let wanted = *wanted;
                        scope.spawn(move || self.revoke(wanted));
                    }
                }
            }
            if at >= told + TELL {
                told = at;
                tell(&report::progress(&locked(&self.history), locked(&self.found).all().len()));
            }
            if at >= end && in_force.is_empty() {
                return Ok(());
            }
            let healing = in_force.iter().map(|(until, ..)| *until).min();
            let dealing = coming.peek().map(|(when, _)| (*when + late).max(at + 20));
            let next = healing.into_iter().chain(dealing).chain([told + TELL, end.max(at + 20)]).min();
            let pause = next.unwrap_or(at).saturating_sub(now()).clamp(5, 1_000);
            let _ = next_deed.recv_timeout(Duration::from_millis(pause));
        }
    }

    /// Puts a fault on record before it is dealt, so that nothing it does is ever without an explanation.
    fn begins(&self, fault: &faults::Fault) -> usize {
        let mut history = locked(&self.history);
        history.faults.push(Span { fault: fault.clone(), from: now(), until: None });
        history.faults.len() - 1
    }

    /// A fault that could not be dealt, as a rule since its target is gone.
    fn ended_by_itself(&self, number: usize, fault: &faults::Fault, why: &anyhow::Error, tell: &(dyn Fn(&str) + Sync)) {
        locked(&self.history).faults[number].until = Some(now());
        let what = format!("{fault}: {why:#}");
        tell(&format!("VIOLATION no daemon ends by itself: {what}"));
        let violation = Violation { invariant: "no daemon ends by itself", subject: fault.to_string(), what };
        locked(&self.found).add(vec![violation]);
    }

    /// Revokes with the administrators' command.
    pub fn revoke(&self, wanted: Wanted) {
        let Some((number, whom)) = self.ordered(wanted) else { return };
        let (flag, name) = match &whom {
            Whom::User(user) => ("--user", user.clone()),
            Whom::Project(project) => ("--project", project.clone()),
            Whom::Job(job) => ("--job", job.to_string()),
            Whom::Node(node) => ("--node", node.clone()),
        };
        let mut argv = vec!["timeout", REVOCATION, "credvend", "revoke", flag, &name, "--why", "the soak", "--json"];
        let cluster = &self.cluster.plan().cluster_name;
        if matches!(whom, Whom::Job(_) | Whom::Node(_)) {
            argv.extend(["--cluster", cluster]);
        }
        let (_silence, pause): (Sender<()>, Receiver<()>) = channel();
        // As an administrator does whose command was told that nobody is there.
        for attempt in 0..REPEATED {
            let done = self.cluster.head().run_as("root", &argv);
            // It fails, too, where nodes or AWS were not reached; the sessions have ended all the same, unless it says so.
            let report: serde_json::Value = serde_json::from_str(&done.stdout).unwrap_or_default();
            if !report["sessions"].is_array() || report["unfinished"].is_string() {
                let _ = pause.recv_timeout(Duration::from_millis(700));
                continue;
            }
            let at = now();
            let unheard = report["nodes"]["unheard"].as_array().into_iter().flatten();
            let unheard = unheard.filter_map(|node| Some(node["node"].as_str()?.to_owned())).collect();
            let mut history = locked(&self.history);
            let revoked = &mut history.revocations[number];
            revoked.done = Some(at);
            revoked.denied = report["not-denied"].as_array().is_some_and(Vec::is_empty);
            // A second order knows nothing of the nodes of the sessions that the first one ended.
            revoked.unheard = (attempt == 0).then_some(unheard);
            return;
        }
    }

    /// Puts a revocation on record before it is asked for.
    fn ordered(&self, wanted: Wanted) -> Option<(usize, Whom)> {
        let mut history = locked(&self.history);
        let users = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let (whom, users) = match wanted {
            Wanted::User(user) => (Whom::User(user.to_owned()), users(&[user])),
            Wanted::Project(project) => {
                let members = people::USERS.iter().filter(|user| user.accounts.contains(&project));
                (Whom::Project(project.to_owned()), members.map(|user| user.name.to_owned()).collect())
            }
            Wanted::Node(node) => (Whom::Node(node.to_owned()), users(&people::USERS.map(|user| user.name))),
            Wanted::Job(number) => {
                let asks = |run: &&history::Run| run.end.is_none() && run.begin.user != "bobby";
                let mut running: Vec<_> = history.runs.values().filter(asks).map(|run| &run.begin).collect();
                running.sort_by_key(|begin| begin.job);
                let nth = usize::try_from(number).unwrap_or_default() % running.len().max(1);
                let begin = running.get(nth)?;
                (Whom::Job(begin.job), users(&[&begin.user]))
            }
        };
        history.revocations.push(Revoked { whom: whom.clone(), users, asked: now(), ..Revoked::default() });
        Some((history.revocations.len() - 1, whom))
    }
}
