//! Sessions whose jobs are over.
//!
//! A node on which the job's own end got stuck (no epilog, a full disk) must not go on serving it. On a busy cluster there are
//! many such ends and none of them is urgent: they are collected for some seconds and published together, each for the session's
//! own nodes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use credd_protocol::{ClusterName, NodeName, SessionId};
use tokio::time::Instant;

use super::Events;
use crate::store::{CompletedSession, NEWS_SESSIONS, News, NewsKind, StoreError};

/// How long ended sessions are collected before they are published. A node must have heard 5 s after the end (docs/torture.md).
const GATHERED_FOR: Duration = Duration::from_secs(3);

/// The most sessions of a cluster that wait while the store cannot be written. Nodes of others notice at the next renewal.
const MAX_WAITING: usize = 16_384;

/// The most names of nodes that are remembered as having left, of all sessions together. Leaves beyond that are not remembered,
/// and those nodes are told of the end once more.
const MAX_LEFT: usize = 131_072;

/// The leaves of a session are forgotten this long after the first: another replica may have ended it.
const LEFT_FOR: Duration = Duration::from_hours(24);

/// How often leaves of that age are looked for.
const FORGET_EVERY: Duration = Duration::from_hours(1);

/// If more nodes than this have not left, all of the cluster's nodes are told: the list would be longer than the message.
const MAX_NODES: usize = 32;

/// The ended sessions that have not been published, and the leaves that nodes have reported.
#[derive(Default)]
pub(super) struct Completed(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    since: Option<Instant>,
    of: BTreeMap<ClusterName, Vec<CompletedSession>>,
    /// Which nodes have told this replica that a session's job left them. Normally all of its nodes do.
    left: HashMap<SessionId, Left>,
    /// How many names `left` holds.
    left_names: usize,
    /// When old leaves were last forgotten.
    forgot: Option<Instant>,
}

/// The nodes that a session's job has left, and when the first of them reported that.
struct Left {
    since: Instant,
    nodes: HashSet<NodeName>,
}

impl Waiting {
    fn forget_old(&mut self) {
        if self.forgot.is_none_or(|forgot| forgot.elapsed() >= FORGET_EVERY) {
            self.forgot = Some(Instant::now());
            self.left.retain(|_, left| left.since.elapsed() < LEFT_FOR);
            self.left_names = self.left.values().map(|left| left.nodes.len()).sum();
        }
    }

    fn take_left(&mut self, session: SessionId) -> HashSet<NodeName> {
        let nodes = self.left.remove(&session).map(|left| left.nodes).unwrap_or_default();
        self.left_names -= nodes.len();
        nodes
    }
}

impl Completed {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn due(&self) -> Option<BTreeMap<ClusterName, Vec<CompletedSession>>> {
        let mut waiting = self.waiting();
        let full = waiting.of.values().any(|sessions| sessions.len() >= NEWS_SESSIONS);
        if !full && waiting.since.is_none_or(|since| since.elapsed() < GATHERED_FOR) {
            return None;
        }
        waiting.since = None;
        Some(std::mem::take(&mut waiting.of))
    }

    fn put_back(&self, cluster: ClusterName, sessions: Vec<CompletedSession>) {
        let mut waiting = self.waiting();
        waiting.since.get_or_insert_with(Instant::now);
        let of = waiting.of.entry(cluster).or_default();
        of.extend(sessions);
        of.truncate(MAX_WAITING);
    }
}

impl Events {
    /// A node reports that the session's job has left it. `nodes` are the session's nodes; a report of any other is ignored.
    pub fn left(&self, session: SessionId, node: &NodeName, nodes: &[NodeName]) {
        if !nodes.contains(node) {
            return;
        }
        let mut waiting = self.completed.waiting();
        waiting.forget_old();
        if waiting.left_names < MAX_LEFT {
            let new = || Left { since: Instant::now(), nodes: HashSet::new() };
            let is_new = waiting.left.entry(session).or_insert_with(new).nodes.insert(node.clone());
            waiting.left_names += usize::from(is_new);
        }
    }

    /// Forgets which nodes the session's job has left: the session is over, and its nodes are told by other means.
    pub fn forget_left(&self, session: SessionId) {
        self.completed.waiting().take_left(session);
    }

    /// The session's job runs on a node again that it may have left before: it shrank, and grew back.
    pub fn joined(&self, session: SessionId, node: &NodeName) {
        let mut waiting = self.completed.waiting();
        let Some(left) = waiting.left.get_mut(&session) else { return };
        let (had_left, nobody_left) = (left.nodes.remove(node), left.nodes.is_empty());
        waiting.left_names -= usize::from(had_left);
        if nobody_left {
            waiting.left.remove(&session);
        }
    }

    /// A session is COMPLETED, which ran on these nodes. Those that have not reported that its job left them are told within
    /// seconds.
    pub fn completed(&self, cluster: &ClusterName, session: SessionId, nodes: &[NodeName]) {
        let left = self.completed.waiting().take_left(session);
        let mut nodes: Vec<NodeName> = nodes.iter().filter(|node| !left.contains(node)).cloned().collect();
        if nodes.is_empty() {
            return;
        }
        if nodes.len() > MAX_NODES {
            nodes.clear();
        }
        self.completed.put_back(cluster.clone(), vec![CompletedSession { session, nodes }]);
    }

    /// Publishes the ended sessions that have been collected for long enough.
    pub(super) async fn tell_completed(&self) -> Result<(), StoreError> {
        self.tell_these(self.completed.due().unwrap_or_default()).await
    }

    /// Tells the nodes of all ended jobs that were gathered: this process stops, and nobody else knows which they are.
    ///
    /// # Errors
    /// As [`Events::tell_completed`].
    pub(super) async fn tell_all_completed(&self) -> Result<(), StoreError> {
        let gathered = std::mem::take(&mut self.completed.waiting().of);
        self.tell_these(gathered).await
    }

    async fn tell_these(&self, gathered: BTreeMap<ClusterName, Vec<CompletedSession>>) -> Result<(), StoreError> {
        let mut result = Ok(());
        for (cluster, sessions) in gathered {
            let news = News {
                kind: NewsKind::Invalidated,
                sessions: vec![],
                reason: String::new(),
                order: None,
                nodes: vec![],
                completed: sessions,
            };
            if let Err(error) = self.publish(&cluster, news.clone()).await {
                // Part of it may be stored already. Publishing that again does no harm.
                self.completed.put_back(cluster, news.completed);
                result = Err(error);
            }
        }
        result
    }
}

#[cfg(test)]
impl Events {
    /// How many sessions have remembered leaves, and how many nodes those are in all.
    pub(crate) fn remembered_leaves(&self) -> (usize, usize) {
        let waiting = self.completed.waiting();
        assert_eq!(waiting.left_names, waiting.left.values().map(|left| left.nodes.len()).sum::<usize>());
        (waiting.left.len(), waiting.left_names)
    }
}
