//! A step's slurmstepd, as root: cleans the step's environment, sets what the SDKs need, and, where the partition has
//! `on-error=fail`, refuses the job if there are no credentials.
//!
//! The step's environment comes from the user and is believed in nothing that gives anything: job id and uid are
//! Slurm's items, all else is the record's. Its `SLURM_JOB_PARTITION` is read only where the job's start left nothing here:
//! see [`crate::late`].

mod found;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use credd_protocol::late::LateRecord;
use credd_protocol::record::{OnError, RunDir};
use credd_protocol::{JobId, JobToken, Uid};
use slurm_spank::{Job, Level, StepId};

use self::found::Found;
use crate::job_options::Asked;
use crate::late::{Answer, Question};
use crate::plugstack::{Plugstack, Policy};
use crate::run_files::RunFiles;
use crate::{credd, environment};

/// What the hooks after `init_post_opt` have left to do. Those run where root's files cannot be read (`user_init`), or in
/// the forked child of each task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// For the user's stderr, once a step.
    pub notices: Vec<String>,
    /// Whether the tasks may start.
    pub gate: Gate,
}

/// Whether a task may start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Gate {
    /// It may.
    #[default]
    Pass,
    /// It may not, for this reason.
    Closed(String),
    /// credd knows.
    Ask {
        /// Which job.
        job: JobId,
        /// Until when it may take to know.
        end: Instant,
        /// The partition's `wait=`, for the message.
        wait: Duration,
        /// Where credd is asked.
        run_dir: PathBuf,
    },
    /// credvend knows: the job has a late record, and some partition demands credentials.
    AskLate(Question),
}

/// Why a step has no credentials, and what its partition makes of that.
struct Without {
    why: String,
    on_error: OnError,
}

/// Cleans and sets the step's variables.
pub fn init_post_opt(job: &mut dyn Job, site: &Plugstack, asked: Asked) -> Plan {
    let mut plan = Plan::default();
    // First of all, and whatever follows: a parent job's token must not be this job's.
    if let Err(error) = environment::clean_inherited(job, &site.run_dir) {
        job.log(Level::Error, &format!("spank_credd: a parent job's AWS variables could not be removed: {error}"));
    }
    if matches!(job.step(), Ok(StepId::Extern)) {
        return plan;
    }
    let prepared = if asked.aws == Some(false) { Ok(false) } else { prepare(job, site, asked, &mut plan) };
    if !matches!(prepared, Ok(true)) {
        disable_metadata(job, site, prepared.is_err());
    }
    match prepared {
        Ok(_) => {}
        Err(Without { why, on_error: OnError::Continue }) => {
            job.log(Level::Info, &format!("spank_credd: a step starts without AWS credentials: {why}"));
            plan.notices.push(format!("credd: no AWS credentials: {why}"));
        }
        Err(Without { why, on_error: OnError::Fail }) => plan.gate = Gate::Closed(why),
    }
    plan
}

/// A step without credentials must not fall through to the role of the EC2 instance where it should have had its project's
/// (`expected`), nor where its partition has `metadata=off`. A partition is the environment's word here: whoever forges it
/// could as well unset the variable.
fn disable_metadata(job: &mut dyn Job, site: &Plugstack, expected: bool) {
    let metadata = site.metadata(&partition_by_environment(job));
    if (expected || metadata.disabled)
        && let Err(error) = environment::disable_metadata(job, metadata.region.as_ref())
    {
        job.log(Level::Error, &format!("spank_credd: the EC2 metadata service could not be disabled: {error}"));
    }
}

fn partition_by_environment(job: &dyn Job) -> String {
    job.get("SLURM_JOB_PARTITION").map(|name| String::from_utf8_lossy(&name).into_owned()).unwrap_or_default()
}

/// Sets the variables of a step that is to have credentials; `false` if it is not.
fn prepare(job: &mut dyn Job, site: &Plugstack, asked: Asked, plan: &mut Plan) -> Result<bool, Without> {
    let (files, record) = match found::find(job, site, asked, plan)? {
        Found::Nothing => return Ok(false),
        Found::Record(files, record) => (files, record),
        Found::Late(files, late, claimed) => return prepare_late(job, site, asked, plan, (&files, &late, &claimed)),
    };
    let on_error = record.options.on_error;
    let without = |why: String| Without { why, on_error };
    if let Some(reason) = files.refused(record.job) {
        return Err(without(reason));
    }
    let wait =
        if on_error == OnError::Fail { Duration::from_millis(record.options.wait_ms.into()) } else { Duration::ZERO };
    let end = Instant::now() + wait;
    let port = credd::poll_until(end, || files.endpoint())
        .ok_or_else(|| without(format!("credd does not serve on node {}; tell your administrator", record.node)))?;
    let wanted = record.options.token_file || asked.token_file;
    let token_file = wanted.then(|| token_file(&files, &site.run_dir, (record.job, record.uid, &record.token), plan));
    let token_file = token_file.flatten();
    environment::inject(job, &record, port, token_file.as_deref(), &site.metadata(record.partition.as_str()))
        .map_err(|error| without(format!("Slurm did not take the variables: {error}")))?;
    mention_other_identities(job, &files, record.job, plan);
    if on_error == OnError::Fail {
        plan.gate = Gate::Ask { job: record.job, end, wait, run_dir: site.run_dir.path().to_owned() };
    }
    Ok(true)
}

