//! The attestor seam: where the facts about a job come from.
//!
//! Two sides: [`slurm`] asks the cluster's own slurmctld, never the caller; a head that pushes states the facts itself
//! (as in the IAM Credentials API (v1)), and then `credvend` attests nothing.

use std::collections::HashMap;

use async_trait::async_trait;
use credd_protocol::{ClusterName, JobId, NodeName, PartitionName, ProjectId, Uid, UserName};
use time::OffsetDateTime;

use crate::store::Run;

pub mod command;
pub mod hostlist;
#[cfg(test)]
mod scripted;
pub mod site;
pub mod slurm;
pub mod squeue;
pub mod submit_bounds;

/// A job as Slurm states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFacts {
    /// The raw job id.
    pub job: JobId,
    /// How often the job was requeued.
    pub restart: u32,
    /// When this run was submitted, to the second. Slurm sets it anew when it requeues the job, and never else (seen with
    /// 22.05: update, suspend, hold, release, reconfigure and a restart of slurmctld leave it).
    pub submitted: OffsetDateTime,
    /// The user's name as the machine has it where credvend runs, or a sentence why it has none: the user was deleted, or
    /// the user database is away. A job that runs needs no name any more.
    pub user: Result<UserName, String>,
    /// The user's uid at the cluster. To Slurm, this is who the user is.
    pub uid: Uid,
    /// The account, as Slurm has it (lower case).
    pub account: Option<ProjectId>,
    /// The partition.
    pub partition: PartitionName,
    /// Where it runs; empty while it pends.
    pub nodes: Vec<NodeName>,
    /// What it is doing.
    pub state: JobState,
}

impl JobFacts {
    /// Which run of which job this is.
    pub fn run(&self) -> Run {
        Run { job: self.job, restart: self.restart, submitted: self.submitted }
    }
}

/// What matters of Slurm's job states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    /// Has its nodes: RUNNING, CONFIGURING, SUSPENDED, STOPPED, SIGNALING, STAGE_OUT, RESIZING.
    Running,
    /// Its processes are being ended: COMPLETING. They may be given time (`KillWait`) to save what they have, so a session
    /// that is open is served until the job's epilog on that node; none is opened any more.
    Completing,
    /// Waits for nodes: PENDING, REQUEUED, … Its earlier run, if it had one, is over.
    Pending,
    /// COMPLETED, CANCELLED, FAILED, TIMEOUT, NODE_FAIL, …
    Over,
}

/// Why there is no answer. Absence of a job is not an error: it is in [`Answer`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum AttestError {
    /// slurmctld did not answer, or not completely: nothing may be concluded.
    #[error("Slurm of cluster {cluster} cannot be asked: {why}")]
    Unavailable {
        /// Which cluster.
        cluster: ClusterName,
        /// In Slurm's own words, escaped.
        why: String,
    },
    /// Slurm's answer is not of the expected form.
    #[error("Slurm of cluster {cluster} gave an answer that cannot be relied on: {why}")]
    Unreliable {
        /// Which cluster.
        cluster: ClusterName,
        /// What is wrong with it.
        why: String,
    },
    /// It was not asked: the address that makes credvend ask has done so too often.
    #[error("{address} made credvend ask Slurm of cluster {cluster} too often; it may again in a moment")]
    TooOften {
        /// Which cluster.
        cluster: ClusterName,
        /// Whose budget it is.
        address: std::net::IpAddr,
        /// When there is some of it again.
        again_in: std::time::Duration,
    },
}

/// A complete, successful answer about one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Slurm knows it.
    Known(JobFacts),
    /// Slurm does not (any more): it is over.
    Absent,
}

/// Asks one cluster's Slurm.
#[async_trait]
pub trait Attestor: Send + Sync + 'static {
    /// The facts about one job. Callers who ask about the same job at the same time share one question, and questions
    /// about many jobs are put together. `fresh` forbids an answer asked for before this call.
    async fn job(&self, job: JobId) -> Result<Answer, AttestError>;

    /// The same for what credvend asks by itself, such as whether a session is to be closed: it does not wait behind what
    /// nodes make it ask.
    async fn job_unasked(&self, job: JobId) -> Result<Answer, AttestError> {
        self.job(job).await
    }

    /// All jobs that are not [`JobState::Over`], from one complete answer: for the sweep that closes what is over.
    async fn all_jobs(&self) -> Result<Vec<JobFacts>, AttestError>;

    /// The current addresses (`NodeAddr`) of all nodes, to compare with the peers': one question, however many ask.
    async fn node_addresses(&self) -> Result<HashMap<NodeName, String>, AttestError>;

    /// What the cluster's settings say, asked for now.
    async fn site(&self) -> Result<Site, AttestError>;
}

/// What of a cluster's settings decides about all of its jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// `ClusterName`, as Slurm spells it.
    pub cluster: String,
    /// Why accounts cannot be believed; `None` if Slurm enforces associations.
    pub accounts_not_enforced: Option<String>,
    /// Why credvend does not see other users' jobs; `None` if it does.
    pub jobs_hidden: Option<String>,
}

impl Site {
    /// Why this is another cluster's Slurm than the one that is configured; `None` if the names agree.
    pub fn wrong_cluster(&self, configured: &ClusterName) -> Option<String> {
        if self.cluster.eq_ignore_ascii_case(configured.as_str()) {
            return None;
        }
        Some(format!(
            "its Slurm says that ClusterName is {:?}; correct [[cluster]] name, or slurm-conf if that is another \
             cluster's",
            self.cluster
        ))
    }
}
