//! The store: what credvend must remember. It is the truth; what IAM shows is a projection of it.
//!
//! The interface is made of idempotent intents with opaque cursors. No transaction is exposed, so that SQLite and
//! DynamoDB can both keep it; every implementation passes the same conformance suite.

use async_trait::async_trait;
use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::{
    ClusterName, JobId, NodeName, PartitionName, ProjectId, RoleArn, RoleName, SessionId, TokenHash, Uid, UserName,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

pub mod archive;
#[cfg(test)]
pub mod conformance;
pub mod dynamo;
mod orders;
pub mod sqlite;

pub use orders::{
    Block, CompletedSession, Denied, NEWS_PAGE, NEWS_SESSIONS, News, NewsKind, NumberedNews, Order, OrderId,
    Revocation, Subject,
};

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Busy, locked, throttled, out of reach: the same call may work soon.
    #[error("the session store cannot be used right now: {0}")]
    Unavailable(String),
    /// Corrupt, wrong schema, full, read-only: someone must look.
    #[error("the session store is broken: {0}")]
    Broken(String),
    /// A cursor that this store did not give.
    #[error("this page cursor is not valid")]
    BadCursor,
}

/// Who opened a session, and so what closes it and what its credentials answer to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A head node stated it (the IAM Credentials API (v1)). It has a session token, kept as a hash.
    Head {
        /// The head's own session id.
        head_session: String,
        /// `submittedTime` as the head wrote it.
        submitted: String,
        /// The hash of the session token.
        token: TokenHash,
    },
    /// Slurm attested it. It has no session token: only nodes that Slurm names get its credentials.
    Slurm(Run),
}

impl Origin {
    /// For a log line: the raw job id.
    pub fn job(&self) -> Option<u32> {
        if let Origin::Slurm(run) = self { Some(run.job.get()) } else { None }
    }

    /// For a log line: how often the job was requeued before.
    pub fn restart(&self) -> Option<u32> {
        if let Origin::Slurm(run) = self { Some(run.restart) } else { None }
    }

    /// For a log line: the head's own session id.
    pub fn head_session(&self) -> Option<&str> {
        if let Origin::Head { head_session, .. } = self { Some(head_session) } else { None }
    }
}

/// One run of a Slurm job. The id and restart count alone do not tell runs apart for ever: a slurmctld that lost its state,
/// or whose counter went round, gives old ids to new jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Run {
    /// The raw job id.
    pub job: JobId,
    /// How often the job was requeued before.
    pub restart: u32,
    /// When Slurm has it as submitted, to the second.
    pub submitted: OffsetDateTime,
}

impl Run {
    /// The `submitted` of sessions that an earlier credvend opened, which did not record it.
    pub const UNRECORDED: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    /// Whether this, a session's, is the run that Slurm has now.
    pub fn is(&self, now: &Run) -> bool {
        (self.job, self.restart) == (now.job, now.restart)
            && (self.submitted == now.submitted || self.submitted == Self::UNRECORDED)
    }

    /// Whether this run of the same job id is over for certain when Slurm has run `now`.
    pub fn is_before(&self, now: &Run) -> bool {
        self.job == now.job && !self.is(now) && (self.submitted, self.restart) < (now.submitted, now.restart)
    }
}

/// An ACTIVE session of a Slurm job, with what tells whether it still runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenRun {
    /// The session.
    pub id: SessionId,
    /// Of which run.
    pub run: Run,
    /// Of whom.
    pub uid: Option<Uid>,
}

/// One run of one job, or one session of a head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Session {
    /// credvend's own name for it.
    pub id: SessionId,
    /// The cluster.
    pub cluster: ClusterName,
    /// The user.
    pub user: UserName,
    /// The user's uid at the cluster; absent for a head's session.
    pub uid: Option<Uid>,
    /// The project.
    pub project: ProjectId,
    /// The partition, if Slurm said so.
    pub partition: Option<PartitionName>,
    /// The nodes at the time of opening, if Slurm said so.
    pub nodes: Vec<NodeName>,
    /// Who opened it.
    pub origin: Origin,
    /// When.
    pub opened: OffsetDateTime,
    /// When it ended, if it has.
    pub ended: Option<OffsetDateTime>,
    /// ACTIVE, INVALIDATED or COMPLETED; the latter two are final.
    pub status: SessionStatus,
    /// Why it ended, if it has.
    pub why: Option<String>,
}

