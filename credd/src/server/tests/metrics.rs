//! What the node counts, as Prometheus reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use credd_protocol::local::Response;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use prometheus::Prometheus;

use super::fake_credvend::error;
use super::house::{House, in_a_house, in_a_house_for};
use crate::control::ToKeeper;
use crate::server::clock::Clock as _;

#[path = "../../../../tests/alerts/prometheus.rs"]
mod prometheus;

async fn page(house: &House) -> String {
    let mut stream = UnixStream::connect(&house.user_socket).await.unwrap();
    stream.write_all(b"{\"op\":\"metrics\"}\n").await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    match serde_json::from_slice(&all).unwrap() {
        Response::Metrics(text) => text,
        other => panic!("{other:?}"),
    }
}

fn has(page: &str, line: &str) {
    assert!(page.lines().any(|l| l == line), "{line}\n{page}");
}

/// A node that has done everything that is counted, and its page.
async fn used() -> String {
    let mut house = House::new().await;
    let (job, token) = house.job(7).await;
    for _ in 0..3 {
        assert_eq!(house.ask(7, &token).await.status, 200);
    }
    assert_eq!(house.ask(8, &token).await.status, 403);
    let (ended, other) = house.job(9).await;
    assert_eq!(house.ask(9, &other).await.status, 200);
    house.end(&ended.run).await;
    house.until("the end is delivered", |h| h.heard(&ToKeeper::EndDelivered { run: ended.run })).await;
    assert!(house.session_of(&job.run).is_some());
    page(&house).await
}

fn first_expiry(page: &str) -> Option<i64> {
    page.lines().find_map(|l| l.strip_prefix("credd_first_expiry_timestamp_seconds ")).map(|at| at.parse().unwrap())
}

/// Not of one that nobody uses any more, which is not renewed and may expire in peace.
#[test]
fn the_end_of_credentials_that_cannot_be_renewed_shows() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (_, token) = house.job(7).await;
        assert_eq!(house.ask(7, &token).await.status, 200);
        house.clock.jump(time::Duration::minutes(31));
        // Landed, not only asked for.
        while !page(&house).await.contains("credd_fetches_total{result=\"ok\"} 2\n") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        house.clock.jump(time::Duration::minutes(55));
        assert_eq!(first_expiry(&page(&house).await), None);
        let away = error("Unavailable", "credvend is not itself", true);
        house.credvend.script.borrow_mut().refuse_credentials = Some((503, away));
        assert_eq!(house.ask(7, &token).await.status, 200, "it still lives");
        house.until("it is asked for", |h| h.counts().1 >= 3).await;
        let end = loop {
            if let Some(end) = first_expiry(&page(&house).await) {
                break end;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let left = end - house.clock.now().wall.unix_timestamp();
        assert!((0..600).contains(&left), "{left} s");
    });
}

#[test]
fn what_happens_is_counted() {
    in_a_house(async || {
        let page = used().await;
        for line in [
            "credd_jobs{state=\"open\"} 1",
            "credd_jobs{state=\"ending\"} 0",
            "credd_requests_total{result=\"cached\"} 2",
            "credd_requests_total{result=\"waited\"} 2",
            "credd_requests_total{result=\"denied\"} 1",
            "credd_denials_total{code=\"OtherJob\"} 1",
            "credd_fetches_total{result=\"ok\"} 2",
            "credd_fetches_total{result=\"failed\"} 0",
            "credd_ends_total{result=\"ok\"} 1",
            "credd_credvend_reachable 1",
        ] {
            has(&page, line);
        }
        assert_eq!(first_expiry(&page), None, "nothing failed");
    });
}

#[test]
fn a_credvend_that_is_away_shows() {
    in_a_house(async || {
        let mut house = House::with(|plan, _| plan.credvend_up = false).await;
        let (_, token) = house.job(7).await;
        assert_eq!(house.ask(7, &token).await.status, 503);
        let page = page(&house).await;
        for line in
            ["credd_credvend_reachable 0", "credd_jobs{state=\"opening\"} 1", "credd_denials_total{code=\"NotNow\"} 1"]
        {
            has(&page, line);
        }
        assert!(!page.contains("credd_credvend_heard_timestamp_seconds 0"), "never is not 1970");
    });
}

#[test]
fn the_document_has_every_metric_with_its_type_and_labels() {
    in_a_house(async || {
        let page = used().await;
        let mut families = BTreeMap::new();
        for (name, kind) in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')) {
            let samples = page.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
            let labels: BTreeSet<&str> =
                samples.filter_map(|rest| rest.split_once('=')).map(|(label, _)| label).collect();
            families.insert(name, (kind, labels));
        }
        let document = include_str!("../../../../docs/metrics.md");
        let section = document.split("## credd's\n").nth(1).unwrap().split("\n## ").next().unwrap();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
        let documented: BTreeMap<&str, (&str, BTreeSet<&str>)> = rows
            .map(|row| {
                let cells: Vec<&str> = row.split('|').map(str::trim).collect();
                let labels = cells[2].split(',').map(|label| label.trim().trim_matches('`'));
                let labels = labels.filter(|label| !label.is_empty()).collect();
                (cells[0].trim_end_matches('`'), (cells[1], labels))
            })
            .collect();
        assert_eq!(families, documented);
    });
}

#[test]
#[cfg_attr(not(has_prometheus), ignore = "prometheus is missing (Debian: prometheus)")]
fn a_real_prometheus_alarms_while_credvend_is_away() {
    in_a_house_for(Duration::from_secs(240), async || {
        let spare = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut house = House::with(|plan, _| plan.config.metrics = Some(spare)).await;
        let (_, token) = house.job(7).await;
        assert_eq!(house.ask(7, &token).await.status, 200);
        // Prometheus is waited for by another thread: this one serves what it asks for.
        let start = move || Arc::new(Prometheus::start(&[("credd", spare.port())]));
        let prometheus = tokio::task::spawn_blocking(start).await.unwrap();
        assert!(prometheus.firing().is_empty(), "{:?}", prometheus.firing());
        let until = async |what: &'static str, fires: bool| {
            let prometheus = prometheus.clone();
            let waiting = move || prometheus.until(what, |p| p.firing().contains("CreddCredvendUnreachable") == fires);
            tokio::task::spawn_blocking(waiting).await.unwrap();
        };
        house.credvend.stop().await;
        until("the alarm that credvend is away", true).await;
        house.credvend.start().await;
        until("the alarm's end", false).await;
    });
}

#[test]
fn the_page_is_served_where_it_is_configured_and_nothing_else_is() {
    in_a_house(async || {
        // A job's process took the port while credd restarted.
        let thief = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let spare = thief.local_addr().unwrap();
        let mut house = House::with(|plan, _| plan.config.metrics = Some(spare)).await;
        let (_, token) = house.job(7).await;
        assert_eq!(house.ask(7, &token).await.status, 200);
        drop(thief);
        while TcpStream::connect(spare).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let ask = async |head: &str| {
            let mut stream = TcpStream::connect(spare).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            text
        };
        let answer = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())) && body.contains("credd_jobs{"));
        assert!(ask("GET / HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404"));
        assert!(ask("POST /metrics HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404"));
        // Closed with bytes unread, or in good order: no answer either way.
        let mut endless = TcpStream::connect(spare).await.unwrap();
        let _ = endless.write_all(&[b'x'; 64 * 1024]).await;
        let mut all = Vec::new();
        let _ = endless.read_to_end(&mut all).await;
        assert!(all.is_empty());
    });
}
