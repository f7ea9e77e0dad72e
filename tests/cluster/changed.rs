//! What is done to a running job, or to its user, without ending it: its session stays as it was opened.

use testbed::{Cluster, Plan, wait_for};

use crate::support::{
    NOTE, SOON, arn, ask_noted, hold, hold_script, scontrol, sessions, status, wait_noted, wait_status, whoami,
};

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_job_that_is_changed_while_it_runs_keeps_its_session() {
    let cluster = Cluster::up(Plan::default()).expect("the cluster comes up");
    let _logs = cluster.logs_on_panic();
    suspended(&cluster);
    signalled_attached_held_and_extended(&cluster);
    another_account(&cluster);
    a_user_without_a_name(&cluster);
    components(&cluster);
    cluster.assert_nodes_healthy();
}

/// The only session of a job, and that it is open.
#[track_caller]
fn only_session(cluster: &Cluster, job: u32) -> serde_json::Value {
    let all = sessions(cluster, job);
    assert_eq!((all.len(), &all[0]["status"]), (1, &"ACTIVE".into()), "{all:?}");
    all[0]["session"].clone()
}

/// Whatever the node keeps for its jobs is gone, as it is when a suspension has lasted longer than credentials live.
fn forgets(cluster: &Cluster, node: &str) {
    cluster.node(node).credd().restart().unwrap();
    wait_for("credd to be well", SOON, || cluster.node(node).run_as("root", &["credd", "health"]).ok().then_some(()))
        .unwrap();
}

fn suspended(cluster: &Cluster) {
    let ask = format!("until [ -e ~/ask-$SLURM_JOB_ID ]; do sleep 0.05; done; echo \"after $({})\"", whoami(cluster));
    let script = format!("{NOTE}\n{ask}\nuntil [ -e ~/release-$SLURM_JOB_ID ]; do sleep 0.05; done");
    let alice = cluster.as_user("alice");
    let job = alice.sbatch(&script, &["-w", "n1"]).unwrap();
    wait_noted(cluster, "alice", job, &["n1"]);
    assert_eq!(ask_noted(cluster, "alice", job, "n1").status, 200);
    let session = only_session(cluster, job);
    scontrol(cluster, &format!("suspend {job}"));
    alice.wait_job_state(job, "SUSPENDED", SOON).unwrap();
    forgets(cluster, "n1");
    alice.write_file(&format!("ask-{job}"), "").unwrap();
    // A sweep sees it suspended, as another job's end shows: its node hangs, so nobody else tells.
    let other = hold(cluster, "bob", &["-w", "n2"]);
    wait_status(cluster, other.job, "ACTIVE");
    let credd = cluster.node("n2").credd();
    credd.freeze().unwrap();
    let other = other.finish();
    wait_status(cluster, other, "COMPLETED");
    credd.thaw().unwrap();
    assert_eq!(only_session(cluster, job), session);
    assert!(!alice.job_output(job).contains("after"), "it was suspended");
    scontrol(cluster, &format!("resume {job}"));
    let said = alice.wait_job_output(job, "after arn", SOON).unwrap();
    assert!(said.contains(&arn("genomics", "alice", "n1")), "{said}");
    assert_eq!(only_session(cluster, job), session);
    alice.write_file(&format!("release-{job}"), "").unwrap();
    wait_status(cluster, job, "COMPLETED");
}

fn signalled_attached_held_and_extended(cluster: &Cluster) {
    let step = format!(
        "trap 'echo got it' USR1\nsrun bash -c '{NOTE}; until [ -e ~/step-$SLURM_JOB_ID ]; do sleep 0.05; done; \
         echo step is done' &"
    );
    let job = hold_script(cluster, "alice", &["-w", "n1", "-t", "10"], &step);
    let id = job.job.to_string();
    wait_noted(cluster, "alice", job.job, &["n1"]);
    assert_eq!(job.get_as("alice").status, 200);
    let session = only_session(cluster, job.job);
    let alice = cluster.as_user("alice");
    alice.run(&["scancel", "--batch", "--signal=USR1", &id]).expect_ok();
    alice.wait_job_output(job.job, "got it", SOON).unwrap();
    // A running job that is held runs on; it would wait after a requeue.
    for change in [format!("hold {id}"), format!("release {id}"), format!("update jobid={id} timelimit=+60")] {
        scontrol(cluster, &change);
    }
    let attached = cluster.head().start_as("alice", &["sattach", &format!("{id}.0")]).unwrap();
    forgets(cluster, "n1");
    wait_for("credentials", SOON, || (job.get_as("alice").status == 200).then_some(())).unwrap();
    assert_eq!(only_session(cluster, job.job), session);
    // The step ends before its job does, which would kill it.
    alice.write_file(&format!("step-{id}"), "").unwrap();
    let said = attached.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&said.stdout).contains("step is done"), "{said:?}");
    let id = job.finish();
    wait_status(cluster, id, "COMPLETED");
}

