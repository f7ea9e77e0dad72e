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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::{FULL_URI, METADATA_DISABLED, TOKEN, TOKEN_FILE};
    use crate::scripted_job::ScriptedJob;
    use std::collections::BTreeMap;

    #[test]
    fn a_parent_jobs_token_is_not_sent_along_whatever_the_plugins_options() {
        for arguments in [&[][..], &["default=off".to_owned()], &["nonsense".to_owned()]] {
            let mut env: BTreeMap<String, Vec<u8>> = [
                (FULL_URI, "http://127.0.0.1:9999/sessions/7/cluster/lab/project/p?roleSessionName=x"),
                (TOKEN, "credd1-0123"),
                (TOKEN_FILE, "/run/credd/tokens/7"),
                ("CREDD_ADDED", "AWS_EC2_METADATA_DISABLED=true no_proxy=127.0.0.1"),
                (METADATA_DISABLED, "true"),
                ("no_proxy", "127.0.0.1"),
                ("AWS_REGION", "eu-west-1"),
            ]
            .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
            .into();
            let mut job = ScriptedJob::new();
            init(&mut job, &mut env, &Plugstack::parse(arguments), &[]);
            assert_eq!(env.keys().collect::<Vec<_>>(), ["AWS_REGION"]);
            assert_eq!(job.said(Level::Error), "");
        }
    }
}
