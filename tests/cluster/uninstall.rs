//! A site takes credd away while a job runs, step by step as the admin guide's chapter on uninstalling says.

use testbed::{Cluster, Plan, wait_for};

use crate::support::{SOON, admin, arn, get, hold, records, srun, wait_status, whoami};

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_running_job_keeps_its_credentials_until_its_end_and_nothing_is_served_after_it() {
    let cluster = Cluster::up(Plan { nodes: 1, ..Plan::default() }).expect("the cluster comes up");
    let _logs = cluster.logs_on_panic();
    let node = cluster.node("n1");
    let job = hold(&cluster, "alice", &["-p", "tokenfile"]);
    assert_eq!(job.get_as("alice").status, 200);

    // 1. `default=off` and nothing else.
    let plugstack = cluster.run_dir().join("etc/slurm/plugstack.conf");
    let line = std::fs::read_to_string(&plugstack).unwrap();
    let words: Vec<&str> = line.split_whitespace().take(2).collect();
    std::fs::write(&plugstack, format!("{} default=off\n", words.join(" "))).unwrap();
    let shown = srun(&cluster, "alice", &[], "env | grep -c ^AWS_CONTAINER_ || true");
    assert_eq!(shown.expect_ok(), "0", "a new job has nothing of ours: {shown:?}");
    assert_eq!(records(&cluster, "n1"), [job.job.to_string()]);
    // The job that began before goes on, and so do its new steps.
    assert_eq!(job.get_as("alice").status, 200);
    let step = srun(&cluster, "alice", &[&format!("--jobid={}", job.job), "--overlap"], &whoami(&cluster));
    assert_eq!(step.expect_ok(), arn("genomics", "alice", "n1"), "{step:?}");

    // It ends by the plugin's own epilog.
    let (uri, token) = (job.uri.clone(), job.token.clone());
    let number = job.finish();
    let ask = || get(node, "alice", &uri, &[&format!("Authorization: {token}")]);
    wait_for("the token to be nobody's", SOON, || (ask().status == 403).then_some(()))
        .unwrap_or_else(|e| panic!("{e}: {:?}", ask()));
    wait_for("the record to go", SOON, || records(&cluster, "n1").is_empty().then_some(())).unwrap();
    assert!(!node.path(&format!("/run/credd/tokens/{number}")).exists());
    assert!(!node.log("credd").contains("its epilog noted no end here"), "{}", node.log("credd"));
    wait_status(&cluster, number, "COMPLETED");

    // 2. `credvend session list` shows none that is ACTIVE; the line goes, then the object; slurmd is restarted.
    let sessions = admin(&cluster, &["session", "list"]);
    let statuses = sessions.as_array().unwrap().iter().map(|session| session["status"].as_str().unwrap());
    assert!(statuses.into_iter().all(|status| status != "ACTIVE"), "{sessions}");
    std::fs::write(&plugstack, "").unwrap();
    std::fs::remove_file(words[1]).unwrap();
    node.slurmd().restart().expect("slurmd restarts");

    // 3. The services end.
    node.credd().stop().expect("credd stops");
    cluster.credvend().stop().expect("credvend stops");
    let plain = srun(&cluster, "alice", &[], "echo ran; env | grep -c ^AWS_CONTAINER_ || true");
    assert_eq!(plain.expect_ok(), "ran\n0", "{plain:?}");
    let options = srun(&cluster, "alice", &["--aws=on"], "true");
    assert!(!options.ok() && options.stderr.contains("aws"), "srun knows no option of ours: {options:?}");
    cluster.assert_nodes_healthy();
}
