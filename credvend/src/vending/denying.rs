//! The roles' Deny policies: a projection of the store's revocations, made again until it is in place.
//!
//! Several replicas and many revocations at a time lose no entry: whoever writes a role's policy holds the role's lease,
//! has read the store after taking it, and reads the store again after writing. A holder that dies loses the lease by
//! time. Should its last write come late and undo a newer one, the next look at IAM, a minute later at most, puts it right.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use credd_protocol::RoleArn;
use time::{Duration, OffsetDateTime};

use super::Parts;
use super::revoking::concerned::SKEW;
use super::revoking::dying::{alive_from, may_kill, names_of};
use crate::audit::Event;
use crate::clock::Clock;
use crate::deny::{Denier, DenyError, policy};
use crate::store::{Denied, IssuedTo, Revocation, Store, StoreError};

/// The first pause after a failure; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::seconds(5);
const LONGEST_PAUSE: Duration = Duration::minutes(10);

/// At start the policies of roles whose last entry expired within this time are looked at too: they may have been left
/// behind by a credvend that was stopped.
const LOOK_BACK: Duration = Duration::days(2);

/// The most roles that are brought in line in one sweep, and how many of them at the same time.
const MAX_ROLES: usize = 32;
const ROLES_AT_ONCE: usize = 8;

/// Policies with living entries are compared with IAM's once in so long, although all seems in line.
const LOOK_AGAIN: Duration = Duration::minutes(1);

/// How long a lease on a role lasts: longer than IAM's calls under it do.
const LEASE: Duration = Duration::seconds(45);

/// A lease that another replica holds is asked for again after this, and so often.
const LEASE_PAUSE: std::time::Duration = std::time::Duration::from_millis(200);
const LEASE_TRIES: usize = 100;

/// A policy with more characters than this has its older entries put together.
const ROOMY: usize = policy::MAX_CHARS / 2;

/// What was issued so long ago is on record, if anybody got it: longer than an AssumeRole may take.
const ON_RECORD: Duration = Duration::seconds(30);

/// How often the store is read again after a write, since more was revoked meanwhile.
const ROUNDS: usize = 16;

pub(super) struct Denying {
    store: Arc<dyn Store>,
    denier: Arc<dyn Denier>,
    clock: Arc<dyn Clock>,
    audit: Arc<crate::audit::Log>,
    /// Which process this is, for leases.
    replica: String,
    turns: Mutex<HashMap<RoleArn, Arc<Turn>>>,
    known: Mutex<Known>,
}

/// One role's policy is made by one at a time; who waited for a making that began after it came shares its outcome.
#[derive(Default)]
struct Turn {
    begun: std::sync::atomic::AtomicU64,
    last: tokio::sync::Mutex<(u64, Option<Result<(), Undone>>)>,
}

/// Why a role's policy is not what the store says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Undone {
    /// A sentence with the remedy.
    pub(super) why: String,
    /// What does not fit; all else is denied. `None`: nothing of it is known to be in force.
    pub(super) left_out: Option<Vec<Denied>>,
    /// The role's policy is not this service's to write at all.
    not_ours: bool,
}

impl Undone {
    /// Nothing of it is known to be in force.
    fn of(why: impl ToString) -> Self {
        Undone { why: why.to_string(), left_out: None, not_ours: false }
    }
}

#[derive(Default)]
struct Known {
    /// What each role's policy has, as far as this process made it, and when that was seen.
    shown: HashMap<RoleArn, (Vec<Revocation>, OffsetDateTime)>,
    /// Of what a role's policy should have, what there was no room for.
    left_out: HashMap<RoleArn, HashSet<Denied>>,
    failed: HashMap<RoleArn, Failed>,
    /// Roles whose policy is somebody else's since an upstream gives their credentials. Said once.
    not_ours: HashSet<RoleArn>,
    looked_back: bool,
}

