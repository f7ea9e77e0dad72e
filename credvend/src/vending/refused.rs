//! Detects that all jobs of a cluster are refused, for whatever reason, so that `credvend status` reports it.
//!
//! The refusal of a single job usually concerns its user only. If several jobs in a row are refused and none is accepted, an
//! administrator must look.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use credd_protocol::{ClusterName, JobId};
use time::{Duration, OffsetDateTime};

use super::fresh;
use crate::refusal::Refusal;

/// `status` warns after this many different jobs were refused in a row, without one that was accepted.
const IN_A_ROW: usize = 3;

/// Age at which a refusal is no longer reported.
const TOLD_FOR: Duration = Duration::hours(1);

/// Maximum number of unconfigured cluster names that are remembered. Callers choose these names.
const MAX_UNKNOWN: usize = 8;

/// The refusals since the last accepted request.
#[derive(Default)]
pub(super) struct Refused(Mutex<State>);

#[derive(Default)]
struct State {
    /// The refusals of each configured cluster.
    clusters: BTreeMap<ClusterName, Row>,
    /// Cluster names that are not configured, and when a caller last used them.
    unknown: BTreeMap<ClusterName, OffsetDateTime>,
    /// Clusters whose heads state their jobs, and when a node asked last.
    asked_beside_head: BTreeMap<ClusterName, OffsetDateTime>,
    /// Requests of nodes that failed authentication since the last session was opened: the time of the last one, how many, and
    /// the last reason.
    unproven: Option<(OffsetDateTime, u64, String)>,
}

struct Row {
    jobs: Vec<JobId>,
    at: OffsetDateTime,
    code: &'static str,
    why: String,
}

impl Refused {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a node of the cluster opened or joined a session.
    pub(super) fn given(&self, cluster: &ClusterName) {
        let mut state = self.state();
        state.clusters.remove(cluster);
        state.unproven = None;
    }

    /// Records that a node of a configured cluster was refused a job's session.
    pub(super) fn refused(&self, cluster: &ClusterName, job: JobId, refusal: &Refusal, now: OffsetDateTime) {
        let mut state = self.state();
        let row = state.clusters.entry(cluster.clone()).or_insert_with(|| Row {
            jobs: vec![],
            at: now,
            code: "",
            why: String::new(),
        });
        if row.jobs.len() < IN_A_ROW && !row.jobs.contains(&job) {
            row.jobs.push(job);
        }
        (row.at, row.code, row.why) = (now, refusal.code(), refusal.to_string());
    }

    /// Records a refusal before the caller was authenticated, or for a cluster that is not configured.
    pub(super) fn at_the_door(&self, refusal: &Refusal, now: OffsetDateTime) {
        let mut state = self.state();
        match refusal {
            Refusal::UnknownCluster(cluster)
                if state.unknown.len() < MAX_UNKNOWN || state.unknown.contains_key(cluster) =>
            {
                state.unknown.insert(cluster.clone(), now);
            }
            Refusal::HeadStatesJobs(cluster) => {
                state.asked_beside_head.insert(cluster.clone(), now);
            }
            Refusal::Unauthenticated(why) => {
                let count = state.unproven.as_ref().map_or(0, |(_, count, _)| *count);
                state.unproven = Some((now, count + 1, why.clone()));
            }
            _ => {}
        }
    }

    /// The warnings for `status`.
    pub(super) fn warnings(&self, now: OffsetDateTime) -> Vec<String> {
        let mut state = self.state();
        state.clusters.retain(|_, row| fresh(row.at, now, TOLD_FOR));
        state.unknown.retain(|_, at| fresh(*at, now, TOLD_FOR));
        state.asked_beside_head.retain(|_, at| fresh(*at, now, TOLD_FOR));
        state.unproven.take_if(|(at, ..)| !fresh(*at, now, TOLD_FOR));
        let mut warnings = vec![];
        for (cluster, row) in &state.clusters {
            // These refusals concern the whole cluster, so one job is enough.
            let of_all = matches!(row.code, "AccountsNotEnforced" | "NotAllowed");
            if of_all || row.jobs.len() >= IN_A_ROW {
                warnings.push(format!(
                    "cluster {cluster}: the last jobs that asked for a session were all refused; the last one ({}): {}",
                    row.code, row.why
                ));
            }
        }
        if !state.unknown.is_empty() {
            let names = state.unknown.keys().map(ClusterName::as_str).collect::<Vec<_>>().join(", ");
            warnings.push(format!("requests for cluster {names} are refused: there is no [[cluster]] of that name"));
        }
        for cluster in state.asked_beside_head.keys() {
            warnings.push(format!(
                "cluster {cluster}: requests of nodes were all refused: its head states its jobs (attest = \"head\")"
            ));
        }
        if let Some((_, count, why)) = &state.unproven {
            warnings.push(format!(
                "{count} requests of nodes failed authentication, and no node has opened a session since; the last reason: \
                 {why}"
            ));
        }
        warnings
    }
}
