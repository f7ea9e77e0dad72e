//! How often Slurm is asked, and what may not be served from what it said before.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use credd_protocol::Uid;
use credd_protocol::credentials_api_v1::SessionStatus;
use time::Duration;

use super::super::Node;
use super::world::*;
use crate::attest::JobState;

impl World {
    fn questions(&self) -> usize {
        self.slurm.asked_job.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_nodes_cost_one_question_and_a_running_jobs_refreshes_none() {
    let w = Arc::new(World::new());
    let nodes: Vec<String> = (1..=10_000).map(|n| format!("n{n}")).collect();
    let list: Vec<&str> = nodes.iter().map(String::as_str).collect();
    w.slurm.run(7, "alice", "genomics", &list);
    let mut opening = tokio::task::JoinSet::new();
    for node in nodes.clone() {
        let w = w.clone();
        opening.spawn(async move { w.try_open(&node, 7).await.unwrap().session });
    }
    let mut sessions = opening.join_all().await;
    sessions.dedup();
    assert_eq!((sessions.len(), w.questions()), (1, 1));
    let session = sessions[0];
    let mut asking = tokio::task::JoinSet::new();
    for node in nodes.clone() {
        let w = w.clone();
        asking.spawn(async move { w.credentials(&node, session).await.unwrap() });
    }
    asking.join_all().await;
    assert_eq!((w.questions(), w.assumed()), (1, 1));
    // For hours the sweep's listing says all there is to say.
    for _ in 0..10 {
        w.clock.advance(Duration::minutes(25));
        w.vending.sweep().await.unwrap();
        w.clock.advance(Duration::seconds(5));
        for node in ["n1", "n77", "n10000"] {
            w.role(node, session, "default", 2700).await.unwrap();
        }
    }
    assert_eq!((w.questions(), w.assumed()), (1, 11));
    // They all leave within a moment, while Slurm is completing the job.
    w.slurm.change(7, |job| job.state = JobState::Completing);
    for node in nodes.iter().take(100) {
        w.vending.leave(&node_named(node), session).await.unwrap();
    }
    assert_eq!(w.questions(), 2);
    w.slurm.gone(7);
    w.clock.advance(Duration::seconds(5));
    w.vending.leave(&node_named("n101"), session).await.unwrap();
    assert_eq!(w.session(session).await.status, SessionStatus::Completed);
}

fn node_named(name: &str) -> crate::vending::Node {
    node(name)
}

#[tokio::test]
async fn a_node_that_left_loses_access_with_slurms_word_or_at_its_own() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1", "n2", "n3"]);
    let session = w.open(7).await.session;
    w.slurm.change(7, |job| job.nodes = vec!["n1".parse().unwrap()]);
    // It says so: what was said before does not speak for it any more.
    w.vending.leave(&node("n2"), session).await.unwrap();
    assert_eq!(refused(w.credentials("n2", session).await).0, "NotOnNode");
    // Also while Slurm cannot be asked about that: the others are served on its last word, this one is not.
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1", "n2"]);
    let session = w.open(7).await.session;
    w.slurm.silent();
    assert_eq!(refused(w.vending.leave(&node("n2"), session).await).0, "Unavailable");
    assert_eq!(refused(w.credentials("n2", session).await).0, "Unavailable");
    w.credentials("n1", session).await.unwrap();
    // It says nothing: a minute, or the next listing, whichever is sooner.
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1", "n2", "n3"]);
    let session = w.open(7).await.session;
    w.slurm.change(7, |job| job.nodes = vec!["n1".parse().unwrap()]);
    w.credentials("n3", session).await.unwrap();
    w.clock.advance(Duration::seconds(5));
    w.vending.sweep().await.unwrap();
    assert_eq!(refused(w.credentials("n3", session).await).0, "NotOnNode");
    w.slurm.change(7, |job| job.nodes.push("n4".parse().unwrap()));
    w.credentials("n4", session).await.unwrap();
}

#[tokio::test]
async fn what_was_said_of_one_run_opens_and_serves_no_other() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1", "n2"]);
    let old = w.open(7).await.session;
    w.clock.advance(Duration::seconds(1));
    // Requeued: the node's record has the new restart count, and Slurm is asked.
    w.slurm.change(7, |job| job.restart = 1);
    let new = w.try_open("n2", 7).await.unwrap().session;
    assert_ne!(old, new);
    // A straggler of the old run, within the minute in which Slurm's word of it would have counted.
    let mut record = w.record(7);
    record.restart = 0;
    assert_eq!(refused(w.vending.open_for_node(&node("n1"), &record).await).0, "Contradicted");
    assert_eq!(refused(w.credentials("n1", old).await).0, "SessionEnded");
    // The id comes again at once, for another run of the same user with the same restart count: the ended session is not
    // its session, although every fact of its record was said a moment ago.
    w.slurm.gone(7);
    w.vending.leave(&node("n2"), new).await.unwrap();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    w.slurm.change(7, |job| (job.restart, job.submitted) = (1, job.submitted + Duration::hours(1)));
    let third = w.open(7).await.session;
    assert!(third != new && third != old);
    // And again for somebody else.
    w.slurm.run(7, "bob", "climate", &["n1"]);
    w.slurm.change(7, |job| job.submitted += Duration::hours(2));
    assert_eq!(w.open(7).await.uid, w.record(7).uid);
    let (code, _, why) = refused(w.credentials("n1", third).await);
    assert!(code == "SessionEnded", "{code} {why}");
}

