//! What Slurm does to a job in the middle of its life: requeues it for one reason or another, or ends it slowly.

use testbed::{Cluster, Plan, wait_for};

use crate::support::{
    NOTE, SOON, arn, ask_noted, hold, noted, records, scontrol, sessions, status, wait_noted, wait_status, whoami,
};

/// Runs until it is let go, and notes what each of its runs was given.
fn script() -> String {
    format!("{NOTE}\nuntil [ -e ~/release-$SLURM_JOB_ID ]; do sleep 0.05; done")
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_job_that_slurm_begins_anew_and_one_that_does_not_get_away() {
    let plan = Plan::default()
        .partition("low", "PriorityTier=1 PreemptMode=REQUEUE", None)
        .partition("high", "PriorityTier=9 PreemptMode=OFF", None)
        .slurm_conf("PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE\nKillWait=30\nAuthInfo=cred_expire=6")
        .slurm_conf("Prolog={run}/etc/prolog\nEpilog={run}/etc/epilog")
        .script("prolog", "#!/bin/sh\n[ ! -e {run}/home/bobby/prolog-fails ]\n")
        .script("epilog", "#!/bin/sh\nwhile [ -e {run}/home/bobby/epilog-hangs ]; do sleep 0.05; done\n");
    let cluster = Cluster::up(plan).expect("the cluster comes up");
    let _logs = cluster.logs_on_panic();
    begun_anew(&cluster);
    completing(&cluster);
    cluster.assert_nodes_healthy();
}

/// Preempted, requeued and held, one task of an array, and a prolog that fails: the first run's session ends, the second
/// one has its own. All at a time, for slurmd takes a while to forget a first run.
fn begun_anew(cluster: &Cluster) {
    let alice = cluster.as_user("alice");
    let submit = |options: &[&str]| {
        let mut all = vec!["--requeue", "--open-mode=append"];
        all.extend(options);
        alice.sbatch(&script(), &all).unwrap()
    };
    let preempted = submit(&["-p", "low", "-w", "n1", "--exclusive"]);
    wait_noted(cluster, "alice", preempted, &["n1"]);
    let held = submit(&["-w", "n2"]);
    wait_noted(cluster, "alice", held, &["n2"]);
    let array = submit(&["-w", "n2", "--array=1-2"]);
    let mut tasks: Vec<u32> = Vec::new();
    wait_for("both tasks", SOON, || {
        let listed = alice.run(&["squeue", "-h", "-t", "RUNNING", "-j", &array.to_string(), "-O", "JobID:20"]);
        tasks = listed.stdout.split_whitespace().filter_map(|id| id.parse().ok()).collect();
        (tasks.len() == 2).then_some(())
    })
    .unwrap();
    // One task's raw id is the array's, and in scontrol's mouth means all of it.
    tasks.sort_unstable_by_key(|task| *task == array);
    for task in &tasks {
        wait_noted(cluster, "alice", *task, &["n2"]);
    }
    let first_runs = [(preempted, "n1"), (held, "n2"), (tasks[0], "n2"), (tasks[1], "n2")].map(|(job, node)| {
        assert_eq!(ask_noted(cluster, "alice", job, node).status, 200);
        (job, node, noted(cluster, "alice", job, node).unwrap().1)
    });

    let bob = cluster.as_user("bob");
    let urgent = hold(cluster, "bob", &["-p", "high", "-w", "n1", "--exclusive"]);
    scontrol(cluster, &format!("requeuehold {held}"));
    scontrol(cluster, &format!("requeue {}", tasks[0]));
    for job in [preempted, held, tasks[0]] {
        wait_status(cluster, job, "COMPLETED");
        let why = sessions(cluster, job)[0]["why"].as_str().unwrap_or_default().to_owned();
        assert!(why.contains("requeued") || why.contains("no longer knows"), "{why}");
    }
    assert_eq!(status(cluster, tasks[1]), "ACTIVE", "the other task of the array goes on");
    let id = urgent.finish();
    assert_eq!(bob.job_state(id), "COMPLETED");
    // While it waits it is given to another project.
    scontrol(cluster, &format!("update jobid={held} account=shared"));
    scontrol(cluster, &format!("release {held}"));

    // The site's own prolog fails: Slurm drains the node and holds the job, as it would without us.
    cluster.as_user("bobby").write_file("prolog-fails", "").unwrap();
    let unlucky = submit(&["-w", "n2"]);
    wait_for("the job to be held", SOON, || {
        let line = alice.run(&["squeue", "-h", "-j", &unlucky.to_string(), "-o", "%T %r"]).stdout;
        (line.starts_with("PENDING") && line.contains("held")).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {:?}", alice.run(&["scontrol", "show", "job", &unlucky.to_string()])));
    wait_for("its record to go", SOON, || (!records(cluster, "n2").contains(&unlucky.to_string())).then_some(()))
        .unwrap();
    wait_for("its session to be over, if it had one", SOON, || (status(cluster, unlucky) != "ACTIVE").then_some(()))
        .unwrap();
    assert_eq!(ask_noted(cluster, "alice", tasks[1], "n2").status, 200, "its neighbour is not concerned");
    cluster.as_user("bobby").run(&["rm", "prolog-fails"]).expect_ok();
    scontrol(cluster, "update nodename=n2 state=resume");
    alice.scancel(unlucky).expect_ok();

    // The second runs: new tokens, new sessions.
    for (job, node, token) in &first_runs[..3] {
        wait_for(&format!("the second run of job {job}"), 2 * SOON, || {
            noted(cluster, "alice", *job, node).is_some_and(|(_, now)| now != *token && !now.is_empty()).then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}; {:?}", alice.run(&["scontrol", "show", "job", &job.to_string()])));
        assert_eq!(ask_noted(cluster, "alice", *job, node).status, 200);
        let all = sessions(cluster, *job);
        assert_eq!((all.len(), &all[0]["status"], &all[1]["status"]), (2, &"ACTIVE".into(), &"COMPLETED".into()));
    }
    let projects: Vec<_> = sessions(cluster, held).iter().map(|s| s["project"].clone()).collect();
    assert_eq!(projects, ["shared", "genomics"]);
    assert_eq!(sessions(cluster, tasks[1]).len(), 1);
    let all = [preempted, held, tasks[0], tasks[1]];
    for job in all {
        alice.write_file(&format!("release-{job}"), "").unwrap();
    }
    for job in all {
        wait_status(cluster, job, "COMPLETED");
    }
}

/// A site's epilog hangs; and a job saves its results between SIGTERM and SIGKILL.
fn completing(cluster: &Cluster) {
    let bobby = cluster.as_user("bobby");
    let hang = bobby.write_file("epilog-hangs", "").unwrap();
    let job = hold(cluster, "alice", &["-w", "n1"]);
    assert_eq!(job.get_as("alice").status, 200);
    let id = job.job;
    job.release();
    let alice = cluster.as_user("alice");
    alice.wait_job_state(id, "COMPLETING", SOON).unwrap();
    // Ours runs before the site's: the node has let go already. Slurm has not, so credvend keeps the session.
    wait_for("the node to let go", SOON, || (job.get_as("alice").status == 403).then_some(())).unwrap();
    assert_eq!(status(cluster, id), "ACTIVE");
    bobby.run(&["rm", &hang]).expect_ok();
    wait_status(cluster, id, "COMPLETED");

    // It asks for credentials for the first time when it is told to end.
    let save =
        format!("trap 'echo saved by $({}); exit 0' TERM\necho ready\nwhile :; do sleep 0.05; done", whoami(cluster));
    let saving = alice.sbatch(&save, &["-w", "n2"]).unwrap();
    alice.wait_job_output(saving, "ready", SOON).unwrap();
    wait_status(cluster, saving, "ACTIVE");
    alice.scancel(saving).expect_ok();
    let said = alice.wait_job_output(saving, "saved by", SOON).unwrap();
    assert!(said.contains(&arn("genomics", "alice", "n2")), "{said}");
    wait_status(cluster, saving, "COMPLETED");
}
