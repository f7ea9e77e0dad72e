//! Which job a process belongs to, as the kernel shows it, for requests whose token does not say it.
//!
//! The uid of the process is known with the connection ([`Caller`]). The cgroup in which its socket was made shows which
//! of the user's jobs it belongs to, on nodes where Slurm keeps its jobs in cgroup v2 directories (see `peer`). On other
//! nodes only the uid is known, and the code that asks decides whether the uid is enough.
//!
//! [`job_of`] takes the caller that [`super::http`] looked up when it accepted the connection, and those of
//! [`Jobs::of_user`](super::jobs::Jobs::of_user) that the request can mean. Its answer is valid for as long as the
//! connection and the run exist.

use std::rc::Rc;
use std::time::Duration;

use credd_protocol::NodeName;
use peer::{JobDirectory, Seen, Verdict};
use tokio::time::Instant;

use super::jobs::Run;
use super::whois::Caller;
use super::{Load, Server};

/// Pause after a search that found nothing, which may have read some hundred directories. A user's searches run one
/// after the other, so this bounds their share of the server's time.
const PAUSE: Duration = Duration::from_millis(50);
/// The pause is at least this many times as long as the search.
const PAUSE_PER_SEARCH: u32 = 10;

/// What the kernel shows.
pub enum Proof {
    /// The process's socket was made in this run's job.
    Job(Rc<Run>),
    /// Slurm keeps its jobs in cgroups here, and the socket was made in none of these.
    NoneOfThese,
    /// There are too many cgroups to tell.
    Unclear,
    /// Slurm keeps its jobs in no cgroup v2 directories here, or the kernel does not report the socket's cgroup: only
    /// the uid is known.
    UidOnly,
}

/// Where a process is that belongs to none of its user's runs.
pub enum Elsewhere {
    /// In another job, which has this directory.
    Job(JobDirectory),
    /// In no job: an ssh session, a service, cron.
    NoJob,
    /// There are too many cgroups to tell.
    Unclear,
}

/// Too many processes of the user wait for such a search.
pub struct Crowded;

/// Which of these runs, all of the caller's own uid, the caller belongs to. A cgroup that was seen before costs no system
/// call, another one a few (see `peer::JobCgroups`). `load` is the user's.
///
/// # Errors
/// [`Crowded`]: the search could not be done before the deadline.
pub async fn job_of(
    server: &Server,
    caller: &Caller,
    load: &Load,
    runs: &[Rc<Run>],
    deadline: Instant,
) -> Result<Proof, Crowded> {
    let Some(cgroup) = caller.cgroup else { return Ok(Proof::UidOnly) };
    if let Some(run) = runs.iter().find(|run| run.has_cgroup(cgroup)) {
        return Ok(Proof::Job(run.clone()));
    }
    // It was found in no job at all, and a cgroup does not move.
    if load.outside_jobs.borrow().contains(&cgroup) {
        return Ok(Proof::NoneOfThese);
    }
    let Ok(_turn) = tokio::time::timeout_at(deadline, load.searching.lock()).await else { return Err(Crowded) };
    if let Some(run) = likely(server, caller, runs) {
        return Ok(Proof::Job(run));
    }
    let begun = Instant::now();
    let mut proof = Proof::NoneOfThese;
    for run in runs {
        let made_in = || server.whois.made_in(caller, &run.job, &mut run.cgroups());
        match in_slices(made_in, deadline).await? {
            Verdict::Inside => return Ok(Proof::Job(run.clone())),
            Verdict::NotTracked => return Ok(Proof::UidOnly),
            Verdict::Unread => proof = Proof::Unclear,
            Verdict::Outside | Verdict::Unfinished => {}
        }
    }
    pause(begun).await;
    Ok(proof)
}

/// Where the caller is, which [`job_of`] found in none of `runs`. These are all of its user's runs.
///
/// # Errors
/// [`Crowded`]: the search could not be done before the deadline.
pub async fn elsewhere(
    server: &Server,
    caller: &Caller,
    load: &Load,
    runs: &[Rc<Run>],
    deadline: Instant,
) -> Result<Elsewhere, Crowded> {
    let (Some(cgroup), Some(first)) = (caller.cgroup, runs.first()) else { return Ok(Elsewhere::NoJob) };
    if load.outside_jobs.borrow().contains(&cgroup) {
        return Ok(Elsewhere::NoJob);
    }
    let Ok(_turn) = tokio::time::timeout_at(deadline, load.searching.lock()).await else { return Err(Crowded) };
    let begun = Instant::now();
    let node = &first.job.node;
    let known: Vec<_> = runs.iter().map(|run| &run.job).collect();
    let Some(others) = server.whois.other_jobs(node, &known) else { return Ok(Elsewhere::Unclear) };
    let found = among(server, caller, node, others, deadline).await?;
    if matches!(found, Elsewhere::NoJob) {
        load.note_outside_jobs(cgroup);
    }
    pause(begun).await;
    Ok(found)
}

/// In which of these directories the caller is.
async fn among(
    server: &Server,
    caller: &Caller,
    node: &NodeName,
    others: Vec<JobDirectory>,
    deadline: Instant,
) -> Result<Elsewhere, Crowded> {
    let mut found = Elsewhere::NoJob;
    for other in others {
        let mut seen = Seen::default();
        match in_slices(|| server.whois.made_in_other(caller, node, &other, &mut seen), deadline).await? {
            Verdict::Inside => return Ok(Elsewhere::Job(other)),
            Verdict::Unread => found = Elsewhere::Unclear,
            Verdict::Outside | Verdict::Unfinished | Verdict::NotTracked => {}
        }
    }
    Ok(found)
}

/// The run that is found without a search.
fn likely(server: &Server, caller: &Caller, runs: &[Rc<Run>]) -> Option<Rc<Run>> {
    let mut jobs: Vec<_> = runs.iter().map(|run| (&run.job, run.cgroups())).collect();
    server.whois.likely(caller, &mut jobs).map(|at| runs[at].clone())
}

/// The verdict of a search, during which the server serves others.
async fn in_slices(mut search: impl FnMut() -> Verdict, deadline: Instant) -> Result<Verdict, Crowded> {
    loop {
        let verdict = search();
        tokio::task::yield_now().await;
        if verdict != Verdict::Unfinished {
            return Ok(verdict);
        }
        if Instant::now() > deadline {
            return Err(Crowded);
        }
    }
}

async fn pause(begun: Instant) {
    tokio::time::sleep(PAUSE.max(begun.elapsed() * PAUSE_PER_SEARCH)).await;
}
