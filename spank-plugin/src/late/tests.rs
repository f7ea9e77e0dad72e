//! Steps of a job that has nothing on its node.

use std::fs;
use std::sync::Barrier;
use std::thread;

use credd_protocol::late::{Completed, SlurmFacts};
use credd_protocol::record::file;
use slurm_spank::{Environment, Level, Outcome as Verdict, StepId};

use super::*;
use crate::environment::{FULL_URI, TOKEN, TOKEN_FILE};
use crate::job_options::Asked;
use crate::run_files::Skipped;
use crate::scripted_job::{ScriptedJob, answering, run_dir};
use crate::step::{Gate, Plan, init_post_opt, task_init_privileged};

struct Lab {
    _temp: tempfile::TempDir,
    paths: RunDir,
    site: Plugstack,
    job: ScriptedJob,
}

/// A node where credd serves and no prolog has run; the step's environment claims this partition.
fn lab(arguments: &str, claimed: &str) -> Lab {
    let (temp, paths) = run_dir();
    let run_dir = format!("run-dir={}", paths.path().display());
    let site = Plugstack::parse(&arguments.split_whitespace().map(str::to_owned).chain([run_dir]).collect::<Vec<_>>());
    assert_eq!(site.problems, []);
    fs::write(paths.endpoint(), "9999\n").unwrap();
    let mut job = ScriptedJob::new();
    job.set("SLURM_JOB_PARTITION", claimed.as_bytes()).unwrap();
    Lab { _temp: temp, paths, site, job }
}

impl Lab {
    fn init(&mut self) -> Plan {
        init_post_opt(&mut self.job, &self.site, Asked::default())
    }

    fn files(&self) -> RunFiles {
        RunFiles::open(&self.paths).unwrap().unwrap()
    }

    fn id(&self) -> JobId {
        JobId::try_from(self.job.id).unwrap()
    }

    fn late(&self) -> Option<LateRecord> {
        self.files().read_late(self.id()).unwrap()
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.job.get(name).map(|value| String::from_utf8(value).unwrap())
    }

    /// As credd does when credvend names this partition.
    fn complete(&self, partition: &str) {
        let dir = self.paths.job(self.id());
        let facts = SlurmFacts {
            cluster: "lab".parse().unwrap(),
            node: "n1".parse().unwrap(),
            restart: 1,
            user: "alice".parse().unwrap(),
            account: Some("genomics".parse().unwrap()),
            partition: partition.parse().unwrap(),
        };
        match self.late().unwrap().complete(facts).unwrap() {
            Completed::Record(record) => {
                let path = dir.join(file::RECORD);
                fs::write(&path, record.to_json()).unwrap();
                fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
                fs::remove_file(dir.join(file::LATE)).unwrap();
            }
            Completed::Off => {
                fs::write(dir.join(file::OFF), partition).unwrap();
                fs::write(dir.join(file::REFUSED), format!("they are switched off for partition {partition}")).unwrap();
            }
            Completed::Broken(why) => fs::write(dir.join(file::REFUSED), why).unwrap(),
        }
    }
}

const MIXED: &str =
    "default=on partition:debug=off partition:gpu=on,role=train,region=eu-west-1,on-error=fail,wait=20s";

