//! The policies, with several at work on them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use credd_protocol::SessionId;
use time::Duration;

use super::revoking_subjects::{order, user};
use super::world::*;
use crate::clock::Clock as _;
use crate::deny::DenyError;
use crate::vending::denying::Denying;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_revocations_at_two_credvends_lose_no_entry() {
    let w = Arc::new(World::new());
    let mut sessions: Vec<SessionId> = vec![];
    for i in 0..50u32 {
        w.slurm.run(i + 1, &format!("user{i:02}"), "genomics", &["n1"]);
        sessions.push(w.open(i + 1).await.session);
        w.credentials("n1", sessions[i as usize]).await.unwrap();
    }
    let other = w.replica();
    let mut revoking = tokio::task::JoinSet::new();
    for i in 0..50u32 {
        let vending = if i % 2 == 0 { w.vending.clone() } else { other.clone() };
        revoking.spawn(async move { vending.revoke(order(user(&format!("user{i:02}")))).await.unwrap() });
    }
    while let Some(report) = revoking.join_next().await {
        let report = report.unwrap();
        // The nodes hang on one of the two; all roles are in force all the same.
        assert!(report.not_denied.is_empty() && report.unfinished.is_none(), "{report:?}");
        assert!(report.roles.iter().all(|role| role.in_force));
    }
    assert_eq!(w.iam.denied("genomics").len(), 50);
}

#[tokio::test]
async fn a_policy_that_another_credvend_wrote_over_is_put_right() {
    let w = World::new();
    w.slurm.run(1, "bob", "genomics", &["n1"]);
    let session = w.open(1).await.session;
    w.credentials("n1", session).await.unwrap();
    w.vending.revoke(order(user("bob"))).await.unwrap();
    // A write of one that died arrives late.
    w.iam.policies.lock().unwrap().clear();
    w.vending.sweep().await.unwrap();
    assert_eq!(w.iam.denied("genomics").len(), 0, "not at once");
    w.clock.advance(Duration::minutes(2));
    w.vending.sweep().await.unwrap();
    assert_eq!(w.iam.denied("genomics"), ["AROAgenomics:lab-bob-n1"]);
}

#[tokio::test]
async fn a_dead_holder_loses_the_role_by_time() {
    let w = World::new();
    w.slurm.run(1, "bob", "genomics", &["n1"]);
    let session = w.open(1).await.session;
    w.credentials("n1", session).await.unwrap();
    let (now, lease) = (crate::store::conformance::T0, format!("deny:{}", arn("genomics")));
    assert!(w.store.lease(&lease, "dead", now, now + Duration::seconds(45)).await.unwrap());
    let revoking = tokio::spawn({
        let vending = w.vending.clone();
        async move { vending.revoke(order(user("bob"))).await.unwrap() }
    });
    until(async || !w.store.list_revocations(now).await.unwrap().is_empty()).await;
    assert_eq!(w.iam.calls.load(Ordering::SeqCst), 0, "it is another's turn");
    w.clock.advance(Duration::minutes(1));
    let report = revoking.await.unwrap();
    assert!(report.complete(), "{report:?}");
    assert_eq!(w.iam.denied("genomics"), ["AROAgenomics:lab-bob-n1"]);
}

#[tokio::test]
async fn two_credvends_never_write_one_roles_policy_at_the_same_time() {
    let w = World::new();
    w.slurm.run(1, "bob", "genomics", &["n1"]);
    let session = w.open(1).await.session;
    w.credentials("n1", session).await.unwrap();
    w.vending.revoke(order(user("bob"))).await.unwrap();
    let [one, other] = ["one", "other"].map(|replica| Arc::new(Denying::new(&w.vending.parts, replica.into())));
    let (role, before) = (arn("genomics"), w.iam.calls.load(Ordering::SeqCst));
    let closed = w.iam.gate.clone().write_owned().await;
    let writing = tokio::spawn({
        let role = role.clone();
        async move { one.bring_in_line(&role).await }
    });
    until(async || w.iam.calls.load(Ordering::SeqCst) != before).await;
    // All of the other's patience passes while the first is at IAM.
    tokio::time::pause();
    let asking = tokio::spawn({
        let (other, role) = (other.clone(), role.clone());
        async move { other.bring_in_line(&role).await }
    });
    // Of real time: the store's threads know no other.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !asking.is_finished() {
        assert!(std::time::Instant::now() < deadline, "it waits for ever");
        assert_eq!(w.iam.most_at_once.load(Ordering::SeqCst), 1, "both are at IAM");
        tokio::time::advance(std::time::Duration::from_millis(100)).await;
    }
    let undone = asking.await.unwrap().unwrap_err();
    assert!(undone.why.contains("another credvend is at work") && undone.left_out.is_none(), "{undone:?}");
    drop(closed);
    writing.await.unwrap().unwrap();
    other.bring_in_line(&role).await.unwrap();
    assert_eq!(w.iam.most_at_once.load(Ordering::SeqCst), 1);
    assert_eq!(w.iam.denied("genomics"), ["AROAgenomics:lab-bob-n1"]);
}

