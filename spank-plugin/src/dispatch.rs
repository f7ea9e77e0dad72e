//! Which file a hook goes to, by SPANK context.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use slurm_spank::{Context, Environment, Job, JobOption, Level, Outcome};

use crate::plugstack::Plugstack;
use crate::step::{Gate, Plan};
use crate::{epilog, job_options, prolog, step, submit_host};

/// From `init_post_opt` to the step's later hooks. A forked task's child inherits it.
static PLAN: Mutex<Option<Plan>> = Mutex::new(None);

fn plan() -> Plan {
    PLAN.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default()
}

/// `slurm_spank_init`. `process` gives the environment of this process, and is called only on the submit host.
pub fn init<E: Environment>(
    job: &mut dyn Job,
    arguments: &[String],
    options: &[JobOption],
    process: impl FnOnce() -> E,
) -> Outcome {
    match job.context() {
        Context::Local | Context::Allocator => {
            submit_host::init(job, &mut process(), &Plugstack::parse(arguments), options);
        }
        Context::Remote => submit_host::register(job, options),
        // Once, at slurmd's start: the admin looks there.
        Context::Slurmd => {
            let site = Plugstack::parse(arguments);
            for problem in &site.problems {
                job.log(Level::Error, &format!("spank_credd: {problem}"));
            }
            for advice in &site.advice {
                job.log(Level::Info, &format!("spank_credd: {advice}"));
            }
        }
        Context::JobScript | Context::Unknown => {}
    }
    Outcome::Proceed
}

/// `slurm_spank_init_post_opt`.
pub fn init_post_opt(job: &mut dyn Job, arguments: &[String]) -> Outcome {
    if job.context() == Context::Remote {
        let plan = step::init_post_opt(job, &Plugstack::parse(arguments), job_options::seen());
        *PLAN.lock().unwrap_or_else(PoisonError::into_inner) = Some(plan);
    }
    Outcome::Proceed
}

/// `slurm_spank_user_init`.
pub fn user_init(job: &mut dyn Job, _: &[String]) -> Outcome {
    step::user_init(job, &plan());
    Outcome::Proceed
}

/// `slurm_spank_task_init_privileged`.
pub fn task_init_privileged(job: &mut dyn Job, _: &[String]) -> Outcome {
    step::task_init_privileged(job, &plan())
}

/// After a panic in `task_init_privileged`: a job of an `on-error=fail` partition does not run unchecked, any other runs.
pub fn task_init_privileged_panicked() -> Outcome {
    if plan().gate == Gate::Pass { Outcome::Proceed } else { Outcome::Refuse }
}

/// `slurm_spank_job_prolog`.
pub fn job_prolog<E: Environment>(
    job: &mut dyn Job,
    arguments: &[String],
    options: &[JobOption; 2],
    process: impl FnOnce() -> E,
) -> Outcome {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let asked = job_options::of_job(job, options);
    prolog::job_prolog(job, &process(), &Plugstack::parse(arguments), asked, now, Path::new("/proc"));
    Outcome::Proceed
}

/// `slurm_spank_job_epilog`.
pub fn job_epilog(job: &mut dyn Job, arguments: &[String]) -> Outcome {
    epilog::job_epilog(job, &Plugstack::parse(arguments));
    Outcome::Proceed
}
