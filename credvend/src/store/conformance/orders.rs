//! The promises about revocations, news and leases.

use std::collections::BTreeSet;
use std::sync::Arc;

use time::Duration;
use tokio::task::JoinSet;

use super::{T0, issued_for, of_job};
use crate::store::*;

fn order(subject: Subject, at: OffsetDateTime) -> Order {
    Order {
        id: OrderId::random(),
        subject,
        clusters: None,
        by: "admin root".into(),
        why: Some("a leak".into()),
        wide: false,
        at,
        done: None,
        report: None,
    }
}

fn news(reason: &str) -> News {
    News {
        kind: NewsKind::Invalidated,
        sessions: vec![SessionId::random()],
        reason: reason.into(),
        order: Some(OrderId::random()),
        nodes: vec!["n1".parse().unwrap(), "n2".parse().unwrap()],
        completed: vec![],
    }
}

fn bob() -> Subject {
    Subject::User("bob".parse().unwrap())
}

pub(super) async fn an_order_is_open_until_it_is_done(store: &dyn Store) {
    let node = Subject::Node("lab".parse().unwrap(), "n1".parse().unwrap());
    let mut first = Order { clusters: Some(vec!["lab".parse().unwrap()]), ..order(node, T0) };
    let second = Order { wide: true, why: None, ..order(bob(), T0 + Duration::SECOND) };
    for one in [&second, &first] {
        store.put_order(one.clone()).await.unwrap();
        assert_eq!(store.get_order(one.id).await.unwrap().as_ref(), Some(one));
    }
    assert_eq!(store.open_orders().await.unwrap(), [first.clone(), second.clone()]);
    first.done = Some(T0 + Duration::MINUTE);
    first.report = Some("{\"sessions\":[]}".repeat(10_000));
    store.put_order(first.clone()).await.unwrap();
    store.put_order(first.clone()).await.unwrap();
    assert_eq!(store.open_orders().await.unwrap(), std::slice::from_ref(&second));
    assert_eq!(store.list_orders(None).await.unwrap().items, [second.clone(), first.clone()], "newest first");
    assert_eq!(store.get_order(OrderId::random()).await.unwrap(), None);
    for (since, expected) in
        [(T0 - Duration::DAY, 2), (T0, 2), (T0 + Duration::MICROSECOND, 1), (second.at, 1), (first.done.unwrap(), 0)]
    {
        let both = [second.clone(), first.clone()];
        assert_eq!(store.orders_since(since).await.unwrap(), both[..expected], "since {since}");
    }

    store.note_heard(first.id, "a", &"lab".parse().unwrap(), &["n1".parse().unwrap()]).await.unwrap();
    assert_eq!(store.prune(T0 + Duration::MINUTE).await.unwrap(), 0);
    assert!(store.prune(T0 + Duration::DAY).await.unwrap() >= 1);
    assert_eq!(store.list_orders(None).await.unwrap().items, [second], "what is not done is never pruned");
    assert_eq!(store.heard(first.id).await.unwrap(), []);
}

pub(super) async fn orders_page(store: Arc<dyn Store>) {
    let count = PAGE + 3;
    let mut callers = JoinSet::new();
    for i in 0..count {
        let (store, one) = (store.clone(), order(bob(), T0 + Duration::seconds(i as i64 / 3)));
        callers.spawn(async move { store.put_order(one).await.unwrap() });
    }
    while let Some(put) = callers.join_next().await {
        put.unwrap();
    }
    let (mut all, mut from) = (vec![], None);
    loop {
        let page = store.list_orders(from.as_ref()).await.unwrap();
        all.extend(page.items);
        match page.next {
            Some(next) => from = Some(next),
            None => break,
        }
    }
    assert_eq!(all.iter().map(|o| o.id).collect::<BTreeSet<_>>().len(), count);
    assert!(all.len() == count && all.windows(2).all(|w| w[0].at >= w[1].at));
    assert_eq!(store.open_orders().await.unwrap().len(), count);
    assert_eq!(store.orders_since(T0).await.unwrap(), all[..PAGE]);
}

