//! The seams with a clock and a counter around them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::{ClusterName, JobId, NodeName, ProjectId, RoleArn, SessionId, TokenHash, UserName};
use prometheus_client::metrics::gauge::Gauge;
use time::OffsetDateTime;

use super::{Metrics, OfFailure, OfOperation, OfQuestion, OfResult};
use crate::attest::{Answer, AttestError, Attestor, JobFacts, Site};
use crate::deny::{Denier, DenyError};
use crate::source::{AssumeRequest, Assumed, Revoked, Source, SourceError};
use crate::store::{
    Block, Cursor, Denied, Ended, Issuance, IssuedTo, News, NumberedNews, OpenRun, Opened, Order, OrderId, Page,
    Revocation, Run, Session, SessionFilter, Store, StoreError, Subject,
};

/// What it wraps, and where it is counted.
pub struct Measured<T: ?Sized> {
    metrics: Arc<Metrics>,
    inner: Arc<T>,
}

impl<T: ?Sized> Measured<T> {
    /// Around `inner`.
    pub fn new(inner: Arc<T>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Measured { metrics, inner })
    }
}

impl Metrics {
    fn store<T>(&self, operation: &'static str, result: &Result<T, StoreError>, took: Duration) {
        self.store_seconds.get_or_create(&OfOperation { operation }).observe(took.as_secs_f64());
        let kind = match result {
            Err(StoreError::Unavailable(_)) => "unavailable",
            Err(StoreError::Broken(_)) => "broken",
            // The caller's mistake.
            Ok(_) | Err(StoreError::BadCursor) => return,
        };
        self.store_failures.get_or_create(&OfFailure { operation, kind }).inc();
    }

    fn slurm<T>(&self, cluster: &ClusterName, question: &'static str, result: &Result<T, AttestError>, took: Duration) {
        let labels = OfQuestion { cluster: cluster.to_string(), question };
        if result.is_err() {
            self.slurm_failures.get_or_create(&labels).inc();
        }
        self.slurm_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }
}

/// Every operation of the store: a new one of the trait is a line here, or its default would hide the store's own.
macro_rules! store {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        /// Their names, as the label has them.
        pub(super) const STORE_OPERATIONS: &[&str] = &[$(stringify!($name)),*];

        #[async_trait]
        impl Store for Measured<dyn Store> {
            $(async fn $name(&self, $($argument: $type),*) -> Result<$result, StoreError> {
                let begun = Instant::now();
                let result = self.inner.$name($($argument),*).await;
                self.metrics.store(stringify!($name), &result, begun.elapsed());
                result
            })*
        }
    };
}

store! {
    open(session: Session) -> Opened;
    get(id: SessionId) -> Option<Session>;
    status(id: SessionId) -> Option<(SessionStatus, Option<String>)>;
    find_run(cluster: &ClusterName, run: &Run) -> Option<Session>;
    list_runs(cluster: &ClusterName, from: Option<&Cursor>) -> Page<OpenRun>;
    replace_token(id: SessionId, token: TokenHash) -> Option<Session>;
    find_head(clusters: &[ClusterName], head_session: &str) -> Option<Session>;
    end(id: SessionId, status: SessionStatus, at: OffsetDateTime, why: &str) -> Ended;
    list(filter: &SessionFilter, from: Option<&Cursor>) -> Page<Session>;
    record_issuance(issuance: Issuance) -> ();
    list_issuances(of: &IssuedTo, alive_at: OffsetDateTime, from: Option<&Cursor>) -> Page<Issuance>;
    remember_nonce(nonce: &str, expires: OffsetDateTime) -> bool;
    record_revocation(revocation: Revocation) -> ();
    revocations_of(role: &RoleArn, whose: &[Denied]) -> Vec<Revocation>;
    prune_revocations(before: OffsetDateTime) -> u64;
    list_revocations(alive_at: OffsetDateTime) -> Vec<Revocation>;
    put_order(order: Order) -> ();
    get_order(id: OrderId) -> Option<Order>;
    list_orders(from: Option<&Cursor>) -> Page<Order>;
    orders_since(at: OffsetDateTime) -> Vec<Order>;
    open_orders() -> Vec<Order>;
    put_block(block: Block) -> ();
    remove_block(subject: &Subject) -> bool;
    list_blocks() -> Vec<Block>;
    epoch() -> String;
    publish(cluster: &ClusterName, news: News, at: OffsetDateTime) -> u64;
    news(cluster: &ClusterName, after: u64) -> Vec<NumberedNews>;
    newest_news(cluster: &ClusterName) -> u64;
    note_heard(order: OrderId, replica: &str, cluster: &ClusterName, nodes: &[NodeName]) -> ();
    heard(order: OrderId) -> Vec<(ClusterName, NodeName)>;
    add_node(id: SessionId, node: &NodeName) -> ();
    lease(name: &str, holder: &str, now: OffsetDateTime, until: OffsetDateTime) -> bool;
    release(name: &str, holder: &str) -> ();
    put_note(kind: &str, key: &str, text: &str) -> ();
    get_note(kind: &str, key: &str) -> Option<String>;
    remove_note(kind: &str, key: &str) -> ();
    list_notes(kind: &str, from: Option<&Cursor>) -> Page<(String, String)>;
    prune(before: OffsetDateTime) -> u64;
    check() -> ();
}

