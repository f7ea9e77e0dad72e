//! Every decision, with a scripted Slurm, AWS and clock, over the real SQLite store.

mod addresses;
mod auditing;
mod blocking;
mod denying;
mod heads;
mod logs;
mod nodes;
mod questions;
mod refused;
mod revoke_on_end;
mod revoking;
mod revoking_subjects;
mod sweeping;
mod vending_twice;
mod world;
