//! Two controllers with one state: the backup takes over, and the first one takes it back.

use testbed::{Cluster, Plan, wait_for};

use crate::support::{SOON, admin, hold, scontrol, sessions, status, wait_saved, wait_status};

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_backup_controller_takes_over_and_nothing_is_closed_meanwhile() {
    let plan = Plan { backup_controller: true, ..Plan::default() }.slurm_conf("SlurmctldTimeout=3");
    let cluster = Cluster::up(plan).expect("the cluster comes up");
    let _logs = cluster.logs_on_panic();
    let (first, backup) = (cluster.slurmctld(), cluster.on("backup").daemon("slurmctld"));

    let running = hold(&cluster, "alice", &["-w", "n1"]);
    let ending = hold(&cluster, "bob", &["-w", "n2"]);
    assert_eq!(running.get_as("alice").status, 200);
    wait_status(&cluster, ending.job, "ACTIVE");
    let session = sessions(&cluster, running.job)[0]["session"].clone();

    wait_saved(&cluster, running.job);
    first.kill9().unwrap();
    assert_eq!(running.get_as("alice").status, 200, "from the node's cache");
    in_charge(&cluster, "backup");
    ending.release();
    wait_status(&cluster, ending.job, "COMPLETED");
    assert_eq!(status(&cluster, running.job), "ACTIVE", "the backup knows the job");
    // What the node kept is gone, credvend asks the backup.
    cluster.node("n1").credd().restart().unwrap();
    wait_for("credentials by the backup's word", SOON, || (running.get_as("alice").status == 200).then_some(()))
        .unwrap();
    let newcomer = hold(&cluster, "bobby", &["-w", "n2"]);
    assert_eq!(newcomer.get_as("bobby").status, 200, "{:?}", sessions(&cluster, newcomer.job));

    // The first one comes back and takes charge again.
    first.start().unwrap();
    in_charge(&cluster, "head");
    let id = newcomer.job;
    newcomer.release();
    wait_status(&cluster, id, "COMPLETED");
    let late = hold(&cluster, "bob", &["-w", "n2"]);
    assert_eq!(late.get_as("bob").status, 200);
    assert_eq!(running.get_as("alice").status, 200);

    // And hands over in order.
    scontrol(&cluster, "takeover");
    in_charge(&cluster, "backup");
    late.release();
    wait_status(&cluster, late.job, "COMPLETED");
    let all = sessions(&cluster, running.job);
    assert_eq!((all.len(), &all[0]["session"], &all[0]["status"]), (1, &session, &"ACTIVE".into()));
    running.release();
    wait_status(&cluster, running.job, "COMPLETED");
    let open = admin(&cluster, &["session", "list", "--status", "active"]);
    assert_eq!(open.as_array().map(Vec::len), Some(0), "{open}");
    assert!(backup.pid().is_some());
    cluster.assert_nodes_healthy();
}

/// Waits until a controller answers, and it is the one on this host.
fn in_charge(cluster: &Cluster, host: &str) {
    let said = || cluster.head().run_as_root("scontrol ping; squeue -h -o %i >/dev/null && echo answers").stdout;
    wait_for(&format!("the controller on {host} to be in charge"), 2 * SOON, || {
        let role = if host == "head" { "primary" } else { "backup" };
        let said = said();
        let up = said.lines().any(|line| line.contains(&format!("({role})")) && line.ends_with("UP"));
        // The primary may be up and not in charge after a takeover by hand: the backup's log tells.
        (up && said.contains("answers")).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {}", said()));
    // Nothing is scheduled on a node that the new one has not heard of yet.
    for node in cluster.nodes() {
        wait_for("the nodes to be heard of", 2 * SOON, || {
            let state = cluster.node_state(node.name());
            matches!(state.as_str(), "idle" | "mixed").then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}: {} is {}", node.name(), cluster.node_state(node.name())));
    }
}
