//! The page, the document and the code agree.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use credd_protocol::{ProjectId, RoleArn};

use super::measured::Measured;
use super::*;
use crate::source::{AssumeRequest, Assumed, Source, SourceError};
use crate::store::sqlite::SqliteStore;
use crate::store::{Cursor, SessionFilter, Store, conformance};

struct NoAws;

#[async_trait]
impl Source for NoAws {
    async fn turn(&self, _: &ProjectId) -> Result<(), SourceError> {
        Ok(())
    }

    fn delay(&self, _: &ProjectId) -> std::time::Duration {
        std::time::Duration::ZERO
    }

    async fn assume(&self, _: &AssumeRequest) -> Result<Assumed, SourceError> {
        Err(SourceError::Unavailable("throttled".into()))
    }

    async fn identity(&self) -> Result<String, SourceError> {
        Err(SourceError::Unavailable("throttled".into()))
    }
}

/// Everything has been counted once.
async fn used() -> (Arc<Metrics>, tempfile::TempDir) {
    let (metrics, dir) = (Arc::new(Metrics::default()), tempfile::tempdir().unwrap());
    let lab: ClusterName = "lab".parse().unwrap();
    let store =
        Measured::<dyn Store>::new(Arc::new(SqliteStore::open(&dir.path().join("db")).unwrap()), metrics.clone());
    store.check().await.unwrap();
    store.list(&SessionFilter::default(), Some(&Cursor("nonsense".into()))).await.unwrap_err();
    metrics.store_failures.get_or_create(&OfFailure { operation: "open", kind: "broken" }).inc();
    let role_arn: RoleArn = "arn:aws:iam::123456789012:role/g".parse().unwrap();
    let source = Measured::<dyn Source>::new(Arc::new(NoAws), metrics.clone());
    let request = AssumeRequest {
        project: "genomics".parse().unwrap(),
        session: credd_protocol::SessionId::random(),
        role_arn,
        session_name: "lab-alice-n1".into(),
        duration_seconds: 3600,
        source_identity: None,
        tags: vec![],
    };
    source.turn(&request.project).await.unwrap();
    source.assume(&request).await.unwrap_err();
    metrics.iam.get_or_create(&OfResult { result: "ok" }).inc();
    metrics.node_addresses(&lab, true, 1);
    let question = OfQuestion { cluster: "lab".into(), question: "job" };
    metrics.slurm_failures.get_or_create(&question).inc();
    metrics.slurm_seconds.get_or_create(&question).observe(0.5);
    metrics.request("node-open", "NotOnNode", Duration::from_millis(3));
    metrics.event("refused", Some("NotOnNode"));
    metrics.swept(Err(()), Duration::from_secs(1));
    metrics.sessions_open(&lab, 3);
    metrics.nodes_connected(&lab, 2);
    metrics.certificate_expires("server", OffsetDateTime::UNIX_EPOCH);
    metrics.client_crl_expires(0, 0);
    metrics.roles(0, 0);
    (metrics, dir)
}

/// Name → (type, labels), of a page in this format.
fn families(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut families = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let samples = text
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix(suffix))
            .filter(|rest| rest.starts_with(['{', ' ']) || (kind == "histogram" && rest.starts_with("_bucket{")));
        let mut labels = BTreeSet::new();
        for sample in samples {
            let inside =
                sample.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(inside, _)| inside);
            let names = inside.split("\",").filter_map(|pair| pair.split_once('=')).map(|(name, _)| name.to_owned());
            labels.extend(names.filter(|name| name != "le"));
        }
        families.insert(format!("{name}{suffix}"), (kind.to_owned(), labels));
    }
    families
}

#[tokio::test]
async fn the_document_has_every_metric_with_its_type_and_labels() {
    let (metrics, _dir) = used().await;
    let document = include_str!("../../../docs/metrics.md");
    let section = document.split("## credvend's\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let documented: BTreeMap<String, (String, BTreeSet<String>)> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let labels = cells[2].split(',').map(|label| label.trim().trim_matches('`').to_owned());
            let labels = labels.filter(|label| !label.is_empty()).collect();
            (cells[0].trim_end_matches('`').to_owned(), (cells[1].to_owned(), labels))
        })
        .collect();
    assert_eq!(families(&metrics.text()), documented);
}

