//! Who is kept out, and let in again.

use time::Duration;

use super::revoking_subjects::{order, user};
use super::world::*;
use crate::store::Subject;
use crate::vending::revoking::Ordered;

#[tokio::test]
async fn a_blocked_user_opens_nothing_until_unblocked() {
    let w = World::new();
    w.slurm.run(1, "bob", "genomics", &["n1"]);
    w.open(1).await;
    let other = w.replica();
    let report = w.vending.revoke(Ordered { block: true, ..order(user("bob")) }).await.unwrap();
    assert!(report.blocked);
    w.slurm.run(2, "bob", "genomics", &["n1"]);
    let (code, retry, why) = refused(w.try_open("n1", 2).await);
    assert!(code == "Blocked" && retry && why.contains("user bob") && why.contains("unblock"), "{why}");
    w.slurm.run(3, "bobby", "genomics", &["n1"]);
    w.open(3).await;
    // Another replica learns of the end of it within a second.
    let at_other = async || other.open_for_node(&node("n1"), &w.record(2)).await;
    assert_eq!(refused(at_other().await).0, "Blocked");
    assert!(w.vending.unblock("root", &user("bob")).await.unwrap());
    assert!(!w.vending.unblock("root", &user("bob")).await.unwrap());
    w.open(2).await;
    assert_eq!(refused(at_other().await).0, "Blocked");
    w.clock.advance(Duration::seconds(2));
    at_other().await.unwrap();
}

#[tokio::test]
async fn running_jobs_that_are_not_revoked_get_nothing_either() {
    let role = Subject::Role(arn("genomics"));
    for subject in [user("bob"), Subject::Project("genomics".parse().unwrap()), role.clone()] {
        let w = World::new();
        w.slurm.run(1, "bob", "genomics", &["n1"]);
        let session = w.open(1).await.session;
        w.credentials("n1", session).await.unwrap();
        w.vending.revoke(Ordered { block: true, ..order(user("nobody")) }).await.unwrap();
        w.credentials("n1", session).await.expect("somebody else is blocked");
        let block = crate::store::Block {
            subject: subject.clone(),
            by: "root".into(),
            why: Some("a leak".into()),
            at: crate::store::conformance::T0,
        };
        w.vending.block(block).await.unwrap();
        let (code, retry, why) = refused(w.credentials("n1", session).await);
        assert!(code == "Blocked" && retry && why.contains("a leak"), "{subject:?}: {why}");
        w.vending.unblock("root", &subject).await.unwrap();
        w.credentials("n1", session).await.unwrap();
    }
}

#[tokio::test]
async fn a_blocked_node_serves_nobody_and_others_do() {
    let w = World::new();
    w.slurm.run(1, "bob", "genomics", &["n1", "n2"]);
    let n1 = Subject::Node(lab(), "n1".parse().unwrap());
    w.vending.revoke(Ordered { block: true, ..order(n1) }).await.unwrap();
    assert_eq!(refused(w.try_open("n1", 1).await).0, "Blocked");
    let session = w.try_open("n2", 1).await.unwrap().session;
    w.credentials("n2", session).await.unwrap();
    assert_eq!(refused(w.credentials("n1", session).await).0, "Blocked");
}

#[tokio::test]
async fn a_block_holds_everywhere_and_not_for_jobs() {
    let w = World::new();
    let job = Subject::Job(lab(), 7u32.try_into().unwrap());
    let asked = Ordered { block: true, ..order(job) };
    assert_eq!(refused(w.vending.revoke(asked).await).0, "BadRequest");
    let asked = Ordered { block: true, clusters: Some(vec![lab()]), ..order(user("bob")) };
    assert_eq!(refused(w.vending.revoke(asked).await).0, "BadRequest");
    assert_eq!(w.store.list_blocks().await.unwrap(), []);
}
