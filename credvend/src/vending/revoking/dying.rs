//! What AWS must deny for a revocation: under which names, up to which moment, and who else is hit by that.
//!
//! The moment is AWS' own: an issuance's time is what AWS' expiry tells, so that neither the distance of two clocks nor a
//! margin for it kills what is issued after the revocation.

use std::collections::{BTreeMap, HashMap, HashSet};

use credd_protocol::credentials::rfc3339_z;
use credd_protocol::{RoleArn, SessionId};
use time::{Duration, OffsetDateTime};

use super::concerned::SKEW;
use super::report::{Bystander, RoleReport};
use crate::deny::policy::up_to_second;
use crate::store::{Denied, Issuance, IssuedTo, Order, Origin, Revocation, Session, StoreError, Subject};
use crate::vending::Vending;

/// A Deny names a moment this long after the newest of what it must kill: one second because a token's issue time may be
/// the next whole one, and one because the moment itself is not denied.
const PAST: Duration = Duration::seconds(2);

/// Whatever was issued under a name before a Deny's moment and this is taken for dead.
const DOUBT: Duration = Duration::SECOND;

/// No credentials live longer (AssumeRole's limit).
pub(super) const LONGEST_LIFE: Duration = Duration::hours(12);

/// How many writes go to the store at a time: they share commits.
const AT_ONCE: usize = 64;

/// What AWS must deny of one role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dying {
    pub(super) role: RoleArn,
    pub(super) whose: BTreeMap<Denied, Fate>,
    /// How many sets of credentials of the subject.
    credentials: usize,
    /// Whether somebody ordered it.
    ordered: bool,
}

/// What happens to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fate {
    /// What was issued before this dies.
    before: OffsetDateTime,
    /// When the last of it has expired by itself, by whichever clock.
    until: OffsetDateTime,
}

impl Dying {
    fn of(role: &RoleArn) -> Self {
        Dying { role: role.clone(), whose: BTreeMap::new(), credentials: 0, ordered: true }
    }

    /// One more set of credentials must die, by this name.
    pub(super) fn add(&mut self, issuance: &Issuance, whose: Denied) {
        let fate = Fate { before: issuance.issued + PAST, until: issuance.expires + SKEW };
        let known = self.whose.entry(whose).or_insert(fate);
        *known = Fate { before: known.before.max(fate.before), until: known.until.max(fate.until) };
        self.credentials += 1;
    }

    pub(super) fn revocations(&self) -> impl Iterator<Item = Revocation> + '_ {
        self.whose.iter().map(|(whose, fate)| Revocation {
            role_arn: self.role.clone(),
            whose: whose.clone(),
            issued_before: fate.before,
            until: fate.until,
            ordered: self.ordered,
        })
    }

    fn newest(&self) -> OffsetDateTime {
        self.whose.values().map(|fate| fate.before).max().unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    pub(super) fn report(&self, bystanders: Vec<Bystander>) -> RoleReport {
        RoleReport {
            role_arn: self.role.clone(),
            denied: self.whose.keys().cloned().collect(),
            denied_total: 0,
            issued_before: up_to_second(self.newest()),
            credentials: self.credentials,
            bystanders,
            bystanders_total: 0,
            in_force: false,
            why_not: None,
        }
        .bounded()
    }
}

/// `aws:userid` of what was issued.
fn userid(issuance: &Issuance) -> String {
    format!("{}:{}", issuance.role_id, issuance.session_name)
}

/// The exact name of what was issued.
pub(super) fn exactly(issuance: &Issuance) -> Denied {
    Denied::UserId(userid(issuance))
}

/// Every name by which a Deny may hit what was issued.
pub(in crate::vending) fn names_of(issuance: &Issuance) -> Vec<Denied> {
    let identity = issuance.source_identity.clone().map(Denied::SourceIdentity);
    [Denied::Everyone, exactly(issuance)].into_iter().chain(identity).collect()
}

fn is_of(entry: &Revocation, issuance: &Issuance) -> bool {
    entry.role_arn == issuance.role_arn
        && match &entry.whose {
            Denied::UserId(id) => *id == userid(issuance),
            Denied::SourceIdentity(name) => issuance.source_identity.as_ref() == Some(name),
            Denied::Everyone => true,
        }
}

