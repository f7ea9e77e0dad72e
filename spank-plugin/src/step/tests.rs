//! Steps of a job that has its record, or a note why it has none.

use super::*;
use crate::environment::{FULL_URI, METADATA_DISABLED, TOKEN, TOKEN_FILE};
use crate::run_files::Skipped;
use crate::scripted_job::{ScriptedJob, answering, record, run_dir};
use credd_protocol::record::{JobRecord, RunNames};
use slurm_spank::{Environment, Outcome as Verdict};
use std::fs;

struct Lab {
    _temp: tempfile::TempDir,
    paths: RunDir,
    site: Plugstack,
    job: ScriptedJob,
    record: JobRecord,
}

/// A node whose prolog left `record` and whose credd serves.
fn lab(arguments: &str, edit: impl FnOnce(&mut JobRecord)) -> Lab {
    let (temp, paths) = run_dir();
    let run_dir = format!("run-dir={}", paths.path().display());
    let site = Plugstack::parse(&arguments.split_whitespace().map(str::to_owned).chain([run_dir]).collect::<Vec<_>>());
    let mut record = record();
    edit(&mut record);
    RunFiles::open_or_create(&paths).unwrap().write_record(&record, &RunNames::default()).unwrap();
    fs::write(paths.endpoint(), "9999\n").unwrap();
    Lab { _temp: temp, paths, site, job: ScriptedJob::new(), record }
}

impl Lab {
    fn init(&mut self, asked: Asked) -> Plan {
        init_post_opt(&mut self.job, &self.site, asked)
    }

    fn token(&self) -> Option<String> {
        self.job.get(TOKEN).map(|value| String::from_utf8(value).unwrap())
    }
}

fn asked(aws: Option<bool>) -> Asked {
    Asked { aws, token_file: false }
}

#[test]
fn a_step_of_the_job_gets_its_variables_and_nothing_is_said() {
    let mut lab = lab("", |_| {});
    lab.job.set(TOKEN, b"credd1-of-the-parent").unwrap();
    assert_eq!(lab.init(asked(None)), Plan::default());
    assert_eq!(lab.token().unwrap(), lab.record.token.expose());
    assert!(lab.job.get(FULL_URI).is_some() && lab.job.get(TOKEN_FILE).is_none());
}

#[test]
fn inherited_variables_go_whatever_follows() {
    type Case = fn(&mut Lab) -> Asked;
    let cases: [(&str, Case); 8] = [
        ("", |_| asked(Some(false))),
        ("", |lab| {
            lab.job.step = StepId::Extern;
            asked(None)
        }),
        ("", |lab| {
            fs::write(lab.paths.job(lab.record.job).join("refused"), "no").unwrap();
            asked(None)
        }),
        ("", |lab| {
            fs::remove_file(lab.paths.endpoint()).unwrap();
            asked(None)
        }),
        ("default=off", |lab| {
            lab.job.uid += 1;
            asked(None)
        }),
        ("default=off", |lab| {
            fs::remove_dir_all(lab.paths.job(lab.record.job)).unwrap();
            asked(None)
        }),
        ("default=on,nonsense", |lab| {
            fs::remove_dir_all(lab.paths.path()).unwrap();
            asked(None)
        }),
        // What a step leaves where there is no record needs a credd that serves.
        ("", |lab| {
            fs::remove_dir_all(lab.paths.path()).unwrap();
            asked(None)
        }),
    ];
    for (at, (arguments, case)) in cases.into_iter().enumerate() {
        let mut lab = lab(arguments, |_| {});
        lab.job.set(TOKEN, b"credd1-of-the-parent").unwrap();
        lab.job.set(FULL_URI, b"http://127.0.0.1:9999/sessions/7/cluster/lab/project/p").unwrap();
        lab.job.set(TOKEN_FILE, b"/run/credd/tokens/7").unwrap();
        let asked = case(&mut lab);
        lab.init(asked);
        assert_eq!((lab.token(), lab.job.get(FULL_URI), lab.job.get(TOKEN_FILE)), (None, None, None), "case {at}");
    }
}

