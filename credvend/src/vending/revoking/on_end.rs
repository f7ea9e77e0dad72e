//! Roles with `revoke-on-end`: what a session got dies in AWS when the session ends, however it ends.
//!
//! Ends wait for none of this: they leave their session's id here, and within seconds the replica at which they ended puts
//! all of them on record together; the policies follow from the record. What a crash left behind is found by the replica
//! that sweeps, by a look at what still lives of these roles.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::{RoleArn, SessionId};
use time::{Duration, OffsetDateTime};

use super::dying::{leftovers, surely_kills};
use crate::store::{Issuance, IssuedTo, Revocation, Session, StoreError};
use crate::vending::sweeping::all;
use crate::vending::{Vending, fresh};

/// The most ends that wait to be worked on; beyond, the look at everything finds them.
const MAX_WAITING: usize = 50_000;

/// Between two looks at everything that lives of these roles.
const LOOK_EVERY: Duration = Duration::minutes(5);

/// Questions to the store at the same time.
const AT_ONCE: usize = 64;

/// Ends that are to be worked on.
#[derive(Default)]
pub(in crate::vending) struct OnEnd(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    sessions: Vec<SessionId>,
    /// Their denial may be on record, and whoever else it hits may not have been told.
    begun: HashSet<SessionId>,
    /// More ended than could wait.
    missed: bool,
    looked: Option<OffsetDateTime>,
}

impl OnEnd {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, look: bool, now: OffsetDateTime) -> Taken<'_> {
        let mut waiting = self.waiting();
        let look = look && (waiting.missed || waiting.looked.is_none_or(|at| !fresh(at, now, LOOK_EVERY)));
        waiting.missed &= !look;
        let (sessions, begun) = (std::mem::take(&mut waiting.sessions), std::mem::take(&mut waiting.begun));
        Taken { on_end: self, sessions, begun, look, done: false }
    }
}

/// What is being worked on. It goes back if that fails, or is cut off.
struct Taken<'a> {
    on_end: &'a OnEnd,
    sessions: Vec<SessionId>,
    begun: HashSet<SessionId>,
    /// Whether everything that lives of these roles is looked at.
    look: bool,
    done: bool,
}

impl Taken<'_> {
    fn done(mut self, now: OffsetDateTime) {
        self.done = true;
        if self.look {
            self.on_end.waiting().looked = Some(now);
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut waiting = self.on_end.waiting();
        waiting.missed |= self.look;
        for id in self.begun.drain() {
            if waiting.begun.len() < MAX_WAITING {
                waiting.begun.insert(id);
            }
        }
        for id in self.sessions.drain(..) {
            waiting.add(id);
        }
    }
}

impl Waiting {
    fn add(&mut self, id: SessionId) {
        if self.sessions.len() < MAX_WAITING {
            self.sessions.push(id);
        } else {
            self.missed = true;
        }
    }
}

impl Vending {
    /// The session has ended just now.
    pub(in crate::vending) fn revoke_on_end(&self, session: &Session) {
        let map = self.parts.projects.current();
        if map.by_id(&session.project).is_some_and(|roles| roles.values().any(|role| role.revoke_on_end)) {
            self.on_end.waiting().add(session.id);
        }
    }

    /// Puts on record that AWS must deny what sessions still hold of these roles that ended at this replica, and tells who
    /// else is hit by that. Every replica does so every few seconds; the one that sweeps makes the policies.
    ///
    /// # Errors
    /// The store's; then they wait for the next call.
    pub async fn deny_ended_here(&self) -> Result<(), StoreError> {
        self.deny_ended(false).await
    }

    /// The same, and from time to time (`look`) for what ended anywhere.
    pub(in crate::vending) async fn deny_ended(&self, look: bool) -> Result<(), StoreError> {
        let now = self.now();
        let mut taken = self.on_end.take(look, now);
        self.deny_taken(&mut taken).await?;
        taken.done(now);
        Ok(())
    }

    async fn deny_taken(&self, taken: &mut Taken<'_>) -> Result<(), StoreError> {
        let mut over: HashMap<SessionId, bool> =
            taken.sessions.iter().chain(&taken.begun).map(|id| (*id, true)).collect();
        if over.is_empty() && !taken.look {
            return Ok(());
        }
        let issued = self.issued_to_ended(taken, &mut over).await?;
        let theirs: HashSet<SessionId> = issued.iter().map(|i| i.session).collect();
        let mut dying = leftovers(issued.iter());
        for one in &mut dying {
            self.align(one, &theirs).await?;
        }
        taken.begun.extend(theirs.iter().copied());
        self.record_dying(&dying).await?;
        // Listed after the entries are stored: who gets something meanwhile either sees them, or is seen here.
        let mut hit: HashMap<SessionId, Session> = HashMap::new();
        for found in all(dying.iter().map(|one| self.bystanders(one, &theirs))).await {
            let active =
                found?.into_iter().filter(|(bystander, _)| bystander.active).filter_map(|(_, session)| session);
            hit.extend(active.map(|session| (session.id, session)));
        }
        if !hit.is_empty() {
            tracing::info!(
                sessions = hit.len(),
                "a job's end took credentials of others of the same name; they get new ones"
            );
            self.renew(hit.values(), None).await;
        }
        Ok(())
    }

    /// What lives of these roles and was issued to ended sessions, except what is denied for certain.
    async fn issued_to_ended(
        &self,
        taken: &Taken<'_>,
        over: &mut HashMap<SessionId, bool>,
    ) -> Result<Vec<Issuance>, StoreError> {
        let map = self.parts.projects.current();
        let mut wanted: Vec<IssuedTo> = over.keys().map(|id| IssuedTo::Session(*id)).collect();
        if taken.look {
            let roles: HashSet<&RoleArn> =
                map.projects.values().flat_map(|r| r.values().filter(|c| c.revoke_on_end).map(|c| &c.arn)).collect();
            wanted.extend(roles.into_iter().map(|role| IssuedTo::Role(role.clone())));
        }
        let mut issued: Vec<Issuance> = vec![];
        for some in wanted.chunks(AT_ONCE) {
            let questions = some.iter().map(|of| async move {
                let mut found = vec![];
                self.each_living(of, |i| found.push(i)).await.map(|()| found)
            });
            for found in all(questions).await {
                issued.extend(found?);
            }
        }
        issued.retain(|i| {
            let config = map.by_id(&i.project).and_then(|roles| roles.get(&i.role));
            config.is_some_and(|config| config.revoke_on_end && config.arn == i.role_arn)
        });
        if issued.is_empty() {
            return Ok(issued);
        }
        let known = self.parts.store.list_revocations(self.now()).await?;
        let mut by_role: HashMap<&RoleArn, Vec<&Revocation>> = HashMap::new();
        for entry in &known {
            by_role.entry(&entry.role_arn).or_default().push(entry);
        }
        issued.retain(|i| {
            taken.begun.contains(&i.session)
                || !by_role.get(&i.role_arn).is_some_and(|entries| entries.iter().any(|e| surely_kills(e, i)))
        });
        let unknown: HashSet<SessionId> =
            issued.iter().map(|i| i.session).filter(|id| !over.contains_key(id)).collect();
        for some in unknown.into_iter().collect::<Vec<_>>().chunks(AT_ONCE) {
            let questions = some.iter().map(|id| async move { (*id, self.parts.store.status(*id).await) });
            for (id, status) in all(questions).await {
                over.insert(id, status?.is_none_or(|(status, _)| status != SessionStatus::Active));
            }
        }
        issued.retain(|i| over.get(&i.session).is_some_and(|over| *over));
        Ok(issued)
    }
}
