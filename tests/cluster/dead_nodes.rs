//! Nodes that die under a job.

use testbed::{Cluster, Plan, wait_for};

use crate::support::{
    NOTE, SOON, arn, ask_noted, get, hold, hold_script, noted, records, scontrol, sessions, srun, wait_noted,
    wait_status, whoami,
};

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_job_outlives_a_node_of_its_own_or_begins_anew() {
    let plan = Plan { nodes: 3, prolog_flags: "Alloc".into(), ..Plan::default() }
        .slurm_conf("SchedulerParameters=permit_job_expansion\nSlurmdTimeout=300");
    let cluster = Cluster::up(plan).expect("the cluster comes up");
    let _logs = cluster.logs_on_panic();
    no_kill(&cluster);
    requeued_by_a_node_failure(&cluster);
    grown_without_a_prolog(&cluster);
    cluster.assert_nodes_healthy();
}

/// The node loses its plug, and Slurm's patience with it ends.
fn dies(cluster: &Cluster, node: &str) {
    cluster.unplug(node).unwrap();
    scontrol(cluster, &format!("update nodename={node} state=down reason=unplugged"));
}

/// It is plugged in again, as it was left.
fn comes_back(cluster: &Cluster, node: &str) {
    cluster.plug_in(node).unwrap();
    scontrol(cluster, &format!("update nodename={node} state=resume"));
    wait_for("the node to be back", SOON, || {
        let state = cluster.node_state(node);
        (state == "idle" || state == "mixed").then_some(())
    })
    .unwrap();
}

fn no_kill(cluster: &Cluster) {
    let step = format!("srun -k bash -c '{NOTE}; exec sleep 600' &");
    let job = hold_script(cluster, "alice", &["--no-kill", "-N2", "-w", "n1,n3"], &step);
    let id = job.job;
    wait_noted(cluster, "alice", id, &["n1", "n3"]);
    assert_eq!(job.get_as("alice").status, 200);
    dies(cluster, "n3");
    let alice = cluster.as_user("alice");
    let nodes = || alice.run(&["squeue", "-h", "-j", &id.to_string(), "-o", "%T %N"]).stdout.trim().to_owned();
    wait_for("Slurm to strike the dead node off", SOON, || (nodes() == "RUNNING n1").then_some(())).unwrap();
    // A sweep passes, as another job's end shows.
    let other = hold(cluster, "bob", &["-w", "n2"]).finish();
    wait_status(cluster, other, "COMPLETED");
    wait_status(cluster, id, "ACTIVE");
    assert_eq!(job.get_as("alice").status, 200, "the job goes on");
    // Alive but cut off, the dead node has nothing to give: it never asked.
    let cut_off = ask_noted(cluster, "alice", id, "n3");
    assert_eq!(cut_off.status, 503, "{cut_off:?}");
    comes_back(cluster, "n3");
    let mut said = cut_off;
    wait_for("the node that came back to be refused", SOON, || {
        said = ask_noted(cluster, "alice", id, "n3");
        (said.status == 403).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {said:?}"));
    assert!(said.body.contains("does not run on node n3") || said.body.contains("has ended"), "{said:?}");
    assert_eq!(job.get_as("alice").status, 200);
    assert_eq!(sessions(cluster, id).len(), 1);
    let id = job.finish();
    wait_status(cluster, id, "COMPLETED");
}

fn requeued_by_a_node_failure(cluster: &Cluster) {
    let alice = cluster.as_user("alice");
    let script =
        format!("{NOTE}\necho \"run=$SLURM_RESTART_COUNT\"\nuntil [ -e ~/release-$SLURM_JOB_ID ]; do sleep 0.05; done");
    // The higher weight of n3 is in its being asked for; the second run may have any other node.
    let id = alice.sbatch(&script, &["--requeue", "-w", "n3", "--open-mode=append"]).unwrap();
    wait_noted(cluster, "alice", id, &["n3"]);
    assert_eq!(ask_noted(cluster, "alice", id, "n3").status, 200);
    let (old_uri, old_token) = noted(cluster, "alice", id, "n3").unwrap();
    dies(cluster, "n3");
    wait_status(cluster, id, "COMPLETED");
    let ended = sessions(cluster, id).remove(0);
    assert!(ended["why"].as_str().unwrap().contains("requeued"), "{ended}");
    scontrol(cluster, &format!("update jobid={id} nodelist=n2"));
    wait_noted(cluster, "alice", id, &["n2"]);
    assert_eq!(ask_noted(cluster, "alice", id, "n2").status, 200, "the second run has credentials");
    let all = sessions(cluster, id);
    assert_eq!((all.len(), &all[0]["status"], &all[1]["status"]), (2, &"ACTIVE".into(), &"COMPLETED".into()));
    // Back from the dead with the first run still on it: Slurm kills that, and its token is worth nothing.
    comes_back(cluster, "n3");
    wait_for("the first run's record to go", SOON, || {
        (!records(cluster, "n3").contains(&id.to_string())).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {:?}", cluster.node("n3").run_as_root("credd status; ps -ef")));
    let old = get(cluster.node("n3"), "alice", &old_uri, &[&format!("Authorization: {old_token}")]);
    assert_eq!(old.status, 403, "{old:?}");
    assert_eq!(ask_noted(cluster, "alice", id, "n2").status, 200, "which does not touch the second");
    alice.write_file(&format!("release-{id}"), "").unwrap();
    assert_eq!(alice.wait_job(id, SOON).unwrap(), "COMPLETED");
    wait_status(cluster, id, "COMPLETED");
}

/// With `PrologFlags=Alloc` slurmd 22.05 runs no prolog at all on a node that joins: the step there leaves the record.
fn grown_without_a_prolog(cluster: &Cluster) {
    let job = hold(cluster, "alice", &["-w", "n1"]);
    let helper = crate::growing::grow(cluster, job.job, "n2");
    let options = [format!("--jobid={}", job.job), "--overlap".into(), "-N1".into(), "-w".into(), "n2".into()];
    let joined = srun(cluster, "alice", &options.each_ref().map(|o| o.as_str()), &whoami(cluster));
    assert_eq!(joined.expect_ok(), arn("genomics", "alice", "n2"));
    let first = srun(cluster, "alice", &[&options[0], "--overlap", "-N1", "-w", "n1"], &whoami(cluster));
    assert_eq!(first.expect_ok(), arn("genomics", "alice", "n1"));
    let id = job.finish();
    for id in [id, helper] {
        wait_status(cluster, id, "COMPLETED");
    }
}