#[async_trait]
impl Source for Measured<dyn Source> {
    async fn turn(&self, project: &ProjectId) -> Result<(), SourceError> {
        let (begun, metrics) = (Instant::now(), &self.metrics);
        let _waiting = OneMore::of(&metrics.sts_waiting);
        let result = self.inner.turn(project).await;
        metrics.sts_wait_seconds.observe(begun.elapsed().as_secs_f64());
        if result.is_err() {
            metrics.assume_role.get_or_create(&OfResult { result: "busy" }).inc();
        }
        result
    }

    fn delay(&self, project: &ProjectId) -> Duration {
        self.inner.delay(project)
    }

    async fn assume(&self, request: &AssumeRequest) -> Result<Assumed, SourceError> {
        let (begun, metrics) = (Instant::now(), &self.metrics);
        let _under_way = OneMore::of(&metrics.assume_role_under_way);
        let result = self.inner.assume(request).await;
        metrics.assume_role_seconds.observe(begun.elapsed().as_secs_f64());
        let word = match &result {
            Ok(_) => "ok",
            Err(SourceError::Refused(_) | SourceError::Ended(_)) => "refused",
            Err(SourceError::Unavailable(_) | SourceError::Busy { .. }) => "unavailable",
        };
        metrics.assume_role.get_or_create(&OfResult { result: word }).inc();
        result
    }

    async fn identity(&self) -> Result<String, SourceError> {
        self.inner.identity().await
    }

    fn names_sessions(&self) -> bool {
        self.inner.names_sessions()
    }

    fn ended(&self, session: &Session) {
        self.inner.ended(session);
    }

    async fn revoke_user(&self, user: &UserName) -> Option<Result<Revoked, String>> {
        self.inner.revoke_user(user).await
    }

    fn revoked_by_pattern(&self) -> Vec<UserName> {
        self.inner.revoked_by_pattern()
    }
}

/// One more, until dropped: callers give up.
struct OneMore<'m>(&'m Gauge);

impl<'m> OneMore<'m> {
    fn of(gauge: &'m Gauge) -> Self {
        gauge.inc();
        OneMore(gauge)
    }
}

impl Drop for OneMore<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[async_trait]
impl Denier for Measured<dyn Denier> {
    async fn project(&self, role: &RoleArn, entries: &[Revocation]) -> Result<(), DenyError> {
        let result = self.inner.project(role, entries).await;
        let word = match &result {
            // Nobody was asked.
            Err(DenyError::NotOurs(_)) => return result,
            Ok(()) => "ok",
            Err(_) => "failed",
        };
        self.metrics.iam.get_or_create(&OfResult { result: word }).inc();
        result
    }

    fn lacks(&self, role: &RoleArn) -> Option<String> {
        self.inner.lacks(role)
    }
}

/// One cluster's Slurm.
pub struct MeasuredSlurm {
    cluster: ClusterName,
    metrics: Arc<Metrics>,
    inner: Arc<dyn Attestor>,
}

impl MeasuredSlurm {
    /// Around what asks `cluster`'s Slurm.
    pub fn new(cluster: ClusterName, metrics: Arc<Metrics>, inner: Arc<dyn Attestor>) -> Self {
        metrics.slurm_begins(&cluster);
        MeasuredSlurm { cluster, metrics, inner }
    }
}

macro_rules! slurm {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        /// Their names, as the label has them.
        pub(super) const SLURM_QUESTIONS: &[&str] = &[$(stringify!($name)),*];

        #[async_trait]
        impl Attestor for MeasuredSlurm {
            $(async fn $name(&self, $($argument: $type),*) -> Result<$result, AttestError> {
                let begun = Instant::now();
                let result = self.inner.$name($($argument),*).await;
                self.metrics.slurm(&self.cluster, stringify!($name), &result, begun.elapsed());
                result
            })*
        }
    };
}

slurm! {
    job(job: JobId) -> Answer;
    job_unasked(job: JobId) -> Answer;
    all_jobs() -> Vec<JobFacts>;
    node_addresses() -> HashMap<NodeName, String>;
    site() -> Site;
}