pub(super) async fn a_subject_is_blocked_until_it_is_let_in(store: &dyn Store) {
    let of_lab = Subject::Node("lab".parse().unwrap(), "n1".parse().unwrap());
    let of_hpc = Subject::Node("hpc".parse().unwrap(), "n1".parse().unwrap());
    let block = |subject: &Subject, by: &str| Block { subject: subject.clone(), by: by.into(), why: None, at: T0 };
    for one in [block(&bob(), "first"), block(&of_lab, "x"), block(&bob(), "second")] {
        store.put_block(one).await.unwrap();
    }
    let sorted = |mut list: Vec<Block>| {
        list.sort_by(|a, b| a.subject.cmp(&b.subject));
        list
    };
    assert_eq!(sorted(store.list_blocks().await.unwrap()), [block(&bob(), "second"), block(&of_lab, "x")]);
    assert!(!store.remove_block(&of_hpc).await.unwrap());
    assert!(!store.remove_block(&Subject::User("bobby".parse().unwrap())).await.unwrap());
    store.prune(T0 + Duration::days(1000)).await.unwrap();
    assert!(store.remove_block(&bob()).await.unwrap());
    assert!(!store.remove_block(&bob()).await.unwrap());
    assert_eq!(store.list_blocks().await.unwrap(), [block(&of_lab, "x")]);
}

pub(super) async fn news_is_numbered_without_gaps(store: Arc<dyn Store>) {
    let (lab, hpc) = ("lab".parse().unwrap(), "hpc".parse().unwrap());
    assert_eq!(store.newest_news(&lab).await.unwrap(), 0);
    assert_eq!(store.news(&lab, 0).await.unwrap(), []);
    let other = news("another cluster's");
    assert_eq!(store.publish(&hpc, other.clone(), T0).await.unwrap(), 1);
    let mut callers = JoinSet::new();
    for i in 0..40 {
        let store = store.clone();
        callers.spawn(async move {
            let one = news(&format!("{i}"));
            (store.publish(&"lab".parse().unwrap(), one.clone(), T0).await.unwrap(), one)
        });
    }
    let mut published: Vec<(u64, News)> = callers.join_all().await;
    published.sort_by_key(|(seq, _)| *seq);
    let read = store.news(&lab, 0).await.unwrap();
    assert_eq!(read.iter().map(|n| n.seq).collect::<Vec<_>>(), (1..=40).collect::<Vec<_>>());
    assert!(
        read.iter().zip(&published).all(|(read, (seq, news))| read.seq == *seq && read.news == *news && read.at == T0)
    );
    assert_eq!(store.news(&lab, 38).await.unwrap(), read[38..]);
    assert_eq!(store.news(&lab, 40).await.unwrap(), []);
    assert_eq!(store.news(&hpc, 0).await.unwrap().into_iter().map(|n| n.news).collect::<Vec<_>>(), [other]);
    // The numbers go on where they were, also when everything was pruned.
    assert!(store.prune(T0 + Duration::DAY).await.unwrap() >= 41);
    assert_eq!(store.news(&lab, 0).await.unwrap(), []);
    assert_eq!(store.newest_news(&lab).await.unwrap(), 40);
    assert_eq!(store.publish(&lab, news("more"), T0).await.unwrap(), 41);
}

pub(super) async fn news_pages(store: &dyn Store) {
    let lab = "lab".parse().unwrap();
    for i in 0..NEWS_PAGE + 2 {
        store.publish(&lab, news(&format!("{i}")), T0).await.unwrap();
    }
    let first = store.news(&lab, 0).await.unwrap();
    assert_eq!((first.len(), first[NEWS_PAGE - 1].seq), (NEWS_PAGE, NEWS_PAGE as u64));
    assert_eq!(store.news(&lab, NEWS_PAGE as u64).await.unwrap().len(), 2);
}

pub(super) async fn a_store_keeps_its_epoch(store: &dyn Store, another: &dyn Store) {
    let epoch = store.epoch().await.unwrap();
    assert!(!epoch.is_empty() && epoch.len() <= 64);
    assert_eq!(store.epoch().await.unwrap(), epoch);
    assert_ne!(another.epoch().await.unwrap(), epoch);
}

