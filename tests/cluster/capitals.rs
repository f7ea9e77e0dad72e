//! `ClusterName=MyLab`: Slurm calls it `mylab` everywhere, and whoever configures us writes what slurm.conf has.

use testbed::{Cluster, Plan};

use crate::support::{SOON, admin, hold, srun, wait_status, whoami};

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_cluster_name_with_capitals_is_slurms_own() {
    let plan = Plan { cluster_name: "MyLab".to_owned(), nodes: 1, ..Plan::default() };
    let cluster = Cluster::up(plan).expect("the cluster comes up");
    let _logs = cluster.logs_on_panic();
    let (head, node) = (cluster.head(), cluster.node("n1"));

    // On an idle node, before any job.
    testbed::wait_for("a well node", SOON, || node.run_as("root", &["credd", "health"]).ok().then_some(()))
        .unwrap_or_else(|e| panic!("{e}: {:?}", node.run_as("root", &["credd", "health"])));
    let done = srun(&cluster, "alice", &[], &whoami(&cluster));
    let arn = done.expect_ok();
    assert!(arn.ends_with("assumed-role/genomics/MyLab-alice-n1"), "{arn}");
    let job = hold(&cluster, "alice", &[]);
    assert!(job.uri.contains("/cluster/mylab/"), "Slurm's word: {}", job.uri);
    let number = job.job;
    let listed = admin(&cluster, &["session", "list", "--cluster", "mylab", "--job", &number.to_string()]);
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    admin(&cluster, &["revoke", "--job", &format!("mylab/{number}")]);
    let answer = job.get_as("alice");
    assert_eq!(answer.status, 403, "{answer:?}");
    job.finish();
    wait_status(&cluster, number, "INVALIDATED");
    let lines = head.run_as("root", &["credvend", "pin"]);
    assert!(lines.expect_ok().contains("cluster = \"mylab\""), "{lines:?}");
}

/// A name that is not Slurm's at all: every check says so, and none is green.
#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_wrong_cluster_name_is_green_nowhere() {
    let cluster = Cluster::up(Plan { nodes: 1, ..Plan::default() }).expect("the cluster comes up");
    let _logs = cluster.logs_on_panic();
    let (head, node) = (cluster.head(), cluster.node("n1"));
    let health = || node.run_as("root", &["credd", "health"]);
    testbed::wait_for("a well node", SOON, || health().ok().then_some(())).unwrap();

    let path = cluster.run_dir().join("etc/credvend/credvend.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, good.replace("name = \"lab\"", "name = \"lap\"")).unwrap();
    cluster.credvend().stop().unwrap();
    cluster.credvend().start().unwrap();
    let told = |what: &str, said: &dyn Fn() -> String, word: &str| {
        testbed::wait_for(what, SOON, || said().contains(word).then_some(()))
            .unwrap_or_else(|e| panic!("{e}: {}", said()));
    };
    told("health to fail", &|| health().stdout, "refusals: credvend refuses this node: cluster lab is not in");
    assert!(!health().ok());
    let status = || head.run_as("root", &["credvend", "status"]).stdout;
    told("status to say it", &status, "ClusterName is \"lab\"");
    told("status to name who asks", &status, "requests for cluster lab are refused");
    let config = path.display().to_string();
    let check = head.run_with("credvend", &[("CREDVEND_CONFIG", &config)], &["credvend", "check-config", "--online"]);
    assert!(!check.ok() && check.stdout.contains("ClusterName is \"lab\""), "{check:?}");
    std::fs::write(&path, good).unwrap();
    cluster.credvend().stop().unwrap();
    cluster.credvend().start().unwrap();
    testbed::wait_for("a well node again", SOON, || health().ok().then_some(())).unwrap();

    // The node's own configuration: its records are refused.
    let path = cluster.run_dir().join("etc/credd-n1.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, good.replace("cluster = \"lab\"", "cluster = \"lap\"")).unwrap();
    node.daemon("credd").stop().unwrap();
    node.daemon("credd").start().unwrap();
    let job = hold(&cluster, "alice", &[]);
    told("health to name the record", &|| health().stdout, "it is of cluster lab, credd.toml says another");
    assert!(!health().ok());
    job.finish();
    std::fs::write(&path, good).unwrap();
    node.daemon("credd").stop().unwrap();
    node.daemon("credd").start().unwrap();
    testbed::wait_for("a well node at last", SOON, || health().ok().then_some(())).unwrap();
    cluster.assert_nodes_healthy();
}
