//! What happens when something is away: the job starts without waiting and runs, or fails cleanly where its partition
//! says so; the node is never drained; when the service is back the same job gets credentials.

use std::time::{Duration, Instant};

use testbed::{Cluster, wait_for};

use crate::support::{HeldJob, SOON, alone, arn, hold, srun, whoami};

/// With a service away: a job of an ordinary partition starts and runs, and is told why it has no credentials; jobs of a
/// strict partition, typed and batch, fail with the reason, and their neighbour runs on; afterwards the first job, still
/// running, gets its credentials. `told` looks at what the first job hears.
fn with_away(cluster: &Cluster, stop: impl Fn(), start: impl Fn(), told: impl Fn(&HeldJob<'_>)) {
    let begun = Instant::now();
    srun(cluster, "alice", &["-w", "n1"], "true").expect_ok();
    let usual = begun.elapsed();
    stop();
    let begun = Instant::now();
    let job = hold(cluster, "alice", &["-w", "n1"]);
    // A step that waited would have waited for its partition's five seconds at least.
    assert!(
        begun.elapsed() < 2 * usual + Duration::from_secs(4),
        "the start took {:?}, not {usual:?}",
        begun.elapsed()
    );
    told(&job);

    let strict = srun(cluster, "bob", &["-w", "n1", "-p", "strict"], "echo ran");
    assert!(!strict.ok() && !strict.stdout.contains("ran"), "{strict:?}");
    assert!(
        strict.stderr.contains("the job is stopped, since its partition demands"),
        "no reason is given: {strict:?}"
    );
    let bob = cluster.as_user("bob");
    let batch = bob.sbatch("echo ran", &["-w", "n1", "-p", "strict"]).unwrap();
    assert_eq!(bob.wait_job(batch, SOON).unwrap(), "FAILED");
    let output = bob.job_output(batch);
    assert!(output.contains("the job is stopped") && !output.contains("ran\n"), "{output}");
    assert_eq!(cluster.as_user("alice").job_state(job.job), "RUNNING", "the neighbour is not concerned");
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

/// With credvend away, credd says so, naming the job.
fn told_by_credd(job: &HeldJob<'_>) {
    let answer = job.get_as("alice");
    assert_eq!(answer.status, 503, "{answer:?}");
    let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.contains(&job.job.to_string()) && message.contains("credvend"), "{message}");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn credd_is_down() {
    let cluster = alone();
    let credd = cluster.node("n1").credd();
    let told = |job: &HeldJob<'_>| {
        let options =
            [format!("--jobid={}", job.job), "--overlap".into(), "bash".into(), "-c".into(), whoami(&cluster)];
        let said = cluster.as_user("alice").srun(&options.each_ref().map(|o| o.as_str())).expect_failure();
        // The SDK's own words: it asked the endpoint and heard nothing.
        assert!(said.contains("container-role") || said.contains("container metadata"), "{said}");
    };
    with_away(&cluster, || credd.kill9().unwrap(), || credd.start().unwrap(), told);
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn credvend_is_down() {
    let cluster = alone();
    let credvend = cluster.credvend();
    with_away(&cluster, || credvend.kill9().unwrap(), || credvend.start().unwrap(), told_by_credd);
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn credvend_hangs() {
    let cluster = alone();
    let credvend = cluster.credvend();
    with_away(&cluster, || credvend.freeze().unwrap(), || credvend.thaw().unwrap(), told_by_credd);
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

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_strict_partition_waits_for_credentials_and_not_only_for_a_session() {
    let cluster = alone();
    // Slurm and credvend are well, so sessions open; AWS is not.
    cluster.aws().daemon().freeze().unwrap();
    let done = srun(&cluster, "bob", &["-w", "n2", "-p", "strict"], "echo ran");
    cluster.aws().daemon().thaw().unwrap();
    let said = done.expect_failure();
    assert!(said.contains("the job is stopped") && !said.contains("ran\n"), "{said}");
    let locked = srun(&cluster, "alice", &["-w", "n2", "-p", "strict", "-A", "locked"], "echo ran").expect_failure();
    assert!(locked.contains("trust policy") && !locked.contains("ran\n"), "{locked}");
    cluster.assert_nodes_healthy();
}
