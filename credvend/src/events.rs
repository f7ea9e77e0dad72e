//! What the nodes are told at once. The truth is the store: news is numbered there, for each cluster by itself and without
//! gaps, durably, before any node hears of it. Here each replica brings it, in that order, to the streams that hang on it:
//! its own news at once, the other replicas' when [`Events::keep_up`] looks, four times a second.
//!
//! [`answers`] collects what nodes say when they have followed. What nodes ask or say costs no look at the store: the
//! newest news is in memory ([`recent`]), and looks are shared.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use credd_protocol::node_api::{Event, MAX_REASON_BYTES};
use credd_protocol::printable::one_line;
use credd_protocol::{ClusterName, NodeName, SessionId};
use hyper::body::Bytes;
use tokio::sync::{OnceCell, broadcast, watch};

use crate::clock::Clock;
use crate::store::{
    CompletedSession, NEWS_PAGE, NEWS_SESSIONS, News, NewsKind, NumberedNews, OrderId, Store, StoreError,
};

use recent::Recent;

pub mod answers;
mod completed;
mod recent;

/// A node that is this many events behind starts anew with a fresh hello.
const BACKLOG: usize = 1024;

/// How often the store is looked at for other replicas' news.
const LOOK: Duration = Duration::from_millis(250);

/// News that the store would not take is kept for it up to this.
const MAX_UNTOLD: usize = 10_000;

/// One piece of news, as nodes hear it.
#[derive(Debug)]
pub struct Line {
    /// Its number.
    pub seq: u64,
    /// Of which revocation.
    pub order: Option<OrderId>,
    /// Who is asked to answer.
    asked: HashSet<NodeName>,
    /// Written once for all streams.
    plain: Bytes,
    to_answer: Bytes,
    /// Each node hears of its own.
    completed: Vec<CompletedSession>,
}

impl Line {
    fn of(numbered: NumberedNews) -> Self {
        let NumberedNews { seq, news: News { kind, sessions, reason, order, nodes, completed }, .. } = numbered;
        let line = |answer| {
            let (sessions, reason) = (sessions.clone(), reason.clone());
            written(&match kind {
                NewsKind::Invalidated => Event::Invalidated { seq, sessions, reason, answer, completed: vec![] },
                NewsKind::Renew => Event::Renew { seq, sessions, reason, answer },
            })
        };
        let asked: HashSet<NodeName> = if order.is_some() { nodes.into_iter().collect() } else { HashSet::new() };
        let plain = line(false);
        let to_answer = if asked.is_empty() { plain.clone() } else { line(true) };
        Line { seq, order, asked, plain, to_answer, completed }
    }

    /// About how much memory it takes.
    fn weight(&self) -> usize {
        let completed: usize = self.completed.iter().map(|of| 64 + of.nodes.len() * 64).sum();
        self.plain.len() + self.to_answer.len() + self.asked.len() * 64 + completed
    }

    /// As this node hears it, its end included.
    pub fn for_node(&self, node: &NodeName) -> Bytes {
        let concerns = |of: &&CompletedSession| of.nodes.is_empty() || of.nodes.contains(node);
        let completed: Vec<SessionId> = self.completed.iter().filter(concerns).map(|of| of.session).collect();
        if !completed.is_empty() {
            let (sessions, reason) = (vec![], String::new());
            return written(&Event::Invalidated { seq: self.seq, sessions, reason, answer: false, completed });
        }
        if self.asks(node) { self.to_answer.clone() } else { self.plain.clone() }
    }

    /// Whether this node is to answer.
    pub fn asks(&self, node: &NodeName) -> bool {
        self.asked.contains(node)
    }
}

/// A line of a stream.
pub fn written(event: &Event) -> Bytes {
    let mut line = serde_json::to_vec(event).expect("plain values");
    line.push(b'\n');
    line.into()
}

/// What a node gets first, and what follows.
pub struct Subscription {
    /// Its hello.
    pub hello: Event,
    /// What it missed, where that could be told.
    pub missed: Vec<Arc<Line>>,
    /// What comes.
    pub news: broadcast::Receiver<Arc<Line>>,
}

/// Told of each piece of news before any stream is.
type Watcher = Box<dyn Fn(&ClusterName, &News) + Send + Sync>;

/// The news of this replica and the others, for every open stream of this process.
pub struct Events {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    epoch: OnceCell<String>,
    /// As many as there are configured clusters at most: nobody else opens streams or sessions.
    clusters: Mutex<HashMap<ClusterName, Arc<OfCluster>>>,
    watcher: OnceLock<Watcher>,
    /// Oldest first. Only [`Events::offer_untold`] takes from it.
    untold: Mutex<VecDeque<(ClusterName, News)>>,
    answers: answers::Answers,
    completed: completed::Completed,
}

struct OfCluster {
    /// How many looks at the store were begun.
    begun: AtomicU64,
    /// The last look that succeeded. One at a time catches up, so that what is told is in order; who waited for a look
    /// that began after it came has what it wants.
    turn: tokio::sync::Mutex<u64>,
    told: Mutex<Told>,
}

