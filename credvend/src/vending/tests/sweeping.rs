use std::sync::atomic::Ordering;

use credd_protocol::Uid;
use credd_protocol::credentials_api_v1::SessionStatus;
use time::Duration;

use super::world::*;
use crate::attest::JobState;

#[tokio::test]
async fn an_idle_service_asks_nobody() {
    let w = World::new();
    assert_eq!(w.vending.sweep().await.unwrap(), 0);
    assert_eq!(w.slurm.asked_all.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn what_slurm_no_longer_has_is_completed() {
    let w = World::new();
    let mut sessions = vec![];
    for id in 1..=7 {
        w.slurm.run(id, "alice", "genomics", &["n1"]);
        sessions.push(w.open(id).await.session);
    }
    assert_eq!(w.vending.sweep().await.unwrap(), 0);
    w.slurm.gone(1);
    w.slurm.change(2, |f| f.state = JobState::Over);
    w.slurm.change(3, |f| f.restart = 1);
    w.slurm.change(4, |f| f.state = JobState::Pending);
    w.slurm.change(5, |f| f.uid = Uid(4));
    w.slurm.change(6, |f| f.state = JobState::Completing);
    // One complete answer lacks job 7, the question about it alone does not.
    w.slurm.unlisted.lock().unwrap().insert(7.try_into().unwrap());
    assert_eq!(w.vending.sweep().await.unwrap(), 5);
    let why = async |i: usize| w.session(sessions[i]).await.why.unwrap_or_default();
    assert!(why(0).await.contains("no longer knows"));
    assert!(why(1).await.contains("over"));
    assert!(why(2).await.contains("restart 1"));
    assert!(why(3).await.contains("waiting"));
    assert!(why(4).await.contains("another job"));
    for i in [5, 6] {
        assert_eq!(w.session(sessions[i]).await.status, SessionStatus::Active);
    }
    assert_eq!(w.vending.sweep().await.unwrap(), 0);
}

#[tokio::test]
async fn a_job_id_that_slurm_gives_again_is_another_session() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    w.slurm.run(8, "alice", "genomics", &["n1"]);
    let (seven, eight) = (w.open(7).await.session, w.open(8).await.session);
    for id in [7, 8] {
        w.slurm.change(id, |f| f.submitted += Duration::minutes(30));
    }
    // The old session is nobody's any more, although user, uid, account, node and restart count are the same …
    w.clock.advance(Duration::minutes(2));
    let (code, _, why) = refused(w.credentials("n1", seven).await);
    assert!(code == "JobNotRunning" && why.contains("submitted at"), "{why}");
    // … the new job has its own at once, and the old one is over then …
    let again = w.open(7).await.session;
    assert_ne!(seven, again);
    w.credentials("n1", again).await.unwrap();
    let old = w.session(seven).await;
    assert_eq!(old.status, SessionStatus::Completed);
    assert!(old.why.unwrap().contains("another job under this number"));
    // … or when the sweep, or the old job's leave, finds it.
    w.vending.leave(&node("n1"), seven).await.unwrap();
    assert_eq!(w.session(again).await.status, SessionStatus::Active);
    w.vending.leave(&node("n1"), eight).await.unwrap();
    assert_eq!(w.session(eight).await.status, SessionStatus::Completed);
    let eight = w.open(8).await.session;
    w.slurm.change(8, |f| f.submitted += Duration::minutes(5));
    assert_eq!(w.vending.sweep().await.unwrap(), 1);
    assert_eq!(w.session(eight).await.status, SessionStatus::Completed);
    assert_eq!(w.session(again).await.status, SessionStatus::Active);
}

#[tokio::test]
async fn a_requeued_job_ends_its_earlier_run_when_it_opens() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let first = w.open(7).await.session;
    w.slurm.change(7, |f| (f.restart, f.submitted) = (1, f.submitted + Duration::MINUTE));
    let second = w.open(7).await.session;
    assert_ne!(first, second);
    assert!(w.session(first).await.why.unwrap().contains("restart 1"));
    // An answer about the first run that came late opens nothing that ends the second.
    w.slurm.change(7, |f| (f.restart, f.submitted) = (0, f.submitted - Duration::hours(2)));
    w.open(7).await;
    assert_eq!(w.session(second).await.status, SessionStatus::Active);
}

