//! An upstream of the first version revokes by a pattern: its Deny is on every role-session name in which the user's name
//! occurs, so that `bob` takes `bobby` along. Whom that hits is known here; they are given new credentials.

use std::collections::{HashMap, HashSet};

use credd_protocol::{ProjectId, SessionId, UserName};

use super::dying::{bystander, from_upstream};
use super::report::{Bystander, MOST_LISTED};
use crate::store::{Issuance, IssuedTo, OrderId, Session, SessionFilter, StoreError};
use crate::vending::Vending;

impl Vending {
    /// Gives new credentials to whoever lost theirs to the revocation of a user there, and says who that is, first those
    /// that go on. To be called when the upstream has done it: what it gives from then on lives.
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

    /// The same for revocations that the upstream heard of late.
    pub(in crate::vending) async fn renew_hit_late(&self) -> Result<(), StoreError> {
        for user in self.parts.source.revoked_by_pattern() {
            self.renew_hit_by_pattern(&user, None).await?;
        }
        Ok(())
    }

    /// The projects that a user has had sessions in: the upstream's Deny is on their roles.
    async fn projects_of(&self, user: &UserName) -> Result<HashSet<ProjectId>, StoreError> {
        let filter = SessionFilter { user: Some(user.clone()), ..SessionFilter::default() };
        let (mut projects, mut from) = (HashSet::new(), None);
        loop {
            let page = self.parts.store.list(&filter, from.as_ref()).await?;
            projects.extend(page.items.into_iter().filter(|s| s.user == *user).map(|session| session.project));
            match page.next {
                Some(next) => from = Some(next),
                None => return Ok(projects),
            }
        }
    }
}

impl super::RevocationReport {
    /// With those whom an upstream's pattern hit.
    pub(super) fn with_hit_by_pattern(mut self, hit: Vec<Bystander>) -> Self {
        self.upstream_hit_total = hit.len();
        self.upstream_hit = hit;
        self.upstream_hit.truncate(MOST_LISTED);
        self
    }
}
