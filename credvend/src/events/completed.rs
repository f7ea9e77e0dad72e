//! Sessions whose jobs are over: a node whose own end of the job got stuck (no epilog, a full disk) must not serve on. They
//! are many on a busy cluster and in no hurry, so they are gathered for some seconds, and told to their own nodes alone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use credd_protocol::{ClusterName, NodeName, SessionId};
use tokio::time::Instant;

use super::Events;
use crate::store::{CompletedSession, NEWS_SESSIONS, News, NewsKind, StoreError};

/// How long they are gathered.
const GATHERED_FOR: Duration = Duration::from_secs(5);

/// Sessions that wait while the store takes nothing; what is over it is not told, and found out at the next renewal.
const MAX_WAITING: usize = 16_384;

/// Sessions of which it is remembered which nodes left; the others' are told to all of theirs.
const MAX_LEFT: usize = 65_536;

/// A session's leaves are forgotten this long after the first: another replica may have heard of its end.
const LEFT_FOR: Duration = Duration::from_hours(24);

/// How often the forgotten are looked for.
const FORGET_EVERY: Duration = Duration::from_hours(1);

/// A session with more nodes than this is told to all: the list would be longer than the news.
const MAX_NODES: usize = 32;

/// What is to be told.
#[derive(Default)]
pub(super) struct Completed(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    since: Option<Instant>,
    of: BTreeMap<ClusterName, Vec<CompletedSession>>,
    /// Who has told this replica that a session's job left it: as a rule every node of it has.
    left: HashMap<SessionId, Left>,
    /// When those that are too old were last forgotten.
    forgot: Option<Instant>,
}

/// The nodes that a session's job has left, and when the first of them said so.
struct Left {
    since: Instant,
    nodes: HashSet<NodeName>,
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
    /// The session's job, which runs on these nodes, has left the node, says the node.
    pub fn left(&self, session: SessionId, node: &NodeName, nodes: &[NodeName]) {
        if nodes.len() > MAX_NODES || !nodes.contains(node) {
            return;
        }
        let mut waiting = self.completed.waiting();
        if waiting.forgot.is_none_or(|forgot| forgot.elapsed() >= FORGET_EVERY) {
            waiting.forgot = Some(Instant::now());
            waiting.left.retain(|_, left| left.since.elapsed() < LEFT_FOR);
        }
        if waiting.left.len() < MAX_LEFT || waiting.left.contains_key(&session) {
            let new = || Left { since: Instant::now(), nodes: HashSet::new() };
            waiting.left.entry(session).or_insert_with(new).nodes.insert(node.clone());
        }
    }

    /// The session is over, and its nodes are told by other means: which of them it left is of no use any more.
    pub fn forget_left(&self, session: SessionId) {
        self.completed.waiting().left.remove(&session);
    }

    /// The session's job runs on the node again, which it may have left before: it shrank, and grew back.
    pub fn joined(&self, session: SessionId, node: &NodeName) {
        if let Some(left) = self.completed.waiting().left.get_mut(&session) {
            left.nodes.remove(node);
        }
    }

    /// A session is COMPLETED, which ran on these nodes. Those that have not said that it left them are told within seconds.
    pub fn completed(&self, cluster: &ClusterName, session: SessionId, nodes: &[NodeName]) {
        let left = self.completed.waiting().left.remove(&session).map(|left| left.nodes).unwrap_or_default();
        let mut nodes: Vec<NodeName> = nodes.iter().filter(|node| !left.contains(node)).cloned().collect();
        if nodes.is_empty() {
            return;
        }
        if nodes.len() > MAX_NODES {
            nodes.clear();
        }
        self.completed.put_back(cluster.clone(), vec![CompletedSession { session, nodes }]);
    }

    /// Tells what has been gathered for long enough.
    pub(super) async fn tell_completed(&self) -> Result<(), StoreError> {
        let mut result = Ok(());
        for (cluster, sessions) in self.completed.due().unwrap_or_default() {
            let news = News {
                kind: NewsKind::Invalidated,
                sessions: vec![],
                reason: String::new(),
                order: None,
                nodes: vec![],
                completed: sessions,
            };
            if let Err(error) = self.publish(&cluster, news.clone()).await {
                // Some of it may be stored: twice told is told.
                self.completed.put_back(cluster, news.completed);
                result = Err(error);
            }
        }
        result
    }
}

#[cfg(test)]
impl Events {
    /// Of how many sessions it is remembered that nodes left them, and how many nodes in all.
    pub(super) fn remembered_leaves(&self) -> (usize, usize) {
        let left = &self.completed.waiting().left;
        (left.len(), left.values().map(|left| left.nodes.len()).sum())
    }
}
