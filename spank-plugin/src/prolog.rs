//! A job's start on a node: `slurmstepd spank prolog`, as root, before any process of the job.
//!
//! The facts come from this process's environment, which slurmctld made; a user's strings appear there only with a
//! `SPANK_` prefix. Whatever happens, the job starts: the hook's value would drain the node.

use std::io;
use std::path::Path;

use credd_protocol::local::Request;
use credd_protocol::record::{JobOptions, JobRecord, OnError, RunNames};
use credd_protocol::{Invalid, JobId, JobToken, Uid};
use slurm_spank::{Environment, Job, Level};

use crate::credd;
use crate::job_options::Asked;
use crate::live_steps;
use crate::node_list;
use crate::plugstack::{Plugstack, Policy};
use crate::run_files::{RunFiles, Skipped};

/// Writes the job's record where its partition is on, and tells credd. `now` is in seconds since 1970, `proc` is `/proc`.
pub fn job_prolog(job: &mut dyn Job, env: &dyn Environment, site: &Plugstack, asked: Asked, now: u64, proc: &Path) {
    for problem in &site.problems {
        job.log(Level::Error, &format!("spank_credd: {problem}"));
    }
    let Some(id) = job.id().ok().and_then(|id| JobId::try_from(id).ok()) else {
        return job.log(Level::Error, "spank_credd: Slurm gave the prolog no job id; the job gets no AWS credentials");
    };
    let plan = match site.policy(&variable(env, "SLURM_JOB_PARTITION").unwrap_or_default()) {
        // Steps ask where it matters: whether the prolog ran, and found the partition off.
        Policy::Off if site.demands_credentials() => Start::Note(Skipped::Off),
        Policy::Off => Start::Nothing,
        Policy::Broken(why) => Start::Note(Skipped::Failed { on_error: OnError::Continue, why }),
        Policy::On(_) if asked.aws == Some(false) => Start::Note(Skipped::Asked),
        Policy::On(options) => {
            let on_error = options.on_error;
            match facts(job, env, id, options, asked, now) {
                Ok(record) => Start::Record(Box::new(record), names(env, id)),
                Err(error) => Start::Note(Skipped::Failed { on_error, why: failed(&error.to_string()) }),
            }
        }
    };
    if let Start::Note(Skipped::Failed { why, .. }) = &plan {
        job.log(Level::Error, &format!("spank_credd: job {id} gets no AWS credentials on this node: {why}"));
    }
    if let Err(error) = start(site, id, plan, proc) {
        job.log(Level::Error, &format!("spank_credd: job {id} gets no AWS credentials on this node: {error}"));
    }
}

/// What to leave on the node.
enum Start {
    Nothing,
    Note(Skipped),
    Record(Box<JobRecord>, RunNames),
}

fn failed(why: &str) -> String {
    format!("this node could not prepare them ({why}); tell your administrator")
}

fn start(site: &Plugstack, id: JobId, plan: Start, proc: &Path) -> io::Result<()> {
    if let Some(files) = RunFiles::open(&site.run_dir)? {
        if let (Start::Record(record, _), Ok(Some(old))) = (&plan, files.read_record(id))
            && same_run(&old, record)
            && live_steps::any(proc, id)
        {
            // The prolog runs once more for a job that is running: its processes hold the old token.
            return Ok(());
        }
        if let (Start::Record(record, _), Ok(Some(late))) = (&plan, files.read_late(id))
            && late.uid == record.uid
            && live_steps::any(proc, id)
        {
            // It runs for the first time, and so do they; Slurm says the rest.
            return Ok(());
        }
        // Any other directory of this id belongs to a life before: the id came again, or a requeue without an epilog.
        if files.end(id)? {
            let _ = credd::tell(&site.run_dir, &Request::Ended { job: id });
        }
    }
    match plan {
        Start::Nothing => Ok(()),
        Start::Note(note) => skip(site, id, &note),
        Start::Record(record, names) => match write(site, &record, &names) {
            // credd finds the record by itself as well; telling it only saves time.
            Ok(()) => credd::tell(&site.run_dir, &Request::Started { job: id }).or(Ok(())),
            Err(error) => {
                let why = failed(&error.to_string());
                skip(site, id, &Skipped::Failed { on_error: record.options.on_error, why })
                    .map_err(|second| io::Error::other(format!("{error}; and no note of it was left: {second}")))?;
                Err(error)
            }
        },
    }
}