#[test]
fn without_credentials_the_reason_is_told_on_the_first_node_only() {
    let mut lab = lab("", |_| {});
    fs::write(lab.paths.job(lab.record.job).join("refused"), "project genomics has no role").unwrap();
    let plan = lab.init(asked(None));
    assert_eq!((plan.gate.clone(), plan.notices.len()), (Gate::Pass, 1));
    assert_eq!(task_init_privileged(&lab.job, &plan), Verdict::Proceed);
    user_init(&lab.job, &plan);
    assert!(lab.job.said(Level::Notice).contains("project genomics has no role"));
    lab.job.node_index = 1;
    lab.job.forget();
    user_init(&lab.job, &plan);
    assert_eq!(lab.job.said(Level::Notice), "");
}

#[test]
fn another_users_record_is_not_used() {
    let mut lab = lab("", |record| record.uid = Uid(record.uid.0 + 1));
    assert_eq!(lab.init(asked(None)), Plan::default());
    assert!(lab.token().is_some_and(|token| token != lab.record.token.expose()));
    let files = RunFiles::open(&lab.paths).unwrap().unwrap();
    assert!(files.read_record(lab.record.job).unwrap().is_none() && files.read_late(lab.record.job).unwrap().is_some());
    assert_eq!(fs::read_dir(lab.paths.ended()).unwrap().count(), 1);
}

#[test]
fn a_job_without_a_record_hears_why_only_where_it_should_have_one() {
    let told = |arguments: &str, asked: Asked, note: Option<Skipped>| {
        let mut lab = lab(arguments, |_| {});
        let files = RunFiles::open(&lab.paths).unwrap().unwrap();
        files.end(lab.record.job).unwrap();
        if let Some(note) = note {
            files.write_skipped(lab.record.job, &note).unwrap();
        }
        lab.job.set("SLURM_JOB_PARTITION", b"batch").unwrap();
        let plan = lab.init(asked);
        assert_eq!(lab.token(), None);
        plan
    };
    assert_eq!(told("default=off", asked(None), None), Plan::default());
    assert_eq!(told("default=on", asked(None), Some(Skipped::Asked)), Plan::default());
    assert!(told("default=off", asked(Some(true)), None).notices[0].contains("switched off for partition batch"));
    assert!(told("", asked(Some(true)), Some(Skipped::Asked)).notices[0].contains("--aws=off"));
    assert!(told("default=on,x", asked(None), None).notices[0].contains("mistake"));
    let elsewhere = "default=off partition:gpu=on,on-error=fail";
    assert_eq!(told(elsewhere, asked(None), Some(Skipped::Off)), Plan::default());
    assert!(told(elsewhere, asked(Some(true)), Some(Skipped::Off)).notices[0].contains("switched off"));
    let note = Skipped::Failed { on_error: OnError::Fail, why: "disk full".into() };
    assert_eq!(told("", asked(None), Some(note)).gate, Gate::Closed("disk full".into()));
}

#[test]
#[cfg_attr(not(is_root), ignore = "mounts a tmpfs: run this test as root")]
fn on_a_full_tmpfs_a_job_whose_partition_demands_credentials_is_stopped() {
    use crate::scripted_job::{on_full_tmpfs, prolog_environment};
    for (options, stopped) in [("on,on-error=fail", true), ("on", false)] {
        on_full_tmpfs(move |paths, _| {
            let run_dir = format!("run-dir={}", paths.path().display());
            let site = Plugstack::parse(&[format!("default={options}"), run_dir]);
            let mut job = ScriptedJob::new();
            let nobody = std::path::Path::new("/nonexistent");
            crate::prolog::job_prolog(&mut job, &prolog_environment(), &site, asked(None), 0, nobody);
            assert!(job.said(Level::Error).contains("no note of it was left"), "{}", job.said(Level::Error));
            job.set("SLURM_JOB_PARTITION", b"batch").unwrap();
            let plan = init_post_opt(&mut job, &site, asked(None));
            assert_eq!(matches!(plan.gate, Gate::Closed(_)), stopped, "{plan:?}");
            assert_eq!(plan.notices.is_empty(), stopped, "{plan:?}");
        });
    }
}

