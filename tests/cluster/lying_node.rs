//! Root on a node talks to `credvend` directly and lies: wrong job, wrong node, wrong facts, altered or replayed
//! credentials, other people's verbs. It gets nothing, with a reason, which is logged.

use credd_protocol::hex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use testbed::{Cluster, Host};

use crate::support::{Answer, HeldJob, alone, cluster, curl, get, hold, wait_status};

const SESSIONS: &str = "/node/v1/sessions";

/// A request as `credd` signs it, before signing.
struct Claim {
    cluster: String,
    node: String,
    method: &'static str,
    path: String,
    body: String,
    server: String,
    age: i64,
}

fn pin(cluster: &Cluster) -> String {
    let printed = cluster.head().run_as("root", &["credvend", "pin"]);
    let text = printed.expect_ok();
    let at = text.find("sha256:").unwrap_or_else(|| panic!("no pin in {text:?}"));
    text[at + 7..].chars().take_while(char::is_ascii_hexdigit).collect()
}

impl Claim {
    fn open(cluster: &Cluster, node: &str, body: &Value) -> Self {
        Claim {
            cluster: "lab".into(),
            node: node.into(),
            method: "POST",
            path: SESSIONS.into(),
            body: body.to_string(),
            server: pin(cluster),
            age: 0,
        }
    }

    /// The MUNGE credential, made by root of a host.
    #[track_caller]
    fn sign(&self, host: &Host, user: &str) -> String {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
        let nonce: String = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap().trim().replace('-', "");
        let payload = json!({
            "version": 1, "cluster": self.cluster, "node": self.node, "method": self.method, "path": self.path,
            "body": hex::encode(&Sha256::digest(self.body.as_bytes())), "server": self.server, "time": now - self.age, "nonce": nonce,
        });
        let made = host.run_with(
            user,
            &[("PAYLOAD", &payload.to_string())],
            &["bash", "-c", "printf %s \"$PAYLOAD\" | munge"],
        );
        made.expect_ok().to_owned()
    }

    /// Sends it from a host with some credential.
    fn send(&self, cluster: &Cluster, from: &Host, credential: &str) -> Answer {
        let url = format!("https://{}:8443{}", cluster.head().address(), self.path);
        let authorization = format!("Authorization: Munge {credential}");
        curl(
            from,
            "root",
            &[
                "-k",
                "-X",
                self.method,
                "-H",
                &authorization,
                "-H",
                "Content-Type: application/json",
                "--data-binary",
                &self.body,
                &url,
            ],
        )
    }

    /// Signs and sends it as root of a host.
    #[track_caller]
    fn go(&self, cluster: &Cluster, from: &str) -> Answer {
        let host = cluster.node(from);
        self.send(cluster, host, &self.sign(host, "root"))
    }
}

/// The truth about a held job, as its node's record has it.
fn truth(job: &HeldJob<'_>, uid: u32, account: &str) -> Value {
    json!({"job": job.job, "restart": 0, "uid": uid, "account": account})
}

