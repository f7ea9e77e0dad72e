//! A site goes from SQLite to DynamoDB and back, and is what it was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use credd_protocol::{ClusterName, NodeName, SessionId};
use time::Duration;

use super::pretend_aws::PretendAws;
use super::pretend_aws::between::{Between, Faults};
use super::store;
use crate::store::archive::{self, Archive, CopyError, NOTES, Part, Record, UNFINISHED, copy, export};
use crate::store::conformance::{T0, issued_for, of_head, of_job};
use crate::store::sqlite::SqliteStore;
use crate::store::*;

fn sqlite(dir: &tempfile::TempDir, name: &str) -> Arc<dyn Archive> {
    Arc::new(SqliteStore::open(&dir.path().join(name)).unwrap())
}

async fn everything(of: &dyn Archive) -> BTreeMap<Part, Vec<String>> {
    let mut all = BTreeMap::new();
    for part in Part::ALL {
        let (mut records, mut from): (Vec<Record>, _) = (vec![], None);
        loop {
            let (some, next) = export(of, part, from.as_deref()).await.unwrap();
            records.extend(some);
            match next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        let mut lines: Vec<String> = records.iter().map(|r| serde_json::to_string(r).unwrap()).collect();
        lines.sort();
        all.insert(part, lines);
    }
    all
}

fn same(found: &BTreeMap<Part, Vec<String>>, expected: &BTreeMap<Part, Vec<String>>) {
    for (part, records) in expected {
        assert_eq!(found[part].len(), records.len(), "{part}");
        for (found, expected) in found[part].iter().zip(records) {
            assert_eq!(found, expected, "{part}");
        }
    }
}

/// A site that has lived: hundreds of sessions of every kind and end, and all else.
async fn lived(store: &dyn Store) {
    let clusters: [ClusterName; 2] = ["lab".parse().unwrap(), "hpc".parse().unwrap()];
    let mut ids = vec![];
    for i in 0..700u32 {
        let at = T0 + Duration::minutes(i.into());
        let mut session = match i % 3 {
            0 => of_head(&format!("h{}", i / 6), &format!("s{i}")),
            _ => of_job(1 + i, i % 2),
        };
        session.opened = at;
        session.cluster = clusters[i as usize % 2].clone();
        session.user = ["bob", "bobby", "DOM\\eve"][i as usize % 3].parse().unwrap();
        if i % 50 == 1 {
            session.nodes = (0..3000).map(|n| format!("n{:05}", n * 7).parse::<NodeName>().unwrap()).collect();
        }
        store.open(session.clone()).await.unwrap();
        match i % 5 {
            0 => drop(
                store.end(session.id, SessionStatus::Completed, at + Duration::HOUR, "Slurm: COMPLETED").await.unwrap(),
            ),
            1 => drop(store.end(session.id, SessionStatus::Invalidated, at + Duration::HOUR, "revoked").await.unwrap()),
            _ => store.add_node(session.id, &"joined".parse().unwrap()).await.unwrap(),
        }
        let issuance = Issuance {
            node: (i % 4 != 0).then(|| "n1".parse().unwrap()),
            ..issued_for(&session, &format!("ASIA{i}"), at)
        };
        store.record_issuance(issuance).await.unwrap();
        ids.push(session.id);
    }
    for i in 0..40 {
        store.remember_nonce(&format!("{i:032x}"), T0 + Duration::seconds(i)).await.unwrap();
        let order = Order {
            id: OrderId::random(),
            subject: Subject::User("bob".parse().unwrap()),
            clusters: (i % 2 == 0).then(|| clusters.to_vec()),
            by: "root".into(),
            why: (i % 3 == 0).then(|| "a leak".into()),
            wide: i % 5 == 0,
            at: T0 + Duration::seconds(i / 4),
            done: (i % 4 != 0).then_some(T0 + Duration::MINUTE),
            report: (i == 7).then(|| "{\"é\":1}".repeat(30_000)),
        };
        store.put_order(order.clone()).await.unwrap();
        let nodes: Vec<NodeName> = (0..i).map(|n| format!("n{n}").parse().unwrap()).collect();
        store.note_heard(order.id, "a", &clusters[0], &nodes).await.unwrap();
        let whose =
            if i % 2 == 0 { Denied::UserId(format!("AROA:{i}")) } else { Denied::SourceIdentity(format!("{i}")) };
        let role_arn = "arn:aws:iam::123456789012:role/genomics".parse().unwrap();
        let denial =
            Revocation { role_arn, whose, issued_before: T0, until: T0 + Duration::hours(i), ordered: i % 3 == 0 };
        store.record_revocation(denial).await.unwrap();
        store.put_note(&format!("kind{}", i % 3), &format!("{i}"), "words").await.unwrap();
    }
    for subject in
        [Subject::Node(clusters[0].clone(), "n1".parse().unwrap()), Subject::Project("genomics".parse().unwrap())]
    {
        store.put_block(Block { subject, by: "root".into(), why: None, at: T0 }).await.unwrap();
    }
    for i in 0..300 {
        let news = News {
            kind: if i % 2 == 0 { NewsKind::Invalidated } else { NewsKind::Renew },
            sessions: vec![ids[i]],
            reason: format!("{i}"),
            order: None,
            nodes: vec![],
            completed: vec![],
        };
        store.publish(&clusters[i % 7 % 2], news, T0 + Duration::seconds(i as i64)).await.unwrap();
    }
    // The first numbers are pruned, and the numbering goes on from where it is.
    store.prune(T0 + Duration::seconds(20)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn a_site_goes_to_dynamodb_and_back_and_is_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let source = sqlite(&dir, "source");
    lived(source.as_ref()).await;
    let before = everything(source.as_ref()).await;
    assert!(before.iter().all(|(part, records)| records.len() > 1 || panic!("{part}")));
    let pretend = PretendAws::start().await;
    let dynamo: Arc<dyn Archive> = store(pretend.endpoint()).await;
    assert!(archive::is_empty(dynamo.as_ref()).await.unwrap());
    let epoch = dynamo.epoch().await.unwrap();

    // Cut off in the middle, gone on with, and again.
    let cut = AtomicU32::new(0);
    for until in [3, 8] {
        let copying = copy(source.as_ref(), &dynamo, |_, _| {
            cut.fetch_add(1, Ordering::Relaxed);
        });
        let reached = async {
            while cut.load(Ordering::Relaxed) < until {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = copying => panic!("the copy was not cut off"),
            reached = tokio::time::timeout(std::time::Duration::from_secs(60), reached) => reached.expect("it hangs"),
        }
        assert!(dynamo.get_note(NOTES, UNFINISHED).await.unwrap().is_some(), "nobody serves from half a copy");
        assert!(!archive::is_empty(dynamo.as_ref()).await.unwrap());
    }
    let counts = copy(source.as_ref(), &dynamo, |_, _| {}).await.unwrap();
    assert_eq!(counts[&Part::Sessions], before[&Part::Sessions].len() as u64);
    same(&everything(dynamo.as_ref()).await, &before);
    assert_ne!(dynamo.epoch().await.unwrap(), epoch, "another epoch");
    assert_ne!(dynamo.epoch().await.unwrap(), source.epoch().await.unwrap());
    assert_eq!(dynamo.get_note(NOTES, UNFINISHED).await.unwrap(), None);
    // What the intents promise holds of what was copied.
    let lab = "lab".parse().unwrap();
    assert_eq!(dynamo.newest_news(&lab).await.unwrap(), source.newest_news(&lab).await.unwrap());
    assert!(!dynamo.remember_nonce(&format!("{:032x}", 30), T0).await.unwrap(), "a nonce that was not pruned");
    assert_eq!(dynamo.open_orders().await.unwrap(), source.open_orders().await.unwrap());
    assert_eq!(dynamo.list_runs(&lab, None).await.unwrap().items, source.list_runs(&lab, None).await.unwrap().items);

    let back = sqlite(&dir, "back");
    copy(dynamo.as_ref(), &back, |_, _| {}).await.unwrap();
    same(&everything(back.as_ref()).await, &before);
    assert_ne!(back.epoch().await.unwrap(), source.epoch().await.unwrap());

    // Written to meanwhile: the copy says so and is not finished.
    let other: Arc<dyn Archive> = sqlite(&dir, "other");
    let session = of_job(9999, 0);
    other.open(session.clone()).await.unwrap();
    assert!(matches!(
        copy(source.as_ref(), &other, |_, _| {}).await,
        Err(CopyError::Differs { part: Part::Sessions, .. })
    ));
    assert!(other.get_note(NOTES, UNFINISHED).await.unwrap().is_some());
    let _: SessionId = session.id;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn a_copy_gets_through_a_dynamodb_that_throttles() {
    let dir = tempfile::tempdir().unwrap();
    let source = sqlite(&dir, "source");
    for job in 1..200 {
        let session = of_job(job, 0);
        source.open(session.clone()).await.unwrap();
        source.record_issuance(issued_for(&session, &format!("ASIA{job}"), T0)).await.unwrap();
    }
    let pretend = PretendAws::start().await;
    let between = Between::start(pretend.endpoint(), Faults { refused: 10, lost: 5, not_now: 10 }).await;
    let dynamo: Arc<dyn Archive> = store(between.endpoint()).await;
    copy(source.as_ref(), &dynamo, |_, _| {}).await.unwrap();
    assert_eq!(everything(dynamo.as_ref()).await, everything(source.as_ref()).await);
    assert!(between.dealt() > 50);
}