/// Whether an entry kills what was issued, or may do.
pub(in crate::vending) fn may_kill(entry: &Revocation, issuance: &Issuance) -> bool {
    issuance.issued < alive_from(entry) && is_of(entry, issuance)
}

/// Whether an entry kills what was issued, for certain.
pub(super) fn surely_kills(entry: &Revocation, issuance: &Issuance) -> bool {
    issuance.issued + DOUBT < up_to_second(entry.issued_before) && is_of(entry, issuance)
}

/// What is issued from then on an entry does not kill, for certain.
pub(in crate::vending) fn alive_from(entry: &Revocation) -> OffsetDateTime {
    up_to_second(entry.issued_before) + DOUBT
}

/// Whether an upstream gave it, under a name that it alone knows, of a role whose policy is its own.
pub(super) fn from_upstream(issuance: &Issuance) -> bool {
    issuance.role_id.is_empty()
}

/// How many sets of credentials an upstream gave, which alone can deny them.
pub(super) fn upstream_gave(issued: &[Issuance]) -> usize {
    issued.iter().filter(|issuance| from_upstream(issuance)).count()
}

/// What lives on where an upstream denies only what ACTIVE sessions have: its credentials of other sessions than those that
/// the order ended.
pub(super) fn outlives(sessions: &[Session], issued: &[Issuance]) -> Option<String> {
    let ended_now: HashSet<SessionId> = sessions.iter().map(|session| session.id).collect();
    let of_ended = issued.iter().filter(|i| from_upstream(i) && !ended_now.contains(&i.session));
    let until: Vec<OffsetDateTime> = of_ended.map(|issuance| issuance.expires).collect();
    let last = until.iter().max()?;
    Some(format!(
        "{} sets of credentials that the upstream gave to sessions which had ended before may live until {}: it denies what \
         ACTIVE sessions have, and has not said that it denies more; its administrators must do it",
        until.len(),
        rfc3339_z::format(*last)
    ))
}

/// What lives on since an upstream gave it, and its API revokes users only.
pub(super) fn beyond_reach(order: &Order, issued: &[Issuance]) -> Option<String> {
    let count = upstream_gave(issued);
    (count > 0 && !matches!(order.subject, Subject::User(_))).then(|| {
        format!(
            "{count} sets of credentials that the upstream gave live until they expire: its API revokes the credentials of users only (credvend revoke --user)"
        )
    })
}

/// What must be denied so that all of `issued` is dead: by source identity where that is exact, else by user id, or the
/// whole role.
pub(super) fn dying(order: &Order, issued: &[Issuance], now: OffsetDateTime) -> Vec<Dying> {
    // A source identity names a user everywhere: too much for what is meant for one cluster, or one job.
    let by_identity = matches!(order.subject, Subject::User(_)) && order.clusters.is_none();
    let mut roles: BTreeMap<&RoleArn, Dying> = BTreeMap::new();
    if let Subject::Role(role) = &order.subject
        && order.wide
    {
        roles.insert(role, Dying::of(role));
    }
    for issuance in issued.iter().filter(|issuance| !from_upstream(issuance)) {
        let whose = match &issuance.source_identity {
            _ if order.wide => Denied::Everyone,
            Some(name) if by_identity => Denied::SourceIdentity(name.clone()),
            _ => exactly(issuance),
        };
        roles.entry(&issuance.role_arn).or_insert_with(|| Dying::of(&issuance.role_arn)).add(issuance, whose);
    }
    let mut roles: Vec<Dying> = roles.into_values().collect();
    for dying in roles.iter_mut().filter(|_| order.wide) {
        // Also what nobody recorded.
        let before = dying.newest().max(now + PAST);
        dying.whose = BTreeMap::from([(Denied::Everyone, Fate { before, until: now + LONGEST_LIFE + SKEW })]);
    }
    roles
}

/// What ended sessions still hold, by its exact names.
pub(super) fn leftovers<'i>(issued: impl Iterator<Item = &'i Issuance>) -> Vec<Dying> {
    let mut roles: BTreeMap<&RoleArn, Dying> = BTreeMap::new();
    for issuance in issued {
        roles
            .entry(&issuance.role_arn)
            .or_insert_with(|| Dying { ordered: false, ..Dying::of(&issuance.role_arn) })
            .add(issuance, exactly(issuance));
    }
    roles.into_values().collect()
}

