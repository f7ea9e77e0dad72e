//! Every decision, with a scripted Slurm, AWS and clock, over the real SQLite store.

mod addresses;
mod auditing;
mod heads;
mod logs;
mod nodes;
mod questions;
mod revoking;
mod sweeping;
mod vending_twice;
mod world;
