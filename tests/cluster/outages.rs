//! What happens when something is away: the job starts without waiting and runs, or fails cleanly where its partition
//! says so; the node is never drained; when the service is back the same job gets credentials.

use std::time::{Duration, Instant};

use testbed::{Cluster, wait_for};

use crate::support::{SOON, alone, arn, hold, srun, whoami};

/// With a service away: a job of an ordinary partition runs and is told why; one of a strict partition fails with the
/// reason; afterwards the first one, still running, gets its credentials.
fn with_away(cluster: &Cluster, stop: impl Fn(), start: impl Fn()) {
    stop();
    let begun = Instant::now();
    let job = hold(cluster, "alice", &["-w", "n1"]);
    assert!(begun.elapsed() < Duration::from_secs(20), "the start waited: {:?}", begun.elapsed());
    let answer = job.get_as("alice");
    assert!(answer.status != 200 && answer.status != 429, "{answer:?}");
    let strict = srun(cluster, "bob", &["-w", "n1", "-p", "strict"], "echo ran");
    assert!(!strict.ok() && !strict.stdout.contains("ran"), "{strict:?}");
    assert!(strict.stderr.contains("credd"), "no reason is given: {strict:?}");
    cluster.assert_nodes_healthy();
    start();
    wait_for("credentials for the running job", SOON, || (job.get_as("alice").status == 200).then_some(())).unwrap();
    job.finish();
    wait_for("the strict partition to work again", SOON, || {
        let done = srun(cluster, "bob", &["-w", "n1", "-p", "strict"], &whoami(cluster));
        (done.stdout.trim() == arn("climate", "bob", "n1")).then_some(())
    })
    .unwrap();
    cluster.assert_nodes_healthy();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn credd_is_down() {
    let cluster = alone();
    let credd = cluster.node("n1").credd();
    with_away(&cluster, || credd.kill9().unwrap(), || credd.start().unwrap());
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn credvend_is_down() {
    let cluster = alone();
    let credvend = cluster.credvend();
    with_away(&cluster, || credvend.kill9().unwrap(), || credvend.start().unwrap());
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn credvend_hangs() {
    let cluster = alone();
    let credvend = cluster.credvend();
    with_away(&cluster, || credvend.freeze().unwrap(), || credvend.thaw().unwrap());
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn sts_hangs_and_the_job_is_told() {
    let cluster = alone();
    let aws = cluster.aws().daemon();
    aws.freeze().unwrap();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    let begun = Instant::now();
    let answer = job.get_as("alice");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(begun.elapsed() < Duration::from_secs(6), "an SDK waits 2 to 5 s, not {:?}", begun.elapsed());
    assert!(answer.json()["message"].as_str().is_some_and(|m| m.contains(&job.job.to_string())), "{answer:?}");
    aws.thaw().unwrap();
    wait_for("credentials for the running job", SOON, || (job.get_as("alice").status == 200).then_some(())).unwrap();
    job.finish();
    cluster.assert_nodes_healthy();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn sts_errs_and_the_job_is_told() {
    let cluster = alone();
    let credvend = cluster.credvend();
    credvend.stop().unwrap();
    // Nothing listens there: every AssumeRole fails at once.
    credvend.start_with(&[("AWS_ENDPOINT_URL_STS", "http://10.77.0.1:9")]).unwrap();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    let mut answer = job.get_as("alice");
    wait_for("an answer about AWS", SOON, || {
        answer = job.get_as("alice");
        answer.body.contains("AWS").then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}: {answer:?}"));
    assert_eq!(answer.status, 503, "{answer:?}");
    cluster.assert_nodes_healthy();
    credvend.stop().unwrap();
    credvend.start_with(&[("AWS_ENDPOINT_URL_STS", testbed::layout::AWS_ENDPOINT)]).unwrap();
    wait_for("credentials for the running job", SOON, || (job.get_as("alice").status == 200).then_some(())).unwrap();
    job.finish();
}
