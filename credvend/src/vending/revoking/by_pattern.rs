//! Sessions that an upstream's revocation hits by accident.
//!
//! The original IAM Credentials API denies every role-session name that contains the revoked user's name, so revoking `bob` also
//! kills the credentials of `bobby`. credvend knows which of its sessions are hit, and renews their credentials.

use std::collections::{HashMap, HashSet};

use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::{ProjectId, SessionId, UserName};

use super::concerned::SKEW;
use super::dying::{LONGEST_LIFE, bystander, from_upstream};
use super::report::{Bystander, MOST_LISTED};
use crate::store::{Issuance, IssuedTo, OrderId, PAGE, Session, SessionFilter, StoreError};
use crate::vending::Vending;

/// How many pages of a user's ACTIVE sessions, and of those that were INVALIDATED, are read at most.
const MAX_PAGES: usize = 16;

impl Vending {
    /// Renews the credentials of other users that the upstream's revocation of this user killed, and returns their sessions, ACTIVE
    /// ones first. Call it after the upstream has revoked: only credentials that it issues later are safe from the Deny.
    pub(super) async fn renew_hit_by_pattern(
        &self,
        user: &UserName,
        order: Option<OrderId>,
    ) -> Result<Vec<Bystander>, StoreError> {
        let mut hit: HashMap<SessionId, Issuance> = HashMap::new();
        for project in self.projects_of(user).await? {
            self.each_living(&IssuedTo::Project(project), |issuance| {
                if from_upstream(&issuance) && issuance.user != *user && issuance.session_name.contains(user.as_str()) {
                    hit.insert(issuance.session, issuance);
                }
            })
            .await?;
        }
        let mut sessions = self.read_sessions(hit.keys().copied()).await?;
        let found: Vec<(Bystander, Option<Session>)> =
            hit.into_values().map(|issuance| bystander(issuance, &mut sessions)).collect();
        let active: Vec<&Session> = found.iter().filter(|(by, _)| by.active).filter_map(|(_, s)| s.as_ref()).collect();
        if !active.is_empty() {
            let users: HashSet<&str> = active.iter().map(|session| session.user.as_str()).collect();
            tracing::warn!(%user, sessions = active.len(), ?users, "the upstream's revocation has hit others too; they get new credentials");
        }
        self.renew(active.into_iter(), order).await;
        let mut bystanders: Vec<Bystander> = found.into_iter().map(|(bystander, _)| bystander).collect();
        bystanders.sort_by(|a, b| (!a.active, &a.user, a.job, a.session).cmp(&(!b.active, &b.user, b.job, b.session)));
        Ok(bystanders)
    }

    /// The same for revocations that the upstream took only after the order had been answered.
    pub(in crate::vending) async fn renew_hit_late(&self) -> Result<(), StoreError> {
        for user in self.parts.source.revoked_by_pattern() {
            self.renew_hit_by_pattern(&user, None).await?;
        }
        Ok(())
    }

    /// The projects whose roles the upstream may have denied: it denies the roles of the user's sessions that are open there.
    ///
    /// Those are the sessions whose credentials from there still live, and idle ones, whose credentials have expired: they are
    /// ACTIVE here, or the revocation has just INVALIDATED them. A user's COMPLETED sessions, of which there may be hundreds of
    /// thousands, are not read.
    async fn projects_of(&self, user: &UserName) -> Result<HashSet<ProjectId>, StoreError> {
        let mut projects = HashSet::new();
        self.each_living(&IssuedTo::User(user.clone()), |issuance| {
            if from_upstream(&issuance) && issuance.user == *user {
                projects.insert(issuance.project);
            }
        })
        .await?;
        let since = self.now() - LONGEST_LIFE - SKEW;
        for status in [SessionStatus::Active, SessionStatus::Invalidated] {
            let filter = SessionFilter { status: Some(status), user: Some(user.clone()), ..SessionFilter::default() };
            let mut from = None;
            for _ in 0..MAX_PAGES {
                let page = self.parts.store.list(&filter, from.as_ref()).await?;
                let open_lately = |s: &Session| s.user == *user && s.ended.is_none_or(|ended| ended >= since);
                projects.extend(page.items.into_iter().filter(open_lately).map(|session| session.project));
                from = page.next;
                if from.is_none() {
                    break;
                }
            }
            if from.is_some() {
                tracing::warn!(
                    %user, ?status, read = MAX_PAGES * PAGE,
                    "the user has more sessions than are read here: in projects that were not seen, credentials of users whose \
                     names contain this one's may be denied until they are renewed"
                );
            }
        }
        Ok(projects)
    }
}

impl super::RevocationReport {
    /// The report with the sessions that the upstream's pattern hit.
    pub(super) fn with_hit_by_pattern(mut self, hit: Vec<Bystander>) -> Self {
        self.upstream_hit_total = hit.len();
        self.upstream_hit = hit;
        self.upstream_hit.truncate(MOST_LISTED);
        self
    }
}
