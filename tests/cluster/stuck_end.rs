//! A node whose own end of a job got stuck: Slurm has the job as over, and no epilog of ours has run.

use testbed::{Cluster, Plan};

use crate::support::{SOON, hold, records, wait_status};

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_job_that_is_over_for_slurm_is_served_no_more_where_its_epilog_did_not_run() {
    let cluster = Cluster::up(Plan { nodes: 1, ..Plan::default() }).expect("the cluster comes up");
    let _logs = cluster.logs_on_panic();
    let job = hold(&cluster, "alice", &[]);
    assert_eq!(job.get_as("alice").status, 200);
    assert_eq!(records(&cluster, "n1"), [job.job.to_string()]);

    // As a site that takes the plugin away while jobs run.
    let plugstack = cluster.run_dir().join("etc/slurm/plugstack.conf");
    let line = std::fs::read_to_string(&plugstack).unwrap();
    std::fs::write(&plugstack, "").unwrap();
    let number = job.job;
    let (host, uri, token) = (cluster.node("n1"), job.uri.clone(), job.token.clone());
    job.finish();
    wait_status(&cluster, number, "COMPLETED");
    // credvend tells it within seconds, long before the credentials are to be renewed.
    let ask = || crate::support::get(host, "alice", &uri, &[&format!("Authorization: {token}")]);
    testbed::wait_for("the endpoint to refuse", SOON, || (ask().status == 403).then_some(()))
        .unwrap_or_else(|e| panic!("{e}: {:?}", ask()));
    testbed::wait_for("the record to go", SOON, || records(&cluster, "n1").is_empty().then_some(()))
        .unwrap_or_else(|e| panic!("{e}: {}", host.log("credd")));
    assert!(host.log("credd").contains("its epilog noted no end here"), "{}", host.log("credd"));

    std::fs::write(&plugstack, line).unwrap();
    let next = hold(&cluster, "alice", &[]);
    assert_eq!(next.get_as("alice").status, 200);
    next.finish();
    cluster.assert_nodes_healthy();
}
