//! What nodes answer: collected here, written to the store a few times a second, since a revocation may be waited for at
//! another replica than the one that a node tells.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use credd_protocol::node_api::{HeardRequest, MAX_HEARD};
use credd_protocol::{ClusterName, NodeName};
use tokio::time::Instant;

use super::Events;
use crate::store::{OrderId, Store, StoreError};

/// The answers to so many orders are kept in memory, the newest: each may be given by ten thousand nodes.
const KEPT: usize = 64;
/// How often a waiting revocation looks here, and at the store.
const LOOK: Duration = Duration::from_millis(50);
const LOOK_AT_STORE: Duration = Duration::from_millis(250);

type Place = (ClusterName, NodeName);

/// The answers of this replica's nodes.
pub(super) struct Answers {
    store: Arc<dyn Store>,
    /// Tells the writers apart.
    replica: String,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// Oldest first.
    heard: VecDeque<(OrderId, HashSet<Place>)>,
    unwritten: HashMap<(OrderId, ClusterName), HashSet<NodeName>>,
}

impl Answers {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Answers { store, replica: uuid::Uuid::new_v4().to_string(), kept: Mutex::default() }
    }

    fn kept<T>(&self, act: impl FnOnce(&mut Kept) -> T) -> T {
        act(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, cluster: &ClusterName, node: &NodeName, order: OrderId) {
        self.kept(|kept| {
            if !kept.heard.iter().any(|(known, _)| *known == order) {
                kept.heard.push_back((order, HashSet::new()));
                if kept.heard.len() > KEPT {
                    kept.heard.pop_front();
                }
            }
            let heard = kept.heard.iter_mut().find(|(known, _)| *known == order);
            let new = heard.is_some_and(|(_, places)| places.insert((cluster.clone(), node.clone())));
            if new {
                kept.unwritten.entry((order, cluster.clone())).or_default().insert(node.clone());
            }
        });
    }

    /// Takes what is new to the store; what it does not take is kept.
    pub(super) async fn write(&self) -> Result<(), StoreError> {
        let mut result = Ok(());
        for ((order, cluster), nodes) in self.kept(|kept| std::mem::take(&mut kept.unwritten)) {
            let list: Vec<NodeName> = nodes.into_iter().collect();
            if let Err(error) = self.store.note_heard(order, &self.replica, &cluster, &list).await {
                self.kept(|kept| kept.unwritten.entry((order, cluster)).or_default().extend(list));
                result = Err(error);
            }
        }
        result
    }
}

impl Events {
    /// A node says which events it has followed. Numbers that are of another epoch, that are long past, that ask nobody or
    /// not this node are passed over.
    ///
    /// # Errors
    /// The store's: the node says it again.
    pub async fn heard(&self, cluster: &ClusterName, node: &NodeName, answer: &HeardRequest) -> Result<(), StoreError> {
        if answer.epoch != self.epoch().await? {
            return Ok(());
        }
        let seqs = answer.seqs.get(..MAX_HEARD).unwrap_or(&answer.seqs);
        for line in self.lines(cluster, seqs).await? {
            if let Some(order) = line.order.filter(|_| line.asks(node)) {
                self.answers.note(cluster, node, order);
            }
        }
        Ok(())
    }

    /// Waits until all of `concerned` have answered this order, at whichever replica, or `within` is over; says who has.
    pub async fn answers(
        &self,
        order: OrderId,
        concerned: &HashSet<(ClusterName, NodeName)>,
        within: Duration,
    ) -> HashSet<(ClusterName, NodeName)> {
        let deadline = Instant::now() + within;
        let mut heard: HashSet<Place> = HashSet::new();
        let mut look_at_store = Instant::now();
        loop {
            self.answers.kept(|kept| {
                if let Some((_, places)) = kept.heard.iter().find(|(known, _)| *known == order) {
                    heard.extend(places.intersection(concerned).cloned());
                }
            });
            let now = Instant::now();
            if heard.len() < concerned.len() && (now >= look_at_store || now >= deadline) {
                look_at_store = now + LOOK_AT_STORE;
                match tokio::time::timeout(within.max(LOOK), self.store.heard(order)).await {
                    Ok(Ok(places)) => heard.extend(places.into_iter().filter(|place| concerned.contains(place))),
                    Ok(Err(error)) => tracing::warn!(%order, %error, "the nodes' answers cannot be read"),
                    Err(_) => tracing::warn!(%order, "the nodes' answers are not read in time"),
                }
            }
            if heard.len() >= concerned.len() || now >= deadline {
                return heard;
            }
            tokio::time::sleep_until(deadline.min(now + LOOK)).await;
        }
    }
}
