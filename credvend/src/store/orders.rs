//! What a revocation leaves in the store: the order itself, what nodes are told of it, who has heard it, what AWS must
//! deny, and who is kept out from now on.

use std::fmt;

use credd_protocol::{ClusterName, JobId, NodeName, ProjectId, RoleArn, SessionId, UserName};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

/// One revocation's name, for `credvend revocation show` and the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OrderId(pub Uuid);

impl OrderId {
    /// A new one.
    pub fn random() -> Self {
        OrderId(Uuid::new_v4())
    }
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whom or what a revocation, or a block, is about. Names are compared exactly, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// A user, on all clusters or on the order's.
    User(UserName),
    /// A project.
    Project(ProjectId),
    /// A job of a cluster: every run of it so far.
    Job(ClusterName, JobId),
    /// A node of a cluster: every session that had it.
    Node(ClusterName, NodeName),
    /// A role: every session of a project that has it, and every session to which it was issued.
    Role(RoleArn),
}

/// An order to revoke. It is stored before anything is done about it, and done again from its beginning, which changes
/// nothing twice, until it is complete: a credvend that is killed half-way leaves nothing half-revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Order {
    /// Its name.
    pub id: OrderId,
    /// About whom.
    pub subject: Subject,
    /// Only on these clusters (a head revokes on its own alone); `None`: on all.
    pub clusters: Option<Vec<ClusterName>>,
    /// Who ordered it, as shown to users and in the audit log.
    pub by: String,
    /// Why, in the words of whoever ordered it; at most 512 bytes.
    pub why: Option<String>,
    /// Deny whole roles by `aws:TokenIssueTime`.
    pub wide: bool,
    /// When. Sessions opened later are none of its business.
    pub at: OffsetDateTime,
    /// When everything but the Deny, which has its own life, was done; `None` while it is not.
    pub done: Option<OffsetDateTime>,
    /// What it did so far, as JSON, for people and programs; at most 256 KiB.
    pub report: Option<String>,
}

/// Nobody of this subject gets a session, or credentials, until it is lifted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Block {
    /// About whom. Never a job: what is revoked of a job stays so by itself.
    pub subject: Subject,
    /// Who ordered it.
    pub by: String,
    /// Why.
    pub why: Option<String>,
    /// When.
    pub at: OffsetDateTime,
}

/// What the nodes of a cluster are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct News {
    /// What has become of the sessions.
    pub kind: NewsKind,
    /// Which sessions; at most [`NEWS_SESSIONS`].
    pub sessions: Vec<SessionId>,
    /// A sentence for the jobs' users; at most 1 KiB.
    pub reason: String,
    /// Of which revocation, if of one.
    pub order: Option<OrderId>,
    /// The nodes that may hold credentials of these sessions: they are asked to answer when they have dropped them.
    pub nodes: Vec<NodeName>,
    /// Sessions that are COMPLETED; at most [`NEWS_SESSIONS`]. They stand in news of the kind INVALIDATED that has no
    /// sessions: a credvend that does not know of them reads it, and tells its nodes nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub completed: Vec<CompletedSession>,
}

/// A session whose job is over, and who must hear of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CompletedSession {
    /// Which.
    pub session: SessionId,
    /// The nodes that have not said that the job left them; empty: they are too many to be named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeName>,
}

/// See [`News`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NewsKind {
    /// They are over: nothing of them may be served any more.
    Invalidated,
    /// They live, but what was issued for them so far is dead in AWS: it must be asked for anew.
    Renew,
}

/// The most sessions in one piece of news: its line fits a node's bound.
pub const NEWS_SESSIONS: usize = 256;

/// The most pieces of news that one reading gives.
pub const NEWS_PAGE: usize = 256;

/// A piece of news with its number: 1, 2, 3, … for each cluster, without gaps, in the order of publication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NumberedNews {
    /// Its number.
    pub seq: u64,
    /// When it was published.
    pub at: OffsetDateTime,
    /// The news.
    pub news: News,
}

/// What AWS must deny on a role: everything issued before a time to one name, or to all.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Revocation {
    /// The role.
    pub role_arn: RoleArn,
    /// Whose.
    pub whose: Denied,
    /// Tokens issued before this are denied.
    pub issued_before: OffsetDateTime,
    /// When the last of them has expired by itself: the entry may go.
    pub until: OffsetDateTime,
    /// Whether somebody ordered it. What a job left at its end is denied as far as there is room, and never in the place of
    /// what was ordered.
    pub ordered: bool,
}

/// Whose tokens, in the order of precision.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Denied {
    /// `aws:SourceIdentity`, exactly.
    SourceIdentity(String),
    /// `aws:userid`, exactly: role id, colon, role-session name.
    UserId(String),
    /// All of the role: `aws:TokenIssueTime` alone.
    Everyone,
}
