//! What a day's work leaves in the audit log, and what it does not.

use std::collections::BTreeSet;

use credd_protocol::TokenHash;
use credd_protocol::credentials_api_v1::OpenSession;
use credd_protocol::node_api::CredentialsRequest;
use serde_json::Value;
use time::Duration;

use super::world::*;
use crate::vending::Node;

fn events<'l>(lines: &'l [Value], kind: &str) -> Vec<&'l Value> {
    lines.iter().filter(|line| line["event"] == kind).collect()
}

fn read(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn every_document_is_on_record_with_its_job_node_name_and_key_and_no_secret_is() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1", "n2"]);
    let session = w.open(7).await.session;
    w.try_open("n2", 7).await.unwrap();
    let mut keys = BTreeSet::new();
    for node in ["n1", "n2", "n1"] {
        keys.insert(w.credentials(node, session).await.unwrap().credentials.access_key_id);
    }
    keys.insert(w.role("n1", session, "train", 0).await.unwrap().credentials.access_key_id);
    w.credentials("n9", session).await.unwrap_err();
    w.try_open("n9", 7).await.unwrap_err();
    let head_session = OpenSession {
        session_id: "1300".into(),
        project_id: "Climate".parse().unwrap(),
        cluster_name: lab(),
        cluster_user: "bob".parse().unwrap(),
        submitted_time: "2026-03-01".into(),
    };
    let first = w.vending.open_for_head(&head(), &head_session).await.unwrap();
    let second = w.vending.open_for_head(&head(), &head_session).await.unwrap();
    let climate = "Climate".parse().unwrap();
    let bear = async |token: &str, claimed| {
        w.vending.credentials_for_token(TokenHash::of(token), "1300", &lab(), &climate, claimed, None).await
    };
    keys.insert(bear(second.token.expose(), Some("lab-root-\u{1b}[2J")).await.unwrap().credentials.access_key_id);
    bear(first.token.expose(), None).await.unwrap_err();
    w.vending.close("root", session).await.unwrap();

    let text = w.audited();
    let tokens = [&first, &second].map(|opened| opened.token.expose().to_owned());
    let hashes = tokens.clone().map(|token| TokenHash::of(&token).to_hex());
    for secret in ["canary-secret".to_owned(), "canary-token".into()].into_iter().chain(tokens).chain(hashes) {
        assert!(!text.contains(&secret));
    }
    let lines = read(&text);
    assert!(lines.iter().enumerate().all(|(i, line)| line["seq"] == i as u64 + 1 && line["v"] == 1));
    assert_eq!(events(&lines, "session-opened").len(), 2, "joining is no opening");
    assert_eq!(events(&lines, "token-replaced").len(), 1);

    // What CloudTrail has can be joined: each key that anybody holds was issued once, and says for what.
    let issued = events(&lines, "credentials-issued");
    let issued_keys: BTreeSet<String> = issued.iter().map(|line| line["key-id"].as_str().unwrap().into()).collect();
    assert_eq!((issued_keys, issued.len()), (keys.clone(), keys.len()));
    let train = issued.iter().find(|line| line["role"] == "train").unwrap();
    assert_eq!(train["principal-id"], "AROAgenomics-train:lab-alice-n1");
    assert_eq!(train["source-identity"], "alice");
    for (field, value) in [("cluster", "lab"), ("user", "alice"), ("project", "genomics"), ("node", "n1")] {
        assert_eq!(train[field], value);
    }
    assert_eq!((&train["job"], &train["restart"]), (&7.into(), &0.into()));
    let delivered = events(&lines, "credentials-delivered");
    assert_eq!(delivered.len(), 5, "kept documents too");
    for line in delivered {
        let key = &line["key-id"];
        let origin = issued.iter().find(|issued| issued["key-id"] == *key).unwrap();
        for field in ["session", "role-arn", "session-name", "issued", "expires", "user"] {
            assert_eq!(line[field], origin[field], "{field}");
        }
        assert!(line["seq"].as_u64() > origin["seq"].as_u64());
    }
    let to = |node: &str| events(&lines, "credentials-delivered").iter().filter(|line| line["node"] == node).count();
    assert_eq!((to("n1"), to("n2"), to("n9")), (3, 1, 0));
    for kind in ["session-opened", "credentials-delivered"] {
        assert_eq!(events(&lines, kind)[0]["peer"], "10.77.0.11", "whoever poses as a node does so from somewhere");
    }

    let refused: Vec<_> = events(&lines, "refused").iter().map(|line| line["code"].as_str().unwrap()).collect();
    assert_eq!(refused, ["NotOnNode", "NotOnNode", "Unauthenticated"]);
    // Whoever asks for a user, job or project finds what its session was refused.
    let of = events(&lines, "refused")[0];
    assert_eq!((&of["job"], &of["user"], &of["project"]), (&7.into(), &"alice".into(), &"genomics".into()), "{of}");
    let ended = events(&lines, "session-ended");
    assert_eq!(
        (ended.len(), &ended[0]["status"], &ended[0]["why"]),
        (1, &"INVALIDATED".into(), &"closed by root".into())
    );
}

