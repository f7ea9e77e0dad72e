//! `spank_credd.so`: gives Slurm jobs the AWS identity of their project.
//!
//! It knows Slurm, one directory ([`credd_protocol::record`]) and one Unix socket ([`credd_protocol::local`]): no
//! network, no AWS, no thread. Each file is named for the process that runs it:
//!
//! | file | process | as | what it does |
//! |---|---|---|---|
//! | [`submit_host`] | srun, sbatch, salloc | the user | registers the options, removes what a parent job left in the environment |
//! | [`prolog`] | `slurmstepd spank prolog` | root | writes the job's record, tells credd |
//! | [`step`], [`late`] | a step's slurmstepd | root | sets the step's variables; refuses the job only where `on-error=fail` |
//! | [`epilog`] | `slurmstepd spank epilog` | root | ends the record, tells credd |
//!
//! [`dispatch`] chooses among them by SPANK context, `export` is what Slurm calls and holds all `unsafe` code. A hook
//! never returns a value that drains a node: [`slurm_spank::guard`] sees to it, after a panic too. Where the prolog cannot be
//! started at all, as with a user's overlong SPANK variable, Slurm drains by itself: `packaging/slurm/job_submit_credd.lua`.
#![deny(unsafe_code)]

pub mod credd;
pub mod dispatch;
pub mod environment;
pub mod epilog;
#[allow(unsafe_code)]
pub mod export;
pub mod job_options;
pub mod late;
pub mod live_steps;
pub mod node_list;
pub mod plugstack;
pub mod prolog;
pub mod run_files;
pub mod step;
pub mod submit_host;

#[cfg(test)]
mod scripted_job;
