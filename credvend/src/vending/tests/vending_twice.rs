//! Many who ask at once, retries, and what ends while AWS is being asked.

use std::sync::Arc;

use credd_protocol::node_api::ApiError;
use time::Duration;

use super::world::*;
use crate::projects::Role;
use crate::session_name::Names;
use crate::source::SourceError;
use crate::store::IssuedTo;
use crate::store::conformance::T0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_ask_at_once_cost_one_assumerole() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1", "n2"]);
    let session = w.open(7).await.session;
    let closed = w.sts.gate.clone().write_owned().await;
    let w = Arc::new(w);
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let w = w.clone();
        callers.spawn(async move { w.credentials("n1", session).await.unwrap().credentials.access_key_id });
    }
    w.sts.calls.subscribe().wait_for(|n| *n == 1).await.unwrap();
    drop(closed);
    let mut keys = callers.join_all().await;
    keys.dedup();
    assert_eq!((keys.len(), w.assumed()), (1, 1));
    // Another node has another name; another role another key.
    w.credentials("n2", session).await.unwrap();
    w.role("n1", session, "train", 0).await.unwrap();
    assert_eq!(w.assumed(), 3);
}

#[tokio::test]
async fn a_failure_is_shared_by_those_who_waited_and_tried_again_by_the_next() {
    let w = Arc::new(World::new());
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let session = w.open(7).await.session;
    *w.sts.error.lock().unwrap() = Some(SourceError::Unavailable("throttled".into()));
    let closed = w.sts.gate.clone().write_owned().await;
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let w = w.clone();
        callers.spawn(async move { refused(w.credentials("n1", session).await) });
    }
    w.sts.calls.subscribe().wait_for(|n| *n == 1).await.unwrap();
    // Let every caller reach the queue: each needs one read of the store first.
    until(async || !w.store_is_busy(&callers)).await;
    drop(closed);
    for (code, retry, why) in callers.join_all().await {
        assert!(code == "Unavailable" && retry && why.contains("throttled"), "{why}");
    }
    // Those that came after the attempt made one of their own.
    let shared = w.assumed();
    assert!(shared < 20, "{shared}");
    *w.sts.error.lock().unwrap() = None;
    w.credentials("n1", session).await.unwrap();
    assert_eq!(w.assumed(), shared + 1);
}

impl World {
    /// Whether some of the callers have not asked yet (they hold the world until they are answered).
    fn store_is_busy<T>(&self, callers: &tokio::task::JoinSet<T>) -> bool {
        self.vending.issuing.waiting() < callers.len()
    }
}

#[tokio::test]
async fn documents_are_kept_for_retries_but_not_for_refreshes() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let session = w.open(7).await.session;
    let key = async |min_life| w.role("n1", session, "default", min_life).await.unwrap().credentials.access_key_id;
    assert_eq!(key(0).await, "ASIA1");
    w.clock.advance(Duration::minutes(5));
    assert_eq!(key(0).await, "ASIA1");
    assert_eq!(key(3000).await, "ASIA1", "55 minutes are left");
    w.clock.advance(Duration::minutes(6));
    assert_eq!(key(3000).await, "ASIA2", "49 minutes are not 50");
    assert_eq!(key(40_000).await, "ASIA2", "more than AWS gives makes no storm");
    w.clock.advance(Duration::minutes(28));
    let response = w.credentials("n1", session).await.unwrap();
    assert_eq!(response.credentials.access_key_id, "ASIA3", "who asks at half life wants new ones");
    // A changed role is another role.
    let mut map = map();
    let role: &mut Role =
        map.projects.get_mut(&"genomics".parse().unwrap()).unwrap().get_mut(&Default::default()).unwrap();
    role.duration_seconds = 900;
    w.vending.projects().replace(map);
    assert_eq!(key(0).await, "ASIA4");
}

#[tokio::test]
async fn a_refused_role_is_not_asked_for_in_a_storm() {
    let w = World::new();
    for id in [7, 8] {
        w.slurm.run(id, "alice", "genomics", &["n1"]);
    }
    let (one, two) = (w.open(7).await.session, w.open(8).await.session);
    *w.sts.error.lock().unwrap() = Some(SourceError::Refused("the trust policy does not name credvend".into()));
    let (code, retry, why) = refused(w.credentials("n1", one).await);
    assert!(code == "RoleRefused" && retry && why.contains("role/genomics") && why.contains("trust policy"), "{why}");
    *w.sts.error.lock().unwrap() = None;
    assert_eq!(refused(w.credentials("n1", two).await).0, "RoleRefused");
    assert_eq!(w.assumed(), 1);
    w.clock.advance(Duration::seconds(11));
    w.credentials("n1", two).await.unwrap();
    w.credentials("n1", one).await.unwrap();
}

