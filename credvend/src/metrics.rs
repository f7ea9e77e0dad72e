//! The service's metrics: every name, type and label that `/metrics` shows is here, and in `docs/metrics.md`.
//!
//! Labels are of small fixed sets (a cluster, a verb, a code, an operation): never a user, a job, a node or a session.
//! What AWS, Slurm and the store take is measured around those seams ([`measured`]); what happens is counted where it is put
//! on record ([`crate::audit::Log`]), so that the code between says neither.

use std::time::Duration;

use credd_protocol::ClusterName;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use time::OffsetDateTime;

pub mod measured;

/// What the text is, as Prometheus asks for it.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Requests, Slurm and AWS: 1 ms to about a minute.
const SLOW: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0];
/// The store: 0.1 ms to 5 s.
const FAST: [f64; 8] = [0.0001, 0.0005, 0.001, 0.005, 0.02, 0.1, 1.0, 5.0];

type Text = &'static str;
type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

fn slow<L: Clone + std::hash::Hash + Eq>() -> Durations<L> {
    Family::new_with_constructor(|| Histogram::new(SLOW))
}

fn fast<L: Clone + std::hash::Hash + Eq>() -> Durations<L> {
    Family::new_with_constructor(|| Histogram::new(FAST))
}

macro_rules! labels {
    ($($name:ident { $($field:ident: $type:ty),* })*) => {
        $(#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
        struct $name { $($field: $type),* })*
    };
}

labels! {
    OfRequest { verb: Text, result: Text }
    OfVerb { verb: Text }
    OfEvent { event: Text }
    OfCode { code: Text }
    OfCluster { cluster: String }
    OfQuestion { cluster: String, question: Text }
    OfOperation { operation: Text }
    OfFailure { operation: Text, kind: Text }
    OfResult { result: Text }
    OfReason { reason: Text }
    OfCertificate { certificate: Text }
}

