//! The testbed itself: a bare cluster, its users, accounts and addresses, and that nothing of it stays behind.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use testbed::{Cluster, Listener, Plan, wait_for};

fn cluster() -> Cluster {
    Cluster::up(Plan::bare()).expect("a bare cluster")
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "no cluster can run here: see the warning of the build")]
fn users_run_jobs_on_every_node_as_themselves() {
    let cluster = cluster();
    let alice = cluster.as_user("alice");
    let hosts = alice.srun(&["-N2", "hostname"]);
    let mut names: Vec<&str> = hosts.expect_ok().lines().collect();
    names.sort();
    assert_eq!(names, ["n1", "n2"]);
    assert_eq!(alice.srun(&["id", "-un"]).expect_ok(), "alice");
    assert_eq!(alice.srun(&["id", "-u"]).expect_ok(), "5001");

    let refused = alice.srun(&["--account=climate", "true"]).expect_failure();
    assert!(refused.contains("Invalid account"), "{refused}");
    alice.srun(&["--account=shared", "true"]).expect_ok();

    let job = alice.sbatch("hostname; srun -N2 -n2 hostname", &["-N2"]).expect("submitted");
    assert_eq!(alice.wait_job(job, Duration::from_secs(30)).expect("ended"), "COMPLETED", "{}", alice.job_output(job));
    assert_eq!(alice.job_output(job).lines().count(), 3, "{}", alice.job_output(job));

    let credential = cluster.on("n1").run_as("bob", &["bash", "-c", "munge -n"]);
    let decoded =
        cluster.head().run_with("root", &[("C", credential.expect_ok())], &["bash", "-c", "unmunge <<< \"$C\""]);
    let decoded = decoded.expect_ok();
    assert!(decoded.contains("n1 (10.77.0.11)"), "{decoded}");
    assert!(decoded.contains("bob (5002)"), "{decoded}");

    // A daemon that is killed and started again finds the cluster as it was.
    cluster.node("n1").slurmd().kill9().expect("killed");
    cluster.node("n1").slurmd().start().expect("started");
    assert_eq!(alice.srun(&["-w", "n1", "hostname"]).expect_ok(), "n1");
    cluster.assert_nodes_healthy();

    // A listener outlives the one who serves it: a connection made meanwhile is answered by the next.
    let node = cluster.node("n1");
    node.listen("http", Listener::Tcp(([127, 0, 0, 1], 9999).into())).expect("held");
    let program = node.layout_file("answers.py", ANSWERS).expect("written");
    node.start_service("answers", &["/usr/bin/python3", &program], &["http"]).expect("started");
    let ask = ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9999; cat <&3"];
    assert_eq!(node.run_as("bob", &ask).expect_ok(), "http 1 true");
    node.daemon("answers").kill9().expect("killed");
    let taken = node.run_as("bob", &["python3", "-c", "import socket; socket.create_server(('127.0.0.1', 9999))"]);
    assert!(taken.expect_failure().contains("Address already in use"));
    let early = node.start_as("bob", &ask).expect("started");
    node.daemon("answers").start().expect("started again");
    assert_eq!(early.wait_with_output().expect("ended").stdout, b"http 1 true\n");

    // A host that is off the network is reached by nobody, and again afterwards.
    let reach = ["timeout", "0.5", "bash", "-c", "exec 3<>/dev/tcp/n1/6818"];
    cluster.unplug("n1").expect("unplugged");
    cluster.head().run_as("alice", &reach).expect_failure();
    cluster.plug_in("n1").expect("plugged in");
    cluster.head().run_as("alice", &reach[2..]).expect_ok();

    let (run, pid) = (cluster.run_dir().to_path_buf(), cluster.head().pid());
    drop(cluster);
    assert_nothing_left(&run, pid);
}

