//! The source seam: where credentials come from: STS, or an upstream vending API that asks STS in our place.

use std::time::Duration;

use async_trait::async_trait;
use credd_protocol::credentials::Credentials;
use credd_protocol::{ProjectId, RoleArn, SessionId, UserName};
use time::OffsetDateTime;

use crate::store::Session;

pub mod aws;
pub mod failure;
mod own;
pub mod sts;
pub mod turns;
pub mod upstream;

/// What is asked of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssumeRequest {
    /// For whom, for messages.
    pub session: SessionId,
    /// Whose share of the rate it uses.
    pub project: ProjectId,
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
    /// AWS' id of the role (`AROA…`), from `AssumedRoleUser.AssumedRoleId`. Empty where an upstream gave them: it does not
    /// say, and what it gave is the upstream's to deny.
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
    /// An upstream has ended the session, so it is over here too.
    #[error("{0}")]
    Ended(String),
    /// So many ask that this one would wait for too long.
    #[error("{why}")]
    Busy {
        /// In a sentence.
        why: String,
        /// When it may be worth asking again.
        again_in: Duration,
    },
}

/// How far the revocation of a user went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revoked {
    /// Everything that the source has given the user is dead.
    Everything,
    /// It heard, and said no more: an upstream that is the original deployment denies what sessions have that are ACTIVE
    /// there, and nothing that ended ones have left.
    OfActive,
}

/// Gives credentials of roles.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// Waits until a request of this project may be sent. To be called once before each [`Source::assume`], which then does
    /// not wait for others.
    async fn turn(&self, project: &ProjectId) -> Result<(), SourceError>;

    /// How long a request of this project that comes now will probably wait for its turn.
    fn delay(&self, project: &ProjectId) -> Duration;

    /// One AssumeRole, with a deadline and bounded retries inside. The sentence of an error names the role and the
    /// remedy (which trust policy must name whom, which permission is missing).
    async fn assume(&self, request: &AssumeRequest) -> Result<Assumed, SourceError>;

    /// Who credvend is to this source (an ARN), for messages and `check-config`.
    async fn identity(&self) -> Result<String, SourceError>;

    /// Whether AWS knows a session by the name that it was asked for under. An upstream composes its own.
    fn names_sessions(&self) -> bool {
        true
    }

    /// A session is not ACTIVE any more, and the store has it so. Returns at once; what a source that knows sessions of its
    /// own owes to somebody else, it does in its own time, and does it again after a restart. STS knows no sessions.
    fn ended(&self, session: &Session) {
        let _ = session;
    }

    /// Revokes what this source has given a user. Called before the user's sessions are ended here, or beside it; what is
    /// awaited first is too late to come before an end. `None`: not this source's to do, as with STS, where the roles' Deny does
    /// it. An error says what is lacking and whether it comes by itself.
    async fn revoke_user(&self, user: &UserName) -> Option<Result<Revoked, String>> {
        let _ = user;
        None
    }

    /// Users whose revocation the source took later than it was asked for, and by a pattern on names: others' credentials
    /// are dead, too. Each is given once.
    fn revoked_by_pattern(&self) -> Vec<UserName> {
        vec![]
    }
}
