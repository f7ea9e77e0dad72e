//! The sessions of large jobs, as they were opened: all of a session but its status is settled then, and thousands of
//! nodes that ask about the same one need not have the names of all of them read from the store each time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::{ClusterName, SessionId};

use super::Vending;
use crate::attest::JobFacts;
use crate::store::{Origin, Run, Session, Store, StoreError};

/// With fewer nodes a session is read as a whole.
const CROWD: usize = 64;

/// The most sessions, and names of nodes, that are kept.
const MAX_SESSIONS: usize = 1024;
const MAX_NAMES: usize = 500_000;

#[derive(Default)]
pub(super) struct Crowds(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    sessions: HashMap<SessionId, Arc<Crowd>>,
    runs: HashMap<(ClusterName, Run), SessionId>,
    names: usize,
}

struct Crowd {
    session: Arc<Session>,
    /// Reads of its status are numbered as they begin.
    reads: AtomicU64,
    /// The last read, whose it was.
    last: tokio::sync::Mutex<(u64, Option<SessionStatus>)>,
}

impl Crowd {
    /// The status in the store, by a read that began after this call: those who ask meanwhile share the next one.
    async fn status(&self, store: &dyn Store) -> Result<Option<SessionStatus>, StoreError> {
        let before = self.reads.load(Ordering::SeqCst);
        let mut last = self.last.lock().await;
        if last.0 > before {
            return Ok(last.1);
        }
        let number = self.reads.fetch_add(1, Ordering::SeqCst) + 1;
        let status = store.status(self.session.id).await?.map(|(status, _)| status);
        *last = (number, status);
        Ok(status)
    }
}

impl Kept {
    fn remove(&mut self, id: SessionId) {
        let Some(crowd) = self.sessions.remove(&id) else { return };
        let session = &crowd.session;
        self.names -= session.nodes.len();
        if let Origin::Slurm(run) = session.origin {
            self.runs.remove(&(session.cluster.clone(), run));
        }
    }
}

impl Crowds {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an ACTIVE session, if it is worth it.
    pub(super) fn keep(&self, session: &Arc<Session>) {
        let Origin::Slurm(run) = session.origin else { return };
        if session.nodes.len() < CROWD || session.status != SessionStatus::Active {
            return;
        }
        let mut kept = self.kept();
        kept.remove(session.id);
        while kept.sessions.len() >= MAX_SESSIONS || kept.names + session.nodes.len() > MAX_NAMES {
            let Some(any) = kept.sessions.keys().next().copied() else { return };
            kept.remove(any);
        }
        kept.names += session.nodes.len();
        kept.runs.insert((session.cluster.clone(), run), session.id);
        let crowd = Crowd { session: session.clone(), reads: AtomicU64::new(0), last: Default::default() };
        kept.sessions.insert(session.id, Arc::new(crowd));
    }

    pub(super) fn forget(&self, id: SessionId) {
        self.kept().remove(id);
    }

    /// Whether this job's nodes had better not read all at the same time what is not kept yet.
    pub(super) fn is_new(&self, cluster: &ClusterName, facts: &JobFacts) -> bool {
        facts.nodes.len() >= CROWD && self.of_run(cluster, &facts.run()).is_none()
    }

    fn session(&self, id: SessionId) -> Option<Arc<Crowd>> {
        self.kept().sessions.get(&id).cloned()
    }

    fn of_run(&self, cluster: &ClusterName, run: &Run) -> Option<Arc<Crowd>> {
        let kept = self.kept();
        kept.runs.get(&(cluster.clone(), *run)).and_then(|id| kept.sessions.get(id)).cloned()
    }
}

impl Vending {
    /// A session with the status that it has now.
    pub(super) async fn session(&self, id: SessionId) -> Result<Option<Arc<Session>>, StoreError> {
        if let Some(session) = self.still_active(self.crowds.session(id)).await? {
            return Ok(Some(session));
        }
        Ok(self.parts.store.get(id).await?.map(|session| self.seen(session)))
    }

    /// The session of a run, with the status that it has now.
    pub(super) async fn session_of_run(
        &self,
        cluster: &ClusterName,
        run: &Run,
    ) -> Result<Option<Arc<Session>>, StoreError> {
        if let Some(session) = self.still_active(self.crowds.of_run(cluster, run)).await? {
            return Ok(Some(session));
        }
        Ok(self.parts.store.find_run(cluster, run).await?.map(|session| self.seen(session)))
    }

    /// A session that the store has just shown.
    pub(super) fn seen(&self, session: Session) -> Arc<Session> {
        let session = Arc::new(session);
        self.crowds.keep(&session);
        session
    }

    /// The status of a session that was ACTIVE, and why it ended.
    pub(super) async fn status(&self, id: SessionId) -> Result<Option<(SessionStatus, Option<String>)>, StoreError> {
        match self.still_active(self.crowds.session(id)).await? {
            Some(session) => Ok(Some((session.status, None))),
            None => self.parts.store.status(id).await,
        }
    }

    async fn still_active(&self, kept: Option<Arc<Crowd>>) -> Result<Option<Arc<Session>>, StoreError> {
        let Some(crowd) = kept else { return Ok(None) };
        if crowd.status(&*self.parts.store).await? == Some(SessionStatus::Active) {
            return Ok(Some(crowd.session.clone()));
        }
        self.crowds.forget(crowd.session.id);
        Ok(None)
    }
}
