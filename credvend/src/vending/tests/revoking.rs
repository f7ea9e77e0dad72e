use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use credd_protocol::SessionId;
use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::node_api::Event;
use time::Duration;

use super::world::*;
use crate::clock::Clock as _;
use crate::deny::DenyError;
use crate::store::SessionFilter;
use crate::vending::revoking::RevocationReport;

#[tokio::test]
async fn exactly_that_user_loses_everything() {
    let mut w = World::new();
    for (id, user, account) in
        [(1, "bob", "genomics"), (2, "bob", "climate"), (3, "bobby", "genomics"), (4, "bob", "genomics")]
    {
        w.slurm.run(id, user, account, &["n1", "n2"]);
    }
    let mut sessions = vec![];
    for id in 1..=4 {
        let session = w.open(id).await.session;
        w.credentials("n1", session).await.unwrap();
        sessions.push(session);
    }
    w.credentials("n2", sessions[3]).await.unwrap();
    // Job 4 has ended; what it was issued lives on.
    w.slurm.gone(4);
    w.vending.leave(&node("n1"), sessions[3]).await.unwrap();

    let report = w.vending.invalidate_user("root", None, &"bob".parse().unwrap()).await.unwrap();
    let mut ended = report.sessions.clone();
    ended.sort();
    let mut expected = sessions[..2].to_vec();
    expected.sort();
    assert_eq!(ended, expected);
    assert_eq!(report.not_denied, [""; 0]);
    assert_eq!(denied(&report), 3, "{report:?}");
    assert!(report.complete() && report.roles.iter().all(|role| role.in_force && role.bystanders.is_empty()));
    assert_eq!(w.iam.denied("genomics"), ["AROAgenomics:lab-bob-n1", "AROAgenomics:lab-bob-n2"]);
    assert_eq!(w.iam.denied("climate"), ["AROAclimate:lab-bob-n1"]);
    let (code, retry, why) = refused(w.credentials("n1", sessions[0]).await);
    assert!(code == "SessionEnded" && !retry && why.contains("revoked by root"), "{why}");
    w.credentials("n1", sessions[2]).await.expect("bobby is not bob");
    let mut told: Vec<_> = std::iter::from_fn(|| w.told())
        .flat_map(|event| match event {
            Event::Invalidated { sessions, .. } => sessions,
            other => panic!("{other:?}"),
        })
        .collect();
    told.sort();
    told.dedup();
    // Slurm may have forgotten the job that ended while its processes go on: its nodes hear of it, and are waited for.
    let news = w.store.news(&lab(), 0).await.unwrap();
    let [first, asking] = &news[..] else { panic!("{news:?}") };
    let sorted = |mut sessions: Vec<SessionId>| {
        sessions.sort();
        sessions
    };
    assert_eq!(sorted(first.news.sessions.clone()), expected, "before anything else is looked up");
    assert_eq!(first.news.nodes, [] as [credd_protocol::NodeName; 0]);
    assert!(asking.news.sessions.len() == 2 && asking.news.sessions.contains(&sessions[3]), "{asking:?}");
    assert_eq!(asking.news.nodes, ["n1", "n2"].map(|name| name.parse().unwrap()));
    expected.push(sessions[3]);
    assert_eq!(told, sorted(expected));
    assert_eq!(report.nodes.concerned, 2);

    // The running job stays refused, for good; a new one is let in.
    let (code, retry, _) = refused(w.try_open("n1", 1).await);
    assert_eq!((code, retry), ("SessionEnded", false));
    w.slurm.run(5, "bob", "genomics", &["n1"]);
    let later = w.open(5).await.session;
    let (code, retry, why) = refused(w.credentials("n1", later).await);
    assert!(code == "Unavailable" && retry && why.contains("ask again"), "the Deny would hit these too: {why}");
    // Two seconds past the last of what was revoked, and one in which AWS' rounding leaves doubt.
    w.clock.advance(Duration::seconds(2));
    assert_eq!(refused(w.credentials("n1", later).await).0, "Unavailable");
    w.clock.advance(Duration::seconds(2));
    let got = w.credentials("n1", later).await.unwrap();
    let entry = w.iam.policies.lock().unwrap()[&arn("genomics")][0].clone();
    assert!(got.issued > entry.issued_before, "issued after what the Deny names");
    // Nobody of that name.
    let none = w.vending.invalidate_user("root", None, &"bobby2".parse().unwrap()).await.unwrap();
    assert_eq!((none.sessions_total, none.roles.len(), none.complete()), (0, 0, true));
}

