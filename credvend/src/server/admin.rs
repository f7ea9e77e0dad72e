//! The administrators' verbs, and the types that the command line reads.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use credd_protocol::credentials::rfc3339_z;
use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::{ClusterName, JobId, NodeName, PartitionName, ProjectId, SessionId, Uid, UserName};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::Mutex;

use super::Server;
use super::answer::{self, Reply};
use super::route::{Handling, handling};
use super::target::{Target, bad, cut, parse};
use crate::refusal::Refusal;
use crate::store::{Cursor, Issuance, IssuedTo, Origin, Run, Session, SessionFilter};
use crate::vending::Vending;

/// How long an answer of `/ready` counts: anybody may ask, and the store is not asked each time.
const READY_AGE: Duration = Duration::from_secs(2);

/// Reads projects, secrets and certificate again, for whoever is named; `Err` lists every problem, and what was in force
/// stays.
pub type Reload = dyn Fn(&str) -> Result<(), Vec<String>> + Send + Sync;

/// What only administrators ask for.
pub struct Admin {
    /// For `reload`.
    pub reload: Arc<Reload>,
    /// For `status`.
    pub about: About,
    /// What is wrong with the map of projects and the certificates in force; shown by `status`.
    pub in_force: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
    /// What the last reload did not take; shown by `status`.
    pub not_reloaded: std::sync::Mutex<Vec<String>>,
    /// What Slurm and AWS said last, where it needs an administrator; shown by `status`.
    pub observed: std::sync::Mutex<Vec<String>>,
    /// The last answer of `/ready`.
    pub ready: Mutex<Option<(Instant, Result<(), String>)>>,
}

/// What does not change while the process lives.
#[derive(Debug, Clone)]
pub struct About {
    /// When it started.
    pub started: OffsetDateTime,
    /// The configured clusters, and who attests.
    pub clusters: Vec<(ClusterName, &'static str)>,
    /// What an administrator should know about the configuration.
    pub warnings: Vec<String>,
}

/// The answer to `status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// This program's version.
    pub version: String,
    /// When it started.
    #[serde(with = "rfc3339_z")]
    pub started: OffsetDateTime,
    /// `ok`, or what is wrong with the store.
    pub store: String,
    /// How many projects the map in force has.
    pub projects: usize,
    /// The clusters.
    pub clusters: Vec<ClusterStatus>,
    /// What an administrator should know.
    pub warnings: Vec<String>,
}

/// One cluster in [`Status`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ClusterStatus {
    /// Its name.
    pub name: ClusterName,
    /// `slurm` or `head`.
    pub attest: String,
    /// Nodes with an open stream to this process.
    pub nodes_connected: usize,
}

/// A session as administrators see it: without its token's hash.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SessionView {
    /// credvend's own name for it.
    pub session: SessionId,
    /// ACTIVE, INVALIDATED or COMPLETED.
    pub status: SessionStatus,
    /// The cluster.
    pub cluster: ClusterName,
    /// The user.
    pub user: UserName,
    /// The user's uid.
    pub uid: Option<Uid>,
    /// The project.
    pub project: ProjectId,
    /// `slurm` or `head`: who opened it.
    pub origin: String,
    /// Slurm's job.
    pub job: Option<JobId>,
    /// Which run of the job.
    pub restart: Option<u32>,
    /// The head's own session id.
    pub head_session: Option<String>,
    /// When the run was submitted: as Slurm says (`Z`), or as the head wrote it.
    pub submitted: Option<String>,
    /// The partition.
    pub partition: Option<PartitionName>,
    /// The nodes when it was opened.
    pub nodes: Vec<NodeName>,
    /// When it was opened.
    #[serde(with = "rfc3339_z")]
    pub opened: OffsetDateTime,
    /// When it ended.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended: Option<OffsetDateTime>,
    /// Why.
    pub why: Option<String>,
}

impl From<Session> for SessionView {
    fn from(session: Session) -> Self {
        let (origin, job, restart, head_session, submitted) = match session.origin {
            Origin::Slurm(Run { job, restart, submitted }) => {
                let submitted = (submitted != Run::UNRECORDED).then(|| rfc3339_z::format(submitted));
                ("slurm", Some(job), Some(restart), None, submitted)
            }
            Origin::Head { head_session, submitted, .. } => ("head", None, None, Some(head_session), Some(submitted)),
        };
        SessionView {
            session: session.id,
            status: session.status,
            cluster: session.cluster,
            user: session.user,
            uid: session.uid,
            project: session.project,
            origin: origin.into(),
            job,
            restart,
            head_session,
            submitted,
            partition: session.partition,
            nodes: session.nodes,
            opened: session.opened,
            ended: session.ended,
            why: session.why,
        }
    }
}

/// A page of sessions.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SessionPage {
    /// Newest first.
    pub sessions: Vec<SessionView>,
    /// Where the next page begins.
    pub next: Option<Cursor>,
}

/// A session with what was issued to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SessionDetail {
    /// The session.
    pub session: SessionView,
    /// What was issued, newest first: one page of the store's.
    pub issued: Vec<Issuance>,
    /// Where the next page begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Cursor>,
}

