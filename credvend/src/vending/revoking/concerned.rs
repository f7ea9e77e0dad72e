//! Which sessions a revocation is about, and what was issued to them. Names are compared exactly, here too: a store that
//! finds too much must not make a revocation hit a bystander.

use std::collections::{HashMap, HashSet};

use credd_protocol::seed_api::SessionStatus;
use credd_protocol::{RoleArn, SessionId};
use time::{Duration, OffsetDateTime};

use crate::store::{Issuance, IssuedTo, Order, Origin, Session, SessionFilter, StoreError, Subject};
use crate::vending::Vending;

/// The times of two replicas, or of AWS and ours, may differ by so much: within it the session itself is looked at.
const SKEW: Duration = Duration::minutes(5);

/// How many sessions are read at a time.
const AT_ONCE: usize = 64;

impl Vending {
    /// The subject's sessions with this status, or with any, opened at or before a time.
    pub(super) async fn concerned(
        &self,
        order: &Order,
        status: Option<SessionStatus>,
        opened: OffsetDateTime,
    ) -> Result<Vec<Session>, StoreError> {
        let everything = SessionFilter {
            status,
            // The bound itself does not count; times are kept to the microsecond.
            opened_before: Some(opened + Duration::microseconds(1)),
            ..Default::default()
        };
        let mut filters = vec![];
        match &order.subject {
            Subject::User(user) => filters.push(SessionFilter { user: Some(user.clone()), ..everything.clone() }),
            Subject::Project(project) => {
                filters.push(SessionFilter { project: Some(project.clone()), ..everything.clone() });
            }
            Subject::Job(cluster, job) => {
                filters.push(SessionFilter { cluster: Some(cluster.clone()), job: Some(*job), ..everything.clone() })
            }
            Subject::Node(cluster, _) => {
                filters.push(SessionFilter { cluster: Some(cluster.clone()), ..everything.clone() });
            }
            Subject::Role(role) => {
                let map = self.parts.projects.current();
                let has = map.projects.iter().filter(|(_, roles)| roles.values().any(|config| config.arn == *role));
                filters.extend(
                    has.map(|(project, _)| SessionFilter { project: Some(project.clone()), ..everything.clone() }),
                );
            }
        }
        let mut found: HashMap<SessionId, Session> = HashMap::new();
        for filter in filters {
            let mut from = None;
            loop {
                let page = self.parts.store.list(&filter, from.as_ref()).await?;
                let ours = page.items.into_iter().filter(|s| self.is_concerned(order, s) && s.opened <= opened);
                found.extend(ours.map(|session| (session.id, session)));
                match page.next {
                    Some(next) => from = Some(next),
                    None => break,
                }
            }
        }
        for session in self.found_otherwise(order).await? {
            let fits = status.is_none_or(|status| session.status == status) && session.opened <= opened;
            if fits && on_its_clusters(order, &session) {
                found.insert(session.id, session);
            }
        }
        Ok(found.into_values().collect())
    }

    /// Sessions that no filter finds: of a head's job, of a node that joined later, to which a role was issued.
    async fn found_otherwise(&self, order: &Order) -> Result<Vec<Session>, StoreError> {
        let store = &self.parts.store;
        let of = match &order.subject {
            Subject::User(_) | Subject::Project(_) => return Ok(vec![]),
            Subject::Job(cluster, job) => {
                let own = store.find_head(std::slice::from_ref(cluster), &job.to_string()).await?;
                return Ok(own.into_iter().collect());
            }
            Subject::Node(cluster, node) => IssuedTo::Node(cluster.clone(), node.clone()),
            Subject::Role(role) => IssuedTo::Role(role.clone()),
        };
        let mut ids = HashSet::new();
        self.each_living(&of, |issuance| {
            ids.insert(issuance.session);
        })
        .await?;
        let mut sessions = vec![];
        for id in ids {
            sessions.extend(store.get(id).await?);
        }
        Ok(sessions)
    }

    fn is_concerned(&self, order: &Order, session: &Session) -> bool {
        on_its_clusters(order, session)
            && match &order.subject {
                Subject::User(user) => session.user == *user,
                Subject::Project(project) => session.project == *project,
                Subject::Job(cluster, job) => {
                    session.cluster == *cluster && matches!(session.origin, Origin::Slurm(run) if run.job == *job)
                }
                Subject::Node(cluster, node) => session.cluster == *cluster && session.nodes.contains(node),
                // Listed by the projects that have it.
                Subject::Role(_) => true,
            }
    }