pub(super) async fn answers_of_all_replicas_add_up(store: &dyn Store) {
    let (id, other) = (OrderId::random(), OrderId::random());
    let lab: ClusterName = "lab".parse().unwrap();
    let hpc: ClusterName = "hpc".parse().unwrap();
    let names =
        |list: std::ops::Range<usize>| list.map(|i| format!("n{i}").parse().unwrap()).collect::<Vec<NodeName>>();
    for (order, replica, cluster, nodes) in [
        (id, "a", &lab, names(0..300)),
        (id, "b", &lab, names(200..500)),
        (id, "a", &lab, names(490..510)),
        (id, "a", &hpc, names(0..1)),
        (other, "a", &lab, names(900..901)),
    ] {
        store.note_heard(order, replica, cluster, &nodes).await.unwrap();
    }
    let heard = store.heard(id).await.unwrap();
    let mut expected: BTreeSet<_> = names(0..510).into_iter().map(|n| (lab.clone(), n)).collect();
    expected.insert((hpc, "n0".parse().unwrap()));
    assert_eq!(heard.into_iter().collect::<BTreeSet<_>>(), expected);
}

pub(super) async fn a_node_that_joined_is_remembered(store: &dyn Store) {
    let session = of_job(7, 0);
    store.open(session.clone()).await.unwrap();
    let n3 = "n3".parse().unwrap();
    for node in [&n3, &session.nodes[0], &n3] {
        store.add_node(session.id, node).await.unwrap();
    }
    let nodes = store.get(session.id).await.unwrap().unwrap().nodes;
    assert_eq!(nodes, [session.nodes[0].clone(), session.nodes[1].clone(), n3.clone()]);
    store.add_node(SessionId::random(), &n3).await.unwrap();
    store.end(session.id, SessionStatus::Completed, T0, "").await.unwrap();
    store.add_node(session.id, &"n4".parse().unwrap()).await.unwrap();
    assert_eq!(store.get(session.id).await.unwrap().unwrap().nodes.len(), 3);
}

pub(super) async fn a_lease_has_one_holder(store: Arc<dyn Store>) {
    let at = |seconds: i64| T0 + Duration::seconds(seconds);
    assert!(store.lease("deny", "a", T0, at(10)).await.unwrap());
    assert!(store.lease("deny", "a", at(1), at(20)).await.unwrap(), "renewed");
    assert!(!store.lease("deny", "b", at(15), at(30)).await.unwrap());
    assert!(store.lease("sweep", "b", T0, at(10)).await.unwrap());
    store.release("deny", "b").await.unwrap();
    assert!(!store.lease("deny", "b", at(16), at(30)).await.unwrap(), "it was not b's to give back");
    assert!(store.lease("deny", "b", at(20), at(30)).await.unwrap(), "it has run out");
    store.release("deny", "b").await.unwrap();
    let mut callers = JoinSet::new();
    for i in 0..20 {
        let store = store.clone();
        callers.spawn(async move { store.lease("deny", &format!("r{i}"), T0, T0 + Duration::MINUTE).await.unwrap() });
    }
    assert_eq!(callers.join_all().await.into_iter().filter(|got| *got).count(), 1);
}

pub(super) async fn denials_of_different_kinds_are_kept_apart(store: &dyn Store) {
    let entry = |whose: Denied, before: i64| Revocation {
        role_arn: "arn:aws:iam::123456789012:role/team/genomics".parse().unwrap(),
        whose,
        issued_before: T0 + Duration::seconds(before),
        until: T0 + Duration::HOUR,
        ordered: true,
    };
    let entries = [
        entry(Denied::SourceIdentity("bob".into()), 1),
        entry(Denied::UserId("bob".into()), 2),
        entry(Denied::Everyone, 3),
    ];
    let (first, second) = (entries.to_vec(), entries.to_vec());
    for one in first.into_iter().chain(second) {
        store.record_revocation(one).await.unwrap();
    }
    let mut kept = store.list_revocations(T0).await.unwrap();
    kept.sort_by(|a, b| a.whose.cmp(&b.whose));
    assert_eq!(kept, entries);
}

fn denial(role: &str, whose: Denied, before: i64) -> Revocation {
    Revocation {
        role_arn: format!("arn:aws:iam::123456789012:role/{role}").parse().unwrap(),
        whose,
        issued_before: T0 + Duration::seconds(before),
        until: T0 + Duration::HOUR,
        ordered: false,
    }
}

