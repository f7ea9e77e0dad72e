//! A site without `PrologFlags=Alloc`: the prolog runs at a node's first step, and an allocation that makes no step has an
//! epilog without a prolog.

use testbed::{Cluster, Plan};

use crate::support::{SOON, arn, sessions, srun, wait_status, whoami};

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn steps_get_their_identity_and_empty_allocations_leave_nothing() {
    let plan = Plan { prolog_flags: String::new(), ..Plan::default() };
    let cluster = Cluster::up(plan).expect("the cluster comes up");
    let _logs = cluster.logs_on_panic();
    let me = whoami(&cluster);
    let done = srun(&cluster, "alice", &["-w", "n1"], &me);
    assert_eq!(done.expect_ok(), arn("genomics", "alice", "n1"));

    let alice = cluster.as_user("alice");
    let batch = alice.sbatch(&format!("srun -N1 -w n2 bash -c '{me}'"), &["-N2", "-w", "n1,n2"]).unwrap();
    assert_eq!(alice.wait_job(batch, SOON).unwrap(), "COMPLETED", "{}", alice.job_output(batch));
    assert_eq!(alice.job_output(batch).trim(), arn("genomics", "alice", "n2"));
    wait_status(&cluster, batch, "COMPLETED");
    assert_eq!(sessions(&cluster, batch).len(), 1);

    // --no-shell makes an allocation and no step at all.
    let empty = alice.run(&["salloc", "--no-shell", "-w", "n1"]);
    let words = empty.stderr.split_whitespace().map(|w| w.trim_end_matches(|c: char| !c.is_ascii_digit()));
    let job: u32 = words.filter_map(|w| w.parse().ok()).next().unwrap_or_else(|| panic!("{empty:?}"));
    alice.scancel(job).expect_ok();
    alice.wait_job(job, SOON).unwrap();
    cluster.wait_idle().unwrap();
    assert!(sessions(&cluster, job).is_empty());
    cluster.assert_nodes_healthy();
    for node in cluster.nodes() {
        for dir in ["jobs", "ended", "new"] {
            let left = std::fs::read_dir(node.path(&format!("/run/credd/{dir}"))).map_or(0, Iterator::count);
            assert_eq!(left, 0, "{dir} on {}", node.name());
        }
    }
}
