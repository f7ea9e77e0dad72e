//! The source seam: where credentials come from. STS here; an upstream vending API is the second side.

use async_trait::async_trait;
use credd_protocol::credentials::Credentials;
use credd_protocol::{RoleArn, SessionId};
use time::OffsetDateTime;

pub mod aws;
pub mod failure;
pub mod sts;

/// What is asked of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssumeRequest {
    /// For whom, for messages.
    pub session: SessionId,
    /// Which role.
    pub role_arn: RoleArn,
    /// The role-session name, composed by credvend: 2 to 64 of `[\w+=,.@-]`.
    pub session_name: String,
    /// 900 to 43,200 seconds; at most 3,600 when credvend's own credentials are a role's (chaining).
    pub duration_seconds: u32,
    /// Sent only where the role's configuration opts in.
    pub source_identity: Option<String>,
    /// Sent only where the role's configuration opts in: key, value.
    pub tags: Vec<(String, String)>,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Assumed {
    /// The credentials.
    pub credentials: Credentials,
    /// AWS' id of the role (`AROA…`), from `AssumedRoleUser.AssumedRoleId`.
    pub role_id: String,
    /// When credvend asked.
    pub issued: OffsetDateTime,
}

/// Why there are no credentials.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// AWS refuses: the trust policy, a missing permission, an unknown role. Asking again does not help.
    #[error("{0}")]
    Refused(String),
    /// Throttling, 5xx, time-outs, nonsense in the answer: may work later.
    #[error("{0}")]
    Unavailable(String),
}

/// Gives credentials of roles.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// One AssumeRole, with a deadline and bounded retries inside. The sentence of an error names the role and the
    /// remedy (which trust policy must name whom, which permission is missing).
    async fn assume(&self, request: &AssumeRequest) -> Result<Assumed, SourceError>;

    /// Who credvend is to this source (an ARN), for messages and `check-config`.
    async fn identity(&self) -> Result<String, SourceError>;
}