/// All of them.
pub struct Metrics {
    registry: Registry,
    requests: Family<OfRequest, Counter>,
    request_seconds: Durations<OfVerb>,
    connections_refused: Counter,
    connections_closed: Family<OfReason, Counter>,
    events: Family<OfEvent, Counter>,
    refusals: Family<OfCode, Counter>,
    assume_role: Family<OfResult, Counter>,
    assume_role_seconds: Histogram,
    assume_role_under_way: Gauge,
    sts_waiting: Gauge,
    sts_wait_seconds: Histogram,
    iam: Family<OfResult, Counter>,
    slurm_seconds: Durations<OfQuestion>,
    slurm_failures: Family<OfQuestion, Counter>,
    store_seconds: Durations<OfOperation>,
    store_failures: Family<OfFailure, Counter>,
    sweeps: Family<OfResult, Counter>,
    sweep_seconds: Histogram,
    last_sweep: Gauge,
    sessions_open: Family<OfCluster, Gauge>,
    nodes_connected: Family<OfCluster, Gauge>,
    nodes_unchecked: Family<OfCluster, Gauge>,
    nodes_elsewhere: Family<OfCluster, Gauge>,
    roles: Family<OfResult, Gauge>,
    projects_unassigned: Gauge,
    revocations_open: Gauge,
    denies_behind: Gauge,
    upstream_waiting: Gauge,
    certificate_expiry: Family<OfCertificate, Gauge>,
    client_crl_expiry: Gauge,
    client_crl_renewal: Gauge,
    audit_lines: Counter,
    audit_lost: Counter,
    audit_failures: Counter,
    audit_syncs: Counter,
    audit_writable: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("credvend");
        let r = &mut registry;
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        r.register("build", "Which program this is", build);
        let started: Gauge = Gauge::default();
        started.set(OffsetDateTime::now_utc().unix_timestamp());
        r.register("start_time_seconds", "When it started", started);
        // A field, its value, its name and its help, once each.
        macro_rules! metrics {
            ($($field:ident = $value:expr, $name:literal, $help:literal;)*) => {{
                $(
                    let $field = $value;
                    r.register($name, $help, $field.clone());
                )*
                Metrics { $($field,)* registry }
            }};
        }
        let metrics = metrics! {
            requests = Family::default(), "requests", "Requests answered, by verb and result (ok, or the refusal's code)";
            request_seconds = slow(), "request_duration_seconds", "Time to an answer, by verb";
            connections_refused = Counter::default(), "connections_refused", "Connections closed at once because [limits] has no place for them";
            connections_closed = Family::default(), "connections_closed", "Open connections closed: crowded (without proof, for newer ones), late (without proof, asked nothing), unread (did not take an answer)";
            events = Family::default(), "events", "Events of the audit log, whether or not it can be written";
            refusals = Family::default(), "refusals", "Refusals of the audit log, by code";
            assume_role = Family::default(), "assume_role", "AssumeRole calls, by result (ok, refused, unavailable; busy: not made)";
            assume_role_seconds = Histogram::new(SLOW), "assume_role_duration_seconds", "Time of an AssumeRole, retries included";
            assume_role_under_way = Gauge::default(), "assume_role_under_way", "AssumeRole calls under way";
            sts_waiting = Gauge::default(), "sts_waiting", "Calls that wait for their turn at STS ([sts] rate)";
            sts_wait_seconds = Histogram::new(SLOW), "sts_wait_duration_seconds", "Time that a call waited for its turn";
            iam = Family::default(), "deny_policies", "Attempts to bring a role's Deny in line, by result (ok, failed)";
            slurm_seconds = slow(), "slurm_duration_seconds", "Time of an answer of slurmctld, by cluster and question";
            slurm_failures = Family::default(), "slurm_failures", "Questions that slurmctld did not answer, by cluster and question";
            store_seconds = fast(), "store_duration_seconds", "Time of the store's operations";
            store_failures = Family::default(), "store_failures", "Failed operations of the store, by kind (unavailable, broken)";
            sweeps = Family::default(), "sweeps", "Sweeps over the open sessions, by result (ok, failed)";
            sweep_seconds = Histogram::new(SLOW), "sweep_duration_seconds", "Time of a sweep";
            last_sweep = Gauge::default(), "last_sweep_timestamp_seconds", "End of the last sweep that saw everything";
            sessions_open = Family::default(), "sessions_open", "Open sessions of Slurm jobs at the last sweep";
            nodes_connected = Family::default(), "nodes_connected", "Nodes whose stream hangs on this process";
            nodes_unchecked = Family::default(), "node_addresses_unchecked", "Whether a node may ask from another address than Slurm's: 1 unless node-address-check is require";
            nodes_elsewhere = Family::default(), "nodes_elsewhere", "Nodes that asked from another address than Slurm's in the last day";
            roles = Family::default(), "roles", "Roles that jobs asked for in the last hour, by the last answer (ok, refused)";
            projects_unassigned = Gauge::default(), "projects_without_clusters", "Projects that name no clusters, and are served on all of several in this release alone";
            revocations_open = Gauge::default(), "revocations_open", "Revocations that are not done";
            upstream_waiting = Gauge::default(), "upstream_ends_waiting", "Ended sessions and revoked users that the upstream does not hear of; 0 while it hears";
            denies_behind = Gauge::default(), "deny_policies_behind", "Roles whose Deny IAM has not taken";
            certificate_expiry = Family::default(), "certificate_expiry_timestamp_seconds", "When a certificate ends: server, or the first of client-ca";
            client_crl_expiry = Gauge::default(), "client_crl_expiry_timestamp_seconds", "When the first of client-crl ends; 0 without one";
            client_crl_renewal = Gauge::default(), "client_crl_renewal_timestamp_seconds", "From when credvend warns that a list of client-crl ends; 0 without one";
            audit_lines = Counter::default(), "audit_lines", "Lines written to the audit log";
            audit_lost = Counter::default(), "audit_lines_lost", "Lines that the audit log does not have";
            audit_failures = Counter::default(), "audit_failures", "Failed writes and syncs of the audit log";
            audit_syncs = Counter::default(), "audit_syncs", "Syncs of the audit log to its disk";
            audit_writable = Gauge::default(), "audit_writable", "Whether the audit log could be written the last time (1, 0)";
        };
        metrics.audit_writable.set(1);
        metrics.begin_at_zero();
        metrics
    }
}

impl Metrics {
    /// What alerts look for is there before it happens: of a series that begins with 1, increase() and rate() are 0.
    fn begin_at_zero(&self) {
        for result in ["ok", "refused", "unavailable", "busy"] {
            drop(self.assume_role.get_or_create(&OfResult { result }));
        }
        for reason in ["crowded", "late", "unread"] {
            drop(self.connections_closed.get_or_create(&OfReason { reason }));
        }
        for result in ["ok", "failed"] {
            drop(self.iam.get_or_create(&OfResult { result }));
            drop(self.sweeps.get_or_create(&OfResult { result }));
        }
        for operation in measured::STORE_OPERATIONS {
            for kind in ["unavailable", "broken"] {
                drop(self.store_failures.get_or_create(&OfFailure { operation, kind }));
            }
        }
    }

    /// Slurm of this cluster will be asked.
    fn slurm_begins(&self, cluster: &ClusterName) {
        for question in measured::SLURM_QUESTIONS {
            drop(self.slurm_failures.get_or_create(&OfQuestion { cluster: cluster.to_string(), question }));
        }
    }

