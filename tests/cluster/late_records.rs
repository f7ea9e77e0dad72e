//! Steps on a node whose slurmd ran no prolog for the job: what the node finds of it is taken away before the step begins.
//! (`growing` has a slurmd that really runs none.) And what a user can do to a node's `/run`.

use testbed::{Cluster, Output, wait_for};

use crate::support::{
    SOON, admin, alone, arn, cluster, hold, records, requeued, scontrol, sessions, srun, wait_status, whoami,
};

/// An allocation without a step on n1, and its job id.
#[track_caller]
fn allocate(cluster: &Cluster, user: &str, partition: &str) -> u32 {
    let made = cluster.as_user(user).run(&["salloc", "--no-shell", "-w", "n1", "-p", partition]);
    let words = made.stderr.split_whitespace().map(|word| word.trim_end_matches(|c: char| !c.is_ascii_digit()));
    words.filter_map(|word| word.parse().ok()).next().unwrap_or_else(|| panic!("{made:?}"))
}

/// As if slurmd had run no prolog for the job on n1.
#[track_caller]
fn without_prolog(cluster: &Cluster, job: u32) {
    let script = format!("rm -rf /run/credd/jobs/{job} /run/credd/skipped/{job} /run/credd/tokens/{job}");
    cluster.node("n1").run_as_root(&script).expect_ok();
}

/// srun sets the partition's variable as slurmctld told it; a user may have an srun that sets another.
const CLAIM: &str = r#"
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <stdlib.h>
    #include <string.h>
    int setenv(const char *name, const char *value, int overwrite) {
        int (*real)(const char *, const char *, int) = dlsym(RTLD_NEXT, "setenv");
        const char *claimed = getenv("CLAIMED");
        if (claimed && strcmp(name, "SLURM_JOB_PARTITION") == 0)
            value = claimed;
        return real(name, value, overwrite);
    }
"#;

