//! What a user writes into an environment or a submission changes nothing about who the job is.

use crate::support::{SOON, arn, cluster, hold, srun, whoami};

/// Everything that a plugin could be tempted to read.
const FORGED: &[(&str, &str)] = &[
    ("SLURM_JOB_ACCOUNT", "climate"),
    ("SLURM_JOB_PARTITION", "debug"),
    ("SLURM_CLUSTER_NAME", "evil"),
    ("SLURMD_NODENAME", "n9"),
    ("SLURM_JOB_UID", "5002"),
    ("SLURM_JOB_USER", "bob"),
    ("SLURM_JOB_ID", "1"),
    ("SLURM_JOBID", "1"),
    ("SLURM_JOB_RESTART_COUNT", "7"),
    ("SLURM_RESTART_COUNT", "7"),
    ("SPANK_SLURM_JOB_ACCOUNT", "climate"),
    ("SPANK_SLURM_JOB_UID", "5002"),
    ("SPANK_AWS", "off"),
];

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn forged_variables_change_nothing() {
    let cluster = cluster();
    // srun itself reads SLURM_JOB_ID as "run inside that job": those two go to sbatch's --export only.
    let for_srun: Vec<(&str, &str)> =
        FORGED.iter().copied().filter(|(n, _)| !n.starts_with("SLURM_JOB_ID") && *n != "SLURM_JOBID").collect();
    let done = cluster.as_user("alice").srun_with(&for_srun, &["-w", "n1", "bash", "-c", &whoami(&cluster)]);
    assert_eq!(done.expect_ok(), arn("genomics", "alice", "n1"));
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn forged_variables_in_a_batch_job_change_nothing() {
    let cluster = cluster();
    let alice = cluster.as_user("alice");
    let export = FORGED.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(",");
    let job = alice.sbatch(&whoami(&cluster), &["-w", "n2", &format!("--export=ALL,{export}")]).unwrap();
    alice.wait_job(job, SOON).unwrap();
    assert_eq!(alice.job_output(job).trim(), arn("genomics", "alice", "n2"));
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn slurm_refuses_anothers_account() {
    let cluster = cluster();
    let refused = srun(&cluster, "alice", &["-A", "climate"], "true").expect_failure();
    assert!(refused.contains("Invalid account"), "{refused}");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn hostile_job_names_and_comments_change_nothing() {
    let cluster = cluster();
    let name = "x|1|climate|batch|5002|bob|n1|R\n999 climate \u{1b}[2J %A";
    let done = srun(&cluster, "alice", &["-w", "n1", "-J", name, "--comment", name], &whoami(&cluster));
    assert_eq!(done.expect_ok(), arn("genomics", "alice", "n1"));
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_planted_endpoint_does_not_survive() {
    let cluster = cluster();
    let job = hold(&cluster, "bob", &["-w", "n1"]);
    // A URL and a token of ours from another job are removed even where the partition is off; somebody else's are not ours.
    let ours = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", job.uri.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", job.token.as_str()),
    ];
    let show = &["-p", "debug", "bash", "-c", "env | grep -c ^AWS_CONTAINER || true"];
    assert_eq!(cluster.as_user("alice").srun_with(&ours, show).expect_ok(), "0");
    let foreign = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:8080/mine"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "mine"),
    ];
    assert_eq!(cluster.as_user("alice").srun_with(&foreign, show).expect_ok(), "2");
    // Where the partition is on, ours win, and RELATIVE_URI, which several SDKs prefer, goes.
    let relative = [
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/evil"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/etc/hostname"),
    ];
    let done = cluster.as_user("alice").srun_with(
        &relative,
        &["-w", "n1", "bash", "-c", &format!("env | grep -cE 'RELATIVE_URI|TOKEN_FILE'; {}", whoami(&cluster))],
    );
    assert_eq!(done.expect_ok(), format!("0\n{}", arn("genomics", "alice", "n1")));
    job.finish();
}