/// Credentials that AWS issued: enough to revoke them and to find them in CloudTrail. No secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Issuance {
    /// For which session.
    pub session: SessionId,
    /// The session's user: revocation asks by it.
    pub user: UserName,
    /// The session's cluster.
    pub cluster: ClusterName,
    /// The session's project.
    pub project: ProjectId,
    /// The role's name within the project.
    pub role: RoleName,
    /// The role.
    pub role_arn: RoleArn,
    /// AWS' id of the role (`AROA…`): `aws:userid` is this, a colon, and the session name.
    pub role_id: String,
    /// The role-session name sent to STS.
    pub session_name: String,
    /// `SourceIdentity`, if it was sent.
    pub source_identity: Option<String>,
    /// The access key id (`ASIA…`).
    pub key_id: String,
    /// For which node, if for one.
    pub node: Option<NodeName>,
    /// When.
    pub issued: OffsetDateTime,
    /// Until when AWS accepts them.
    pub expires: OffsetDateTime,
}

/// An opaque place in a listing, made by the store that reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cursor(pub String);

/// One page of a listing, at most [`PAGE`] items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<Cursor>,
}

/// The most items a page has.
pub const PAGE: usize = 500;

/// The most items a page of [`OpenRun`]s has.
pub const RUNS_PAGE: usize = 8192;

/// Which sessions to list. All conditions must hold; names are compared exactly, byte for byte.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SessionFilter {
    /// Only with this status.
    pub status: Option<SessionStatus>,
    /// Only of this cluster.
    pub cluster: Option<ClusterName>,
    /// Only of this user.
    pub user: Option<UserName>,
    /// Only of this project.
    pub project: Option<ProjectId>,
    /// Only of this Slurm job.
    pub job: Option<JobId>,
    /// Only opened before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened_before: Option<OffsetDateTime>,
}

/// What became of an attempt to open a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// The session is stored now.
    New(Session),
    /// The same run already had a session, whatever its status: this one.
    Existing(Session),
}

/// What became of an attempt to end a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was ACTIVE and has the new status now.
    Now(Session),
    /// It had ended before; nothing changed.
    Before(Session),
    /// No such session.
    Unknown,
}

