//! A private Slurm cluster, with a pretend AWS, for tests, demo and bench.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod daemon;
pub mod database;
pub mod deadline;
pub mod host;
pub mod host_init;
pub mod init_protocol;
pub mod keeper;
pub mod layout;
pub mod ours;
pub mod people;
pub mod plan;
pub mod pretend_aws;
pub mod slurm_daemons;
pub mod slurm_files;
pub mod software;
pub mod users;

pub use cluster::Cluster;
pub use daemon::Daemon;
pub use deadline::wait_for;
pub use host::{Host, Output};
pub use plan::{ExtraRole, Partition, Plan};
pub use pretend_aws::{AwsRequest, PretendAws};
pub use users::AsUser;