#[test]
fn a_step_may_ask_for_the_token_file_by_itself() {
    let mut lab = lab("", |_| {});
    lab.init(Asked { aws: None, token_file: true });
    let path = String::from_utf8(lab.job.get(TOKEN_FILE).unwrap()).unwrap();
    assert_eq!(fs::read_to_string(path).unwrap(), lab.record.token.expose());
}

#[test]
fn other_identities_are_mentioned_once_a_job() {
    let mut lab = lab("", |_| {});
    lab.job.set("AWS_ACCESS_KEY_ID", b"AKIAEXAMPLE").unwrap();
    lab.job.set("AWS_PROFILE", b"mine").unwrap();
    let notices = lab.init(asked(None)).notices;
    assert!(notices.len() == 2 && notices[0].contains("AWS_ACCESS_KEY_ID is set"), "{notices:?}");
    assert!(notices[1].contains("AWS_PROFILE is set"), "{notices:?}");
    // The batch script's first step, then any other.
    for step in [StepId::Number(0), StepId::Number(1)] {
        lab.job.step = step;
        assert_eq!(lab.init(asked(None)), Plan::default());
    }
}

#[test]
fn only_the_node_that_tells_notes_that_the_user_was_told() {
    let mut lab = lab("", |_| {});
    lab.job.set("AWS_PROFILE", b"mine").unwrap();
    lab.job.node_index = 1;
    assert_eq!(lab.init(asked(None)), Plan::default());
    lab.job.node_index = 0;
    assert_eq!(lab.init(asked(None)).notices.len(), 1);
}

#[test]
fn a_step_without_credentials_leaves_the_metadata_service_alone() {
    let disabled = |arguments: &str, asked: Asked, edit: fn(&mut Lab)| {
        let mut lab = lab(arguments, |_| {});
        lab.job.set("SLURM_JOB_PARTITION", b"batch").unwrap();
        edit(&mut lab);
        lab.init(asked);
        let text = |name: &str| lab.job.get(name).map(|value| String::from_utf8(value).unwrap());
        (text(METADATA_DISABLED), text("AWS_REGION"))
    };
    let refused = |lab: &mut Lab| fs::write(lab.paths.job(lab.record.job).join("refused"), "no").unwrap();
    let no_endpoint = |lab: &mut Lab| fs::remove_file(lab.paths.endpoint()).unwrap();
    let no_record = |lab: &mut Lab| fs::remove_dir_all(lab.paths.job(lab.record.job)).unwrap();
    let fallen = |lab: &mut Lab| {
        lab.job.set(METADATA_DISABLED, b"false").unwrap();
        fs::remove_file(lab.paths.endpoint()).unwrap();
    };
    let yes = (Some("true".to_owned()), None);
    let with_region = (Some("true".to_owned()), Some("eu-west-1".to_owned()));
    let (none, off) = ((None, None), asked(Some(false)));
    // Wherever the project's role was due and is not there.
    for edit in [refused, no_endpoint, fallen] {
        assert_eq!(disabled("", asked(None), edit), yes);
        assert_eq!(disabled("default=on,region=eu-west-1", asked(None), edit), with_region);
    }
    assert_eq!(disabled("default=on,mistake", asked(None), no_record), yes);
    assert_eq!(disabled("default=on,metadata=off", asked(None), no_record), yes, "also with a late record");
    // Where it was not, only if the partition says so.
    assert_eq!(disabled("", asked(None), |_| {}), none);
    assert_eq!(disabled("", off, |_| {}), none);
    assert_eq!(disabled("default=off", asked(None), no_record), none);
    for (arguments, asked, edit) in [
        ("default=on,metadata=off", asked(None), (|_| {}) as fn(&mut Lab)),
        ("default=on,metadata=off", off, |_| {}),
        ("default=off,metadata=off", asked(None), no_record),
        ("default=off partition:batch=off,metadata=off", off, no_record),
    ] {
        assert_eq!(disabled(arguments, asked, edit), yes, "{arguments}");
    }
    assert_eq!(disabled("default=off,metadata=off,region=eu-west-1", asked(None), no_record), with_region);
    assert_eq!(disabled("default=on,metadata=off,region=eu-west-1", off, |_| {}), with_region);
}

