//! A step that finds nothing of its job on the node, as root in its slurmstepd: slurmd ran no prolog here. It leaves a late
//! record ([`credd_protocol::late`]), which credd completes with what credvend has from Slurm.
//!
//! The partition that the step's environment names (`claimed` below) decides nothing that gives anything: it says whether
//! to set the variables, which lead nowhere if Slurm names a partition that is off, and what to do while Slurm's word is
//! not there. Where any partition has `on-error=fail`, the tasks wait for that word, so that nobody escapes it by a name.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

pub use credd_protocol::late::Owner;
use credd_protocol::late::{LateRecord, Policy};
use credd_protocol::local::{Outcome, Request};
use credd_protocol::record::{JobOptions, JobRecord, OnError, RunDir};
use credd_protocol::{JobId, JobToken, Uid};
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

/// Whether a late record is of any use: some partition may be the job's.
pub fn is_of_use(site: &Plugstack, claimed: &Policy) -> bool {
    matches!(claimed, Policy::On(_)) || site.demanded_wait().is_some()
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
    /// Until when Slurm's word and credd's may take.
    pub end: Instant,
    /// How long that is, for the message.
    pub wait: Duration,
    /// Where credd is asked.
    pub run_dir: PathBuf,
    /// What the claimed partition makes of a job without credentials.
    pub claimed: OnError,
}

impl Question {
    /// The question of a step, if any partition demands credentials: so long as that partition waits, or the claimed one if
    /// it is one of them.
    pub fn of(site: &Plugstack, job: JobId, claimed: &Policy) -> Option<Self> {
        let (claimed, wait) = match claimed {
            Policy::On(JobOptions { on_error: OnError::Fail, wait_ms, .. }) => {
                (OnError::Fail, Duration::from_millis((*wait_ms).into()))
            }
            _ => (OnError::Continue, site.demanded_wait()?),
        };
        Some(Question { job, end: Instant::now() + wait, wait, run_dir: site.run_dir.path().to_owned(), claimed })
    }

    /// Why the task may not start, if it may not.
    pub fn ask(&self) -> Option<String> {
        let run_dir = RunDir::new(&self.run_dir);
        let files = RunFiles::open(&run_dir).ok().flatten();
        let word = credd::poll_until(self.end, || Word::of(files.as_ref()?, self.job));
        match word {
            Some(Word::Partition(OnError::Continue)) => None,
            Some(Word::Partition(OnError::Fail)) => credd::why_not_open(&run_dir, self.job, self.end, self.wait),
            Some(Word::Refused(why)) => self.by_claim(why),
            None => {
                let obstacle = match credd::outcome(&run_dir, self.job, Instant::now()) {
                    Ok(Outcome::Opening { reason: Some(reason) }) => format!(" ({reason})"),
                    Err(error) => format!(" (credd does not answer: {error})"),
                    _ => String::new(),
                };
                let waited = self.wait.as_millis();
                self.by_claim(format!(
                    "slurmd ran no prolog for the job on this node, and Slurm's word about it was not there within {waited} ms{obstacle}"
                ))
            }
        }
    }

    /// Where Slurm's partition cannot be known, an honest job's environment has it.
    fn by_claim(&self, why: String) -> Option<String> {
        (self.claimed == OnError::Fail).then_some(why)
    }
}

/// What has become of a late record.
enum Word {
    /// Slurm's partition is known, and this is its policy.
    Partition(OnError),
    /// No credentials, and the partition is not known.
    Refused(String),
}

impl Word {
    fn of(files: &RunFiles, job: JobId) -> Option<Self> {
        if files.is_off(job) {
            return Some(Word::Partition(OnError::Continue));
        }
        match files.read_record(job) {
            Ok(Some(record)) => Some(Word::Partition(record.options.on_error)),
            Ok(None) => files.refused(job).map(Word::Refused),
            Err(why) => Some(Word::Refused(why)),
        }
    }
}

#[cfg(test)]
mod tests;
