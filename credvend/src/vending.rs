//! What `credvend` does, apart from how it is asked: open, join, leave, vend, close, invalidate.
//!
//! The servers' faces ([`crate::server`]) authenticate a caller and call one function here. Everything that decides is
//! here, over four seams (store, attestor, source, denier), so that it is tested without network, Slurm or AWS.
//!
//! | file | what |
//! |---|---|
//! | `nodes` | a node's verbs: open, credentials, leave |
//! | `heads` | a head's verbs and the session token's GET, as in the IAM Credentials API (v1) |
//! | `attesting` | what Slurm must say before a node gets anything |
//! | `crowds` | the sessions of large jobs, read once |
//! | `facts` | what it last said about a job, for all of its nodes |
//! | `addresses` | whether a node's source address is the one in Slurm |
//! | `refused` | whether a whole cluster is refused |
//! | `standing` | what is asked of Slurm about a cluster or node, and remembered shortly |
//! | `issuing` | one AssumeRole for however many ask, recorded before it is served |
//! | `revoking` | a subject's sessions and issued credentials |
//! | `blocking` | who is kept out |
//! | `denying` | the roles' Deny policies as a projection of the store |
//! | `sweeping` | closes what Slurm no longer has |

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::{ClusterName, NodeName, Secret, SessionId};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

mod addresses;
mod attesting;
mod blocking;
mod crowds;
mod denying;
mod facts;
mod head_sessions;
pub(crate) mod heads;
mod issuing;
mod nodes;
mod refused;
pub mod revoking;
mod role_answers;
mod standing;
mod sweeping;
#[cfg(test)]
mod tests;

pub use addresses::REQUIRED_FROM;

use crate::attest::Attestor;
use crate::audit::Event;
use crate::deny::Denier;
use crate::refusal::Refusal;
use crate::source::Source;
use crate::store::{Ended, News, NewsKind, Origin, Session, SessionFilter, Store, StoreError, Subject};

/// No credentials live longer.
const LONGEST_LIFE: time::Duration = time::Duration::hours(12);

/// So many of the newest pieces of news are looked through for ends that were not told; what is not found among them is
/// told again, which changes nothing.
const NEWS_LOOKED_AT: u64 = 4096;

/// A node that proved itself, by MUNGE as root or by a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its cluster; the server has checked that it is configured.
    pub cluster: ClusterName,
    /// Its name, as it says (MUNGE) or as its certificate says.
    pub name: NodeName,
    /// Where the connection comes from.
    pub peer: Option<IpAddr>,
    /// It proved itself by a certificate of its own, which no other node has: its address need not vouch for it.
    pub certified: bool,
}

/// A head that proved itself, by its cluster's secret or by a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The cluster it speaks for.
    pub cluster: ClusterName,
    /// From which address, for the record.
    pub peer: Option<IpAddr>,
}

/// The answer to a head's open.
#[derive(Debug, Clone)]
pub struct HeadOpened {
    /// The session.
    pub session: SessionId,
    /// Its bearer token, shown this once; the store has the hash.
    pub token: Secret,
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
    /// How AWS sees jobs, where a role does not say otherwise.
    pub names: crate::session_name::Names,
    /// Tells the nodes that hang on this process.
    pub events: Arc<crate::events::Events>,
    /// The time.
    pub clock: Arc<dyn crate::clock::Clock>,
    /// What is put on record.
    pub audit: Arc<crate::audit::Log>,
    /// What is counted.
    pub metrics: Arc<crate::metrics::Metrics>,
}

/// A configured cluster.
pub struct Cluster {
    /// Asks its Slurm; `None` where a head states the facts.
    pub attestor: Option<Arc<dyn Attestor>>,
    /// Believe accounts although Slurm does not enforce them.
    pub trust_unenforced_accounts: bool,
    /// Where its nodes ask from.
    pub addresses: NodeAddresses,
    /// A head's session that is older is COMPLETED: the head forgot it.
    pub head_session_max: time::Duration,
}