impl Vending {
    /// Stores what AWS must deny.
    pub(super) async fn record_dying(&self, dying: &[Dying]) -> Result<(), StoreError> {
        let mut writes = tokio::task::JoinSet::new();
        for revocation in dying.iter().flat_map(Dying::revocations) {
            let store = self.parts.store.clone();
            writes.spawn(async move { store.record_revocation(revocation).await });
            if writes.len() >= AT_ONCE {
                super::joined(writes.join_next().await)?;
            }
        }
        while !writes.is_empty() {
            super::joined(writes.join_next().await)?;
        }
        Ok(())
    }

    /// Gives all names of a role one moment, where that kills nobody else's: a policy has room for many names of one moment,
    /// and for few moments.
    pub(super) async fn align(&self, dying: &mut Dying, theirs: &HashSet<SessionId>) -> Result<(), StoreError> {
        let newest = dying.newest();
        if dying.whose.values().all(|fate| fate.before == newest) {
            return Ok(());
        }
        let aligned = Dying {
            whose: dying.whose.iter().map(|(whose, fate)| (whose.clone(), Fate { before: newest, ..*fate })).collect(),
            ..dying.clone()
        };
        let own: HashMap<Denied, Revocation> = dying.revocations().map(|e| (e.whose.clone(), e)).collect();
        let mut kept: HashSet<Denied> = HashSet::new();
        self.each_hit(&aligned, theirs, |entry, issuance| {
            if own.get(&entry.whose).is_some_and(|own| !may_kill(own, &issuance)) {
                kept.insert(entry.whose.clone());
            }
        })
        .await?;
        for (whose, fate) in &mut dying.whose {
            if !kept.contains(whose) {
                fate.before = newest;
            }
        }
        Ok(())
    }

    /// What is hit although it is of other sessions than `theirs`, and by which entry.
    async fn each_hit(
        &self,
        dying: &Dying,
        theirs: &HashSet<SessionId>,
        mut see: impl FnMut(&Revocation, Issuance),
    ) -> Result<(), StoreError> {
        let by_name: HashMap<Denied, Revocation> = dying.revocations().map(|e| (e.whose.clone(), e)).collect();
        self.each_living(&IssuedTo::Role(dying.role.clone()), |issuance| {
            if theirs.contains(&issuance.session) {
                return;
            }
            let names = names_of(&issuance);
            let entry = names.iter().filter_map(|name| by_name.get(name)).find(|entry| may_kill(entry, &issuance));
            if let Some(entry) = entry {
                see(entry, issuance);
            }
        })
        .await
    }

    /// The sessions, other than `theirs`, that lose something to a Deny: those of the same user on the same node, as a rule.
    pub(super) async fn bystanders(
        &self,
        dying: &Dying,
        theirs: &HashSet<SessionId>,
    ) -> Result<Vec<(Bystander, Option<Session>)>, StoreError> {
        let mut hit: HashMap<SessionId, Issuance> = HashMap::new();
        self.each_hit(dying, theirs, |_, issuance| {
            hit.insert(issuance.session, issuance);
        })
        .await?;
        let mut sessions = self.read_sessions(hit.keys().copied()).await?;
        let mut bystanders = vec![];
        for issuance in hit.into_values() {
            bystanders.push(bystander(issuance, &mut sessions));
        }
        bystanders.sort_by(|(a, _), (b, _)| (&a.user, a.job, a.session).cmp(&(&b.user, b.job, b.session)));
        Ok(bystanders)
    }
}

/// Somebody to whom this was issued, with the session if the store has it.
pub(super) fn bystander(
    issuance: Issuance,
    sessions: &mut HashMap<SessionId, Session>,
) -> (Bystander, Option<Session>) {
    let session = sessions.remove(&issuance.session);
    let job = session.as_ref().and_then(|s| match s.origin {
        Origin::Slurm(run) => Some(run.job),
        Origin::Head { .. } => None,
    });
    let active = session.as_ref().is_some_and(|s| super::require_active(s).is_ok());
    let Issuance { session: id, user, cluster, .. } = issuance;
    (Bystander { session: id, user, cluster, job, active }, session)
}