/// A step of the job on n1 whose environment claims this partition.
#[track_caller]
fn step(cluster: &Cluster, user: &str, job: u32, claimed: &str, script: &str) -> Output {
    let as_user = cluster.as_user(user);
    // Other tests claim at the same time, and an object that is being written cannot be loaded.
    let source = as_user.write_file(&format!("claim-{job}-{claimed}.c"), CLAIM).expect("the home is writable");
    let object = source.replace(".c", ".so");
    as_user.run(&["cc", "-shared", "-fPIC", "-o", &object, &source, "-ldl"]).expect_ok();
    let job = format!("--jobid={job}");
    let script = format!("echo claimed=$SLURM_JOB_PARTITION >&2; {script}");
    let arguments = [&job, "--overlap", "-N1", "-n1", "-w", "n1", "bash", "-c", &script];
    let done = as_user.srun_with(&[("LD_PRELOAD", &object), ("CLAIMED", claimed)], &arguments);
    let started = done.stderr.contains("claimed=");
    assert!(!started || done.stderr.contains(&format!("claimed={claimed}\n")), "the claim was not carried: {done:?}");
    done
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_step_that_finds_no_record_has_its_projects_credentials_all_the_same() {
    let cluster = cluster();
    let held = hold(&cluster, "alice", &["-w", "n1"]);
    let (id, session) = (held.job, sessions(&cluster, held.job)[0]["session"].clone());
    assert_eq!(held.get_as("alice").status, 200);
    without_prolog(&cluster, id);
    let me = whoami(&cluster);
    // Whatever partition it claims: Slurm says batch, whose role is the project's own.
    for claimed in ["batch", "train", "no-such"] {
        let done = step(&cluster, "alice", id, claimed, &me);
        assert_eq!(done.expect_ok(), arn("genomics", "alice", "n1"), "{claimed}: {done:?}");
        if claimed == "train" {
            without_prolog(&cluster, id);
        }
    }
    // The next step finds what the first one left, completed.
    let record = format!("/run/credd/jobs/{id}/record");
    let kept = cluster.node("n1").run_as_root(&format!("cat {record}; ls /run/credd/jobs/{id}"));
    assert!(
        kept.expect_ok().contains(r#""account":"genomics""#) && !kept.stdout.lines().any(|name| name == "late"),
        "{kept:?}"
    );
    let uri = step(&cluster, "alice", id, "batch", "echo $AWS_CONTAINER_CREDENTIALS_FULL_URI");
    assert!(uri.expect_ok().contains("/project/genomics?roleSessionName=lab-alice-n1"), "{uri:?}");
    let all = sessions(&cluster, id);
    assert_eq!((all.len(), &all[0]["session"]), (1, &session), "the run's session is joined: {all:?}");
    held.finish();
    wait_status(&cluster, id, "COMPLETED");
    wait_for("its record to go", SOON, || (!records(&cluster, "n1").contains(&id.to_string())).then_some(())).unwrap();
    cluster.assert_nodes_healthy();
}

/// slurmd remembers a job for `cred_expire` after its end. A run that begins within that time has no prolog: "reissued job
/// credential".
#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_run_that_slurmd_takes_for_the_last_one_has_credentials_of_its_own() {
    let cluster = cluster();
    let alice = cluster.as_user("alice");
    let job = requeued(&cluster);
    wait_for("the first run to be gone", SOON, || {
        let state = alice.run(&["squeue", "-h", "-j", &job.to_string(), "-O", "State:20"]).stdout;
        state.contains("PENDING").then_some(())
    })
    .unwrap();
    scontrol(&cluster, &format!("update JobId={job} StartTime=now"));
    alice.wait_job_output(job, "run=1 arn", SOON).unwrap();
    assert_eq!(alice.wait_job(job, SOON).unwrap(), "COMPLETED");
    let log = slurmd_log(&cluster);
    assert!(log.contains(&format!("reissued job credential for job {job}")), "slurmd ran a prolog: {log}");
    wait_status(&cluster, job, "COMPLETED");
    let all = sessions(&cluster, job);
    assert!(all.len() == 2 && all[0]["session"] != all[1]["session"], "{all:?}");
    wait_for("its records to go", SOON, || (!records(&cluster, "n1").contains(&job.to_string())).then_some(()))
        .unwrap();
    cluster.assert_nodes_healthy();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_partition_that_is_off_gives_nothing_whatever_a_step_claims() {
    let cluster = cluster();
    let id = allocate(&cluster, "alice", "debug");
    let show = format!("echo [$AWS_CONTAINER_CREDENTIALS_FULL_URI]; {} 2>&1; true", whoami(&cluster));
    // The prolog ran, and noted that.
    let done = step(&cluster, "alice", id, "batch", &show);
    assert!(done.expect_ok().starts_with("[]"), "{done:?}");
    without_prolog(&cluster, id);
    let done = step(&cluster, "alice", id, "batch", &show);
    assert!(!done.expect_ok().contains("assumed-role"), "{done:?}");
    assert!(done.stdout.contains("switched off for partition debug"), "{done:?}");
    // By now the node knows.
    let done = step(&cluster, "alice", id, "batch", &show);
    assert!(done.expect_ok().starts_with("[]"), "{done:?}");
    assert!(sessions(&cluster, id).is_empty(), "no session is opened for it");
    cluster.as_user("alice").scancel(id).expect_ok();
    cluster.as_user("alice").wait_job(id, SOON).unwrap();
    wait_for("what it left to go", SOON, || (!records(&cluster, "n1").contains(&id.to_string())).then_some(()))
        .unwrap();
    cluster.assert_nodes_healthy();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn on_error_fail_holds_without_a_prolog_and_whatever_a_step_claims() {
    let cluster = cluster();
    // genomics has the role `train`, climate has not.
    for (user, project, stopped) in [("alice", "train", false), ("bob", "climate", true)] {
        let id = allocate(&cluster, user, "strict-train");
        for claimed in ["strict-train", "batch", "debug"] {
            without_prolog(&cluster, id);
            let script = format!("echo ran; {}; true", whoami(&cluster));
            let mut done = step(&cluster, user, id, claimed, &script);
            // With a false claim a task waits a second for Slurm's word; on a busy machine it may not be there, which is
            // logged. The next step knows it.
            if done.stdout.contains("ran") && (stopped || claimed == "debug") {
                assert_ne!(claimed, "strict-train", "{done:?}");
                let log = slurmd_log(&cluster);
                assert!(log.contains(&format!("its environment names partition {claimed}")), "{done:?} {log}");
                wait_for("Slurm's word", SOON, || record_of(&cluster, id)).unwrap();
                done = step(&cluster, user, id, claimed, &script);
            }
            let prepared_without = done.stderr.contains("the step was prepared without them");
            assert!(!prepared_without || claimed == "debug", "{done:?}");
            if prepared_without {
                assert!(!done.ok() && !done.stdout.contains("ran"), "{claimed}: {done:?}");
                wait_for("Slurm's word", SOON, || record_of(&cluster, id)).unwrap();
                done = step(&cluster, user, id, claimed, &script);
            }
            assert_eq!(done.stdout.contains("ran"), !stopped, "{user} as {claimed}: {done:?}");
            if stopped {
                assert!(!done.ok() && done.stderr.contains("has no role named train"), "{claimed}: {done:?}");
            } else {
                assert!(done.stdout.contains(&arn(project, user, "n1")), "{claimed}: {done:?}");
            }
        }
        cluster.as_user(user).scancel(id).expect_ok();
        cluster.as_user(user).wait_job(id, SOON).unwrap();
    }
    cluster.assert_nodes_healthy();
}

/// The administrator's log of slurmd and its slurmstepds on n1.
fn slurmd_log(cluster: &Cluster) -> String {
    std::fs::read_to_string(cluster.run_dir().join("slurmd-n1.log")).unwrap()
}

/// Whether credd has completed the job's late record on n1.
fn record_of(cluster: &Cluster, job: u32) -> Option<()> {
    cluster.node("n1").path(&format!("/run/credd/jobs/{job}/record")).exists().then_some(())
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn while_credvend_is_away_jobs_of_other_partitions_do_not_wait_as_long_as_one_that_demands_credentials() {
    let cluster = alone();
    let jobs = [("batch", "batch"), ("debug", "debug"), ("strict-train", "debug")];
    let jobs = jobs.map(|(partition, claimed)| (allocate(&cluster, "alice", partition), claimed));
    cluster.credvend().stop().unwrap();
    for (id, claimed) in jobs {
        without_prolog(&cluster, id);
        let said_before = slurmd_log(&cluster).len();
        let began = std::time::Instant::now();
        let done = step(
            &cluster,
            "alice",
            id,
            claimed,
            "echo ran [$AWS_CONTAINER_CREDENTIALS_FULL_URI$AWS_EC2_METADATA_DISABLED]",
        );
        // Partition `patient` has wait=60s, the longest that there is.
        assert!(began.elapsed() < std::time::Duration::from_secs(60), "{done:?}");
        let variables = if claimed == "debug" { "ran []" } else { "ran [http" };
        assert!(done.expect_ok().starts_with(variables), "{claimed}: {done:?}");
        assert!(!done.stderr.contains("credd"), "the user hears nothing: {done:?}");
        let log = slurmd_log(&cluster)[said_before..].to_owned();
        assert!(log.contains(&format!("its environment names partition {claimed}")), "the administrator does: {log}");
    }
    cluster.credvend().start().unwrap();
    for (id, _) in jobs {
        cluster.as_user("alice").scancel(id).expect_ok();
        cluster.as_user("alice").wait_job(id, SOON).unwrap();
    }
    cluster.assert_nodes_healthy();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_late_record_that_is_refused_goes_with_its_last_step_though_no_epilog_comes() {
    let cluster = alone();
    let node = cluster.node("n1");
    let id = allocate(&cluster, "alice", "debug");
    without_prolog(&cluster, id);
    let alice = cluster.as_user("alice");
    let release = format!("release-step-{id}");
    let script = format!("until [ -e ~/{release} ]; do sleep 0.05; done");
    std::thread::scope(|scope| {
        let held = scope.spawn(|| step(&cluster, "alice", id, "batch", &script));
        let dir = format!("/run/credd/jobs/{id}");
        wait_for("the refusal", SOON, || node.path(&format!("{dir}/refused")).exists().then_some(())).unwrap();
        // As if it had been left an hour ago.
        let older =
            format!(r"sed -i '1s/^\(1 [0-9]* [0-9]* [0-9]*\) [0-9]*/\1 1000000000/' {dir}/late && cat {dir}/late");
        assert!(node.run_as_root(&older).expect_ok().contains(" 1000000000 "));
        let restarted = || {
            let looks = node.log("credd").matches("credd is ready").count();
            node.credd().restart().unwrap();
            wait_for("credd", SOON, || (node.log("credd").matches("credd is ready").count() > looks).then_some(()))
                .unwrap();
        };
        // A credd that was told nothing finds it on disk.
        restarted();
        alice.write_file(&release, "").unwrap();
        assert!(node.path(&dir).exists(), "its step lives");
        held.join().unwrap();
        wait_for("the late record to go", SOON, || (!node.path(&dir).exists()).then_some(()))
            .unwrap_or_else(|e| panic!("{e}: {}", node.log("credd")));
    });
    assert!(node.log("credd").contains("has no step here any more"), "{}", node.log("credd"));
    alice.scancel(id).expect_ok();
    alice.wait_job(id, SOON).unwrap();
    cluster.assert_nodes_healthy();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_job_of_several_partitions_is_of_the_one_it_runs_in() {
    let cluster = cluster();
    let alice = cluster.as_user("alice");
    for (partitions, role) in [("batch,train", ["genomics", "train"]), ("train,batch", ["train", "genomics"])] {
        let script = format!("echo $SLURM_JOB_PARTITION; {}", whoami(&cluster));
        let job = alice.sbatch(&script, &["-w", "n1", "-p", partitions]).unwrap();
        assert_eq!(alice.wait_job(job, SOON).unwrap(), "COMPLETED", "{}", alice.job_output(job));
        let output = alice.job_output(job);
        assert!(role.iter().any(|role| output.contains(&arn(role, "alice", "n1"))), "{output}");
    }
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_token_file_is_neither_grown_nor_mounted_upon_and_its_jobs_end_is_an_end() {
    let cluster = cluster();
    // As root of a user namespace the user may mount; that is seen there alone.
    let attack = "f=$AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE; \
                  (echo more >> $f) 2>/dev/null && echo grown; chmod u+w $f 2>/dev/null && echo writable; \
                  rm -f $f 2>/dev/null && echo removed; mv $f $f.old 2>/dev/null && echo moved; \
                  m=~/mounted-$SLURM_JOB_ID; \
                  unshare -rm sh -c \"mount --bind /etc/passwd $f && cmp $f /etc/passwd && touch $m && exec sleep 600\" & \
                  until [ -e $m ] || ! kill -0 $!; do sleep 0.1; done; cat $f; echo";
    let held = crate::support::hold_script(&cluster, "alice", &["-w", "n1", "-p", "tokenfile"], attack);
    let output = cluster.as_user("alice").job_output(held.job);
    for done in ["grown", "writable", "removed", "moved"] {
        assert!(!output.contains(done), "{output}");
    }
    assert!(output.contains(&held.token), "{output}");
    let (id, uri, token) = (held.job, held.uri.clone(), held.token.clone());
    assert_eq!(held.get_as("alice").status, 200);
    let node = cluster.node("n1");
    let mounted = node.run_as_root(&format!("grep -ls ' /run/credd/tokens/{id} ' /proc/[0-9]*/mountinfo"));
    assert!(!mounted.stdout.is_empty(), "nothing is mounted upon the token file: {output}");
    held.finish();
    wait_for("the token to be nobody's", SOON, || {
        let answer = crate::support::get(node, "alice", &uri, &[&format!("Authorization: {token}")]);
        (answer.status == 403).then_some(())
    })
    .unwrap();
    assert!(!node.path(&format!("/run/credd/tokens/{id}")).exists());
    cluster.assert_nodes_healthy();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_full_run_directory_stops_the_jobs_that_demand_credentials_and_tells_the_others() {
    let cluster = alone();
    let node = cluster.node("n1");
    let full = node.run_as_root(
        "used=$(df --output=used -k /run | tail -1); mount -o remount,size=$((used + 64))k /run; \
         dd if=/dev/zero of=/run/filler bs=4k 2>/dev/null; df -k /run",
    );
    let strict = srun(&cluster, "alice", &["-w", "n1", "-p", "strict"], "echo ran");
    let plain = srun(&cluster, "alice", &["-w", "n1"], "echo ran");
    let noted = node.run_as_root("find /run/credd/skipped /run/credd/new -type f -size 0 2>/dev/null; true");
    node.run_as_root("rm -f /run/filler; mount -o remount,size=64m /run").expect_ok();
    assert!(
        !strict.ok() && !strict.stdout.contains("ran") && strict.stderr.contains("job is stopped"),
        "{strict:?} {full:?}"
    );
    assert!(plain.stdout.contains("ran") && plain.stderr.contains("no AWS credentials"), "{plain:?} {full:?}");
    assert_eq!(noted.expect_ok(), "", "no empty note");
    let after = srun(&cluster, "alice", &["-w", "n1", "-p", "strict"], &whoami(&cluster));
    assert_eq!(after.expect_ok(), arn("genomics", "alice", "n1"));
    assert!(admin(&cluster, &["status"]).is_object());
    cluster.assert_nodes_healthy();
}