pub(super) async fn an_order_is_not_forgotten_in_what_a_job_leaves(store: &dyn Store) {
    let of = |name: &str, before: i64, ordered: bool| Revocation {
        ordered,
        ..denial("genomics", Denied::UserId(format!("AROA:{name}")), before)
    };
    for one in [
        of("left", 1, false),
        of("ordered", 1, true),
        of("left then ordered", 3, false),
        of("left then ordered", 3, true),
        of("ordered then left", 1, true),
        of("ordered then left", 3, false),
        of("ordered then left", 3, false),
    ] {
        store.record_revocation(one).await.unwrap();
    }
    let mut kept = store.list_revocations(T0).await.unwrap();
    kept.sort_by(|a, b| a.whose.cmp(&b.whose));
    let expected = [
        of("left", 1, false),
        of("left then ordered", 3, true),
        of("ordered", 1, true),
        of("ordered then left", 3, true),
    ];
    assert_eq!(kept, expected);
}

pub(super) async fn denials_of_a_name_are_read_by_it_and_pruned_by_themselves(store: &dyn Store) {
    let user_id = |name: &str| Denied::UserId(format!("AROA:{name}"));
    // Longer than some stores' keys.
    let long = user_id(&"x".repeat(900));
    let theirs = [
        denial("genomics", user_id("bob"), 1),
        denial("genomics", Denied::SourceIdentity("bob".into()), 2),
        denial("genomics", Denied::Everyone, 3),
        denial("genomics", long.clone(), 4),
        denial("genomics", user_id("bobby"), 5),
        denial("climate", user_id("bob"), 6),
    ];
    for one in &theirs {
        store.record_revocation(one.clone()).await.unwrap();
    }
    let role = &theirs[0].role_arn;
    let names = [Denied::Everyone, user_id("bob"), user_id("eve"), Denied::SourceIdentity("bob".into()), long];
    let mut found = store.revocations_of(role, &names).await.unwrap();
    found.sort_by_key(|entry| entry.issued_before);
    assert_eq!(found, theirs[..4]);
    assert_eq!(store.revocations_of(role, &[user_id("bo")]).await.unwrap(), []);
    assert_eq!(store.revocations_of(role, &[]).await.unwrap(), []);
    let later = Revocation { until: T0 + Duration::DAY, ..theirs[0].clone() };
    store.record_revocation(later.clone()).await.unwrap();
    assert_eq!(store.prune(T0 + Duration::days(1000)).await.unwrap(), 0, "they have a time of their own");
    assert_eq!(store.prune_revocations(T0 + Duration::HOUR).await.unwrap(), 0, "at that very moment they stay");
    assert_eq!(store.prune_revocations(T0 + Duration::hours(2)).await.unwrap(), 5);
    assert_eq!(store.revocations_of(role, &names).await.unwrap(), [later]);
}

pub(super) async fn what_lives_is_found_by_project_role_and_node(store: &dyn Store) {
    let session = of_job(1, 0);
    store.open(session.clone()).await.unwrap();
    let genomics = issued_for(&session, "ASIA1", T0);
    let climate = Issuance {
        project: "climate".parse().unwrap(),
        role_arn: "arn:aws:iam::123456789012:role/climate".parse().unwrap(),
        node: Some("n2".parse().unwrap()),
        source_identity: None,
        ..issued_for(&session, "ASIA2", T0 + Duration::SECOND)
    };
    let shared = Issuance { node: None, ..issued_for(&session, "ASIA3", T0 + Duration::seconds(2)) };
    let elsewhere =
        Issuance { cluster: "hpc".parse().unwrap(), ..issued_for(&session, "ASIA4", T0 - Duration::SECOND) };
    let dead = issued_for(&session, "ASIA5", T0 - Duration::HOUR);
    for one in [&genomics, &climate, &shared, &elsewhere, &dead] {
        store.record_issuance(one.clone()).await.unwrap();
    }
    let node = |cluster: &str, node: &str| IssuedTo::Node(cluster.parse().unwrap(), node.parse().unwrap());
    for (of, expected) in [
        (IssuedTo::Project("genomics".parse().unwrap()), vec![&shared, &genomics, &elsewhere]),
        (IssuedTo::Project("Genomics".parse().unwrap()), vec![]),
        (IssuedTo::Role(climate.role_arn.clone()), vec![&climate]),
        (IssuedTo::Role("arn:aws:iam::999999999999:role/climate".parse().unwrap()), vec![]),
        (node("lab", "n1"), vec![&genomics]),
        (node("lab", "n2"), vec![&climate]),
        (node("hpc", "n1"), vec![&elsewhere]),
        (node("hpc", "n2"), vec![]),
    ] {
        let found = super::every_issuance(store, &of, T0).await;
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{of:?}");
    }
}
