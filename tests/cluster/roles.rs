//! Projects whose role cannot be had: the job's user reads which role and why.

use crate::support::{SOON, alone, arn, cluster, hold, srun, whoami};

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_role_that_does_not_trust_credvend() {
    let cluster = cluster();
    let job = hold(&cluster, "alice", &["-A", "locked", "-w", "n1"]);
    let answer = job.get_as("alice");
    assert_eq!(answer.status, 403, "{answer:?}");
    let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
    for word in [cluster.aws().role_arn("locked"), "trust policy", "credvend-service", "sts:AssumeRole"] {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
    job.finish();
    // And through a real SDK the sentence reaches the user's terminal.
    let done = srun(&cluster, "alice", &["-A", "locked", "-w", "n1"], "aws sts get-caller-identity --debug");
    assert!(done.expect_failure().contains("trust policy"), "{done:?}");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn an_account_without_a_role() {
    let cluster = cluster();
    let job = hold(&cluster, "alice", &["-A", "unmapped", "-w", "n1"]);
    let answer = job.get_as("alice");
    assert_eq!(answer.status, 403, "{answer:?}");
    assert!(answer.body.contains("unmapped") && answer.body.contains("projects.toml"), "{answer:?}");
    job.finish();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_project_added_while_the_service_runs() {
    let cluster = alone();
    let head = cluster.head();
    let role = cluster.aws().role_arn("shared").to_owned();
    head.run_as("root", &["credvend", "project", "set", "unmapped", "--role-arn", &role]).expect_ok();
    let listed = head.run_as("root", &["credvend", "project", "list"]);
    assert!(listed.expect_ok().contains("unmapped"), "{listed:?}");
    let done = srun(&cluster, "alice", &["-A", "unmapped", "-w", "n1"], &whoami(&cluster));
    assert_eq!(done.expect_ok(), arn("shared", "alice", "n1"));
    head.run_as("root", &["credvend", "project", "remove", "unmapped"]).expect_ok();
    let job = hold(&cluster, "alice", &["-A", "unmapped", "-w", "n1"]);
    assert_eq!(job.get_as("alice").status, 403);
    job.finish();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_strict_partition_fails_the_job_that_has_no_role() {
    let cluster = cluster();
    let done = srun(&cluster, "alice", &["-p", "strict", "-A", "unmapped", "-w", "n1"], "echo ran");
    let said = done.expect_failure();
    assert!(said.contains("unmapped") && said.contains("projects.toml") && !said.contains("ran\n"), "{said}");
    let alice = cluster.as_user("alice");
    let job = alice.sbatch("echo ran", &["-p", "strict", "-A", "unmapped", "-w", "n1"]).unwrap();
    assert_eq!(alice.wait_job(job, SOON).unwrap(), "FAILED");
    let output = alice.job_output(job);
    assert!(output.contains("unmapped") && !output.contains("ran\n"), "{output}");
    // The same partition serves whoever has a role.
    let served = srun(&cluster, "alice", &["-p", "strict", "-w", "n1"], &whoami(&cluster));
    assert_eq!(served.expect_ok(), arn("genomics", "alice", "n1"));
    cluster.assert_nodes_healthy();
}
