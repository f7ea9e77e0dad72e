//! Against the pretend AWS. It keeps to DynamoDB's conditions, transactions, sizes of items and pages, and reserved words;
//! it never throttles, knows no conflict of transactions, answers every read with the newest, and is one thread of Python
//! that reads a whole partition for each question. What it does not do, [`Between`] does in its place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use credd_protocol::SessionId;
use credd_protocol::credentials_api_v1::SessionStatus;

use super::super::conformance::{self, T0, issued_for, of_job};
use super::item::{self, key, number, text};
use super::{DynamoStore, Store, StoreError, Tables, keys};
use crate::source::aws::{Aws, AwsOptions};
use crate::store::{Denied, Ended, IssuedTo, News, NewsKind, Opened, Session, SessionFilter};

#[path = "../../../tests/pretend_aws/mod.rs"]
mod pretend_aws;

use pretend_aws::between::{Between, Faults};
use pretend_aws::{Keys, PretendAws};

static NUMBER: AtomicU32 = AtomicU32::new(0);

async fn at(endpoint: &str, prefix: &str, patience: Duration) -> Arc<DynamoStore> {
    let mut options = AwsOptions::new("us-east-1".parse().unwrap());
    // One thread of Python, on a machine that has other things to do.
    options.timeouts.attempt = LONG;
    let aws = Aws::with_credentials(options, Keys::new("test", "test", None).provider()).await;
    Arc::new(DynamoStore::with_patience(aws.dynamodb(Some(endpoint)), Tables::new(prefix), patience, 16))
}

/// Thousands of callers at once wait for one another at a pretend AWS.
const LONG: Duration = Duration::from_secs(1800);

