//! `credd` ↔ `credvend`. A node triggers attestation; it states no fact that is believed.
//!
//! | verb | path | body → answer |
//! |---|---|---|
//! | POST | [`OPEN`] | [`OpenRequest`] → [`OpenResponse`]: open the job's session, or join it |
//! | POST | `/node/v1/sessions/{uuid}/credentials` | [`CredentialsRequest`] → [`CredentialsResponse`] |
//! | POST | `/node/v1/sessions/{uuid}/leave` | [`LeaveRequest`] → `{}`: the job ended here; credvend asks Slurm |
//! | GET | [`STREAM`] | one [`Event`] a line, for as long as both live |
//!
//! Errors are [`ApiError`]. `retry = false` is final for that job: the node stops asking and tells the user.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::credentials::{Credentials, rfc3339_z};
use crate::ids::{ClusterName, JobId, PartitionName, ProjectId, RoleName, SessionId, Uid, UserName};

/// Open or join a session.
pub const OPEN: &str = "/node/v1/sessions";
/// The standing stream.
pub const STREAM: &str = "/node/v1/stream";

/// The path for a session's credentials.
pub fn credentials_path(session: SessionId) -> String {
    format!("{OPEN}/{session}/credentials")
}

/// The path to leave a session.
pub fn leave_path(session: SessionId) -> String {
    format!("{OPEN}/{session}/leave")
}

/// The longest request body that credvend reads from anybody.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// "This job runs on me, says my record": credvend looks for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct OpenRequest {
    /// The raw job id.
    pub job: JobId,
    /// The restart count in the node's record: tells a requeued job's runs apart.
    pub restart: u32,
    /// The uid in the node's record. A mismatch with Slurm is refused: the node would serve the wrong user.
    pub uid: Uid,
    /// The account in the node's record, if any; a mismatch with Slurm is refused and logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<ProjectId>,
}

/// The session, with the facts as Slurm states them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OpenResponse {
    /// credvend's UUID for this run of the job.
    pub session: SessionId,
    /// The cluster.
    pub cluster: ClusterName,
    /// The job.
    pub job: JobId,
    /// Its user.
    pub user: UserName,
    /// The user's uid at the cluster.
    pub uid: Uid,
    /// Its project.
    pub project: ProjectId,
    /// Its partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<PartitionName>,
    /// The roles that the project has.
    pub roles: Vec<RoleName>,
}

/// Which of the project's roles.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CredentialsRequest {
    /// By its name within the project.
    pub role: RoleName,
    /// The credentials must live at least this many seconds more; older ones in credvend's hands do not do.
    #[serde(default)]
    pub min_life_seconds: u32,
}

/// What is served to the job, and under which name AWS logs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CredentialsResponse {
    /// The document.
    pub credentials: Credentials,
    /// The role-session name, as credvend composed it.
    pub session_name: String,
    /// When they were issued: with the expiration, their whole lifetime.
    #[serde(with = "rfc3339_z")]
    pub issued: OffsetDateTime,
}

/// The job ended on this node. Empty today; unknown fields are refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LeaveRequest {}

/// A line of the standing stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// First line. A node that knew another epoch, or an older `seq`, has missed something: it checks its sessions anew
    /// (drops its cache and asks again).
    Hello {
        /// Changes when credvend cannot tell what a node has missed.
        epoch: String,
        /// The number of the newest event.
        seq: u64,
    },
    /// Nothing happened; the line shows that both live. Sent every [`PING_SECONDS`].
    Ping {
        /// The number of the newest event.
        seq: u64,
    },
    /// The session is over: drop its credentials, serve no more.
    Invalidated {
        /// This event's number.
        seq: u64,
        /// Which session.
        session: SessionId,
        /// A sentence for the job's user.
        reason: String,
    },
}

/// How often a stream without news shows life.
pub const PING_SECONDS: u64 = 15;

/// Why credvend refused, for credd, its log and the job's user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ApiError {
    /// A word for programs; the table in `docs/errors.md` lists them.
    pub code: String,
    /// A sentence: what happened, to which job, what to do.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retry: bool,
}