impl Default for Cluster {
    fn default() -> Self {
        Cluster {
            attestor: None,
            trust_unenforced_accounts: false,
            addresses: NodeAddresses::default(),
            head_session_max: time::Duration::days(30),
        }
    }
}

/// Where a cluster's nodes may ask from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// Whether a node's peer address is compared with Slurm's NodeAddr.
    pub check: AddressCheck,
    /// An administrator has decided that, not this release.
    pub decided: bool,
    /// Addresses that nodes have besides.
    pub more: BTreeMap<NodeName, Vec<IpAddr>>,
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
    standing: HashMap<ClusterName, standing::Standing>,
    refused: refused::Refused,
    head_sessions: head_sessions::HeadSessions,
    facts: facts::Facts,
    crowds: crowds::Crowds,
    issuing: Arc<issuing::Issuing>,
    role_answers: Arc<role_answers::RoleAnswers>,
    blocks: blocking::Blocks,
    denying: denying::Denying,
    on_end: revoking::on_end::OnEnd,
    resuming: revoking::Resuming,
    sweeping: sweeping::Sweeping,
    /// Tells this process from the others over the same store, for leases.
    replica: String,
}

impl Vending {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Self {
        let replica = uuid::Uuid::new_v4().to_string();
        let role_answers = Arc::<role_answers::RoleAnswers>::default();
        let issuing = Arc::new(issuing::Issuing::new(&parts, role_answers.clone()));
        let kept = issuing.clone();
        // What is kept for a session is dead when a node hears so, whichever replica said it.
        parts.events.watch_with(move |_, news| {
            for session in &news.sessions {
                kept.forget(*session);
            }
        });
        Vending {
            standing: parts.clusters.keys().map(|name| (name.clone(), standing::Standing::default())).collect(),
            refused: refused::Refused::default(),
            crowds: crowds::Crowds::default(),
            head_sessions: head_sessions::HeadSessions::new(parts.clusters.keys()),
            facts: facts::Facts::new(parts.clusters.keys(), parts.clock.clone()),
            issuing,
            role_answers,
            blocks: blocking::Blocks::default(),
            denying: denying::Denying::new(&parts, replica.clone()),
            on_end: revoking::on_end::OnEnd::default(),
            resuming: revoking::Resuming::default(),
            sweeping: sweeping::Sweeping::default(),
            replica,
            parts,
        }
    }

    /// With this budget of questions to Slurm for each address: so many a second, and so many at once after a pause.
    #[must_use]
    pub fn with_questions(mut self, per_second: u32, burst: u32) -> Self {
        self.facts.limit(per_second, burst);
        self
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

    /// Who credvend is to where its credentials come from.
    ///
    /// # Errors
    /// It does not say.
    pub async fn identity(&self) -> Result<String, Refusal> {
        self.parts.source.identity().await.map_err(|error| Refusal::Unavailable(error.to_string()))
    }

    /// What is put on record.
    pub fn audit(&self) -> &Arc<crate::audit::Log> {
        &self.parts.audit
    }

    /// What is counted.
    pub fn metrics(&self) -> &Arc<crate::metrics::Metrics> {
        &self.parts.metrics
    }

    /// How many revocations are not done, and how many roles' Denies are not in force, for the metrics.
    ///
    /// # Errors
    /// The store's.
    pub async fn count_revocations(&self) -> Result<(), StoreError> {
        let open = self.parts.store.open_orders().await?.len();
        self.parts.metrics.revocations(open, self.denying.behind());
        Ok(())
    }

    /// The roles whose Deny policies have no room for everything that is to be denied, in words, as far as this process
    /// knows.
    pub fn full_denies(&self) -> Vec<String> {
        self.denying.full()
    }

    /// What an administrator should know of what nodes asked for and were refused, and from where they asked.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.refused.warnings(self.now());
        warnings.extend(self.role_answers.warning(self.now()));
        warnings.extend(self.address_warnings());
        warnings.extend(self.sweeping.trouble());
        if !self.parts.audit.works() {
            warnings.push("the audit log cannot be written; see the service's log, and [audit] on-failure".into());
        }
        warnings
    }

