//! What the nodes are told at once: the source of the standing streams. Every cluster's events are its own: numbered by
//! themselves, so that a node that sees each of them sees no gap, and told to no other cluster's nodes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use credd_protocol::node_api::Event;
use credd_protocol::{ClusterName, SessionId};
use tokio::sync::broadcast;

/// A node that is this many events behind starts anew with a fresh hello.
const BACKLOG: usize = 4096;

/// Numbers events and hands them to every open stream of this process.
pub struct Events {
    epoch: String,
    /// As many as there are configured clusters at most: nobody else opens streams or sessions.
    clusters: Mutex<HashMap<ClusterName, OfCluster>>,
}

struct OfCluster {
    seq: u64,
    sender: broadcast::Sender<Event>,
}

impl Events {
    /// A new epoch: what happened before it, nobody can tell.
    pub fn new(epoch: String) -> Self {
        Events { epoch, clusters: Mutex::default() }
    }

    /// Under the lock, so that what is sent and what is numbered is in one order.
    fn of<T>(&self, cluster: &ClusterName, act: impl FnOnce(&mut OfCluster) -> T) -> T {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = clusters.get_mut(cluster) {
            return act(own);
        }
        act(clusters
            .entry(cluster.clone())
            .or_insert_with(|| OfCluster { seq: 0, sender: broadcast::Sender::new(BACKLOG) }))
    }

    /// Tells every node of the cluster that a session is over.
    pub fn invalidated(&self, cluster: &ClusterName, session: SessionId, reason: &str) {
        self.of(cluster, |own| {
            own.seq += 1;
            // No receiver is no error: nobody hangs on this process.
            let _ = own.sender.send(Event::Invalidated { seq: own.seq, session, reason: reason.to_owned() });
        });
    }

    /// The first line of a stream of a node of this cluster, and what follows it.
    pub fn subscribe(&self, cluster: &ClusterName) -> (Event, broadcast::Receiver<Event>) {
        self.of(cluster, |own| (Event::Hello { epoch: self.epoch.clone(), seq: own.seq }, own.sender.subscribe()))
    }

    /// The number of the cluster's newest event.
    pub fn seq(&self, cluster: &ClusterName) -> u64 {
        self.of(cluster, |own| own.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_hears_its_own_events_without_gaps() {
        let events = Events::new("e".into());
        let (lab, hpc) = ("lab".parse().unwrap(), "hpc".parse().unwrap());
        let (_, mut at_lab) = events.subscribe(&lab);
        let (_, mut at_hpc) = events.subscribe(&hpc);
        let sessions = [(&hpc, 1), (&lab, 1), (&hpc, 2), (&lab, 2)].map(|(cluster, seq)| {
            let session = SessionId::random();
            events.invalidated(cluster, session, "r");
            (cluster, Event::Invalidated { seq, session, reason: "r".into() })
        });
        for (cluster, heard) in [(&lab, &mut at_lab), (&hpc, &mut at_hpc)] {
            for (_, event) in sessions.iter().filter(|(of, _)| of == &cluster) {
                assert_eq!(heard.try_recv().as_ref(), Ok(event));
            }
            assert!(heard.try_recv().is_err(), "nothing of another cluster");
            assert_eq!(events.seq(cluster), 2);
        }
    }
}
