//! The end-to-end suite: one real Slurm cluster, the real plugin, `credd`, `credvend`, and a pretend AWS that enforces.
//!
//! Tests share the cluster; those that stop daemons have it to themselves (see [`support`]). Every test here is ignored,
//! with the reason, on a machine that cannot hold such a cluster.
#![forbid(unsafe_code)]

mod all_refused;
mod capitals;
mod changed;
mod dead_nodes;
mod endpoint;
mod environment;
mod failover;
mod flood;
mod forgery;
mod growing;
mod head_push;
mod interrupted;
mod late_records;
mod launch;
mod lazy_prolog;
mod lifecycle;
mod lying_node;
mod mpi;
mod names;
mod outages;
mod own;
mod revocation;
mod roles;
mod slurm_outages;
mod stuck_end;
mod support;
mod uninstall;
mod upstream;
mod user_texts;