struct Failed {
    next: OffsetDateTime,
    pause: Duration,
}

impl Denying {
    pub(super) fn new(parts: &Parts, replica: String) -> Self {
        Denying {
            store: parts.store.clone(),
            denier: parts.denier.clone(),
            clock: parts.clock.clone(),
            audit: parts.audit.clone(),
            replica,
            turns: Mutex::default(),
            known: Mutex::default(),
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why this role can never be denied as things are configured.
    pub(super) fn lacks(&self, role: &RoleArn) -> Option<String> {
        self.denier.lacks(role)
    }

    /// Whether these entries are known to be in force by now.
    pub(super) fn has(&self, role: &RoleArn, whose: &[Denied]) -> bool {
        let known = self.known();
        known.shown.get(role).is_some_and(|(shown, _)| whose.iter().all(|w| shown.iter().any(|e| e.whose == *w)))
            && known.left_out.get(role).is_none_or(|left_out| !whose.iter().any(|w| left_out.contains(w)))
    }

    /// Another replica sweeps, and keeps the policies in line: what had no room when this one last made them says nothing.
    pub(super) fn swept_elsewhere(&self) {
        let known = &mut *self.known();
        for (role, _) in known.left_out.drain() {
            known.shown.remove(&role);
        }
    }

    /// For how many of these a role's policy has no room any more.
    pub(super) fn left_out(&self, role: &RoleArn, whose: &[Denied]) -> usize {
        let known = self.known();
        known.left_out.get(role).map_or(0, |left_out| whose.iter().filter(|w| left_out.contains(*w)).count())
    }

    /// The roles whose policies have no room for everything, in words.
    pub(super) fn full(&self) -> Vec<String> {
        let known = self.known();
        let mut full: Vec<String> = known
            .left_out
            .iter()
            .map(|(role, left_out)| {
                let of = known.shown.get(role).map_or(left_out.len(), |(shown, _)| shown.len());
                format!(
                    "{role}: its inline policies have no room for {} of {of} denied names; what was issued under these lives until it expires",
                    left_out.len()
                )
            })
            .collect();
        full.sort();
        full
    }

    /// Makes one role's policy deny what the store says now.
    pub(super) async fn bring_in_line(&self, role: &RoleArn) -> Result<(), Undone> {
        use std::sync::atomic::Ordering::SeqCst;
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|of, turn| of == role || Arc::strong_count(turn) > 1);
            turns.entry(role.clone()).or_default().clone()
        };
        let seen = turn.begun.load(SeqCst);
        let mut last = turn.last.lock().await;
        if let (number, Some(outcome)) = &*last
            && *number > seen
        {
            return outcome.clone();
        }
        let number = turn.begun.fetch_add(1, SeqCst) + 1;
        let outcome = self.make(role).await;
        *last = (number, Some(outcome.clone()));
        outcome
    }

    async fn make(&self, role: &RoleArn) -> Result<(), Undone> {
        let lease = format!("deny:{role}");
        let result = match self.take(&lease).await {
            Ok(()) => {
                let result = self.make_leased(role, &lease).await;
                if let Err(e) = self.store.release(&lease, &self.replica).await {
                    tracing::warn!(%role, error = %e, "the lease on the role's Deny is not given back; it ends by itself");
                }
                result
            }
            Err(why) => Err(Undone::of(why)),
        };
        let mut known = self.known();
        match result {
            Ok((entries, Some(partly))) => {
                let left_out: HashSet<Denied> = partly.left_out.iter().flatten().cloned().collect();
                let of_orders = entries.iter().any(|entry| entry.ordered && left_out.contains(&entry.whose));
                let known_before = known.left_out.insert(role.clone(), left_out).is_some();
                known.shown.insert(role.clone(), (entries, self.clock.now()));
                // Of jobs' leftovers there are more and more: that is said once.
                Err(self.failed(&mut known, role, partly, known_before && !of_orders))
            }
            Ok((entries, None)) => {
                known.failed.remove(role);
                known.left_out.remove(role);
                if known.shown.get(role).is_none_or(|(shown, _)| *shown != entries) {
                    self.audit.note(Event::DenyInForce { role_arn: role, entries: entries.len() });
                    tracing::info!(%role, entries = entries.len(), "the role's Deny is in line with the store");
                }
                known.shown.insert(role.clone(), (entries, self.clock.now()));
                Ok(())
            }
            Err(undone) if undone.not_ours => {
                known.shown.remove(role);
                known.failed.remove(role);
                if known.not_ours.insert(role.clone()) {
                    tracing::warn!(%role, why = undone.why, "what was revoked of the role is not denied from here any more");
                }
                Err(undone)
            }
            Err(undone) => {
                known.shown.remove(role);
                Err(self.failed(&mut known, role, undone, false))
            }
        }
    }

