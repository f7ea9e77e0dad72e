//! A step's slurmstepd, as root: cleans the step's environment, sets what the SDKs need, and, where the partition has
//! `on-error=fail`, refuses the job if there are no credentials.
//!
//! The step's environment comes from the user and is believed in nothing that gives anything: job id and uid are
//! Slurm's items, all else is the record's. Its `SLURM_JOB_PARTITION` is read only where the job's start left nothing here:
//! see [`crate::late`].

use std::path::PathBuf;
use std::time::{Duration, Instant};

use credd_protocol::late::LateRecord;
use credd_protocol::record::{JobOptions, JobRecord, OnError, RunDir};
use credd_protocol::{JobId, JobToken, Uid};
use slurm_spank::{Job, Level, StepId};

use crate::job_options::Asked;
use crate::late::{self, Left, Question};
use crate::plugstack::{Plugstack, Policy};
use crate::run_files::{RunFiles, Skipped};
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
    let (files, record) = match find_record(job, site, asked, plan)? {
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
    if is_first_step(job) && job.node_index() == Ok(0) {
        let others = environment::other_identities::notices(job);
        if !others.is_empty() && files.is_first_notice(record.job) {
            plan.notices.extend(others);
        }
    }
    if on_error == OnError::Fail {
        plan.gate = Gate::Ask { job: record.job, end, wait, run_dir: site.run_dir.path().to_owned() };
    }
    Ok(true)
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
    let without = |why: String| Without { why, on_error: on_error(claimed) };
    if files.is_off(late.job) {
        return Ok(false);
    }
    if let Some(reason) = files.refused(late.job) {
        return Err(without(reason));
    }
    let question = Question::of(site, late.job, claimed);
    if let Policy::On(options) = claimed {
        let end = question.as_ref().filter(|_| options.on_error == OnError::Fail).map_or_else(Instant::now, |q| q.end);
        let port = credd::poll_until(end, || files.endpoint())
            .ok_or_else(|| without("credd does not serve on this node; tell your administrator".into()))?;
        let wanted = options.token_file || asked.token_file;
        let token_file = wanted.then(|| token_file(files, &site.run_dir, (late.job, late.uid, &late.token), plan));
        let metadata = site.metadata(&partition_by_environment(job));
        environment::inject_late(job, late, port, token_file.flatten().as_deref(), options.region.as_ref(), &metadata)
            .map_err(|error| without(format!("Slurm did not take the variables: {error}")))?;
    }
    if let Policy::Broken(why) = claimed {
        plan.notices.push(format!("credd: no AWS credentials: {why}"));
    }
    plan.gate = question.map_or(Gate::Pass, Gate::AskLate);
    Ok(matches!(claimed, Policy::On(_)))
}

/// What a partition makes of a job without credentials.
fn on_error(policy: &Policy) -> OnError {
    if let Policy::On(JobOptions { on_error, .. }) = policy { *on_error } else { OnError::Continue }
}

/// What is on the node of this step's job.
enum Found {
    /// Its record.
    Record(RunFiles, Box<JobRecord>),
    /// A late one, and the policy of the partition that the environment claims.
    Late(RunFiles, Box<LateRecord>, Policy),
    /// It is to have no credentials.
    Nothing,
}

/// The job's record, if this step is to have credentials. Without one the notes and the partition's policy say whether
/// that is as it should be; where nothing does, a late record is left.
fn find_record(job: &mut dyn Job, site: &Plugstack, asked: Asked, plan: &mut Plan) -> Result<Found, Without> {
    let partition = partition_by_environment(job);
    let policy = site.policy(&partition);
    let claims_on_error = on_error(&policy);
    let without = |why: String| Without { why, on_error: claims_on_error };
    let Some(owner) = late::owner(job) else { return Err(without("Slurm did not say whose job this is".into())) };
    let (id, uid) = (owner.job, owner.uid);
    let files = RunFiles::open(&site.run_dir).map_err(|error| without(error.to_string()))?;
    if let Some(files) = &files {
        match files.read_record(id).map_err(without)? {
            Some(record) if record.job == id && record.uid == uid && !files.is_over(id) => {
                return Ok(Found::Record(files.clone(), Box::new(record)));
            }
            // Slurm's items say whose step this is: the record is of a job or run before, whose end was lost.
            Some(record) => late::end_stale(site, files, id, &record.token).map_err(without)?,
            None => {}
        }
    }
    let off = |plan: &mut Plan| {
        if asked.aws == Some(true) {
            plan.notices.push(format!(
                "credd: no AWS credentials: they are switched off for partition {partition}, which --aws=on cannot change"
            ));
        }
        Ok(Found::Nothing)
    };
    match (files.and_then(|files| files.skipped(id)), &policy) {
        (Some(Skipped::Failed { on_error, why }), _) => Err(Without { why, on_error }),
        (Some(Skipped::Asked), _) => {
            if asked.aws == Some(true) {
                plan.notices.push("credd: no AWS credentials: the job itself was submitted with --aws=off".into());
            }
            Ok(Found::Nothing)
        }
        (Some(Skipped::Off), _) => off(plan),
        (None, policy) if late::is_of_use(site, policy) => {
            let (files, left) = late::leave(site, owner).map_err(without)?;
            Ok(match left {
                Left::Record(record) => Found::Record(files, record),
                Left::Late(late) => Found::Late(files, late, policy.clone()),
            })
        }
        (None, Policy::Broken(why)) => Err(without(why.clone())),
        (None, _) => off(plan),
    }
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

/// Whether the task may start; if not, says why.
pub fn task_init_privileged(job: &dyn Job, plan: &Plan) -> slurm_spank::Outcome {
    let why = match &plan.gate {
        Gate::Pass => None,
        Gate::Closed(why) => Some(why.clone()),
        Gate::Ask { job, end, wait, run_dir } => credd::why_not_open(&RunDir::new(run_dir), *job, *end, *wait),
        Gate::AskLate(question) => question.ask(),
    };
    let Some(why) = why else { return slurm_spank::Outcome::Proceed };
    if job.task_index().is_ok_and(|index| index == 0) {
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
mod tests {
    use super::*;
    use crate::environment::{FULL_URI, METADATA_DISABLED, TOKEN, TOKEN_FILE};
    use crate::scripted_job::{ScriptedJob, answering, record, run_dir};
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
        let site =
            Plugstack::parse(&arguments.split_whitespace().map(str::to_owned).chain([run_dir]).collect::<Vec<_>>());
        let mut record = record();
        edit(&mut record);
        RunFiles::open_or_create(&paths).unwrap().write_record(&record).unwrap();
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
        assert!(
            files.read_record(lab.record.job).unwrap().is_none() && files.read_late(lab.record.job).unwrap().is_some()
        );
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
            (
                r#"{"outcome":{"state":"refused","reason":"no role for climate"}}"#,
                Verdict::Refuse,
                "no role for climate",
            ),
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
}
