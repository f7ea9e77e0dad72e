use std::future::Future as _;

use credd_protocol::SessionId;
use credd_protocol::node_api::HeardRequest;

use super::*;
use crate::clock::SystemClock;
use crate::store::sqlite::SqliteStore;

fn lab() -> ClusterName {
    "lab".parse().unwrap()
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn news(sessions: usize, order: Option<OrderId>, nodes: &[&str]) -> News {
    News {
        kind: NewsKind::Invalidated,
        sessions: (0..sessions).map(|_| SessionId::random()).collect(),
        reason: "revoked\nby an administrator".into(),
        order,
        nodes: nodes.iter().map(|name| node(name)).collect(),
        completed: vec![],
    }
}

/// So many replicas over one store.
fn replicas<const N: usize>() -> (tempfile::TempDir, [Events; N]) {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&dir.path().join("db")).unwrap());
    (dir, std::array::from_fn(|_| Events::new(store.clone(), Arc::new(SystemClock))))
}

fn seqs(receiver: &mut broadcast::Receiver<Arc<Line>>) -> Vec<u64> {
    std::iter::from_fn(|| receiver.try_recv().ok()).map(|line| line.seq).collect()
}

fn event(line: &Line, name: &str) -> Event {
    serde_json::from_slice(&line.for_node(&node(name))).unwrap()
}

#[tokio::test]
async fn every_replica_tells_all_news_in_order_without_gaps_or_repetition() {
    let (_dir, [one, two]) = replicas();
    let (clusters, hpc) = ([lab()], "hpc".parse().unwrap());
    let mut at_one = one.subscribe(&lab(), None).await.unwrap();
    let mut at_two = two.subscribe(&lab(), None).await.unwrap();
    assert_eq!(at_one.hello, at_two.hello, "one store, one epoch");
    for round in 0..20 {
        let own = news(1, None, &[]);
        match round % 4 {
            0 => drop(one.publish(&lab(), own).await.unwrap()),
            1 | 2 => drop(two.publish(&lab(), own).await.unwrap()),
            _ => {
                let lab = lab();
                let of_both = tokio::join!(
                    one.publish(&lab, own.clone()),
                    two.publish(&lab, own.clone()),
                    one.publish(&hpc, own)
                );
                assert!(of_both.0.is_ok() && of_both.1.is_ok() && of_both.2.is_ok());
            }
        }
    }
    one.look(&clusters).await.unwrap();
    two.look(&clusters).await.unwrap();
    one.look(&clusters).await.unwrap();
    let all: Vec<u64> = (1..=25).collect();
    assert_eq!(seqs(&mut at_one.news), all);
    assert_eq!(seqs(&mut at_two.news), all);
}

#[tokio::test]
async fn one_replicas_own_news_is_told_at_once_and_to_the_watcher_before_it() {
    let (_dir, [one]) = replicas();
    let mut stream = one.subscribe(&lab(), None).await.unwrap();
    let watched = Arc::new(Mutex::new(Vec::new()));
    let (seen, mut early) = (watched.clone(), one.listen(&lab()));
    let early = Mutex::new(move || early.try_recv().is_err());
    one.watch_with(move |_, news| {
        assert!((early.lock().unwrap())(), "not on a stream yet");
        seen.lock().unwrap().push(news.sessions.len());
    });
    let order = OrderId::random();
    one.publish(&lab(), news(3, Some(order), &["n1"])).await.unwrap();
    let line = stream.news.try_recv().unwrap();
    let Event::Invalidated { seq: 1, sessions, reason, answer: true, .. } = event(&line, "n1") else { panic!() };
    assert_eq!((sessions.len(), reason.as_str()), (3, "revoked by an administrator"));
    assert!(matches!(event(&line, "n2"), Event::Invalidated { seq: 1, answer: false, .. }));
    assert_eq!(*watched.lock().unwrap(), [3]);
}

#[tokio::test]
async fn more_sessions_than_a_line_has_room_for_make_several() {
    let (_dir, [one]) = replicas();
    let mut stream = one.subscribe(&lab(), None).await.unwrap();
    let mut many = news(2 * NEWS_SESSIONS + 1, None, &[]);
    many.reason = "é".repeat(5000);
    assert_eq!(one.publish(&lab(), many.clone()).await.unwrap(), 3);
    let mut told = vec![];
    while let Ok(line) = stream.news.try_recv() {
        assert!(line.for_node(&node("n1")).len() <= credd_protocol::node_api::MAX_EVENT_BYTES);
        let Event::Invalidated { sessions, .. } = event(&line, "n1") else { panic!() };
        told.extend(sessions);
    }
    assert_eq!(told, many.sessions);
}