/// Refused with a reason, which credvend's log has too, with the code and the node that lied.
#[track_caller]
fn refused(cluster: &Cluster, node: &str, answer: &Answer, code: &str) {
    assert!((400..500).contains(&answer.status) && answer.status != 429, "{answer:?}");
    assert_eq!(answer.json()["code"], code, "{answer:?}");
    assert!(!answer.body.contains("SecretAccessKey"));
    assert!(answer.json()["message"].as_str().is_some_and(|m| m.len() > 15), "no reason: {answer:?}");
    let log = cluster.head().log("credvend");
    let logged = |line: &str| {
        line.contains("refused")
            && line.contains(&format!("code=\"{code}\""))
            && line.contains(&format!("node {node} of"))
    };
    assert!(log.lines().any(logged), "{code} for {node} is not in credvend's log");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn the_truth_is_accepted() {
    let cluster = cluster();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    let answer = Claim::open(&cluster, "n1", &truth(&job, 5001, "genomics")).go(&cluster, "n1");
    assert_eq!(answer.status, 200, "or every test below proves nothing: {answer:?}");
    assert_eq!(answer.json()["project"], "genomics");
    job.finish();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_job_on_another_node() {
    let cluster = cluster();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    let answer = Claim::open(&cluster, "n2", &truth(&job, 5001, "genomics")).go(&cluster, "n2");
    refused(&cluster, "n2", &answer, "NotOnNode");
    // Nor with the session's id in hand.
    wait_status(&cluster, job.job, "ACTIVE");
    let session = crate::support::sessions(&cluster, job.job)[0]["session"].as_str().unwrap().to_owned();
    let mut steal = Claim::open(&cluster, "n2", &json!({"role": "default"}));
    steal.path = format!("{SESSIONS}/{session}/credentials");
    let answer = steal.go(&cluster, "n2");
    assert!((400..500).contains(&answer.status) && !answer.body.contains("SecretAccessKey"), "{answer:?}");
    job.finish();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn facts_that_slurm_contradicts() {
    let cluster = cluster();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    refused(
        &cluster,
        "n1",
        &Claim::open(&cluster, "n1", &truth(&job, 5001, "climate")).go(&cluster, "n1"),
        "Contradicted",
    );
    refused(
        &cluster,
        "n1",
        &Claim::open(&cluster, "n1", &truth(&job, 5002, "genomics")).go(&cluster, "n1"),
        "Contradicted",
    );
    let other_run = json!({"job": job.job, "restart": 5, "uid": 5001, "account": "genomics"});
    let answer = Claim::open(&cluster, "n1", &other_run).go(&cluster, "n1");
    assert!((400..500).contains(&answer.status), "{answer:?}");
    job.finish();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn ended_and_invented_jobs_and_unknown_clusters() {
    let cluster = cluster();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    let body = truth(&job, 5001, "genomics");
    let id = job.finish();
    // Until the node has told of the end, an open joins the session on what Slurm said a moment ago.
    wait_status(&cluster, id, "COMPLETED");
    refused(&cluster, "n1", &Claim::open(&cluster, "n1", &body).go(&cluster, "n1"), "JobNotRunning");
    let invented = json!({"job": 4_000_000, "restart": 0, "uid": 5001, "account": "genomics"});
    refused(&cluster, "n1", &Claim::open(&cluster, "n1", &invented).go(&cluster, "n1"), "JobNotRunning");
    let mut elsewhere = Claim::open(&cluster, "n1", &invented);
    elsewhere.cluster = "nowhere".into();
    let answer = elsewhere.go(&cluster, "n1");
    assert!((400..500).contains(&answer.status) && answer.body.contains("nowhere"), "{answer:?}");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn the_sibling_of_a_heterogeneous_job() {
    let cluster = cluster();
    let alice = cluster.as_user("alice");
    let script = "#!/bin/bash\n#SBATCH -w n1\n#SBATCH hetjob\n#SBATCH -w n2\necho held\nuntil [ -e ~/release-$SLURM_JOB_ID ]; do sleep 0.05; done\n";
    let leader = alice.sbatch(script, &[]).unwrap();
    alice.wait_job_output(leader, "held", crate::support::SOON).unwrap();
    // n2 runs the second component, not the leader.
    let body = json!({"job": leader, "restart": 0, "uid": 5001, "account": "genomics"});
    refused(&cluster, "n2", &Claim::open(&cluster, "n2", &body).go(&cluster, "n2"), "NotOnNode");
    let sibling = json!({"job": leader + 1, "restart": 0, "uid": 5001, "account": "genomics"});
    assert_eq!(Claim::open(&cluster, "n2", &sibling).go(&cluster, "n2").status, 200);
    alice.scancel(leader);
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn replayed_altered_stale_and_unprivileged_credentials() {
    let cluster = cluster();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    let host = cluster.node("n1");
    let honest = Claim::open(&cluster, "n1", &truth(&job, 5001, "genomics"));

    let credential = honest.sign(host, "root");
    assert_eq!(honest.send(&cluster, host, &credential).status, 200);
    assert_eq!(honest.send(&cluster, host, &credential).status, 401, "replayed");

    let mut other_body = Claim::open(&cluster, "n1", &truth(&job, 5001, "genomics"));
    let credential = honest.sign(host, "root");
    other_body.body = other_body.body.replace("5001", "5002");
    assert_eq!(other_body.send(&cluster, host, &credential).status, 401, "another body");

    let credential = honest.sign(host, "root");
    let middle = credential.len() / 2;
    let swapped = if &credential[middle..=middle] == "A" { "B" } else { "A" };
    let altered = format!("{}{swapped}{}", &credential[..middle], &credential[middle + 1..]);
    assert_eq!(honest.send(&cluster, host, &altered).status, 401, "altered");

    assert_eq!(honest.send(&cluster, host, &honest.sign(host, "alice")).status, 401, "not root");

    for spoil in [
        |c: &mut Claim| c.path = "/node/v1/sessions/00000000-0000-0000-0000-000000000000/leave".into(),
        |c: &mut Claim| c.method = "GET",
        |c: &mut Claim| c.server = "00".repeat(32),
        |c: &mut Claim| c.age = 3600,
        |c: &mut Claim| c.age = -3600,
    ] {
        let mut claim = Claim::open(&cluster, "n1", &truth(&job, 5001, "genomics"));
        spoil(&mut claim);
        let credential = claim.sign(host, "root");
        assert_eq!(
            honest.send(&cluster, host, &credential).status,
            401,
            "{} {} {}",
            claim.method,
            claim.path,
            claim.age
        );
    }
    job.finish();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn munge_is_for_node_verbs_only() {
    let cluster = cluster();
    let host = cluster.node("n1");
    let seed = json!({"sessionId": "1", "projectId": "genomics", "clusterName": "lab", "clusterUser": "alice", "submittedTime": "2026-01-01T00:00:00"});
    for (method, path, body) in [
        ("POST", "/sessions", seed),
        ("PUT", "/sessions/1", json!({"status": "COMPLETED"})),
        ("DELETE", "/sessions/users/alice", json!({})),
        ("GET", "/admin/v1/sessions", json!({})),
    ] {
        let mut claim = Claim::open(&cluster, "n1", &body);
        claim.method = method;
        claim.path = path.to_owned();
        let answer = claim.send(&cluster, host, &claim.sign(host, "root"));
        assert!([401, 403, 404].contains(&answer.status), "{method} {path}: {answer:?}");
    }
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_node_cannot_end_a_running_job() {
    let cluster = alone();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    wait_status(&cluster, job.job, "ACTIVE");
    let session = crate::support::sessions(&cluster, job.job)[0]["session"].as_str().unwrap().to_owned();
    // The node says that a running job has ended: Slurm decides, not the node.
    let mut leave = Claim::open(&cluster, "n1", &json!({}));
    leave.path = format!("{SESSIONS}/{session}/leave");
    let answer = leave.go(&cluster, "n1");
    assert!(answer.status < 500, "{answer:?}");
    assert_eq!(crate::support::status(&cluster, job.job), "ACTIVE");
    assert_eq!(job.get_as("alice").status, 200);
    job.finish();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_late_end_of_an_old_run_touches_nothing() {
    let cluster = cluster();
    let alice = cluster.as_user("alice");
    let job = hold(&cluster, "alice", &["-w", "n1", "--requeue", "--open-mode=append"]);
    wait_status(&cluster, job.job, "ACTIVE");
    let old = crate::support::sessions(&cluster, job.job)[0]["session"].as_str().unwrap().to_owned();
    cluster.head().run_as("root", &["scontrol", "requeue", &job.job.to_string()]).expect_ok();
    testbed::wait_for("the second run", 3 * crate::support::SOON, || {
        (alice.job_output(job.job).matches("held\n").count() == 2).then_some(())
    })
    .unwrap();
    wait_status(&cluster, job.job, "ACTIVE");

    let mut late = Claim::open(&cluster, "n1", &json!({}));
    late.path = format!("{SESSIONS}/{old}/leave");
    assert_eq!(late.go(&cluster, "n1").status, 200, "a late end is no error");
    let all = crate::support::sessions(&cluster, job.job);
    assert_eq!(
        (all.len(), &all[0]["status"], &all[1]["status"]),
        (2, &json!("ACTIVE"), &json!("COMPLETED")),
        "{all:?}"
    );
    let output = alice.job_output(job.job);
    let token = output.lines().rev().find_map(|l| l.strip_prefix("token=")).unwrap();
    assert_ne!(token, job.token, "the second run has a token of its own");
    let ask = |token: &str| get(job.host(), "alice", &job.uri, &[&format!("Authorization: {token}")]).status;
    assert_eq!((ask(token), ask(&job.token)), (200, 403));
    job.finish();
}
