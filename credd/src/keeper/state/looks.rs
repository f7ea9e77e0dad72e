//! Looks at the records, and what follows from what is found.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use credd_protocol::JobId;
use credd_protocol::local::Outcome;

use super::{Keeper, records, run_dir};
use crate::control::{Job, RunId, ToServer};
use crate::keeper::records::Refused;
use crate::keeper::runs::{Run, sift};

/// Within this time of a late record's making its step holds the lock by which it is seen.
const FIRST_STEP: Duration = Duration::from_secs(60);
/// A job that got no credentials, was started by a prolog and has had no step for so long has as a rule lost its epilog. One
/// that pauses for longer loses nothing: its next step asks again for it.
const EPILOG_LOST: Duration = Duration::from_secs(24 * 3600);

impl Keeper {
    /// Ends the runs whose jobs are over, says Slurm, and whose records are where they were all the same: their epilog was
    /// not run here, or failed. To be done before a look, which then finds them ended.
    pub(super) fn end_stuck(&mut self) {
        for id in std::mem::take(&mut self.over) {
            let Some(run) = self.runs.get(&id).filter(|run| !run.job.ended) else { continue };
            let (job, restart, path) = (run.job.job, run.job.restart, run.path.clone());
            let ended = self.ended_path(job, restart, &id);
            match path.map(|path| records::end(&path, &ended, &id)) {
                Some(Ok(())) => {
                    tracing::warn!(%job, "Slurm says that the job is over, but its epilog noted no end here: ended now");
                }
                None | Some(Err(Refused::NoRecord)) => {}
                Some(Err(error)) => {
                    tracing::error!(%job, %error, "a job that is over cannot be ended here; it is served nothing");
                    self.over.insert(id);
                }
            }
        }
    }

    /// Ends the runs that get no credentials, once no step of theirs lives. An epilog would end them, but it can be lost, and
    /// where slurmd ran no prolog it may run none; and credvend, which knows no session of theirs, never says that they are
    /// over. To be done before a look, as above.
    fn end_refused(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let is_older = |created: u64, than: Duration| now.saturating_sub(Duration::from_secs(created)) >= than;
        let late = self
            .late
            .refused()
            .filter(|late| is_older(late.created, FIRST_STEP))
            .map(|late| (&late.job.run, late.job.job, 0, &late.path));
        let refused = self.runs.all().filter(|Run { job, traits, .. }| {
            let no_session = job.refused.is_some() && job.session.is_none();
            let enough = if traits.was_late { FIRST_STEP } else { EPILOG_LOST };
            no_session && !job.ended && is_older(traits.created, enough)
        });
        let refused = refused.filter_map(|run| Some((&run.job.run, run.job.job, run.job.restart, run.path.as_ref()?)));
        for (run, job, restart, path) in late.chain(refused) {
            if records::has_steps(path, run) {
                continue;
            }
            match records::end(path, &self.ended_path(job, restart, run), run) {
                Ok(()) => {
                    tracing::info!(%job, "a job that got no credentials has no step here any more: its record goes")
                }
                Err(Refused::NoRecord) => {}
                Err(error) => {
                    tracing::error!(%job, %error, "the record of a job that got no credentials cannot be ended")
                }
            }
        }
    }

    fn ended_path(&self, job: JobId, restart: u32, run: &RunId) -> PathBuf {
        self.run_dir.ended().join(format!("{job}.{restart}.{run}"))
    }