/// A running job's account cannot be changed, and an account with running jobs cannot be deleted: Slurm 22.05.8 sees to it.
/// What a requeued job may have instead is tested in `interrupted`.
fn another_account(cluster: &Cluster) {
    let job = hold(cluster, "alice", &["-w", "n1"]);
    assert_eq!(job.get_as("alice").status, 200);
    let session = only_session(cluster, job.job);
    for (order, why) in [
        (format!("scontrol update jobid={} account=shared", job.job), "no longer pending"),
        ("sacctmgr -i delete account genomics".to_owned(), "Job"),
        ("sacctmgr -i delete user alice account=genomics".to_owned(), "Job"),
    ] {
        let said = cluster.head().run_as_root(&order).expect_failure();
        assert!(said.contains(why), "{order}: {said}");
    }
    cluster.head().run_as_root("sacctmgr -i modify user alice set defaultaccount=shared").expect_ok();
    forgets(cluster, "n1");
    wait_for("credentials", SOON, || (job.get_as("alice").status == 200).then_some(())).unwrap();
    assert_eq!(only_session(cluster, job.job), session);
    let id = job.finish();
    wait_status(cluster, id, "COMPLETED");
    cluster.head().run_as_root("sacctmgr -i modify user alice set defaultaccount=genomics").expect_ok();
}

/// The user database forgets her, or is away; then it has her back under another name.
fn a_user_without_a_name(cluster: &Cluster) {
    let job = hold(cluster, "alice", &["-w", "n1"]);
    assert_eq!(job.get_as("alice").status, 200);
    let passwd = cluster.run_dir().join("etc/passwd");
    let before = std::fs::read_to_string(&passwd).unwrap();
    let line = before.lines().find(|line| line.starts_with("alice:")).unwrap();
    // In place: the hosts have this very file.
    for now in [before.replace(&format!("{line}\n"), ""), before.replace("\nalice:", "\nalicia:")] {
        std::fs::write(&passwd, now).unwrap();
        forgets(cluster, "n1");
        // By number, for there is no such name.
        let host = cluster.node("n1");
        let ask = format!(
            "setpriv --reuid=5001 --regid=5001 --clear-groups curl -s -q --noproxy '*' -H 'Authorization: {}' '{}'",
            job.token, job.uri
        );
        let mut said = String::new();
        wait_for("credentials for the running job", 2 * SOON, || {
            said = host.run_as_root(&ask).stdout;
            said.contains("AccessKeyId").then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}: {said}"));
        assert_eq!(status(cluster, job.job), "ACTIVE");
    }
    std::fs::write(&passwd, before).unwrap();
    let id = job.finish();
    wait_status(cluster, id, "COMPLETED");
}

/// A heterogeneous job: each component is a job of its own, with a session by its raw id.
fn components(cluster: &Cluster) {
    let alice = cluster.as_user("alice");
    let script = format!("#!/bin/bash\n#SBATCH -w n1 -A genomics\n#SBATCH hetjob\n#SBATCH -w n2 -A shared\n{}", {
        format!("srun --het-group=0,1 bash -c '{NOTE}; exec sleep 600'")
    });
    let leader = alice.sbatch(&script, &[]).unwrap();
    // The steps of both know the leader's id as theirs.
    wait_noted(cluster, "alice", leader, &["n1", "n2"]);
    for node in ["n1", "n2"] {
        assert_eq!(ask_noted(cluster, "alice", leader, node).status, 200, "on {node}");
    }
    for (job, project) in [(leader, "genomics"), (leader + 1, "shared")] {
        only_session(cluster, job);
        assert_eq!(sessions(cluster, job)[0]["project"], project);
    }
    alice.scancel(leader).expect_ok();
    for job in [leader, leader + 1] {
        wait_status(cluster, job, "COMPLETED");
    }
}