    /// Sets the metrics that are not counted as things happen. Asks nobody.
    pub fn look_at_gauges(&self) {
        drop(self.address_warnings());
        let (refused, given) = self.role_answers.counts(self.now());
        self.parts.metrics.roles(refused, given);
        let map = self.parts.projects.current();
        let still = map.unassigned == crate::projects::Unassigned::EverywhereStill;
        self.parts.metrics.projects_without_clusters(if still { map.without_clusters().count() } else { 0 });
    }

    /// Somebody was refused before it was known who asks, or for a cluster that is not configured.
    pub fn refused_at_the_door(&self, refusal: &Refusal) {
        self.refused.at_the_door(refusal, self.now());
    }

    /// The same where another replica sweeps: what only the sweep knows is that one's to tell, and nothing of it stays here.
    ///
    /// # Errors
    /// The store's.
    pub async fn count_beside_the_sweep(&self) -> Result<(), StoreError> {
        self.parts.metrics.swept_elsewhere();
        self.denying.swept_elsewhere();
        let open = self.parts.store.open_orders().await?.len();
        self.parts.metrics.revocations(open, 0);
        Ok(())
    }

    fn now(&self) -> OffsetDateTime {
        self.parts.clock.now()
    }

    /// A cluster as the configuration spells it, which is how the store has it; one that is not configured as it is.
    pub fn spelled(&self, cluster: &ClusterName) -> ClusterName {
        self.parts.clusters.get_key_value(cluster).map_or(cluster, |(name, _)| name).clone()
    }

    /// The same of a cluster in a subject.
    pub fn spelled_subject(&self, subject: Subject) -> Subject {
        match subject {
            Subject::Job(cluster, job) => Subject::Job(self.spelled(&cluster), job),
            Subject::Node(cluster, node) => Subject::Node(self.spelled(&cluster), node),
            other @ (Subject::User(_) | Subject::Project(_) | Subject::Role(_)) => other,
        }
    }

    /// A configured cluster and the one that answers for its jobs.
    fn attested_cluster(&self, node: &Node) -> Result<(&Cluster, &Arc<dyn Attestor>), Refusal> {
        let cluster =
            self.parts.clusters.get(&node.cluster).ok_or_else(|| Refusal::UnknownCluster(node.cluster.clone()))?;
        let attestor = cluster.attestor.as_ref().ok_or_else(|| Refusal::NotAllowed {
            who: format!("node {}", node.name),
            why: format!("the head of cluster {} states its jobs; no Slurm is configured to be asked", node.cluster),
        })?;
        Ok((cluster, attestor))
    }

    /// Ends a session, forgets what is held for it, and tells the nodes if it did not end by itself.
    async fn end(&self, id: SessionId, status: SessionStatus, why: &str) -> Result<Ended, StoreError> {
        let ended = self.parts.store.end(id, status, self.now(), why).await?;
        if let Ended::Now(session) = &ended {
            self.ended(session, why);
            if status == SessionStatus::Invalidated {
                self.tell_ended(std::slice::from_ref(session), session.why.as_deref().unwrap_or(why)).await;
            }
        }
        Ok(ended)
    }

    /// As [`Vending::end`], for who may say it again because the answer was lost: then nobody has heard of the end yet.
    async fn end_as_told(&self, id: SessionId, status: SessionStatus, why: &str) -> Result<Ended, StoreError> {
        let ended = self.end(id, status, why).await?;
        if let Ended::Before(session) = &ended
            && session.status == status
        {
            self.let_go(session);
            if status == SessionStatus::Invalidated {
                self.tell_ended(std::slice::from_ref(session), session.why.as_deref().unwrap_or(why)).await;
            }
        }
        Ok(ended)
    }

