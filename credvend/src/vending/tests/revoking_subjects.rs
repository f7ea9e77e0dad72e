//! Whom a revocation is about, and whom it is not.

use std::collections::BTreeSet;

use credd_protocol::credentials_api_v1::{OpenSession, SessionStatus};
use credd_protocol::node_api::Event;
use credd_protocol::{JobId, SessionId};
use time::Duration;

use super::world::*;
use crate::clock::Clock as _;
use crate::refusal::Refusal;
use crate::store::{Denied, NewsKind, OrderId, Subject};
use crate::vending::revoking::{Ordered, RevocationReport};

pub fn order(subject: Subject) -> Ordered {
    let by = "root".into();
    Ordered { id: OrderId::random(), subject, clusters: None, by, why: None, wide: false, block: false }
}

pub fn user(name: &str) -> Subject {
    Subject::User(name.parse().unwrap())
}

fn job(id: u32) -> Subject {
    Subject::Job(lab(), JobId::try_from(id).unwrap())
}

async fn revoke(w: &World, subject: Subject) -> RevocationReport {
    w.vending.revoke(order(subject)).await.unwrap()
}

/// Sessions of these jobs, each with credentials on its nodes.
async fn running(w: &World, jobs: &[(u32, &str, &str, &[&str])]) -> Vec<SessionId> {
    let mut sessions = vec![];
    for (id, user, account, nodes) in jobs {
        w.slurm.run(*id, user, account, nodes);
        let session = w.try_open(nodes[0], *id).await.unwrap().session;
        for node in *nodes {
            w.credentials(node, session).await.unwrap();
        }
        sessions.push(session);
    }
    sessions
}

async fn active(w: &World, sessions: &[SessionId]) -> Vec<bool> {
    let mut active = vec![];
    for id in sessions {
        active.push(w.session(*id).await.status == SessionStatus::Active);
    }
    active
}