    fn failed(&self, known: &mut Known, role: &RoleArn, undone: Undone, quietly: bool) -> Undone {
        // As long as a policy has no room it is compared with IAM's as any other.
        let longest = if undone.left_out.is_some() { LOOK_AGAIN } else { LONGEST_PAUSE };
        let pause = known.failed.get(role).map_or(FIRST_PAUSE, |f: &Failed| longest.min(f.pause * 2));
        known.failed.insert(role.clone(), Failed { next: self.clock.now() + pause, pause });
        if quietly {
            tracing::debug!(%role, why = undone.why, "the role's Deny still has no room for everything");
        } else {
            self.audit.note(Event::DenyFailed { role_arn: role, why: &undone.why });
            tracing::error!(%role, why = undone.why, again_in = %pause, "the role's Deny is not in line with the store");
        }
        undone
    }

    /// How many roles' policies are not what the store says, as far as this process knows.
    pub(super) fn behind(&self) -> usize {
        self.known().failed.len()
    }

    async fn take(&self, lease: &str) -> Result<(), String> {
        for _ in 0..LEASE_TRIES {
            let now = self.clock.now();
            match self.store.lease(lease, &self.replica, now, now + LEASE).await {
                Ok(true) => return Ok(()),
                Ok(false) => tokio::time::sleep(LEASE_PAUSE).await,
                Err(e) => return Err(e.to_string()),
            }
        }
        Err("another credvend is at work on this role's Deny, or died at it a moment ago; it is tried again".into())
    }

    /// Until the store still says after a write what was written: what that is, and what of it had no room.
    async fn make_leased(&self, role: &RoleArn, lease: &str) -> Result<(Vec<Revocation>, Option<Undone>), Undone> {
        let undone = |e: StoreError| Undone::of(e);
        let mut entries = self.entries(role).await.map_err(undone)?;
        for _ in 0..ROUNDS {
            let roomy = self.put_together(role, &entries).await.map_err(undone)?;
            let projected = self.denier.project(role, &roomy).await;
            let now = self.clock.now();
            let mine = self.store.lease(lease, &self.replica, now, now + LEASE).await.map_err(undone)?;
            let again = self.entries(role).await.map_err(undone)?;
            if mine && again == entries {
                return match projected {
                    Ok(()) => Ok((entries, None)),
                    Err(DenyError::TooLarge { why, left_out }) if !left_out.is_empty() => {
                        Ok((entries, Some(Undone { left_out: Some(left_out), ..Undone::of(why) })))
                    }
                    Err(error @ DenyError::NotOurs(_)) => Err(Undone { not_ours: true, ..Undone::of(error) }),
                    Err(error) => Err(Undone::of(error)),
                };
            }
            if !mine {
                break;
            }
            entries = again;
        }
        Err(Undone::of("more and more is revoked of this role; its Deny is made again soon"))
    }

