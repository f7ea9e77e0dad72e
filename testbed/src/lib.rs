//! A private Slurm cluster, with a pretend AWS, for tests, demo and bench.
//!
//! ```no_run
//! # use std::time::Duration;
//! # use testbed::{Cluster, Plan};
//! let cluster = Cluster::up(Plan::default().slurm_conf("SlurmdTimeout=20"))?;
//! let _logs = cluster.logs_on_panic();
//! let alice = cluster.as_user("alice"); // on the head, which is the login host; also bob, bobby
//! let who = alice.srun(&["-w", "n1", "aws", "sts", "get-caller-identity", "--query", "Arn", "--output", "text"]);
//! assert!(who.expect_ok().ends_with("assumed-role/genomics/lab-alice-n1"));
//!
//! let job = alice.sbatch("env; sleep 60", &["-N2", "--account=shared"])?;
//! alice.wait_job_output(job, "AWS_", Duration::from_secs(20))?;
//! cluster.node("n1").credd().kill9()?; //  also stop, start, start_with(env), restart, freeze, thaw, pid, log, wait_log
//! cluster.node("n1").credd().start()?; //  the listener on 127.0.0.1:9999 was held meanwhile
//! cluster.credvend().freeze()?; //         also slurmctld(), on("head").daemon("slurmdbd"), aws().daemon(), …
//! cluster.credvend().thaw()?;
//! alice.scancel(job);
//! assert_eq!(alice.wait_job(job, Duration::from_secs(30))?, "CANCELLED");
//!
//! cluster.node("n2").run_as("bob", &["bash", "-c", "ss -ltn"]).expect_ok(); // outside of any job
//! cluster.on("head").run_as_root("credvend session list").expect_ok();
//! let record = std::fs::read_dir(cluster.node("n1").path("/run/credd/jobs"))?; // a host's own /run
//! assert_eq!(cluster.node_state("n1"), "idle");
//! cluster.assert_nodes_healthy();
//! for request in cluster.aws().requests()? { // the pretend AWS's own log
//!     println!("{} {:?}", request.action, request.parameter("RoleSessionName"));
//! }
//! cluster.aws().cli(&["iam", "get-role", "--role-name", "genomics"]).expect_ok(); // as the account's root
//! # anyhow::Ok(())
//! ```
//!
//! A test that needs a cluster says so: `#[cfg_attr(not(has_cluster), ignore = "no cluster can run here")]`.
//!
//! - **Hosts**: `head` (slurmctld, slurmdbd, credvend), `aws`, `n1`, `n2`, …, each with its own network, mounts, host
//!   name, process ids and `/run`; nothing leaves their namespaces, so clusters run side by side. Everything is in one
//!   run directory (`CREDD_TESTBED_DIR`, or `/tmp`), the users' homes included, which all hosts share.
//! - **People**: see [`people`]. Alice is in genomics, shared, locked (a role that does not trust credvend) and unmapped
//!   (a project without a role); bob in climate and shared; bobby in genomics and shared;
//!   bob-by in shared.
//! - **Trouble**: `daemon.freeze()` hangs a daemon (STS too: `aws().daemon()`), `cluster.unplug("n1")` takes a host off
//!   the network. The head node's secret is [`ours::HEAD_SECRET`], credvend is at [`Cluster::credvend_url`].
//! - **Plans**: see [`Plan`]. TOML given there is laid over what the testbed writes, key by key.
//! - **Our programs** come from `CREDD_BIN_DIR` and `CREDD_PLUGIN_SO`, else from where the test was built.
//! - **Other releases**: [`Programs`] in a plan, or [`Cluster::put_programs`] in a cluster that runs;
//!   [`previous_release::programs`] builds the release before this one, once.
//! - **Torture**: [`soak`] deals faults from a seed and checks what must hold.
//! - **The end**: dropping the [`Cluster`] ends it; so does the death of the program that owns it, since a keeper
//!   process waits for that. `CREDD_TESTBED_KEEP=1` keeps the run directory with its logs, `CREDD_TESTBED_VERBOSE=1`
//!   tells how long the start took.
//! - **Slow things**, the Python packages and Slurm's accounting tables, are made once and kept in cargo's target
//!   directory (`CREDD_TESTBED_CACHE`).
#![forbid(unsafe_code)]

pub mod cluster;
pub mod daemon;
pub mod database;
pub mod deadline;
pub mod demo;
pub mod host;
pub mod host_etc;
pub mod host_init;
pub mod init_protocol;
pub mod keeper;
pub mod layout;
pub mod ours;
/// What this machine lacks.
pub mod machine {
    include!("../machine.rs");
}
pub mod overlay;
pub mod people;
pub mod plan;
pub mod pretend_aws;
pub mod previous_release;
pub mod shell;
pub mod slurm_daemons;
pub mod slurm_files;
pub mod slurm_scope;
pub mod soak;
pub mod software;
pub mod users;

pub use cluster::Cluster;
pub use daemon::Daemon;
pub use deadline::wait_for;
pub use host::{Host, Output};
pub use init_protocol::Listener;
pub use plan::{ExtraRole, Partition, Plan, Programs};
pub use pretend_aws::{AwsRequest, PretendAws};
pub use users::AsUser;