#[test]
fn a_step_leaves_what_it_knows_and_has_its_variables_at_once() {
    let mut lab = lab("default=on,region=eu-west-1 partition:debug=off", "batch");
    let told = answering(&lab.paths, vec![r#""ok""#.into()]);
    assert_eq!(lab.init(), Plan::default());
    assert_eq!(told.join().unwrap(), [r#"{"op":"started","job":12}"#]);
    let late = lab.late().unwrap();
    assert_eq!((late.job.get(), late.uid, late.gid), (12, Uid(1001), 1001));
    assert_eq!(*late.policies().unwrap().of(&"debug".parse().unwrap()), Policy::Off);
    assert_eq!(lab.variable(TOKEN).unwrap(), late.token.expose());
    assert_eq!(lab.variable(FULL_URI).unwrap(), "http://127.0.0.1:9999/sessions/12/cluster/-/project/-");
    assert_eq!((lab.variable("AWS_REGION"), lab.variable(TOKEN_FILE)), (Some("eu-west-1".into()), None));
    assert_eq!(fs::read_dir(lab.paths.unfinished()).unwrap().count(), 0);

    // The next step finds it, or what has become of it.
    lab.job.environment.clear();
    lab.job.set("SLURM_JOB_PARTITION", b"batch").unwrap();
    lab.job.step = StepId::Number(1);
    assert_eq!(lab.init(), Plan::default());
    assert_eq!(lab.variable(TOKEN).unwrap(), late.token.expose());
    lab.complete("batch");
    assert_eq!(lab.init(), Plan::default());
    assert_eq!(lab.variable(TOKEN).unwrap(), late.token.expose());
    assert!(lab.variable(FULL_URI).unwrap().contains("/project/genomics?"));
    assert!(lab.files().end(late.job).unwrap() && lab.late().is_none());
}

#[test]
fn steps_that_begin_together_have_one_token() {
    let lab = lab("", "batch");
    let owner = super::owner(&lab.job).unwrap();
    let (barrier, site) = (Barrier::new(8), &lab.site);
    let tokens: Vec<String> = thread::scope(|scope| {
        let steps: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    match leave(site, owner).unwrap().1 {
                        Left::Late(late) => late.token.expose().to_owned(),
                        Left::Record(_) => panic!("nobody completes it"),
                    }
                })
            })
            .collect();
        steps.into_iter().map(|step| step.join().unwrap()).collect()
    });
    assert!(tokens.iter().all(|token| *token == tokens[0]));
    assert_eq!(fs::read_dir(lab.paths.unfinished()).unwrap().count(), 0);
}

#[test]
fn where_the_partition_is_off_nothing_is_left() {
    for step in [StepId::Batch, StepId::Extern] {
        for (arguments, claimed) in [("default=off", "batch"), ("default=on partition:debug=off", "debug")] {
            let mut lab = lab(arguments, claimed);
            lab.job.step = step;
            assert_eq!(lab.init(), Plan::default());
            assert!(lab.late().is_none() && lab.variable(TOKEN).is_none());
        }
    }
    // The prolog ran, and said so.
    let mut lab = lab(MIXED, "gpu");
    RunFiles::open_or_create(&lab.paths).unwrap().write_skipped(lab.id(), &Skipped::Off).unwrap();
    assert_eq!(lab.init(), Plan::default());
    assert!(lab.late().is_none() && lab.variable(TOKEN).is_none());
    let mut lab = self::lab("", "batch");
    lab.job.step = StepId::Extern;
    assert_eq!(lab.init(), Plan::default());
    assert!(lab.late().is_none());
}