fn same_run(old: &JobRecord, new: &JobRecord) -> bool {
    (old.job, old.restart, old.uid, &old.account, &old.partition, &old.cluster, &old.node)
        == (new.job, new.restart, new.uid, &new.account, &new.partition, &new.cluster, &new.node)
}

fn skip(site: &Plugstack, id: JobId, skipped: &Skipped) -> io::Result<()> {
    RunFiles::open_or_create(&site.run_dir)?.write_skipped(id, skipped)
}

fn write(site: &Plugstack, record: &JobRecord, names: &RunNames) -> io::Result<()> {
    let files = RunFiles::open_or_create(&site.run_dir)?;
    files.write_record(record, names)?;
    if record.options.token_file {
        // The step tries again, and tells the user what is in its way; the variable serves without the file.
        let _ = files.write_token_file(record.job, &record.token, record.uid.0);
    }
    Ok(())
}

fn facts(
    job: &dyn Job,
    env: &dyn Environment,
    id: JobId,
    options: JobOptions,
    asked: Asked,
    now: u64,
) -> Result<JobRecord, Invalid> {
    let missing = |name: &'static str| Invalid::new(name, "", "slurmd did not set it for the prolog");
    let need = |name: &'static str| variable(env, name).ok_or_else(|| missing(name));
    let uid = Uid(job.uid().map_err(|_| missing("S_JOB_UID"))?);
    let same = |name: &'static str, item: u32| match variable(env, name) {
        Some(text) if text.parse() != Ok(item) => Err(Invalid::new(name, &text, format!("the prolog runs for {item}"))),
        _ => Ok(()),
    };
    same("SLURM_JOB_ID", id.get())?;
    same("SLURM_JOB_UID", uid.0)?;
    let node = need("SLURMD_NODENAME")?;
    Ok(JobRecord {
        version: JobRecord::VERSION,
        job: id,
        restart: match variable(env, "SLURM_JOB_RESTART_COUNT") {
            None => 0,
            Some(text) => {
                text.parse().map_err(|_| Invalid::new("SLURM_JOB_RESTART_COUNT", &text, "it must be a number"))?
            }
        },
        cluster: need("SLURM_CLUSTER_NAME")?.parse()?,
        user: need("SLURM_JOB_USER")?.parse()?,
        uid,
        gid: job.gid().map_err(|_| missing("S_JOB_GID"))?,
        account: variable(env, "SLURM_JOB_ACCOUNT").map(|text| text.parse()).transpose()?,
        partition: need("SLURM_JOB_PARTITION")?.parse()?,
        first_node: variable(env, "SLURM_NODELIST").and_then(|list| node_list::first(&list)).is_some_and(|n| n == node),
        node: node.parse()?,
        created: now,
        token: JobToken::mint().map_err(|error| Invalid::new("token", "", error.to_string()))?,
        options: JobOptions { token_file: options.token_file || asked.token_file, ..options },
    })
}

/// The run's other names. None is needed for credentials: what is not understood is left out.
fn names(env: &dyn Environment, id: JobId) -> RunNames {
    RunNames {
        sluid: variable(env, "SLURM_JOB_SLUID").and_then(|text| text.parse().ok()),
        het_leader: variable(env, "SLURM_HET_JOB_ID")
            .and_then(|text| text.parse().ok())
            .and_then(|leader: u32| JobId::try_from(leader).ok())
            .filter(|leader| *leader != id),
    }
}

