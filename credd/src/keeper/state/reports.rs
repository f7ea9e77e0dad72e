//! How things are, for those who ask at the root socket.

use std::sync::mpsc::SyncSender;
use std::time::Instant;

use credd_protocol::local::{Health, JobStatus, MAX_LINE_BYTES};

use super::{Keeper, REPORT_PATIENCE, Report};
use crate::control::{Job, ToServer, late_status};

/// Questions to the server that may be open.
const MAX_REPORTS: usize = 64;

impl Keeper {
    /// Asks the server how things are; without one, or with too many questions open, the keeper's own view must do.
    pub(super) fn ask_server(&mut self, reply: SyncSender<Report>) {
        match &self.server {
            Some(server) if server.ready && self.reports.len() < MAX_REPORTS => {
                self.next_report += 1;
                self.reports.insert(self.next_report, (Instant::now(), reply));
                self.tell(&ToServer::Report { id: self.next_report });
            }
            _ => {
                let _ = reply.try_send(self.report(None, self.own_statuses()));
            }
        }
    }

    pub(super) fn expire_reports(&mut self, now: Instant) {
        let late = |asked: &Instant| now.duration_since(*asked) >= REPORT_PATIENCE;
        let expired: Vec<u64> = self.reports.iter().filter(|(_, (asked, _))| late(asked)).map(|(id, _)| *id).collect();
        for id in expired {
            if let Some((_, reply)) = self.reports.remove(&id) {
                let _ = reply.try_send(self.report(None, self.own_statuses()));
            }
        }
    }

    pub(super) fn report(&self, health: Option<Health>, jobs: Vec<JobStatus>) -> Report {
        let (running, undelivered_ends) = self.runs.counts();
        let health = Health {
            serving: health.as_ref().is_some_and(|health| health.serving) && self.endpoint_problem.is_none(),
            endpoint_problem: self.endpoint_problem.clone().or_else(|| health.as_ref()?.endpoint_problem.clone()),
            refusal_problem: health.as_ref().and_then(|health| health.refusal_problem.clone()),
            record_problem: self.record_problem(),
            note: health.as_ref().and_then(|health| health.note.clone()),
            credvend_problem: match health {
                Some(health) => health.credvend_problem,
                None if self.endpoint_ours => {
                    Some("the server process does not answer; credd replaces one that died or hangs".to_owned())
                }
                None => None,
            },
            jobs: running,
            undelivered_ends,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Report { health, jobs }
    }

    /// The jobs as the records tell; as many as fit an answer, the highest ids first, as the server's answer has them.
    pub(super) fn own_statuses(&self) -> Vec<JobStatus> {
        let status = |job: &Job| JobStatus {
            job: job.job,
            user: job.user.to_string(),
            uid: job.uid.0,
            project: job.account.as_ref().map(ToString::to_string),
            state: match (job.ended, &job.refused, job.session) {
                (true, ..) => "ending",
                (_, Some(_), _) => "refused",
                (_, None, Some(_)) => "open",
                _ => "opening",
            }
            .to_owned(),
            session: job.session.map(|session| session.to_string()),
            reason: job.refused.clone(),
            credentials_until: None,
        };
        let mut statuses: Vec<JobStatus> = self.runs.all().map(|run| status(&run.job)).collect();
        statuses.extend(self.late.jobs().map(late_status));
        statuses.sort_by_key(|status| std::cmp::Reverse(status.job));
        let mut room = MAX_LINE_BYTES - 4096;
        let fits = |status: &JobStatus| {
            let bytes = serde_json::to_vec(status).map_or(0, |text| text.len() + 1);
            room = room.saturating_sub(bytes);
            room > 0
        };
        statuses.into_iter().take_while(fits).collect()
    }
}
