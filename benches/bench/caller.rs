//! What it takes to find the job of a connection by the cgroup of its socket, on a node that is full of jobs.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use peer::{CgroupId, JobCgroups, JobName, Owner, Seen, TcpPeers, Verdict};
use testbed::slurm_scope::SlurmScope;

use crate::figure::Figure;
use crate::sample::Sample;
use crate::scratch;

/// One user's, on one node.
const JOBS: u32 = 64;
const STEPS: u32 = 4;
const TASKS: u32 = 16;
/// Connections of others, open meanwhile.
const SOCKETS: usize = 400;
const ROUNDS: u32 = 500;
/// Wanted of an answer, in milliseconds.
const WANTED: f64 = 0.05;

/// A node that is full of jobs. This process enters them one after the other.
struct Machine {
    scope: SlurmScope,
    node: String,
    /// Files in a task's directory: the more controllers, the more.
    files: usize,
}

impl Machine {
    fn new() -> Result<Self> {
        let node = format!("bench{}", std::process::id());
        let scope = SlurmScope::new(&scratch::dir("caller")?, &node).context("a cgroup v2 hierarchy")?;
        let mut machine = Machine { scope, node, files: 0 };
        // Step by step, as jobs run side by side: a job's cgroups are not numbered in a row.
        for step in 0..STEPS {
            for job in 0..JOBS {
                machine.step(job, step)?;
            }
        }
        machine.files = fs::read_dir(machine.task(0, 0, 0)?)?.count();
        Ok(machine)
    }

    /// A new step.
    fn step(&self, job: u32, step: u32) -> Result<()> {
        self.scope.make(&format!("job_{job}/step_{step}/slurm"))?;
        (0..TASKS).try_for_each(|task| self.task(job, step, task).map(drop))
    }

    fn task(&self, job: u32, step: u32, task: u32) -> Result<PathBuf> {
        Ok(self.scope.make(&format!("job_{job}/step_{step}/user/task_{task}"))?)
    }

    /// A step ends.
    fn remove(&self, job: u32, step: u32) -> Result<()> {
        let step = self.scope.make(&format!("job_{job}/step_{step}"))?;
        for task in 0..TASKS {
            fs::remove_dir(step.join(format!("user/task_{task}")))?;
        }
        for dir in ["user", "slurm", ""] {
            fs::remove_dir(step.join(dir))?;
        }
        Ok(())
    }

    /// A connection made from within a cgroup: both of its ends, and the client's address.
    fn connect(&self, cgroup: &Path, listener: &TcpListener) -> Result<(TcpStream, TcpStream, SocketAddr)> {
        self.scope.enter(cgroup)?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (server, peer) = listener.accept()?;
        Ok((client, server, peer))
    }

    fn name(&self, job: u32) -> JobName<'_> {
        JobName { node: &self.node, job, sluid: None }
    }

    /// What credd remembers of the user's jobs.
    fn seen(&self) -> Vec<(JobName<'_>, Seen)> {
        (0..JOBS).map(|job| (self.name(job), Seen::default())).collect()
    }
}

pub fn measure() -> Result<Vec<Figure>> {
    let machine = Machine::new()?;
    let cgroups = JobCgroups::at(machine.scope.root().to_owned(), 0);
    let (peers, listener) = (TcpPeers::new()?, TcpListener::bind("127.0.0.1:0")?);
    let others: Vec<_> =
        (0..SOCKETS).map(|_| machine.connect(machine.scope.root(), &listener)).collect::<Result<_>>()?;
    let (mut asking, mut first, mut again, mut denied, mut among) =
        (Sample::default(), Sample::default(), Sample::default(), Sample::default(), Sample::default());
    let mut all = machine.seen();
    let (_, cold) = timed(|| likely(&cgroups, CgroupId(u64::MAX), &mut all));
    // What is not found is searched in all of them, which are known then.
    for (name, seen) in &mut all {
        whole_search(&cgroups, CgroupId(u64::MAX), *name, seen);
    }
    for round in 0..ROUNDS {
        // Spread over all of them, in no order of theirs. A job's step ends, and its next one begins.
        let at = round * 7919;
        let (job, step, task) = (at % JOBS, STEPS + round, at / 5 % TASKS);
        if let Some(before) = round.checked_sub(2 * JOBS) {
            machine.remove(before * 7919 % JOBS, STEPS + before)?;
        }
        machine.step(job, step)?;
        let (_client, server, peer) = machine.connect(&machine.task(job, step, task)?, &listener)?;
        let local = server.local_addr()?;
        let (owner, took) = timed(|| peers.owner(local, peer));
        let owner: Owner = owner?;
        asking.push(took);
        let id = owner.cgroup.context("the kernel says no cgroup")?;
        let (found, took) = timed(|| likely(&cgroups, id, &mut all));
        ensure!(found == Some(job as usize), "a task of job {job} was not found at once: {found:?}");
        among.push(took);
        let mut seen = Seen::default();
        for sample in [&mut first, &mut again] {
            let (verdict, took) = timed(|| whole_search(&cgroups, id, machine.name(job), &mut seen));
            ensure!(verdict == Verdict::Inside, "a task of job {job} was not found in it");
            sample.push(took);
        }
        let other = machine.name((job + 1) % JOBS);
        let (verdict, took) = timed(|| whole_search(&cgroups, id, other, &mut Seen::default()));
        ensure!(verdict == Verdict::Outside, "a task of job {job} was found in another");
        denied.push(took);
    }
    drop(others);
    let detail = format!(
        "{JOBS} jobs of {STEPS} steps of {TASKS} tasks, {SOCKETS} other connections, {} files a cgroup",
        machine.files
    );
    Ok(vec![
        Figure::new("uid and cgroup of a connection, asked of the kernel", asking.median(), "ms").detail(&detail),
        Figure::new("its job among all of its user's, of a new step's cgroup", among.median(), "ms")
            .at_most(WANTED)
            .detail(format!("99 %: {:.4}; the first time: {cold:.4}", among.quantile(0.99))),
        Figure::new("that it is of the job that it names, of a cgroup not seen before", first.median(), "ms")
            .at_most(WANTED)
            .detail(format!("99 %: {:.4}", first.quantile(0.99))),
        Figure::new("the same, of a cgroup seen before", again.median(), "ms").at_most(WANTED),
        Figure::new("that it is not of a job", denied.median(), "ms").detail("all its cgroups are read"),
    ])
}

fn likely(cgroups: &JobCgroups, id: CgroupId, jobs: &mut [(JobName<'_>, Seen)]) -> Option<usize> {
    let mut jobs: Vec<_> = jobs.iter_mut().map(|(name, seen)| (*name, seen)).collect();
    cgroups.likely(id, &mut jobs)
}

fn whole_search(cgroups: &JobCgroups, id: CgroupId, job: JobName<'_>, seen: &mut Seen) -> Verdict {
    loop {
        let verdict = cgroups.made_in(Some(id), job, seen);
        if verdict != Verdict::Unfinished {
            return verdict;
        }
    }
}

fn timed<T>(what: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let done = what();
    (done, start.elapsed().as_secs_f64() * 1000.0)
}
