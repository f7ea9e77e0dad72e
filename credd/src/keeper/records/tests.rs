//! Records in order, and everything else that a directory may hold.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};

use credd_protocol::TokenHash;
use credd_protocol::fixtures::{self, record};
use credd_protocol::record::RunNames;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A run directory with nothing in it.
pub fn run_dir() -> (TempDir, RunDir) {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = RunDir::new(dir.path());
    crate::keeper::run_dir::prepare(&run_dir).unwrap();
    (dir, run_dir)
}

/// Leaves a record as the plugin does.
pub fn write(directory: &Path, bytes: &[u8]) {
    fs::create_dir_all(directory).unwrap();
    fs::set_permissions(directory, Permissions::from_mode(0o700)).unwrap();
    let path = directory.join(file::RECORD);
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

/// Starts a job.
pub fn start(run_dir: &RunDir, record: &JobRecord) -> RunId {
    write(&run_dir.job(record.job), &record.to_json());
    RunId::of(record.token.hash())
}

/// Ends a job as the epilog does.
pub fn end(run_dir: &RunDir, record: &JobRecord) -> PathBuf {
    let ended = run_dir.ended().join(format!("{}.{}.x", record.job, record.restart));
    fs::rename(run_dir.job(record.job), &ended).unwrap();
    ended
}

#[test]
fn records_notes_and_the_end() {
    let (_dir, run_dir) = run_dir();
    let record = record(7);
    let run = start(&run_dir, &record);
    let path = run_dir.job(record.job);
    let session = SessionId::random();
    write_note(&path, &run, file::SESSION, &session.to_string()).unwrap();
    let found = look(&run_dir.jobs(), false).unwrap();
    assert!(found.refused.is_empty(), "{found:?}");
    let job = &found.found[0].job;
    assert_eq!((job.job, &job.run, job.session, job.ended), (record.job, &run, Some(session), false));
    assert!(!format!("{found:?}").contains(&record.token.expose()[8..]));

    // A requeued job's new run has the same directory name, and must not get the old run's session.
    let ended = end(&run_dir, &record);
    let second = fixtures::record(7);
    start(&run_dir, &second);
    assert!(matches!(write_note(&path, &run, file::SESSION, "x"), Err(Refused::NoRecord)));
    let found = look(&run_dir.ended(), true).unwrap();
    assert_eq!((found.found[0].job.ended, found.found[0].job.session), (true, Some(session)));

    remove(&path, &run).unwrap();
    assert!(path.exists(), "another run's directory went");
    remove(&ended, &run).unwrap();
    assert!(!ended.exists());
    remove(&ended, &run).unwrap();
}

#[test]
fn a_bad_record_is_refused_and_the_others_are_served() {
    let (_dir, run_dir) = run_dir();
    start(&run_dir, &record(1));
    let jobs = run_dir.jobs();
    let good = record(1).to_json();
    write(&jobs.join("2"), &good);
    write(&jobs.join("3"), &vec![b'x'; MAX_RECORD_BYTES as usize + 1]);
    write(&jobs.join("4"), b"{}");
    write(&jobs.join("007"), &record(7).to_json());
    write(&jobs.join("5.0.x"), &record(5).to_json());
    write(&jobs.join("x\u{1b}"), &good);
    symlink(jobs.join("1"), jobs.join("6")).unwrap();
    fs::write(jobs.join("8"), &good).unwrap();
    fs::create_dir_all(jobs.join("9/record")).unwrap();
    fs::create_dir(jobs.join("10")).unwrap();
    symlink(jobs.join("1/record"), jobs.join("10/record")).unwrap();
    fs::create_dir(jobs.join("11")).unwrap();
    nix::unistd::mkfifo(&jobs.join("11/record"), Mode::S_IRUSR).unwrap();
    write(&jobs.join("12"), &record(12).to_json());
    fs::set_permissions(jobs.join("12/record"), Permissions::from_mode(0o644)).unwrap();
    write(&jobs.join("13"), &record(13).to_json());
    fs::set_permissions(jobs.join("13"), Permissions::from_mode(0o777)).unwrap();
    fs::create_dir(jobs.join("14")).unwrap();
    let found = look(&jobs, false).unwrap();
    assert_eq!(found.found.iter().map(|found| found.job.job.get()).collect::<Vec<_>>(), [1]);
    // 14 has no record yet: nothing is wrong with it.
    assert_eq!(found.refused.len(), 13, "{:#?}", found.refused);
    assert!(found.refused.iter().all(|(_, why)| !why.contains("credd1-")));
}

#[test]
fn an_end_is_of_one_run_only() {
    let (_dir, run_dir) = run_dir();
    let (before, now) = (record(1), record(1));
    let run = start(&run_dir, &now);
    let (path, ended) = (run_dir.job(now.job), run_dir.ended().join("1.0.x"));
    let earlier = RunId::of(before.token.hash());
    assert!(matches!(super::end(&path, &ended, &earlier), Err(Refused::NoRecord)) && path.exists());
    super::end(&path, &ended, &run).unwrap();
    assert!(!path.exists() && ended.exists());
    assert!(matches!(super::end(&path, &ended, &run), Err(Refused::NoRecord)), "its epilog was faster");
}

#[test]
fn an_end_that_takes_another_runs_directory_puts_it_back() {
    let (_dir, run_dir) = run_dir();
    let (old, new) = (record(1), record(1));
    start(&run_dir, &old);
    let (path, to) = (run_dir.job(new.job), run_dir.ended().join("1.0.y"));
    let opened = open_directory(&path).unwrap();
    // Between the look and the rename the epilog ends the old run, and a prolog starts the new one.
    end(&run_dir, &old);
    start(&run_dir, &new);
    assert!(matches!(move_away(&opened, &path, &to), Err(Refused::NoRecord)));
    assert!(!to.exists());
    assert_eq!(read(&path, false).unwrap().job.token, new.token.hash());
    move_away(&open_directory(&path).unwrap(), &path, &to).unwrap();
    assert!(!path.exists() && to.exists());
}

#[test]
fn a_run_has_steps_while_one_of_them_holds_its_directory() {
    let (_dir, run_dir) = run_dir();
    let record = record(1);
    let (run, path) = (start(&run_dir, &record), run_dir.job(record.job));
    assert!(!has_steps(&path, &run));
    let hold = || Flock::lock(open_directory(&path).unwrap(), FlockArg::LockSharedNonblock).map_err(|(_, error)| error);
    let (one, another) = (hold().unwrap(), hold().unwrap());
    drop(one);
    assert!(has_steps(&path, &run));
    drop(another);
    assert!(!has_steps(&path, &run));
    // Of another run nothing is known.
    assert!(has_steps(&path, &RunId::of(TokenHash::of("another"))));
    end(&run_dir, &record);
    assert!(has_steps(&path, &run));
}

#[test]
fn other_names_are_read_from_their_own_file_and_credentials_do_not_depend_on_it() {
    let (_dir, run_dir) = run_dir();
    let record = record(12);
    start(&run_dir, &record);
    let path = run_dir.job(record.job);
    let names = || read(&path, false).map(|found| (found.job.het_leader, found.job.sluid));
    assert_eq!(names().unwrap(), (None, None));
    let written =
        RunNames { het_leader: Some(JobId::try_from(11).unwrap()), sluid: Some("s4HP2WQ8ZK1RT0".parse().unwrap()) };
    fs::write(path.join(file::NAMES), written.to_json().unwrap()).unwrap();
    assert_eq!(names().unwrap(), (written.het_leader, written.sluid));
    fs::write(path.join(file::NAMES), "{").unwrap();
    assert_eq!(names().unwrap(), (None, None));
}

#[test]
#[cfg_attr(not(is_root), ignore = "gives a record to another uid: run this test as root")]
fn another_users_record_is_refused() {
    let (_dir, run_dir) = run_dir();
    start(&run_dir, &record(1));
    std::os::unix::fs::chown(run_dir.jobs().join("1/record"), Some(1001), None).unwrap();
    let found = look(&run_dir.jobs(), false).unwrap();
    assert!(found.refused[0].1.contains("uid 1001"), "{found:?}");
}

#[derive(Debug, Clone)]
enum Hostile {
    File(Vec<u8>),
    Record(Vec<u8>),
    Note(Vec<u8>),
    Link,
    Nested,
}

fn hostile() -> impl Strategy<Value = Hostile> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..200);
    prop_oneof![
        bytes.clone().prop_map(Hostile::File),
        bytes.clone().prop_map(Hostile::Record),
        bytes.prop_map(Hostile::Note),
        Just(Hostile::Link),
        Just(Hostile::Nested),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn whatever_lies_there_a_good_record_is_found(
        entries in proptest::collection::hash_map("[0-9.a-z \\-]{1,12}", hostile(), 0..8)
    ) {
        let (_dir, run_dir) = run_dir();
        let good = record(4_000_000_000);
        start(&run_dir, &good);
        for (name, entry) in entries {
            let path = run_dir.jobs().join(name);
            if path.exists() {
                continue;
            }
            match entry {
                Hostile::File(bytes) => fs::write(path, bytes).unwrap(),
                Hostile::Record(bytes) => write(&path, &bytes),
                Hostile::Note(bytes) => {
                    write(&path, &good.to_json());
                    fs::write(path.join(file::SESSION), bytes).unwrap();
                }
                Hostile::Link => symlink("/", path).unwrap(),
                Hostile::Nested => fs::create_dir_all(path.join("record/x")).unwrap(),
            }
        }
        let found = look(&run_dir.jobs(), false).unwrap();
        prop_assert_eq!(found.found.len(), 1);
        prop_assert_eq!(found.found[0].job.token, good.token.hash());
        let _ = look(&run_dir.jobs(), true).unwrap();
    }
}

#[test]
fn a_completed_late_record_is_known_as_one_though_the_keeper_was_killed_before_it_renamed_the_first() {
    let (_dir, run_dir) = run_dir();
    let record = record(7);
    start(&run_dir, &record);
    let path = run_dir.job(record.job);
    assert!(!read(&path, false).unwrap().traits.was_late);
    fs::write(path.join(file::LATE), "").unwrap();
    assert!(read(&path, false).unwrap().traits.was_late);
}