async fn store(endpoint: &str) -> Arc<DynamoStore> {
    let store = at(endpoint, &format!("t{}-", NUMBER.fetch_add(1, Ordering::Relaxed)), LONG).await;
    store.init(false).await.unwrap();
    store
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn it_keeps_the_stores_promises() {
    let pretend = PretendAws::start().await;
    let endpoint = pretend.endpoint();
    conformance::all(|| async { store(endpoint).await as Arc<dyn Store> }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn it_keeps_them_while_dynamodb_throttles_conflicts_and_loses_answers() {
    let pretend = PretendAws::start().await;
    let faults = Faults { refused: 8, lost: 5, not_now: 8 };
    let between = Between::start(pretend.endpoint(), faults).await;
    let endpoint = between.endpoint();
    conformance::small(|| async { store(endpoint).await as Arc<dyn Store> }).await;
    assert!(between.dealt() > 500, "{}", between.dealt());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn a_store_that_stays_away_is_told_as_passing_within_its_patience() {
    let pretend = PretendAws::start().await;
    let between = Between::start(pretend.endpoint(), Faults::default()).await;
    let patient = store(between.endpoint()).await;
    let session = of_job(1, 0);
    patient.open(session.clone()).await.unwrap();
    let prefix = patient.tables().state.trim_end_matches("state").to_owned();
    let hurried = at(between.endpoint(), &prefix, Duration::from_millis(300)).await;
    assert_eq!(hurried.get(session.id).await.unwrap(), Some(session.clone()));
    for faults in [
        Faults { refused: 100, ..Faults::default() },
        Faults { lost: 100, ..Faults::default() },
        Faults { not_now: 100, ..Faults::default() },
    ] {
        between.set(faults);
        let begun = std::time::Instant::now();
        let ended = hurried.end(session.id, SessionStatus::Completed, T0, "over").await;
        assert!(matches!(&ended, Err(StoreError::Unavailable(_))), "{ended:?}");
        assert!(begun.elapsed() < Duration::from_secs(5));
        let opened = hurried.open(of_job(2, 0)).await;
        assert!(matches!(&opened, Err(StoreError::Unavailable(_))), "{opened:?}");
        let recorded = hurried.record_issuance(issued_for(&session, "ASIA1", T0)).await;
        assert!(matches!(&recorded, Err(StoreError::Unavailable(_))), "{recorded:?}");
    }
    // Then it works again, and nothing was half done.
    between.set(Faults::default());
    let ended = hurried.end(session.id, SessionStatus::Completed, T0, "over").await.unwrap();
    assert!(matches!(ended, Ended::Now(_) | Ended::Before(_)), "{ended:?}");
    hurried.open(of_job(2, 0)).await.unwrap();
    assert_eq!(hurried.list(&SessionFilter::default(), None).await.unwrap().items.len(), 2);
    let missing = at(between.endpoint(), "nobodys-", LONG).await;
    let error = missing.epoch().await.unwrap_err();
    assert!(matches!(error, StoreError::Broken(_)) && error.to_string().contains("store init"), "{error}");
    let stranger = Aws::with_credentials(
        AwsOptions::new("us-east-1".parse().unwrap()),
        Keys::new("AKIAIOSFODNN7NOBODYX", "wrong", None).provider(),
    );
    let stranger = DynamoStore::new(stranger.await.dynamodb(Some(between.endpoint())), Tables::new(&prefix));
    let error = stranger.epoch().await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)) && error.to_string().contains("own credentials"), "{error}");
}

/// Names without order, as long as names may be: the worst that a list of nodes can be.
fn scattered(count: usize) -> Vec<credd_protocol::NodeName> {
    (0..count).map(|i| format!("{:0>57}x{:06}", "n", i * 7 % 1_000_003).parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn what_is_longer_than_an_item_is_kept_whole() {
    let pretend = PretendAws::start().await;
    let store = store(pretend.endpoint()).await;
    let session = Session { nodes: scattered(10_000), ..of_job(1, 0) };
    assert_eq!(store.open(session.clone()).await.unwrap(), Opened::New(session.clone()));
    assert_eq!(
        store.open(Session { id: SessionId::random(), ..session.clone() }).await.unwrap(),
        Opened::Existing(session.clone())
    );
    store.add_node(session.id, &"late".parse().unwrap()).await.unwrap();
    let mut grown = session.clone();
    grown.nodes.push("late".parse().unwrap());
    assert_eq!(store.list(&SessionFilter::default(), None).await.unwrap().items, [grown]);
    let news = News {
        kind: NewsKind::Invalidated,
        sessions: vec![session.id],
        reason: "revoked".into(),
        order: None,
        nodes: session.nodes.clone(),
        completed: vec![],
    };
    let lab = "lab".parse().unwrap();
    assert_eq!(store.publish(&lab, news.clone(), T0).await.unwrap(), 1);
    assert_eq!(store.news(&lab, 0).await.unwrap()[0].news, news);
    store.end(session.id, SessionStatus::Completed, T0, "").await.unwrap();
    // What goes takes its pieces along.
    assert_eq!(store.prune(T0 + time::Duration::DAY).await.unwrap(), 2);
    let left = store.db.client.scan().table_name(&store.tables().state).send().await.unwrap();
    let left: Vec<_> = left.items().iter().filter_map(|i| i[item::PK].as_s().ok()).collect();
    assert!(!left.iter().any(|pk| pk.starts_with("pieces#")), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn a_prune_that_is_cut_off_anywhere_goes_on() {
    let pretend = PretendAws::start().await;
    let between = Between::start(pretend.endpoint(), Faults::default()).await;
    let store = store(between.endpoint()).await;
    let before = T0 + time::Duration::DAY;
    let active = Session { nodes: scattered(40), ..of_job(1000, 0) };
    store.open(active.clone()).await.unwrap();
    let (mut calls, mut cuts) = (0, 0);
    loop {
        // With one more call that gets through each time.
        let session = Session { nodes: scattered(40), ..of_job(1 + calls, 0) };
        store.open(session.clone()).await.unwrap();
        store.end(session.id, SessionStatus::Invalidated, T0, "revoked").await.unwrap();
        between.cut_after(calls.into());
        let log = keys::log(&session.cluster, session.opened, session.id);
        let pruned = super::sessions::prune_partition(&store.db, &log, before).await;
        between.cut_after(u64::MAX);
        // Whatever is left of it keeps nobody from seeing the others.
        let listed = store.list(&SessionFilter::default(), None).await.unwrap().items;
        assert!(listed.contains(&active) && listed.len() <= 2, "{calls}: {listed:?}");
        store.prune(before).await.unwrap();
        assert_eq!(store.list(&SessionFilter::default(), None).await.unwrap().items, std::slice::from_ref(&active));
        for (table, own) in [(&store.tables().sessions, &session), (&store.tables().state, &session)] {
            let left = store.db.client.scan().table_name(table).send().await.unwrap();
            let left: Vec<String> = left.items().iter().map(|i| format!("{i:?}")).collect();
            assert!(!left.iter().any(|item| item.contains(&own.id.to_string())), "{calls}: {left:?}");
            let pieces = left.iter().filter(|item| item.contains("pieces#")).count();
            assert!(pieces <= 1, "{calls}: the active session's alone, not {pieces}");
        }
        if pruned.is_ok() {
            break;
        }
        (calls, cuts) = (calls + 1, cuts + 1);
    }
    assert_eq!(cuts, 6, "a query, a read, and a deletion of each kind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn making_the_tables_again_changes_nothing_and_a_restore_is_another_store() {
    let pretend = PretendAws::start().await;
    let store = store(pretend.endpoint()).await;
    let epoch = store.epoch().await.unwrap();
    assert!(store.init(false).await.unwrap().is_empty());
    assert_eq!(store.epoch().await.unwrap(), epoch);
    store.init(true).await.unwrap();
    assert_ne!(store.epoch().await.unwrap(), epoch);
    for name in store.tables().all() {
        let table = store.db.client.describe_table().table_name(name).send().await.unwrap().table.unwrap();
        assert_eq!(table.deletion_protection_enabled, Some(true), "{name}");
        assert!(table.global_secondary_indexes.is_none() && table.local_secondary_indexes.is_none());
    }
    // A newer credvend's tables are left alone.
    let mut identity = key(keys::IDENTITY, item::ALONE);
    identity.insert("Epoch".into(), text("x"));
    identity.insert("SchemaVersion".into(), number(99));
    let put = store.db.client.put_item().table_name(&store.tables().state).set_item(Some(identity));
    put.send().await.unwrap();
    let error = store.check().await.unwrap_err();
    assert!(matches!(error, StoreError::Broken(_)) && error.to_string().contains("newer"), "{error}");
    // Nor is another program's table taken.
    let other = at(pretend.endpoint(), "other-", LONG).await;
    let create = store.db.client.create_table().table_name("other-sessions");
    let id = aws_sdk_dynamodb::types::KeySchemaElement::builder().attribute_name("id");
    let attribute = aws_sdk_dynamodb::types::AttributeDefinition::builder().attribute_name("id");
    create
        .key_schema(id.key_type(aws_sdk_dynamodb::types::KeyType::Hash).build().unwrap())
        .attribute_definitions(
            attribute.attribute_type(aws_sdk_dynamodb::types::ScalarAttributeType::S).build().unwrap(),
        )
        .billing_mode(aws_sdk_dynamodb::types::BillingMode::PayPerRequest)
        .send()
        .await
        .unwrap();
    let error = other.init(false).await.unwrap_err();
    assert!(error.to_string().contains("another program's"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn what_has_expired_counts_for_nothing_though_dynamodb_keeps_it() {
    let pretend = PretendAws::start().await;
    let store = store(pretend.endpoint()).await;
    let long_ago = T0 - time::Duration::days(3000);
    let session = Session { opened: long_ago, ..of_job(1, 0) };
    store.open(session.clone()).await.unwrap();
    store.record_issuance(issued_for(&session, "ASIA1", long_ago)).await.unwrap();
    let of = IssuedTo::Session(session.id);
    assert_eq!(store.list_issuances(&of, T0, None).await.unwrap().items, []);
    assert_eq!(store.list_issuances(&of, long_ago, None).await.unwrap().items.len(), 1);
    assert!(store.lease("x", "a", long_ago, long_ago + time::Duration::MINUTE).await.unwrap());
    assert!(store.lease("x", "b", T0, T0 + time::Duration::MINUTE).await.unwrap(), "an expired lease is nobody's");
    let endless = crate::store::Issuance { expires: T0 + time::Duration::days(3), ..issued_for(&session, "ASIA2", T0) };
    assert!(store.record_issuance(endless).await.unwrap_err().to_string().contains("live longer"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn the_projects_table_is_taken_and_changed_as_a_whole_and_in_parts() {
    use super::ProjectsError;
    use crate::projects::edit::{self, RoleChange};
    let pretend = PretendAws::start().await;
    let store = store(pretend.endpoint()).await;
    let row = |project: &str, arn: &str| {
        let put = store.db.client.put_item().table_name(&store.tables().projects);
        put.item("ProjectId", text(project)).item("RoleArn", text(arn)).send()
    };
    let arn = "arn:aws:iam::123456789012:role/genomics";
    // As an administrator of the IAM Credentials API (v1) wrote it.
    row("genomics", arn).await.unwrap();
    let (_, map) = store.projects(None).await.unwrap();
    assert_eq!(map.by_id(&"genomics".parse().unwrap()).unwrap()[&"default".parse().unwrap()].arn.as_str(), arn);
    let change = RoleChange {
        revoke_on_end: None,
        arn: "arn:aws:iam::123456789012:role/train".parse().unwrap(),
        duration: Some("2h".into()),
        source_identity: Some(true),
        session_tags: None,
        session_name: None,
        account: None,
        clusters: vec!["lab".parse().unwrap(), "hpc".parse().unwrap()],
    };
    let (genomics, train) = ("genomics".parse().unwrap(), "train".parse().unwrap());
    store.change_projects(|text| edit::set(text, &genomics, &train, &change)).await.unwrap();
    let (_, map) = store.projects(None).await.unwrap();
    let roles = map.by_id(&genomics).unwrap();
    assert_eq!((roles.len(), roles[&train].duration_seconds, roles[&train].source_identity), (2, 7200, true));
    assert_eq!(map.clusters[&genomics], change.clusters.iter().cloned().collect());
    store.change_projects(|text| edit::remove(text, &genomics, Some(&train))).await.unwrap();
    assert_eq!(store.projects(None).await.unwrap().1.by_id(&genomics).unwrap().len(), 1);
    // One bad row: nothing of the table is taken.
    row("climate", "nonsense").await.unwrap();
    let Err(ProjectsError::Invalid(problems)) = store.projects(None).await else { panic!("a bad map was taken") };
    assert!(problems.iter().any(|p| p.text.starts_with("project climate: ")), "{problems:?}");
    let region = Some("cn-north-1".parse().unwrap());
    row("climate", arn).await.unwrap();
    assert!(matches!(store.projects(region.as_ref()).await, Err(ProjectsError::Invalid(_))));
}

/// What the documentation says that each operation costs. Nothing else asks for so much as a table's description.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn what_each_intent_costs() {
    let pretend = PretendAws::start().await;
    let between = Between::start(pretend.endpoint(), Faults::default()).await;
    let store = store(between.endpoint()).await;
    // The first of a week notes it.
    let first = of_job(1, 0);
    store.open(first.clone()).await.unwrap();
    store.record_issuance(issued_for(&first, "ASIA0", T0)).await.unwrap();
    between.take_calls();
    let costs = |what: &str, expected: &[(&str, u64)]| {
        let expected: std::collections::BTreeMap<String, u64> =
            expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        assert_eq!(between.take_calls(), expected, "{what}");
    };
    let session = of_job(2, 0);
    let lab = session.cluster.clone();
    store.find_run(&lab, &conformance::run(2, 0)).await.unwrap();
    costs("a run that is new", &[("Query", 1)]);
    store.open(session.clone()).await.unwrap();
    costs("open", &[("TransactWriteItems", 1)]);
    store.find_run(&lab, &conformance::run(2, 0)).await.unwrap();
    costs("a run that is open", &[("Query", 1), ("GetItem", 1)]);
    store.open(Session { id: SessionId::random(), ..session.clone() }).await.unwrap();
    costs("open again", &[("TransactWriteItems", 1), ("GetItem", 1)]);
    store.get(session.id).await.unwrap();
    store.status(session.id).await.unwrap();
    costs("get and status", &[("GetItem", 2)]);
    store.record_issuance(issued_for(&session, "ASIA1", T0)).await.unwrap();
    costs("an issuance", &[("BatchWriteItem", 1)]);
    store.remember_nonce("n", T0).await.unwrap();
    costs("a nonce", &[("PutItem", 1)]);
    // Whatever else is denied, of this role and others.
    let role = issued_for(&session, "ASIA1", T0).role_arn;
    let names = [Denied::Everyone, Denied::UserId("AROA:lab-bob-n1".into()), Denied::SourceIdentity("bob".into())];
    store.revocations_of(&role, &names).await.unwrap();
    costs("what of an AssumeRole is denied", &[("BatchGetItem", 1)]);
    store.list_revocations(T0).await.unwrap();
    store.news(&lab, 0).await.unwrap();
    store.open_orders().await.unwrap();
    store.list_blocks().await.unwrap();
    costs("what is polled", &[("Query", 4)]);
    store.list_runs(&lab, None).await.unwrap();
    costs("the sweep's list", &[("Query", u64::from(keys::SHARDS))]);
    store.lease("sweep", "a", T0, T0).await.unwrap();
    costs("a lease", &[("PutItem", 1)]);
    store.end(session.id, SessionStatus::Completed, T0, "over").await.unwrap();
    costs("end", &[("GetItem", 1), ("TransactWriteItems", 1)]);
}

#[test]
fn the_policy_names_the_tables_and_no_more() {
    let policy = super::policy(&Tables::new("site-"), "aws-cn", "cn-north-1", "123456789012");
    let statement = &policy["Statement"][0];
    assert_eq!(statement["Resource"].as_array().unwrap().len(), 5);
    assert_eq!(statement["Resource"][1], "arn:aws-cn:dynamodb:cn-north-1:123456789012:table/site-sessions");
    let actions = statement["Action"].to_string();
    assert!(!actions.contains('*') && !actions.contains("DeleteTable"), "{actions}");
}

#[path = "copy_tests.rs"]
mod copying;