/// How many names a report says are denied.
fn denied(report: &RevocationReport) -> usize {
    report.roles.iter().filter(|role| role.in_force).map(|role| role.denied_total).sum()
}

#[tokio::test]
async fn what_a_revocation_overtook_is_not_served() {
    let w = Arc::new(World::new());
    w.slurm.run(1, "bob", "genomics", &["n1"]);
    let old = w.open(1).await.session;
    w.credentials("n1", old).await.unwrap();
    w.vending.close("root", old).await.unwrap();
    // A new job of bob's on the same node asks AWS while bob's old credentials are being revoked.
    w.slurm.run(2, "bob", "genomics", &["n1"]);
    let new = w.open(2).await.session;
    let closed = w.sts.gate.clone().write_owned().await;
    let caller = tokio::spawn({
        let w = w.clone();
        async move { w.credentials("n1", new).await }
    });
    w.sts.calls.subscribe().wait_for(|n| *n == 2).await.unwrap();
    let until = w
        .store
        .list_issuances(&crate::store::IssuedTo::Session(old), crate::store::conformance::T0, None)
        .await
        .unwrap()
        .items[0]
        .expires;
    let revocation = crate::store::Revocation {
        role_arn: arn("genomics"),
        whose: crate::store::Denied::UserId("AROAgenomics:lab-bob-n1".into()),
        issued_before: crate::store::conformance::T0 + Duration::seconds(5),
        until,
        ordered: true,
    };
    w.store.record_revocation(revocation).await.unwrap();
    drop(closed);
    let (code, retry, why) = refused(caller.await.unwrap());
    assert!(code == "Unavailable" && retry && why.contains("ask again"), "{why}");
    w.clock.advance(Duration::seconds(9));
    assert_eq!(w.credentials("n1", new).await.unwrap().credentials.access_key_id, "ASIA3");
}

#[tokio::test]
async fn a_head_revokes_on_its_clusters_only() {
    let w = World::new();
    w.slurm.run(1, "bob", "genomics", &["n1"]);
    let session = w.open(1).await.session;
    w.credentials("n1", session).await.unwrap();
    let bob = "bob".parse().unwrap();
    let none = w.vending.invalidate_user("head", Some(&["hpc".parse().unwrap()]), &bob).await.unwrap();
    assert_eq!((none.sessions_total, none.roles.len()), (0, 0));
    assert_eq!(w.session(session).await.status, SessionStatus::Active);
    let all = w.vending.invalidate_user("head", Some(&[lab()]), &bob).await.unwrap();
    assert_eq!((all.sessions.len(), denied(&all)), (1, 1));
}