/// A cluster whose "machine" has an `/etc` that can be spoiled, and what becomes of its users when an installation replaces
/// the machine's files by rename(2). `testbed up` is `$0`, the copy of the machine's `/etc` goes to `$1`.
const REPLACED_FILES: &str = r#"
set -eu
cp -a /etc "$1"
mount --bind "$1" /etc
coproc up { exec "$0" up --bare; }
read -r run <&"${up[0]}"
read -r name head <&"${up[0]}"
who() { nsenter -t "$head" -m -r id alice; nsenter -t "$head" -m -r getent hosts n1; }
who
for file in passwd group hosts nsswitch.conf; do
    cp "/etc/$file" "/etc/$file.new"
    mv "/etc/$file.new" "/etc/$file"
done
who
nsenter -t "$head" -m -r -u -n -i -p env SLURM_CONF="$run/etc/slurm/slurm.conf" \
    setpriv --reuid=alice --regid=alice --init-groups srun -D / id -un
exec {up[1]}>&-
wait "$up_PID"
"#;

#[test]
#[cfg_attr(not(has_cluster), ignore = "no cluster can run here: see the warning of the build")]
fn users_stay_when_the_machines_files_are_replaced() {
    let temp = tempfile::tempdir().expect("a directory");
    let done = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "bash", "-c", REPLACED_FILES, env!("CARGO_BIN_EXE_testbed")])
        .arg(temp.path().join("etc"))
        .stdin(Stdio::null())
        .output()
        .expect("unshare is of util-linux");
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(said.matches("uid=5001(alice)").count(), 2, "{said}");
    assert_eq!(said.matches("10.77.0.11").count(), 2, "{said}");
    assert_eq!(said.lines().last(), Some("alice"), "{said}");
}

/// What the soak excuses, with nothing of ours in the cluster. slurmctld asks a node what it runs every few minutes only; if
/// that falls just between the node's return and the job's new start, all is well, and it is tried again.
#[test]
#[cfg_attr(not(has_cluster), ignore = "no cluster can run here: see the warning of the build")]
fn slurm_drains_a_node_that_still_runs_the_job_it_is_given_again() {
    let plan = Plan::bare().slurm_conf("SlurmdTimeout=20\nKillWait=60\nAuthInfo=cred_expire=5");
    let cluster = Cluster::up(plan).expect("a bare cluster");
    let drained = (0..4).any(|_| is_drained_when_given_a_job_again(&cluster));
    assert!(drained, "{}", cluster.head().log("slurmctld"));
    assert!(cluster.node("n1").log("slurmd").contains("already running, do not launch second copy"));
}