struct Told {
    /// Up to which number; unknown before the store was first asked.
    seq: Option<u64>,
    recent: Recent,
    sender: broadcast::Sender<Arc<Line>>,
}

impl OfCluster {
    fn told<T>(&self, act: impl FnOnce(&mut Told) -> T) -> T {
        act(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Events {
    /// The news of this store.
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        Events {
            answers: answers::Answers::new(store.clone()),
            store,
            clock,
            epoch: OnceCell::new(),
            clusters: Mutex::default(),
            watcher: OnceLock::new(),
            untold: Mutex::default(),
            completed: completed::Completed::default(),
        }
    }

    /// Sets who is told of each piece of news, this replica's and the others', before any stream is. The first one counts.
    pub fn watch_with(&self, watcher: impl Fn(&ClusterName, &News) + Send + Sync + 'static) {
        let _ = self.watcher.set(Box::new(watcher));
    }

    /// Stores news, and tells it on this replica's streams. More sessions than one piece of news may have make several,
    /// of which the last one's number is returned.
    ///
    /// # Errors
    /// The store's. What was stored before it erred is told.
    pub async fn publish(&self, cluster: &ClusterName, news: News) -> Result<u64, StoreError> {
        let own = self.of(cluster).await?;
        let reason = one_line(&news.reason, MAX_REASON_BYTES);
        let mut stored = Ok(0);
        let sessions = news.sessions.chunks(NEWS_SESSIONS).map(|sessions| (sessions, &[][..]));
        let completed = news.completed.chunks(NEWS_SESSIONS).map(|completed| (&[][..], completed));
        for (sessions, completed) in sessions.chain(completed) {
            let (sessions, completed) = (sessions.to_vec(), completed.to_vec());
            let piece = News { sessions, completed, reason: reason.clone(), ..news.clone() };
            stored = self.store.publish(cluster, piece, self.clock.now()).await;
            if stored.is_err() {
                break;
            }
        }
        // Others' news may have come in between, and goes first. If it cannot be read now, the next look brings all.
        if let Err(error) = self.catch_up(cluster, &own).await {
            tracing::warn!(%cluster, %error, "news was stored but could not be read at once");
        }
        stored
    }

    /// As [`Events::publish`]; what the store does not take is kept and offered again with every look. Whether it took it.
    pub async fn publish_or_keep(&self, cluster: &ClusterName, news: News) -> bool {
        let published = self.publish(cluster, news.clone()).await;
        if let Err(error) = &published {
            tracing::error!(%cluster, %error, sessions = news.sessions.len(), "the nodes are not told yet");
            let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
            if untold.len() < MAX_UNTOLD {
                untold.push_back((cluster.clone(), news));
            }
        }
        published.is_ok()
    }

    /// The first lines of a stream of a node of this cluster, which says what it knows: an epoch, and up to which number
    /// it has heard everything.
    ///
    /// # Errors
    /// The store's.
    pub async fn subscribe(
        &self,
        cluster: &ClusterName,
        known: Option<(&str, u64)>,
    ) -> Result<Subscription, StoreError> {
        let (own, epoch) = (self.of(cluster).await?, self.epoch().await?.to_owned());
        let known = known.filter(|(its, _)| *its == epoch).map(|(_, after)| after);
        if let Some(after) = known {
            // It may have heard that from another replica, which was faster.
            self.reach(cluster, &own, after).await?;
        }
        // In one moment: what is numbered later comes to the receiver.
        Ok(own.told(|told| {
            let (seq, news) = (told.seq.unwrap_or(0), told.sender.subscribe());
            let missed =
                known.filter(|after| *after <= seq).and_then(|after| Some((after, told.recent.after(after, seq)?)));
            let (seq, missed) = missed.unwrap_or((seq, vec![]));
            Subscription { hello: Event::Hello { epoch, seq }, missed, news }
        }))
    }

    /// What comes from now on, for whoever is no node.
    pub fn listen(&self, cluster: &ClusterName) -> broadcast::Receiver<Arc<Line>> {
        self.known(cluster).told(|told| told.sender.subscribe())
    }

    /// Makes sure that this replica has read the store's news up to this number: a node has heard it, maybe from another
    /// replica.
    ///
    /// # Errors
    /// The store's.
    pub async fn caught_up(&self, cluster: &ClusterName, seq: u64) -> Result<(), StoreError> {
        let own = self.of(cluster).await?;
        self.reach(cluster, &own, seq).await
    }

    async fn reach(&self, cluster: &ClusterName, own: &OfCluster, seq: u64) -> Result<(), StoreError> {
        if own.told(|told| told.seq < Some(seq)) {
            self.catch_up(cluster, own).await?;
        }
        Ok(())
    }

    /// Those of these numbers that are among the newest news.
    async fn lines(&self, cluster: &ClusterName, seqs: &[u64]) -> Result<Vec<Arc<Line>>, StoreError> {
        let own = self.of(cluster).await?;
        self.reach(cluster, &own, seqs.iter().max().copied().unwrap_or(0)).await?;
        Ok(own.told(|told| seqs.iter().filter_map(|seq| told.recent.get(*seq)).collect()))
    }

    /// Brings the other replicas' news of these clusters to this one's streams, and takes nodes' answers to the store,
    /// until the service stops.
    pub async fn keep_up(&self, clusters: Vec<ClusterName>, mut stopping: watch::Receiver<bool>) {
        let mut trouble: Option<String> = None;
        loop {
            let now = tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => break,
                looked = self.look(&clusters) => looked.err().map(|error| error.to_string()),
            };
            // Once, not four times a second.
            match &now {
                Some(error) if trouble != now => tracing::error!("news for the nodes cannot be read: {error}"),
                None if trouble.is_some() => tracing::info!("news for the nodes can be read again"),
                _ => {}
            }
            trouble = now;
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => break,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        let _ = self.answers.write().await;
        if let Err(error) = self.tell_all_completed().await {
            tracing::error!("nodes are not told of jobs that ended in the last seconds: {error}");
        }
    }

    /// One look at the store.
    ///
    /// # Errors
    /// The store's last one; what could be done was done.
    pub async fn look(&self, clusters: &[ClusterName]) -> Result<(), StoreError> {
        let mut result = Ok(());
        for cluster in clusters {
            let caught_up = async { self.catch_up(cluster, &*self.of(cluster).await?).await };
            result = caught_up.await.and(result);
        }
        // Writes come last, and end with the first that fails: what other replicas say must not wait for them.
        result = self.answers.write().await.and(result);
        result = self.tell_completed().await.and(result);
        self.offer_untold().await.and(result)
    }

    async fn offer_untold(&self) -> Result<(), StoreError> {
        let untold = || self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut left, mut result) = (untold().len(), Ok(()));
        while left > 0 {
            let Some((cluster, news)) = untold().front().cloned() else { break };
            match self.publish(&cluster, news).await {
                Ok(_) => drop(untold().pop_front()),
                Err(error @ StoreError::Unavailable(_)) => return Err(error),
                // What the store does not take for a reason of its own must not keep the others waiting.
                Err(error) => {
                    result = Err(error);
                    untold().rotate_left(1);
                }
            }
            left -= 1;
        }
        result
    }

    async fn epoch(&self) -> Result<&str, StoreError> {
        self.epoch.get_or_try_init(|| self.store.epoch()).await.map(String::as_str)
    }

    fn known(&self, cluster: &ClusterName) -> Arc<OfCluster> {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let told = Told { seq: None, recent: Recent::default(), sender: broadcast::Sender::new(BACKLOG) };
            Arc::new(OfCluster {
                begun: AtomicU64::new(0),
                turn: tokio::sync::Mutex::default(),
                told: Mutex::new(told),
            })
        };
        clusters.entry(cluster.clone()).or_insert_with(new).clone()
    }

