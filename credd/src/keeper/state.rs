//! The keeper's main loop and the state that it alone touches.

mod late;
mod looks;
mod reports;
mod server;
mod words;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use credd_protocol::NodeName;
use credd_protocol::record::RunDir;
use nix::sys::signal::Signal;
use peer::TcpPeers;
use sd_notify::NotifyState;

use self::late::LateRuns;
use super::launch::Launch;
use super::reload::Reloads;
use super::root_socket::Desk;
use super::runs::Runs;
use super::server_process::{STOP_PATIENCE, Server};
use super::signer::{Identity, Signer};
use super::{Event, Report, listeners, records, run_dir};
use crate::config::Config;
use crate::control::{RunId, ToKeeper, ToServer};

/// How often the records are looked at when nobody poked.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// So many jobs poked at a time are looked at with all others in one go.
const MANY_POKES: usize = 32;
/// How often a port that another process holds is tried.
const TRY_PORT_EVERY: Duration = Duration::from_secs(1);
/// How soon a server that died is replaced, at first and at last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// A server that lived so long did not die of its start.
const LIVED_WELL: Duration = Duration::from_secs(60);
/// For the server to answer a question about itself.
const REPORT_PATIENCE: Duration = Duration::from_secs(2);

/// What the keeper works with.
pub struct Parts {
    pub config_path: PathBuf,
    pub host: Option<NodeName>,
    pub program: Box<dyn Launch>,
    pub passed_http: Option<TcpListener>,
    pub user: UnixListener,
    pub peers: TcpPeers,
    pub desk: Desk,
    pub signer: Signer,
    pub identity: Arc<Identity>,
}

pub struct Keeper {
    pub(super) config: Config,
    run_dir: RunDir,
    pub(super) parts: Parts,
    http: Option<TcpListener>,
    endpoint_ours: bool,
    pub(super) endpoint_problem: Option<String>,
    try_port_at: Instant,
    pub(super) server: Option<Server>,
    pub(super) reloads: Reloads,
    generation: u64,
    launch_at: Instant,
    backoff: Duration,
    runs: Runs,
    late: LateRuns,
    looked: bool,
    look_at: Instant,
    complained: HashSet<(PathBuf, String)>,
    /// Runs that are over by Slurm's word, until the next look through all records: `over` in their directories.
    over: BTreeSet<RunId>,
    /// Why the last look at all records failed.
    unreadable: Option<String>,
    reports: HashMap<u64, (Instant, SyncSender<Report>)>,
    next_report: u64,
    announced: bool,
    watchdog: Option<Duration>,
}

impl Keeper {
    pub fn new(config: Config, mut parts: Parts) -> Self {
        let now = Instant::now();
        let http = parts.passed_http.take();
        Keeper {
            run_dir: config.run_dir(),
            config,
            parts,
            http,
            endpoint_ours: false,
            endpoint_problem: None,
            try_port_at: now,
            server: None,
            reloads: Reloads::default(),
            generation: 0,
            launch_at: now,
            backoff: BACKOFF.0,
            runs: Runs::default(),
            late: LateRuns::default(),
            looked: false,
            look_at: now,
            complained: HashSet::new(),
            over: BTreeSet::new(),
            unreadable: None,
            reports: HashMap::new(),
            next_report: 0,
            announced: false,
            watchdog: sd_notify::watchdog_enabled().map(|period| period / 2),
        }
    }

