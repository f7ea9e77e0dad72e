//! Whether a whole cluster is refused: what `credvend status` must not pass over, whatever the reason is.
//!
//! A job's refusal is as a rule its own matter. That job after job of a cluster is refused is an administrator's.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use credd_protocol::{ClusterName, JobId};
use time::{Duration, OffsetDateTime};

use super::fresh;
use crate::refusal::Refusal;

/// So many different jobs that are refused one after the other, and none that is not, are no coincidence.
const IN_A_ROW: usize = 3;

/// What was refused so long ago is not told any more.
const TOLD_FOR: Duration = Duration::hours(1);

/// Names of clusters that are not configured, as callers say them: at most so many are remembered.
const MAX_UNKNOWN: usize = 8;

/// What was refused, and nothing given since.
#[derive(Default)]
pub(super) struct Refused(Mutex<State>);

#[derive(Default)]
struct State {
    /// Of each cluster. Only configured ones are here.
    clusters: BTreeMap<ClusterName, Row>,
    /// Clusters that are not configured, and who asked for them last.
    unknown: BTreeMap<ClusterName, OffsetDateTime>,
    /// Node requests that proved nothing: since when without one that did, how many, and the last reason.
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

    /// A node of the cluster has a session.
    pub(super) fn given(&self, cluster: &ClusterName) {
        let mut state = self.state();
        state.clusters.remove(cluster);
        state.unproven = None;
    }

    /// A node of a configured cluster asked for a job's session and was refused.
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

    /// Somebody was refused before anything was asked of Slurm.
    pub(super) fn at_the_door(&self, refusal: &Refusal, now: OffsetDateTime) {
        let mut state = self.state();
        match refusal {
            Refusal::UnknownCluster(cluster) => {
                if state.unknown.len() < MAX_UNKNOWN || state.unknown.contains_key(cluster) {
                    state.unknown.insert(cluster.clone(), now);
                }
            }
            Refusal::Unauthenticated(why) => {
                let count = state.unproven.as_ref().map_or(0, |(_, count, _)| *count);
                state.unproven = Some((now, count + 1, why.clone()));
            }
            _ => {}
        }
    }

    /// What an administrator should know.
    pub(super) fn warnings(&self, now: OffsetDateTime) -> Vec<String> {
        let mut state = self.state();
        state.clusters.retain(|_, row| fresh(row.at, now, TOLD_FOR));
        state.unknown.retain(|_, at| fresh(*at, now, TOLD_FOR));
        state.unproven.take_if(|(at, ..)| !fresh(*at, now, TOLD_FOR));
        let mut warnings = vec![];
        for (cluster, row) in &state.clusters {
            // What is said of the cluster or the site needs no second job to be believed.
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
            warnings.push(format!("somebody asks for cluster {names}, for which there is no [[cluster]]: refused"));
        }
        if let Some((_, count, why)) = &state.unproven {
            warnings.push(format!(
                "{count} requests of nodes proved nothing, and no node has had a session since; the last one: {why}"
            ));
        }
        warnings
    }
}
