//! The nodes' standing streams: what a node missed, events, pings in between, an end at shutdown.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use credd_protocol::node_api::{Event, PING_SECONDS, plain_epoch};
use credd_protocol::{ClusterName, NodeName};
use hyper::body::{Body, Bytes, Frame};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::Server;
use super::answer::{self, Reply};
use super::route::{Handling, handling};
use super::target::{Target, bad, cut};
use crate::events::{Subscription, written};
use crate::refusal::Refusal;
use crate::vending::Node;

/// Lines that wait for a slow node; a node that takes none for as long as two pings is cut off.
const WAITING_LINES: usize = 64;
const WRITE_PATIENCE: Duration = Duration::from_secs(2 * PING_SECONDS);

/// The open streams of each node.
#[derive(Default)]
pub struct Streams(Arc<Mutex<Open>>);

#[derive(Default)]
struct Open {
    number: u64,
    nodes: HashMap<(ClusterName, NodeName), OfNode>,
}

/// One node's streams by number, oldest first; dropping the sender ends one.
type OfNode = VecDeque<(u64, oneshot::Sender<()>)>;

/// Takes the stream off the list when it ends, however it ends.
struct Entry {
    open: Arc<Mutex<Open>>,
    node: (ClusterName, NodeName),
    number: u64,
}

impl Streams {
    /// Registers a stream; beyond `most`, the node's oldest is told to end: it is as a rule a connection that died
    /// without a word.
    fn enter(&self, node: (ClusterName, NodeName), most: usize) -> (Entry, oneshot::Receiver<()>) {
        let (end, ended) = oneshot::channel();
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.number += 1;
        let number = open.number;
        let of_node = open.nodes.entry(node.clone()).or_default();
        of_node.push_back((number, end));
        while of_node.len() > most {
            of_node.pop_front();
        }
        (Entry { open: self.0.clone(), node, number }, ended)
    }

    /// How many nodes of each cluster hang on this process.
    pub fn nodes_of(&self, cluster: &ClusterName) -> usize {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.nodes.keys().filter(|(of, _)| of == cluster).count()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_node) = open.nodes.get_mut(&self.node) {
            of_node.retain(|(number, _)| *number != self.number);
            if of_node.is_empty() {
                open.nodes.remove(&self.node);
            }
        }
    }
}

/// `GET /node/v1/stream`.
pub(super) fn open(target: &Target) -> Result<Handling<Node>, Refusal> {
    let known = known(target)?;
    handling(move |call, node: Node| async move {
        // Whoever could invent names for nodes could collect tickets, each with a rate of its own.
        let ticket = if call.server.vending.is_where_it_says(&node) { call.connection.ticket(&node) } else { None };
        Ok(call.server.node_stream(node, known).await?.with_ticket(ticket))
    })
}

/// The epoch that the node knows, and up to which number it has heard everything: `epoch=…&after=…`, or nothing.
pub(super) fn known(target: &Target) -> Result<Option<(String, u64)>, Refusal> {
    let (mut epoch, mut after) = (None, None);
    for (key, value) in target.pairs()? {
        match key.as_str() {
            "epoch" if plain_epoch(&value) => epoch = Some(value),
            "after" => after = Some(value.parse().map_err(|_| bad("after= is the number of an event"))?),
            _ => return Err(bad(format!("a stream cannot begin by {:?}", cut(&key, 40)))),
        }
    }
    match (epoch, after) {
        (Some(epoch), Some(after)) => Ok(Some((epoch, after))),
        (None, None) => Ok(None),
        _ => Err(bad("epoch= and after= belong together")),
    }
}

impl Server {
    /// `GET /node/v1/stream[?epoch=…&after=…]`.
    pub(super) async fn node_stream(&self, node: Node, known: Option<(String, u64)>) -> Result<Reply, Refusal> {
        self.vending.may_listen(&node).await?;
        let known = known.as_ref().map(|(epoch, after)| (epoch.as_str(), *after));
        let subscription = self.vending.events().subscribe(&node.cluster, known).await?;
        let (entry, replaced) =
            self.streams.enter((node.cluster.clone(), node.name.clone()), self.settings.max_streams_per_node);
        let (sender, body) = mpsc::channel(WAITING_LINES);
        let stopping = self.stopping.clone();
        tracing::debug!(cluster = %node.cluster, node = %node.name, missed = subscription.missed.len(), "stream opened");
        tokio::spawn(async move {
            let why = feed(subscription, &node.name, &sender, replaced, stopping).await;
            tracing::debug!(cluster = %node.cluster, node = %node.name, why, "stream ended");
            drop(entry);
        });
        Ok(answer::lines(Lines(body)))
    }
}

