//! The attestor over a scripted squeue; the suite in the top-level `tests/` asks a real Slurm.

use std::path::Path;

use super::super::JobState;
use super::squeue::made_up::{header, row};
use super::*;

/// Writes a command into `dir` that runs `body` with its arguments appended to `dir/asked` first.
fn script(dir: &Path, name: &str, body: &str) {
    super::super::scripted::write(dir, name, &format!("cd {}\necho \"$*\" >> asked\n{body}", dir.display()));
}

fn slurm(dir: &Path, concurrency: usize) -> Slurm {
    let mut config = SlurmConfig::new("lab".parse().unwrap());
    config.bin_dir = Some(dir.into());
    config.concurrency = concurrency;
    Slurm::new(config)
}

fn id(n: u32) -> JobId {
    JobId::try_from(n).unwrap()
}

fn running(job: &str) -> Vec<u8> {
    row([job, "0", "2001", "RUNNING", "alice", "genomics", "batch"], "n1")
}

fn answer(dir: &Path, rows: &[Vec<u8>]) {
    let mut all = header().into_bytes();
    rows.iter().for_each(|row| all.extend(row));
    std::fs::write(dir.join("answer"), all).unwrap();
}

fn questions(dir: &Path) -> Vec<String> {
    let asked = std::fs::read_to_string(dir.join("asked")).unwrap_or_default();
    asked.lines().filter_map(|l| l.split_once("--jobs=")).map(|(_, jobs)| jobs.to_owned()).collect()
}

/// Waits until something holds, at most a minute.
async fn until(holds: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "it does not come about");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until `file` is there.
async fn appears(file: &Path) {
    until(|| file.exists()).await;
}

#[tokio::test]
async fn one_row_with_the_raw_id_is_the_answer_and_its_siblings_are_not() {
    let dir = tempfile::tempdir().unwrap();
    script(dir.path(), "squeue", "cat answer");
    answer(dir.path(), &[running("4"), row(["5", "0", "2002", "RUNNING", "bob", "climate", "batch"], "n2")]);
    let slurm = slurm(dir.path(), 1);
    let Ok(Answer::Known(facts)) = slurm.job(id(5)).await else { panic!("job 5 is there") };
    assert_eq!((facts.user.unwrap().as_str(), facts.state), ("bob", JobState::Running));
    answer(dir.path(), &[running("4"), running("4")]);
    assert!(matches!(slurm.job(id(4)).await, Err(AttestError::Unreliable { why, .. }) if why.contains("twice")));
}

#[tokio::test]
async fn only_slurms_own_sentence_means_absence() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = SlurmConfig::new("lab".parse().unwrap());
    config.bin_dir = Some(dir.path().into());
    let slurm = Slurm::read_by(0, config);
    let ask = async |body: &str| {
        script(dir.path(), "squeue", body);
        slurm.job(id(7)).await
    };
    let unknown = "echo 'slurm_load_jobs error: Invalid job id specified' >&2";
    assert_eq!(ask(&format!("{unknown}; exit 1")).await.unwrap(), Answer::Absent);
    // A slurm.conf with an outdated line makes every command complain, for years.
    assert_eq!(ask(&format!("echo 'warning: old' >&2; {unknown}; exit 1")).await.unwrap(), Answer::Absent);
    // A task that was requeued is shown as one of its array that wait.
    let waiting = row(["6", "0", "2001", "PENDING", "alice", "genomics", "batch"], "");
    answer(dir.path(), std::slice::from_ref(&waiting));
    assert_eq!(ask("cat answer").await.unwrap(), Answer::Absent);
    answer(dir.path(), &[waiting, running("8")]);
    for no_answer in [
        // Two answers cut between rows: the one of an array, and any.
        "cat answer",
        "head -n 1 answer",
        "exit 0",
        "exit 1",
        "kill -9 $$",
        "cat answer; exit 1",
        "cat answer; kill -15 $$",
        "head -c 200 answer",
        &format!("{unknown}; exit 0"),
        &format!("{unknown}; echo something else >&2; exit 1"),
        &format!("echo JOBID; {unknown}; exit 1"),
        "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1",
        "echo 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2; exit 1",
        "echo 'squeue: error: Invalid job format specification: RestartCnt' >&2; echo JOBID; exit 0",
    ] {
        assert!(ask(no_answer).await.is_err(), "{no_answer}");
    }
}

#[tokio::test]
async fn callers_share_the_next_question_and_never_one_that_has_begun() {
    let dir = tempfile::tempdir().unwrap();
    // The first question waits for a file; so those who come meanwhile come too late for it.
    script(dir.path(), "squeue", "touch begun; while [ ! -e go ]; do sleep 0.01; done; cat answer");
    answer(dir.path(), &[running("1"), running("2"), running("3")]);
    let slurm = slurm(dir.path(), 1);
    let ask = |n| {
        let slurm = slurm.clone();
        tokio::spawn(async move { slurm.job(id(n)).await })
    };
    let first = ask(1);
    appears(&dir.path().join("begun")).await;
    let later: Vec<_> = [1, 1, 2, 3, 1].map(ask).into();
    // They are all in the waiting list before the first question ends.
    until(|| slurm.inner.for_nodes.waiting().callers >= 5).await;
    std::fs::write(dir.path().join("go"), "").unwrap();
    assert!(first.await.unwrap().is_ok());
    for caller in later {
        assert!(matches!(caller.await.unwrap(), Ok(Answer::Known(_))));
    }
    assert_eq!(questions(dir.path()), ["1", "1,2,3"]);
}