#[tokio::test]
async fn no_session_is_opened_on_what_was_said_before() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1", "n2"]);
    let session = w.open(7).await.session;
    // The job ends, and the store's session with it, unknown to what is kept.
    w.slurm.gone(7);
    w.store.end(session, SessionStatus::Completed, w.now(), "by another replica").await.unwrap();
    let (code, _, why) = refused(w.try_record("n2", 7).await);
    assert_eq!(code, "JobNotRunning", "{why}");
    // Nothing was opened when Slurm spoke; it does not count when it is opened later.
    let w = World::new();
    w.slurm.run(8, "alice", "nobodys", &["n1", "n2"]);
    assert_eq!(refused(w.try_open("n1", 8).await).0, "UnknownProject");
    let record = w.record(8);
    w.slurm.gone(8);
    w.clock.advance(Duration::seconds(6));
    assert_eq!(refused(w.vending.open_for_node(&node("n2"), &record).await).0, "JobNotRunning");
}

#[tokio::test]
async fn a_liar_learns_slurms_word_of_now() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1", "n2"]);
    w.open(7).await;
    let asked = w.questions();
    let mut record = w.record(7);
    record.uid = Uid(1);
    assert_eq!(refused(w.vending.open_for_node(&node("n2"), &record).await).0, "Contradicted");
    assert_eq!(refused(w.try_open("n9", 7).await).0, "NotOnNode");
    assert_eq!(w.questions(), asked + 2, "a no is never from what is kept");
    w.try_open("n2", 7).await.unwrap();
    assert_eq!(w.questions(), asked + 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_wait_for_a_question_share_its_failure() {
    let w = Arc::new(World::new());
    let nodes: Vec<String> = (1..=50).map(|n| format!("n{n}")).collect();
    let list: Vec<&str> = nodes.iter().map(String::as_str).collect();
    w.slurm.run(7, "alice", "genomics", &list);
    let held = w.slurm.gate.clone().write_owned().await;
    let mut opening = tokio::task::JoinSet::new();
    for node in nodes {
        let w = w.clone();
        opening.spawn(async move { refused(w.try_open(&node, 7).await).0 });
    }
    until(async || w.vending.facts.waiting() >= 50).await;
    w.slurm.silent();
    drop(held);
    assert!(opening.join_all().await.iter().all(|code| *code == "Unavailable"));
    assert_eq!(w.questions(), 1);
    w.slurm.back();
    w.open(7).await;
    assert_eq!(w.questions(), 2);
}

#[tokio::test]
async fn the_end_of_a_large_jobs_session_is_seen_by_the_next_who_asks() {
    let w = World::new();
    let nodes: Vec<String> = (1..=300).map(|n| format!("n{n}")).collect();
    let list: Vec<&str> = nodes.iter().map(String::as_str).collect();
    w.slurm.run(7, "alice", "genomics", &list);
    let session = w.open(7).await.session;
    w.try_open("n2", 7).await.unwrap();
    w.credentials("n2", session).await.unwrap();
    // By another replica: nothing in this process knows of it.
    w.store.end(session, SessionStatus::Invalidated, w.now(), "revoked elsewhere").await.unwrap();
    let (code, _, why) = refused(w.credentials("n2", session).await);
    assert!(code == "SessionEnded" && why.contains("revoked elsewhere"), "{code} {why}");
    assert_eq!(refused(w.try_open("n3", 7).await).0, "SessionEnded");
    assert_eq!(w.assumed(), 1);
}

#[tokio::test]
async fn who_makes_credvend_ask_too_often_waits_and_sessions_are_closed_all_the_same() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    w.slurm.run(8, "alice", "genomics", &["n1", "n2"]);
    let (over, left) = (w.open(7).await.session, w.open(8).await.session);
    w.credentials("n1", left).await.unwrap();
    // Root of n1 invents jobs.
    let mut asked = 0;
    let (code, retry, why) = loop {
        asked += 1;
        let seen = refused(w.try_open("n1", 100_000 + asked).await);
        if seen.0 != "JobNotRunning" {
            break seen;
        }
        assert!(asked < 50_000, "there is no bound");
    };
    assert!((200..40_000).contains(&asked), "a node that starts many jobs at once is served: {asked}");
    assert!(code == "Busy" && retry && why.contains("10.77.0.11"), "{code}: {why}");
    // Nor does an older word count longer for it, as it does while Slurm is away.
    w.slurm.change(8, |job| job.nodes = vec!["n2".parse().unwrap()]);
    w.clock.advance(Duration::minutes(2));
    let exhausted = async || {
        for _ in 0..50_000 {
            if refused(w.try_open("n1", 6000).await).0 == "Busy" {
                return;
            }
        }
        panic!("there is no bound");
    };
    exhausted().await;
    let (code, _, why) = refused(w.credentials("n1", left).await);
    assert!(matches!(code, "Busy" | "NotOnNode"), "{code}: {why}");
    // Another address has a budget of its own, and the sweep needs none.
    let elsewhere = Node { peer: Some([10, 77, 0, 12].into()), ..node("n2") };
    w.vending.leave(&elsewhere, left).await.unwrap();
    w.slurm.gone(7);
    assert_eq!(w.vending.sweep().await.unwrap(), 1);
    assert_eq!(w.session(over).await.status, SessionStatus::Completed);
}