fn names(report: &RevocationReport) -> BTreeSet<String> {
    let name = |denied: &Denied| match denied {
        Denied::SourceIdentity(name) => format!("identity {name}"),
        Denied::UserId(id) => id.clone(),
        Denied::Everyone => "everyone".to_owned(),
    };
    report.roles.iter().flat_map(|role| role.denied.iter().map(name)).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn a_project_loses_its_sessions_and_no_other_does() {
    let w = World::new();
    let sessions = running(
        &w,
        &[(1, "bob", "genomics", &["n1"]), (2, "eve", "genomics", &["n2"]), (3, "bob", "climate", &["n1"])],
    )
    .await;
    let report = revoke(&w, Subject::Project("genomics".parse().unwrap())).await;
    assert_eq!(active(&w, &sessions).await, [false, false, true]);
    assert_eq!(names(&report), set(&["AROAgenomics:lab-bob-n1", "AROAgenomics:lab-eve-n2"]));
    assert!(report.complete() && report.nodes.concerned == 2 && report.nodes.dropped == 2, "{report:?}");
    assert_eq!(report.nodes.dropped_on[&lab()], "n[1-2]");
    let took = report.took;
    assert!(took.refuse_ms.is_some() && took.refuse_ms <= took.drop_ms && took.refuse_ms <= took.deny_ms, "{took:?}");
    // Case matters: the project is Climate.
    assert_eq!(revoke(&w, Subject::Project("climate".parse().unwrap())).await.sessions_total, 0);
    assert_eq!(revoke(&w, Subject::Project("Climate".parse().unwrap())).await.sessions_total, 1);
}

#[tokio::test]
async fn a_job_dies_alone_and_its_neighbour_of_the_same_name_gets_new_credentials() {
    let mut w = World::new();
    let sessions = running(
        &w,
        &[(1, "bob", "genomics", &["n1"]), (2, "bob", "genomics", &["n1"]), (3, "bob", "genomics", &["n2"])],
    )
    .await;
    let report = revoke(&w, job(1)).await;
    assert_eq!(active(&w, &sessions).await, [false, true, true]);
    assert_eq!(names(&report), set(&["AROAgenomics:lab-bob-n1"]));
    let [role] = &report.roles[..] else { panic!("{report:?}") };
    let [by] = &role.bystanders[..] else { panic!("{role:?}") };
    assert_eq!((by.session, by.active, by.job.map(JobId::get)), (sessions[1], true, Some(2)));
    let told: Vec<Event> = std::iter::from_fn(|| w.told()).collect();
    assert!(
        told.iter().any(|e| matches!(e, Event::Renew { sessions: told, .. } if told[..] == sessions[1..2])),
        "{told:?}"
    );
    // What was kept for it is gone: it asks AWS anew, as soon as that gives something that lives.
    let asked = w.assumed();
    assert_eq!(refused(w.credentials("n1", sessions[1]).await).0, "Unavailable");
    w.clock.advance(Duration::seconds(4));
    w.credentials("n1", sessions[1]).await.unwrap();
    assert_eq!(w.assumed(), asked + 2);
    // A requeue is a new run, and let in; the revoked run is not.
    assert_eq!(refused(w.try_open("n1", 1).await).0, "SessionEnded");
    w.slurm.change(1, |facts| facts.restart = 1);
    w.clock.advance(Duration::minutes(2));
    w.try_open("n1", 1).await.unwrap();
}

#[tokio::test]
async fn a_later_issue_under_the_same_name_outlives_an_older_jobs_revocation() {
    let w = World::new();
    let one = running(&w, &[(1, "bob", "genomics", &["n1"])]).await;
    w.clock.advance(Duration::minutes(10));
    let two = running(&w, &[(2, "bob", "genomics", &["n1"]), (3, "eve", "genomics", &["n1"])]).await;
    w.clock.advance(Duration::minutes(10));
    let report = revoke(&w, job(1)).await;
    assert_eq!((active(&w, &one).await, active(&w, &two).await), (vec![false], vec![true, true]));
    assert!(report.roles[0].bystanders.is_empty(), "{report:?}");
    let asked = w.assumed();
    w.credentials("n1", two[0]).await.unwrap();
    assert_eq!(w.assumed(), asked, "what it has lives on");
}

#[tokio::test]
async fn a_node_takes_every_session_that_has_it() {
    let w = World::new();
    let sessions = running(
        &w,
        &[(1, "bob", "genomics", &["n1", "n2"]), (2, "eve", "genomics", &["n2"]), (3, "eve", "climate", &["n1"])],
    )
    .await;
    let report = revoke(&w, Subject::Node(lab(), "n1".parse().unwrap())).await;
    assert_eq!(active(&w, &sessions).await, [false, true, false]);
    // The whole job is over: what it has elsewhere dies too.
    let expected = set(&["AROAgenomics:lab-bob-n1", "AROAgenomics:lab-bob-n2", "AROAclimate:lab-eve-n1"]);
    assert_eq!(names(&report), expected);
}

#[tokio::test]
async fn a_role_takes_the_projects_that_have_it_and_whoever_got_it() {
    let w = World::new();
    let sessions = running(
        &w,
        &[(1, "bob", "genomics", &["n1"]), (2, "eve", "climate", &["n1"]), (3, "eve", "genomics", &["n2"])],
    )
    .await;
    w.role("n2", sessions[2], "train", 0).await.unwrap();
    let report = revoke(&w, Subject::Role(arn("genomics-train"))).await;
    assert_eq!(active(&w, &sessions).await, [false, true, false], "all of the project may have it");
    assert_eq!(names(&report), set(&["AROAgenomics-train:lab-eve-n2"]), "but of that role alone");
    // Taken out of the map, it is still known who got it.
    let w = World::new();
    let sessions = running(&w, &[(1, "bob", "genomics", &["n1"]), (2, "eve", "genomics", &["n2"])]).await;
    w.role("n2", sessions[1], "train", 0).await.unwrap();
    let mut map = map();
    map.projects.values_mut().for_each(|roles| drop(roles.remove(&"train".parse().unwrap())));
    w.projects.replace(map);
    revoke(&w, Subject::Role(arn("genomics-train"))).await;
    assert_eq!(active(&w, &sessions).await, [true, false]);
}

#[tokio::test]
async fn source_identities_are_for_whole_users_only() {
    for (subject, clusters, expected) in [
        (user("bob"), None, set(&["AROAgenomics:lab-bob-n1", "identity bob"])),
        (user("bob"), Some(vec![lab()]), set(&["AROAgenomics:lab-bob-n1", "AROAgenomics-train:lab-bob-n1"])),
        (job(1), None, set(&["AROAgenomics:lab-bob-n1", "AROAgenomics-train:lab-bob-n1"])),
    ] {
        let w = World::new();
        let sessions = running(&w, &[(1, "bob", "genomics", &["n1"])]).await;
        w.role("n1", sessions[0], "train", 0).await.unwrap();
        let report = w.vending.revoke(Ordered { clusters, ..order(subject) }).await.unwrap();
        assert_eq!(names(&report), expected);
    }
}

#[tokio::test]
async fn wide_denies_the_role_and_names_who_is_hit() {
    let w = World::new();
    let sessions = running(&w, &[(1, "bob", "genomics", &["n1"]), (2, "eve", "genomics", &["n2"])]).await;
    let report = w.vending.revoke(Ordered { wide: true, ..order(user("bob")) }).await.unwrap();
    assert_eq!(names(&report), set(&["everyone"]));
    assert_eq!(active(&w, &sessions).await, [false, true]);
    let [by] = &report.roles[0].bystanders[..] else { panic!("{report:?}") };
    assert_eq!((by.user.as_str(), by.active), ("eve", true));
    assert_eq!(refused(w.credentials("n2", sessions[1]).await).0, "Unavailable", "what she had is dead");
    w.clock.advance(Duration::seconds(4));
    w.credentials("n2", sessions[1]).await.unwrap();
}

#[tokio::test]
async fn names_that_run_together_are_told_apart() {
    let w = World::new();
    let sessions = running(&w, &[(1, "a-b", "genomics", &["n1"]), (2, "a", "genomics", &["n1"])]).await;
    let report = revoke(&w, user("a-b")).await;
    assert_eq!(active(&w, &sessions).await, [false, true]);
    assert_eq!(names(&report), set(&["AROAgenomics:lab-a=2Db-n1"]));
    assert!(report.roles[0].bystanders.is_empty());
}

#[tokio::test]
async fn a_heads_job_is_a_job_too_and_a_head_revokes_on_its_own_cluster() {
    let w = World::new();
    let request: OpenSession = serde_json::from_value(serde_json::json!({
        "sessionId": "7", "projectId": "genomics", "clusterName": "lab", "clusterUser": "bob", "submittedTime": "2026"
    }))
    .unwrap();
    let opened = w.vending.open_for_head(&head(), &request).await.unwrap();
    assert_eq!(revoke(&w, job(7)).await.sessions, [opened.session]);
    let elsewhere = Ordered { clusters: Some(vec!["nowhere".parse().unwrap()]), ..order(user("bob")) };
    assert!(matches!(w.vending.revoke(elsewhere).await, Err(Refusal::UnknownCluster(_))));
}

#[tokio::test]
async fn a_rehearsal_says_the_same_and_changes_nothing() {
    let mut w = World::new();
    let sessions = running(&w, &[(1, "bob", "genomics", &["n1"]), (2, "bob", "genomics", &["n1"])]).await;
    let rehearsed = w.vending.rehearse(order(job(1))).await.unwrap();
    assert_eq!(active(&w, &sessions).await, [true, true]);
    assert!(w.told().is_none() && w.iam.calls.load(std::sync::atomic::Ordering::SeqCst) == 0);
    assert_eq!(w.store.list_orders(None).await.unwrap().items, []);
    let real = revoke(&w, job(1)).await;
    assert_eq!((&rehearsed.sessions, names(&rehearsed)), (&real.sessions, names(&real)));
    assert_eq!(rehearsed.roles[0].bystanders, real.roles[0].bystanders);
    assert!(rehearsed.dry_run && !rehearsed.roles[0].in_force && rehearsed.nodes.concerned == 1);
}

#[tokio::test]
async fn a_rehearsal_counts_the_nodes_of_jobs_that_have_just_ended() {
    let w = World::new();
    let sessions = running(&w, &[(1, "bob", "genomics", &["n1", "n2"])]).await;
    w.vending.close("root", sessions[0]).await.unwrap();
    let rehearsed = w.vending.rehearse(order(user("bob"))).await.unwrap();
    assert_eq!((rehearsed.nodes.concerned, revoke(&w, user("bob")).await.nodes.concerned), (2, 2));
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_named_with_its_time() {
    let w = World::new();
    let sessions = running(&w, &[(1, "bob", "genomics", &["n1", "n2"])]).await;
    w.deaf.lock().unwrap().insert("n2".parse().unwrap());
    let report = revoke(&w, user("bob")).await;
    let [node] = &report.nodes.unheard[..] else { panic!("{report:?}") };
    let expires = w.session(sessions[0]).await.opened + Duration::HOUR;
    assert_eq!((node.node.as_str(), node.may_serve_until), ("n2", expires));
    assert!(!report.complete() && report.not_denied.is_empty() && report.nodes.dropped == 1);
    assert_eq!((report.nodes.dropped_on[&lab()].as_str(), report.took.drop_ms), ("n1", None));
    assert_eq!(w.vending.revocation(report.id).await.unwrap().nodes.unheard[0].node, node.node, "and remembered");
}

#[tokio::test]
async fn an_order_that_a_killed_credvend_left_is_carried_out_by_another() {
    let mut w = World::new();
    let sessions = running(&w, &[(1, "bob", "genomics", &["n1"]), (2, "bob", "genomics", &["n2"])]).await;
    // It stored the order, ended one session, and died.
    let dead = crate::store::Order {
        id: OrderId::random(),
        subject: user("bob"),
        clusters: None,
        by: "root".into(),
        why: Some("lost laptop".into()),
        wide: false,
        at: w.session(sessions[1]).await.opened,
        done: None,
        report: None,
    };
    w.store.put_order(dead.clone()).await.unwrap();
    let why = format!("the credentials of user bob were revoked by root (revocation {})", dead.id);
    w.store.end(sessions[0], SessionStatus::Invalidated, dead.at, &why).await.unwrap();
    let (name, now) = (format!("order:{}", dead.id), w.clock.now());
    assert!(w.store.lease(&name, "the dead one/ordered", now, now + Duration::seconds(15)).await.unwrap());
    let other = w.replica();
    other.sweep().await.unwrap();
    assert_eq!(active(&w, &sessions).await, [false, true], "it might still be at work");
    w.clock.advance(Duration::seconds(15));
    other.sweep().await.unwrap();
    assert_eq!(active(&w, &sessions).await, [false, false]);
    let report = other.revocation(dead.id).await.unwrap();
    assert_eq!((report.sessions_total, &report.not_denied[..], &report.unfinished), (2, &[][..], &None), "{report:?}");
    assert_eq!(w.iam.denied("genomics"), ["AROAgenomics:lab-bob-n1", "AROAgenomics:lab-bob-n2"]);
    w.vending.events().look(&[lab()]).await.unwrap();
    let told: BTreeSet<SessionId> = std::iter::from_fn(|| w.told())
        .flat_map(|event| match event {
            Event::Invalidated { sessions, .. } => sessions,
            _ => vec![],
        })
        .collect();
    assert_eq!(told, sessions.iter().copied().collect(), "both are told");
    // It is done: nothing happens again.
    let calls = w.iam.calls.load(std::sync::atomic::Ordering::SeqCst);
    other.sweep().await.unwrap();
    assert_eq!(w.iam.calls.load(std::sync::atomic::Ordering::SeqCst), calls);
    assert!(w.store.news(&lab(), 0).await.unwrap().iter().all(|news| news.news.kind == NewsKind::Invalidated));
}

#[tokio::test]
async fn an_order_is_left_to_who_carries_it_out_and_the_same_id_is_the_same_order() {
    let w = World::new();
    running(&w, &[(1, "bob", "genomics", &["n1"])]).await;
    let iam = w.iam.gate.clone().write_owned().await;
    let ordered = order(user("bob"));
    let at_work = tokio::spawn({
        let (vending, ordered) = (w.vending.clone(), ordered.clone());
        async move { vending.revoke(ordered).await }
    });
    until(async || w.iam.calls.load(std::sync::atomic::Ordering::SeqCst) != 0).await;
    let other = w.replica();
    let again = other.revoke(ordered.clone()).await.unwrap();
    assert!(again.unfinished.is_some() && again.sessions_total == 1, "{again:?}");
    // A sweep of the same process leaves it to the request that carries it out: it would wait for IAM, too.
    let sweep = tokio::time::timeout(std::time::Duration::from_secs(10), w.vending.resume_orders());
    sweep.await.expect("nothing to wait for").unwrap();
    drop(iam);
    let report = at_work.await.unwrap().unwrap();
    assert!(report.complete(), "{report:?}");
    assert_eq!(w.store.list_orders(None).await.unwrap().items.len(), 1);
    assert_eq!(w.vending.revoke(ordered).await.unwrap().sessions, report.sessions);
}

/// It was listed as open, and then its request brought it to an end.
#[tokio::test]
async fn an_order_that_is_done_by_now_is_not_carried_out_again() {
    let w = World::new();
    running(&w, &[(1, "bob", "genomics", &["n1"])]).await;
    let report = revoke(&w, user("bob")).await;
    // Within the time for which an order that is taken up again allows.
    w.clock.advance(Duration::seconds(5));
    let later = running(&w, &[(2, "bob", "genomics", &["n1"])]).await;
    w.vending.resume(report.id).await.unwrap();
    assert_eq!(active(&w, &later).await, [true]);
    let order = w.store.get_order(report.id).await.unwrap().unwrap();
    assert!(order.done.is_some());
    let (name, now) = (format!("order:{}", report.id), w.clock.now());
    assert!(w.store.lease(&name, "another", now, now + Duration::SECOND).await.unwrap(), "it is given back");
}

#[tokio::test]
async fn a_session_whose_opening_was_under_way_is_ended_by_the_sweep() {
    let w = World::new();
    let sweeping = w.replica();
    // Whoever sweeps has swept before, and did not carry this out.
    sweeping.sweep().await.unwrap();
    w.slurm.run(1, "bob", "genomics", &["n1"]);
    w.clock.advance(Duration::SECOND);
    let report = revoke(&w, user("bob")).await;
    sweeping.sweep().await.unwrap();
    // Its time was taken before the order, its row came after.
    w.clock.advance(Duration::SECOND);
    let after = w.open(1).await.session;
    let mut late = w.session(after).await;
    late.id = SessionId::random();
    late.opened = report.at - Duration::milliseconds(5);
    let crate::store::Origin::Slurm(run) = &mut late.origin else { panic!() };
    run.restart = 9;
    w.slurm.change(1, |facts| facts.restart = 9);
    w.store.open(late.clone()).await.unwrap();
    sweeping.sweep().await.unwrap();
    let session = w.session(late.id).await;
    assert_eq!(session.status, SessionStatus::Invalidated);
    assert!(session.why.unwrap().contains("revoked by root"));
    let told: Vec<SessionId> =
        w.store.news(&lab(), 0).await.unwrap().into_iter().flat_map(|news| news.news.sessions).collect();
    assert_eq!(told, [late.id]);
}

/// As a replica opens it whose clock is so much ahead of this one's, and AWS'.
async fn opened_ahead(w: &World, id: u32, node: &str, ahead: Duration) -> SessionId {
    w.slurm.run(id, "bob", "genomics", &[node]);
    w.clock.advance(ahead);
    let session = w.try_open(node, id).await.unwrap().session;
    w.clock.advance(-ahead);
    w.credentials(node, session).await.unwrap();
    session
}

#[tokio::test]
async fn what_another_replica_opened_before_is_revoked_though_its_clock_is_ahead() {
    for subject in [user("bob"), job(1), Subject::Project("genomics".parse().unwrap()), Subject::Role(arn("genomics"))]
    {
        let w = World::new();
        let open = opened_ahead(&w, 1, "n1", Duration::seconds(6)).await;
        let rehearsed = w.vending.rehearse(order(subject.clone())).await.unwrap();
        w.clock.advance(Duration::SECOND);
        let report = revoke(&w, subject.clone()).await;
        assert_eq!(report.sessions, [open], "{subject:?}");
        assert_eq!(names(&report), set(&["AROAgenomics:lab-bob-n1"]), "{subject:?}");
        assert_eq!((rehearsed.sessions, rehearsed.roles.len()), (vec![open], 1));
        assert_eq!(refused(w.credentials("n1", open).await).0, "SessionEnded");
    }
    // One that was over before the order, and what it was given.
    let w = World::new();
    let over = opened_ahead(&w, 1, "n1", Duration::seconds(6)).await;
    w.store.end(over, SessionStatus::Completed, w.now(), "over").await.unwrap();
    w.clock.advance(Duration::SECOND);
    for subject in [job(1), user("bob")] {
        assert_eq!(names(&revoke(&w, subject).await), set(&["AROAgenomics:lab-bob-n1"]));
    }
}

#[tokio::test]
async fn an_order_taken_up_again_allows_for_clocks_but_leaves_later_jobs() {
    let w = World::new();
    let ahead = opened_ahead(&w, 1, "n1", Duration::seconds(6)).await;
    let left = crate::store::Order {
        id: OrderId::random(),
        subject: user("bob"),
        clusters: None,
        by: "root".into(),
        why: None,
        wide: false,
        at: w.now(),
        done: None,
        report: None,
    };
    w.store.put_order(left.clone()).await.unwrap();
    w.clock.advance(Duration::seconds(11));
    w.slurm.run(2, "bob", "genomics", &["n2"]);
    let later = w.try_open("n2", 2).await.unwrap().session;
    w.credentials("n2", later).await.unwrap();
    w.replica().sweep().await.unwrap();
    assert_eq!(active(&w, &[ahead, later]).await, [false, true]);
    assert_eq!(w.iam.denied("genomics"), ["AROAgenomics:lab-bob-n1"]);
}

#[tokio::test]
async fn more_sessions_than_are_read_at_a_time_are_all_found() {
    let w = World::new();
    let mut sessions = vec![];
    for id in 1..=150 {
        w.slurm.run(id, &format!("u{id}"), "genomics", &["n1"]);
        let session = w.open(id).await.session;
        w.role("n1", session, "train", 0).await.unwrap();
        sessions.push(session);
    }
    // Half of them are over; no listing of sessions shows the others, for no project has the role any more.
    for id in &sessions[75..] {
        w.store.end(*id, SessionStatus::Completed, w.now(), "over").await.unwrap();
    }
    let mut map = map();
    map.projects.values_mut().for_each(|roles| drop(roles.remove(&"train".parse().unwrap())));
    w.projects.replace(map);
    let report = revoke(&w, Subject::Role(arn("genomics-train"))).await;
    let ended: BTreeSet<SessionId> = report.sessions.iter().copied().collect();
    assert_eq!(ended, sessions[..75].iter().copied().collect());
    assert_eq!((report.roles[0].credentials, report.roles[0].denied_total), (150, 150));
}

#[tokio::test]
async fn what_has_expired_by_this_clock_alone_is_denied() {
    let w = World::new();
    running(&w, &[(1, "bob", "genomics", &["n1"])]).await;
    w.clock.advance(Duration::HOUR + Duration::minutes(4));
    assert_eq!(names(&revoke(&w, user("bob")).await), set(&["AROAgenomics:lab-bob-n1"]));
    assert_eq!(w.iam.denied("genomics"), ["AROAgenomics:lab-bob-n1"]);
    w.clock.advance(Duration::minutes(2));
    w.vending.sweep().await.unwrap();
    assert_eq!(w.iam.denied("genomics"), [""; 0]);
}

#[tokio::test]
async fn a_sweep_does_not_wait_for_orders_that_take_long_nor_they_for_one_another() {
    let w = World::new();
    running(&w, &[(1, "bob", "genomics", &["n1"]), (2, "eve", "climate", &["n1"])]).await;
    for name in ["bob", "eve"] {
        let order = Ordered { why: Some("left".into()), ..order(user(name)) };
        let left = crate::store::Order {
            id: order.id,
            subject: order.subject,
            clusters: None,
            by: order.by,
            why: order.why,
            wide: false,
            at: w.now(),
            done: None,
            report: None,
        };
        w.store.put_order(left).await.unwrap();
    }
    let iam = w.iam.gate.clone().write_owned().await;
    let other = w.replica();
    other.sweep().await.unwrap();
    assert_eq!(w.store.open_orders().await.unwrap().len(), 2, "they go on");
    assert!(w.iam.calls.load(std::sync::atomic::Ordering::SeqCst) >= 2, "both at once");
    drop(iam);
    let all_done = async {
        until(async || w.store.open_orders().await.unwrap().is_empty()).await;
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), all_done).await.expect("carried out");
    assert_eq!((w.iam.denied("genomics").len(), w.iam.denied("climate").len()), (1, 1));
}
