//! `.ci/cargo-test` with a cargo that prints what each case wants: what failed runs once more, alone, and what that proves.
//! And `tests/dependencies`: a pass says whether it saw a database of advisories.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// What a test program prints that passes, with cargo's line about it.
const GOOD: &str = "     Running unittests src/lib.rs (target/debug/deps/good-1)\n\n\
    running 2 tests\ntest a ... ok\ntest b ... ignored\n\n\
    test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\n";

/// How cargo's calls went on, one after the other: its output and exit status.
type Calls<'a> = &'a [(&'a str, i32)];

/// The script's output, its exit status, and what cargo was asked.
struct Outcome {
    said: String,
    status: i32,
    asked: Vec<String>,
}

/// Runs `.ci/cargo-test`.
fn run(calls: Calls<'_>) -> Outcome {
    run_script("/usr/bin/python3", ".ci/cargo-test", calls)
}

/// Runs a script. A cargo that is asked more often than there are calls fails.
fn run_script(interpreter: &str, script: &str, calls: Calls<'_>) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    for (nth, (output, status)) in calls.iter().enumerate() {
        fs::write(dir.path().join(format!("{nth}.out")), output).unwrap();
        fs::write(dir.path().join(format!("{nth}.status")), status.to_string()).unwrap();
    }
    let cargo = dir.path().join("cargo");
    let fake = "#!/bin/sh\ncd \"${0%/*}\"\ntouch asked\nn=$(wc -l <asked)\necho \"$*\" >>asked\n\
                while IFS= read -r line; do\n\
                [ \"$line\" != HANG ] || { sleep 600; continue; }\n\
                printf '%s\\n' \"$line\"\ndone <\"$n.out\"\nexit \"$(cat \"$n.status\")\"\n";
    fs::write(&cargo, fake).unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(script);
    let done = Command::new(interpreter)
        .arg(script)
        .env("CARGO", &cargo)
        .env("CI_QUIET_SECONDS", "3")
        .output()
        .expect("the interpreter is there");
    let asked = fs::read_to_string(dir.path().join("asked")).unwrap();
    Outcome {
        said: String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned(),
        status: done.status.code().unwrap(),
        asked: asked.lines().map(str::to_owned).collect(),
    }
}

/// A program of which these tests fail, as cargo and the test harness print it.
fn failing(target: &str, names: &[&str]) -> String {
    let mut text = format!(
        "     Running tests/x.rs (target/debug/deps/{target}-2)\n\nrunning 9 tests\n\nfailures:\n\n\
         ---- {} stdout ----\nfailures:\n    of::another::program\n\ntest result\n\nfailures:\n",
        names[0]
    );
    for name in names {
        text.push_str(&format!("    {name}\n"));
    }
    let failed = names.len();
    text + &format!(
        "\ntest result: FAILED. 3 passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n\n\
         error: test failed, to rerun pass `-p pkg --test {target}`\n"
    )
}

/// A program that passes so many tests.
fn passing(target: &str, tests: u32) -> String {
    format!(
        "     Running tests/x.rs (target/debug/deps/{target}-2)\n\n\
         test result: ok. {tests} passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n\n"
    )
}

/// A program that died of a signal.
const DEAD: &str = "     Running tests/x.rs (target/debug/deps/dead-2)\n\nrunning 9 tests\ntest a ... ok\n\
    error: test failed, to rerun pass `-p pkg --test dead`\n\nCaused by:\n  \
    process didn't exit successfully: `dead-2` (signal: 6, SIGABRT: process abort signal)\n";

const DOCTEST: &str = "   Doc-tests pkg\n\nrunning 1 test\n\nfailures:\n\nfailures:\n    src/lib.rs - x (line 1)\n\n\
    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n\n\
    error: doctest failed, to rerun pass `-p pkg --doc`\n";

fn closing(targets: &[&str]) -> String {
    let mut text = format!("error: {} targets failed:\n", targets.len());
    for target in targets {
        text.push_str(&format!("    `-p pkg {target}`\n"));
    }
    text
}

const BUILT: (&str, i32) = ("    Finished `test` profile\n", 0);

#[test]
fn all_is_green_without_a_second_run() {
    let outcome = run(&[BUILT, (GOOD, 0)]);
    assert_eq!(outcome.status, 0, "{}", outcome.said);
    assert_eq!(outcome.asked, ["test --locked --workspace --no-run", "test --locked --workspace --no-fail-fast"]);
    assert!(outcome.said.trim_end().lines().last().unwrap().starts_with("green: 1 passed, 0 failed, 1 ignored in 1"));
}

#[test]
fn what_fails_once_is_flaky_and_what_fails_twice_is_red() {
    let first = [GOOD, &failing("both", &["m::flips", "m::broken"]), &closing(&["--test both"])].concat();
    let again = failing("both", &["m::broken"]) + &closing(&["--test both"]);
    let outcome = run(&[BUILT, (&first, 101), (&passing("both", 1), 0), (&again, 101)]);
    assert_eq!(outcome.status, 1, "{}", outcome.said);
    assert_eq!(
        outcome.asked[2..],
        [
            "test --locked --workspace --no-fail-fast --test both -- --exact m::flips",
            "test --locked --workspace --no-fail-fast --test both -- --exact m::broken"
        ]
    );
    let last = "FLAKY: m::flips (-p pkg --test both)\nFAILED: m::broken (-p pkg --test both)\nred: 4 passed, 2 failed";
    assert!(outcome.said.contains(last), "{}", outcome.said);
    // Cargo's own lines are all there.
    assert!(outcome.said.contains("error: 1 targets failed:\n    `-p pkg --test both`\n"), "{}", outcome.said);

    let first = failing("one", &["m::flips"]) + &closing(&["--test one"]);
    let outcome = run(&[BUILT, (&first, 101), (&passing("one", 1), 0)]);
    assert_eq!(outcome.status, 0, "{}", outcome.said);
    assert!(outcome.said.contains("FLAKY: m::flips (-p pkg --test one)\ngreen: "), "{}", outcome.said);
}

#[test]
fn a_second_run_that_ran_nothing_proves_nothing() {
    let first = failing("one", &["m::flips"]) + &closing(&["--test one"]);
    for again in [passing("one", 0), passing("other", 1), String::new()] {
        let outcome = run(&[BUILT, (&first, 101), (&again, 0)]);
        assert_eq!(outcome.status, 1, "{}", outcome.said);
        assert!(outcome.said.contains("FAILED: m::flips (-p pkg --test one)\nred: "), "{}", outcome.said);
    }
}

#[test]
fn programs_without_a_sum_and_doctests_run_again_as_a_whole() {
    let unlike = failing("unlike", &["m::flips"]).replace("1 failed; 0 ignored", "2 failed; 0 ignored");
    let first = [DEAD, &unlike, DOCTEST, &closing(&["--test dead", "--test unlike", "--doc"])].concat();
    let doctests = "   Doc-tests pkg\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out;\n";
    let calls = [BUILT, (&first, 101), (&passing("dead", 9), 0), (&passing("unlike", 9), 0), (doctests, 0)];
    let outcome = run(&calls);
    assert_eq!(outcome.status, 0, "{}", outcome.said);
    let all = "test --locked --workspace --no-fail-fast";
    assert_eq!(outcome.asked[2..], ["--test dead", "--test unlike", "--doc"].map(|target| format!("{all} {target}")));
    for target in ["--test dead", "--test unlike", "--doc"] {
        assert!(outcome.said.contains(&format!("FLAKY: all of -p pkg {target}\n")), "{}", outcome.said);
    }
}

#[test]
fn a_program_that_is_stuck_is_killed_and_has_failed() {
    let first = ["HANG\n", DEAD, GOOD, &closing(&["--test dead"])].concat();
    let outcome = run(&[BUILT, (&first, 101), ("HANG\n", 101)]);
    assert_eq!(outcome.status, 1, "{}", outcome.said);
    assert_eq!(outcome.said.matches("Killed what cargo was running").count(), 2, "{}", outcome.said);
    // The others ran.
    assert!(outcome.said.contains("FAILED: all of -p pkg --test dead\nred: 1 passed, 0 failed, 1 ignored in 2"));
}

#[test]
fn a_failed_build_and_many_failures_are_red_at_once() {
    let outcome = run(&[("error: could not compile `pkg`\n", 101)]);
    assert_eq!((outcome.status, outcome.asked.len()), (1, 1), "{}", outcome.said);

    // A doctest's build, or cargo itself, may fail later; no target is named.
    let outcome = run(&[BUILT, (GOOD, 101)]);
    assert_eq!((outcome.status, outcome.asked.len()), (1, 2), "{}", outcome.said);

    let names = ["a", "b", "c", "d", "e", "f"];
    let first = failing("many", &names) + &closing(&["--test many"]);
    let outcome = run(&[BUILT, (&first, 101)]);
    assert_eq!((outcome.status, outcome.asked.len()), (1, 2), "{}", outcome.said);
    assert_eq!(outcome.said.matches("\nFAILED: ").count(), names.len(), "{}", outcome.said);
}

#[test]
fn a_pass_of_the_dependencies_says_whether_it_saw_an_advisory_database() {
    let check = |calls: Calls<'_>| {
        let outcome = run_script("/bin/sh", "tests/dependencies", calls);
        (outcome.status, outcome.said.trim_end().lines().last().unwrap_or_default().to_owned())
    };
    const THERE: (&str, i32) = ("cargo-deny 0.20.2\n", 0);
    const SOUND: (&str, i32) = ("bans ok, licenses ok, sources ok\n", 0);
    const UNFETCHED: (&str, i32) = ("[ERROR] failed to fetch advisory database https://github.com/…\n", 1);
    const NO_COPY: (&str, i32) = ("[ERROR] failed to get 'FETCH_HEAD' metadata: failed to get HEAD timestamp\n", 1);
    const VULNERABLE: (&str, i32) = ("error[vulnerability]: a hole\nadvisories FAILED\n", 1);
    let (status, last) = check(&[THERE, SOUND, ("advisories ok\n", 0)]);
    assert!(status == 0 && last.ends_with("database as it is today."), "{status} {last}");
    let (status, last) = check(&[THERE, SOUND, UNFETCHED, ("advisories ok\n", 0)]);
    assert!(status == 0 && last.contains("EARLIER copy"), "{status} {last}");
    let (status, last) = check(&[THERE, SOUND, UNFETCHED, NO_COPY]);
    assert!(status == 0 && last.contains("NOT CHECKED: advisories"), "{status} {last}");
    for red in [&[THERE, SOUND, VULNERABLE][..], &[THERE, SOUND, UNFETCHED, VULNERABLE]] {
        assert_eq!(check(red), (1, "advisories FAILED".to_owned()));
    }
    for (status, last) in [check(&[THERE, ("bans FAILED\n", 2)]), check(&[("no such command\n", 101)])] {
        assert_ne!(status, 0, "{last}");
    }
}
