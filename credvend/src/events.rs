//! What the nodes are told at once: the source of the standing streams.

use std::sync::atomic::{AtomicU64, Ordering};

use credd_protocol::SessionId;
use credd_protocol::node_api::Event;
use tokio::sync::broadcast;

/// A node that is this many events behind starts anew with a fresh hello.
const BACKLOG: usize = 4096;

/// Numbers events and hands them to every open stream of this process.
pub struct Events {
    epoch: String,
    seq: AtomicU64,
    sender: broadcast::Sender<Event>,
}

impl Events {
    /// A new epoch: what happened before it, nobody can tell.
    pub fn new(epoch: String) -> Self {
        Events { epoch, seq: AtomicU64::new(0), sender: broadcast::Sender::new(BACKLOG) }
    }

    /// Tells every node that a session is over.
    pub fn invalidated(&self, session: SessionId, reason: &str) {
        let seq = self.seq.fetch_add(1, Ordering::SeqCst) + 1;
        // No receiver is no error: nobody hangs on this process.
        let _ = self.sender.send(Event::Invalidated { seq, session, reason: reason.to_owned() });
    }

    /// The first line of a stream, and what follows it.
    pub fn subscribe(&self) -> (Event, broadcast::Receiver<Event>) {
        let receiver = self.sender.subscribe();
        (Event::Hello { epoch: self.epoch.clone(), seq: self.seq() }, receiver)
    }

    /// The newest event's number.
    pub fn seq(&self) -> u64 {
        self.seq.load(Ordering::SeqCst)
    }
}