    /// Looks at all records, or at one job's, and tells the server what changed; `false` if they cannot be looked at.
    pub(super) fn look(&mut self, only: Option<JobId>) -> bool {
        if only.is_none() {
            self.end_stuck();
            self.end_refused();
        }
        // First jobs/, then ended/: a job that moves in between is seen twice rather than never.
        let looks = match only {
            Some(job) => records::look_at(&self.run_dir, job),
            None => records::look(&self.run_dir.jobs(), false)
                .and_then(|jobs| Ok((jobs, records::look(&self.run_dir.ended(), true)?))),
        };
        let (mut jobs, mut ended) = match looks {
            Ok(looks) => looks,
            Err(error) => {
                tracing::error!(%error, "cannot look at the job records");
                self.unreadable = Some(error.to_string());
                return false;
            }
        };
        if only.is_none() {
            self.unreadable = None;
        }
        let (late, late_ends) = (std::mem::take(&mut jobs.late), std::mem::take(&mut ended.late));
        let cluster = self.config.cluster.as_ref();
        let (jobs, mut refused) = sift(jobs, cluster);
        let (ended, refused_ends) = sift(ended, cluster);
        refused.extend(refused_ends);
        self.complain(refused, only);

        let board = Arc::clone(&self.parts.desk.board);
        let changes = self.runs.take(jobs, ended, only, SystemTime::now());
        // Ends before starts: a requeued job's board entry is the new run's.
        for id in &changes.ended {
            let Some(run) = self.runs.get(id) else { continue };
            tracing::info!(job = %run.job.job, vanished = changes.vanished.contains(id), "a job ended");
            board.leave(run.job.job, id);
            self.tell(&ToServer::Ended { run: *id });
        }
        for id in &changes.new {
            let Some(run) = self.runs.get(id) else { continue };
            if !run.job.ended {
                tracing::info!(job = %run.job.job, uid = %run.job.uid, "a job is here");
                board.enter(run.job.job, id, first_outcome(&run.job));
            }
            self.tell(&ToServer::Job(Box::new(run.job.clone())));
        }
        if only.is_none() {
            // Told to an earlier credd, which did not live to end them.
            let over = self.runs.all().filter(|run| run.traits.over && !run.job.ended);
            self.over.extend(over.map(|run| run.job.run));
        }
        for run in changes.given_up {
            tracing::warn!(job = %run.job.job, "credvend never took the end of this job: given up");
            if let Some(path) = &run.path {
                self.remove_directory(path, &run.job.run);
            }
        }
        self.take_late(late, late_ends, only);
        self.identify();
        if only.is_none()
            && let Err(error) = run_dir::sweep(&self.run_dir, SystemTime::now())
        {
            tracing::error!(%error, "cannot sweep the run directory");
        }
        if !self.looked && only.is_none() {
            self.looked = true;
            self.tell(&ToServer::Scanned);
        }
        true
    }

    /// Each bad directory is logged once for each thing that is wrong with it.
    pub(super) fn complain(&mut self, refused: Vec<(PathBuf, String)>, only: Option<JobId>) {
        let now: HashSet<_> = refused.into_iter().collect();
        for (path, why) in now.difference(&self.complained) {
            tracing::error!(?path, why, "a job record is refused and left where it is: that job gets no credentials");
        }
        match only {
            None => self.complained = now,
            Some(job) => {
                let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
                let of_job = |name: String| name.split('.').next() == Some(&job.to_string());
                self.complained.retain(|(path, _)| !name(path).is_some_and(of_job));
                self.complained.extend(now);
            }
        }
    }

    /// The records that are not served, in a sentence; `None` if all are.
    pub(super) fn record_problem(&self) -> Option<String> {
        if let Some(why) = &self.unreadable {
            return Some(format!("the job records cannot be looked at: {why}"));
        }
        let (path, why) = self.complained.iter().min()?;
        let more = match self.complained.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        Some(format!("{}: {why}; that job gets no credentials{more}", path.display()))
    }

    pub fn identify(&self) {
        let recorded = self.runs.identity();
        let (cluster, node) = recorded.map_or((None, None), |(cluster, node)| (Some(cluster), Some(node)));
        let cluster = self.config.cluster.clone().or(cluster);
        let node = self.config.node.clone().or(node).or_else(|| self.parts.host.clone());
        self.parts.identity.set(cluster, node);
    }
}

/// What an earlier keeper left in the record's directory stands.
fn first_outcome(job: &Job) -> Outcome {
    match (&job.refused, job.session) {
        (Some(reason), _) => Outcome::Refused { reason: reason.clone() },
        (None, Some(_)) => Outcome::Open,
        (None, None) => Outcome::Opening { reason: None },
    }
}
