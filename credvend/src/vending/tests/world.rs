//! A small world: cluster `lab` with nodes n1, n2; alice and bob; projects genomics and climate.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use credd_protocol::credentials::Credentials;
use credd_protocol::node_api::{
    CredentialsRequest, CredentialsResponse, Event, HeardRequest, OpenRequest, OpenResponse,
};
use credd_protocol::{ClusterName, JobId, NodeName, ProjectId, RoleArn, Secret, SessionId, Uid, UserName};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use tokio::sync::{broadcast, watch};

use crate::attest::{Answer, AttestError, Attestor, JobFacts, JobState, Site};
use crate::audit;
use crate::clock::Clock;
use crate::deny::{Denier, DenyError, policy};
use crate::events::{Events, Line};
use crate::projects::{ProjectMap, Projects, Role};
use crate::refusal::Refusal;
use crate::session_name::Names;
use crate::source::{AssumeRequest, Assumed, Revoked, Source, SourceError};
use crate::store::conformance::T0;
use crate::store::sqlite::SqliteStore;
use crate::store::{Revocation, Session, Store};
use crate::vending::{AddressCheck, Cluster, Head, Node, NodeAddresses, Parts, Vending};

pub struct TestClock(AtomicI64);

impl TestClock {
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.whole_microseconds() as i64, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> OffsetDateTime {
        T0 + Duration::microseconds(self.0.load(Ordering::SeqCst))
    }
}

#[derive(Default)]
pub struct Slurm {
    pub jobs: Mutex<HashMap<JobId, JobFacts>>,
    /// Missing in `all_jobs`, although there.
    pub unlisted: Mutex<HashSet<JobId>>,
    pub down: Mutex<Option<AttestError>>,
    pub unenforced: Mutex<Option<String>>,
    pub addresses: Mutex<HashMap<NodeName, String>>,
    pub asked_job: AtomicUsize,
    /// A test that holds this for writing holds Slurm's answers about jobs.
    pub gate: Arc<tokio::sync::RwLock<()>>,
    pub asked_all: AtomicUsize,
    pub asked_accounts: AtomicUsize,
    pub asked_address: AtomicUsize,
}

impl Slurm {
    fn up(&self) -> Result<(), AttestError> {
        self.down.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    pub fn run(&self, id: u32, user: &str, account: &str, nodes: &[&str]) -> JobId {
        let job = JobId::try_from(id).unwrap();
        let facts = JobFacts {
            job,
            restart: 0,
            submitted: T0 - Duration::HOUR,
            user: Ok(user.parse().unwrap()),
            uid: uid_of(user),
            account: Some(account.parse().unwrap()),
            partition: "batch".parse().unwrap(),
            nodes: nodes.iter().map(|n| n.parse().unwrap()).collect(),
            state: JobState::Running,
        };
        self.jobs.lock().unwrap().insert(job, facts);
        job
    }

    pub fn change(&self, id: u32, change: impl FnOnce(&mut JobFacts)) {
        change(self.jobs.lock().unwrap().get_mut(&JobId::try_from(id).unwrap()).unwrap());
    }

    pub fn gone(&self, id: u32) {
        self.jobs.lock().unwrap().remove(&JobId::try_from(id).unwrap());
    }

    pub fn silent(&self) {
        *self.down.lock().unwrap() =
            Some(AttestError::Unavailable { cluster: "lab".parse().unwrap(), why: "connection refused".into() });
    }

    pub fn back(&self) {
        *self.down.lock().unwrap() = None;
    }
}

#[async_trait]
impl Attestor for Slurm {
    async fn job(&self, job: JobId) -> Result<Answer, AttestError> {
        self.asked_job.fetch_add(1, Ordering::SeqCst);
        let _open = self.gate.read().await;
        self.up()?;
        Ok(self.jobs.lock().unwrap().get(&job).cloned().map_or(Answer::Absent, Answer::Known))
    }