fn is_drained_when_given_a_job_again(cluster: &Cluster) -> bool {
    let soon = Duration::from_secs(120);
    let alice = cluster.as_user("alice");
    let job = alice.sbatch("trap '' TERM; echo runs; sleep 3000", &["--requeue", "-w", "n1"]).expect("submitted");
    alice.wait_job_output(job, "runs", soon).expect("it runs");
    cluster.unplug("n1").expect("unplugged");
    alice.wait_job_state(job, "PENDING", soon).expect("the node is given up, and the job requeued");
    cluster.plug_in("n1").expect("plugged in");
    let reason = || cluster.head().run_as_root("sinfo -h -N -n n1 -p batch -o %E").stdout.trim().to_owned();
    let launches = || cluster.node("n1").log("slurmd").matches(&format!("Launching batch job {job} ")).count();
    let drained = wait_for("the job to be given to the node again", soon, || {
        let drained = reason() == "Duplicate jobid";
        (drained || launches() > 1).then_some(drained)
    });
    alice.scancel(job);
    drained.unwrap_or_else(|e| panic!("{e}: {:?}\n{}", reason(), cluster.head().log("slurmctld")))
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "no cluster can run here: see the warning of the build")]
fn nothing_is_left_when_the_owner_is_killed() {
    let mut owner = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .args(["up", "--bare"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut lines = BufReader::new(owner.stdout.take().expect("piped")).lines();
    let run = lines.next().expect("a line").expect("text");
    let head = lines.next().expect("a line").expect("text");
    let pid = head.strip_prefix("head: ").expect("the head's").parse().expect("a number");
    assert!(Path::new(&run).exists());
    owner.kill().expect("SIGKILL");
    owner.wait().expect("ended");
    wait_for("the run directory to go", Duration::from_secs(20), || (!Path::new(&run).exists()).then_some(()))
        .expect("removed");
    assert_nothing_left(Path::new(&run), pid);
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "no cluster can run here: see the warning of the build")]
fn the_pretend_aws_enforces_and_keeps_a_log() {
    let cluster = Cluster::up(Plan { aws: true, ..Plan::bare() }).expect("a cluster with AWS");
    let aws = cluster.aws();
    let made = aws.made().clone();
    let alice = cluster.as_user("alice");

    let nobody = alice.srun(&["aws", "sts", "get-caller-identity"]).expect_failure();
    assert!(nobody.contains("Unable to locate credentials"), "{nobody}");

    // What credvend will do, with credvend's own keys.
    let keys = [("AWS_ACCESS_KEY_ID", &*made.access_key_id), ("AWS_SECRET_ACCESS_KEY", &*made.secret_access_key)];
    let assume_arn = |arn: &str| {
        let session = ["--role-session-name", "lab-alice-n1", "--output", "json"];
        let mut argv = vec!["aws", "sts", "assume-role", "--role-arn", arn];
        argv.extend(session);
        cluster.head().run_with("credvend", &keys, &argv)
    };
    let assume = |role: &str| assume_arn(aws.role_arn(role));
    let keys_of = |got: &str| {
        let got: serde_json::Value = serde_json::from_str(got).expect("JSON");
        ["AccessKeyId", "SecretAccessKey", "SessionToken"]
            .map(|name| got["Credentials"][name].as_str().expect("a text").to_owned())
    };
    let refused = assume("locked").expect_failure();
    assert!(refused.contains("AccessDenied") && refused.contains("role/projects/locked"), "{refused}");
    let [id, secret, token] = keys_of(assume("genomics").expect_ok());
    let session = [("AWS_ACCESS_KEY_ID", &*id), ("AWS_SECRET_ACCESS_KEY", &*secret), ("AWS_SESSION_TOKEN", &*token)];
    let as_role = |argv: &[&str]| alice.srun_with(&session, argv);

    let who = as_role(&["aws", "sts", "get-caller-identity", "--query", "Arn", "--output", "text"]);
    assert_eq!(who.expect_ok(), "arn:aws:sts::123456789012:assumed-role/genomics/lab-alice-n1");
    assert_eq!(as_role(&["aws", "s3", "cp", "s3://genomics-data/hello.txt", "-"]).expect_ok(), "data of genomics");
    let foreign = as_role(&["aws", "s3", "cp", "s3://climate-data/hello.txt", "-"]).expect_failure();
    assert!(foreign.contains("403") || foreign.contains("AccessDenied"), "{foreign}");

    // The inline Deny of a revocation kills what was issued. credvend itself may not write it, its revoker role may.
    let deny = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*"}]}"#;
    let put =
        ["aws", "iam", "put-role-policy", "--role-name", "genomics", "--policy-name", "x", "--policy-document", deny];
    let refused = cluster.head().run_with("credvend", &keys, &put).expect_failure();
    assert!(refused.contains("AccessDenied"), "{refused}");
    let revoker = format!("arn:aws:iam::{}:role/{}", testbed::pretend_aws::ACCOUNT, testbed::pretend_aws::REVOKER);
    let [id_of_revoker, secret_of_revoker, token_of_revoker] = keys_of(assume_arn(&revoker).expect_ok());
    let as_revoker = [
        ("AWS_ACCESS_KEY_ID", &*id_of_revoker),
        ("AWS_SECRET_ACCESS_KEY", &*secret_of_revoker),
        ("AWS_SESSION_TOKEN", &*token_of_revoker),
    ];
    cluster.head().run_with("credvend", &as_revoker, &put).expect_ok();
    as_role(&["aws", "s3", "cp", "s3://genomics-data/hello.txt", "-"]).expect_failure();

    let log = aws.requests().expect("the request log");
    let assumed: Vec<_> =
        log.iter().filter(|r| r.action == "AssumeRole" && r.access_key_id == made.access_key_id).collect();
    assert_eq!(assumed.len(), 3, "{log:?}");
    assert_eq!(assumed[1].parameter("RoleSessionName"), Some("lab-alice-n1"));
    assert!(log.iter().any(|r| r.action == "GetCallerIdentity" && r.access_key_id == id), "{log:?}");
    assert!(log.iter().any(|r| r.service == "s3" && r.access_key_id == id), "{log:?}");
}

/// Serves the listener it was given: which, how many, and whether it was meant.
const ANSWERS: &str = r#"
import os, socket
listener = socket.socket(fileno=3)
while True:
    client, _ = listener.accept()
    meant = str(os.getpid() == int(os.environ["LISTEN_PID"])).lower()
    client.sendall(f"{os.environ['LISTEN_FDNAMES']} {os.environ['LISTEN_FDS']} {meant}\n".encode())
    client.close()
"#;

/// No directory, no mount, no process in the host's namespaces, no process that names the run directory.
fn assert_nothing_left(run: &Path, init: u32) {
    assert!(!run.exists(), "{} is still there", run.display());
    let name = run.file_name().expect("a name").to_string_lossy().into_owned();
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(!mounts.contains(&name), "{mounts}");
    assert!(!Path::new(&format!("/proc/{init}")).exists(), "the head's init still runs");
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        assert!(!line.contains(&name), "{:?} still runs: {line}", entry.file_name());
    }
}

