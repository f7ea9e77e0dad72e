//! What it takes to find the job of a connection by the cgroup of its socket, on a node that is full of jobs.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use peer::{JobCgroups, JobName, Owner, Seen, TcpPeers, Verdict};

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

/// A hierarchy with the jobs' cgroups as Slurm makes them, removed in the end. This process enters them one after the other.
struct Hierarchy {
    root: PathBuf,
    slice: PathBuf,
    node: String,
}

impl Hierarchy {
    fn new() -> Result<Self> {
        let root = scratch::dir("caller")?.join("cgroup");
        fs::create_dir_all(&root)?;
        mount(Some("none"), &root, Some("cgroup2"), MsFlags::empty(), None::<&str>).context("a cgroup v2 hierarchy")?;
        let node = format!("bench{}", std::process::id());
        let slice = root.join(format!("{node}.slice"));
        let made = Hierarchy { root, slice, node };
        for job in 0..JOBS {
            for step in 0..STEPS {
                fs::create_dir_all(made.step(job, step).join("slurm"))?;
                for task in 0..TASKS {
                    fs::create_dir_all(made.task(job, step, task))?;
                }
            }
        }
        Ok(made)
    }

    fn step(&self, job: u32, step: u32) -> PathBuf {
        self.slice.join(format!("{}_slurmstepd.scope/job_{job}/step_{step}", self.node))
    }

    fn task(&self, job: u32, step: u32, task: u32) -> PathBuf {
        self.step(job, step).join(format!("user/task_{task}"))
    }

    fn name(&self, job: u32) -> JobName<'_> {
        JobName { node: &self.node, job, sluid: None }
    }
}

impl Drop for Hierarchy {
    fn drop(&mut self) {
        fn remove(dir: &Path) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove(&entry.path());
                }
            }
            let _ = fs::remove_dir(dir);
        }
        let _ = enter(&self.root);
        remove(&self.slice);
        let _ = nix::mount::umount(&self.root);
    }
}

fn enter(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("entering {}", cgroup.display()))
}

/// A connection made from within a cgroup: both of its ends, and what the kernel is asked about the client's.
fn connect(cgroup: &Path, listener: &TcpListener) -> Result<(TcpStream, TcpStream, SocketAddr)> {
    enter(cgroup)?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, peer) = listener.accept()?;
    Ok((client, server, peer))
}

pub fn measure() -> Result<Vec<Figure>> {
    let machine = Hierarchy::new()?;
    let cgroups = JobCgroups::at(machine.root.clone(), 0);
    let (peers, listener) = (TcpPeers::new()?, TcpListener::bind("127.0.0.1:0")?);
    let others: Vec<_> = (0..SOCKETS).map(|_| connect(&machine.root, &listener)).collect::<Result<_>>()?;
    let (mut asking, mut first, mut again, mut denied, mut guess) =
        (Sample::default(), Sample::default(), Sample::default(), Sample::default(), Sample::default());
    for round in 0..ROUNDS {
        // Spread over all of them, in no order of theirs.
        let at = round * 7919;
        let (job, step, task) = (at % JOBS, at / JOBS % STEPS, at / 5 % TASKS);
        let (_client, server, peer) = connect(&machine.task(job, step, task), &listener)?;
        let local = server.local_addr()?;
        let (owner, took) = timed(|| peers.owner(local, peer));
        let owner: Owner = owner?;
        asking.push(took);
        let mut seen = Seen::default();
        for sample in [&mut first, &mut again] {
            let (verdict, took) = timed(|| cgroups.made_in(owner.cgroup, machine.name(job), &mut seen));
            ensure!(verdict == Verdict::Inside, "a task of job {job} was not found in it");
            sample.push(took);
        }
        let other = machine.name((job + 1) % JOBS);
        let (verdict, took) = timed(|| cgroups.made_in(owner.cgroup, other, &mut Seen::default()));
        ensure!(verdict == Verdict::Outside, "a task of job {job} was found in another");
        denied.push(took);
        let jobs: Vec<_> = (0..JOBS).map(|job| machine.name(job)).collect();
        let (own, took) = timed(|| cgroups.of_jobs(&jobs));
        ensure!(own.iter().all(Option::is_some), "a job's cgroup was not found");
        guess.push(took);
    }
    drop(others);
    let detail = format!("{JOBS} jobs of {STEPS} steps of {TASKS} tasks, {SOCKETS} other connections");
    Ok(vec![
        Figure::new("uid and cgroup of a connection, asked of the kernel", asking.median(), "ms").detail(&detail),
        Figure::new("its job, of a cgroup not seen before", first.median(), "ms")
            .at_most(WANTED)
            .detail(format!("99 %: {:.4}", first.quantile(0.99))),
        Figure::new("its job, of a cgroup seen before", again.median(), "ms").at_most(WANTED),
        Figure::new("that it is not of a job", denied.median(), "ms").detail("all its cgroups are read"),
        Figure::new("which of all jobs to look at first", guess.median(), "ms"),
    ])
}

fn timed<T>(what: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let done = what();
    (done, start.elapsed().as_secs_f64() * 1000.0)
}