    /// Tells the nodes of sessions that ended by somebody's will. The store has the ends already: what it does not take
    /// now is told later, and what a crash leaves untold by [`Vending::tell_untold`].
    async fn tell_ended(&self, sessions: &[Session], why: &str) {
        let mut of_clusters: HashMap<&ClusterName, Vec<SessionId>> = HashMap::new();
        for session in sessions {
            of_clusters.entry(&session.cluster).or_default().push(session.id);
        }
        for (cluster, sessions) in of_clusters {
            let (kind, reason) = (NewsKind::Invalidated, why.to_owned());
            let news = News { kind, sessions, reason, order: None, nodes: vec![], completed: vec![] };
            self.parts.events.publish_or_keep(cluster, news).await;
        }
    }

    /// Tells the nodes of sessions that were INVALIDATED lately and of which no news is stored: a credvend that ended one
    /// was killed before it could say so. To be asked once, when a credvend starts.
    ///
    /// # Errors
    /// The store's.
    pub async fn tell_untold(&self) -> Result<usize, StoreError> {
        let since = self.now() - LONGEST_LIFE;
        let mut told_now = 0;
        for cluster in self.parts.clusters.keys() {
            // First the ends, then the news: what another replica does meanwhile is at worst told twice.
            let filter = SessionFilter {
                status: Some(SessionStatus::Invalidated),
                cluster: Some(cluster.clone()),
                ..Default::default()
            };
            let (mut ended, mut from): (Vec<Session>, _) = (vec![], None);
            loop {
                let page = self.parts.store.list(&filter, from.as_ref()).await?;
                ended.extend(page.items.into_iter().filter(|session| session.ended.is_some_and(|at| at >= since)));
                match page.next {
                    Some(next) => from = Some(next),
                    None => break,
                }
            }
            if ended.is_empty() {
                continue;
            }
            let newest = self.parts.store.newest_news(cluster).await?;
            let (mut after, mut told) = (newest.saturating_sub(NEWS_LOOKED_AT), HashSet::new());
            while after < newest {
                let page = self.parts.store.news(cluster, after).await?;
                let Some(last) = page.last() else { break };
                after = last.seq;
                let over = page.into_iter().filter(|news| news.news.kind == NewsKind::Invalidated);
                told.extend(over.flat_map(|news| news.news.sessions));
            }
            ended.retain(|session| !told.contains(&session.id));
            for session in &ended {
                let why = session.why.as_deref().unwrap_or("it was closed");
                self.tell_ended(std::slice::from_ref(session), why).await;
            }
            told_now += ended.len();
        }
        Ok(told_now)
    }

    /// What follows an end, whoever ended it; again changes nothing.
    fn let_go(&self, session: &Session) {
        self.issuing.forget(session.id);
        self.parts.source.ended(session);
        self.crowds.forget(session.id);
        self.parts.events.forget_left(session.id);
        if let Origin::Slurm(run) = &session.origin {
            self.facts.forget(&session.cluster, run.job);
        }
        self.revoke_on_end(session);
    }

    fn ended(&self, session: &Session, why: &str) {
        if matches!(session.origin, Origin::Slurm(_)) && session.status == SessionStatus::Completed {
            self.parts.events.completed(&session.cluster, session.id, &session.nodes);
        }
        self.let_go(session);
        self.parts.audit.note(Event::SessionEnded { session, why });
        tracing::info!(
            session = %session.id, cluster = %session.cluster, user = %session.user.field(), project = %session.project.field(),
            job = session.origin.job(), restart = session.origin.restart(), head_session = session.origin.head_session(),
            status = session.status.as_str(), why, "session ended"
        );
    }
}

/// Why a session ended, where nobody said.
const NO_REASON: &str = "no reason was recorded";

/// The refusal of what an ended session asks for.
fn require_active(session: &Session) -> Result<(), Refusal> {
    match session.status {
        SessionStatus::Active => Ok(()),
        status => Err(Refusal::SessionEnded {
            session: session.id,
            status: status.as_str(),
            why: session.why.clone().unwrap_or_else(|| NO_REASON.into()),
        }),
    }
}

/// Whether what was learned at `at` may still be relied on. A clock that was set back makes nothing last longer.
fn fresh(at: OffsetDateTime, now: OffsetDateTime, for_: time::Duration) -> bool {
    now >= at && now - at < for_
}