#[test]
fn a_claimed_partition_neither_gives_anything_nor_lets_anybody_escape() {
    for claimed in ["debug", "batch", "no-such"] {
        // The job is in gpu, which demands credentials, and its project has no such role.
        let mut lab = lab(MIXED, claimed);
        let plan = lab.init();
        assert_eq!(lab.variable(TOKEN).is_some(), claimed != "debug", "{claimed}");
        assert!(matches!(plan.gate, Gate::AskLate(_)), "{plan:?}");
        lab.complete("gpu");
        let answers = answering(&lab.paths, vec![r#"{"outcome":{"state":"refused","reason":"no role train"}}"#.into()]);
        assert_eq!(task_init_privileged(&lab.job, &plan), Verdict::Refuse, "{claimed}");
        assert!(lab.job.said(Level::Error).contains("no role train"));
        answers.join().unwrap();
    }
    // A job in debug that claims gpu: no step has anything once Slurm has spoken, and none is stopped.
    let mut lab = lab(MIXED, "gpu");
    let plan = lab.init();
    lab.complete("debug");
    assert_eq!(task_init_privileged(&lab.job, &plan), Verdict::Proceed);
    lab.job.environment.clear();
    lab.job.set("SLURM_JOB_PARTITION", b"gpu").unwrap();
    assert_eq!(lab.init(), Plan::default());
    assert!(lab.variable(TOKEN).is_none());
}

#[test]
fn only_a_partition_that_demands_credentials_makes_a_task_wait_for_them() {
    // Nothing to wait for: no partition demands any.
    assert_eq!(lab("default=on", "batch").init().gate, Gate::Pass);
    // Slurm names one that does not: the session is not waited for, and credd not asked.
    let mut honest = lab(MIXED, "batch");
    let plan = honest.init();
    honest.complete("batch");
    assert_eq!(task_init_privileged(&honest.job, &plan), Verdict::Proceed);
    // It does, and the session is open.
    let mut demanding = lab(MIXED, "gpu");
    let plan = demanding.init();
    demanding.complete("gpu");
    let answers = answering(&demanding.paths, vec![r#"{"outcome":{"state":"open"}}"#.into()]);
    assert_eq!(task_init_privileged(&demanding.job, &plan), Verdict::Proceed);
    answers.join().unwrap();
}

#[test]
fn while_slurms_word_is_not_there_the_claimed_partition_decides() {
    let brief = "default=on partition:gpu=on,on-error=fail,wait=20ms";
    for (claimed, verdict) in [("gpu", Verdict::Refuse), ("batch", Verdict::Proceed)] {
        let mut lab = lab(brief, claimed);
        let plan = lab.init();
        let away = r#"{"outcome":{"state":"opening","reason":"credvend is away"}}"#;
        let answers = answering(&lab.paths, vec![away.into()]);
        assert_eq!(task_init_privileged(&lab.job, &plan), verdict, "{claimed}");
        let said = lab.job.said(Level::Error);
        assert_eq!(said.contains("no prolog") && said.contains("(credvend is away)"), claimed == "gpu", "{said}");
        answers.join().unwrap();
        // credvend says no before it says which partition.
        fs::write(lab.paths.job(lab.id()).join(file::REFUSED), "Slurm says another uid").unwrap();
        assert_eq!(task_init_privileged(&lab.job, &plan), verdict, "{claimed}");
        let plan = lab.init();
        assert_eq!(matches!(plan.gate, Gate::Closed(why) if why.contains("another uid")), claimed == "gpu");
    }
}

#[test]
fn another_users_late_record_is_not_used() {
    let mut lab = lab("", "batch");
    lab.init();
    let old = lab.late().unwrap();
    // slurmctld lost its state and gave the number again; the first job's end was lost with it.
    lab.job.uid += 1;
    assert_eq!(lab.init(), Plan::default());
    let late = lab.late().unwrap();
    assert_eq!((late.uid, lab.variable(TOKEN).unwrap()), (Uid(1002), late.token.expose().to_owned()));
    assert_ne!(late.token, old.token);
    assert_eq!(fs::read_dir(lab.paths.ended()).unwrap().count(), 1);
}

#[test]
fn a_note_that_a_full_tmpfs_cut_short_is_no_note() {
    let mut lab = lab("default=on", "batch");
    RunFiles::open_or_create(&lab.paths).unwrap();
    fs::create_dir(lab.paths.path().join("skipped")).unwrap();
    fs::write(lab.paths.skipped(lab.id()), "").unwrap();
    assert_eq!(lab.init(), Plan::default());
    assert!(lab.late().is_some() && lab.variable(TOKEN).is_some());
}

#[test]
fn an_earlier_runs_record_whose_end_was_lost_is_not_taken_for_this_run() {
    let mut lab = lab("", "batch");
    lab.init();
    lab.complete("batch");
    let old = lab.files().read_record(lab.id()).unwrap().unwrap();
    lab.init();
    assert_eq!(lab.variable(TOKEN).unwrap(), old.token.expose(), "nobody has said that it is over");
    let dir = lab.paths.job(lab.id());
    fs::write(dir.join(file::REFUSED), "session x is COMPLETED: Slurm has restart 1").unwrap();
    fs::write(dir.join(file::OVER), "").unwrap();
    assert_eq!(lab.init(), Plan::default());
    let late = lab.late().unwrap();
    assert_ne!(late.token, old.token);
    assert_eq!(lab.variable(TOKEN).unwrap(), late.token.expose());
    assert_eq!(fs::read_dir(lab.paths.ended()).unwrap().count(), 1);
    // A step that had read the old record before leaves the new one alone.
    end_stale(&lab.site, &lab.files(), lab.id(), &old.token).unwrap();
    assert_eq!(lab.late().unwrap().token, late.token);
}
