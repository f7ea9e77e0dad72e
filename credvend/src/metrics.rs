//! The service's metrics: every name, type and label that `/metrics` shows is here, and in `docs/metrics.md`.
//!
//! Labels are of small fixed sets (a cluster, a code, an outcome): never a user, a job, a node or a session.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// All of them.
pub struct Metrics {
    registry: Registry,
    audit_lines: Counter,
    audit_lost: Counter,
    audit_failures: Counter,
    audit_syncs: Counter,
    audit_works: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("credvend");
        let metrics = Metrics {
            audit_lines: Counter::default(),
            audit_lost: Counter::default(),
            audit_failures: Counter::default(),
            audit_syncs: Counter::default(),
            audit_works: Gauge::default(),
            registry: Registry::default(),
        };
        let r = &mut registry;
        r.register("audit_lines", "Lines written to the audit log", metrics.audit_lines.clone());
        r.register("audit_lines_lost", "Lines that the audit log does not have", metrics.audit_lost.clone());
        r.register("audit_failures", "Failed writes and syncs of the audit log", metrics.audit_failures.clone());
        r.register("audit_syncs", "Syncs of the audit log to its disk", metrics.audit_syncs.clone());
        r.register("audit_writable", "Whether the audit log can be written", metrics.audit_works.clone());
        metrics.audit_works.set(1);
        Metrics { registry, ..metrics }
    }
}

impl Metrics {
    /// The text for Prometheus.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    /// So many lines are in the audit log's file.
    pub fn audit_written(&self, lines: u64) {
        self.audit_lines.inc_by(lines);
        self.audit_works.set(1);
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
        self.audit_works.set(0);
    }
}