    async fn all_jobs(&self) -> Result<Vec<JobFacts>, AttestError> {
        self.asked_all.fetch_add(1, Ordering::SeqCst);
        self.up()?;
        let unlisted = self.unlisted.lock().unwrap().clone();
        let jobs = self.jobs.lock().unwrap();
        Ok(jobs.values().filter(|f| f.state != JobState::Over && !unlisted.contains(&f.job)).cloned().collect())
    }

    async fn node_addresses(&self) -> Result<HashMap<NodeName, String>, AttestError> {
        self.asked_address.fetch_add(1, Ordering::SeqCst);
        self.up()?;
        Ok(self.addresses.lock().unwrap().clone())
    }

    async fn site(&self) -> Result<Site, AttestError> {
        self.asked_accounts.fetch_add(1, Ordering::SeqCst);
        self.up()?;
        let accounts_not_enforced = self.unenforced.lock().unwrap().clone();
        Ok(Site { cluster: "lab".into(), accounts_not_enforced, jobs_hidden: None })
    }
}

pub struct Sts {
    clock: Arc<TestClock>,
    pub requests: Mutex<Vec<AssumeRequest>>,
    /// How many have been asked for; tests wait on it.
    pub calls: watch::Sender<usize>,
    /// A test that holds this for writing holds AWS.
    pub gate: Arc<tokio::sync::RwLock<()>>,
    pub error: Mutex<Option<SourceError>>,
    /// It is an upstream that revokes by pattern.
    pub upstream: AtomicBool,
    /// A test that holds this for writing holds the turns.
    pub turn: Arc<tokio::sync::RwLock<()>>,
    /// How long a turn is said to take.
    pub delay: Mutex<std::time::Duration>,
}

#[async_trait]
impl Source for Sts {
    async fn turn(&self, _: &ProjectId) -> Result<(), SourceError> {
        let _open = self.turn.read().await;
        Ok(())
    }

    fn delay(&self, _: &ProjectId) -> std::time::Duration {
        *self.delay.lock().unwrap()
    }

    async fn assume(&self, request: &AssumeRequest) -> Result<Assumed, SourceError> {
        let issued = self.clock.now();
        let number = {
            let mut requests = self.requests.lock().unwrap();
            requests.push(request.clone());
            requests.len()
        };
        self.calls.send_replace(number);
        let _open = self.gate.read().await;
        if let Some(error) = self.error.lock().unwrap().clone() {
            return Err(error);
        }
        Ok(Assumed {
            credentials: Credentials {
                access_key_id: format!("ASIA{number}"),
                secret_access_key: Secret::new("canary-secret".into()),
                token: Secret::new("canary-token".into()),
                expiration: issued + Duration::seconds(request.duration_seconds.into()),
                role_arn: request.role_arn.clone(),
                account_id: None,
            },
            role_id: if self.upstream.load(Ordering::SeqCst) {
                String::new()
            } else {
                format!("AROA{}", request.role_arn.role_name())
            },
            issued,
        })
    }

    async fn revoke_user(&self, _: &UserName) -> Option<Result<Revoked, String>> {
        self.upstream.load(Ordering::SeqCst).then_some(Ok(Revoked::OfActive))
    }

