//! A step that finds nothing of its job on the node, as root in its slurmstepd: slurmd ran no prolog here. It leaves a late
//! record ([`credd_protocol::late`]), which credd completes with what credvend has from Slurm.
//!
//! The partition that the step's environment names (`claimed` below) gives nobody anything: it says whether to set the
//! variables, which lead nowhere if Slurm names a partition that is off, and what to do while Slurm's word is not there.
//! Where any partition has `on-error=fail`, the tasks wait for that word. A step whose claimed partition does not demand
//! credentials waits at most [`UNDEMANDED_WAIT`], and not at all when credd names an obstacle: otherwise an outage of
//! credvend would delay jobs of partitions that have nothing to do with credentials. A task that starts without the word is
//! logged with the claim, so that a false one is not silent; its user could have had the same by `--aws=off`.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

pub use credd_protocol::late::Owner;
use credd_protocol::late::{LateRecord, Policy};
use credd_protocol::local::{Outcome, Request};
use credd_protocol::record::{JobOptions, JobRecord, OnError, RunDir};
use credd_protocol::{JobId, JobToken, PartitionName, Uid};
use slurm_spank::Job;

use crate::credd;
use crate::plugstack::Plugstack;
use crate::run_files::RunFiles;

/// Whose step it is, by Slurm's items; `None` where Slurm does not say.
pub fn owner(job: &dyn Job) -> Option<Owner> {
    Some(Owner { job: JobId::try_from(job.id().ok()?).ok()?, uid: Uid(job.uid().ok()?), gid: job.gid().ok()? })
}

/// What is on the node after a late record was left, or found.
#[derive(Debug)]
pub enum Left {
    /// The late record: Slurm's word is not there yet.
    Late(Box<LateRecord>),
    /// It is, and this is the record.
    Record(Box<JobRecord>),
}

/// How long a task waits for Slurm's word if its claimed partition does not demand credentials, but another one does.
const UNDEMANDED_WAIT: Duration = Duration::from_secs(1);

/// Whether a late record is of any use: some partition may be the job's.
pub fn is_of_use(site: &Plugstack, claimed: &Policy) -> bool {
    matches!(claimed, Policy::On(_)) || site.demands_credentials()
}

/// Leaves a late record, or finds the one that another step has left, and tells credd.
///
/// # Errors
/// A sentence: it could not be written.
pub fn leave(site: &Plugstack, owner: Owner) -> Result<(RunFiles, Left), String> {
    let failed = |why: String| {
        format!(
            "slurmd ran no prolog for job {} on this node, which could not prepare them then ({why}); tell your administrator",
            owner.job
        )
    };
    let files = RunFiles::open_or_create(&site.run_dir).map_err(|error| failed(error.to_string()))?;
    if let Some(left) = find(site, &files, owner)? {
        return Ok((files, left));
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let token = JobToken::mint().map_err(|error| failed(error.to_string()))?;
    let record = LateRecord::new(owner, token, &site.policies(), now);
    match files.write_late(&record) {
        Ok(()) => {
            // credd finds it by itself as well; telling it only saves time.
            let _ = credd::tell(&site.run_dir, &Request::Started { job: owner.job });
            Ok((files, Left::Late(Box::new(record))))
        }
        // Another step of the job began at the same moment: one token for all of them.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match find(site, &files, owner)? {
            Some(left) => Ok((files, left)),
            None => Err(failed("what another step left is gone again".into())),
        },
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Ends what an earlier run, or a job that had the number before, left behind, and tells credd.
///
/// # Errors
/// A sentence: it could not be ended.
pub fn end_stale(site: &Plugstack, files: &RunFiles, job: JobId, token: &JobToken) -> Result<(), String> {
    files.end_run(job, token).map_err(|error| format!("an earlier run's record could not be put aside: {error}"))?;
    // credd finds it in `ended/` by itself as well.
    let _ = credd::tell(&site.run_dir, &Request::Ended { job });
    Ok(())
}

/// What is there already of this owner's.
fn find(site: &Plugstack, files: &RunFiles, owner: Owner) -> Result<Option<Left>, String> {
    // The late one first: where credd completes it in between, the record is there when it is gone.
    let late = files.read_late(owner.job)?;
    if let Some(record) = files.read_record(owner.job)?.filter(|record| record.uid == owner.uid) {
        return Ok(Some(Left::Record(Box::new(record))));
    }
    match late {
        Some(late) if late.uid == owner.uid => Ok(Some(Left::Late(Box::new(late)))),
        Some(late) => end_stale(site, files, owner.job, &late.token).map(|()| None),
        None => Ok(None),
    }
}

/// What a task waits for whose job has a late record only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Which job.
    pub job: JobId,
    /// When its step began.
    pub start: Instant,
    /// Where credd is asked.
    pub run_dir: PathBuf,
    /// The `wait=` of the claimed partition, if that demands credentials.
    pub claimed: Option<Duration>,
    /// Whether the step has been given the variables.
    pub offered: bool,
}

/// Whether a task of such a job may start.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// It may: Slurm's word is there. Its partition does not demand credentials, or they are there.
    Start,
    /// It may, since the claimed partition does not demand credentials. Slurm's word is not there, and why.
    ByClaim(String),
    /// It may not, and why.
    Refuse(String),
}

