//! Steps of a job that has nothing on its node.

use std::fs;
use std::sync::Barrier;
use std::thread;

use credd_protocol::fixtures;
use credd_protocol::late::Completed;
use credd_protocol::record::file;
use slurm_spank::{Environment, Level, Outcome as Verdict, StepId};

use super::*;
use crate::environment::{FULL_URI, METADATA_DISABLED, TOKEN, TOKEN_FILE};
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
        match self.late().unwrap().complete(fixtures::facts(partition)).unwrap() {
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
        // Without variables there is nothing to ask: whatever becomes of the session, this step has none.
        let refusal = r#"{"outcome":{"state":"refused","reason":"no role train"}}"#;
        let answers = (claimed != "debug").then(|| answering(&lab.paths, vec![refusal.into()]));
        assert_eq!(task_init_privileged(&lab.job, &plan), Verdict::Refuse, "{claimed}");
        let why = if claimed == "debug" { "prepared without them" } else { "no role train" };
        assert!(lab.job.said(Level::Error).contains(why), "{}", lab.job.said(Level::Error));
        answers.map(|answers| answers.join().unwrap());
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
fn a_false_claim_beside_a_credd_that_does_not_serve_is_no_way_out_either() {
    let mut lab = lab(MIXED, "batch");
    fs::remove_file(lab.paths.endpoint()).unwrap();
    let plan = lab.init();
    assert!(plan.notices[0].contains("credd does not serve") && lab.variable(TOKEN).is_none(), "{plan:?}");
    lab.complete("gpu");
    assert_eq!(task_init_privileged(&lab.job, &plan), Verdict::Refuse);
    assert!(lab.job.said(Level::Error).contains("in partition gpu"));
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
    assert_eq!(honest.job.said(Level::Info), "");
    // It does, and the session is open. As for its other jobs, its own `wait=` counts, whatever was claimed.
    for claimed in ["gpu", "batch"] {
        let mut demanding = lab(MIXED, claimed);
        let plan = demanding.init();
        demanding.complete("gpu");
        let opening = r#"{"outcome":{"state":"opening"}}"#;
        let answers = answering(&demanding.paths, vec![opening.into(), r#"{"outcome":{"state":"open"}}"#.into()]);
        assert_eq!(task_init_privileged(&demanding.job, &plan), Verdict::Proceed);
        let asked = answers.join().unwrap();
        let waits = |line: &String| {
            line.split("wait-ms\":").nth(1).and_then(|rest| rest.trim_end_matches('}').parse::<u64>().ok())
        };
        assert!(waits(&asked[0]).unwrap() > 1000, "{claimed}: {asked:?}");
    }
}

#[test]
fn while_slurms_word_is_not_there_the_claimed_partition_decides() {
    let brief = "default=on partition:debug=off partition:gpu=on,on-error=fail,wait=20ms";
    for (claimed, verdict) in [("gpu", Verdict::Refuse), ("batch", Verdict::Proceed), ("debug", Verdict::Proceed)] {
        let mut lab = lab(brief, claimed);
        let plan = lab.init();
        let away = r#"{"outcome":{"state":"opening","reason":"credvend is away"}}"#;
        let answers = answering(&lab.paths, vec![away.into()]);
        assert_eq!(task_init_privileged(&lab.job, &plan), verdict, "{claimed}");
        let refused = claimed == "gpu";
        for (level, says) in [(Level::Error, refused), (Level::Info, !refused)] {
            let said = lab.job.said(level);
            assert_eq!(said.contains("no prolog") && said.contains("(credvend is away)"), says, "{claimed}: {said}");
            assert_eq!(said.contains(&format!("names partition {claimed}")), says && !refused, "{said}");
        }
        answers.join().unwrap();
        // credvend says no before it says which partition.
        fs::write(lab.paths.job(lab.id()).join(file::REFUSED), "Slurm says another uid").unwrap();
        assert_eq!(task_init_privileged(&lab.job, &plan), verdict, "{claimed}");
        let plan = lab.init();
        assert_eq!(matches!(&plan.gate, Gate::Closed(why) if why.contains("another uid")), refused);
        assert_eq!(plan.notices.len(), usize::from(claimed == "batch"), "{plan:?}");
        assert_eq!(lab.variable(METADATA_DISABLED).is_some(), claimed != "debug");
    }
}

#[test]
fn where_the_claimed_partition_demands_nothing_the_wait_is_short_and_an_obstacle_ends_it() {
    let long = "default=on partition:debug=off partition:gpu=on,on-error=fail,wait=60s";
    for claimed in ["batch", "debug"] {
        let mut lab = lab(long, claimed);
        let plan = lab.init();
        let Gate::AskLate(question) = &plan.gate else { panic!("{plan:?}") };
        assert_eq!(question.end(), question.start + UNDEMANDED_WAIT);
        // Without a credd, which may be starting, the task waits; with an obstacle it does not.
        let patient = Question { start: Instant::now() + Duration::from_secs(3600), ..question.clone() };
        let opening = r#"{"outcome":{"state":"opening"}}"#;
        let away = r#"{"outcome":{"state":"opening","reason":"credvend is away"}}"#;
        let answers = answering(&lab.paths, vec!["?".into(), opening.into(), away.into()]);
        let Answer::ByClaim(why) = patient.ask() else { panic!("{claimed}") };
        assert!(why.contains("(credvend is away)"), "{why}");
        assert_eq!(answers.join().unwrap().len(), 3);
    }
    // A credd that never answers does not hold it up for longer.
    let mut silent = lab(long, "debug");
    let plan = silent.init();
    let Gate::AskLate(question) = &plan.gate else { panic!("{plan:?}") };
    let Answer::ByClaim(why) = question.ask() else { panic!("it may start") };
    assert!(why.contains("credd does not answer"), "{why}");
    // A partition that demands them waits as long as it says, whatever stands in the way.
    let lab = &mut lab(long, "gpu");
    let plan = lab.init();
    let Gate::AskLate(question) = &plan.gate else { panic!("{plan:?}") };
    assert_eq!(question.end(), question.start + Duration::from_secs(60));
}

#[test]
#[cfg_attr(not(is_root), ignore = "mounts a tmpfs: run this test as root")]
fn on_a_full_tmpfs_a_step_of_a_partition_that_is_off_is_as_if_nothing_were_there() {
    use crate::scripted_job::on_full_tmpfs;
    for (claimed, nothing) in [("debug", true), ("batch", false)] {
        on_full_tmpfs(move |paths, _| {
            let run_dir = format!("run-dir={}", paths.path().display());
            let mut arguments: Vec<String> = MIXED.split_whitespace().map(str::to_owned).collect();
            arguments.push(run_dir);
            let site = Plugstack::parse(&arguments);
            let mut job = ScriptedJob::new();
            job.set("SLURM_JOB_PARTITION", claimed.as_bytes()).unwrap();
            let before = job.environment.clone();
            let plan = init_post_opt(&mut job, &site, Asked::default());
            assert_eq!(plan == Plan::default(), nothing, "{plan:?}");
            assert_eq!(job.environment == before, nothing, "{:?}", job.environment);
            // Its administrator hears of it.
            assert_eq!(job.said(Level::Error).contains("partition debug, which is off"), nothing);
        });
    }
}

#[test]
fn a_late_job_is_told_of_other_identities_once() {
    let mut lab = lab("default=on", "batch");
    lab.job.set("AWS_PROFILE", b"mine").unwrap();
    let notices = lab.init().notices;
    assert!(notices.len() == 1 && notices[0].contains("AWS_PROFILE is set"), "{notices:?}");
    lab.job.step = StepId::Number(0);
    assert_eq!(lab.init(), Plan::default());
    // What is said once stays said when the record is complete.
    lab.complete("batch");
    assert_eq!(lab.init(), Plan::default());
}

#[test]
fn a_job_that_has_steps_is_seen_by_their_lock() {
    use nix::fcntl::{Flock, FlockArg};
    let mut lab = lab("default=on", "batch");
    lab.init();
    let is_held = |lab: &Lab| {
        let directory = fs::File::open(lab.paths.job(lab.id())).unwrap();
        Flock::lock(directory, FlockArg::LockExclusiveNonblock).is_err()
    };
    assert!(is_held(&lab), "by this process, as by a slurmstepd until it ends");
    lab.complete("batch");
    lab.init();
    assert!(is_held(&lab));
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
