//! The roles' Deny policies: a projection of the store's revocations, made again until it is in place.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use credd_protocol::RoleArn;
use time::{Duration, OffsetDateTime};

use super::Parts;
use crate::audit::Event;
use crate::clock::Clock;
use crate::deny::Denier;
use crate::store::{Revocation, Store, StoreError};

/// The first pause after a failure; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::seconds(5);
const LONGEST_PAUSE: Duration = Duration::minutes(10);

/// At start the policies of roles whose last entry expired within this time are looked at too: they may have been left
/// behind by a credvend that was stopped.
const LOOK_BACK: Duration = Duration::days(2);

/// The most roles that are brought in line in one sweep.
const MAX_ROLES: usize = 32;

pub(super) struct Denying {
    store: Arc<dyn Store>,
    denier: Arc<dyn Denier>,
    clock: Arc<dyn Clock>,
    audit: Arc<crate::audit::Log>,
    /// Held while a policy is made: what is written last was read last.
    turn: tokio::sync::Mutex<()>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// What each role's policy has, as far as this process made it.
    shown: HashMap<RoleArn, Vec<Revocation>>,
    failed: HashMap<RoleArn, Failed>,
    looked_back: bool,
}

struct Failed {
    next: OffsetDateTime,
    pause: Duration,
}

impl Denying {
    pub(super) fn new(parts: &Parts) -> Self {
        Denying {
            store: parts.store.clone(),
            denier: parts.denier.clone(),
            clock: parts.clock.clone(),
            audit: parts.audit.clone(),
            turn: tokio::sync::Mutex::default(),
            known: Mutex::default(),
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one role's policy deny what the store says now.
    pub(super) async fn bring_in_line(&self, role: &RoleArn) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        let result: Result<Vec<Revocation>, String> = async {
            let entries = self.store.list_revocations(self.clock.now()).await.map_err(|e| e.to_string())?;
            let entries: Vec<Revocation> = entries.into_iter().filter(|e| e.role_arn == *role).collect();
            self.denier.project(role, &entries).await.map_err(|e| e.to_string())?;
            Ok(entries)
        }
        .await;
        let mut known = self.known();
        match result {
            Ok(entries) => {
                known.failed.remove(role);
                self.audit.note(Event::DenyInForce { role_arn: role, entries: entries.len() });
                tracing::info!(%role, entries = entries.len(), "the role's Deny is in line with the store");
                known.shown.insert(role.clone(), entries);
                Ok(())
            }
            Err(why) => {
                let pause = known.failed.get(role).map_or(FIRST_PAUSE, |f: &Failed| LONGEST_PAUSE.min(f.pause * 2));
                known.failed.insert(role.clone(), Failed { next: self.clock.now() + pause, pause });
                self.audit.note(Event::DenyFailed { role_arn: role, why: &why });
                tracing::error!(%role, %why, again_in = %pause, "the role's Deny is not in line with the store");
                Err(why)
            }
        }
    }

    /// How many roles' policies are not what the store says, as far as this process knows.
    pub(super) fn behind(&self) -> usize {
        self.known().failed.len()
    }

    /// Brings in line what is not: entries that expired, failures whose pause is over, what another process left.
    pub(super) async fn reconcile(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let looked_back = self.known().looked_back;
        let since = if looked_back { now } else { now - LOOK_BACK };
        let mut wanted: BTreeMap<RoleArn, Vec<Revocation>> = BTreeMap::new();
        for entry in self.store.list_revocations(since).await? {
            let entries = wanted.entry(entry.role_arn.clone()).or_default();
            if entry.until > now {
                entries.push(entry);
            }
        }
        let due: Vec<RoleArn> = {
            let mut known = self.known();
            // What the first look back found and is done with need not be remembered.
            known.shown.retain(|role, entries| !entries.is_empty() || wanted.contains_key(role));
            let roles: BTreeSet<&RoleArn> =
                wanted.keys().chain(known.shown.keys()).chain(known.failed.keys()).collect();
            let none = Vec::new();
            let due: Vec<RoleArn> = roles
                .into_iter()
                .filter(|role| known.shown.get(*role) != Some(wanted.get(*role).unwrap_or(&none)))
                .filter(|role| known.failed.get(*role).is_none_or(|f| f.next <= now))
                .take(MAX_ROLES)
                .cloned()
                .collect();
            known.looked_back |= due.len() < MAX_ROLES;
            due
        };
        for role in due {
            // Logged there; the next sweep after the pause tries again.
            let _ = self.bring_in_line(&role).await;
        }
        Ok(())
    }
}