#[tokio::test]
async fn more_jobs_than_one_question_takes_are_asked_for_in_several() {
    let dir = tempfile::tempdir().unwrap();
    script(dir.path(), "squeue", "touch begun; while [ ! -e go ]; do sleep 0.01; done; cat answer");
    let many = u32::try_from(BATCH).unwrap() + 200;
    answer(dir.path(), &(1..2 + many).map(|n| running(&n.to_string())).collect::<Vec<_>>());
    let mut config = SlurmConfig::new("lab".parse().unwrap());
    config.bin_dir = Some(dir.path().into());
    config.concurrency = 1;
    let slurm = Slurm::read_by(0, config);
    let ask = |n| {
        let slurm = slurm.clone();
        tokio::spawn(async move { slurm.job(id(n)).await })
    };
    let first = ask(1);
    appears(&dir.path().join("begun")).await;
    let later: Vec<_> = (2..2 + many).map(ask).collect();
    until(|| slurm.inner.for_nodes.waiting().callers >= later.len()).await;
    std::fs::write(dir.path().join("go"), "").unwrap();
    assert!(first.await.unwrap().is_ok());
    for caller in later {
        let outcome = tokio::time::timeout(Duration::from_secs(30), caller).await;
        assert!(matches!(outcome.expect("nobody asked for it").unwrap(), Ok(Answer::Known(_))));
    }
    let sizes: Vec<usize> = questions(dir.path()).iter().map(|q| q.split(',').count()).collect();
    assert_eq!(sizes, [1, BATCH, 200]);
}

#[tokio::test]
async fn a_caller_that_goes_away_takes_nobodys_answer_along() {
    let dir = tempfile::tempdir().unwrap();
    script(dir.path(), "squeue", "touch begun; while [ ! -e go ]; do sleep 0.01; done; cat answer");
    answer(dir.path(), &[running("1")]);
    let slurm = slurm(dir.path(), 1);
    let gone = {
        let slurm = slurm.clone();
        tokio::spawn(async move { slurm.job(id(1)).await })
    };
    appears(&dir.path().join("begun")).await;
    gone.abort();
    std::fs::write(dir.path().join("go"), "").unwrap();
    assert!(matches!(slurm.job(id(1)).await, Ok(Answer::Known(_))));
}

