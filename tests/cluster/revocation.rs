//! Revocation: exactly whom it is about, at once, on the nodes and in AWS too. What dies and what lives is tried with S3
//! calls at the pretend AWS, with keys that jobs have copied away.

use serde_json::Value;
use testbed::{Cluster, Output, wait_for};

use crate::support::{HeldJob, SOON, admin, alone, cluster, hold_script, sessions};

/// Puts the job's credentials into a file of its user, as a job that copies them away does.
const TAKE: &str = r#"/usr/bin/python3 - > ~/taken-$SLURM_JOB_ID <<'END'
import json, os, time, urllib.error, urllib.request
url, token = (os.environ["AWS_CONTAINER_" + name] for name in ("CREDENTIALS_FULL_URI", "AUTHORIZATION_TOKEN"))
for attempt in range(20):
    try:
        got = json.load(urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": token})))
        break
    except urllib.error.HTTPError as error:
        # As SDKs do with a 503: for some seconds after a revocation nothing is issued under the revoked names.
        assert error.code == 503
        time.sleep(0.5)
print(f"export AWS_ACCESS_KEY_ID={got['AccessKeyId']} AWS_SECRET_ACCESS_KEY={got['SecretAccessKey']}")
print(f"export AWS_SESSION_TOKEN={got['Token']}")
END"#;

/// A job whose credentials were copied away.
pub fn taking<'a>(cluster: &'a Cluster, user: &str, options: &[&str]) -> HeldJob<'a> {
    hold_script(cluster, user, options, TAKE)
}

/// Whether what a job copied away reads its project's bucket.
pub fn lives(cluster: &Cluster, user: &str, job: u32, project: &str) -> bool {
    reads(cluster, user, &format!(". ~/taken-{job}"), project)
}

/// Whether the keys that a shell has after `exported` read a project's bucket. By curl(1), which starts in a fraction of the
/// AWS command line's time.
fn reads(cluster: &Cluster, user: &str, exported: &str, project: &str) -> bool {
    let script = format!(
        "{exported}; curl -s -q --noproxy '*' --max-time 20 -w '\n%{{http_code}}' \\
         --aws-sigv4 aws:amz:{}:s3 --user \"$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY\" \\
         -H \"x-amz-security-token: $AWS_SESSION_TOKEN\" {}/{project}-data/hello.txt",
        testbed::layout::REGION,
        testbed::layout::AWS_ENDPOINT
    );
    let read = cluster.as_user(user).run(&["bash", "-c", &script]);
    let (body, status) = read.expect_ok().rsplit_once('\n').unwrap_or_else(|| panic!("{read:?}"));
    // What is denied is denied by AWS, not by chance.
    assert!(status == "200" || status == "403" && body.contains("AccessDenied"), "{read:?}");
    status == "200"
}

/// `credvend revoke …`: its exit code as a success or not, and its report.
fn revoke(cluster: &Cluster, arguments: &[&str]) -> (Output, Value) {
    let mut argv = vec!["credvend", "revoke"];
    argv.extend(arguments);
    argv.push("--json");
    let done = cluster.head().run_as("root", &argv);
    let report = serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {done:?}"));
    (done, report)
}

/// The same, where nothing may be lacking.
#[track_caller]
pub fn revoke_all(cluster: &Cluster, arguments: &[&str]) -> Value {
    let (done, report) = revoke(cluster, arguments);
    done.expect_ok();
    println!("took {}", report["took"]);
    report
}

/// The endpoint refuses for good.
#[track_caller]
pub fn refused(job: &HeldJob<'_>, user: &str) {
    wait_for("the endpoint to refuse", SOON, || (job.get_as(user).status == 403).then_some(())).unwrap();
}