/// The store's interface. A read sees whatever was written by calls that returned before it began: what is vended while
/// its session ends rests on that. Times are kept to the microsecond.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Opens a session. For [`Origin::Slurm`] the key is (cluster, run): the first caller's session is stored, later
    /// callers get it. For [`Origin::Head`] the key is (cluster, head session, submitted): the same again returns
    /// `Existing` (its token is the old one), a newer `submitted` is a new session. Durable when it returns.
    async fn open(&self, session: Session) -> Result<Opened, StoreError>;

    /// A session by its id.
    async fn get(&self, id: SessionId) -> Result<Option<Session>, StoreError>;

    /// A session's status, and why it ended: all of it that changes. Asked for each of a large job's nodes, so it should
    /// not read what the job's size makes long.
    async fn status(&self, id: SessionId) -> Result<Option<(SessionStatus, Option<String>)>, StoreError> {
        Ok(self.get(id).await?.map(|session| (session.status, session.why)))
    }

    /// The session of one run of a Slurm job, whatever its status; else the ACTIVE one that [is](Run::is) this run.
    async fn find_run(&self, cluster: &ClusterName, run: &Run) -> Result<Option<Session>, StoreError>;

    /// The ACTIVE sessions of a cluster's Slurm jobs, newest first, [`RUNS_PAGE`] at a time: for the sweep, which looks at
    /// all of them every few seconds.
    async fn list_runs(&self, cluster: &ClusterName, from: Option<&Cursor>) -> Result<Page<OpenRun>, StoreError>;

    /// Gives a head's ACTIVE session another token; the earlier one is worth nothing any more. `None` if there is no such
    /// session, it has ended, or it is not a head's. Durable when it returns.
    async fn replace_token(&self, id: SessionId, token: TokenHash) -> Result<Option<Session>, StoreError>;

    /// A head's session by the head's id: the one opened last. Without a cluster (the short v1 form of PUT) the newest
    /// of any of `clusters`, which are the caller's own.
    async fn find_head(&self, clusters: &[ClusterName], head_session: &str) -> Result<Option<Session>, StoreError>;

    /// Ends a session: ACTIVE → `status`, with a reason. COMPLETED and INVALIDATED are final. Durable when it returns.
    async fn end(
        &self,
        id: SessionId,
        status: SessionStatus,
        at: OffsetDateTime,
        why: &str,
    ) -> Result<Ended, StoreError>;

    /// Lists sessions, newest first.
    async fn list(&self, filter: &SessionFilter, from: Option<&Cursor>) -> Result<Page<Session>, StoreError>;

    /// Records credentials that AWS issued. Durable when it returns: they are served only after this.
    async fn record_issuance(&self, issuance: Issuance) -> Result<(), StoreError>;

    /// The issuances whose expiry lies after `alive_at`, of exactly this, newest first.
    async fn list_issuances(
        &self,
        of: &IssuedTo,
        alive_at: OffsetDateTime,
        from: Option<&Cursor>,
    ) -> Result<Page<Issuance>, StoreError>;

    /// Remembers a nonce until `expires`; `false` if it was remembered already. Older ones may be forgotten.
    async fn remember_nonce(&self, nonce: &str, expires: OffsetDateTime) -> Result<bool, StoreError>;

    /// Stores a revocation, so that the Deny can be made (again) from the store alone. One entry for each (role, whose):
    /// of two, the later `issued_before` and the later `until` count, and that one of them was ordered.
    async fn record_revocation(&self, revocation: Revocation) -> Result<(), StoreError>;

    /// The revocations of exactly these names of a role, those included that have expired and are not pruned yet. Asked for
    /// each AssumeRole: its cost is that of the names, however many entries there are.
    async fn revocations_of(&self, role: &RoleArn, whose: &[Denied]) -> Result<Vec<Revocation>, StoreError>;

    /// Deletes the revocations whose `until` lies before a time; returns how many.
    async fn prune_revocations(&self, before: OffsetDateTime) -> Result<u64, StoreError>;

    /// The revocations whose credentials may still live at `alive_at`.
    async fn list_revocations(&self, alive_at: OffsetDateTime) -> Result<Vec<Revocation>, StoreError>;

    /// Stores an order, or what has become of it: the same id again replaces it. Durable when it returns.
    async fn put_order(&self, order: Order) -> Result<(), StoreError>;

    /// An order by its id.
    async fn get_order(&self, id: OrderId) -> Result<Option<Order>, StoreError>;

    /// Orders, newest first.
    async fn list_orders(&self, from: Option<&Cursor>) -> Result<Page<Order>, StoreError>;

    /// The orders of this time or later, done or not, newest first, at most [`PAGE`]. Asked every few seconds about the last
    /// few minutes.
    async fn orders_since(&self, at: OffsetDateTime) -> Result<Vec<Order>, StoreError>;

    /// The orders that are not done. As a rule there are none; asked every few seconds.
    async fn open_orders(&self) -> Result<Vec<Order>, StoreError>;

    /// Keeps a subject out from now on; one block for each subject, the last one counts. Durable when it returns.
    async fn put_block(&self, block: Block) -> Result<(), StoreError>;

    /// Lifts a block; `false` if there was none.
    async fn remove_block(&self, subject: &Subject) -> Result<bool, StoreError>;

    /// All blocks: few. Asked about once a second by each replica.
    async fn list_blocks(&self) -> Result<Vec<Block>, StoreError>;

    /// Which store this is: drawn when it was made, and another one after a restore that lost something. What nodes have
    /// heard is numbered within it.
    async fn epoch(&self) -> Result<String, StoreError>;

    /// Appends to what a cluster's nodes are told, and says its number: the last one plus one, whoever publishes at the
    /// same time. Durable when it returns.
    async fn publish(&self, cluster: &ClusterName, news: News, at: OffsetDateTime) -> Result<u64, StoreError>;

    /// What was published after number `after`, oldest first, at most [`NEWS_PAGE`]. Asked a few times a second by each
    /// replica.
    async fn news(&self, cluster: &ClusterName, after: u64) -> Result<Vec<NumberedNews>, StoreError>;

    /// The number of the newest piece of news, 0 if there was none. Pruning does not change it.
    async fn newest_news(&self, cluster: &ClusterName) -> Result<u64, StoreError>;

    /// Nodes have answered that they dropped what an order revoked. `replica` tells the writers apart: each adds to its
    /// own list.
    async fn note_heard(
        &self,
        order: OrderId,
        replica: &str,
        cluster: &ClusterName,
        nodes: &[NodeName],
    ) -> Result<(), StoreError>;

    /// The nodes that have answered so far, whichever replica they told.
    async fn heard(&self, order: OrderId) -> Result<Vec<(ClusterName, NodeName)>, StoreError>;

    /// Slurm has named a node as one of an ACTIVE session's that was not there when it was opened (`scontrol update
    /// NumNodes`): it is remembered among its nodes. Nothing happens if it is there, or the session is not.
    async fn add_node(&self, id: SessionId, node: &NodeName) -> Result<(), StoreError>;

    /// Takes, or renews, a lease until `until`: `false` while another holder's lease lasts at `now`.
    async fn lease(
        &self,
        name: &str,
        holder: &str,
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<bool, StoreError>;

    /// Gives a lease back, if `holder` has it.
    async fn release(&self, name: &str, holder: &str) -> Result<(), StoreError>;

    /// Remembers a text under a kind and a key, until it is removed: what a part of credvend must know after a restart, or
    /// on another replica. The same key again replaces it. Durable when it returns.
    async fn put_note(&self, kind: &str, key: &str, text: &str) -> Result<(), StoreError> {
        let _ = (kind, key, text);
        Err(no_notes())
    }

    /// What is noted under a key.
    async fn get_note(&self, kind: &str, key: &str) -> Result<Option<String>, StoreError> {
        let _ = (kind, key);
        Err(no_notes())
    }

    /// Forgets a note; nothing happens if there is none.
    async fn remove_note(&self, kind: &str, key: &str) -> Result<(), StoreError> {
        let _ = (kind, key);
        Err(no_notes())
    }

    /// All notes of a kind, as (key, text) in no order that means anything. What is noted or removed meanwhile may be
    /// there or not; everything else is, once.
    async fn list_notes(&self, kind: &str, from: Option<&Cursor>) -> Result<Page<(String, String)>, StoreError> {
        let _ = (kind, from);
        Err(no_notes())
    }

    /// Deletes what ended, expired, was revoked, published or done before `before`, and answers of orders that go. ACTIVE
    /// sessions, open orders and blocks stay. Returns how many rows went.
    async fn prune(&self, before: OffsetDateTime) -> Result<u64, StoreError>;

    /// Whether the store can be read and written.
    async fn check(&self) -> Result<(), StoreError>;
}

fn no_notes() -> StoreError {
    StoreError::Broken("this kind of store keeps no notes, so credvend cannot stand before an upstream with it".into())
}

/// Whose issuances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IssuedTo {
    /// Of this user on any of the store's clusters.
    User(UserName),
    /// Of this session.
    Session(SessionId),
    /// Of this project on any of the store's clusters.
    Project(ProjectId),
    /// Of this role, whoever asked.
    Role(RoleArn),
    /// For this node of this cluster, where it was issued for one.
    Node(ClusterName, NodeName),
}
