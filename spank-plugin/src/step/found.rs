//! What is on the node of a step's job: a record, a note why there is none, or nothing, and then a late record is left.

use credd_protocol::late::LateRecord;
use credd_protocol::record::{JobOptions, JobRecord, OnError};
use slurm_spank::{Job, Level};

use super::{Plan, Without, partition_by_environment};
use crate::job_options::Asked;
use crate::late::{self, Left, Owner};
use crate::plugstack::{Plugstack, Policy};
use crate::run_files::{RunFiles, Skipped};

/// What is on the node of this step's job.
pub enum Found {
    /// Its record.
    Record(RunFiles, Box<JobRecord>),
    /// A late one, and the policy of the partition that the environment claims.
    Late(RunFiles, Box<LateRecord>, Policy),
    /// It is to have no credentials.
    Nothing,
}

/// What a partition makes of a job without credentials.
pub fn on_error(policy: &Policy) -> OnError {
    if let Policy::On(JobOptions { on_error, .. }) = policy { *on_error } else { OnError::Continue }
}

/// The partition that the step's environment names, and what it gets.
struct Claim {
    partition: String,
    policy: Policy,
}

impl Claim {
    fn without(&self, why: String) -> Without {
        Without { why, on_error: on_error(&self.policy) }
    }

    /// This node cannot do its part. Where the partition is off, that is the administrator's business and not the job's.
    fn trouble(&self, job: &dyn Job, why: String) -> Result<Found, Without> {
        if self.policy != Policy::Off {
            return Err(self.without(why));
        }
        job.log(Level::Error, &format!("spank_credd: a step of partition {}, which is off: {why}", self.partition));
        Ok(Found::Nothing)
    }

    fn off(&self, asked: Asked, plan: &mut Plan) -> Found {
        if asked.aws == Some(true) {
            plan.notices.push(format!(
                "credd: no AWS credentials: they are switched off for partition {}, which --aws=on cannot change",
                self.partition
            ));
        }
        Found::Nothing
    }
}

/// The job's record, if this step is to have credentials. Without one the notes and the partition's policy say whether
/// that is as it should be; where nothing does, a late record is left.
pub fn find(job: &dyn Job, site: &Plugstack, asked: Asked, plan: &mut Plan) -> Result<Found, Without> {
    let partition = partition_by_environment(job);
    let claim = Claim { policy: site.policy(&partition), partition };
    let Some(owner) = late::owner(job) else {
        return claim.trouble(job, "Slurm did not say whose job this is".into());
    };
    let files = match RunFiles::open(&site.run_dir) {
        Ok(files) => files,
        Err(error) => return claim.trouble(job, error.to_string()),
    };
    if let Some(files) = &files {
        match files.read_record(owner.job).map_err(|why| claim.without(why))? {
            Some(record) if record.job == owner.job && record.uid == owner.uid && !files.is_over(owner.job) => {
                files.hold(owner.job);
                return Ok(Found::Record(files.clone(), Box::new(record)));
            }
            // Slurm's items say whose step this is: the record is of a job or run before, whose end was lost.
            Some(record) => {
                late::end_stale(site, files, owner.job, &record.token).map_err(|why| claim.without(why))?;
            }
            None => {}
        }
    }
    match files.and_then(|files| files.skipped(owner.job)) {
        Some(Skipped::Failed { on_error, why }) => Err(Without { why, on_error }),
        Some(Skipped::Asked) => {
            if asked.aws == Some(true) {
                plan.notices.push("credd: no AWS credentials: the job itself was submitted with --aws=off".into());
            }
            Ok(Found::Nothing)
        }
        Some(Skipped::Off) => Ok(claim.off(asked, plan)),
        None if late::is_of_use(site, &claim.policy) => leave_late(job, site, owner, claim),
        None => match &claim.policy {
            Policy::Broken(why) => Err(claim.without(why.clone())),
            _ => Ok(claim.off(asked, plan)),
        },
    }
}

fn leave_late(job: &dyn Job, site: &Plugstack, owner: Owner, claim: Claim) -> Result<Found, Without> {
    let (files, left) = match late::leave(site, owner) {
        Ok(left) => left,
        Err(why) => return claim.trouble(job, why),
    };
    files.hold(owner.job);
    Ok(match left {
        Left::Record(record) => Found::Record(files, record),
        Left::Late(late) => Found::Late(files, late, claim.policy),
    })
}
