//! The node's metrics: every name, type and label is here, and in `docs/metrics.md`. For `credd metrics`, and for
//! `[metrics] listen`.
//!
//! This process is on every node and has one thread: plain cells, and the text format by hand (a page of code), instead of
//! a library's registry with its locks. Labels are of fixed sets, never a user or a job.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::Server;
use super::jobs::State;

/// What the text is.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Requests at a time; Prometheus needs one.
const CONNECTIONS: usize = 4;
/// For one request and its answer.
const TRY_AGAIN: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_REQUEST_BYTES: usize = 8 * 1024;

/// What is counted as it happens.
#[derive(Debug, Default)]
pub struct Metrics {
    cached: Cell<u64>,
    waited: Cell<u64>,
    denials: RefCell<BTreeMap<&'static str, u64>>,
    fetched: Cell<u64>,
    not_fetched: Cell<u64>,
    ends_delivered: Cell<u64>,
    ends_failed: Cell<u64>,
    invalidated: Cell<u64>,
}

fn add(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

impl Metrics {
    /// A request was answered from the cache.
    pub fn cached(&self) {
        add(&self.cached);
    }

    /// A request was answered with credentials after it had waited for credvend.
    pub fn waited(&self) {
        add(&self.waited);
    }

    /// A request was denied.
    pub fn denied(&self, code: &'static str) {
        *self.denials.borrow_mut().entry(code).or_default() += 1;
    }

    /// credvend was asked for credentials.
    pub fn fetched(&self, well: bool) {
        add(if well { &self.fetched } else { &self.not_fetched });
    }

    /// credvend was told of an end.
    pub fn told_end(&self, well: bool) {
        add(if well { &self.ends_delivered } else { &self.ends_failed });
    }

    /// credvend took sessions back.
    pub fn invalidated(&self, sessions: usize) {
        self.invalidated.set(self.invalidated.get() + sessions as u64);
    }
}

impl Server {
    /// The text for Prometheus.
    pub(super) fn metrics_text(&self) -> String {
        let (mut page, counted) = (Page::default(), &self.metrics);
        page.gauge("credd_build_info", "Which program this is");
        page.labelled("version", env!("CARGO_PKG_VERSION"), 1);

        let (mut opening, mut open, mut refused, mut ending) = (0, 0, 0, 0);
        let mut first_expiry = None;
        for run in self.jobs.borrow().all() {
            run.with_state(|state| match state {
                State::Opening(_) => opening += 1,
                State::Open(key) => {
                    open += 1;
                    let until = self.cache.borrow().failing_until(key).map(|at| at.unix_timestamp());
                    first_expiry = first_expiry.into_iter().chain(until).min();
                }
                State::Refused(_) => refused += 1,
                State::Ended => ending += 1,
            });
        }
        page.gauge("credd_jobs", "Jobs with a record on this node; ending: their end is not delivered");
        for (state, count) in [("opening", opening), ("open", open), ("refused", refused), ("ending", ending)] {
            page.labelled("state", state, count);
        }
        page.gauge(
            "credd_first_expiry_timestamp_seconds",
            "When the first credentials of an open job expire that could not be renewed",
        );
        if let Some(at) = first_expiry {
            page.plain(at);
        }

        let denied: u64 = counted.denials.borrow().values().sum();
        page.counter(
            "credd_requests_total",
            "Requests of jobs: answered from the cache, after waiting for credvend, denied",
        );
        for (result, count) in [("cached", counted.cached.get()), ("waited", counted.waited.get()), ("denied", denied)]
        {
            page.labelled("result", result, count);
        }
        page.counter("credd_denials_total", "Denied requests, by the code of docs/errors.md");
        for (code, count) in &*counted.denials.borrow() {
            page.labelled("code", code, count);
        }
        page.counter("credd_fetches_total", "Credentials asked of credvend, the first ones and refreshes");
        page.labelled("result", "ok", counted.fetched.get());
        page.labelled("result", "failed", counted.not_fetched.get());
        page.counter("credd_ends_total", "Ends of jobs told to credvend");
        page.labelled("result", "ok", counted.ends_delivered.get());
        page.labelled("result", "failed", counted.ends_failed.get());
        page.counter("credd_sessions_invalidated_total", "Sessions that credvend took back on the stream");
        page.plain(counted.invalidated.get());

        page.gauge("credd_credvend_reachable", "Whether the last exchange with credvend worked (1, 0)");
        page.plain(u8::from(self.credvend.problem().is_none()));
        page.gauge("credd_credvend_heard_timestamp_seconds", "When credvend last said something on the stream");
        if let Some(heard) = self.news.heard() {
            page.plain(heard.wall.unix_timestamp());
        }
        page.gauge("credd_connections", "Open connections of jobs");
        page.plain(self.watch.open());
        page.0
    }
}

/// The text, family by family.
#[derive(Default)]
struct Page(String);

impl Page {
    fn gauge(&mut self, name: &'static str, help: &str) {
        self.family(name, "gauge", help);
    }

    fn counter(&mut self, name: &'static str, help: &str) {
        self.family(name, "counter", help);
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// The name of the family that was begun last.
    fn name(&self) -> String {
        let line = self.0.rsplit("# TYPE ").next().unwrap_or_default();
        line.split(' ').next().unwrap_or_default().to_owned()
    }

    fn plain(&mut self, value: impl Display) {
        let name = self.name();
        let _ = writeln!(self.0, "{name} {value}");
    }

    /// Label values are words of ours: nothing is to be escaped.
    fn labelled(&mut self, label: &str, of: &str, value: impl Display) {
        let name = self.name();
        let _ = writeln!(self.0, "{name}{{{label}=\"{of}\"}} {value}");
    }
}

/// Where the page is served, if it is; until dropped.
#[derive(Debug)]
pub struct Listening {
    address: Option<SocketAddr>,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Listening {
    /// At this address.
    pub fn at(server: &Rc<Server>, address: Option<SocketAddr>) -> Self {
        let task = address.map(|address| tokio::task::spawn_local(serve(server.clone(), address)));
        Listening { address, task }
    }

    /// At this one from now on.
    pub fn move_to(&mut self, server: &Rc<Server>, address: Option<SocketAddr>) {
        if address != self.address {
            *self = Self::at(server, address);
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Serves `GET /metrics` for as long as the server lives. One request a connection: hyper's machinery is for the jobs.
///
/// While credd restarts, a job's process may have taken the port: until it is given back there is no page, and jobs do not
/// suffer for it.
async fn serve(server: Rc<Server>, address: SocketAddr) {
    let mut last = None;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if last != Some(error.kind()) => {
                tracing::error!(%address, %error, "metrics are not served ([metrics] listen); tried again every second");
                last = Some(error.kind());
            }
            Err(_) => {}
        }
        tokio::time::sleep(TRY_AGAIN).await;
    };
    if last.is_some() {
        tracing::info!(%address, "metrics are served");
    }
    let places = Rc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (server, places) = (server.clone(), places.clone());
        tokio::task::spawn_local(async move {
            // Too many: closed without an answer.
            if let Ok(_place) = places.try_acquire() {
                let _ = tokio::time::timeout(PATIENCE, answer(&server, stream)).await;
            }
        });
    }
}

async fn answer(server: &Server, mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut some = [0; 1024];
        let n = stream.read(&mut some).await?;
        if n == 0 || head.len() > MAX_REQUEST_BYTES {
            return Ok(());
        }
        head.extend_from_slice(&some[..n]);
    }
    let is_page = [&b"GET /metrics "[..], b"GET /metrics?"].iter().any(|begin| head.starts_with(begin));
    let (status, content_type, body) = match is_page {
        true => ("200 OK", CONTENT_TYPE, server.metrics_text()),
        false => ("404 Not Found", "text/plain", "GET /metrics\n".to_owned()),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}
