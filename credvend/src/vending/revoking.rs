//! Ends what a user has: sessions here, and in AWS what was issued.

use std::collections::{BTreeSet, HashMap};

use credd_protocol::seed_api::SessionStatus;
use credd_protocol::{ClusterName, RoleArn, SessionId, UserName};
use time::{Duration, OffsetDateTime};
use tokio::task::JoinSet;

use super::{RevocationReport, Vending};
use crate::refusal::Refusal;
use crate::store::{Denied, Ended, IssuedTo, Revocation, SessionFilter, StoreError};

/// Tokens that AWS issues this soon after the revocation are denied too: so far may AWS' clock be ahead of ours. Until
/// then nothing is issued under a revoked name (see `issuing`).
const MARGIN: Duration = Duration::seconds(5);

/// How many ends are written at the same time: they share commits.
const AT_ONCE: usize = 64;

/// Sessions may be opened while others are being ended; a user who opens faster than this many listings is reported.
const ROUNDS: usize = 100;

impl Vending {
    /// Ends all of a user's ACTIVE sessions (of `clusters`, or of all where `None`), tells the nodes, and denies in AWS
    /// everything issued to exactly this user that still lives, what ended sessions hold included.
    ///
    /// # Errors
    /// Only when nothing could be done; what is lacking otherwise is in the report.
    pub async fn invalidate_user(
        &self,
        by: &str,
        clusters: Option<&[ClusterName]>,
        user: &UserName,
    ) -> Result<RevocationReport, Refusal> {
        let mut report = RevocationReport::default();
        let why = format!("the credentials of user {user} were revoked by {by}");
        if let Err(e) = self.end_all(clusters, user, &why, &mut report.sessions).await {
            if report.sessions.is_empty() {
                return Err(e.into());
            }
            report.not_denied.push(format!("sessions of {user} may still be open: {e}; revoke again"));
        }
        match self.deny_issued(clusters, user).await {
            Ok(by_role) => {
                for (role, names) in by_role {
                    match self.denying.bring_in_line(&role).await {
                        Ok(()) => report.denied.extend(names.into_iter().map(|name| format!("{role} {name}"))),
                        Err(why) => report.not_denied.push(format!("{role}: {why}")),
                    }
                }
            }
            Err(e) if report.sessions.is_empty() && report.not_denied.is_empty() => return Err(e.into()),
            Err(e) => {
                report.not_denied.push(format!("what was issued to {user} cannot be looked up: {e}; revoke again"))
            }
        }
        tracing::warn!(
            by = ?by, %user, sessions = report.sessions.len(), denied = report.denied.len(),
            not_denied = ?report.not_denied, "user revoked"
        );
        Ok(report)
    }

    /// Until a listing shows none: sessions that are opened meanwhile are ended too.
    async fn end_all(
        &self,
        clusters: Option<&[ClusterName]>,
        user: &UserName,
        why: &str,
        ended: &mut Vec<SessionId>,
    ) -> Result<(), StoreError> {
        let filter =
            SessionFilter { status: Some(SessionStatus::Active), user: Some(user.clone()), ..Default::default() };
        for _ in 0..ROUNDS {
            let mut open = vec![];
            let mut from = None;
            loop {
                let page = self.parts.store.list(&filter, from.as_ref()).await?;
                open.extend(page.items.into_iter().filter(|s| clusters.is_none_or(|own| own.contains(&s.cluster))));
                match page.next {
                    Some(next) => from = Some(next),
                    None => break,
                }
            }
            if open.is_empty() {
                return Ok(());
            }
            for some in open.chunks(AT_ONCE) {
                let mut ends = JoinSet::new();
                for session in some {
                    let (store, id, at, why) = (self.parts.store.clone(), session.id, self.now(), why.to_owned());
                    ends.spawn(async move { store.end(id, SessionStatus::Invalidated, at, &why).await });
                }
                let (mut failed, mut over) = (None, vec![]);
                while let Some(result) = ends.join_next().await {
                    match result {
                        Ok(Ok(Ended::Now(session))) => {
                            self.ended(&session, why);
                            ended.push(session.id);
                            over.push(session);
                        }
                        Ok(Ok(_)) => {}
                        Ok(Err(e)) => failed = Some(e),
                        Err(e) => failed = Some(StoreError::Broken(e.to_string())),
                    }
                }
                self.tell_ended(&over, why).await;
                if let Some(e) = failed {
                    return Err(e);
                }
            }
        }
        Err(StoreError::Unavailable(format!("{user} goes on opening sessions")))
    }

    /// Records a revocation for each role-session name under which something of this user still lives.
    async fn deny_issued(
        &self,
        clusters: Option<&[ClusterName]>,
        user: &UserName,
    ) -> Result<HashMap<RoleArn, BTreeSet<String>>, StoreError> {
        let now = self.now();
        let of = IssuedTo::User(user.clone());
        let mut alive: HashMap<(RoleArn, String), (String, OffsetDateTime)> = HashMap::new();
        let mut from = None;
        loop {
            let page = self.parts.store.list_issuances(&of, now, from.as_ref()).await?;
            for issuance in page.items {
                // The store compares exactly; a revocation that hit a bystander would be worse than a second look.
                if issuance.user != *user || clusters.is_some_and(|own| !own.contains(&issuance.cluster)) {
                    continue;
                }
                let userid = format!("{}:{}", issuance.role_id, issuance.session_name);
                let entry =
                    alive.entry((issuance.role_arn, userid)).or_insert((issuance.session_name, issuance.expires));
                entry.1 = entry.1.max(issuance.expires);
            }
            match page.next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        let mut by_role: HashMap<RoleArn, BTreeSet<String>> = HashMap::new();
        let mut writes = JoinSet::new();
        for ((role_arn, userid), (name, until)) in alive {
            by_role.entry(role_arn.clone()).or_default().insert(name);
            let store = self.parts.store.clone();
            let revocation = Revocation { role_arn, whose: Denied::UserId(userid), issued_before: now + MARGIN, until };
            writes.spawn(async move { store.record_revocation(revocation).await });
            if writes.len() >= AT_ONCE {
                joined(writes.join_next().await)?;
            }
        }
        while !writes.is_empty() {
            joined(writes.join_next().await)?;
        }
        Ok(by_role)
    }

    /// An administrator ends one session. What it was issued lives on until it expires.
    ///
    /// # Errors
    /// An unknown session, a broken store.
    pub async fn close(&self, by: &str, session: SessionId) -> Result<(), Refusal> {
        match self.end(session, SessionStatus::Invalidated, &format!("closed by {by}")).await? {
            Ended::Now(_) | Ended::Before(_) => Ok(()),
            Ended::Unknown => Err(Refusal::UnknownSession(session.to_string())),
        }
    }
}

fn joined(result: Option<Result<Result<(), StoreError>, tokio::task::JoinError>>) -> Result<(), StoreError> {
    match result {
        Some(Ok(result)) => result,
        Some(Err(e)) => Err(StoreError::Broken(e.to_string())),
        None => Ok(()),
    }
}