    /// Gives the older entries one moment, where nothing that lives was issued in between: a policy has room for some 200
    /// names of one moment, and for some 50 moments.
    async fn put_together(&self, role: &RoleArn, entries: &[Revocation]) -> Result<Vec<Revocation>, StoreError> {
        let mut entries = entries.to_vec();
        let now = self.clock.now();
        let old = |entry: &Revocation| alive_from(entry) < now - ON_RECORD;
        let newest_old = entries.iter().filter(|e| old(e)).map(|e| e.issued_before).max();
        let length = policy::compose(&entries, usize::MAX).document.map_or(0, |document| policy::counted(&document));
        let Some(newest_old) = newest_old.filter(|_| length > ROOMY) else { return Ok(entries) };
        let own: HashMap<&Denied, &Revocation> = entries.iter().map(|e| (&e.whose, e)).collect();
        let mut kept: HashSet<Denied> = HashSet::new();
        let mut from = None;
        loop {
            let page = self.store.list_issuances(&IssuedTo::Role(role.clone()), now - SKEW, from.as_ref()).await?;
            for issuance in &page.items {
                let lives = |name: &Denied| own.get(name).is_some_and(|own| !may_kill(own, issuance));
                kept.extend(names_of(issuance).into_iter().filter(lives));
            }
            match page.next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        for entry in entries.iter_mut().filter(|e| old(e) && !kept.contains(&e.whose)) {
            entry.issued_before = newest_old;
        }
        Ok(entries)
    }

    async fn entries(&self, role: &RoleArn) -> Result<Vec<Revocation>, StoreError> {
        let mut entries = self.store.list_revocations(self.clock.now()).await?;
        entries.retain(|entry| entry.role_arn == *role);
        entries.sort_by(|a, b| a.whose.cmp(&b.whose));
        Ok(entries)
    }

    /// Brings in line what is not: entries that expired, failures whose pause is over, what another process left, what
    /// somebody else wrote.
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
        for entries in wanted.values_mut() {
            entries.sort_by(|a, b| a.whose.cmp(&b.whose));
        }
        let due: Vec<RoleArn> = {
            let mut known = self.known();
            // What the first look back found and is done with need not be remembered.
            known.shown.retain(|role, (entries, _)| !entries.is_empty() || wanted.contains_key(role));
            let roles: BTreeSet<&RoleArn> =
                wanted.keys().chain(known.shown.keys()).chain(known.failed.keys()).collect();
            let none = Vec::new();
            let in_line = |role: &RoleArn| {
                let wanted = wanted.get(role).unwrap_or(&none);
                known.shown.get(role).is_some_and(|(shown, at)| {
                    let full = known.left_out.contains_key(role);
                    shown == wanted && !full && (shown.is_empty() || super::fresh(*at, now, LOOK_AGAIN))
                })
            };
            // A policy without room is another one as soon as there are other entries.
            let changed = |role: &RoleArn| {
                let wanted = wanted.get(role).unwrap_or(&none);
                known.left_out.contains_key(role) && known.shown.get(role).is_some_and(|(shown, _)| shown != wanted)
            };
            let mut due: Vec<RoleArn> = roles
                .into_iter()
                .filter(|role| !in_line(role) && !known.not_ours.contains(*role))
                .filter(|role| known.failed.get(*role).is_none_or(|f| f.next <= now) || changed(role))
                .cloned()
                .collect();
            // Those first that waited longest.
            due.sort_by_cached_key(|role| known.shown.get(role).map(|(_, at)| *at));
            due.truncate(MAX_ROLES);
            known.looked_back |= due.len() < MAX_ROLES;
            due
        };
        let places = tokio::sync::Semaphore::new(ROLES_AT_ONCE);
        let in_line = due.iter().map(|role| async {
            // Never closed.
            let _place = places.acquire().await;
            // Logged there; the next sweep after the pause tries again.
            let _ = self.bring_in_line(role).await;
        });
        super::sweeping::all(in_line).await;
        Ok(())
    }
}
