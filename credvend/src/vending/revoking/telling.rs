//! What the nodes are told of a revocation, and who of them has answered.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use credd_protocol::{ClusterName, NodeName, SessionId};
use time::OffsetDateTime;

use super::report::{NodesReport, UnheardNode};
use crate::store::{Issuance, NEWS_SESSIONS, News, NewsKind, OrderId, Session};
use crate::vending::Vending;

/// How long a revocation waits for the nodes.
const ANSWERS: Duration = Duration::from_secs(2);

/// Until when each node may hold something of the sessions.
pub(super) type Holders = BTreeMap<(ClusterName, NodeName), OffsetDateTime>;

/// The nodes that may hold living credentials of these sessions.
pub(super) fn holders<'s>(sessions: impl IntoIterator<Item = &'s Session>, issued: &[Issuance]) -> Holders {
    let sessions: HashMap<SessionId, &Session> = sessions.into_iter().map(|s| (s.id, s)).collect();
    let mut holders = Holders::new();
    for issuance in issued {
        let Some(session) = sessions.get(&issuance.session) else { continue };
        let common = if issuance.node.is_none() { &session.nodes[..] } else { &[] };
        for node in issuance.node.iter().chain(common) {
            let until = holders.entry((session.cluster.clone(), node.clone())).or_insert(issuance.expires);
            *until = issuance.expires.max(*until);
        }
    }
    holders
}

/// Whether a session is the last one of its cluster's.
pub(super) fn is_last(sessions: &[Session], session: &Session) -> bool {
    sessions.iter().rfind(|other| other.cluster == session.cluster).is_some_and(|last| last.id == session.id)
}

impl Vending {
    /// Tells the nodes of each cluster what became of its sessions. False: not all of it is stored yet, and nobody is asked
    /// to answer.
    pub(super) async fn tell<'s>(
        &self,
        kind: NewsKind,
        sessions: impl IntoIterator<Item = &'s Session>,
        reason: &str,
        order: Option<OrderId>,
        holders: &Holders,
    ) -> bool {
        let mut all_stored = true;
        let mut by_cluster: BTreeMap<&ClusterName, Vec<SessionId>> = BTreeMap::new();
        for session in sessions {
            by_cluster.entry(&session.cluster).or_default().push(session.id);
        }
        for (cluster, sessions) in by_cluster {
            let nodes: Vec<NodeName> =
                holders.keys().filter(|(of, _)| of == cluster).map(|(_, node)| node.clone()).collect();
            let chunks: Vec<&[SessionId]> = sessions.chunks(NEWS_SESSIONS).collect();
            let mut stored = true;
            for (at, some) in chunks.iter().enumerate() {
                // In order: who has heard the last has heard all.
                let asked = if at + 1 == chunks.len() && stored { nodes.clone() } else { vec![] };
                let (sessions, reason) = (some.to_vec(), reason.to_owned());
                let news = News { kind, sessions, reason, order, nodes: asked, completed: vec![] };
                stored &= self.parts.events.publish_or_keep(cluster, news).await;
            }
            all_stored &= stored;
        }
        all_stored
    }

    /// Waits for the holders' answers, but not for long.
    pub(super) async fn answered(&self, order: OrderId, holders: &Holders) -> NodesReport {
        let concerned: HashSet<(ClusterName, NodeName)> = holders.keys().cloned().collect();
        if concerned.is_empty() {
            return NodesReport::default();
        }
        let heard = self.parts.events.answers(order, &concerned, ANSWERS).await;
        let unheard = holders
            .iter()
            .filter(|(place, _)| !heard.contains(place))
            .map(|((cluster, node), until)| UnheardNode {
                cluster: cluster.clone(),
                node: node.clone(),
                may_serve_until: *until,
            })
            .collect();
        NodesReport::new(&heard.into_iter().filter(|place| concerned.contains(place)).collect(), unheard)
    }
}
