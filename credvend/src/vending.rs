//! What `credvend` does, apart from how it is asked: open, join, leave, vend, close, invalidate.
//!
//! The servers' faces ([`crate::server`]) authenticate a caller and call one function here. Everything that decides is
//! here, over four seams (store, attestor, source, denier), so that it is tested without network, Slurm or AWS.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use credd_protocol::node_api::{CredentialsRequest, CredentialsResponse, OpenRequest, OpenResponse};
use credd_protocol::seed_api::{OpenSession, SessionStatus};
use credd_protocol::{ClusterName, NodeName, ProjectId, Secret, SessionId, TokenHash, UserName};
use serde::{Deserialize, Serialize};

use crate::attest::Attestor;
use crate::deny::Denier;
use crate::refusal::Refusal;
use crate::source::Source;
use crate::store::Store;

/// A node that proved itself, by MUNGE as root or by a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its cluster; the server has checked that it is configured.
    pub cluster: ClusterName,
    /// Its name, as it says (MUNGE) or as its certificate says.
    pub name: NodeName,
    /// Where the connection comes from.
    pub peer: Option<IpAddr>,
}

/// A head that proved itself, by its cluster's secret or by a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The cluster it speaks for.
    pub cluster: ClusterName,
}

/// The answer to a head's open.
#[derive(Debug, Clone)]
pub struct HeadOpened {
    /// The session.
    pub session: SessionId,
    /// Its bearer token, shown this once; the store has the hash.
    pub token: Secret,
}

/// What a revocation did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RevocationReport {
    /// Sessions that were ACTIVE and are INVALIDATED now.
    pub sessions: Vec<SessionId>,
    /// Role-session names whose issued credentials are denied in AWS, with their role.
    pub denied: Vec<String>,
    /// Roles whose Deny is not in place, and why. Empty when everything was done.
    pub not_denied: Vec<String>,
}

/// What [`Vending`] is made of.
pub struct Parts {
    /// Sessions, issuances, revocations.
    pub store: Arc<dyn Store>,
    /// One for each configured cluster whose facts Slurm states.
    pub clusters: HashMap<ClusterName, Cluster>,
    /// Gives credentials.
    pub source: Arc<dyn Source>,
    /// Kills credentials.
    pub denier: Arc<dyn Denier>,
    /// Which project has which roles; reloaded while running.
    pub projects: Arc<crate::projects::Projects>,
    /// Tells the nodes that hang on this process.
    pub events: Arc<crate::events::Events>,
    /// The time.
    pub clock: Arc<dyn crate::clock::Clock>,
}

/// A configured cluster.
pub struct Cluster {
    /// Asks its Slurm; `None` where a head states the facts.
    pub attestor: Option<Arc<dyn Attestor>>,
    /// Believe accounts although Slurm does not enforce them.
    pub trust_unenforced_accounts: bool,
    /// Compare a node's peer address with Slurm's NodeAddr.
    pub node_address_check: AddressCheck,
}

/// `node-address-check` of a `[[cluster]]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddressCheck {
    /// Do not look.
    Off,
    /// Log a difference.
    #[default]
    Warn,
    /// Refuse a difference.
    Require,
}

/// The service.
pub struct Vending {
    parts: Parts,
}

impl Vending {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Self {
        Vending { parts }
    }

    /// A node opens or joins the session of a job that Slurm says runs on it.
    ///
    /// # Errors
    /// Every reason why not; see [`Refusal`].
    pub async fn open_for_node(&self, _node: &Node, _request: &OpenRequest) -> Result<OpenResponse, Refusal> {
        let _ = &self.parts;
        Err(Refusal::Internal("not built yet".into()))
    }

    /// Credentials of one role for a node's session.
    ///
    /// # Errors
    /// Every reason why not.
    pub async fn credentials_for_node(
        &self,
        _node: &Node,
        _session: SessionId,
        _request: &CredentialsRequest,
    ) -> Result<CredentialsResponse, Refusal> {
        Err(Refusal::Internal("not built yet".into()))
    }

    /// A node says that the job ended there: Slurm is asked, and if it agrees the session is COMPLETED. Stale and
    /// repeated leaves change nothing and succeed.
    ///
    /// # Errors
    /// Only passing ones: the node tells again later.
    pub async fn leave(&self, _node: &Node, _session: SessionId) -> Result<(), Refusal> {
        Err(Refusal::Internal("not built yet".into()))
    }

    /// A head states a job (the seed's POST).
    ///
    /// # Errors
    /// Another cluster's name, an unknown project, a broken store.
    pub async fn open_for_head(&self, _head: &Head, _request: &OpenSession) -> Result<HeadOpened, Refusal> {
        Err(Refusal::Internal("not built yet".into()))
    }

    /// A head sets a session's status (the seed's two PUT forms). Both ends are final; ACTIVE on an ended session is
    /// refused, on an active one a no-op.
    ///
    /// # Errors
    /// An unknown session, or one that ended otherwise.
    pub async fn set_status_for_head(
        &self,
        _head: &Head,
        _head_session: &str,
        _cluster: Option<&ClusterName>,
        _status: SessionStatus,
    ) -> Result<(), Refusal> {
        Err(Refusal::Internal("not built yet".into()))
    }

    /// The seed's GET: credentials of a head's session for whoever bears its token. `claimed` is the caller's
    /// `roleSessionName`: it goes to the audit log and nowhere else, except that its node part may not be believed.
    ///
    /// # Errors
    /// An unknown session, a wrong token, a node-opened session (it has none), an ended one, AWS.
    pub async fn credentials_for_token(
        &self,
        _token: TokenHash,
        _head_session: &str,
        _cluster: &ClusterName,
        _project: &ProjectId,
        _claimed: Option<&str>,
    ) -> Result<CredentialsResponse, Refusal> {
        Err(Refusal::Internal("not built yet".into()))
    }

    /// Ends all of a user's ACTIVE sessions (of `clusters`, or of all where `None`), tells the nodes, and denies in AWS
    /// everything issued to exactly this user that still lives, what ended sessions hold included.
    ///
    /// # Errors
    /// Only when nothing could be done; what is lacking otherwise is in the report.
    pub async fn invalidate_user(
        &self,
        _by: &str,
        _clusters: Option<&[ClusterName]>,
        _user: &UserName,
    ) -> Result<RevocationReport, Refusal> {
        Err(Refusal::Internal("not built yet".into()))
    }

    /// An administrator ends one session.
    ///
    /// # Errors
    /// An unknown session, a broken store.
    pub async fn close(&self, _by: &str, _session: SessionId) -> Result<(), Refusal> {
        Err(Refusal::Internal("not built yet".into()))
    }

    /// Closes the sessions whose jobs Slurm, in one complete answer, no longer has; prunes what is old; brings the Deny
    /// policies in line. Called every few seconds; must be cheap when nothing is open. Returns how many it closed.
    ///
    /// # Errors
    /// Slurm or the store out of reach: nothing is closed on a guess.
    pub async fn sweep(&self) -> Result<usize, Refusal> {
        Err(Refusal::Internal("not built yet".into()))
    }

    /// The store, for listings by an administrator.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.parts.store
    }

    /// The project map, for listings by an administrator.
    pub fn projects(&self) -> &Arc<crate::projects::Projects> {
        &self.parts.projects
    }

    /// What the nodes are told.
    pub fn events(&self) -> &Arc<crate::events::Events> {
        &self.parts.events
    }
}