    async fn identity(&self) -> Result<String, SourceError> {
        Ok("arn:aws:iam::123456789012:role/credvend".into())
    }
}

#[derive(Default)]
pub struct Iam {
    /// A test that holds this for writing holds IAM.
    pub gate: Arc<tokio::sync::RwLock<()>>,
    pub policies: Mutex<HashMap<RoleArn, Vec<Revocation>>>,
    pub error: Mutex<Option<DenyError>>,
    pub calls: AtomicUsize,
    /// Of one role.
    pub most_at_once: AtomicUsize,
    at_work: Mutex<HashMap<RoleArn, usize>>,
}

#[async_trait]
impl Denier for Iam {
    async fn project(&self, role: &RoleArn, entries: &[Revocation]) -> Result<(), DenyError> {
        let _at_work = self.begin(role);
        self.calls.fetch_add(1, Ordering::SeqCst);
        let _open = self.gate.read().await;
        if let Some(error) = self.error.lock().unwrap().clone() {
            return Err(error);
        }
        let mut policies = self.policies.lock().unwrap();
        if entries.is_empty() {
            policies.remove(role);
        } else {
            let left_out = policy::compose(entries, policy::MAX_CHARS).left_out;
            let fits = entries.iter().filter(|entry| !left_out.contains(&entry.whose)).cloned().collect();
            policies.insert(role.clone(), fits);
            if !left_out.is_empty() {
                return Err(DenyError::TooLarge { why: "there is no room".into(), left_out });
            }
        }
        Ok(())
    }
}

/// A call under way; over when it is dropped.
struct AtWork<'i>(&'i Iam, RoleArn);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        *self.0.at_work.lock().unwrap().get_mut(&self.1).unwrap() -= 1;
    }
}

impl Iam {
    fn begin(&self, role: &RoleArn) -> AtWork<'_> {
        let mut at_work = self.at_work.lock().unwrap();
        let count = at_work.entry(role.clone()).or_default();
        *count += 1;
        self.most_at_once.fetch_max(*count, Ordering::SeqCst);
        AtWork(self, role.clone())
    }

    /// The user ids that the role's policy denies.
    pub fn denied(&self, role: &str) -> Vec<String> {
        let policies = self.policies.lock().unwrap();
        let mut ids: Vec<String> =
            policies.get(&arn(role)).map_or(vec![], |entries| entries.iter().map(|e| shown(&e.whose)).collect());
        ids.sort();
        ids
    }
}

pub struct World {
    pub vending: Arc<Vending>,
    pub slurm: Arc<Slurm>,
    pub sts: Arc<Sts>,
    pub iam: Arc<Iam>,
    pub clock: Arc<TestClock>,
    pub store: Arc<dyn Store>,
    pub projects: Arc<Projects>,
    /// Nodes that do not answer.
    pub deaf: Arc<Mutex<HashSet<NodeName>>>,
    pub audit: Arc<audit::Log>,
    pub events: broadcast::Receiver<Arc<Line>>,
    _dir: TempDir,
}

pub fn arn(name: &str) -> RoleArn {
    format!("arn:aws:iam::123456789012:role/{name}").parse().unwrap()
}

pub fn uid_of(user: &str) -> Uid {
    Uid(1000 + user.bytes().map(u32::from).sum::<u32>())
}

pub fn map() -> ProjectMap {
    let mut map = ProjectMap::default();
    for (project, account) in [("genomics", "genomics"), ("Climate", "climate")] {
        let role = Role {
            arn: arn(account),
            duration_seconds: 3600,
            source_identity: false,
            session_tags: false,
            revoke_on_end: false,
            session_name: None,
        };
        let train =
            Role { arn: arn(&format!("{account}-train")), source_identity: true, session_tags: true, ..role.clone() };
        let roles = [("default", role), ("train", train)].map(|(name, role)| (name.parse().unwrap(), role));
        map.projects.insert(project.parse().unwrap(), roles.into());
        map.accounts.insert(account.parse().unwrap(), project.parse().unwrap());
    }
    map
}

impl World {
    pub fn new() -> Self {
        Self::with(|_| ())
    }

    pub fn with(change: impl FnOnce(&mut Cluster)) -> Self {
        Self::with_both(|lab, _| change(lab))
    }

    /// `lab`, which has Slurm asked, and `hpc`, which has not unless it is given the other's attestor.
    pub fn with_both(change: impl FnOnce(&mut Cluster, &mut Cluster)) -> Self {
        Self::made(change, Names::default())
    }

    /// With other names in AWS.
    pub fn named(names: Names) -> Self {
        Self::made(|_, _| (), names)
    }

