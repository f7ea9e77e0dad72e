//! Every way to start a process in a job gets the identity of the job's project, and nothing else does.

use std::time::{Duration, SystemTime};

use crate::support::{SOON, arn, cluster, hold, requeued, sessions, srun, wait_status, whoami};

/// `node arn` lines, one for each node, in any order.
fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn on_both(project: &str, user: &str) -> Vec<String> {
    ["n1", "n2"].iter().map(|node| format!("{node} {}", arn(project, user, node))).collect()
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn srun_on_every_node_is_the_project() {
    let cluster = cluster();
    let me = whoami(&cluster);
    let since = SystemTime::now() - Duration::from_secs(1);
    let done = srun(&cluster, "alice", &["-N2"], &format!("echo $SLURMD_NODENAME $({me})"));
    assert_eq!(sorted(done.expect_ok()), on_both("genomics", "alice"));
    // What AWS saw: the same two names asked who they are, each with a key that was issued for it.
    let requests = cluster.aws().requests_since(since).unwrap();
    let callers = requests.iter().filter(|r| r.action.contains("GetCallerIdentity")).map(|r| &r.access_key_id);
    assert!(callers.collect::<std::collections::BTreeSet<_>>().len() >= 2, "{requests:#?}");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn each_user_is_the_own_project_and_the_own_name() {
    let cluster = cluster();
    let me = whoami(&cluster);
    for (user, project) in [("bob", "climate"), ("bobby", "genomics")] {
        let done = srun(&cluster, user, &["-w", "n2"], &me);
        assert_eq!(done.expect_ok(), arn(project, user, "n2"));
    }
    let shared = srun(&cluster, "alice", &["-A", "shared", "-w", "n1"], &me);
    assert_eq!(shared.expect_ok(), arn("shared", "alice", "n1"));
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn batch_scripts_and_the_steps_in_them() {
    let cluster = cluster();
    let me = whoami(&cluster);
    let alice = cluster.as_user("alice");
    let script = format!(
        "echo batch $({me})\n\
         srun -N2 bash -c 'echo step-$SLURMD_NODENAME $({me})'\n\
         srun -N1 -w n2 --overlap bash -c 'echo overlap $({me})'\n\
         srun -N1 -w n1 --export=NONE /bin/bash -c 'echo none $({me})'\n"
    );
    let job = alice.sbatch(&script, &["-N2", "-w", "n1,n2"]).unwrap();
    assert_eq!(alice.wait_job(job, SOON).unwrap(), "COMPLETED", "{}", alice.job_output(job));
    let expected = [
        format!("batch {}", arn("genomics", "alice", "n1")),
        format!("none {}", arn("genomics", "alice", "n1")),
        format!("overlap {}", arn("genomics", "alice", "n2")),
        format!("step-n1 {}", arn("genomics", "alice", "n1")),
        format!("step-n2 {}", arn("genomics", "alice", "n2")),
    ];
    assert_eq!(sorted(&alice.job_output(job)), expected);
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_batch_job_with_an_empty_environment() {
    let cluster = cluster();
    let alice = cluster.as_user("alice");
    let job = alice.sbatch(&whoami(&cluster), &["--export=NONE", "-w", "n1"]).unwrap();
    assert_eq!(alice.wait_job(job, SOON).unwrap(), "COMPLETED");
    assert_eq!(alice.job_output(job).trim(), arn("genomics", "alice", "n1"));
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn every_task_of_an_array_is_a_session_of_its_own() {
    let cluster = cluster();
    let alice = cluster.as_user("alice");
    let script = format!("echo \"raw=$SLURM_JOB_ID arn=$({})\" >> ~/array-$SLURM_ARRAY_JOB_ID", whoami(&cluster));
    let first = alice.sbatch(&script, &["--array=1-3", "-w", "n1"]).unwrap();
    let file = format!("~/array-{first}");
    let mut text = String::new();
    testbed::wait_for("three array tasks", SOON, || {
        text = alice.run(&["bash", "-c", &format!("cat {file}")]).stdout;
        (text.lines().count() == 3).then_some(())
    })
    .unwrap();
    let mut jobs = Vec::new();
    for line in text.lines() {
        let (raw, who) = line.split_once(" arn=").unwrap();
        assert_eq!(who, arn("genomics", "alice", "n1"));
        jobs.push(raw.strip_prefix("raw=").unwrap().parse::<u32>().unwrap());
    }
    jobs.sort_unstable();
    jobs.dedup();
    assert_eq!(jobs.len(), 3, "{text}");
    for job in jobs {
        wait_status(&cluster, job, "COMPLETED");
        assert_eq!(sessions(&cluster, job).len(), 1);
    }
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_terminal_in_a_job() {
    let cluster = cluster();
    let me = whoami(&cluster);
    let line = format!("srun --pty -w n2 bash -c '{me}'");
    // script(1) gives srun the terminal that --pty wants.
    let done = cluster.as_user("alice").run(&["script", "-qec", &line, "/dev/null"]);
    assert!(done.expect_ok().contains(&arn("genomics", "alice", "n2")), "{done:?}");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn an_interactive_step_and_srun_in_an_allocation() {
    let cluster = cluster();
    let me = whoami(&cluster);
    let alice = cluster.as_user("alice");
    let inner = alice.run(&["salloc", "-N2", "srun", "bash", "-c", &format!("echo $SLURMD_NODENAME $({me})")]);
    assert_eq!(sorted(inner.expect_ok()), on_both("genomics", "alice"));
    // LaunchParameters=use_interactive_step: salloc's own shell runs on the first node.
    let typed = format!("printf '{me}\\nexit\\n' | script -qec 'salloc -w n1' /dev/null");
    let shell = alice.run(&["bash", "-c", &typed]);
    assert!(shell.stdout.contains(&arn("genomics", "alice", "n1")), "{shell:?}");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn each_component_of_a_heterogeneous_job() {
    let cluster = cluster();
    let me = whoami(&cluster);
    let line = format!("echo $SLURMD_NODENAME $({me})");
    let done = cluster.as_user("alice").run(&[
        "salloc",
        "-w",
        "n1",
        "-A",
        "genomics",
        ":",
        "-w",
        "n2",
        "-A",
        "shared",
        "srun",
        "--het-group=0,1",
        "bash",
        "-c",
        &line,
    ]);
    let expected =
        vec![format!("n1 {}", arn("genomics", "alice", "n1")), format!("n2 {}", arn("shared", "alice", "n2"))];
    assert_eq!(sorted(done.expect_ok()), expected);
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_requeued_job_is_a_new_session() {
    let cluster = cluster();
    let alice = cluster.as_user("alice");
    let job = requeued(&cluster);
    // It starts when slurmd has forgotten the first run's credential, some seconds on (`cred_expire`). Started earlier by
    // hand, slurmd 22.05 takes it for the same run and runs no prolog at all.
    alice.wait_job_output(job, "run=1 arn", 3 * SOON).unwrap();
    assert_eq!(alice.wait_job(job, SOON).unwrap(), "COMPLETED");
    wait_status(&cluster, job, "COMPLETED");
    let all = sessions(&cluster, job);
    assert_eq!(all.len(), 2, "{all:?}");
    assert_ne!(all[0]["session"], all[1]["session"]);
    assert!(all.iter().all(|s| s["status"] == "COMPLETED"), "{all:?}");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn the_own_bucket_and_not_the_others() {
    let cluster = cluster();
    let script = "aws s3 cp s3://genomics-data/hello.txt - && aws s3 cp s3://climate-data/hello.txt -";
    let done = srun(&cluster, "alice", &[], script);
    assert!(done.stdout.contains("data of genomics"), "{done:?}");
    assert!(!done.ok() && !done.stdout.contains("data of climate"), "{done:?}");
    assert!(
        done.stderr.contains("403") || done.stderr.contains("AccessDenied") || done.stderr.contains("Forbidden"),
        "{done:?}"
    );
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn aws_itself_saw_the_names_and_no_tags() {
    let cluster = cluster();
    let since = SystemTime::now() - Duration::from_secs(1);
    let done = srun(&cluster, "bobby", &["-w", "n2"], &whoami(&cluster));
    done.expect_ok();
    let requests = cluster.aws().requests_since(since).unwrap();
    let named = |r: &&testbed::AwsRequest| {
        r.parameters.to_string().contains("lab-bobby-n2") && r.parameters.to_string().contains("projects/genomics")
    };
    let assumed = requests.iter().find(named).unwrap_or_else(|| panic!("no AssumeRole in {requests:#?}"));
    let parameters = assumed.parameters.to_string().to_lowercase();
    assert!(!parameters.contains("tag") && !parameters.contains("sourceidentity"), "{parameters}");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn who_opts_out_gets_nothing() {
    let cluster = cluster();
    let show = "env | grep -c ^AWS_CONTAINER || true";
    for options in [&["--aws=off"][..], &["-p", "debug"], &["-p", "debug", "--aws=on"]] {
        let done = srun(&cluster, "alice", options, show);
        assert_eq!(done.expect_ok(), "0", "{options:?}");
    }
    let told = srun(&cluster, "alice", &["-p", "debug", "--aws=on"], "true");
    assert!(told.stderr.contains("debug"), "the user asked and must be told why not: {told:?}");
    let alice = cluster.as_user("alice");
    let job = alice.sbatch(&format!("#!/bin/bash\n#SBATCH --aws=off\n{show}\n"), &[]).unwrap();
    alice.wait_job(job, SOON).unwrap();
    assert_eq!(alice.job_output(job).trim(), "0");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_token_file_on_request() {
    let cluster = cluster();
    let show = "f=$AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE; stat -c '%a %U' $f; \
                [ \"$(cat $f)\" = \"$AWS_CONTAINER_AUTHORIZATION_TOKEN\" ] && echo same; tail -c1 $f | od -An -c";
    for options in [&["--aws-token-file"][..], &["-p", "tokenfile"]] {
        let done = srun(&cluster, "alice", options, show);
        let text = done.expect_ok();
        assert!(text.contains("440 root") && text.contains("same") && !text.contains("\\n"), "{options:?} {done:?}");
    }
    let without = srun(&cluster, "alice", &[], "echo [$AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE]");
    assert_eq!(without.expect_ok(), "[]");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_nested_submission_carries_nothing_along() {
    let cluster = cluster();
    let alice = cluster.as_user("alice");
    // From inside a job of one project, submit to a partition that is off, and hold it pending to see what was stored.
    let outer = "sbatch --parsable -p debug --hold --wrap 'env | grep -c ^AWS_CONTAINER; true' -o ~/inner-%j.out";
    let done = srun(&cluster, "alice", &[], outer);
    let inner: u32 = done.expect_ok().parse().unwrap();
    let stored = cluster.head().run_as_root(&format!(
        "cat {}/state/hash.*/job.{inner}/environment | tr '\\0' '\\n'",
        cluster.run_dir().display()
    ));
    let text = stored.expect_ok();
    assert!(text.contains("PATH="), "{text}");
    assert!(!text.contains("credd1-") && !text.contains("AWS_CONTAINER"), "{text}");
    alice.run(&["scontrol", "release", &inner.to_string()]).expect_ok();
    alice.wait_job(inner, SOON).unwrap();
    let seen = alice.run(&["bash", "-c", &format!("cat ~/inner-{inner}.out")]);
    assert_eq!(seen.expect_ok(), "0");
    // And to another project: the inner job has its own identity.
    let script = format!(
        "srun -A shared -w n2 --jobid='' bash -c true 2>/dev/null; sbatch --parsable --wait -A shared -w n2 -o ~/other-%j.out --wrap '{}'",
        whoami(&cluster)
    );
    let done = srun(&cluster, "alice", &["-w", "n1"], &script);
    let other: u32 = done.expect_ok().lines().last().unwrap().parse().unwrap();
    let seen = alice.run(&["bash", "-c", &format!("cat ~/other-{other}.out")]);
    assert_eq!(seen.expect_ok(), arn("shared", "alice", "n2"));
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn proxies_are_told_to_leave_the_endpoint_alone() {
    let cluster = cluster();
    let done = cluster.as_user("alice").srun_with(
        &[("HTTP_PROXY", "http://127.0.0.1:1"), ("NO_PROXY", "example.org")],
        &["bash", "-c", "echo $NO_PROXY"],
    );
    assert_eq!(done.expect_ok(), "example.org,127.0.0.1");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn help_and_wrong_options() {
    let cluster = cluster();
    let alice = cluster.as_user("alice");
    let help = alice.srun(&["--help"]);
    assert!(help.expect_ok().contains("--aws=on|off") && help.stdout.contains("--aws-token-file"), "{help:?}");
    let wrong = alice.srun(&["--aws=perhaps", "true"]).expect_failure();
    assert!(wrong.contains("perhaps"), "{wrong}");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn the_document_is_what_sdks_expect() {
    let cluster = cluster();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    let answer = job.get_as("alice");
    assert_eq!(answer.status, 200, "{answer:?}");
    let document = answer.json();
    for field in ["AccessKeyId", "SecretAccessKey", "Token", "Expiration", "RoleArn"] {
        assert!(document[field].as_str().is_some_and(|v| !v.is_empty()), "{field} in {document}");
    }
    assert!(document["Expiration"].as_str().unwrap().ends_with('Z'));
    assert!(document.get("Code").is_none() && document.get("code").is_none());
    assert_eq!(document["RoleArn"], cluster.aws().role_arn("genomics"));
    job.finish();
    cluster.assert_nodes_healthy();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_partitions_role_and_region() {
    let cluster = cluster();
    let done = srun(&cluster, "alice", &["-w", "n1", "-p", "train"], &whoami(&cluster));
    assert_eq!(done.expect_ok(), arn("train", "alice", "n1"));
    let shown = "echo $AWS_REGION $AWS_DEFAULT_REGION";
    let alice = cluster.as_user("alice");
    let job = alice.sbatch(shown, &["-p", "train", "--export=NONE"]).unwrap();
    alice.wait_job(job, SOON).unwrap();
    assert_eq!(alice.job_output(job).trim(), "eu-west-1 eu-west-1");
    // Who has chosen a region keeps it.
    assert_eq!(srun(&cluster, "alice", &["-p", "train"], shown).expect_ok(), "us-east-1");
    // climate has no such role: its user reads which roles there are.
    let refused = srun(&cluster, "bob", &["-p", "train"], &whoami(&cluster)).expect_failure();
    assert!(refused.contains("train") && refused.contains("default"), "{refused}");
}
