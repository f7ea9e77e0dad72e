//! `credd`, the node daemon: it serves each Slurm job on its node the credentials of the job's project.
//!
//! One program, two processes. The **keeper** ([`keeper`]) runs as root: it holds the listeners, reads the job records,
//! answers the root socket and signs with MUNGE; no byte that a job wrote reaches it. The **server** ([`server`]) runs as
//! a user without powers: HTTP for the jobs, the users' socket, the cache, TLS to credvend. They talk in [`control`].
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod control;
pub mod handover;
pub mod keeper;
pub mod line;
mod logging;
mod own;
mod query;
pub mod sandbox;
pub mod server;
