//! Measures the plugin's own part of a job's start on real files, without Slurm: medians of `job_prolog` and of a step's
//! `init_post_opt` (`init` only registers the options), one line of JSON.
//!
//! ```text
//! cargo run --release -p spank-plugin --example hook_times [ROUNDS]
//! ```
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use credd_protocol::record::RunDir;
use slurm_spank::{Context, Environment, Error, Job, JobOption, Level, StepId, Used};
use spank_credd::job_options::Asked;
use spank_credd::plugstack::Plugstack;
use spank_credd::{environment, epilog, prolog, step};

/// A job that answers at once.
struct Bench {
    id: u32,
    env: BTreeMap<String, Vec<u8>>,
}

impl Environment for Bench {
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.env.get(name).cloned()
    }
    fn set(&mut self, name: &str, value: &[u8]) -> Result<(), Error> {
        self.env.set(name, value)
    }
    fn unset(&mut self, name: &str) -> Result<(), Error> {
        self.env.unset(name)
    }
}

impl Job for Bench {
    fn context(&self) -> Context {
        Context::Remote
    }
    fn id(&self) -> Result<u32, Error> {
        Ok(self.id)
    }
    fn uid(&self) -> Result<u32, Error> {
        Ok(1001)
    }
    fn gid(&self) -> Result<u32, Error> {
        Ok(1001)
    }
    fn step(&self) -> Result<StepId, Error> {
        Ok(StepId::Batch)
    }
    fn node_index(&self) -> Result<u32, Error> {
        Ok(0)
    }
    fn task_index(&self) -> Result<u32, Error> {
        Ok(0)
    }
    fn register(&mut self, _: &JobOption) -> Result<(), Error> {
        Ok(())
    }
    fn used(&mut self, _: &JobOption) -> Result<Option<Used>, Error> {
        Ok(None)
    }
    fn log(&self, level: Level, message: &str) {
        // Whatever is said here means that the usual way was not measured; that no credd listens is expected.
        assert!(level == Level::Info, "{message}");
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

fn main() {
    let rounds: u32 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1000);
    // As on a node: the run directory is on tmpfs.
    let dir = tempfile::Builder::new().prefix("credd-hook-times-").tempdir_in("/dev/shm").expect("/dev/shm is a tmpfs");
    let paths = RunDir::new(dir.path().join("run"));
    let arguments =
        ["default=on".to_owned(), "partition:debug=off".into(), format!("run-dir={}", paths.path().display())];
    let (mut prologs, mut steps, mut epilogs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        let mut job = Bench { id: round, env: BTreeMap::new() };
        let facts: BTreeMap<String, Vec<u8>> = [
            ("SLURM_JOB_ID", round.to_string()),
            ("SLURM_JOB_UID", "1001".into()),
            ("SLURM_JOB_USER", "alice".into()),
            ("SLURM_JOB_ACCOUNT", "genomics".into()),
            ("SLURM_JOB_PARTITION", "batch".into()),
            ("SLURM_JOB_RESTART_COUNT", "0".into()),
            ("SLURM_CLUSTER_NAME", "lab".into()),
            ("SLURMD_NODENAME", "n1".into()),
            ("SLURM_NODELIST", "n[1-2]".into()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into_bytes()))
        .collect();

        let start = Instant::now();
        let site = Plugstack::parse(&arguments);
        prolog::job_prolog(&mut job, &facts, &site, Asked::default(), 0, Path::new("/proc"));
        prologs.push(start.elapsed());
        std::fs::write(paths.endpoint(), "9999\n").expect("the run directory is ours");

        let start = Instant::now();
        let site = Plugstack::parse(&arguments);
        let plan = step::init_post_opt(&mut job, &site, Asked::default());
        steps.push(start.elapsed());
        assert_eq!((plan, job.env.contains_key(environment::TOKEN)), (step::Plan::default(), true));

        let start = Instant::now();
        epilog::job_epilog(&job, &Plugstack::parse(&arguments));
        epilogs.push(start.elapsed());
    }
    println!(
        r#"{{"rounds":{rounds},"job-prolog-ms":{:.4},"init-post-opt-ms":{:.4},"job-epilog-ms":{:.4}}}"#,
        median(prologs),
        median(steps),
        median(epilogs)
    );
}