/// Writes events until something ends the stream; says what.
async fn feed(
    subscription: Subscription,
    node: &NodeName,
    to: &mpsc::Sender<Bytes>,
    mut replaced: oneshot::Receiver<()>,
    mut stopping: watch::Receiver<bool>,
) -> &'static str {
    let Subscription { hello, missed, mut news } = subscription;
    let (Event::Hello { seq: mut told, .. } | Event::Ping { seq: mut told }) = hello else { return "no hello" };
    let mut next = Some(written(&hello));
    let mut missed = missed.into_iter();
    let period = Duration::from_secs(PING_SECONDS);
    let mut ping = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        if let Some(line) = next.take() {
            match tokio::time::timeout(WRITE_PATIENCE, to.send(line)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return "the node went away",
                Err(_) => return "the node does not read",
            }
        }
        if let Some(line) = missed.next() {
            told = line.seq;
            next = Some(line.for_node(node));
            continue;
        }
        tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => return "the service stops",
            _ = &mut replaced => return "the node opened others",
            () = to.closed() => return "the node went away",
            event = news.recv() => match event {
                Ok(line) => {
                    told = line.seq;
                    next = Some(line.for_node(node));
                }
                // It reconnects, and learns from the hello that it missed something.
                Err(broadcast::error::RecvError::Lagged(_)) => return "the node is too far behind",
                Err(broadcast::error::RecvError::Closed) => return "the service stops",
            },
            // Of what this stream was told: a higher number would look like a gap.
            _ = ping.tick() => next = Some(written(&Event::Ping { seq: told })),
        }
    }
}

/// A body of lines as they come.
struct Lines(mpsc::Receiver<Bytes>);

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::events::Events;
    use crate::store::sqlite::SqliteStore;
    use crate::store::{News, NewsKind, OrderId};

    fn node() -> (ClusterName, NodeName) {
        ("lab".parse().unwrap(), "n1".parse().unwrap())
    }

    #[test]
    fn a_nodes_new_stream_ends_its_oldest() {
        let streams = Streams::default();
        let (first, mut first_end) = streams.enter(node(), 2);
        let (_second, mut second_end) = streams.enter(node(), 2);
        assert!(first_end.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        let (_third, _) = streams.enter(node(), 2);
        assert!(first_end.try_recv() == Err(oneshot::error::TryRecvError::Closed));
        assert!(second_end.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        drop(first);
        assert_eq!(streams.nodes_of(&"lab".parse().unwrap()), 1);
    }

    #[tokio::test]
    async fn hello_what_was_missed_events_pings_and_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(&dir.path().join("db")).unwrap());
        let events = Events::new(store, Arc::new(SystemClock));
        let (lab, n1) = node();
        let news = |order| News {
            kind: NewsKind::Invalidated,
            sessions: vec![credd_protocol::SessionId::random()],
            reason: "over".into(),
            order,
            nodes: vec![n1.clone()],
            completed: vec![],
        };
        let Event::Hello { epoch, seq: 0 } = events.subscribe(&lab, None).await.unwrap().hello else { panic!() };
        for _ in 0..2 {
            events.publish(&lab, news(None)).await.unwrap();
        }
        let (stop, stopping) = watch::channel(false);
        let (sender, mut lines) = mpsc::channel(4);
        let (_entry, replaced) = Streams::default().enter(node(), 1);
        let subscription = events.subscribe(&lab, Some((&epoch, 1))).await.unwrap();
        let name = n1.clone();
        let task = tokio::spawn(async move { feed(subscription, &name, &sender, replaced, stopping).await });
        let mut line = async || serde_json::from_slice::<Event>(&lines.recv().await.unwrap()).unwrap();
        assert_eq!(line().await, Event::Hello { epoch, seq: 1 });
        assert!(matches!(line().await, Event::Invalidated { seq: 2, answer: false, .. }));
        events.publish(&"hpc".parse().unwrap(), news(None)).await.unwrap();
        events.publish(&lab, news(Some(OrderId::random()))).await.unwrap();
        assert!(matches!(line().await, Event::Invalidated { seq: 3, answer: true, .. }));
        // Nothing of the store is waited for any more.
        tokio::time::pause();
        assert_eq!(line().await, Event::Ping { seq: 3 });
        assert_eq!(line().await, Event::Ping { seq: 3 });
        stop.send(true).unwrap();
        assert_eq!(task.await.unwrap(), "the service stops");
    }
}