/// Another set of the job's credentials, copied away under another number.
#[track_caller]
fn served_anew(cluster: &Cluster, job: &HeldJob<'_>, user: &str, project: &str) {
    wait_for("new credentials that live", SOON, || {
        let answer = job.get_as(user);
        if answer.status != 200 {
            return None;
        }
        let got = answer.json();
        let key = |name: &str| got[name].as_str().unwrap_or_default().to_owned();
        let exported = format!(
            "export AWS_ACCESS_KEY_ID={} AWS_SECRET_ACCESS_KEY={} AWS_SESSION_TOKEN={}",
            key("AccessKeyId"),
            key("SecretAccessKey"),
            key("Token")
        );
        reads(cluster, user, &exported, project).then_some(())
    })
    .unwrap();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn bobs_end_is_not_bobbys() {
    let cluster = alone();
    // All in one role, and on one node: only the names tell them apart there.
    let shared = ["-w", "n1", "-A", "shared"];
    let over = taking(&cluster, "bob", &["-w", "n2"]).finish();
    // They have theirs before bob has his: a Deny reaches back from when the last of his was issued.
    let bystanders = ["bobby", "bob-by"].map(|user| (user, taking(&cluster, user, &shared)));
    let bob = taking(&cluster, "bob", &shared);
    assert!(lives(&cluster, "bob", over, "climate") && lives(&cluster, "bob", bob.job, "shared"));
    for (user, job) in &bystanders {
        assert!(lives(&cluster, user, job.job, "shared"), "{user}");
    }

    let rehearsed = admin(&cluster, &["revoke", "--user", "bob", "--dry-run"]);
    assert_eq!((&rehearsed["dry-run"], &rehearsed["sessions-total"]), (&true.into(), &1.into()), "{rehearsed}");
    assert!(lives(&cluster, "bob", bob.job, "shared"));
    let report = revoke_all(&cluster, &["--user", "bob", "--why", "left the lab"]);
    // Where bob's jobs ended a moment ago counts, too: processes may be left there.
    let (concerned, dropped) = (&report["nodes"]["concerned"], &report["nodes"]["dropped"]);
    assert!(concerned == dropped && dropped.as_u64() >= Some(1), "{report}");
    let on = report["nodes"]["dropped-on"]["lab"].as_str();
    assert!(on.is_some_and(|list| list == "n1" || list == "n[1-2]"), "{report}");
    for goal in ["refuse-ms", "drop-ms", "deny-ms"] {
        assert!(report["took"][goal].is_u64(), "{goal}: {report}");
    }

    let answer = bob.get_as("bob");
    assert!(answer.status == 403 && answer.body.contains("left the lab"), "at once, and with the reason: {answer:?}");
    assert_eq!(sessions(&cluster, bob.job)[0]["status"], "INVALIDATED");
    assert!(!lives(&cluster, "bob", bob.job, "shared"), "what bob took still works: {report}");
    assert!(!lives(&cluster, "bob", over, "climate"), "what an ended job took still works: {report}");
    for (user, job) in &bystanders {
        assert_eq!((job.get_as(user).status, &sessions(&cluster, job.job)[0]["status"]), (200, &"ACTIVE".into()));
        assert!(lives(&cluster, user, job.job, "shared"), "{user} has another name: {report}");
    }

    // A later job of bob's is served: the Deny is about what was issued before.
    let later = taking(&cluster, "bob", &shared);
    assert!(lives(&cluster, "bob", later.job, "shared"));
    for job in [bob, later].into_iter().chain(bystanders.map(|(_, job)| job)) {
        job.finish();
    }
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_job_and_a_project_and_a_node_and_a_role_each_lose_their_own() {
    let cluster = alone();
    let (one, two) = (taking(&cluster, "alice", &["-w", "n1"]), taking(&cluster, "alice", &["-w", "n1"]));
    let elsewhere = taking(&cluster, "alice", &["-w", "n2"]);

    // The older neighbour has the same name in AWS, so what it had dies too; it is named, and has new credentials at once.
    let report = revoke_all(&cluster, &["--job", &format!("lab/{}", two.job)]);
    refused(&two, "alice");
    assert!(!lives(&cluster, "alice", two.job, "genomics"));
    // Jobs of other tests that ended before may have had the name, too.
    let by = report["roles"][0]["bystanders"].as_array().expect("a list");
    let active: Vec<_> = by.iter().filter(|by| by["active"] == true).map(|by| &by["job"]).collect();
    assert_eq!(active, [one.job], "{report}");
    assert!(!lives(&cluster, "alice", one.job, "genomics"));
    served_anew(&cluster, &one, "alice", "genomics");
    assert!(lives(&cluster, "alice", elsewhere.job, "genomics"), "another node, another name");

    // A project: everybody's jobs of it, nobody's of another.
    let (bobby, bob) = (taking(&cluster, "bobby", &["-w", "n2"]), taking(&cluster, "bob", &["-w", "n2"]));
    revoke_all(&cluster, &["--project", "genomics"]);
    for (job, user) in [(&one, "alice"), (&elsewhere, "alice"), (&bobby, "bobby")] {
        refused(job, user);
        assert!(!lives(&cluster, user, job.job, "genomics"), "{user}'s {}", job.job);
    }
    assert!(bob.get_as("bob").status == 200 && lives(&cluster, "bob", bob.job, "climate"));
    for job in [one, two, elsewhere, bobby] {
        job.finish();
    }

    // A node: jobs that have it, new ones on the other node stay.
    let (alice, other) = (taking(&cluster, "alice", &["-w", "n2"]), taking(&cluster, "alice", &["-w", "n1"]));
    revoke_all(&cluster, &["--node", "n2"]);
    refused(&alice, "alice");
    refused(&bob, "bob");
    assert!(!lives(&cluster, "alice", alice.job, "genomics") && !lives(&cluster, "bob", bob.job, "climate"));
    assert!(other.get_as("alice").status == 200 && lives(&cluster, "alice", other.job, "genomics"));

    // A role: every job of the project that has it.
    let train = cluster.aws().role_arn("train").to_owned();
    let trains = taking(&cluster, "bobby", &["-w", "n1", "-p", "train"]);
    let climate = taking(&cluster, "bob", &["-w", "n1"]);
    revoke_all(&cluster, &["--role", &train]);
    refused(&trains, "bobby");
    refused(&other, "alice");
    assert!(!lives(&cluster, "bobby", trains.job, "genomics"));
    assert!(lives(&cluster, "alice", other.job, "genomics"), "of the project's other role, not revoked");
    assert!(lives(&cluster, "bob", climate.job, "climate"));
    for job in [bob, alice, other, trains, climate] {
        job.finish();
    }
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn wide_takes_all_of_the_role_and_the_bystanders_get_new_credentials() {
    let cluster = alone();
    let (alice, bobby) = (taking(&cluster, "alice", &["-w", "n1"]), taking(&cluster, "bobby", &["-w", "n2"]));
    let report = revoke_all(&cluster, &["--user", "alice", "--wide"]);
    assert_eq!(report["roles"][0]["bystanders"][0]["user"], "bobby", "{report}");
    assert!(!lives(&cluster, "alice", alice.job, "genomics") && !lives(&cluster, "bobby", bobby.job, "genomics"));
    refused(&alice, "alice");
    served_anew(&cluster, &bobby, "bobby", "genomics");
    alice.finish();
    bobby.finish();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn who_is_blocked_gets_nothing_until_let_in_again() {
    let cluster = alone();
    let report = revoke_all(&cluster, &["--user", "bob", "--block", "--why", "on leave"]);
    assert_eq!(report["blocked"], true);
    let job = hold_script(&cluster, "bob", &["-w", "n1"], "");
    wait_for("the refusal", SOON, || {
        let answer = job.get_as("bob");
        (answer.status == 403 && answer.body.contains("blocked") && answer.body.contains("on leave")).then_some(())
    })
    .unwrap();
    assert_eq!(admin(&cluster, &["block", "list"])[0]["why"], "on leave");
    admin(&cluster, &["unblock", "--user", "bob"]);
    // The job that runs gets its credentials, too.
    wait_for("credentials", SOON, || (job.get_as("bob").status == 200).then_some(())).unwrap();
    job.finish();
}

/// Changes a file of credvend's, and puts it back at the end.
struct Changed<'a> {
    cluster: &'a Cluster,
    path: std::path::PathBuf,
    before: String,
}

impl<'a> Changed<'a> {
    fn new(cluster: &'a Cluster, name: &str, change: impl FnOnce(&str) -> String) -> Self {
        let path = cluster.run_dir().join("etc/credvend").join(name);
        let before = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, change(&before)).unwrap();
        let changed = Changed { cluster, path, before };
        changed.take_in();
        changed
    }

    /// Until the nodes hang on its stream again: they come back when they please.
    fn take_in(&self) {
        let connected = || {
            let status = self.cluster.head().run_as("root", &["credvend", "status", "--json"]);
            let status: serde_json::Value = serde_json::from_str(&status.stdout).ok()?;
            status["clusters"][0]["nodes-connected"].as_u64()
        };
        let before = wait_for("credvend's status", SOON, connected).unwrap();
        self.cluster.credvend().restart().unwrap();
        wait_for("the nodes", SOON, || connected().filter(|now| *now >= before)).unwrap();
    }
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.path, &self.before);
        self.take_in();
    }
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn without_a_revoker_the_rest_happens_and_the_answer_says_what_is_lacking() {
    let cluster = alone();
    let job = taking(&cluster, "bob", &["-w", "n1"]);
    {
        let _without = Changed::new(&cluster, "credvend.toml", |text| {
            text.lines().filter(|line| !line.starts_with("revoker-roles")).map(|line| format!("{line}\n")).collect()
        });
        let (done, report) = revoke(&cluster, &["--user", "bob"]);
        assert!(!done.ok() && done.stderr.contains("revoker-roles"), "{done:?}");
        let code = cluster.head().run_as_root("credvend revoke --user bob >/dev/null 2>&1; echo $?");
        assert_eq!(code.stdout.trim(), "3");
        refused(&job, "bob");
        assert_eq!(report["sessions-total"], 1, "{report}");
        assert!(report["nodes"]["dropped"].as_u64() >= Some(1), "{report}");
        assert!(lives(&cluster, "bob", job.job, "climate"), "nobody could deny it");
    }
    // With one again, the store still knows what is to be denied.
    wait_for("the Deny", SOON, || (!lives(&cluster, "bob", job.job, "climate")).then_some(())).unwrap();
    job.finish();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_role_with_revoke_on_end_kills_what_a_job_took_when_the_job_ends() {
    let cluster = alone();
    let changed = Changed::new(&cluster, "projects.toml", |text| {
        let role = cluster.aws().role_arn("climate");
        let line = format!("role-arn = \"{role}\"\n");
        assert!(text.contains(&line), "{text}");
        let more = "revoke-on-end = true\nsession-name = \"{cluster}-{user}-{job}\"\n";
        text.replace(&line, &format!("{line}{more}"))
    });
    let (over, goes_on) = (taking(&cluster, "bob", &["-w", "n1"]), taking(&cluster, "bob", &["-w", "n1"]));
    let alice = taking(&cluster, "alice", &["-w", "n1"]);
    assert!(lives(&cluster, "bob", over.job, "climate"));
    let (over, alice) = (over.finish(), alice.finish());
    wait_for("what it took to die", SOON, || (!lives(&cluster, "bob", over, "climate")).then_some(())).unwrap();
    assert!(lives(&cluster, "bob", goes_on.job, "climate"), "another job of his");
    assert!(lives(&cluster, "alice", alice, "genomics"), "a role without it");
    goes_on.finish();
    drop(changed);
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_node_that_cannot_hear_is_named_and_stops_by_itself() {
    let cluster = alone();
    let job = hold_script(&cluster, "bob", &["-w", "n2", "-p", "unheard"], TAKE);
    cluster.unplug("n2").unwrap();
    let (done, report) = revoke(&cluster, &["--user", "bob"]);
    assert!(!done.ok(), "{done:?}");
    let [node] = &report["nodes"]["unheard"].as_array().unwrap()[..] else { panic!("{report}") };
    assert!(node["node"] == "n2" && node["may-serve-until"].as_str().unwrap().ends_with('Z'), "{report}");
    assert!(report["not-denied"].as_array().unwrap().is_empty(), "{report}");
    // Its partition has max-unheard=30s: without having heard of anything it serves nothing after that.
    wait_for("the node to stop serving", SOON, || (job.get_as("bob").status != 200).then_some(())).unwrap();
    cluster.plug_in("n2").unwrap();
    refused(&job, "bob");
    job.finish();
    cluster.wait_idle().unwrap();
}

/// Fifty users whose sessions a head states, each with credentials; then fifty revocations at the same time.
const FIFTY: &str = r#"
import concurrent.futures, json, os, ssl, subprocess, sys, urllib.request
import boto3
url, secret, endpoint = sys.argv[1:4]
tls = ssl.create_default_context(); tls.check_hostname = False; tls.verify_mode = ssl.CERT_NONE
def call(method, path, authorization, body=None):
    request = urllib.request.Request(url + path, method=method, headers={"Authorization": authorization},
                                     data=None if body is None else json.dumps(body).encode())
    return json.load(urllib.request.urlopen(request, context=tls))
users = [f"many{i:02}" for i in range(51)]
def session(user):
    opened = call("POST", "/sessions", secret, {"sessionId": user, "projectId": "shared", "clusterName": "lab",
                                                "clusterUser": user, "submittedTime": "2026-01-01"})
    got = call("GET", f"/sessions/{user}/cluster/lab/project/shared", opened["AWS_CONTAINER_AUTHORIZATION_TOKEN"])
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=got["AccessKeyId"],
                        aws_secret_access_key=got["SecretAccessKey"], aws_session_token=got["Token"])
clients = {user: session(user) for user in users}
def lives(user):
    try:
        clients[user].get_object(Bucket="shared-data", Key="hello.txt")
        return True
    except clients[user].exceptions.ClientError as error:
        assert error.response["Error"]["Code"] == "AccessDenied", error
        return False
assert all(lives(user) for user in users)
def revoke(user):
    done = subprocess.run(["credvend", "revoke", "--user", user, "--json"], capture_output=True, text=True)
    return done.stderr if done.returncode else 0
with concurrent.futures.ThreadPoolExecutor(50) as pool:
    codes = list(pool.map(revoke, users[:50]))
print(json.dumps({"codes": codes, "alive": [user for user in users if lives(user)]}))
"#;

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn fifty_revocations_at_the_same_time_lose_none() {
    let cluster = alone();
    let python = cluster.run_dir().join("venv/bin/python3");
    let (url, secret) = (cluster.credvend_url(), testbed::ours::HEAD_SECRET);
    let argv = [&*python.to_string_lossy(), "-c", FIFTY, &url, secret, testbed::layout::AWS_ENDPOINT];
    let done = cluster.head().run_as("root", &argv);
    let seen: Value = serde_json::from_str(done.expect_ok()).unwrap();
    assert!(seen["codes"].as_array().unwrap().iter().all(|code| *code == 0), "{seen}");
    assert_eq!(seen["alive"], serde_json::json!(["many50"]), "who was not revoked, and nobody else");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn the_v1_verbs_are_for_heads_only() {
    let cluster = cluster();
    let head = cluster.head();
    for (method, path) in [("POST", "/sessions"), ("PUT", "/sessions/1"), ("DELETE", "/sessions/users/bob")] {
        for header in ["Authorization: wrong", "X-None: 1"] {
            let answer = crate::support::curl(
                head,
                "root",
                &["-k", "-X", method, "-H", header, "-d", "{}", &format!("https://{}:8443{path}", head.address())],
            );
            assert!([401, 403].contains(&answer.status), "{method} {path}: {answer:?}");
        }
    }
}