    /// Everything that was issued to the subject before the order and still lives, ended jobs' included. `sessions` are
    /// those that the order ended.
    pub(super) async fn issued_to(&self, order: &Order, sessions: &[Session]) -> Result<Vec<Issuance>, StoreError> {
        let mut found: HashMap<(SessionId, String), Issuance> = HashMap::new();
        let mut take = |issuance: Issuance| {
            found.insert((issuance.session, issuance.key_id.clone()), issuance);
        };
        match &order.subject {
            Subject::User(user) => {
                let of = IssuedTo::User(user.clone());
                self.each_living(&of, |i| {
                    if i.user == *user {
                        take(i)
                    }
                })
                .await?;
            }
            Subject::Project(project) => {
                let of = IssuedTo::Project(project.clone());
                self.each_living(&of, |i| {
                    if i.project == *project {
                        take(i)
                    }
                })
                .await?;
            }
            Subject::Role(role) => {
                self.each_living(&IssuedTo::Role(role.clone()), |i| {
                    if i.role_arn == *role {
                        take(i)
                    }
                })
                .await?;
            }
            Subject::Job(..) => {
                for session in self.concerned(order, None, order.at).await? {
                    self.each_living(&IssuedTo::Session(session.id), &mut take).await?;
                }
            }
            Subject::Node(cluster, node) => {
                self.each_living(&IssuedTo::Node(cluster.clone(), node.clone()), &mut take).await?;
                for session in sessions {
                    self.each_living(&IssuedTo::Session(session.id), &mut take).await?;
                }
                for issuance in self.issued_to_whole_jobs(order).await? {
                    take(issuance);
                }
            }
        }
        let clusters = order.clusters.as_ref();
        let mut theirs: HashMap<SessionId, bool> = sessions.iter().map(|s| (s.id, true)).collect();
        let mut issued = vec![];
        for issuance in found.into_values() {
            if clusters.is_some_and(|own| !own.contains(&issuance.cluster)) {
                continue;
            }
            // What a later session got, perhaps under the same name, is none of the order's business.
            let known = theirs.get(&issuance.session).copied();
            let theirs = match known {
                Some(known) => known,
                None if issuance.issued < order.at - SKEW => true,
                None => {
                    let session = self.parts.store.get(issuance.session).await?;
                    let is = session.is_none_or(|s| s.opened <= order.at);
                    theirs.insert(issuance.session, is);
                    is
                }
            };
            if theirs {
                issued.push(issuance);
            }
        }
        Ok(issued)
    }

    /// What was issued for all nodes of a job in common, where the order's node is one of them.
    async fn issued_to_whole_jobs(&self, order: &Order) -> Result<Vec<Issuance>, StoreError> {
        let Subject::Node(cluster, node) = &order.subject else { return Ok(vec![]) };
        let map = self.parts.projects.current();
        let roles: HashSet<RoleArn> = map.projects.values().flat_map(|r| r.values().map(|c| c.arn.clone())).collect();
        let (mut found, mut has_node) = (vec![], HashMap::<SessionId, bool>::new());
        for role in roles {
            let mut common = vec![];
            let of = IssuedTo::Role(role);
            self.each_living(&of, |i| {
                if i.node.is_none() && i.cluster == *cluster {
                    common.push(i)
                }
            })
            .await?;
            for issuance in common {
                let known = has_node.get(&issuance.session).copied();
                let has = match known {
                    Some(known) => known,
                    None => {
                        let session = self.parts.store.get(issuance.session).await?;
                        let has = session.is_some_and(|s| s.nodes.contains(node));
                        has_node.insert(issuance.session, has);
                        has
                    }
                };
                if has {
                    found.push(issuance);
                }
            }
        }
        Ok(found)
    }

    /// The sessions, other than these, that ended before but still have living credentials. Slurm may have lost their jobs
    /// (a slurmctld that was killed forgets) while their processes go on: their nodes must hear of it, too.
    pub(super) async fn ended_earlier(
        &self,
        sessions: &[Session],
        issued: &[Issuance],
    ) -> Result<Vec<Session>, StoreError> {
        let known: HashSet<SessionId> = sessions.iter().map(|s| s.id).collect();
        let others: HashSet<SessionId> = issued.iter().map(|i| i.session).filter(|id| !known.contains(id)).collect();
        let (mut found, mut waiting) = (vec![], others.into_iter());
        loop {
            let mut reads = tokio::task::JoinSet::new();
            for id in waiting.by_ref().take(AT_ONCE) {
                let store = self.parts.store.clone();
                reads.spawn(async move { store.get(id).await });
            }
            if reads.is_empty() {
                return Ok(found);
            }
            while let Some(read) = reads.join_next().await {
                let session = read.map_err(|e| StoreError::Broken(e.to_string()))??;
                found.extend(session.filter(|s| s.status != SessionStatus::Active));
            }
        }
    }

    /// Looks at all issuances of a kind that still live.
    pub(super) async fn each_living(&self, of: &IssuedTo, mut see: impl FnMut(Issuance)) -> Result<(), StoreError> {
        let (now, mut from) = (self.now(), None);
        loop {
            let page = self.parts.store.list_issuances(of, now, from.as_ref()).await?;
            page.items.into_iter().for_each(&mut see);
            match page.next {
                Some(next) => from = Some(next),
                None => return Ok(()),
            }
        }
    }
}

fn on_its_clusters(order: &Order, session: &Session) -> bool {
    order.clusters.as_ref().is_none_or(|own| own.contains(&session.cluster))
}