    /// Runs until SIGTERM or SIGINT, and ends the server in order.
    pub fn run(mut self, events: &Receiver<Event>) {
        self.identify();
        loop {
            let mut replies = Vec::new();
            let (mut poked, mut asked) = (BTreeSet::new(), Vec::new());
            let first = match events.recv_timeout(self.until_next()) {
                Ok(event) => Some(event),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            // All that waits is taken before the next look, so one look answers any number of pokes.
            for event in first.into_iter().chain(events.try_iter().take(super::QUEUE)) {
                match event {
                    Event::Look(job, reply) => {
                        poked.insert(job);
                        replies.extend(reply);
                    }
                    Event::Report(reply) => self.ask_server(reply),
                    // A job's process may make the server ask as often as it likes: asked together, looked once.
                    Event::Server(generation, ToKeeper::Look { id, job }) if self.is_current(generation) => {
                        poked.insert(job);
                        asked.push((id, job));
                    }
                    Event::Server(generation, message) => self.hear(generation, message),
                    Event::ServerGone(generation) => self.server_gone(generation),
                    Event::Signal(Signal::SIGHUP) => self.reload(vec![]),
                    Event::Reload(reply) => self.reload(vec![reply]),
                    Event::Signal(signal) => {
                        tracing::info!(%signal, "stopping");
                        return self.stop(events);
                    }
                }
            }
            let now = Instant::now();
            self.look_after_server(now);
            self.hold_endpoint(now);
            self.launch(now);
            let mut unseen = BTreeSet::new();
            if now >= self.look_at || poked.len() > MANY_POKES {
                self.look_at = now + LOOK_EVERY;
                if !self.look(None) {
                    unseen = poked;
                }
            } else {
                poked.retain(|job| !self.look(Some(*job)));
                unseen = poked;
            }
            // Without an answer the server does not call a token unknown.
            for (id, _) in asked.into_iter().filter(|(_, job)| !unseen.contains(job)) {
                self.tell(&ToServer::Looked { id });
            }
            for reply in replies {
                let _ = reply.try_send(());
            }
            self.expire_reports(now);
            self.announce();
            if self.watchdog.is_some() {
                let _ = sd_notify::notify(&[NotifyState::Watchdog]);
            }
        }
    }

    fn is_current(&self, generation: u64) -> bool {
        self.server.as_ref().is_some_and(|server| server.generation == generation)
    }

    fn until_next(&self) -> Duration {
        let mut next = self.look_at;
        if !self.endpoint_ours {
            next = next.min(self.try_port_at);
        } else if self.server.is_none() {
            next = next.min(self.launch_at);
        }
        if let Some(server) = &self.server {
            next = next.min(server.liveness.next());
        }
        if let Some(asked) = self.reports.values().map(|(asked, _)| *asked).min() {
            next = next.min(asked + REPORT_PATIENCE);
        }
        let wait = next.saturating_duration_since(Instant::now());
        self.watchdog.map_or(wait, |watchdog| wait.min(watchdog))
    }

    fn tell(&self, message: &ToServer) {
        // A server that is gone is noticed by its reader.
        if let Some(server) = &self.server
            && let Err(error) = server.link.send(message)
        {
            tracing::error!(%error, "cannot talk to the server process");
        }
    }

    /// Tells the service manager once: the records have been read, and jobs are served, or an alarm says why not. (A
    /// start that waits for a foreign process would hold up slurmd.)
    fn announce(&mut self) {
        let serving = self.server.as_ref().is_some_and(|server| server.ready);
        if self.announced || !self.looked || !(serving || self.endpoint_problem.is_some()) {
            return;
        }
        self.announced = true;
        let status = self.endpoint_problem.clone().unwrap_or_else(|| "serving".to_owned());
        tracing::info!(status, jobs = self.runs.counts().0, "credd is ready");
        let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
    }

    fn stop(mut self, events: &Receiver<Event>) {
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        let Some(server) = self.server.take() else { return };
        let _ = server.link.send(&ToServer::Stop);
        let deadline = Instant::now() + STOP_PATIENCE;
        loop {
            match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::ServerGone(generation)) if generation == server.generation => break,
                // What the server says last is still to be kept.
                Ok(Event::Server(generation, message)) => {
                    if generation == server.generation && self.server.is_none() {
                        self.hear_last(message);
                    }
                }
                Ok(_) => {}
                Err(_) => {
                    tracing::warn!("the server process did not end in time");
                    break;
                }
            }
        }
        server.end();
    }
}
