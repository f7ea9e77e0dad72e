//! `credd`, the node daemon. Under construction.
#![forbid(unsafe_code)]

pub mod control;

fn main() {}