    fn made(change: impl FnOnce(&mut Cluster, &mut Cluster), names: Names) -> Self {
        let dir = TempDir::new().unwrap();
        let clock = Arc::new(TestClock(AtomicI64::new(0)));
        let slurm = Arc::new(Slurm::default());
        let sts = Arc::new(Sts {
            clock: clock.clone(),
            requests: Mutex::default(),
            calls: watch::Sender::new(0),
            gate: Arc::default(),
            error: Mutex::default(),
            upstream: AtomicBool::default(),
            turn: Arc::default(),
            delay: Mutex::default(),
        });
        let iam = Arc::new(Iam::default());
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&dir.path().join("db")).unwrap());
        let events = Arc::new(Events::new(store.clone(), clock.clone()));
        let mut lab = cluster(Some(slurm.clone()));
        let mut hpc = cluster(None);
        change(&mut lab, &mut hpc);
        let receiver = events.listen(&"lab".parse().unwrap());
        let settings = audit::Settings {
            path: dir.path().join("audit.jsonl"),
            fsync: audit::Fsync::Never,
            on_failure: audit::OnFailure::Refuse,
        };
        let audit = Arc::new(audit::Log::open(&settings, clock.clone(), Arc::default()).unwrap());
        let deaf = Arc::<Mutex<HashSet<NodeName>>>::default();
        tokio::spawn(answer(events.clone(), store.clone(), deaf.clone()));
        let projects = Arc::new(Projects::new(map()));
        let vending = Vending::new(Parts {
            store: store.clone(),
            clusters: [("lab", lab), ("hpc", hpc)].map(|(name, c)| (name.parse().unwrap(), c)).into(),
            source: sts.clone(),
            denier: iam.clone(),
            projects: projects.clone(),
            names,
            audit: audit.clone(),
            metrics: Arc::default(),
            events,
            clock: clock.clone(),
        });
        // All nodes of a test come from one address.
        let vending = Arc::new(vending.with_questions(32, 8192));
        World { vending, slurm, sts, iam, clock, store, projects, deaf, audit, events: receiver, _dir: dir }
    }

    /// Another credvend over the same store, with the same Slurm and AWS.
    pub fn replica(&self) -> Arc<Vending> {
        let lab = cluster(Some(self.slurm.clone() as Arc<dyn Attestor>));
        Arc::new(Vending::new(Parts {
            store: self.store.clone(),
            clusters: [("lab", lab), ("hpc", cluster(None))].map(|(name, c)| (name.parse().unwrap(), c)).into(),
            source: self.sts.clone(),
            denier: self.iam.clone(),
            projects: self.projects.clone(),
            names: Names::default(),
            audit: self.audit.clone(),
            metrics: Arc::default(),
            events: Arc::new(Events::new(self.store.clone(), self.clock.clone())),
            clock: self.clock.clone(),
        }))
    }

    /// What a node of `lab` is told next, if anything.
    pub fn told(&mut self) -> Option<Event> {
        let line = self.events.try_recv().ok()?;
        Some(serde_json::from_slice(&line.for_node(&"n1".parse().unwrap())).unwrap())
    }

    /// The session of a job as its node `n1` opens it.
    pub async fn open(&self, id: u32) -> OpenResponse {
        self.try_open("n1", id).await.unwrap()
    }

    pub async fn try_open(&self, name: &str, id: u32) -> Result<OpenResponse, Refusal> {
        self.vending.open_for_node(&node(name), &self.record(id)).await
    }

    /// What a truthful node has on record.
    pub fn record(&self, id: u32) -> OpenRequest {
        let job = JobId::try_from(id).unwrap();
        match self.slurm.jobs.lock().unwrap().get(&job) {
            Some(f) => OpenRequest {
                job,
                restart: f.restart,
                uid: f.uid,
                account: f.account.clone(),
                partition: Some(f.partition.clone()),
            },
            None => OpenRequest { job, restart: 0, uid: Uid(1), account: None, partition: None },
        }
    }

    pub async fn credentials(&self, name: &str, session: SessionId) -> Result<CredentialsResponse, Refusal> {
        self.role(name, session, "default", 0).await
    }

    pub async fn role(
        &self,
        name: &str,
        session: SessionId,
        role: &str,
        min_life_seconds: u32,
    ) -> Result<CredentialsResponse, Refusal> {
        let request = CredentialsRequest { role: role.parse().unwrap(), min_life_seconds, heard: 0 };
        self.vending.credentials_for_node(&node(name), session, &request).await
    }

    pub async fn session(&self, id: SessionId) -> Session {
        self.store.get(id).await.unwrap().unwrap()
    }

    /// The audit log so far, which takes no more after this.
    pub fn audited(&self) -> String {
        self.vending.audit().close();
        std::fs::read_to_string(self._dir.path().join("audit.jsonl")).unwrap()
    }

    /// As a node opens whose record is of a job that Slurm has forgotten.
    pub async fn try_record(&self, name: &str, id: u32) -> Result<OpenResponse, Refusal> {
        let record = OpenRequest {
            job: JobId::try_from(id).unwrap(),
            restart: 0,
            uid: uid_of("alice"),
            account: None,
            partition: None,
        };
        self.vending.open_for_node(&node(name), &record).await
    }

    /// Does something to the database behind the store's back.
    pub fn sql(&self, text: &str) {
        rusqlite::Connection::open(self._dir.path().join("db")).unwrap().execute_batch(text).unwrap();
    }

    pub fn now(&self) -> OffsetDateTime {
        self.clock.now()
    }

    pub fn assumed(&self) -> usize {
        self.sts.requests.lock().unwrap().len()
    }
}