#[tokio::test]
async fn who_asks_without_end_fills_no_disk_and_is_counted() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1", "n2"]);
    let session = w.open(7).await.session;
    for _ in 0..500 {
        w.credentials("n1", session).await.unwrap();
    }
    // Who says that it is the same node, elsewhere, is on record at once.
    let request = CredentialsRequest { role: Default::default(), min_life_seconds: 0, heard: 0 };
    let elsewhere = Node { peer: Some([10, 66, 6, 6].into()), ..node("n1") };
    for _ in 0..3 {
        w.vending.credentials_for_node(&elsewhere, session, &request).await.unwrap();
    }
    w.clock.advance(Duration::seconds(61));
    w.credentials("n1", session).await.unwrap();
    w.credentials("n1", session).await.unwrap();
    let lines = read(&w.audited());
    let mut said: Vec<_> = events(&lines, "credentials-delivered")
        .iter()
        .map(|line| (line["peer"].as_str().unwrap(), line.get("count").and_then(Value::as_u64)))
        .collect();
    said.sort();
    let (own, other) = ("10.77.0.11", "10.66.6.6");
    assert_eq!(said, [(other, None), (other, Some(2)), (own, None), (own, None), (own, Some(1)), (own, Some(499))]);
}

/// Anybody may name any session, with any token.
#[tokio::test]
async fn bearers_of_nothing_do_not_hide_what_a_node_is_refused() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    w.open(7).await;
    let genomics = "genomics".parse().unwrap();
    for job in ["7", "8"] {
        for _ in 0..250 {
            let token = TokenHash::of("x");
            w.vending.credentials_for_token(token, job, &lab(), &genomics, None, None).await.unwrap_err();
        }
    }
    w.try_open("n9", 7).await.unwrap_err();
    let lines = read(&w.audited());
    let codes: Vec<_> = events(&lines, "refused").iter().map(|line| line["code"].as_str().unwrap()).collect();
    assert_eq!((codes.len(), codes.last()), (201, Some(&"NotOnNode")));
}

#[tokio::test]
async fn a_job_whose_nodes_share_a_name_has_each_of_them_on_record() {
    let w = World::new();
    let nodes: Vec<String> = (0..300).map(|i| format!("m{i}")).collect();
    let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
    w.slurm.run(8, "alice", "genomics", &names);
    let session = w.try_open("m0", 8).await.unwrap().session;
    for node in &nodes[..20] {
        w.credentials(node, session).await.unwrap();
    }
    assert_eq!(w.assumed(), 1);
    let lines = read(&w.audited());
    assert_eq!(events(&lines, "credentials-issued").len(), 1);
    assert!(events(&lines, "credentials-issued")[0].get("node").is_none());
    let got: BTreeSet<&str> =
        events(&lines, "credentials-delivered").iter().map(|line| line["node"].as_str().unwrap()).collect();
    assert_eq!(got, names[..20].iter().copied().collect());
}

#[tokio::test]
async fn a_revocation_puts_its_denies_on_record() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let session = w.open(7).await.session;
    w.credentials("n1", session).await.unwrap();
    w.vending.invalidate_user("root", None, &"alice".parse().unwrap()).await.unwrap();
    let lines = read(&w.audited());
    let deny = events(&lines, "deny-in-force");
    assert_eq!((&deny[0]["role-arn"], &deny[0]["count"]), (&arn("genomics").as_str().into(), &1.into()));
    assert_eq!(events(&lines, "session-ended")[0]["user"], "alice");
}
