//! Roles whose credentials die with their job.

use std::sync::atomic::Ordering;

use credd_protocol::SessionId;
use credd_protocol::node_api::Event;
use time::Duration;

use super::revoking_subjects::{order, user};
use super::world::*;
use crate::session_name::Names;
use crate::store::conformance::T0;
use crate::vending::revoking::RevocationReport;

fn on_end(w: &World) {
    let mut map = map();
    for roles in map.projects.values_mut() {
        roles.get_mut(&"default".parse().unwrap()).unwrap().revoke_on_end = true;
    }
    w.projects.replace(map);
}

#[tokio::test]
async fn what_a_job_got_dies_when_it_ends_and_of_that_role_alone() {
    let w = World::new();
    on_end(&w);
    for (id, user) in [(1, "bob"), (2, "eve"), (3, "ann")] {
        w.slurm.run(id, user, "genomics", &["n1"]);
        let session = w.open(id).await.session;
        w.credentials("n1", session).await.unwrap();
        w.role("n1", session, "train", 0).await.unwrap();
    }
    w.slurm.gone(1);
    w.slurm.gone(2);
    w.vending.sweep().await.unwrap();
    assert_eq!(w.iam.denied("genomics"), ["AROAgenomics:lab-bob-n1", "AROAgenomics:lab-eve-n1"]);
    assert_eq!(w.iam.denied("genomics-train"), [""; 0]);
    assert_eq!(w.iam.calls.load(Ordering::SeqCst), 1, "both ends in one policy");
    w.vending.sweep().await.unwrap();
    assert_eq!(w.iam.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_another_credvend_ended_is_found() {
    let w = World::new();
    on_end(&w);
    w.slurm.run(1, "bob", "genomics", &["n1"]);
    let session = w.open(1).await.session;
    w.credentials("n1", session).await.unwrap();
    // It ended the session and was killed before its sweep.
    w.store
        .end(
            session,
            credd_protocol::credentials_api_v1::SessionStatus::Completed,
            crate::store::conformance::T0,
            "over",
        )
        .await
        .unwrap();
    w.replica().sweep().await.unwrap();
    assert_eq!(w.iam.denied("genomics"), ["AROAgenomics:lab-bob-n1"]);
}

#[tokio::test]
async fn another_job_of_the_same_name_gets_new_credentials() {
    let mut w = World::new();
    on_end(&w);
    let mut sessions = vec![];
    for id in [1, 2] {
        w.slurm.run(id, "bob", "genomics", &["n1"]);
        sessions.push(w.open(id).await.session);
        w.credentials("n1", sessions[id as usize - 1]).await.unwrap();
    }
    w.slurm.gone(1);
    w.vending.sweep().await.unwrap();
    let told = w.told().expect("something");
    assert!(matches!(&told, Event::Renew { sessions: told, .. } if told[..] == sessions[1..]), "{told:?}");
    w.clock.advance(Duration::seconds(4));
    let asked = w.assumed();
    w.credentials("n1", sessions[1]).await.unwrap();
    assert_eq!(w.assumed(), asked + 1);
}

#[tokio::test]
async fn ends_do_not_wait_for_iam() {
    let w = World::new();
    on_end(&w);
    w.slurm.run(1, "bob", "genomics", &["n1"]);
    let session = w.open(1).await.session;
    w.credentials("n1", session).await.unwrap();
    let _iam = w.iam.gate.clone().write_owned().await;
    w.slurm.gone(1);
    w.vending.leave(&node("n1"), session).await.unwrap();
    assert_eq!(w.session(session).await.status, credd_protocol::credentials_api_v1::SessionStatus::Completed);
    assert_eq!(w.iam.calls.load(Ordering::SeqCst), 0);
}

/// Jobs of aaron's that each have a name of their own, take credentials, and end.
async fn many_end(w: &World, ids: std::ops::Range<u32>) {
    for id in ids.clone() {
        w.slurm.run(id, "aaron", "genomics", &["n1"]);
        let session = w.open(id).await.session;
        w.credentials("n1", session).await.unwrap();
    }
    ids.for_each(|id| w.slurm.gone(id));
}

async fn shown(w: &World, report: &RevocationReport) -> RevocationReport {
    w.vending.revocation(report.id).await.unwrap()
}

#[tokio::test]
async fn ends_without_number_bring_nobody_back_who_was_revoked() {
    let w = World::named(Names { template: "{cluster}-{user}-{job}".parse().unwrap(), ..Names::default() });
    on_end(&w);
    w.slurm.run(1, "eve", "genomics", &["n1"]);
    let eves = w.open(1).await.session;
    w.credentials("n1", eves).await.unwrap();
    let report = w.vending.revoke(order(user("eve"))).await.unwrap();
    assert!(report.complete(), "{report:?}");
    // Past the time in which entries keep moments of their own.
    w.clock.advance(Duration::minutes(2));
    many_end(&w, 2..400).await;
    w.clock.advance(Duration::minutes(2));
    w.vending.sweep().await.unwrap();
    let denied = w.iam.denied("genomics");
    assert!((150..398).contains(&denied.len()), "as many as there is room for: {}", denied.len());
    assert!(denied.contains(&"AROAgenomics:lab-eve-1".to_owned()), "{denied:?}");
    let later = shown(&w, &report).await;
    assert!(later.complete() && later.roles[0].in_force, "{later:?}");
    let full = w.vending.full_denies();
    let lacking = format!("no room for {} of 399 denied names", 399 - denied.len());
    assert!(full.len() == 1 && full[0].contains("role/genomics") && full[0].contains(&lacking), "{full:?}");
    // A new order finds room among them.
    w.slurm.run(1000, "mallory", "genomics", &["n1"]);
    let session = w.open(1000).await.session;
    w.credentials("n1", session).await.unwrap();
    let rehearsed = w.vending.rehearse(order(user("mallory"))).await.unwrap();
    assert_eq!(rehearsed.not_denied, [""; 0]);
    let report = w.vending.revoke(order(user("mallory"))).await.unwrap();
    assert!(report.complete(), "{report:?}");
    assert!(w.iam.denied("genomics").contains(&"AROAgenomics:lab-mallory-1000".to_owned()));
    // What else ends meanwhile changes the policy at once, whatever pause its lack of room has brought.
    let calls = w.iam.calls.load(Ordering::SeqCst);
    many_end(&w, 2000..2001).await;
    w.vending.sweep().await.unwrap();
    assert_eq!(w.iam.calls.load(Ordering::SeqCst), calls + 1);
    // When all has expired there is room again.
    w.clock.advance(Duration::hours(2));
    w.vending.sweep().await.unwrap();
    assert_eq!((w.iam.denied("genomics").len(), w.vending.full_denies().len()), (0, 0));
}

#[tokio::test]
async fn an_order_that_others_pushed_out_is_not_said_to_be_in_force() {
    let w = World::named(Names { template: "{cluster}-{user}-{job}".parse().unwrap(), ..Names::default() });
    w.slurm.run(1, "eve", "genomics", &["n1"]);
    let eves = w.open(1).await.session;
    w.credentials("n1", eves).await.unwrap();
    let report = w.vending.revoke(order(user("eve"))).await.unwrap();
    assert!(shown(&w, &report).await.complete());
    w.clock.advance(Duration::minutes(2));
    many_end(&w, 2..400).await;
    w.vending.sweep().await.unwrap();
    let aarons = w.vending.revoke(order(user("aaron"))).await.unwrap();
    assert!(!aarons.complete());
    let later = shown(&w, &report).await;
    assert!(!w.iam.denied("genomics").contains(&"AROAgenomics:lab-eve-1".to_owned()));
    assert!(!later.complete() && !later.roles[0].in_force, "{later:?}");
    assert!(later.not_denied[0].contains("no room any more for 1 of these names"), "{later:?}");
}

/// Two jobs of bob's on one node, which share a name.
async fn two_of_one_name(w: &World) -> Vec<SessionId> {
    let mut sessions = vec![];
    for id in [1, 2] {
        w.slurm.run(id, "bob", "genomics", &["n1"]);
        sessions.push(w.open(id).await.session);
        w.credentials("n1", *sessions.last().unwrap()).await.unwrap();
    }
    sessions
}

fn renewed(w: &mut World) -> Vec<SessionId> {
    let told = |event| match event {
        Event::Renew { sessions, .. } => sessions,
        _ => vec![],
    };
    std::iter::from_fn(|| w.told()).flat_map(told).collect()
}

#[tokio::test]
async fn who_shared_the_name_is_told_before_iam_answers() {
    let mut w = World::new();
    on_end(&w);
    let sessions = two_of_one_name(&w).await;
    let closed = w.iam.gate.clone().write_owned().await;
    w.slurm.gone(1);
    let sweeping = tokio::spawn({
        let vending = w.vending.clone();
        async move { vending.sweep().await.unwrap() }
    });
    until(async || w.iam.calls.load(Ordering::SeqCst) != 0).await;
    assert_eq!(renewed(&mut w), sessions[1..]);
    // The same where it was ordered.
    w.slurm.run(3, "bob", "climate", &["n1"]);
    let third = w.open(3).await.session;
    w.credentials("n1", third).await.unwrap();
    w.slurm.run(4, "bob", "climate", &["n1"]);
    let fourth = w.open(4).await.session;
    w.credentials("n1", fourth).await.unwrap();
    let revoking = tokio::spawn({
        let job = crate::store::Subject::Job(lab(), 3.try_into().unwrap());
        let vending = w.vending.clone();
        async move { vending.revoke(order(job)).await.unwrap() }
    });
    until(async || w.iam.calls.load(Ordering::SeqCst) != 1).await;
    assert_eq!(renewed(&mut w), [fourth]);
    drop(closed);
    sweeping.await.unwrap();
    assert!(revoking.await.unwrap().roles[0].in_force);
}

#[tokio::test]
async fn what_was_cut_off_is_done_again_and_nobody_is_forgotten() {
    let mut w = World::new();
    on_end(&w);
    let sessions = two_of_one_name(&w).await;
    w.slurm.gone(1);
    w.vending.leave(&node("n1"), sessions[0]).await.unwrap();
    let vending = w.vending.clone();
    // At once, and as soon as it is on record but nobody was told.
    for on_record in [false, true] {
        let mut work = Box::pin(vending.deny_ended_here());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            assert!(std::time::Instant::now() < deadline, "nothing is put on record");
            let ready = std::future::poll_fn(|context| std::task::Poll::Ready(work.as_mut().poll(context))).await;
            assert!(ready.is_pending());
            if !on_record || !w.store.list_revocations(T0).await.unwrap().is_empty() {
                break;
            }
        }
        drop(work);
        assert_eq!(renewed(&mut w), []);
    }
    vending.deny_ended_here().await.unwrap();
    assert_eq!(renewed(&mut w), sessions[1..]);
    vending.deny_ended_here().await.unwrap();
    assert_eq!(renewed(&mut w), [], "once");
}

#[tokio::test]
async fn what_ended_at_a_credvend_that_does_not_sweep_is_denied_by_the_one_that_does() {
    let w = World::new();
    on_end(&w);
    let other = w.replica();
    w.slurm.run(1, "bob", "genomics", &["n1"]);
    let session = w.open(1).await.session;
    w.credentials("n1", session).await.unwrap();
    w.vending.sweep().await.unwrap();
    w.slurm.gone(1);
    other.leave(&node("n1"), session).await.unwrap();
    w.vending.sweep().await.unwrap();
    assert_eq!(w.iam.denied("genomics"), [""; 0], "nobody looks at everything all the time");
    other.deny_ended_here().await.unwrap();
    w.vending.sweep().await.unwrap();
    assert_eq!(w.iam.denied("genomics"), ["AROAgenomics:lab-bob-n1"]);
}