/// Waits until something holds, at most a minute of real time, whatever the test's clock says.
pub async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !holds().await {
        assert!(std::time::Instant::now() < deadline, "it does not come about");
        tokio::task::yield_now().await;
    }
}

pub fn node(name: &str) -> Node {
    Node { cluster: lab(), name: name.parse().unwrap(), peer: Some(IpAddr::from([10, 77, 0, 11])), certified: false }
}

fn cluster(attestor: Option<Arc<dyn Attestor>>) -> Cluster {
    let addresses = NodeAddresses { check: AddressCheck::Off, decided: true, ..NodeAddresses::default() };
    Cluster { attestor, addresses, ..Cluster::default() }
}

pub fn lab() -> ClusterName {
    "lab".parse().unwrap()
}

pub fn head() -> Head {
    Head { cluster: lab(), peer: Some(IpAddr::from([10, 77, 0, 1])) }
}

/// n1 and n2 of `lab` say that they dropped what they were told to.
async fn answer(events: Arc<Events>, store: Arc<dyn Store>, deaf: Arc<Mutex<HashSet<NodeName>>>) {
    let mut news = events.listen(&lab());
    while let Ok(line) = news.recv().await {
        for name in ["n1", "n2"] {
            let node: NodeName = name.parse().unwrap();
            if line.asks(&node) && !deaf.lock().unwrap().contains(&node) {
                let epoch = store.epoch().await.unwrap();
                events.heard(&lab(), &node, &HeardRequest { epoch, seqs: vec![line.seq] }).await.unwrap();
            }
        }
    }
}

/// The refusal's code, whether it may pass, and its text.
pub fn refused<T: std::fmt::Debug>(result: Result<T, Refusal>) -> (&'static str, bool, String) {
    let refusal = result.expect_err("must be refused");
    (refusal.code(), refusal.retry(), refusal.to_string())
}

/// A denied name, as policies have it.
fn shown(whose: &crate::store::Denied) -> String {
    match whose {
        crate::store::Denied::SourceIdentity(name) | crate::store::Denied::UserId(name) => name.clone(),
        crate::store::Denied::Everyone => "*".into(),
    }
}
