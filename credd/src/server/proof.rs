//! Which job a process belongs to, by the kernel's word alone: for requests whose token does not say it.
//!
//! The uid of the process is known with the connection ([`Caller`]). Which of this user's jobs it is of follows from the
//! cgroup in which its socket was made, on nodes where Slurm keeps its jobs in cgroup v2 directories (see `peer`).
//! Elsewhere nothing beyond the uid is known, and it is for whoever asks to decide what that suffices for.
//!
//! To use it: give [`job_of`] the caller that [`super::http`] looked up when it accepted the connection, and those runs
//! out of [`Jobs::of_user`](super::jobs::Jobs::of_user) that may be meant. What it says holds for as long as the connection
//! and the run do.

use std::cmp::Reverse;
use std::rc::Rc;
use std::time::Duration;

use peer::{CgroupId, Verdict};
use tokio::time::Instant;

use super::jobs::Run;
use super::whois::Caller;
use super::{Load, Server};

/// A search that finds nothing reads up to some hundred directories; one user gets not more of them than this allows.
const PAUSE: Duration = Duration::from_millis(50);

/// What the kernel says.
pub enum Proof {
    /// The process's socket was made in this run's job.
    Job(Rc<Run>),
    /// Slurm keeps its jobs in cgroups here, and the socket was made in none of these.
    NoneOfThese,
    /// Slurm does not, or the kernel does not tell: the uid is all there is.
    UidOnly,
}

/// Too many processes of the user have themselves looked for.
pub struct Crowded;

/// The run whose job's cgroup was made last before this one comes first. It is a guess that saves searches.
fn likeliest_first<'a>(server: &Server, cgroup: CgroupId, runs: &'a [Rc<Run>]) -> Vec<&'a Rc<Run>> {
    if runs.len() < 2 {
        return runs.iter().collect();
    }
    let own = server.whois.cgroups_of(&runs.iter().map(|run| &run.job).collect::<Vec<_>>());
    let mut runs: Vec<_> = own.into_iter().zip(runs).collect();
    runs.sort_by_key(|(own, _)| Reverse(own.filter(|own| *own <= cgroup)));
    runs.into_iter().map(|(_, run)| run).collect()
}

/// Which of these runs, all of the caller's own uid, the caller belongs to. A cgroup that was seen before costs no system
/// call; another one a few (see `peer::JobCgroups`). `load` is the user's.
///
/// # Errors
/// [`Crowded`]: its turn does not come before the deadline.
pub async fn job_of(
    server: &Server,
    caller: &Caller,
    load: &Load,
    runs: &[Rc<Run>],
    deadline: Instant,
) -> Result<Proof, Crowded> {
    let Some(cgroup) = caller.cgroup else { return Ok(Proof::UidOnly) };
    if let Some(run) = runs.iter().find(|run| run.cgroups.borrow().has(cgroup)) {
        return Ok(Proof::Job(run.clone()));
    }
    let Ok(_turn) = tokio::time::timeout_at(deadline, load.searching.lock()).await else { return Err(Crowded) };
    for run in likeliest_first(server, cgroup, runs) {
        match server.whois.made_in(caller, &run.job, &mut run.cgroups.borrow_mut()) {
            Verdict::Inside => return Ok(Proof::Job(run.clone())),
            Verdict::Outside => {}
            Verdict::NotTracked => return Ok(Proof::UidOnly),
        }
    }
    tokio::time::sleep(PAUSE).await;
    Ok(Proof::NoneOfThese)
}