    /// The text for Prometheus.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // It fails only if the string does.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    /// A request was answered.
    pub fn request(&self, verb: Text, result: Text, took: Duration) {
        self.requests.get_or_create(&OfRequest { verb, result }).inc();
        self.request_seconds.get_or_create(&OfVerb { verb }).observe(took.as_secs_f64());
    }

    /// A connection beyond `[limits]` was closed.
    pub fn connection_refused(&self) {
        self.connections_refused.inc();
    }

    /// An open connection was closed for this reason.
    pub fn connection_closed(&self, reason: Text) {
        self.connections_closed.get_or_create(&OfReason { reason }).inc();
    }

    /// Something happened that is put on record; with the code, if it is a refusal.
    pub fn event(&self, event: Text, code: Option<Text>) {
        self.events.get_or_create(&OfEvent { event }).inc();
        if let Some(code) = code {
            self.refusals.get_or_create(&OfCode { code }).inc();
        }
    }

    /// A sweep ended.
    pub fn swept(&self, result: Result<OffsetDateTime, ()>, took: Duration) {
        let word = if result.is_ok() { "ok" } else { "failed" };
        self.sweeps.get_or_create(&OfResult { result: word }).inc();
        self.sweep_seconds.observe(took.as_secs_f64());
        if let Ok(now) = result {
            self.last_sweep.set(now.unix_timestamp());
        }
    }

    /// So many sessions of a cluster's jobs are open.
    pub fn sessions_open(&self, cluster: &ClusterName, count: usize) {
        self.sessions_open.get_or_create(&OfCluster { cluster: cluster.to_string() }).set(count as i64);
    }

    /// Another replica sweeps: what the last sweep here saw is no longer so.
    pub fn swept_elsewhere(&self) {
        self.sessions_open.clear();
    }

    /// So many nodes of a cluster hang on this process.
    pub fn nodes_connected(&self, cluster: &ClusterName, count: usize) {
        self.nodes_connected.get_or_create(&OfCluster { cluster: cluster.to_string() }).set(count as i64);
    }

    /// Whether a cluster's nodes may ask from anywhere, and how many of them did.
    pub fn node_addresses(&self, cluster: &ClusterName, unchecked: bool, elsewhere: usize) {
        let of = OfCluster { cluster: cluster.to_string() };
        self.nodes_unchecked.get_or_create(&of).set(unchecked.into());
        self.nodes_elsewhere.get_or_create(&of).set(elsewhere as i64);
    }

    /// Of the roles that jobs asked for lately, so many were refused the last time, and so many were given.
    pub fn roles(&self, refused: usize, given: usize) {
        for (result, count) in [("refused", refused), ("ok", given)] {
            self.roles.get_or_create(&OfResult { result }).set(count as i64);
        }
    }

    /// So many projects name no clusters, although there are several.
    pub fn projects_without_clusters(&self, count: usize) {
        self.projects_unassigned.set(count as i64);
    }

    /// So many revocations are not done, and so many roles' Denies are not in force.
    pub fn revocations(&self, open: usize, denies_behind: usize) {
        self.revocations_open.set(open as i64);
        self.denies_behind.set(denies_behind as i64);
    }

    /// So many ends and revocations the upstream does not hear of.
    pub fn upstream_ends_waiting(&self, count: usize) {
        self.upstream_waiting.set(count as i64);
    }

    /// A certificate ends then.
    pub fn certificate_expires(&self, certificate: Text, at: OffsetDateTime) {
        self.certificate_expiry.get_or_create(&OfCertificate { certificate }).set(at.unix_timestamp());
    }

    /// The first of the clients' revocation lists ends at `at`, and must be renewed from `renewal` on; 0 without a list.
    pub fn client_crl_expires(&self, at: i64, renewal: i64) {
        self.client_crl_expiry.set(at);
        self.client_crl_renewal.set(renewal);
    }

    /// So many lines are in the audit log's file.
    pub fn audit_written(&self, lines: u64) {
        self.audit_lines.inc_by(lines);
        self.audit_writable.set(1);
    }

    /// So many are not and never will be.
    pub fn audit_lost(&self, lines: u64) {
        self.audit_lost.inc_by(lines);
    }

    /// The audit log was synced, or that was tried.
    pub fn audit_synced(&self) {
        self.audit_syncs.inc();
    }

    /// A write or sync failed.
    pub fn audit_failed(&self) {
        self.audit_failures.inc();
        self.audit_writable.set(0);
    }
}

#[cfg(test)]
mod tests;