    /// The cluster, its position known: what was published before this replica first looked is news here only to a node
    /// that missed it.
    async fn of(&self, cluster: &ClusterName) -> Result<Arc<OfCluster>, StoreError> {
        let own = self.known(cluster);
        if own.told(|told| told.seq.is_none()) {
            let _turn = own.turn.lock().await;
            if own.told(|told| told.seq.is_none()) {
                let newest = self.store.newest_news(cluster).await?;
                let page = u64::try_from(NEWS_PAGE).expect("a small constant");
                let mut recent = Recent::default();
                for numbered in self.store.news(cluster, newest.saturating_sub(page)).await? {
                    if numbered.seq <= newest {
                        recent.push(Arc::new(Line::of(numbered)));
                    }
                }
                own.told(|told| (told.seq, told.recent) = (Some(newest), recent));
            }
        }
        Ok(own)
    }

    /// Reads what is new in the store, and tells it in its order.
    async fn catch_up(&self, cluster: &ClusterName, own: &OfCluster) -> Result<(), StoreError> {
        let seen = own.begun.load(Ordering::SeqCst);
        let mut done = own.turn.lock().await;
        if *done > seen {
            return Ok(());
        }
        let this = own.begun.fetch_add(1, Ordering::SeqCst) + 1;
        loop {
            let after = own.told(|told| told.seq.unwrap_or(0));
            let page = self.store.news(cluster, after).await?;
            let whole = page.len() < NEWS_PAGE;
            for numbered in page {
                // The store numbers without gaps; only what was pruned before it was read here is missing, and then the
                // nodes notice by the next number.
                if let Some(watcher) = self.watcher.get() {
                    watcher(cluster, &numbered.news);
                }
                let line = Arc::new(Line::of(numbered));
                own.told(|told| {
                    told.seq = Some(line.seq);
                    told.recent.push(line.clone());
                    // No receiver is no error: nobody hangs on this process.
                    let _ = told.sender.send(line);
                });
            }
            if whole {
                *done = this;
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests;