#[tokio::test]
async fn what_comes_while_a_policy_is_written_is_in_the_next_one() {
    let w = Arc::new(World::new());
    for (id, name) in [(1, "bob"), (2, "eve")] {
        w.slurm.run(id, name, "genomics", &["n1"]);
        let session = w.open(id).await.session;
        w.credentials("n1", session).await.unwrap();
    }
    let closed = w.iam.gate.clone().write_owned().await;
    let bob = tokio::spawn({
        let vending = w.vending.clone();
        async move { vending.revoke(order(user("bob"))).await.unwrap() }
    });
    until(async || w.iam.calls.load(Ordering::SeqCst) != 0).await;
    // Another replica stores its entry, and then waits for the lease.
    let other = w.replica();
    let eve = tokio::spawn(async move { other.revoke(order(user("eve"))).await.unwrap() });
    until(async || w.store.list_revocations(crate::store::conformance::T0).await.unwrap().len() >= 2).await;
    drop(closed);
    assert!(bob.await.unwrap().not_denied.is_empty() && eve.await.unwrap().not_denied.is_empty());
    assert_eq!(w.iam.denied("genomics"), ["AROAgenomics:lab-bob-n1", "AROAgenomics:lab-eve-n1"]);
}

#[tokio::test]
async fn many_moments_are_put_together_and_what_lives_stays_out_of_it() {
    let w = World::new();
    // Jobs of many users end one after the other, each revoked at its own moment; old has a newer job of the same name.
    let mut sessions = vec![];
    let users: Vec<String> = (0..120).map(|i| format!("user{i:03}")).collect();
    for (i, name) in users.iter().enumerate() {
        let id = i as u32 + 1;
        w.slurm.run(id, name, "genomics", &["n1"]);
        let session = w.open(id).await.session;
        w.credentials("n1", session).await.unwrap();
        sessions.push(session);
        w.clock.advance(Duration::seconds(5));
    }
    let job = |id: u32| order(crate::store::Subject::Job(lab(), id.try_into().unwrap()));
    // A newer one of the first user's name lives on.
    w.slurm.run(500, &users[0], "genomics", &["n1"]);
    let newer = w.open(500).await.session;
    w.credentials("n1", newer).await.unwrap();
    w.clock.advance(Duration::minutes(1));
    for id in 1..=120 {
        w.vending.revoke(job(id)).await.unwrap();
    }
    let entries = w.iam.policies.lock().unwrap()[&arn("genomics")].clone();
    assert_eq!(entries.len(), 120);
    let composed = crate::deny::policy::compose(&entries, crate::deny::policy::MAX_CHARS);
    assert!(composed.left_out.is_empty(), "{} did not fit", composed.left_out.len());
    let issued = w.store.list_issuances(&crate::store::IssuedTo::Session(newer), w.clock.now(), None).await.unwrap();
    let first = entries.iter().find(|e| e.whose == crate::store::Denied::UserId("AROAgenomics:lab-user000-n1".into()));
    assert!(first.unwrap().issued_before < issued.items[0].issued, "the newer one lives");
    w.credentials("n1", newer).await.unwrap();
}

#[tokio::test]
async fn a_role_that_an_upstream_has_now_is_told_of_once_and_not_tried_for_ever() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let session = w.open(7).await.session;
    w.credentials("n1", session).await.unwrap();
    *w.iam.error.lock().unwrap() = Some(DenyError::NotOurs("the upstream's".into()));
    let report = w.vending.revoke(order(user("alice"))).await.unwrap();
    assert!(!report.roles[0].in_force && report.not_denied[0].contains("the upstream's"), "{report:?}");
    let asked = w.iam.calls.load(Ordering::SeqCst);
    for _ in 0..5 {
        w.clock.advance(Duration::minutes(30));
        w.vending.sweep().await.unwrap();
    }
    assert_eq!(w.iam.calls.load(Ordering::SeqCst), asked);
    w.vending.count_revocations().await.unwrap();
    assert!(w.vending.metrics().text().contains("credvend_deny_policies_behind 0"));
    assert!(!w.audited().contains("deny-failed"), "nobody failed");
}
