//! The program itself: `serve` with what administrators and slurmctld run beside it.
#![forbid(unsafe_code)]

mod all_refused;
mod audit;
mod configuration;
mod expiry;
mod hooks;
#[path = "../../../munge/tests/munged/mod.rs"]
mod munged;
mod projects;
mod serving;
mod sessions;
mod site;