#[tokio::test]
async fn a_node_that_comes_back_is_told_what_it_missed_also_by_another_replica_or_after_a_restart() {
    let (_dir, [one, two]) = replicas();
    let Event::Hello { epoch, seq: 0 } = one.subscribe(&lab(), None).await.unwrap().hello else { panic!() };
    two.look(&[lab()]).await.unwrap();
    for _ in 0..5 {
        one.publish(&lab(), news(1, None, &[])).await.unwrap();
    }
    let after_restart = Events::new(one.store.clone(), Arc::new(SystemClock));
    for replica in [&one, &two, &after_restart] {
        let mut back = replica.subscribe(&lab(), Some((&epoch, 3))).await.unwrap();
        let mut told: Vec<u64> = back.missed.iter().map(|line| line.seq).collect();
        // A replica that has not looked for a while brings the rest with its next look.
        replica.look(&[lab()]).await.unwrap();
        told.extend(seqs(&mut back.news));
        assert_eq!((back.hello, told), (Event::Hello { epoch: epoch.clone(), seq: 3 }, vec![4, 5]));
        let current = replica.subscribe(&lab(), Some((&epoch, 5))).await.unwrap();
        assert_eq!((current.hello, current.missed.len()), (Event::Hello { epoch: epoch.clone(), seq: 5 }, 0));
        // It cannot be told what happened in another history, or in none.
        for known in [Some(("another", 3)), Some((epoch.as_str(), 9)), None] {
            let anew = replica.subscribe(&lab(), known).await.unwrap();
            assert_eq!((anew.hello, anew.missed.len()), (Event::Hello { epoch: epoch.clone(), seq: 5 }, 0));
        }
    }
}

#[tokio::test]
async fn what_is_too_much_or_pruned_is_not_told_in_part() {
    let (_dir, [one]) = replicas();
    let Event::Hello { epoch, .. } = one.subscribe(&lab(), None).await.unwrap().hello else { panic!() };
    for _ in 0..NEWS_PAGE + 2 {
        one.store.publish(&lab(), news(1, None, &[]), one.clock.now()).await.unwrap();
    }
    let newest = NEWS_PAGE as u64 + 2;
    let of = async |replica: &Events, after| {
        let subscription = replica.subscribe(&lab(), Some((epoch.as_str(), after))).await.unwrap();
        let Event::Hello { seq, .. } = subscription.hello else { panic!() };
        (seq, subscription.missed.len())
    };
    let restarted = || Events::new(one.store.clone(), Arc::new(SystemClock));
    let two = restarted();
    assert_eq!(of(&two, 2).await, (2, NEWS_PAGE));
    assert_eq!(of(&two, 1).await, (newest, 0), "more than a page");
    one.look(&[lab()]).await.unwrap();
    assert_eq!(of(&one, 1).await, (1, NEWS_PAGE + 1), "it was there all the time");
    one.store.prune(one.clock.now() + time::Duration::days(1)).await.unwrap();
    let three = restarted();
    assert_eq!(of(&three, newest - 1).await, (newest, 0));
    one.publish(&lab(), news(1, None, &[])).await.unwrap();
    three.look(&[lab()]).await.unwrap();
    assert_eq!(of(&three, newest).await, (newest, 1), "and the numbers go on");
}

/// Thousands of nodes come back after a restart, and one of them never tires of asking.
#[tokio::test]
async fn what_nodes_ask_and_say_costs_few_looks_at_the_store() {
    let (_dir, [one]) = replicas();
    let metrics = Arc::new(crate::metrics::Metrics::default());
    let Event::Hello { epoch, .. } = one.subscribe(&lab(), None).await.unwrap().hello else { panic!() };
    let order = OrderId::random();
    for _ in 0..9 {
        one.publish(&lab(), news(1, Some(order), &["n1"])).await.unwrap();
    }
    let store = crate::metrics::measured::Measured::new(one.store.clone(), metrics.clone());
    let restarted = Events::new(store, Arc::new(SystemClock));
    let looks = || {
        let text = metrics.text();
        let line =
            text.lines().find_map(|l| l.strip_prefix("credvend_store_duration_seconds_count{operation=\"news\"} "));
        line.map_or(0, |count| count.parse::<u32>().unwrap())
    };
    let (lab, n1) = (lab(), node("n1"));
    for after in (0..9).cycle().take(500) {
        assert_eq!(restarted.subscribe(&lab, Some((&epoch, after))).await.unwrap().missed.len() as u64, 9 - after);
        let seqs = (1..=9).collect();
        restarted.heard(&lab, &n1, &HeardRequest { epoch: epoch.clone(), seqs }).await.unwrap();
    }
    assert_eq!(looks(), 1);
    // Numbers that there are not: each might be another replica's news.
    let own = restarted.known(&lab);
    let turn = own.turn.lock().await;
    let mut asking = vec![];
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    for _ in 0..100 {
        let mut one_asks = Box::pin(restarted.caught_up(&lab, u64::MAX));
        assert!(one_asks.as_mut().poll(&mut context).is_pending());
        asking.push(one_asks);
    }
    drop(turn);
    for one_asks in asking {
        one_asks.await.unwrap();
    }
    assert_eq!(looks(), 2, "one for all who waited for it");
}

