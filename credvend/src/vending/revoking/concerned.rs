//! Which sessions a revocation is about, and what was issued to them. Names are compared exactly, here too: a store that
//! finds too much must not make a revocation hit a bystander.

use std::collections::{HashMap, HashSet};

use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::{RoleArn, SessionId};
use time::{Duration, OffsetDateTime};
use tokio::task::JoinSet;

use crate::store::{Issuance, IssuedTo, Order, Origin, Session, SessionFilter, StoreError, Subject};
use crate::vending::Vending;
use crate::vending::sweeping::all;

/// The clocks of two replicas, or AWS' and ours, may be so far apart: within it a session is not told by its time alone.
pub(in crate::vending) const SKEW: Duration = Duration::minutes(5);

/// How many reads go to the store at a time.
const AT_ONCE: usize = 64;

impl Vending {
    /// The subject's sessions with this status, or with any, opened at or before a time.
    pub(super) async fn concerned(
        &self,
        order: &Order,
        status: Option<SessionStatus>,
        opened: OffsetDateTime,
    ) -> Result<Vec<Session>, StoreError> {
        let mut found = self.listed(order, status, opened).await?;
        let mut known = found.iter().map(|session| session.id).collect();
        found.extend(self.found_otherwise(order, status, opened, &mut known).await?);
        Ok(found)
    }

    /// Those of them that a listing of sessions shows.
    pub(super) async fn listed(
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
        Ok(found.into_values().collect())
    }

    /// Those that no listing of sessions shows: of a head's job, of a node that joined later, to which a role was issued.
    /// The `settled` are not read again, and who need not be next time is added to them; not yet those that are returned.
    pub(super) async fn found_otherwise(
        &self,
        order: &Order,
        status: Option<SessionStatus>,
        opened: OffsetDateTime,
        settled: &mut HashSet<SessionId>,
    ) -> Result<Vec<Session>, StoreError> {
        let mut ids = HashSet::new();
        let mut see = |issuance: Issuance| {
            if !settled.contains(&issuance.session) {
                ids.insert(issuance.session);
            }
        };
        let mut found: Vec<Session> = vec![];
        match &order.subject {
            Subject::User(_) | Subject::Project(_) => {}
            Subject::Job(cluster, job) => {
                found.extend(self.parts.store.find_head(std::slice::from_ref(cluster), &job.to_string()).await?);
            }
            Subject::Node(cluster, node) => {
                self.each_living(&IssuedTo::Node(cluster.clone(), node.clone()), &mut see).await?;
            }
            Subject::Role(role) => self.each_living(&IssuedTo::Role(role.clone()), &mut see).await?,
        }
        found.extend(self.read_sessions(ids).await?.into_values());
        found.retain(|session| {
            let fits = status.is_none_or(|status| session.status == status)
                && session.opened <= opened
                && on_its_clusters(order, session);
            if !fits {
                // What has ended, or begun too late, has done so for good.
                settled.insert(session.id);
            }
            fits
        });
        Ok(found)
    }

    /// These sessions, as far as the store has them, many at a time.
    pub(super) async fn read_sessions(
        &self,
        ids: impl IntoIterator<Item = SessionId>,
    ) -> Result<HashMap<SessionId, Session>, StoreError> {
        let (mut ids, mut reads, mut found) = (ids.into_iter(), JoinSet::new(), HashMap::new());
        loop {
            for id in ids.by_ref().take(AT_ONCE - reads.len()) {
                let store = self.parts.store.clone();
                reads.spawn(async move { store.get(id).await });
            }
            let Some(read) = reads.join_next().await else { return Ok(found) };
            let session = read.map_err(|e| StoreError::Broken(e.to_string()))??;
            found.extend(session.map(|session| (session.id, session)));
        }
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
                let runs = self.concerned(order, None, order.at + SKEW).await?;
                self.issued_to_sessions(&runs).await?.into_iter().for_each(take);
            }
            Subject::Node(cluster, node) => {
                self.each_living(&IssuedTo::Node(cluster.clone(), node.clone()), &mut take).await?;
                self.issued_to_sessions(sessions).await?.into_iter().for_each(&mut take);
                self.issued_to_whole_jobs(order).await?.into_iter().for_each(take);
            }
        }
        if let Some(clusters) = &order.clusters {
            found.retain(|_, issuance| clusters.contains(&issuance.cluster));
        }
        // What a later session got, perhaps under the same name, is none of the order's business.
        let ended: HashSet<SessionId> = sessions.iter().map(|s| s.id).collect();
        let surely = |i: &Issuance| ended.contains(&i.session) || i.issued < order.at - SKEW;
        let doubtful: HashSet<SessionId> = found.values().filter(|i| !surely(i)).map(|i| i.session).collect();
        let doubtful = self.read_sessions(doubtful).await?;
        let earlier = |i: &Issuance| {
            doubtful.get(&i.session).is_none_or(|session| {
                // By the clock of the replica that opened it, or, if it has ended already, by AWS'.
                session.opened <= order.at || (session.status != SessionStatus::Active && i.issued <= order.at)
            })
        };
        Ok(found.into_values().filter(|i| surely(i) || earlier(i)).collect())
    }

    async fn issued_to_sessions(&self, sessions: &[Session]) -> Result<Vec<Issuance>, StoreError> {
        let mut issued = vec![];
        for some in sessions.chunks(AT_ONCE) {
            let lists = some.iter().map(|session| async {
                let (of, mut own) = (IssuedTo::Session(session.id), vec![]);
                self.each_living(&of, |issuance| own.push(issuance)).await?;
                Ok::<_, StoreError>(own)
            });
            for list in all(lists).await {
                issued.extend(list?);
            }
        }
        Ok(issued)
    }

    /// What was issued for all nodes of a job in common, where the order's node is one of them.
    async fn issued_to_whole_jobs(&self, order: &Order) -> Result<Vec<Issuance>, StoreError> {
        let Subject::Node(cluster, node) = &order.subject else { return Ok(vec![]) };
        let map = self.parts.projects.current();
        let roles: HashSet<RoleArn> = map.projects.values().flat_map(|r| r.values().map(|c| c.arn.clone())).collect();
        let roles: Vec<RoleArn> = roles.into_iter().collect();
        let mut common: Vec<Issuance> = vec![];
        for some in roles.chunks(AT_ONCE) {
            let lists = some.iter().map(|role| async {
                let (of, mut own) = (IssuedTo::Role(role.clone()), vec![]);
                self.each_living(&of, |i| {
                    if i.node.is_none() && i.cluster == *cluster {
                        own.push(i)
                    }
                })
                .await?;
                Ok::<_, StoreError>(own)
            });
            for list in all(lists).await {
                common.extend(list?);
            }
        }
        let sessions = self.read_sessions(common.iter().map(|i| i.session).collect::<HashSet<_>>()).await?;
        common.retain(|i| sessions.get(&i.session).is_some_and(|session| session.nodes.contains(node)));
        Ok(common)
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
        let read = self.read_sessions(others).await?;
        Ok(read.into_values().filter(|s| s.status != SessionStatus::Active).collect())
    }

    /// Looks at all issuances of a kind that still live, by whichever clock.
    pub(super) async fn each_living(&self, of: &IssuedTo, mut see: impl FnMut(Issuance)) -> Result<(), StoreError> {
        let (alive_at, mut from) = (self.now() - SKEW, None);
        loop {
            let page = self.parts.store.list_issuances(of, alive_at, from.as_ref()).await?;
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