#[test]
fn on_error_fail_waits_for_a_credd_that_is_coming_up() {
    let mut lab = lab("", |record| {
        record.options.on_error = OnError::Fail;
        record.options.wait_ms = 20_000;
    });
    fs::remove_file(lab.paths.endpoint()).unwrap();
    let endpoint = lab.paths.endpoint();
    let credd = std::thread::spawn(move || fs::write(endpoint, "9999\n").unwrap());
    let plan = lab.init(asked(None));
    assert!(matches!(plan.gate, Gate::Ask { .. }), "{plan:?}");
    assert!(lab.token().is_some());
    credd.join().unwrap();
}

#[test]
fn on_error_fail_stops_the_job_with_the_reason_and_only_then() {
    let fail = |record: &mut JobRecord| {
        record.options.on_error = OnError::Fail;
        record.options.wait_ms = 10_000;
    };
    for (answer, verdict, why) in [
        (r#"{"outcome":{"state":"open"}}"#, Verdict::Proceed, ""),
        (r#"{"outcome":{"state":"refused","reason":"no role for climate"}}"#, Verdict::Refuse, "no role for climate"),
    ] {
        let mut lab = lab("", fail);
        let plan = lab.init(asked(None));
        assert!(matches!(plan.gate, Gate::Ask { .. }));
        let lines = answering(&lab.paths, vec![answer.into()]);
        assert_eq!(task_init_privileged(&lab.job, &plan), verdict);
        assert!(lab.job.said(Level::Error).contains(why));
        lines.join().unwrap();
    }
    // credd knows why there are none yet when the patience ends.
    let mut late = lab("", |record| {
        fail(record);
        record.options.wait_ms = 0;
    });
    let plan = late.init(asked(None));
    let answer = r#"{"outcome":{"state":"opening","reason":"AWS does not give role r"}}"#;
    let lines = answering(&late.paths, vec![answer.into()]);
    assert_eq!(task_init_privileged(&late.job, &plan), Verdict::Refuse);
    assert!(late.job.said(Level::Error).contains("(AWS does not give role r)"));
    lines.join().unwrap();
    // Nobody answers.
    let mut silent = lab("", |record| {
        fail(record);
        record.options.wait_ms = 30;
    });
    let plan = silent.init(asked(None));
    assert_eq!(task_init_privileged(&silent.job, &plan), Verdict::Refuse);
    assert!(silent.job.said(Level::Error).contains("did not answer within 30 ms"));
    // Only the node's first task speaks.
    silent.job.task_index = 1;
    silent.job.forget();
    assert_eq!(task_init_privileged(&silent.job, &plan), Verdict::Refuse);
    assert_eq!(silent.job.said(Level::Error), "");
    // The endpoint is not credd's and does not become so, or the job is refused already: no need to ask.
    fs::remove_file(silent.paths.endpoint()).unwrap();
    assert!(matches!(silent.init(asked(None)).gate, Gate::Closed(_)));
    fs::write(silent.paths.job(silent.record.job).join("refused"), "no").unwrap();
    assert_eq!(silent.init(asked(None)).gate, Gate::Closed("no".into()));
    assert_eq!(silent.init(asked(Some(false))), Plan::default());
}
