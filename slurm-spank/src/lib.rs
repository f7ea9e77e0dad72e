//! The only FFI to Slurm: bindings to `slurm/spank.h` under a safe wrapper.
//!
//! A plugin is written against [`Job`] (what Slurm says of the job or step at hand) and [`Environment`] (a set of
//! variables), so that its logic runs in tests without Slurm. [`Spank`] is the real one. Every function that Slurm calls
//! goes through [`guard`], which lets no panic out and no harmful value either.
//!
//! The functions of Slurm itself are resolved when Slurm loads the plugin: a program that links this crate and calls
//! [`Spank`] outside Slurm does not start.

mod environment;
pub mod ffi;
mod guard;
mod job;
mod log;
mod option;
mod spank;

pub use environment::{Environment, ProcessEnvironment};
pub use guard::{Hook, Outcome, guard, guard_option};
pub use job::{Context, Job, StepId};
pub use log::{Level, log};
pub use option::{JobOption, Used};
pub use spank::{Error, Spank};

include!(concat!(env!("OUT_DIR"), "/version.rs"));

/// The longest value of an environment variable that is read: Linux lets no single one be longer.
pub const MAX_VALUE_BYTES: usize = 128 * 1024;

// The build script's; here for its tests.
#[cfg(test)]
#[path = "../release.rs"]
mod release;
