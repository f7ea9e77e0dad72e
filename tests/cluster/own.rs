//! `credd credentials` and `credd env`: for programs and environments that do not reach the job's credentials.

use testbed::{Cluster, wait_for};

use crate::support::{SOON, alone, arn, get, hold, records, srun, whoami};

/// Nobody's job is on the node any more.
fn quiet(cluster: &Cluster, node: &str) {
    wait_for("the node's jobs to be gone", SOON, || records(cluster, node).is_empty().then_some(())).unwrap();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_cleaned_environment_and_programs_without_the_container_provider_get_credentials() {
    let cluster = alone();
    quiet(&cluster, "n1");
    let credd = cluster.run_dir().join("bin/credd").display().to_string();
    let who = whoami(&cluster);
    let clean = "unset AWS_CONTAINER_CREDENTIALS_FULL_URI AWS_CONTAINER_AUTHORIZATION_TOKEN";
    let script = format!(
        "{clean}\n\
         env -i {credd} credentials | tr -d '\\n '; echo\n\
         (eval \"$(env -i {credd} env)\"; {who})\n\
         (eval $(env -i {credd} env --endpoint); [ -n \"$AWS_CONTAINER_AUTHORIZATION_TOKEN\" ]; {who})\n\
         printf '[profile job]\\ncredential_process = {credd} credentials\\n' > ~/profile-$SLURM_JOB_ID\n\
         (export AWS_CONFIG_FILE=~/profile-$SLURM_JOB_ID AWS_PROFILE=job; {who})\n\
         env -i {credd} env --endpoint --json | grep -c credd1-\n"
    );
    let done = srun(&cluster, "alice", &["-w", "n1", "--account=genomics"], &script);
    let lines: Vec<&str> = done.expect_ok().lines().collect();
    let alice = arn("genomics", "alice", "n1");
    assert!(
        lines[0].starts_with(r#"{"Version":1,"AccessKeyId":"ASIA"#) && lines[0].contains("SessionToken"),
        "{done:?}"
    );
    assert_eq!(lines[1..], [&*alice, &alice, &alice, "1"], "{done:?}");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn outside_of_a_job_the_kernel_says_whose_and_the_user_says_which() {
    let cluster = alone();
    quiet(&cluster, "n1");
    let node = cluster.node("n1");
    let ask = |user: &str, env: &[(&str, &str)], more: &[&str]| {
        node.run_with(user, env, &[&["credd", "credentials"], more].concat())
    };
    let refused = |done: testbed::Output, says: &[&str]| {
        assert!(done.status == 1 && done.stdout.is_empty(), "{done:?}");
        assert!(says.iter().all(|says| done.stderr.contains(says)), "{done:?}");
    };
    let one = hold(&cluster, "alice", &["-w", "n1"]);
    assert!(ask("alice", &[], &[]).expect_ok().contains("SecretAccessKey"));
    for other in ["bob", "root"] {
        refused(ask(other, &[], &[]), &["No job of uid"]);
        refused(ask(other, &[], &["--job", &one.job.to_string()]), &[&one.job.to_string()]);
    }
    let two = hold(&cluster, "alice", &["-w", "n1"]);
    let (first, second) = (one.job.to_string(), two.job.to_string());
    refused(ask("alice", &[], &[]), &[&first, &second, "--job"]);
    ask("alice", &[], &["--job", &second]).expect_ok();
    ask("alice", &[("SLURM_JOB_ID", &first)], &[]).expect_ok();
    refused(ask("alice", &[("SLURM_JOB_ID", "999999")], &[]), &["999999", &first]);
    // What a web program can be made to send.
    for headers in [&[][..], &["X-Credd-Client: x"]] {
        let answer = get(node, "alice", "http://127.0.0.1:9999/own/v1/credentials", headers);
        assert!(answer.status == 404 && !answer.body.contains("AccessKeyId"), "{answer:?}");
    }
    one.finish();
    two.finish();
    quiet(&cluster, "n1");
    refused(ask("alice", &[], &["--job", &first]), &[&first]);
    refused(ask("alice", &[], &[]), &["No job of uid"]);
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_port_that_another_user_holds_is_not_asked() {
    let cluster = alone();
    let node = cluster.node("n1");
    let squat = "import socket; s = socket.create_server(('127.0.0.1', 9998)); print('here', flush=True); s.accept()";
    let mut squatter = node.start_as("bob", &["/usr/bin/python3", "-c", squat]).unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(squatter.stdout.take().unwrap()), &mut line).unwrap();
    let script = "d=$(mktemp -d); echo 9998 > $d/endpoint; credd env --run-dir $d";
    let done = node.run_as("alice", &["bash", "-c", script]);
    assert!(
        done.status == 1 && done.stderr.contains("a process of uid 5002 listens on port 9998, not credd"),
        "{done:?}"
    );
    squatter.kill().unwrap();
    squatter.wait().unwrap();
}
