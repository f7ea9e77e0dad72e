//! Roles with `revoke-on-end`: what a session got dies in AWS when the session ends, however it ends.
//!
//! Ends wait for none of this: they leave their session's id here, and the next sweep works on all of them together. What a
//! crash or another replica left behind is found by looking at what still lives of these roles.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use credd_protocol::{RoleArn, SessionId};
use time::{Duration, OffsetDateTime};

use super::dying::{leftovers, surely_kills};
use crate::store::{Issuance, IssuedTo, Revocation, Session, StoreError};
use crate::vending::{Vending, fresh};

/// The most ends that wait for the sweep; beyond, the look at everything finds them.
const MAX_WAITING: usize = 50_000;

/// Between two looks at everything that lives of these roles.
const LOOK_EVERY: Duration = Duration::minutes(5);

/// Ends that the next sweep works on.
#[derive(Default)]
pub(in crate::vending) struct OnEnd(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    sessions: Vec<SessionId>,
    looked: Option<OffsetDateTime>,
}

impl OnEnd {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vending {
    /// The session has ended just now.
    pub(in crate::vending) fn revoke_on_end(&self, session: &Session) {
        let map = self.parts.projects.current();
        if !map.by_id(&session.project).is_some_and(|roles| roles.values().any(|role| role.revoke_on_end)) {
            return;
        }
        let mut waiting = self.on_end.waiting();
        if waiting.sessions.len() < MAX_WAITING {
            waiting.sessions.push(session.id);
        } else {
            waiting.looked = None;
        }
    }

    /// Denies what ended sessions still hold of these roles.
    pub(in crate::vending) async fn deny_ended(&self) -> Result<(), StoreError> {
        let now = self.now();
        let (sessions, look) = {
            let mut waiting = self.on_end.waiting();
            let look = waiting.looked.is_none_or(|at| !fresh(at, now, LOOK_EVERY));
            (std::mem::take(&mut waiting.sessions), look)
        };
        let result = self.deny_ended_of(&sessions, look).await;
        let mut waiting = self.on_end.waiting();
        match &result {
            Ok(()) if look => waiting.looked = Some(now),
            Ok(()) => {}
            // They are looked for again.
            Err(_) => waiting.looked = None,
        }
        result
    }

    async fn deny_ended_of(&self, sessions: &[SessionId], look: bool) -> Result<(), StoreError> {
        let map = self.parts.projects.current();
        let roles: HashSet<&RoleArn> =
            map.projects.values().flat_map(|r| r.values().filter(|c| c.revoke_on_end).map(|c| &c.arn)).collect();
        let mut issued: Vec<Issuance> = vec![];
        for id in sessions {
            self.each_living(&IssuedTo::Session(*id), |i| issued.push(i)).await?;
        }
        if look {
            for role in &roles {
                self.each_living(&IssuedTo::Role((*role).clone()), |i| issued.push(i)).await?;
            }
        }
        issued.retain(|i| roles.contains(&i.role_arn));
        issued.retain(|i| {
            let config = map.by_id(&i.project).and_then(|roles| roles.get(&i.role));
            config.is_some_and(|config| config.revoke_on_end && config.arn == i.role_arn)
        });
        if issued.is_empty() {
            return Ok(());
        }
        let known = self.parts.store.list_revocations(self.now()).await?;
        let mut by_role: HashMap<&RoleArn, Vec<&Revocation>> = HashMap::new();
        for entry in &known {
            by_role.entry(&entry.role_arn).or_default().push(entry);
        }
        issued.retain(|i| !by_role.get(&i.role_arn).is_some_and(|entries| entries.iter().any(|e| surely_kills(e, i))));
        let mut over: HashMap<SessionId, bool> = sessions.iter().map(|id| (*id, true)).collect();
        let mut theirs = HashSet::new();
        for issuance in &issued {
            let is_over = match over.get(&issuance.session) {
                Some(known) => *known,
                None => {
                    let session = self.parts.store.get(issuance.session).await?;
                    let is = session.is_none_or(|s| super::require_active(&s).is_err());
                    over.insert(issuance.session, is);
                    is
                }
            };
            if is_over {
                theirs.insert(issuance.session);
            }
        }
        let mut dying = leftovers(issued.iter().filter(|i| theirs.contains(&i.session)));
        for one in &mut dying {
            self.align(one, &theirs).await?;
        }
        self.record_dying(&dying).await?;
        let mut hit: HashMap<SessionId, Session> = HashMap::new();
        for one in &dying {
            let found = self.bystanders(one, &theirs).await?;
            let active = found.into_iter().filter(|(bystander, _)| bystander.active).filter_map(|(_, session)| session);
            hit.extend(active.map(|session| (session.id, session)));
        }
        for one in &dying {
            // Logged there; the next sweep after the pause tries again.
            let _ = self.denying.bring_in_line(&one.role).await;
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
}
