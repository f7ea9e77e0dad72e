//! Who is on the other end of a local socket, as the kernel says: the uid for a TCP connection on this host, uid, gid
//! and pid for a Unix socket; and, on nodes with cgroup v2, whether it is a process of a certain Slurm job
//! ([`JobCgroups`]).
//!
//! For TCP, the kernel is asked over netlink (`SOCK_DIAG`, see sock_diag(7)) about the *other* end's socket, by the
//! exact addresses and ports of both ends. That costs some microseconds however many sockets there are.
//!
//! A socket that its process has closed, or that waits in TIME_WAIT, reads as uid 0. So an answer counts only for an
//! established connection whose socket still has an inode, that is, a file that some process holds:
//! [`TcpPeers::owner`] refuses all others, and what it returns may be believed for root too.
#![forbid(unsafe_code)]

mod job_cgroup;
mod tcp;
mod unix;
mod wire;

pub use job_cgroup::{CgroupId, JobCgroups, JobDirectory, JobName, Seen, Verdict};
pub use tcp::{Owner, PeerError, TcpPeers};
pub use unix::{Creds, unix_peer};
pub use wire::{State, Tcp};