#[tokio::test]
async fn a_strange_job_does_not_hide_the_others_from_a_listing() {
    let dir = tempfile::tempdir().unwrap();
    script(dir.path(), "squeue", "cat answer");
    settings(dir.path(), "none");
    let strange = row(["2", "0", "6", "NEW_STATE", &"u".repeat(130), "a\nb", "batch"], "n[3-1]");
    let over = row(["4", "0", "6", "CANCELLED", "eve", "a", "batch"], "n1");
    answer(dir.path(), &[running("1"), strange, running("3"), over]);
    let slurm = slurm(dir.path(), 1);
    let jobs = slurm.all_jobs().await.unwrap();
    assert_eq!(jobs.iter().map(|j| j.job.get()).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(jobs[1].user.is_err());
    assert_eq!((jobs[1].state, &jobs[1].account), (JobState::Completing, &None));
    assert!(slurm.job(id(2)).await.is_err());
}

/// A squeue that knows job 1, and says of any other one, if it is asked for that one alone, that it is unknown.
const KNOWS_ONE: &str = "case \"$*\" in *--jobs=1|*--jobs=*,*) cat answer;; *--jobs=*) \
                         echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1;; *) cat answer;; esac";

fn settings(dir: &Path, private: &str) {
    let text = format!(
        "AccountingStorageType = x\nClusterName = lab\nAccountingStorageEnforce = none\nPrivateData = {private}\nSlurmUser = root(0)\n"
    );
    script(dir, "scontrol", &format!("printf '{text}'"));
}

#[tokio::test]
async fn a_job_that_is_missing_among_others_is_asked_about_once_more() {
    let dir = tempfile::tempdir().unwrap();
    script(dir.path(), "squeue", &format!("touch begun; while [ ! -e go ]; do sleep 0.01; done; {KNOWS_ONE}"));
    answer(dir.path(), &[running("1")]);
    let mut config = SlurmConfig::new("lab".parse().unwrap());
    (config.bin_dir, config.concurrency) = (Some(dir.path().into()), 1);
    let slurm = Slurm::read_by(0, config);
    let ask = |n| {
        let slurm = slurm.clone();
        tokio::spawn(async move { slurm.job(id(n)).await })
    };
    let first = ask(1);
    appears(&dir.path().join("begun")).await;
    let later: Vec<_> = [1, 2, 3].map(ask).into();
    until(|| slurm.inner.for_nodes.waiting().callers >= 3).await;
    std::fs::write(dir.path().join("go"), "").unwrap();
    assert!(first.await.unwrap().is_ok());
    let mut absent = 0;
    for caller in later {
        absent += u32::from(caller.await.unwrap().unwrap() == Answer::Absent);
    }
    assert_eq!((absent, questions(dir.path())), (2, ["1", "1,2,3", "2", "3"].map(str::to_owned).into()));
}

#[tokio::test]
async fn private_jobs_make_absence_unreliable_for_a_reader_without_power() {
    let dir = tempfile::tempdir().unwrap();
    script(dir.path(), "squeue", KNOWS_ONE);
    settings(dir.path(), "jobs");
    answer(dir.path(), &[]);
    let mut config = SlurmConfig::new("lab".parse().unwrap());
    config.bin_dir = Some(dir.path().into());
    let slurm = Slurm::read_by(1000, config.clone());
    for job in [1, 2] {
        let said = slurm.job(id(job)).await;
        assert!(matches!(said, Err(AttestError::Unreliable { why, .. }) if why.contains("PrivateData")));
    }
    assert!(slurm.all_jobs().await.is_err());
    config.sees_private_jobs = true;
    assert_eq!(Slurm::read_by(1000, config.clone()).job(id(2)).await.unwrap(), Answer::Absent);
    config.sees_private_jobs = false;
    assert_eq!(Slurm::read_by(0, config).job(id(2)).await.unwrap(), Answer::Absent);
}

#[tokio::test]
async fn jobs_that_become_private_are_not_taken_for_gone_in_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    script(dir.path(), "squeue", KNOWS_ONE);
    settings(dir.path(), "none");
    answer(dir.path(), &[running("1")]);
    let mut config = SlurmConfig::new("lab".parse().unwrap());
    config.bin_dir = Some(dir.path().into());
    let slurm = Slurm::read_by(1000, config);
    assert_eq!(slurm.all_jobs().await.unwrap().len(), 1);
    assert_eq!(slurm.job(id(2)).await.unwrap(), Answer::Absent);
    settings(dir.path(), "jobs");
    assert!(slurm.job(id(2)).await.is_err(), "by the settings of before");
    assert!(slurm.all_jobs().await.is_err());
    settings(dir.path(), "none");
    assert_eq!(slurm.all_jobs().await.unwrap().len(), 1, "an administrator has mended it");
    settings(dir.path(), "jobs");
    assert!(slurm.job(id(2)).await.is_err());
    settings(dir.path(), "none");
    assert_eq!(slurm.job(id(2)).await.unwrap(), Answer::Absent);
}

#[tokio::test]
async fn questions_about_nodes_keep_none_about_jobs_waiting() {
    let dir = tempfile::tempdir().unwrap();
    script(dir.path(), "squeue", "cat answer");
    script(dir.path(), "sinfo", "echo >> looking; exec sleep 60");
    answer(dir.path(), &[running("4")]);
    let mut config = SlurmConfig::new("lab".parse().unwrap());
    (config.bin_dir, config.concurrency) = (Some(dir.path().into()), 1);
    config.timeouts.question = Duration::from_secs(2);
    let slurm = Slurm::new(config);
    let mut lies = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let slurm = slurm.clone();
        lies.spawn(async move { slurm.node_addresses().await });
    }
    appears(&dir.path().join("looking")).await;
    let facts = slurm.job(id(4)).await;
    assert!(matches!(facts, Ok(Answer::Known(_))), "{facts:?}");
    while let Some(lie) = lies.join_next().await {
        assert!(matches!(lie.unwrap(), Err(AttestError::Unavailable { .. })));
    }
}

#[tokio::test]
async fn what_nodes_ask_for_keeps_no_question_of_credvends_own_waiting() {
    let dir = tempfile::tempdir().unwrap();
    // About the jobs that a node invents, Slurm is slow.
    let slow = "case \"$*\" in *--jobs=9*) touch begun; exec sleep 60;; esac; cat answer";
    script(dir.path(), "squeue", slow);
    answer(dir.path(), &[running("4")]);
    let slurm = slurm(dir.path(), 1);
    let mut lies = tokio::task::JoinSet::new();
    for n in 0..100 {
        let slurm = slurm.clone();
        lies.spawn(async move { slurm.job(id(900 + n)).await });
    }
    appears(&dir.path().join("begun")).await;
    let facts = tokio::time::timeout(Duration::from_secs(60), slurm.job_unasked(id(4))).await.unwrap();
    assert!(matches!(facts, Ok(Answer::Known(_))), "{facts:?}");
    assert!(lies.try_join_next().is_none(), "it waited for them");
}
