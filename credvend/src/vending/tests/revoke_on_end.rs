//! Roles whose credentials die with their job.

use std::sync::atomic::Ordering;

use credd_protocol::node_api::Event;
use time::Duration;

use super::world::*;

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
        .end(session, credd_protocol::seed_api::SessionStatus::Completed, crate::store::conformance::T0, "over")
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
    assert_eq!(w.session(session).await.status, credd_protocol::seed_api::SessionStatus::Completed);
    assert_eq!(w.iam.calls.load(Ordering::SeqCst), 0);
}
