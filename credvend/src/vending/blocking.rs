//! Who is kept out until an administrator says otherwise.

use std::collections::HashMap;
use std::sync::Arc;

use credd_protocol::{ClusterName, NodeName, ProjectId, RoleArn, UserName};
use time::{Duration, OffsetDateTime};

use super::{Vending, fresh};
use crate::audit::Event;
use crate::refusal::Refusal;
use crate::store::{Block, Store, StoreError, Subject};

/// So late does a replica learn of what another one blocked or let in again.
const KNOWN_FOR: Duration = Duration::SECOND;

type All = Arc<HashMap<Subject, Block>>;

/// The blocks, read once a second at most.
#[derive(Default)]
pub(super) struct Blocks(tokio::sync::Mutex<Option<(OffsetDateTime, All)>>);

impl Blocks {
    async fn all(&self, store: &dyn Store, now: OffsetDateTime) -> Result<All, StoreError> {
        let mut known = self.0.lock().await;
        if let Some((at, all)) = &*known
            && fresh(*at, now, KNOWN_FOR)
        {
            return Ok(all.clone());
        }
        let all: All = Arc::new(store.list_blocks().await?.into_iter().map(|b| (b.subject.clone(), b)).collect());
        *known = Some((now, all.clone()));
        Ok(all)
    }

    async fn forget(&self) {
        *self.0.lock().await = None;
    }
}

/// Who asks, or for what: whatever is known of it.
#[derive(Default)]
pub(super) struct Asking<'a> {
    pub(super) user: Option<&'a UserName>,
    pub(super) project: Option<&'a ProjectId>,
    pub(super) node: Option<(&'a ClusterName, &'a NodeName)>,
    pub(super) role: Option<&'a RoleArn>,
}

impl Vending {
    /// Refuses what an administrator blocked.
    pub(super) async fn require_unblocked(&self, asking: Asking<'_>) -> Result<(), Refusal> {
        let all = self.blocks.all(&*self.parts.store, self.now()).await?;
        if all.is_empty() {
            return Ok(());
        }
        let subjects = [
            asking.user.cloned().map(Subject::User),
            asking.project.cloned().map(Subject::Project),
            asking.node.map(|(cluster, node)| Subject::Node(cluster.clone(), node.clone())),
            asking.role.cloned().map(Subject::Role),
        ];
        match subjects.iter().flatten().find_map(|subject| all.get(subject)) {
            None => Ok(()),
            Some(block) => Err(Refusal::Blocked {
                whom: shown(&block.subject),
                by: block.by.clone(),
                why: block.why.as_ref().map(|why| format!(" ({why:?})")).unwrap_or_default(),
            }),
        }
    }

    /// Keeps a subject out from now on, at every replica within a second.
    pub(super) async fn block(&self, block: Block) -> Result<(), Refusal> {
        if matches!(block.subject, Subject::Job(..)) {
            return Err(Refusal::BadRequest("a job is not blocked: what is revoked of it stays revoked, and a requeue of it is a new run; block its user or project".into()));
        }
        self.parts.store.put_block(block.clone()).await?;
        self.blocks.forget().await;
        self.parts.audit.note(Event::Blocked { block: &block });
        tracing::warn!(by = block.by, subject = shown(&block.subject), why = block.why, "blocked");
        Ok(())
    }

    /// Lets a subject in again; `false` if it was not blocked.
    ///
    /// # Errors
    /// The store.
    pub async fn unblock(&self, by: &str, subject: &Subject) -> Result<bool, Refusal> {
        let subject = &self.spelled_subject(subject.clone());
        let was = self.parts.store.remove_block(subject).await?;
        self.blocks.forget().await;
        if was {
            self.parts.audit.note(Event::Unblocked { by, subject });
            tracing::warn!(by, subject = shown(subject), "unblocked");
        }
        Ok(was)
    }
}

/// A subject in a sentence.
pub(super) fn shown(subject: &Subject) -> String {
    match subject {
        Subject::User(user) => format!("user {user}"),
        Subject::Project(project) => format!("project {project}"),
        Subject::Job(cluster, job) => format!("job {job} of cluster {cluster}"),
        Subject::Node(cluster, node) => format!("node {node} of cluster {cluster}"),
        Subject::Role(role) => format!("role {role}"),
    }
}
