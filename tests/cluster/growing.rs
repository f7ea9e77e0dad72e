//! Nodes that leave and join a running job, and job ids that come round. Slurm 22.05.8 lets a job grow only if no step of the
//! helping job runs, and `PrologFlags=Contain` makes one; so this cluster's prolog runs at a node's first step.

use testbed::{Cluster, Plan, wait_for};

use crate::support::{
    HeldJob, NOTE, SOON, admin, arn, ask_noted, get, hold, hold_script, records, scontrol, sessions, srun, wait_noted,
    wait_status, whoami,
};

/// How many job ids there are.
const IDS: u32 = 5;

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn nodes_leave_and_join_a_running_job_and_ids_come_round() {
    let plan = Plan { nodes: 3, prolog_flags: String::new(), ..Plan::default() }
        .slurm_conf("SchedulerParameters=permit_job_expansion")
        // A job that is over is forgotten at once, and its number is free.
        .slurm_conf(&format!("MinJobAge=2\nFirstJobId=100\nMaxJobId={}", 100 + IDS));
    let cluster = Cluster::up(plan).expect("the cluster comes up");
    let _logs = cluster.logs_on_panic();
    nodes_leave_and_join(&cluster);
    ids_come_round(&cluster);
    cluster.assert_nodes_healthy();
}

fn nodes_leave_and_join(cluster: &Cluster) {
    let step = format!("srun -k bash -c '{NOTE}; exec sleep 600' &");
    let job = hold_script(cluster, "alice", &["-N2", "-w", "n1,n2"], &step);
    let id = job.job;
    wait_noted(cluster, "alice", id, &["n1", "n2"]);
    for node in ["n1", "n2"] {
        assert_eq!(ask_noted(cluster, "alice", id, node).status, 200, "on {node}");
    }
    let session = sessions(cluster, id)[0]["session"].clone();

    // It shrinks: Slurm kills what runs on the node that leaves, and runs the epilog there.
    scontrol(cluster, &format!("update jobid={id} numnodes=1"));
    wait_for("the node that left to lose access", SOON, || {
        (ask_noted(cluster, "alice", id, "n2").status == 403).then_some(())
    })
    .unwrap();
    wait_for("its record to go", SOON, || records(cluster, "n2").is_empty().then_some(())).unwrap();
    assert_eq!(ask_noted(cluster, "alice", id, "n1").status, 200, "the others do not notice");
    wait_status(cluster, id, "ACTIVE");

    // It grows, by the nodes of a second job that gives them up.
    let alice = cluster.as_user("alice");
    let helper = grow(cluster, id, "n3");
    let on_n3 = format!("--jobid={id}");
    let who = srun(cluster, "alice", &[&on_n3, "--overlap", "-N1", "-w", "n3"], &whoami(cluster));
    assert_eq!(who.expect_ok(), arn("genomics", "alice", "n3"));
    let all = sessions(cluster, id);
    assert_eq!((all.len(), &all[0]["session"]), (1, &session), "{all:?}");
    let detail = admin(cluster, &["session", "show", session.as_str().unwrap()]);
    assert!(detail.to_string().contains("n3"), "the node that joined is one of the session's: {detail}");
    assert!(sessions(cluster, helper).is_empty(), "the helping job made no step");

    // Back on a node that it left a moment ago: slurmd has not forgotten that the job ended there, and runs no prolog.
    grow(cluster, id, "n2");
    assert!(records(cluster, "n2").is_empty());
    let again = srun(cluster, "alice", &[&on_n3, "--overlap", "-N1", "-w", "n2"], &whoami(cluster));
    assert_eq!(again.expect_ok(), arn("genomics", "alice", "n2"));
    assert_eq!(sessions(cluster, id).len(), 1);

    job.release();
    wait_status(cluster, id, "COMPLETED");
    for node in ["n1", "n2", "n3"] {
        wait_for("no record to be left", SOON, || records(cluster, node).is_empty().then_some(())).unwrap();
    }
    alice.run(&["scancel", "--user=alice"]);
}

/// Gives a running job of alice's one more node, by way of a helping job, whose id it returns.
#[track_caller]
pub fn grow(cluster: &Cluster, job: u32, node: &str) -> u32 {
    let alice = cluster.as_user("alice");
    let made = alice.run(&["salloc", "--no-shell", "-w", node, &format!("--dependency=expand:{job}")]);
    let helper: u32 = made
        .stderr
        .split_once("Granted job allocation ")
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or_else(|| panic!("{made:?}"));
    alice.run(&["scontrol", "update", &format!("jobid={helper}"), "numnodes=0"]).expect_ok();
    alice.run(&["scontrol", "update", &format!("jobid={job}"), "numnodes=ALL"]).expect_ok();
    helper
}

fn ids_come_round(cluster: &Cluster) {
    // Files in the home carry the job's number, too.
    let forget =
        || cluster.as_user("alice").run(&["bash", "-c", "rm -f ~/release-* ~/job-*.out"]).expect_ok().to_owned();
    let over = |job: HeldJob<'_>| {
        job.release();
        wait_status(cluster, job.job, "COMPLETED");
    };
    forget();
    let first = hold(cluster, "alice", &["-w", "n1"]);
    let (id, uri, token) = (first.job, first.uri.clone(), first.token.clone());
    assert_eq!(first.get_as("alice").status, 200);
    let session = sessions(cluster, id)[0]["session"].clone();
    over(first);
    let before = sessions(cluster, id).len();
    for _ in 0..=IDS {
        forget();
        // While all numbers are in use Slurm has sbatch wait.
        let next = hold(cluster, "alice", &["-w", "n1"]);
        if next.job != id {
            over(next);
            continue;
        }
        assert_eq!(next.get_as("alice").status, 200);
        let old = get(next.host(), "alice", &uri, &[&format!("Authorization: {token}")]);
        assert_eq!(old.status, 403, "{old:?}");
        let all = sessions(cluster, id);
        assert_eq!(all.len(), before + 1, "{all:?}");
        assert_ne!(all[0]["session"], session);
        assert_eq!((&all[0]["status"], &all[1]["status"]), (&"ACTIVE".into(), &"COMPLETED".into()));
        return over(next);
    }
    panic!("job id {id} did not come again");
}