#[tokio::test]
async fn one_users_refusal_is_not_his_colleagues() {
    let w = World::new();
    for (id, user) in [(7, "mallory"), (8, "bob")] {
        w.slurm.run(id, user, "genomics", &["n1"]);
    }
    let (mallorys, bobs) = (w.open(7).await.session, w.open(8).await.session);
    *w.sts.error.lock().unwrap() = Some(SourceError::Refused("the upstream keeps mallory out".into()));
    assert!(refused(w.credentials("n1", mallorys).await).2.contains("mallory"));
    *w.sts.error.lock().unwrap() = None;
    w.credentials("n1", bobs).await.unwrap();
    assert_eq!(refused(w.credentials("n1", mallorys).await).0, "RoleRefused");
}

#[tokio::test]
async fn a_session_that_ends_while_aws_is_asked_gets_nothing_but_is_on_record() {
    let w = Arc::new(World::new());
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let session = w.open(7).await.session;
    let closed = w.sts.gate.clone().write_owned().await;
    let caller = tokio::spawn({
        let w = w.clone();
        async move { w.credentials("n1", session).await }
    });
    w.sts.calls.subscribe().wait_for(|n| *n == 1).await.unwrap();
    w.vending.close("root", session).await.unwrap();
    drop(closed);
    let (code, retry, why) = refused(caller.await.unwrap());
    assert!(code == "SessionEnded" && !retry && why.contains("closed by root"), "{why}");
    let of = crate::store::IssuedTo::Session(session);
    assert_eq!(w.store.list_issuances(&of, crate::store::conformance::T0, None).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn a_caller_that_gives_up_wastes_no_assumerole() {
    let w = Arc::new(World::new());
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let session = w.open(7).await.session;
    let closed = w.sts.gate.clone().write_owned().await;
    let caller = tokio::spawn({
        let w = w.clone();
        async move { w.credentials("n1", session).await }
    });
    w.sts.calls.subscribe().wait_for(|n| *n == 1).await.unwrap();
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    drop(closed);
    w.credentials("n1", session).await.unwrap();
    assert_eq!(w.assumed(), 1);
}

#[tokio::test]
async fn expired_nonsense_from_aws_is_not_served() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let session = w.open(7).await.session;
    let mut map = map();
    map.projects
        .get_mut(&"genomics".parse().unwrap())
        .unwrap()
        .get_mut(&Default::default())
        .unwrap()
        .duration_seconds = 0;
    w.vending.projects().replace(map);
    let (code, retry, why) = refused(w.credentials("n1", session).await);
    assert!(code == "Unavailable" && retry && why.contains("expired already"), "{why}");
}

fn nodes(count: usize) -> Vec<String> {
    (1..=count).map(|n| format!("n{n}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_on_many_nodes_has_one_name_and_costs_one_assumerole() {
    let w = World::new();
    let nodes = nodes(1000);
    let list: Vec<&str> = nodes.iter().map(String::as_str).collect();
    w.slurm.run(7, "alice", "genomics", &list);
    let session = w.open(7).await.session;
    let closed = w.sts.gate.clone().write_owned().await;
    let w = Arc::new(w);
    let mut callers = tokio::task::JoinSet::new();
    for node in nodes {
        let w = w.clone();
        callers.spawn(async move { w.credentials(&node, session).await.unwrap() });
    }
    w.sts.calls.subscribe().wait_for(|n| *n >= 1).await.unwrap();
    drop(closed);
    let answers = callers.join_all().await;
    assert!(answers.iter().all(|a| a.session_name == "lab-alice-7" && a.credentials.access_key_id == "ASIA1"));
    assert_eq!(w.assumed(), 1);
    let of = IssuedTo::Session(session);
    let issued = w.store.list_issuances(&of, T0, None).await.unwrap().items;
    assert!(issued.len() == 1 && issued[0].node.is_none() && issued[0].session_name == "lab-alice-7");
    // Each node renews at a moment of its own, with the same wish: the first gets a new document, the others that one.
    w.clock.advance(Duration::minutes(27));
    for node in ["n5", "n1000", "n1"] {
        assert_eq!(w.role(node, session, "default", 2700).await.unwrap().credentials.access_key_id, "ASIA2");
    }
    // What is kept for all is no way around being asked about: a node that is not the job's gets nothing.
    assert_eq!(refused(w.credentials("n1001", session).await).0, "NotOnNode");
}

#[tokio::test]
async fn the_name_follows_the_number_of_nodes_and_the_configuration() {
    let with = |names: Names, role: Option<&str>| {
        let w = World::named(names);
        let mut map = map();
        let roles = map.projects.get_mut(&"genomics".parse().unwrap()).unwrap();
        roles.get_mut(&Default::default()).unwrap().session_name = role.map(|r| r.parse().unwrap());
        w.vending.projects().replace(map);
        w.slurm.run(7, "alice", "genomics", &["n1", "n2"]);
        w
    };
    let up_to = |n: u32| Names { node_names_up_to: n, ..Names::default() };
    let own = |text: &str| Names { template: text.parse().unwrap(), ..Names::default() };
    for (names, role, name, assumed) in [
        (up_to(256), None, "lab-alice-n1", 2),
        (up_to(2), None, "lab-alice-n1", 2),
        (up_to(1), None, "lab-alice-7", 1),
        (up_to(0), None, "lab-alice-7", 1),
        (own("{user}@{job}"), None, "alice@7", 1),
        (own("{project},{user}-{node}"), None, "genomics,alice-n1", 2),
        (own("{user}@{job}"), Some("x-{user}-{node}"), "x-alice-n1", 2),
        // What a role says about nodes counts up to the same number of them.
        (up_to(1), Some("x-{user}-{node}"), "lab-alice-7", 1),
        (up_to(1), Some("{user}-{job}"), "alice-7", 1),
    ] {
        let w = with(names, role);
        let session = w.open(7).await.session;
        assert_eq!(w.credentials("n1", session).await.unwrap().session_name, name);
        w.credentials("n2", session).await.unwrap();
        assert_eq!(w.assumed(), assumed, "{name}");
    }
}

#[tokio::test]
async fn a_job_that_shrinks_keeps_its_name() {
    let w = World::named(Names { node_names_up_to: 2, ..Names::default() });
    w.slurm.run(7, "alice", "genomics", &["n1", "n2", "n3"]);
    let session = w.open(7).await.session;
    assert_eq!(w.credentials("n1", session).await.unwrap().session_name, "lab-alice-7");
    w.slurm.change(7, |job| job.nodes.truncate(1));
    w.clock.advance(Duration::minutes(30));
    assert_eq!(w.credentials("n1", session).await.unwrap().session_name, "lab-alice-7");
    assert_eq!(w.assumed(), 2);
}

/// What a caller is told while its turn does not come for 20 s.
async fn told_to_wait(w: &World, session: credd_protocol::SessionId) -> ApiError {
    *w.sts.delay.lock().unwrap() = std::time::Duration::from_secs(20);
    let refusal = w.credentials("n1", session).await.unwrap_err();
    assert_eq!(refusal.status(), 503);
    refusal.to_api_error()
}

#[tokio::test]
async fn who_must_wait_is_told_when_to_come_again_and_finds_the_answer_then() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let session = w.open(7).await.session;
    let held = w.sts.turn.clone().write_owned().await;
    let error = told_to_wait(&w, session).await;
    assert!(error.code == "Busy" && error.retry, "{error:?}");
    assert!((15..=21).contains(&error.retry_after.unwrap()), "{error:?}");
    assert!(error.message.contains("waits for its turn at AWS STS"), "{}", error.message);
    drop(held);
    w.credentials("n1", session).await.unwrap();
    assert_eq!(w.assumed(), 1, "the first request went on");
}

#[tokio::test]
async fn a_session_that_ends_while_it_waits_for_its_turn_costs_no_assumerole() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let session = w.open(7).await.session;
    let held = w.sts.turn.clone().write_owned().await;
    assert_eq!(told_to_wait(&w, session).await.code, "Busy");
    let slot = w.vending.issuing.any_slot();
    w.vending.close("root", session).await.unwrap();
    drop(held);
    // The one who asks holds the slot too, until it is done.
    until(async || Arc::strong_count(&slot) <= 1).await;
    assert_eq!(w.assumed(), 0);
}