/// A variable's text; an empty one counts as absent, as slurmctld means it.
fn variable(env: &dyn Environment, name: &str) -> Option<String> {
    let text = String::from_utf8_lossy(&env.get(name)?).into_owned();
    // "(null)" is what some releases print for an absent string.
    (!text.is_empty() && text != "(null)").then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted_job::{ScriptedJob, prolog_environment, run_dir};
    use credd_protocol::Sluid;
    use credd_protocol::record::{RunDir, file};

    fn site(paths: &RunDir, arguments: &str) -> Plugstack {
        let run_dir = format!("run-dir={}", paths.path().display());
        Plugstack::parse(&arguments.split_whitespace().map(str::to_owned).chain([run_dir]).collect::<Vec<_>>())
    }

    fn prolog(paths: &RunDir, arguments: &str, asked: Asked) -> (RunFiles, ScriptedJob, JobId) {
        let mut job = ScriptedJob::new();
        job_prolog(&mut job, &prolog_environment(), &site(paths, arguments), asked, 1000, Path::new("/nonexistent"));
        (RunFiles::open(paths).unwrap().unwrap(), job, JobId::try_from(12).unwrap())
    }

    #[test]
    fn the_record_holds_slurmctlds_facts_and_the_partitions_options() {
        let (_temp, paths) = run_dir();
        let (files, job, id) = prolog(&paths, "default=off partition:batch=on,role=train,wait=2s", Asked::default());
        let record = files.read_record(id).unwrap().unwrap();
        assert_eq!((record.restart, record.created, record.first_node), (1, 1000, true));
        assert_eq!((record.user.as_str(), record.uid, record.gid), ("alice", Uid(job.uid), 1001));
        assert_eq!(record.account.as_ref().unwrap().as_str(), "genomics");
        assert_eq!((record.options.role.as_str(), record.options.wait_ms), ("train", 2000));
        assert!(!paths.token_file(id).exists());
    }

    #[test]
    fn a_component_of_a_heterogeneous_job_names_its_leader_and_a_run_its_sluid() {
        for (leader, sluid, expected) in [
            (Some("11"), Some("s4HP2WQ8ZK1RT0"), (Some(11), Some("s4HP2WQ8ZK1RT0"))),
            (Some("12"), None, (None, None)),
            (None, None, (None, None)),
            (Some("x"), Some("../s"), (None, None)),
        ] {
            let (_temp, paths) = run_dir();
            let (mut env, mut job) = (prolog_environment(), ScriptedJob::new());
            for (name, value) in [("SLURM_HET_JOB_ID", leader), ("SLURM_JOB_SLUID", sluid)] {
                value.map(|value| env.insert(name.into(), value.into()));
            }
            job_prolog(&mut job, &env, &site(&paths, ""), Asked::default(), 0, Path::new("/nonexistent"));
            let file = paths.job(JobId::try_from(12).unwrap()).join(file::NAMES);
            assert_eq!(file.exists(), expected != (None, None), "it is written only if there is something to say");
            let names = RunNames::from_json(&std::fs::read_to_string(file).unwrap_or_default());
            assert_eq!((names.het_leader.map(JobId::get), names.sluid.as_ref().map(Sluid::as_str)), expected);
        }
    }

    #[test]
    fn off_writes_nothing_and_a_users_off_leaves_a_note() {
        let (_temp, paths) = run_dir();
        let (files, _, id) = prolog(&paths, "default=off", Asked { aws: Some(true), token_file: true });
        assert_eq!((files.read_record(id).unwrap(), files.skipped(id)), (None, None));
        let (files, _, id) = prolog(&paths, "default=off partition:gpu=on,on-error=fail", Asked::default());
        assert_eq!((files.read_record(id).unwrap(), files.skipped(id)), (None, Some(Skipped::Off)));
        let (files, _, id) = prolog(&paths, "default=on", Asked { aws: Some(false), token_file: true });
        assert_eq!((files.read_record(id).unwrap(), files.skipped(id)), (None, Some(Skipped::Asked)));
        assert!(!paths.token_file(id).exists());
    }

    #[test]
    #[cfg_attr(not(is_root), ignore = "gives a token file to another uid: run this test as root")]
    fn a_record_left_by_another_life_is_ended_first() {
        let (_temp, paths) = run_dir();
        let (files, _, id) = prolog(&paths, "", Asked { aws: None, token_file: true });
        let old = files.read_record(id).unwrap().unwrap();
        assert!(old.options.token_file && paths.token_file(id).exists());
        let (files, _, _) = prolog(&paths, "", Asked::default());
        assert_ne!(files.read_record(id).unwrap().unwrap().token, old.token);
        assert!(!paths.token_file(id).exists());
        assert_eq!(std::fs::read_dir(paths.ended()).unwrap().count(), 1);
        prolog(&paths, "default=off", Asked::default());
        assert_eq!(std::fs::read_dir(paths.ended()).unwrap().count(), 2);
    }

    #[test]
    fn a_prolog_that_runs_again_during_the_job_takes_no_token_away() {
        let (_temp, paths) = run_dir();
        let proc = tempfile::tempdir().unwrap();
        std::fs::create_dir(proc.path().join("9")).unwrap();
        std::fs::write(proc.path().join("9/cmdline"), "slurmstepd: [12.batch]\0").unwrap();
        std::fs::write(proc.path().join("9/status"), "Uid:\t0\t0\t0\t0\n").unwrap();
        let token = |restart: &str| {
            let (mut env, mut job) = (prolog_environment(), ScriptedJob::new());
            env.insert("SLURM_JOB_RESTART_COUNT".into(), restart.into());
            job_prolog(&mut job, &env, &site(&paths, ""), Asked::default(), 0, proc.path());
            RunFiles::open(&paths).unwrap().unwrap().read_record(JobId::try_from(12).unwrap()).unwrap().unwrap().token
        };
        let first = token("0");
        assert_eq!(token("0"), first);
        // A requeued job is another run, whatever of the first still hangs about.
        assert_ne!(token("1"), first);
        assert_eq!(std::fs::read_dir(paths.ended()).unwrap().count(), 1);
    }

    #[test]
    fn a_prolog_that_comes_late_leaves_the_tokens_that_steps_hold() {
        let (_temp, paths) = run_dir();
        let proc = tempfile::tempdir().unwrap();
        let (mut job, site) = (ScriptedJob::new(), site(&paths, ""));
        crate::step::init_post_opt(&mut job, &site, Asked::default());
        let files = RunFiles::open(&paths).unwrap().unwrap();
        let id = JobId::try_from(12).unwrap();
        let late = files.read_late(id).unwrap().unwrap();
        std::fs::create_dir(proc.path().join("9")).unwrap();
        std::fs::write(proc.path().join("9/cmdline"), "slurmstepd: [12.batch]\0").unwrap();
        std::fs::write(proc.path().join("9/status"), "Uid:\t0\t0\t0\t0\n").unwrap();
        job_prolog(&mut job, &prolog_environment(), &site, Asked::default(), 0, proc.path());
        assert_eq!(files.read_late(id).unwrap().unwrap(), late);
        // Where none is running any more, it was another run's.
        job_prolog(&mut job, &prolog_environment(), &site, Asked::default(), 0, Path::new("/nonexistent"));
        assert_ne!(files.read_record(id).unwrap().unwrap().token, late.token);
        assert_eq!((files.read_late(id).unwrap(), std::fs::read_dir(paths.ended()).unwrap().count()), (None, 1));
    }

    #[test]
    fn a_missing_or_contradicting_fact_leaves_a_note_instead_of_a_record() {
        for (name, value) in [
            ("SLURM_CLUSTER_NAME", None),
            ("SLURM_JOB_USER", Some("bad\nuser")),
            ("SLURM_JOB_UID", Some("0")),
            ("SLURM_JOB_ID", Some("13")),
            ("SLURM_JOB_RESTART_COUNT", Some("x")),
        ] {
            let (_temp, paths) = run_dir();
            let (mut env, mut job) = (prolog_environment(), ScriptedJob::new());
            env.remove(name);
            if let Some(value) = value {
                env.insert(name.into(), value.into());
            }
            job_prolog(
                &mut job,
                &env,
                &site(&paths, "default=on,on-error=fail"),
                Asked::default(),
                0,
                Path::new("/nonexistent"),
            );
            let files = RunFiles::open(&paths).unwrap().unwrap();
            let id = JobId::try_from(12).unwrap();
            assert_eq!(files.read_record(id).unwrap(), None, "{name}");
            assert!(matches!(files.skipped(id), Some(Skipped::Failed { on_error: OnError::Fail, .. })), "{name}");
            assert!(job.said(Level::Error).contains("job 12 gets no AWS credentials"), "{name}");
        }
    }

    #[test]
    fn an_unusable_run_directory_is_reported() {
        let paths = RunDir::new("/proc/no/such");
        let mut job = ScriptedJob::new();
        job_prolog(
            &mut job,
            &prolog_environment(),
            &site(&paths, "default=on nonsense"),
            Asked::default(),
            0,
            Path::new("/nonexistent"),
        );
        let said = job.said(Level::Error);
        assert!(said.contains("argument 2") && said.contains("no note of it was left"), "{said}");
    }
}
