//! The demo as a newcomer sees it: it runs to its end, leaves the machine as it was, and goes away at ^C.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use testbed::wait_for;

/// What belongs to the machine, and must not change: contents by path.
fn machine() -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for path in ["/etc/passwd", "/etc/group", "/etc/shadow", "/etc/hosts", "/etc/nsswitch.conf"] {
        found.insert(PathBuf::from(path), fs::read(path).unwrap_or_default());
    }
    for dir in ["/etc/slurm", "/etc/munge", "/etc/credd", "/etc/credvend", "/run/credd", "/run/netns"] {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            found.insert(entry.path(), fs::read(entry.path()).unwrap_or_default());
        }
    }
    found
}

/// `testbed demo` with a run directory of its own.
fn demo(runs: &Path) -> Child {
    // A test run that a shell started with `&` ignores SIGINT, and what it starts would as well.
    Command::new("env")
        .args(["--default-signal=INT", env!("CARGO_BIN_EXE_testbed"), "demo"])
        .env("CREDD_TESTBED_DIR", runs)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // As a terminal starts it: ^C reaches everything in its group.
        .process_group(0)
        .spawn()
        .expect("the demo starts")
}

fn left(runs: &Path) -> Vec<PathBuf> {
    fs::read_dir(runs).expect("the directory is there").flatten().map(|entry| entry.path()).collect()
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "no cluster can run here: see the warning of the build")]
fn it_tells_its_story_and_leaves_the_machine_as_it_was() {
    let runs = tempfile::tempdir().expect("a directory");
    fs::set_permissions(runs.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("its mode");
    let before = machine();
    let done = demo(runs.path()).wait_with_output().expect("it ends");
    let (told, wrong) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{told}\n{wrong}");
    for word in ["assumed-role/genomics/lab-alice-n", "assumed-role/climate/lab-bob-n", "data of genomics", "COMPLETED"]
    {
        assert!(told.contains(word), "{word:?} is not told:\n{told}");
    }
    assert_eq!(left(runs.path()), Vec::<PathBuf>::new());
    assert!(machine() == before, "the machine's own files have changed");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "no cluster can run here: see the warning of the build")]
fn it_goes_away_at_an_interrupt() {
    let runs = tempfile::tempdir().expect("a directory");
    fs::set_permissions(runs.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("its mode");
    let mut demo = demo(runs.path());
    // In the middle: the cluster is up and jobs run.
    let mut lines = BufReader::new(demo.stdout.take().expect("piped")).lines();
    lines.find(|line| line.as_ref().is_ok_and(|l| l.contains("assumed-role"))).expect("jobs run").expect("text");
    killpg(Pid::from_raw(demo.id().try_into().expect("a process id")), Signal::SIGINT).expect("it is there");
    let status = demo.wait().expect("it ends");
    assert!(!status.success());
    wait_for("the cluster to go away", Duration::from_secs(60), || left(runs.path()).is_empty().then_some(()))
        .unwrap_or_else(|e| panic!("{e}: {:?}", left(runs.path())));
}
