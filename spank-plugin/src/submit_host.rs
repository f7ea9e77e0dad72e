//! srun, sbatch and salloc, as the user, before they look at their options or start a thread.

use slurm_spank::{Environment, Job, JobOption, Level};

use crate::environment;
use crate::plugstack::Plugstack;

/// Registers the options and removes what the job's parent left in the environment of this process, before it is sent:
/// slurmctld keeps a batch job's environment on disk, in clear.
pub fn init(job: &mut dyn Job, env: &mut dyn Environment, site: &Plugstack, options: &[JobOption]) {
    register(job, options);
    if let Err(error) = environment::clean_inherited(env, &site.run_dir) {
        job.log(Level::Error, &format!("spank_credd: a parent job's AWS variables could not be removed: {error}"));
    }
}

/// In every context that has options.
pub fn register(job: &mut dyn Job, options: &[JobOption]) {
    for option in options {
        if let Err(error) = job.register(option) {
            job.log(Level::Debug, &format!("spank_credd: option {:?}: {error}", option.name));
        }
    }
}
