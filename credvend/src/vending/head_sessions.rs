//! Whether a cluster can have sessions that a head opened, so that the store is not asked about tokens that nobody can have.
//!
//! Anybody may send a session token. Where a cluster has a head secret, its sessions are looked up. Where heads could prove
//! themselves by a certificate, as a rule none does, because `client-ca` is there for the nodes' certificates. So the store
//! keeps a note for each cluster, which is read once a second at most.

use std::collections::HashMap;

use credd_protocol::ClusterName;
use credd_protocol::credentials_api_v1::SessionStatus;
use time::{Duration, OffsetDateTime};
use tokio::sync::Mutex;

use super::{Vending, fresh};
use crate::store::{Origin, Session, SessionFilter, Store, StoreError};

/// The kind of the notes; their key is a cluster's name.
const NOTES: &str = "head-sessions";
const OPENED: &str = "opened";
const NONE: &str = "none";

/// How long the note of a cluster without such sessions is relied on: another replica may be the one that opens the first.
const RELIED_ON: Duration = Duration::seconds(1);

/// How long the sessions are not looked through again where none was a head's: a replica of a release that makes no notes may
/// open one, as long as an upgrade lasts.
const LOOKED_THROUGH_FOR: Duration = Duration::minutes(10);

/// What is known of each configured cluster.
pub(super) struct HeadSessions(HashMap<ClusterName, OfCluster>);

#[derive(Default)]
struct OfCluster {
    known: Mutex<Known>,
    /// When this process has looked through the sessions last.
    looked_through: Mutex<Option<OffsetDateTime>>,
}

enum Known {
    /// Nothing: there was no note then. The sweep looks through the sessions and makes one.
    Nothing(Option<OffsetDateTime>),
    /// No head had opened a session then.
    None(OffsetDateTime),
    /// A head has. That stays so.
    Opened,
}

impl Default for Known {
    fn default() -> Self {
        Known::Nothing(None)
    }
}

impl HeadSessions {
    /// Nothing is known yet.
    pub(super) fn new<'c>(clusters: impl Iterator<Item = &'c ClusterName>) -> Self {
        HeadSessions(clusters.map(|name| (name.clone(), OfCluster::default())).collect())
    }
}

impl Vending {
    /// Whether a head may have opened a session of this cluster. `true` where it is not known.
    pub async fn may_have_head_sessions(&self, cluster: &ClusterName) -> bool {
        let Some(of) = self.head_sessions.0.get(cluster) else { return false };
        // Held while asking: one question for all.
        let mut known = of.known.lock().await;
        match *known {
            Known::Opened => return true,
            Known::None(at) if fresh(at, self.now(), RELIED_ON) => return false,
            Known::Nothing(Some(at)) if fresh(at, self.now(), RELIED_ON) => return true,
            Known::None(_) | Known::Nothing(_) => {}
        }
        *known = match self.parts.store.get_note(NOTES, cluster.as_str()).await {
            Ok(Some(note)) if note == NONE => Known::None(self.now()),
            Ok(Some(_)) => Known::Opened,
            // The lookup of the session will say what is wrong with the store.
            Ok(None) | Err(_) => Known::Nothing(Some(self.now())),
        };
        !matches!(*known, Known::None(_))
    }

    /// Opens a head's session in the store, and notes for all replicas that the cluster has one.
    pub(super) async fn open_noted(&self, session: Session) -> Result<crate::store::Opened, StoreError> {
        let cluster = session.cluster.clone();
        let store = &self.parts.store;
        let known = self.head_sessions.0.get(&cluster).map(|of| &of.known);
        let first = match known {
            Some(known) => !matches!(*known.lock().await, Known::Opened),
            None => true,
        };
        if !first {
            return store.open(session).await;
        }
        store.put_note(NOTES, cluster.as_str(), OPENED).await?;
        let opened = store.open(session).await?;
        // Once more: the sweep of another replica may have found no session meanwhile, and noted that.
        store.put_note(NOTES, cluster.as_str(), OPENED).await?;
        if let Some(known) = known {
            *known.lock().await = Known::Opened;
        }
        Ok(opened)
    }

    /// Looks through the sessions of a cluster, seldom, and notes whether a head has opened one of them. Part of the
    /// sweep.
    pub(super) async fn note_head_sessions(&self, cluster: &ClusterName) -> Result<(), StoreError> {
        let Some(of) = self.head_sessions.0.get(cluster) else { return Ok(()) };
        let mut looked_through = of.looked_through.lock().await;
        let is_opened = matches!(*of.known.lock().await, Known::Opened);
        if looked_through.is_some_and(|at| is_opened || fresh(at, self.now(), LOOKED_THROUGH_FOR)) {
            return Ok(());
        }
        let store = self.parts.store.as_ref();
        let note = store.get_note(NOTES, cluster.as_str()).await?;
        let mut opened = note.as_ref().is_some_and(|note| note != NONE) || has_head_sessions(store, cluster).await?;
        if note.is_none() && !opened {
            store.put_note(NOTES, cluster.as_str(), NONE).await?;
            // One may have been opened before the note was there.
            opened = has_head_sessions(store, cluster).await?;
        }
        if opened && note.as_deref() != Some(OPENED) {
            store.put_note(NOTES, cluster.as_str(), OPENED).await?;
        }
        *looked_through = Some(self.now());
        let mut known = of.known.lock().await;
        if !matches!(*known, Known::Opened) {
            *known = if opened { Known::Opened } else { Known::None(self.now()) };
        }
        Ok(())
    }
}

/// Whether a head's session of the cluster is open.
async fn has_head_sessions(store: &dyn Store, cluster: &ClusterName) -> Result<bool, StoreError> {
    let filter = SessionFilter {
        status: Some(SessionStatus::Active),
        cluster: Some(cluster.clone()),
        ..SessionFilter::default()
    };
    let mut from = None;
    loop {
        let page = store.list(&filter, from.as_ref()).await?;
        if page.items.iter().any(|session| matches!(session.origin, Origin::Head { .. })) {
            return Ok(true);
        }
        match page.next {
            Some(next) => from = Some(next),
            None => return Ok(false),
        }
    }
}