#[tokio::test]
async fn what_aws_does_not_take_is_reported_and_tried_again() {
    let w = World::new();
    w.slurm.run(1, "bob", "genomics", &["n1"]);
    let session = w.open(1).await.session;
    w.credentials("n1", session).await.unwrap();
    *w.iam.error.lock().unwrap() = Some(DenyError::Refused("iam:PutRolePolicy is missing".into()));
    let report = w.vending.invalidate_user("root", None, &"bob".parse().unwrap()).await.unwrap();
    assert_eq!((report.sessions.len(), denied(&report)), (1, 0));
    assert!(report.not_denied[0].contains("role/genomics") && report.not_denied[0].contains("iam:PutRolePolicy"));
    let calls = w.iam.calls.load(Ordering::SeqCst);
    w.vending.sweep().await.unwrap();
    assert_eq!(w.iam.calls.load(Ordering::SeqCst), calls, "not before the pause is over");
    *w.iam.error.lock().unwrap() = None;
    w.clock.advance(Duration::seconds(9));
    w.vending.sweep().await.unwrap();
    assert_eq!(w.iam.denied("genomics"), ["AROAgenomics:lab-bob-n1"]);
    w.vending.sweep().await.unwrap();
    assert_eq!(w.iam.calls.load(Ordering::SeqCst), calls + 1, "in line is in line");
    // What has expired by itself needs no Deny, but AWS' clock may be behind.
    w.clock.advance(Duration::HOUR);
    w.vending.sweep().await.unwrap();
    assert_eq!(w.iam.denied("genomics"), ["AROAgenomics:lab-bob-n1"]);
    let calls = w.iam.calls.load(Ordering::SeqCst) - 1;
    w.clock.advance(Duration::minutes(5));
    w.vending.sweep().await.unwrap();
    assert_eq!(w.iam.denied("genomics"), [""; 0]);
    w.vending.sweep().await.unwrap();
    assert_eq!(w.iam.calls.load(Ordering::SeqCst), calls + 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_opened_meanwhile_are_ended_too() {
    let w = Arc::new(World::new());
    let stop = Arc::new(AtomicBool::new(false));
    let opener = tokio::spawn({
        let (w, stop) = (w.clone(), stop.clone());
        async move {
            for id in 1..=400 {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                w.slurm.run(id, "bob", "genomics", &["n1"]);
                w.open(id).await;
            }
        }
    });
    let bob: credd_protocol::UserName = "bob".parse().unwrap();
    let _ = w.vending.invalidate_user("root", None, &bob).await;
    stop.store(true, Ordering::SeqCst);
    opener.await.unwrap();
    let report = w.vending.invalidate_user("root", None, &bob).await.unwrap();
    assert!(report.not_denied.is_empty());
    let open = SessionFilter { status: Some(SessionStatus::Active), user: Some(bob), ..Default::default() };
    assert!(w.store.list(&open, None).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn an_end_that_a_killed_credvend_left_untold_is_told_by_the_next_one_and_only_once() {
    let mut w = World::new();
    let mut sessions = vec![];
    for id in 1..=3 {
        w.slurm.run(id, "bob", "genomics", &["n1"]);
        sessions.push(w.open(id).await.session);
    }
    w.vending.close("uid 0", sessions[0]).await.unwrap();
    w.told().expect("told at once");
    // Killed between the store and the news; and one that was over by itself, which nobody is told of.
    w.store.end(sessions[1], SessionStatus::Invalidated, w.clock.now(), "closed by uid 0").await.unwrap();
    w.store.end(sessions[2], SessionStatus::Completed, w.clock.now(), "over").await.unwrap();
    assert_eq!(w.vending.tell_untold().await.unwrap(), 1);
    let told = w.told();
    assert!(
        matches!(&told, Some(Event::Invalidated { sessions: told, reason, .. })
            if *told == sessions[1..2] && reason == "closed by uid 0"),
        "{told:?}"
    );
    assert_eq!((w.vending.tell_untold().await.unwrap(), w.told()), (0, None));
    // Nobody can hold credentials of it any more.
    w.clock.advance(Duration::hours(13));
    w.store.prune(w.clock.now()).await.unwrap();
    assert_eq!(w.vending.tell_untold().await.unwrap(), 0);
}

#[tokio::test]
async fn an_administrator_closes_one_session() {
    let mut w = World::new();
    w.slurm.run(1, "bob", "genomics", &["n1"]);
    let session = w.open(1).await.session;
    w.vending.close("uid 0", session).await.unwrap();
    assert!(w.told().is_some() && w.told().is_none(), "told once");
    // Who says it again may not have had the answer, nor the nodes the news.
    w.vending.close("uid 0", session).await.unwrap();
    assert!(w.told().is_some() && w.told().is_none(), "and once more");
    assert_eq!(w.session(session).await.why.as_deref(), Some("closed by uid 0"));
    let unknown = w.vending.close("uid 0", credd_protocol::SessionId::random()).await;
    assert_eq!(refused(unknown).0, "UnknownSession");
}

/// The upstream denies the roles of bob's sessions that are open there: not those of what he ran long ago.
#[tokio::test]
async fn a_pattern_hits_others_only_in_projects_where_the_user_may_have_credentials() {
    let w = World::new();
    w.sts.upstream.store(true, Ordering::SeqCst);
    let run = async |id: u32, user: &str, account: &str| {
        w.slurm.run(id, user, account, &["n1"]);
        let session = w.open(id).await.session;
        w.credentials("n1", session).await.unwrap();
        session
    };
    let complete = async |id: u32, session| {
        w.slurm.gone(id);
        w.vending.leave(&node("n1"), session).await.unwrap();
        assert_eq!(w.session(session).await.status, SessionStatus::Completed);
    };
    let past = run(1, "bob", "climate").await;
    complete(1, past).await;
    run(2, "bob", "genomics").await;
    // Session 2 is idle: it is open, and nothing that it was given lives.
    w.clock.advance(Duration::hours(13));
    let bobbys = [run(3, "bobby", "genomics").await, run(4, "bobby", "climate").await];
    let revoked = async || {
        let report = w.vending.invalidate_user("root", None, &"bob".parse().unwrap()).await.unwrap();
        report.upstream_hit.iter().map(|by| by.session).collect::<Vec<_>>()
    };
    assert_eq!(revoked().await, bobbys[..1], "of Climate nothing that bob was given lives");
    let lately = run(5, "bob", "climate").await;
    complete(5, lately).await;
    assert_eq!(revoked().await, bobbys, "what a COMPLETED session was given may live");
}
