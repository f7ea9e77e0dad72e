//! credvend's network faces, over real TLS, with a real store and a real munged; Slurm and AWS are played.
//!
//! Tests whose names begin with `munge_` need munged and root; elsewhere they are reported as ignored.
#![forbid(unsafe_code)]

mod admin;
mod credentials_api_v1;
mod limits;
mod matrix;
mod munged;
mod nodes;
mod openapi;
#[path = "../pretend_aws/mod.rs"]
mod pretend_aws;
mod program;
mod world;