#[tokio::test]
async fn a_slurm_that_does_not_answer_closes_nothing() {
    let w = World::new();
    w.slurm.run(1, "alice", "genomics", &["n1"]);
    let session = w.open(1).await.session;
    w.slurm.gone(1);
    w.slurm.silent();
    let (code, retry, _) = refused(w.vending.sweep().await);
    assert_eq!((code, retry), ("Unavailable", true));
    assert_eq!(w.session(session).await.status, SessionStatus::Active);
    w.slurm.back();
    assert_eq!(w.vending.sweep().await.unwrap(), 1);
}

#[tokio::test]
async fn one_end_that_fails_keeps_no_other_from_being_told() {
    let w = World::new();
    for id in 1..=40 {
        w.slurm.run(id, "alice", "genomics", &["n1"]);
        w.open(id).await;
        w.slurm.gone(id);
    }
    w.sql(
        "CREATE TRIGGER broken BEFORE UPDATE ON sessions WHEN NEW.job % 2 = 1
         BEGIN SELECT RAISE(ABORT, 'broken'); END",
    );
    assert!(w.vending.sweep().await.is_err());
    w.sql("DROP TRIGGER broken");
    let over = crate::store::SessionFilter { status: Some(SessionStatus::Completed), ..Default::default() };
    let ended = w.store.list(&over, None).await.unwrap().items.len();
    assert_eq!(ended, 20);
    assert_eq!(w.audited().matches("session-ended").count(), ended);
}

#[tokio::test]
async fn only_who_sweeps_tells_what_the_sweep_saw() {
    use crate::store::{Order, OrderId, Subject};
    let w = World::new();
    w.slurm.run(1, "alice", "genomics", &["n1"]);
    let session = w.open(1).await.session;
    w.credentials("n1", session).await.unwrap();
    let iam_is_down = crate::deny::DenyError::Unavailable("down".into());
    *w.iam.error.lock().unwrap() = Some(iam_is_down);
    let denial = crate::store::Revocation {
        role_arn: arn("genomics"),
        whose: crate::store::Denied::Everyone,
        issued_before: w.now(),
        until: w.now() + Duration::HOUR,
        ordered: true,
    };
    w.store.record_revocation(denial).await.unwrap();
    let order = Order {
        id: OrderId::random(),
        subject: Subject::User("bob".parse().unwrap()),
        clusters: None,
        by: "root".into(),
        why: None,
        wide: false,
        at: w.now(),
        done: None,
        report: None,
    };
    w.vending.sweep().await.unwrap();
    w.store.put_order(order).await.unwrap();
    w.vending.count_revocations().await.unwrap();
    let says = |what: &str| w.vending.metrics().text().lines().any(|line| line == what);
    let open = "credvend_sessions_open{cluster=\"lab\"} 1";
    assert!(says(open) && says("credvend_deny_policies_behind 1") && says("credvend_revocations_open 1"));
    // From now on another one sweeps.
    w.vending.count_beside_the_sweep().await.unwrap();
    assert!(!says(open) && says("credvend_deny_policies_behind 0") && says("credvend_revocations_open 1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_a_page_is_swept() {
    let w = std::sync::Arc::new(World::new());
    let mut callers = tokio::task::JoinSet::new();
    for id in 1..=600 {
        w.slurm.run(id, "alice", "genomics", &["n1"]);
        let w = w.clone();
        callers.spawn(async move { w.open(id).await });
    }
    callers.join_all().await;
    for id in 1..=598 {
        w.slurm.gone(id);
    }
    assert_eq!(w.vending.sweep().await.unwrap(), 598);
    let open = crate::store::SessionFilter { status: Some(SessionStatus::Active), ..Default::default() };
    assert_eq!(w.store.list(&open, None).await.unwrap().items.len(), 2);
}

#[tokio::test]
async fn old_rows_go_after_ninety_days() {
    let w = World::new();
    w.slurm.run(1, "alice", "genomics", &["n1"]);
    let session = w.open(1).await.session;
    w.slurm.gone(1);
    w.vending.sweep().await.unwrap();
    w.clock.advance(Duration::days(89));
    w.vending.sweep().await.unwrap();
    assert!(w.store.get(session).await.unwrap().is_some());
    w.clock.advance(Duration::days(2));
    w.vending.sweep().await.unwrap();
    assert!(w.store.get(session).await.unwrap().is_none());
}