/// Once a job: which variables of its environment win over its project's role.
fn mention_other_identities(job: &dyn Job, files: &RunFiles, id: JobId, plan: &mut Plan) {
    if is_first_step(job) && job.node_index() == Ok(0) {
        let others = environment::other_identities::notices(job);
        if !others.is_empty() && files.is_first_notice(id) {
            plan.notices.extend(others);
        }
    }
}

/// Sets the variables of a step whose job has a late record only, if the claimed partition is on: at once, since an SDK's
/// request waits for Slurm's word anyway. Only the tasks of a site where some partition demands credentials wait for it.
fn prepare_late(
    job: &mut dyn Job,
    site: &Plugstack,
    asked: Asked,
    plan: &mut Plan,
    (files, late, claimed): (&RunFiles, &LateRecord, &Policy),
) -> Result<bool, Without> {
    let without = |why: String| Without { why, on_error: found::on_error(claimed) };
    if files.is_off(late.job) {
        return Ok(false);
    }
    let question = Question::of(site, late.job, claimed);
    plan.gate = question.clone().map_or(Gate::Pass, Gate::AskLate);
    match files.refused(late.job) {
        // What happens to the task is the question's to decide.
        Some(_) if matches!(claimed, Policy::Off) => {}
        Some(reason) => return Err(without(reason)),
        None => {}
    }
    if let Policy::On(options) = claimed {
        let demanding = question.as_ref().filter(|question| question.claimed.is_some());
        let end = demanding.map_or_else(Instant::now, Question::end);
        let port = credd::poll_until(end, || files.endpoint())
            .ok_or_else(|| without("credd does not serve on this node; tell your administrator".into()))?;
        let wanted = options.token_file || asked.token_file;
        let token_file = wanted.then(|| token_file(files, &site.run_dir, (late.job, late.uid, &late.token), plan));
        let metadata = site.metadata(&partition_by_environment(job));
        environment::inject_late(job, late, port, token_file.flatten().as_deref(), options.region.as_ref(), &metadata)
            .map_err(|error| without(format!("Slurm did not take the variables: {error}")))?;
        if let Gate::AskLate(question) = &mut plan.gate {
            question.offered = true;
        }
        mention_other_identities(job, files, late.job, plan);
    }
    if let Policy::Broken(why) = claimed {
        plan.notices.push(format!("credd: no AWS credentials: {why}"));
    }
    Ok(matches!(claimed, Policy::On(_)))
}

/// The path to offer, where the job or its partition asked for one.
fn token_file(
    files: &RunFiles,
    run_dir: &RunDir,
    (job, uid, token): (JobId, Uid, &JobToken),
    plan: &mut Plan,
) -> Option<Vec<u8>> {
    let path = run_dir.token_file(job);
    // The prolog has written it, unless only this step asks for it.
    let result = if path.exists() { Ok(path) } else { files.write_token_file(job, token, uid.0) };
    match result {
        Ok(path) => Some(path.into_os_string().into_encoded_bytes()),
        Err(error) => {
            plan.notices.push(format!("credd: the token file could not be written: {error}"));
            None
        }
    }
}

/// A job has few of them: with the note in its directory, one job says one thing once.
fn is_first_step(job: &dyn Job) -> bool {
    matches!(job.step(), Ok(StepId::Batch | StepId::Interactive | StepId::Number(0)))
}

/// Tells the user; once, not on each of ten thousand nodes.
pub fn user_init(job: &dyn Job, plan: &Plan) {
    if job.node_index() == Ok(0) {
        for notice in &plan.notices {
            job.log(Level::Notice, notice);
        }
    }
}

/// For the administrator, in slurmd's log: the job's user is told nothing, whose partition may be off.
fn by_claim(job: &dyn Job, why: &str) -> String {
    format!(
        "spank_credd: a task starts because its environment names partition {}, whose jobs need no AWS credentials: {why}",
        partition_by_environment(job)
    )
}

/// Whether the task may start; if not, says why.
pub fn task_init_privileged(job: &dyn Job, plan: &Plan) -> slurm_spank::Outcome {
    let is_first = job.task_index().is_ok_and(|index| index == 0);
    let why = match &plan.gate {
        Gate::Pass => None,
        Gate::Closed(why) => Some(why.clone()),
        Gate::Ask { job, end, wait, run_dir } => credd::why_not_open(&RunDir::new(run_dir), *job, *end, *wait),
        Gate::AskLate(question) => match question.ask() {
            Answer::Start => None,
            Answer::Refuse(why) => Some(why),
            Answer::ByClaim(why) => {
                if is_first {
                    job.log(Level::Info, &by_claim(job, &why));
                }
                None
            }
        },
    };
    let Some(why) = why else { return slurm_spank::Outcome::Proceed };
    if is_first {
        job.log(
            Level::Error,
            &format!(
                "credd: the job is stopped, since its partition demands AWS credentials and there are none: {why}"
            ),
        );
    }
    slurm_spank::Outcome::Refuse
}

#[cfg(test)]
mod tests;