/// A default of the trait that the wrapper forgot would answer instead of the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_measured_store_keeps_every_promise() {
    let dirs = std::sync::Mutex::new(vec![]);
    conformance::all(|| async {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(&dir.path().join("db")).unwrap());
        dirs.lock().unwrap().push(dir);
        Measured::<dyn Store>::new(store, Arc::default()) as Arc<dyn Store>
    })
    .await;
}

#[tokio::test]
async fn labels_are_never_of_a_user_or_job() {
    let (metrics, _dir) = used().await;
    let labels: BTreeSet<String> = families(&metrics.text()).into_values().flat_map(|(_, labels)| labels).collect();
    let small = [
        "certificate",
        "cluster",
        "code",
        "event",
        "kind",
        "operation",
        "question",
        "reason",
        "result",
        "verb",
        "version",
    ];
    assert_eq!(labels, small.map(str::to_owned).into());
}

#[tokio::test]
async fn what_fails_and_what_is_under_way_is_counted() {
    let (metrics, _dir) = used().await;
    let text = metrics.text();
    for line in [
        "credvend_assume_role_total{result=\"unavailable\"} 1",
        "credvend_assume_role_under_way 0",
        "credvend_sts_waiting 0",
        "credvend_sts_wait_duration_seconds_count 1",
        "credvend_sweeps_total{result=\"failed\"} 1",
        "credvend_last_sweep_timestamp_seconds 0",
        "credvend_refusals_total{code=\"NotOnNode\"} 1",
        "credvend_requests_total{verb=\"node-open\",result=\"NotOnNode\"} 1",
        "credvend_sessions_open{cluster=\"lab\"} 3",
        "credvend_store_duration_seconds_count{operation=\"check\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}: {text}");
    }
    for kind in ["unavailable", "broken"] {
        let line = format!("credvend_store_failures_total{{operation=\"list\",kind=\"{kind}\"}} 0\n");
        assert!(text.contains(&line), "a caller's bad cursor is no failure");
    }
    assert!(text.ends_with("# EOF\n"));
}

/// Prometheus sees no increase in a series that begins with its first event.
#[test]
fn what_alerts_look_for_is_there_before_it_happens() {
    let metrics = Metrics::default();
    metrics.slurm_begins(&"lab".parse().unwrap());
    let text = metrics.text();
    let rules = include_str!("../../../packaging/prometheus/credd.rules.yml");
    let mut seen = 0;
    // What must pass one a second to count does so without its first.
    for line in rules.lines().filter(|line| line.contains("> 0")) {
        for after in ["rate(", "increase("].iter().flat_map(|function| line.split(function).skip(1)) {
            let selector = after.split('[').next().unwrap();
            let (name, labels) = selector.trim_end_matches('}').split_once('{').unwrap_or((selector, ""));
            let labels = if labels.contains("!=") { "" } else { labels };
            let there = |l: &str| l.starts_with(name) && l.contains(labels) && l.ends_with(" 0");
            assert!(text.lines().any(there), "{selector}\n{text}");
            seen += 1;
        }
    }
    assert!(seen >= 5, "{seen}");
    for operation in ["open", "record_issuance", "status"] {
        let line = format!("credvend_store_failures_total{{operation=\"{operation}\",kind=\"broken\"}} 0\n");
        assert!(text.contains(&line), "{text}");
    }
}

#[test]
fn every_alert_is_documented_and_asks_for_what_there_is() {
    let rules = include_str!("../../../packaging/prometheus/credd.rules.yml");
    let document = include_str!("../../../docs/metrics.md");
    let names = |text: &str, before: &str, after: &str| -> BTreeSet<String> {
        text.lines().filter_map(|l| Some(l.trim().strip_prefix(before)?.split(after).next()?.to_owned())).collect()
    };
    let alerts = document.split("## Alerts\n").nth(1).unwrap();
    assert_eq!(names(rules, "- alert: ", " "), names(alerts, "| `", "`"));
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    for word in rules.lines().filter(|l| !l.starts_with('#')).flat_map(|l| l.split(|c| !is_name(c))) {
        if ["credvend_", "credd_"].iter().any(|prefix| word.starts_with(prefix)) {
            let known = word.trim_end_matches("_bucket");
            assert!(document.contains(&format!("| `{known}` |")), "{word} is not documented");
        }
    }
}
