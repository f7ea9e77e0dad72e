//! What a user does on the login host.

use std::fs;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::deadline::wait_for;
use crate::host::{Host, Output};
use crate::people;

/// A user logged in on the head, in the home directory, with no AWS credentials at all.
#[derive(Debug, Clone)]
pub struct AsUser {
    host: Host,
    name: String,
}

impl AsUser {
    pub(crate) fn new(host: Host, name: &str) -> Self {
        AsUser { host, name: name.to_owned() }
    }

    /// Runs any command on the login host.
    #[track_caller]
    pub fn run(&self, argv: &[&str]) -> Output {
        self.host.run_as(&self.name, argv)
    }

    /// Runs any command on the login host with more environment.
    #[track_caller]
    pub fn run_with(&self, env: &[(&str, &str)], argv: &[&str]) -> Output {
        self.host.run_with(&self.name, env, argv)
    }

    /// `srun ARGUMENTS`, waited for.
    #[track_caller]
    pub fn srun(&self, arguments: &[&str]) -> Output {
        self.srun_with(&[], arguments)
    }

    /// The same with more environment.
    #[track_caller]
    pub fn srun_with(&self, env: &[(&str, &str)], arguments: &[&str]) -> Output {
        let mut argv = vec!["srun"];
        argv.extend(arguments);
        self.run_with(env, &argv)
    }

    /// Starts `srun ARGUMENTS` and does not wait; its output is piped.
    pub fn start_srun(&self, arguments: &[&str]) -> Result<Child> {
        let mut argv = vec!["srun"];
        argv.extend(arguments);
        self.host.start_as(&self.name, &argv)
    }

    /// Writes a file into the home directory and gives its path.
    pub fn write_file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.host.layout.home_of(&self.name).join(name);
        fs::write(&path, text)?;
        self.host.layout.give(&path, &self.name)?;
        Ok(path.display().to_string())
    }

    /// Submits a batch script (its text; a `#!` line is added if it has none) with `sbatch ARGUMENTS`. Its output goes
    /// to `job-ID.out` in the home directory, see [`Self::job_output`].
    pub fn sbatch(&self, script: &str, arguments: &[&str]) -> Result<u32> {
        let script = if script.starts_with("#!") { script.to_owned() } else { format!("#!/bin/bash\n{script}\n") };
        // The text itself, on standard input, so that two tests never write one file.
        let mut argv =
            vec!["bash", "-c", "printf %s \"$SCRIPT\" | exec sbatch --parsable --output=job-%j.out \"$@\"", "sbatch"];
        argv.extend(arguments);
        let done = self.run_with(&[("SCRIPT", &script)], &argv);
        let id = done.stdout.trim().split(';').next().unwrap_or_default();
        id.parse().with_context(|| format!("{done:?}"))
    }

    /// What a batch job has printed, both streams.
    pub fn job_output(&self, job: u32) -> String {
        let path = self.host.layout.home_of(&self.name).join(format!("job-{job}.out"));
        fs::read_to_string(path).unwrap_or_default()
    }

    /// Waits until a batch job has printed a text, and gives all it printed.
    pub fn wait_job_output(&self, job: u32, text: &str, within: Duration) -> Result<String> {
        wait_for(&format!("{text:?} in the output of job {job}"), within, || {
            Some(self.job_output(job)).filter(|all| all.contains(text))
        })
        .with_context(|| format!("it printed {:?}", self.job_output(job)))
    }

    /// `scancel`.
    #[track_caller]
    pub fn scancel(&self, job: u32) -> Output {
        self.run(&["scancel", &job.to_string()])
    }

    /// A job's state as the controller has it (`RUNNING`, `COMPLETED`, …); empty if it does not know the job.
    pub fn job_state(&self, job: u32) -> String {
        let line = self.run(&["scontrol", "show", "job", "--oneliner", &job.to_string()]).stdout;
        let state = line.split_whitespace().find_map(|word| word.strip_prefix("JobState="));
        state.unwrap_or_default().to_owned()
    }

    /// Waits until a job is in a state.
    pub fn wait_job_state(&self, job: u32, state: &str, within: Duration) -> Result<()> {
        wait_for(&format!("job {job} to be {state}"), within, || (self.job_state(job) == state).then_some(()))
            .with_context(|| format!("it is {:?}", self.job_state(job)))
    }

    /// Waits until a job has ended and its nodes are free, and gives the state it ended in.
    pub fn wait_job(&self, job: u32, within: Duration) -> Result<String> {
        wait_for(&format!("the end of job {job}"), within, || {
            Some(self.job_state(job)).filter(|state| {
                !matches!(state.as_str(), "" | "PENDING" | "CONFIGURING" | "RUNNING" | "COMPLETING" | "SUSPENDED")
            })
        })
    }

    /// The user's uid.
    pub fn uid(&self) -> u32 {
        people::USERS.iter().find(|u| u.name == self.name).map_or(0, |u| u.uid)
    }
}