/// A project's role as administrators see it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RoleView {
    /// The project.
    pub project: ProjectId,
    /// The role's name within it.
    pub role: String,
    /// Which role.
    pub role_arn: String,
    /// How long its credentials live.
    pub duration_seconds: u32,
    /// Whether SourceIdentity is sent.
    pub source_identity: bool,
    /// Whether session tags are sent.
    pub session_tags: bool,
    /// Whether what a job got dies when it ends.
    #[serde(default)]
    pub revoke_on_end: bool,
    /// The clusters that the project names, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clusters: Option<Vec<String>>,
}

/// Who credvend is in AWS.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Identity {
    /// As AWS says it.
    pub arn: String,
}

/// What a reload did.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Reloaded {
    /// Empty: everything is in force. Else what is wrong; the parts concerned keep their old state.
    pub problems: Vec<String>,
}

impl Admin {
    /// Reloads, and remembers for `status` what was not taken.
    ///
    /// # Errors
    /// Every problem; what was in force stays.
    pub fn reload(&self, by: &str) -> Result<(), Vec<String>> {
        let done = (self.reload)(by);
        let problems = done.as_ref().err().cloned().unwrap_or_default();
        *self.not_reloaded.lock().unwrap_or_else(PoisonError::into_inner) = problems;
        done
    }

    /// What an administrator should know now.
    fn warnings(&self) -> Vec<String> {
        let not_reloaded = self.not_reloaded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let not_reloaded = not_reloaded.into_iter().map(|why| format!("the last reload left the old in force: {why}"));
        let always = self.about.warnings.iter().cloned();
        always.chain(not_reloaded).chain((self.in_force)()).chain(self.observed()).collect()
    }

    /// What was observed last.
    pub fn observed(&self) -> Vec<String> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces what was observed; returns what is new in it.
    pub fn observe(&self, warnings: Vec<String>) -> Vec<String> {
        let mut observed = self.observed.lock().unwrap_or_else(PoisonError::into_inner);
        let new = warnings.iter().filter(|warning| !observed.contains(warning)).cloned().collect();
        *observed = warnings;
        new
    }

    /// `GET /ready`.
    pub(super) async fn ready(&self, vending: &Arc<Vending>) -> Result<Reply, Refusal> {
        let mut ready = self.ready.lock().await;
        let result = match &*ready {
            Some((at, result)) if at.elapsed() < READY_AGE => result.clone(),
            _ => {
                let checked = vending.store().check().await.map_err(|e| e.to_string());
                *ready = Some((Instant::now(), checked.clone()));
                checked
            }
        };
        // Anybody may ask: what is wrong stands in the log and in `credvend status`.
        result.map_err(|_| Refusal::Unavailable("the session store cannot be used".into()))?;
        Ok(answer::json(200, &serde_json::json!({"status": "ready"})))
    }
}

/// `GET /health`: the process lives.
pub(super) fn health(_: &Target) -> Result<Handling<()>, Refusal> {
    handling(|_, ()| async { Ok(answer::json(200, &serde_json::json!({"status": "ok"}))) })
}

/// `GET /ready`: it can work.
pub(super) fn ready(_: &Target) -> Result<Handling<()>, Refusal> {
    handling(|call, ()| async move { call.server.admin.ready(&call.server.vending).await })
}

/// `GET /admin/v1/sessions`.
pub(super) fn sessions(target: &Target) -> Result<Handling<String>, Refusal> {
    let (mut filter, from) = choice(target)?;
    handling(move |call, _| async move {
        let server = call.server;
        filter.cluster = filter.cluster.map(|cluster| server.vending.spelled(&cluster));
        let page = server.vending.store().list(&filter, from.as_ref()).await?;
        // Of a head's job as well; there is one place for them, the first page.
        let heads = if from.is_none() { server.of_heads(&filter).await? } else { vec![] };
        let sessions = heads.into_iter().chain(page.items).map(SessionView::from).collect();
        Ok(answer::json(200, &SessionPage { sessions, next: page.next }))
    })
}

/// `GET /admin/v1/sessions/{session}`.
pub(super) fn session(target: &Target) -> Result<Handling<String>, Refusal> {
    let (id, from): (SessionId, _) = (target.value("session")?, page(target)?);
    handling(move |call, _| async move {
        let store = call.server.vending.store();
        let session = store.get(id).await?.ok_or_else(|| Refusal::UnknownSession(id.to_string()))?;
        let of = IssuedTo::Session(id);
        let issued = store.list_issuances(&of, OffsetDateTime::UNIX_EPOCH, from.as_ref()).await?;
        let (session, next) = (session.into(), issued.next);
        Ok(answer::json(200, &SessionDetail { session, issued: issued.items, next }))
    })
}

/// `POST /admin/v1/sessions/{session}/close`.
pub(super) fn close(target: &Target) -> Result<Handling<String>, Refusal> {
    let id: SessionId = target.value("session")?;
    handling(move |call, by: String| async move {
        call.server.vending.close(&by, id).await?;
        tracing::info!(by, session = %id, "session closed");
        Ok(answer::json(200, &serde_json::json!({})))
    })
}

