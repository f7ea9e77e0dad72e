//! The wire format of the IAM Credentials API (v1), kept: its field names are camelCase, its answer's are environment
//! variables.

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterName, ProjectId, UserName};
use crate::secret::Secret;

/// `POST /sessions`: a head node states a job. Unknown fields are let pass, as the IAM Credentials API (v1) did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenSession {
    /// The head's id of the session: as a rule the Slurm job id. It may come again later; the newest one counts.
    pub session_id: String,
    /// Whose role. Case matters.
    pub project_id: ProjectId,
    /// The head's cluster.
    pub cluster_name: ClusterName,
    /// The job's user.
    pub cluster_user: UserName,
    /// When the job was submitted, as the head writes it: `2023-08-15T00:00:00`, with or without a zone.
    pub submitted_time: String,
}

/// The answer to [`OpenSession`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionOpened {
    /// credvend's own URL for the session's credentials.
    #[serde(rename = "APIGATEWAY_AWS_CONTAINER_CREDENTIALS_FULL_URI")]
    pub api_uri: String,
    /// The same through the node's proxy.
    #[serde(rename = "LOCALHOST_AWS_CONTAINER_CREDENTIALS_FULL_URI")]
    pub localhost_uri: String,
    /// The session's bearer token.
    #[serde(rename = "AWS_CONTAINER_AUTHORIZATION_TOKEN", serialize_with = "Secret::serialize_exposed")]
    pub token: Secret,
}

/// `PUT /sessions/{sessionId}` and `PUT /sessions/{sessionId}/cluster/{clusterId}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetStatus {
    /// The new status.
    pub status: SessionStatus,
}

/// A session's life in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum SessionStatus {
    /// Credentials may be had.
    Active,
    /// Ended by an administrator or a revocation. Final.
    Invalidated,
    /// The job is over. Final.
    Completed,
}

impl SessionStatus {
    /// As the API and the store write it.
    pub fn as_str(self) -> &'static str {
        match self {
            SessionStatus::Active => "ACTIVE",
            SessionStatus::Invalidated => "INVALIDATED",
            SessionStatus::Completed => "COMPLETED",
        }
    }
}