impl Question {
    /// The question of a step, if any partition of the site demands credentials.
    pub fn of(site: &Plugstack, job: JobId, claimed: &Policy) -> Option<Self> {
        let wait = match claimed {
            Policy::On(JobOptions { on_error: OnError::Fail, wait_ms, .. }) => Some(milliseconds(*wait_ms)),
            _ => None,
        };
        let run_dir = site.run_dir.path().to_owned();
        site.demands_credentials().then(|| Question {
            job,
            start: Instant::now(),
            run_dir,
            claimed: wait,
            offered: false,
        })
    }

    /// Until when Slurm's word may take.
    pub fn end(&self) -> Instant {
        self.start + self.claimed.unwrap_or(UNDEMANDED_WAIT)
    }

    /// Waits for Slurm's word, and where its partition demands credentials, for these.
    pub fn ask(&self) -> Answer {
        let run_dir = RunDir::new(&self.run_dir);
        let files = RunFiles::open(&run_dir).ok().flatten();
        let mut obstacle = None;
        let word = credd::poll_until(self.end(), || {
            let word = files.as_ref().and_then(|files| Word::of(files, self.job));
            if word.is_some() || self.claimed.is_some() {
                return word;
            }
            obstacle = self.obstacle(&run_dir).ok().flatten();
            obstacle.is_some().then_some(Word::NotYet)
        });
        match word {
            Some(Word::Undemanding) => Answer::Start,
            Some(Word::Demanding { partition, .. }) if !self.offered => Answer::Refuse(format!(
                "the step was prepared without them, and now Slurm says that the job is in partition {partition}"
            )),
            Some(Word::Demanding { wait, .. }) => {
                let why = credd::why_not_open(&run_dir, self.job, self.start + wait, wait);
                why.map_or(Answer::Start, Answer::Refuse)
            }
            Some(Word::Refused(why)) => self.by_claim(why),
            Some(Word::NotYet) | None => {
                let silent = |error: io::Error| Some(format!("credd does not answer: {error}"));
                let obstacle = obstacle.or_else(|| self.obstacle(&run_dir).unwrap_or_else(silent));
                let obstacle = obstacle.map_or(String::new(), |why| format!(" ({why})"));
                let waited = self.start.elapsed().as_millis();
                self.by_claim(format!(
                    "slurmd ran no prolog for the job on this node, and Slurm's word about it was not there within {waited} ms{obstacle}"
                ))
            }
        }
    }

    /// What stands in the way of Slurm's word, if credd knows. An error: credd does not answer, and may be starting.
    fn obstacle(&self, run_dir: &RunDir) -> io::Result<Option<String>> {
        Ok(match credd::outcome(run_dir, self.job, Instant::now())? {
            Outcome::Opening { reason } => reason,
            Outcome::Refused { reason } => Some(reason),
            Outcome::Open | Outcome::Unknown => None,
        })
    }

    /// Where Slurm's partition cannot be known, an honest job's environment has it.
    fn by_claim(&self, why: String) -> Answer {
        if self.claimed.is_some() { Answer::Refuse(why) } else { Answer::ByClaim(why) }
    }
}

fn milliseconds(count: u32) -> Duration {
    Duration::from_millis(count.into())
}

/// What has become of a late record.
enum Word {
    /// Slurm's partition is known, and does not demand credentials.
    Undemanding,
    /// It is known, and does.
    Demanding {
        /// Its name.
        partition: PartitionName,
        /// Its `wait=`.
        wait: Duration,
    },
    /// No credentials, and the partition is not known.
    Refused(String),
    /// Nothing yet, and credd names an obstacle.
    NotYet,
}

impl Word {
    fn of(files: &RunFiles, job: JobId) -> Option<Self> {
        if files.is_off(job) {
            return Some(Word::Undemanding);
        }
        match files.read_record(job) {
            Ok(Some(JobRecord { options, partition, .. })) => Some(match options.on_error {
                OnError::Continue => Word::Undemanding,
                OnError::Fail => Word::Demanding { partition, wait: milliseconds(options.wait_ms) },
            }),
            Ok(None) => files.refused(job).map(Word::Refused),
            Err(why) => Some(Word::Refused(why)),
        }
    }
}

#[cfg(test)]
mod tests;
