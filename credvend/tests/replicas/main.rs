//! Several credvend processes over one DynamoDB: what one did, all do; what one ended, none serves; and one that is killed
//! takes nothing with it.
//!
//! The pretend AWS is PyPI `ministack`, see `tests/aws.rs`; its IAM lets credvend do what `credvend store policy` prints
//! and no more. Slurm is a script that prints a file.
#![forbid(unsafe_code)]

#[path = "../pretend_aws/mod.rs"]
mod pretend_aws;

mod balancer;
mod copying;
mod killed;
mod munged;
mod revoking;
mod site;

use std::time::{Duration, Instant};

use credd_protocol::node_api::{Event, OPEN, OpenResponse, STREAM, stream_path};
use munged::Munged;
use serde_json::{Value, json};
use site::{Site, until};

fn opening(id: &str, user: &str, submitted: &str) -> Value {
    json!({
        "sessionId": id, "projectId": "genomics", "clusterName": "hpc", "clusterUser": user, "submittedTime": submitted,
    })
}

fn credentials_of(id: &str) -> String {
    format!("/sessions/{id}/cluster/hpc/project/genomics?roleSessionName=x")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn what_one_opened_all_serve_and_what_one_ended_none_serves() {
    let site = Site::start(2, None).await;
    let (a, b) = (site.url(0), site.url(1));
    let head = Some(site::SECRET);
    let (status, opened) = site.call("POST", &format!("{a}/sessions"), head, Some(&opening("1", "alice", "s1"))).await;
    assert_eq!(status, 200, "{opened}");
    let token = opened["AWS_CONTAINER_AUTHORIZATION_TOKEN"].as_str().unwrap().to_owned();
    let (other, _) = site.call("POST", &format!("{a}/sessions"), head, Some(&opening("2", "bob", "s1"))).await;
    assert_eq!(other, 200);
    // Both keep what they gave out.
    let mut keys = vec![];
    for at in [&a, &b, &a, &b] {
        let (status, document) = site.call("GET", &format!("{at}{}", credentials_of("1")), Some(&token), None).await;
        assert_eq!(status, 200, "{document}");
        keys.push(document["AccessKeyId"].as_str().unwrap().to_owned());
    }
    assert_eq!((&keys[0], &keys[1]), (&keys[2], &keys[3]), "each replica keeps its own document");
    // Opened again at the other one, it is the same session: the earlier token is worth nothing at either.
    let (status, again) = site.call("POST", &format!("{b}/sessions"), head, Some(&opening("1", "alice", "s1"))).await;
    assert_eq!(status, 200, "{again}");
    let renewed = again["AWS_CONTAINER_AUTHORIZATION_TOKEN"].as_str().unwrap().to_owned();
    for (at, token, expected) in [(&a, &token, 401), (&b, &token, 401), (&a, &renewed, 200), (&b, &renewed, 200)] {
        let (status, said) = site.call("GET", &format!("{at}{}", credentials_of("1")), Some(token), None).await;
        assert_eq!(status == 200, expected == 200, "{at}: {status} {said}");
    }
    // Ended at one: the very next question to the other is refused, whatever it has kept.
    let ended = json!({ "status": "COMPLETED" });
    let (status, said) = site.call("PUT", &format!("{a}/sessions/1/cluster/hpc"), head, Some(&ended)).await;
    assert_eq!(status, 200, "{said}");
    for at in [&b, &a] {
        let (status, said) = site.call("GET", &format!("{at}{}", credentials_of("1")), Some(&renewed), None).await;
        assert!((400..500).contains(&status), "{at}: {status} {said}");
    }
    // So with a revocation of the user.
    let (status, opened) = site.call("POST", &format!("{b}/sessions"), head, Some(&opening("3", "alice", "s1"))).await;
    assert_eq!(status, 200, "{opened}");
    let token = opened["AWS_CONTAINER_AUTHORIZATION_TOKEN"].as_str().unwrap().to_owned();
    let (status, said) = site.call("GET", &format!("{b}{}", credentials_of("3")), Some(&token), None).await;
    assert_eq!(status, 200, "{said}");
    let (status, said) = site.call("DELETE", &format!("{a}/sessions/users/alice"), head, None).await;
    assert_eq!(status, 200, "{said}");
    let (status, said) = site.call("GET", &format!("{b}{}", credentials_of("3")), Some(&token), None).await;
    assert!((400..500).contains(&status), "{status} {said}");
    // Both tell administrators the same.
    let list = |replica| site.json(replica, &["session", "list", "--json"]);
    assert_eq!(list(0), list(1));
    let statuses: Vec<_> =
        list(0).as_array().unwrap().iter().map(|s| s["status"].as_str().unwrap().to_owned()).collect();
    assert_eq!(statuses, ["INVALIDATED", "ACTIVE", "COMPLETED"]);
    for replica in [0, 1] {
        assert!(site.run(replica, &["status"]).out.contains("store ok"));
        let checked = site.run(replica, &["check-config", "--online"]);
        assert!(checked.out.contains("DynamoDB tables credvend-* works"), "{}{}", checked.out, checked.err);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
#[cfg_attr(not(munge_as_root), ignore = "needs root, munged and munge")]
async fn a_nodes_word_counts_once_and_news_reaches_it_wherever_it_hangs() {
    let munged = Munged::start();
    let site = Site::start(2, Some(munged.socket())).await;
    site.job_seven_runs(true);
    let (a, b) = (site.url(0), site.url(1));
    let job = json!({ "job": 7, "restart": 0, "uid": 1001 }).to_string();
    let claim = munged.claim("n1", "POST", OPEN, &job);
    let first = munged.encode(&claim);
    let (status, said) = site.node(&a, "POST", OPEN, &first, &job).await;
    assert_eq!(status, 200, "{said}");
    let opened: OpenResponse = serde_json::from_str(&said).unwrap();
    // The credential itself, and the same claim as another munged of this key would let it pass: only the store knows.
    for credential in [first, munged.encode(&claim)] {
        let (status, said) = site.node(&b, "POST", OPEN, &credential, &job).await;
        assert_eq!(status, 401, "{said}");
        assert!(said.contains("replay") || said.contains("nonce"), "{said}");
    }
    let (status, said) = site.node(&b, "POST", OPEN, &munged.say("n1", "POST", OPEN, &job), &job).await;
    assert_eq!(status, 200, "{said}");
    assert_eq!(serde_json::from_str::<OpenResponse>(&said).unwrap().session, opened.session, "joined at the other");

    // A stream at each; the session is closed at one.
    let mut at_a = site.stream(&a, &munged, "n1", STREAM).await;
    let mut at_b = site.stream(&b, &munged, "n1", STREAM).await;
    let (Event::Hello { epoch, seq }, Event::Hello { epoch: other, seq: 0 }) = (at_a.next().await, at_b.next().await)
    else {
        panic!("no hello")
    };
    assert_eq!((&epoch, seq), (&other, 0), "the epoch is the store's");
    let begun = Instant::now();
    site.done(0, &["session", "close", &opened.session.to_string()]);
    for stream in [&mut at_a, &mut at_b] {
        let told = stream.next().await;
        assert!(
            matches!(&told, Event::Invalidated { seq: 1, sessions, .. } if *sessions == [opened.session]),
            "{told:?}"
        );
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // The node changes over, and is told what it missed by one that it never spoke to.
    let mut back = site.stream(&b, &munged, "n1", &stream_path(Some((&epoch, 0)))).await;
    assert_eq!(back.next().await, Event::Hello { epoch: epoch.clone(), seq: 0 });
    assert!(matches!(back.next().await, Event::Invalidated { seq: 1, .. }));

    // Both look after the job's next run; when it is over, one of them closes it, once.
    site.job_seven_runs_again(1);
    let job = json!({ "job": 7, "restart": 1, "uid": 1001 }).to_string();
    let (status, said) = site.node(&b, "POST", OPEN, &munged.say("n1", "POST", OPEN, &job), &job).await;
    assert_eq!(status, 200, "{said}");
    site.job_seven_runs(false);
    until("the sweep", || site.json(1, &["session", "list", "--status", "active", "--json"]) == json!([])).await;
    let ends = |replica: usize| {
        let log = std::fs::read_to_string(site.path(&format!("{replica}/audit.jsonl"))).unwrap_or_default();
        let ended = |l: &&str| l.contains("session-ended") && l.contains("COMPLETED");
        log.lines().filter(ended).count()
    };
    until("the audit log", || ends(0) + ends(1) == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn the_projects_table_is_every_replicas_within_seconds() {
    let site = Site::with_projects_in_the_store(2).await;
    let arns = |replica| -> Vec<String> {
        let list = site.json(replica, &["project", "list", "--json"]);
        list.as_array().unwrap().iter().map(|r| r["role-arn"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!((arns(0), arns(1)), (vec![], vec![]));
    let arn = "arn:aws:iam::123456789012:role/new";
    site.done(0, &["project", "set", "new", "--role-arn", arn]);
    until("the new project", || arns(0) == [arn] && arns(1) == [arn]).await;
    let said = site.run(0, &["project", "set", "new", "--role-arn", arn, "--duration", "1000h"]);
    assert_eq!(said.code, 78, "{}", said.err);
    site.done(1, &["project", "remove", "new"]);
    until("its removal", || arns(0).is_empty() && arns(1).is_empty()).await;
}

/// The administrator gives all replicas one certificate: the nodes' pin holds for each of them.
#[test]
fn replicas_of_one_certificate_have_one_pin() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["credvend.example.org".into()]).unwrap();
    site::write(&dir.path().join("cert.pem"), &made.cert.pem());
    site::write(&dir.path().join("key.pem"), &made.signing_key.serialize_pem());
    let pins: Vec<String> = ["a", "b"]
        .map(|name| {
            let at = |file: &str| dir.path().join(file).display().to_string();
            let config = dir.path().join(format!("{name}.toml"));
            let text = format!(
                "state-dir = \"{}\"\n[tls]\ncertificate = \"{}\"\nkey = \"{}\"\n[store]\nkind = \"dynamodb\"\n\
                 [[cluster]]\nname = \"lab\"\n",
                at(name),
                at("cert.pem"),
                at("key.pem")
            );
            site::write(&config, &text);
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_credvend"));
            let output = command.args(["pin", "--json"]).env("CREDVEND_CONFIG", &config).output().unwrap();
            let pin: Value = serde_json::from_slice(&output.stdout).unwrap();
            pin["pin"].as_str().unwrap().to_owned()
        })
        .into();
    assert!(pins[0] == pins[1] && pins[0].starts_with("sha256:"), "{pins:?}");
}