/// What the soak excuses, with nothing of ours in the cluster: a job that ends just when its node is cut off. The slurmstepd
/// of its extern step, told to end, cannot report to slurmctld and tries again a minute later only. Meanwhile
/// `UnkillableStepTimeout` passes, it takes its step for one that cannot be killed, and has the node drained.
#[test]
#[cfg_attr(not(has_cluster), ignore = "no cluster can run here: see the warning of the build")]
fn slurm_drains_a_node_that_was_cut_off_while_a_step_ended() {
    let soon = Duration::from_secs(150);
    // With this SlurmdTimeout slurmctld notices within half a minute that a node does not answer.
    let plan = Plan::bare().slurm_conf("UnkillableStepTimeout=60\nSlurmdTimeout=60");
    let cluster = Cluster::up(plan).expect("a bare cluster");
    let (alice, n1) = (cluster.as_user("alice"), cluster.on("n1"));
    let job = alice.sbatch("echo runs; until [ -e end ]; do sleep 0.1; done", &["-w", "n1"]).expect("submitted");
    alice.wait_job_output(job, "runs", soon).expect("it runs");
    // Held for a moment, so that its end falls into the cut.
    let signal = |name: &str| n1.run_as_root(&format!(r"pkill -{name} -f '^slurmstepd: \[{job}\.extern\]'"));
    signal("STOP").expect_ok();
    alice.run(&["touch", "end"]).expect_ok();
    let log = || cluster.head().log("slurmctld");
    let is_over = || log().contains(&format!("_job_complete: JobId={job} done")).then_some(());
    wait_for("the job to be over", soon, is_over).expect("it ends");
    cluster.unplug("n1").expect("unplugged");
    signal("CONT").expect_ok();
    let node = |what: &str| cluster.head().run_as_root(&format!("sinfo -h -N -n n1 -p batch -o {what}")).stdout;
    wait_for("the node not to respond", soon, || node("%T").contains('*').then_some(())).expect("it is cut off");
    cluster.plug_in("n1").expect("plugged in");
    wait_for("the node to be drained", soon, || node("%E").contains("Kill task failed").then_some(()))
        .unwrap_or_else(|e| panic!("{e}: {:?}\n{}", node("%E"), log()));
}
