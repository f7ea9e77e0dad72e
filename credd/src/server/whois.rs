//! Who is on the other end of a connection: the kernel's word, behind a trait so that tests can say it.

use std::cell::RefMut;
use std::net::SocketAddr;
use std::path::Path;

use credd_protocol::{NodeName, Uid};
use peer::{CgroupId, JobCgroups, JobDirectory, JobName, Seen, TcpPeers, Verdict};

use crate::control::Job;

/// The other end of a connection. It holds for as long as the connection is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The user.
    pub uid: Uid,
    /// The cgroup v2 in which its socket was made, where the kernel says.
    pub cgroup: Option<CgroupId>,
}

#[cfg(test)]
impl Caller {
    /// A user's process on a node without cgroups.
    pub fn of(uid: u32) -> Self {
        Caller { uid: Uid(uid), cgroup: None }
    }
}

/// Says who holds the other end.
pub trait WhoIs {
    /// The process that holds the other end of the connection that is `local` here and `peer` there.
    ///
    /// # Errors
    /// A sentence: nobody answers for it, so nobody is served.
    fn caller(&self, local: SocketAddr, peer: SocketAddr) -> Result<Caller, String>;

    /// Whether the caller's socket was made in this job's cgroup. `seen` is the run's own.
    fn made_in(&self, caller: &Caller, job: &Job, seen: &mut Seen) -> Verdict {
        let _ = (caller, job, seen);
        Verdict::NotTracked
    }

    /// Which of these jobs the caller's socket was made in, where that is found quickly: its place in the list.
    fn likely(&self, caller: &Caller, jobs: &mut [(&Job, RefMut<'_, Seen>)]) -> Option<usize> {
        let _ = (caller, jobs);
        None
    }

    /// The directories of other jobs than these on the node; `None` if they cannot be listed.
    fn other_jobs(&self, node: &NodeName, known: &[&Job]) -> Option<Vec<JobDirectory>> {
        let _ = (node, known);
        Some(Vec::new())
    }

    /// Whether the caller's socket was made below this directory. `seen` is for this question alone.
    fn made_in_other(&self, caller: &Caller, node: &NodeName, job: &JobDirectory, seen: &mut Seen) -> Verdict {
        let _ = (caller, node, job, seen);
        Verdict::Outside
    }
}

/// Asks the kernel.
#[derive(Debug)]
pub struct Kernel {
    peers: TcpPeers,
    cgroups: JobCgroups,
}

impl Kernel {
    /// Opens the socket to ask on, and looks where the cgroups are.
    ///
    /// # Errors
    /// The kernel or a sandbox does not let it.
    pub fn new() -> std::io::Result<Self> {
        Ok(Kernel { peers: TcpPeers::new()?, cgroups: JobCgroups::new() })
    }
}

impl Kernel {
    /// Where the cgroup v2 hierarchy is mounted, which is read to know a caller's job.
    pub fn cgroups(&self) -> Option<&Path> {
        self.cgroups.root()
    }
}

impl WhoIs for Kernel {
    fn caller(&self, local: SocketAddr, peer: SocketAddr) -> Result<Caller, String> {
        let owner = self.peers.owner(local, peer).map_err(|e| e.to_string())?;
        Ok(Caller { uid: Uid(owner.uid), cgroup: owner.cgroup })
    }

    fn made_in(&self, caller: &Caller, job: &Job, seen: &mut Seen) -> Verdict {
        self.cgroups.made_in(caller.cgroup, name(job), seen)
    }

    fn likely(&self, caller: &Caller, jobs: &mut [(&Job, RefMut<'_, Seen>)]) -> Option<usize> {
        let mut jobs: Vec<_> = jobs.iter_mut().map(|(job, seen)| (name(job), &mut **seen)).collect();
        self.cgroups.likely(caller.cgroup?, &mut jobs)
    }

    fn other_jobs(&self, node: &NodeName, known: &[&Job]) -> Option<Vec<JobDirectory>> {
        self.cgroups.other_jobs(node.as_str(), &known.iter().map(|job| name(job)).collect::<Vec<_>>())
    }

    fn made_in_other(&self, caller: &Caller, node: &NodeName, job: &JobDirectory, seen: &mut Seen) -> Verdict {
        self.cgroups.made_in_directory(caller.cgroup, node.as_str(), job, seen)
    }
}

fn name(job: &Job) -> JobName<'_> {
    let sluid = job.sluid.as_ref().map(|sluid| sluid.as_str());
    JobName { node: job.node.as_str(), job: job.job.get(), sluid }
}