/// A store that takes nothing keeps nobody from hearing the others.
#[tokio::test]
async fn what_could_not_be_stored_is_offered_again_in_its_order() {
    let (_dir, [one, two]) = replicas();
    let mut at_one = one.subscribe(&lab(), None).await.unwrap();
    let kept: Vec<News> = (1..=3).map(|sessions| news(sessions, None, &[])).collect();
    one.untold.lock().unwrap().extend(kept.iter().map(|news| (lab(), news.clone())));
    two.publish(&lab(), news(9, None, &[])).await.unwrap();
    one.look(&[lab()]).await.unwrap();
    let sessions = std::iter::from_fn(|| at_one.news.try_recv().ok()).map(|line| match event(&line, "n1") {
        Event::Invalidated { sessions, .. } => sessions.len(),
        other => panic!("{other:?}"),
    });
    assert_eq!(sessions.collect::<Vec<_>>(), [9, 1, 2, 3]);
    assert!(one.untold.lock().unwrap().is_empty());
}

#[tokio::test]
async fn answers_are_counted_once_from_whom_they_were_asked_whichever_replica_they_tell() {
    let (_dir, [one, two]) = replicas();
    let Event::Hello { epoch, .. } = one.subscribe(&lab(), None).await.unwrap().hello else { panic!() };
    let order = OrderId::random();
    let seq = one.publish(&lab(), news(1, Some(order), &["n1", "n2", "n3"])).await.unwrap();
    let quiet = one.publish(&lab(), news(1, None, &["n1"])).await.unwrap();
    let answer = |epoch: &str, seqs: &[u64]| HeardRequest { epoch: epoch.into(), seqs: seqs.to_vec() };
    let concerned: HashSet<_> = ["n1", "n2", "n3"].map(|name| (lab(), node(name))).into();
    one.heard(&lab(), &node("n1"), &answer(&epoch, &[seq, quiet, 99, 0, u64::MAX])).await.unwrap();
    // That replica has not looked yet.
    two.heard(&lab(), &node("n2"), &answer(&epoch, &[seq])).await.unwrap();
    two.heard(&lab(), &node("n2"), &answer(&epoch, &[seq])).await.unwrap();
    two.heard(&lab(), &node("stranger"), &answer(&epoch, &[seq])).await.unwrap();
    two.heard(&lab(), &node("n3"), &answer("another", &[seq])).await.unwrap();
    two.heard(&"hpc".parse().unwrap(), &node("n3"), &answer(&epoch, &[seq])).await.unwrap();
    two.look(&[lab()]).await.unwrap();
    let heard = one.answers(order, &concerned, Duration::from_millis(1)).await;
    assert_eq!(heard, ["n1", "n2"].map(|name| (lab(), node(name))).into());
    one.heard(&lab(), &node("n3"), &answer(&epoch, &[seq])).await.unwrap();
    assert_eq!(one.answers(order, &concerned, Duration::from_secs(3600)).await, concerned, "not waited for longer");
    one.look(&[lab()]).await.unwrap();
    assert_eq!(one.store.heard(order).await.unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn leaves_are_remembered_of_a_sessions_own_nodes_until_it_is_over_or_a_day_has_passed() {
    let (_dir, [one, _two]) = replicas();
    let (first, second) = (SessionId::random(), SessionId::random());
    one.left(first, &node("stranger"), &[node("n1")]);
    assert_eq!(one.remembered_leaves(), (0, 0));
    one.left(first, &node("n1"), &[node("n1"), node("n2")]);
    one.left(first, &node("n1"), &[node("n1"), node("n2")]);
    one.left(first, &node("n2"), &[node("n1"), node("n2")]);
    assert_eq!(one.remembered_leaves(), (1, 2));
    one.forget_left(first);
    assert_eq!(one.remembered_leaves(), (0, 0));
    one.left(first, &node("n1"), &[node("n1")]);
    tokio::time::advance(Duration::from_hours(25)).await;
    one.left(second, &node("n1"), &[node("n1")]);
    assert_eq!(one.remembered_leaves(), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_large_jobs_nodes_that_have_left_are_not_told_of_its_end() {
    let (_dir, [one, _two]) = replicas();
    let mut stream = one.subscribe(&lab(), None).await.unwrap();
    let many: Vec<NodeName> = (0..100).map(|n| node(&format!("m{n}"))).collect();
    let (whole, stuck) = (SessionId::random(), SessionId::random());
    for node in &many {
        one.left(whole, node, &many);
    }
    for node in &many[1..] {
        one.left(stuck, node, &many);
    }
    assert_eq!(one.remembered_leaves(), (2, 199));
    one.completed(&lab(), whole, &many);
    one.completed(&lab(), stuck, &many);
    assert_eq!(one.remembered_leaves(), (0, 0));
    tokio::time::advance(Duration::from_secs(6)).await;
    one.look(&[lab()]).await.unwrap();
    let line = stream.news.try_recv().unwrap();
    let completed_at = |name: &str| match event(&line, name) {
        Event::Invalidated { completed, .. } => completed,
        other => panic!("{other:?}"),
    };
    assert_eq!(completed_at("m0"), [stuck], "it has not left");
    assert!(!completed_at("m1").contains(&stuck) && !completed_at("m1").contains(&whole));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_stops_tells_of_the_jobs_that_ended_in_its_last_seconds() {
    let (_dir, [one, two]) = replicas();
    let mut stream = two.subscribe(&lab(), None).await.unwrap();
    let session = SessionId::random();
    one.completed(&lab(), session, &[node("n1")]);
    let (stop, stopping) = tokio::sync::watch::channel(true);
    one.keep_up(vec![lab()], stopping).await;
    drop(stop);
    two.look(&[lab()]).await.unwrap();
    match event(&stream.news.try_recv().unwrap(), "n1") {
        Event::Invalidated { completed, .. } => assert_eq!(completed, [session]),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn ended_jobs_are_told_together_to_their_own_nodes_and_old_readers_see_nothing() {
    let (_dir, [one, two]) = replicas();
    let mut stream = one.subscribe(&lab(), None).await.unwrap();
    let mut elsewhere = two.subscribe(&lab(), None).await.unwrap();
    let ids: Vec<SessionId> = (0..4).map(|_| SessionId::random()).collect();
    one.completed(&lab(), ids[0], &[node("n1")]);
    // It left, and came back.
    one.left(ids[1], &node("n2"), &[node("n1"), node("n2")]);
    one.joined(ids[1], &node("n2"));
    one.completed(&lab(), ids[1], &[node("n1"), node("n2")]);
    // All of its nodes have said so themselves.
    one.left(ids[2], &node("n1"), &[node("n1")]);
    one.completed(&lab(), ids[2], &[node("n1")]);
    one.completed(&lab(), ids[3], &(0..100).map(|n| node(&format!("m{n}"))).collect::<Vec<_>>());
    one.look(&[lab()]).await.unwrap();
    assert!(stream.news.try_recv().is_err(), "gathered for a while");
    tokio::time::advance(Duration::from_secs(6)).await;
    one.look(&[lab()]).await.unwrap();
    two.look(&[lab()]).await.unwrap();
    for line in [stream.news.try_recv().unwrap(), elsewhere.news.try_recv().unwrap()] {
        let of = |name: &str| match event(&line, name) {
            Event::Invalidated { seq: 1, sessions, answer: false, completed, .. } if sessions.is_empty() => completed,
            other => panic!("{other:?}"),
        };
        assert_eq!(of("n1"), [ids[0], ids[1], ids[3]]);
        assert_eq!(of("n2"), [ids[1], ids[3]]);
        assert_eq!(of("n9"), [ids[3]], "of many nodes, all are told");
    }
    assert!(stream.news.try_recv().is_err(), "together");
    // As a credvend of the release before it reads the store.
    let stored = one.store.news(&lab(), 0).await.unwrap().remove(0).news;
    let mut text = serde_json::to_value(&stored).unwrap();
    assert!(text["sessions"].as_array().unwrap().is_empty() && text["completed"].is_array());
    text.as_object_mut().unwrap().remove("completed");
    assert!(serde_json::from_value::<News>(text).unwrap().completed.is_empty());
}