/// `GET /admin/v1/identity`: who credvend is in AWS.
pub(super) fn identity(_: &Target) -> Result<Handling<String>, Refusal> {
    handling(|call, _| async move {
        let arn = call.server.vending.identity().await?;
        Ok(answer::json(200, &Identity { arn }))
    })
}

/// `GET /admin/v1/projects`.
pub(super) fn projects(_: &Target) -> Result<Handling<String>, Refusal> {
    handling(|call, _| async move { Ok(answer::json(200, &call.server.roles())) })
}

/// `POST /admin/v1/reload`.
pub(super) fn reload(_: &Target) -> Result<Handling<String>, Refusal> {
    handling(|call, by: String| async move {
        let (server, who) = (call.server, by.clone());
        let result = tokio::task::spawn_blocking(move || server.admin.reload(&who))
            .await
            .map_err(|_| Refusal::Internal("the reload was cut short".into()))?;
        let problems = result.err().unwrap_or_default();
        tracing::info!(by, problems = problems.join("; "), "reload asked for");
        Ok(answer::json(if problems.is_empty() { 200 } else { 409 }, &Reloaded { problems }))
    })
}

/// `GET /admin/v1/status`.
pub(super) fn status(_: &Target) -> Result<Handling<String>, Refusal> {
    handling(|call, _| async move { Ok(answer::json(200, &call.server.status().await)) })
}

/// Which sessions to list, and where the page begins.
pub(super) fn choice(target: &Target) -> Result<(SessionFilter, Option<Cursor>), Refusal> {
    let (mut filter, mut from) = (SessionFilter::default(), None);
    for (key, value) in target.pairs()? {
        match key.as_str() {
            "status" => {
                let status = serde_json::Value::String(value.to_ascii_uppercase());
                filter.status = Some(
                    serde_json::from_value(status).map_err(|_| bad("a status is ACTIVE, INVALIDATED or COMPLETED"))?,
                );
            }
            "cluster" => filter.cluster = Some(parse(&value)?),
            "user" => filter.user = Some(parse(&value)?),
            "project" => filter.project = Some(parse(&value)?),
            "job" => filter.job = Some(parse(&value)?),
            "from" => from = Some(Cursor(value)),
            _ => return Err(bad(format!("sessions cannot be chosen by {:?}", cut(&key, 40)))),
        }
    }
    Ok((filter, from))
}

/// Where a page begins: `from=…`, or nothing.
pub(super) fn page(target: &Target) -> Result<Option<Cursor>, Refusal> {
    let mut from = None;
    for (key, value) in target.pairs()? {
        match key.as_str() {
            "from" => from = Some(Cursor(value)),
            _ => return Err(bad(format!("these cannot be chosen by {:?}", cut(&key, 40)))),
        }
    }
    Ok(from)
}

impl Server {
    /// Where a job is asked for: what heads opened under its number, the newest of each cluster.
    async fn of_heads(&self, filter: &SessionFilter) -> Result<Vec<Session>, Refusal> {
        let Some(job) = filter.job else { return Ok(vec![]) };
        let mut found = vec![];
        for (cluster, _) in &self.admin.about.clusters {
            let newest = self.vending.store().find_head(std::slice::from_ref(cluster), &job.to_string()).await?;
            found.extend(newest.filter(|session| {
                filter.status.is_none_or(|status| session.status == status)
                    && filter.cluster.as_ref().is_none_or(|name| session.cluster == *name)
                    && filter.user.as_ref().is_none_or(|name| session.user == *name)
                    && filter.project.as_ref().is_none_or(|name| session.project == *name)
            }));
        }
        Ok(found)
    }

    fn roles(&self) -> Vec<RoleView> {
        let map = self.vending.projects().current();
        let role = |project: &ProjectId, name: &credd_protocol::RoleName, role: &crate::projects::Role| RoleView {
            project: project.clone(),
            role: name.to_string(),
            role_arn: role.arn.to_string(),
            duration_seconds: role.duration_seconds,
            source_identity: role.source_identity,
            session_tags: role.session_tags,
            revoke_on_end: role.revoke_on_end,
            clusters: map.clusters.get(project).map(|own| own.iter().map(ToString::to_string).collect()),
        };
        map.projects
            .iter()
            .flat_map(|(project, roles)| roles.iter().map(move |(name, of)| role(project, name, of)))
            .collect()
    }

    async fn status(&self) -> Status {
        let store = self.vending.store().check().await;
        let cluster = |(name, attest): &(ClusterName, &'static str)| ClusterStatus {
            name: name.clone(),
            attest: (*attest).to_owned(),
            nodes_connected: self.streams.nodes_of(name),
        };
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            started: self.admin.about.started,
            store: store.err().map_or_else(|| "ok".into(), |error| error.to_string()),
            projects: self.vending.projects().current().projects.len(),
            clusters: self.admin.about.clusters.iter().map(cluster).collect(),
            warnings: [self.admin.warnings(), self.vending.warnings(), self.vending.full_denies()].concat(),
        }
    }
}
