//! The keeper's main loop and the state that it alone touches.

mod late;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant, SystemTime};

use credd_protocol::local::{Health, JobStatus, MAX_LINE_BYTES, Outcome};
use credd_protocol::record::{RunDir, file};
use credd_protocol::{JobId, NodeName};
use nix::sys::signal::Signal;
use peer::TcpPeers;
use sd_notify::NotifyState;

use self::late::LateRuns;
use super::launch::Launch;
use super::liveness::Verdict;
use super::records::Refused;
use super::reload::Reloads;
use super::root_socket::Desk;
use super::runs::{Runs, sift};
use super::server_link::ServerLink;
use super::server_process::{Route, STOP_PATIENCE, Server};
use super::signer::{Identity, Signer};
use super::{Event, Report, listeners, records, run_dir};
use crate::config::Config;
use crate::control::{Job, RunId, ToKeeper, ToServer, late_status};
use crate::handover;

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
/// Questions to the server that may be open.
const MAX_REPORTS: usize = 64;
/// The longest sentence taken from the server, in characters.
const MAX_SENTENCE: usize = 1000;

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
    /// Runs that are over by Slurm's word, until the next look through all records.
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

    /// Gets the endpoint's listener, or raises the alarm and tries again later.
    fn hold_endpoint(&mut self, now: Instant) {
        if self.endpoint_ours || now < self.try_port_at {
            return;
        }
        let address = self.config.http.listen;
        match self.claim_endpoint() {
            Ok(()) => {
                self.endpoint_ours = true;
                if self.endpoint_problem.take().is_some() {
                    tracing::info!(%address, "the endpoint is credd's own again");
                    let _ = sd_notify::notify(&[NotifyState::Status("serving")]);
                }
            }
            Err(problem) => {
                self.try_port_at = now + TRY_PORT_EVERY;
                if let Err(error) = run_dir::remove_endpoint(&self.run_dir) {
                    tracing::error!(%error, "cannot remove the endpoint file");
                }
                if self.endpoint_problem.as_ref() != Some(&problem) {
                    tracing::error!(problem, "no job is served");
                    let _ = sd_notify::notify(&[NotifyState::Status(&problem)]);
                }
                self.endpoint_problem = Some(problem);
            }
        }
        self.parts.desk.board.set_obstacle(self.endpoint_problem.clone());
    }

    fn claim_endpoint(&mut self) -> Result<(), String> {
        let address = self.config.http.listen;
        let peers = &self.parts.peers;
        let listener = match self.http.take() {
            Some(listener) => listener,
            None => listeners::bind_http(address, peers).map_err(|problem| problem.to_string())?,
        };
        listeners::verify_http(&listener, address, peers).map_err(|problem| problem.to_string())?;
        self.http = Some(listener);
        run_dir::write_endpoint(&self.run_dir, address.port())
            .map_err(|error| format!("cannot write the endpoint file: {error}"))
    }

    fn launch(&mut self, now: Instant) {
        if self.server.is_some() || !self.endpoint_ours || now < self.launch_at {
            return;
        }
        let Some(http) = &self.http else { return };
        self.generation += 1;
        let generation = self.generation;
        let launched = self.parts.program.launch().and_then(|(control, child)| {
            control.set_write_timeout(Some(STOP_PATIENCE))?;
            let reader = control.try_clone()?;
            let link = Arc::new(ServerLink::new(control.try_clone()?));
            let server = Server::new(generation, link, child, now);
            handover::give(&control, http, &self.parts.user, &self.config)?;
            let route = Route {
                generation,
                events: self.parts.desk.events.clone(),
                signer: self.parts.signer.clone(),
                link: Arc::clone(&server.link),
            };
            std::thread::Builder::new().name("server-words".into()).spawn(move || route.read(reader))?;
            Ok(server)
        });
        match launched {
            Ok(server) => {
                self.server = Some(server);
                let jobs: Vec<Job> = self.runs.all().map(|run| run.job.clone()).collect();
                for job in jobs {
                    self.tell(&ToServer::Job(Box::new(job)));
                }
                self.tell_late();
                if self.looked {
                    self.tell(&ToServer::Scanned);
                }
            }
            Err(error) => {
                tracing::error!(%error, "cannot start the server process");
                self.back_off(now);
            }
        }
    }

    fn back_off(&mut self, now: Instant) {
        self.launch_at = now + self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF.1);
    }

    /// Asks the server process whether it is there, and ends one that is not.
    fn look_after_server(&mut self, now: Instant) {
        let Some(server) = &mut self.server else { return };
        match server.look(now) {
            Verdict::Wait => {}
            Verdict::Ask(id) => self.tell(&ToServer::Ping { id }),
            Verdict::Replace(why) => {
                tracing::error!(why, "the server process is ended");
                let generation = server.generation;
                self.server_gone(generation);
            }
        }
    }

    fn server_gone(&mut self, generation: u64) {
        let Some(server) = self.server.take_if(|server| server.generation == generation) else { return };
        let now = Instant::now();
        let lived = now.duration_since(server.started);
        let status = server.end();
        if lived >= LIVED_WELL {
            self.backoff = BACKOFF.0;
        }
        self.back_off(now);
        tracing::error!(status, ?lived, "the server process is gone; another one takes its place");
        self.configured(Some("the server process ended before it had the new configuration".to_owned()));
    }

    fn tell(&self, message: &ToServer) {
        // A server that is gone is noticed by its reader.
        if let Some(server) = &self.server
            && let Err(error) = server.link.send(message)
        {
            tracing::error!(%error, "cannot talk to the server process");
        }
    }

    /// Ends the runs whose jobs are over, says Slurm, and whose records are where they were all the same: their epilog was
    /// not run here, or failed. To be done before a look, which then finds them ended.
    fn end_stuck(&mut self) {
        for id in std::mem::take(&mut self.over) {
            let Some(run) = self.runs.get(&id).filter(|run| !run.job.ended) else { continue };
            let (job, restart, path) = (run.job.job, run.job.restart, run.path.clone());
            let ended = self.run_dir.ended().join(format!("{job}.{restart}.{}", id.0));
            match path.map(|path| records::end(&path, &ended, &id)) {
                Some(Ok(())) => {
                    tracing::warn!(%job, "Slurm says that the job is over, but its epilog noted no end here: ended now");
                }
                None | Some(Err(Refused::NoRecord)) => {}
                Some(Err(error)) => {
                    tracing::error!(%job, %error, "a job that is over cannot be ended here; it is served nothing");
                    self.over.insert(id);
                }
            }
        }
    }

    /// Looks at all records, or at one job's, and tells the server what changed; `false` if they cannot be looked at.
    fn look(&mut self, only: Option<JobId>) -> bool {
        if only.is_none() {
            self.end_stuck();
        }
        // First jobs/, then ended/: a job that moves in between is seen twice rather than never.
        let looks = match only {
            Some(job) => records::look_at(&self.run_dir, job),
            None => records::look(&self.run_dir.jobs(), false)
                .and_then(|jobs| Ok((jobs, records::look(&self.run_dir.ended(), true)?))),
        };
        let (mut jobs, mut ended) = match looks {
            Ok(looks) => looks,
            Err(error) => {
                tracing::error!(%error, "cannot look at the job records");
                self.unreadable = Some(error.to_string());
                return false;
            }
        };
        if only.is_none() {
            self.unreadable = None;
        }
        let (late, late_ends) = (std::mem::take(&mut jobs.late), std::mem::take(&mut ended.late));
        let cluster = self.config.cluster.as_ref();
        let (jobs, mut refused) = sift(jobs, cluster);
        let (ended, refused_ends) = sift(ended, cluster);
        refused.extend(refused_ends);
        self.complain(refused, only);

        let board = Arc::clone(&self.parts.desk.board);
        let changes = self.runs.take(jobs, ended, only, SystemTime::now());
        // Ends before starts: a requeued job's board entry is the new run's.
        for id in &changes.ended {
            let Some(run) = self.runs.get(id) else { continue };
            tracing::info!(job = %run.job.job, vanished = changes.vanished.contains(id), "a job ended");
            board.leave(run.job.job, id);
            self.tell(&ToServer::Ended { run: id.clone() });
        }
        for id in &changes.new {
            let Some(run) = self.runs.get(id) else { continue };
            if !run.job.ended {
                tracing::info!(job = %run.job.job, uid = %run.job.uid, "a job is here");
                board.enter(run.job.job, id, first_outcome(&run.job));
            }
            self.tell(&ToServer::Job(Box::new(run.job.clone())));
        }
        for run in changes.given_up {
            tracing::warn!(job = %run.job.job, "credvend never took the end of this job: given up");
            if let Some(path) = &run.path {
                self.remove_directory(path, &run.job.run);
            }
        }
        self.take_late(late, late_ends, only);
        self.identify();
        if only.is_none()
            && let Err(error) = run_dir::sweep(&self.run_dir, SystemTime::now())
        {
            tracing::error!(%error, "cannot sweep the run directory");
        }
        if !self.looked && only.is_none() {
            self.looked = true;
            self.tell(&ToServer::Scanned);
        }
        true
    }

    /// Each bad directory is logged once for each thing that is wrong with it.
    fn complain(&mut self, refused: Vec<(PathBuf, String)>, only: Option<JobId>) {
        let now: HashSet<_> = refused.into_iter().collect();
        for (path, why) in now.difference(&self.complained) {
            tracing::error!(?path, why, "a job record is refused and left where it is: that job gets no credentials");
        }
        match only {
            None => self.complained = now,
            Some(job) => {
                let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
                let of_job = |name: String| name.split('.').next() == Some(&job.to_string());
                self.complained.retain(|(path, _)| !name(path).is_some_and(of_job));
                self.complained.extend(now);
            }
        }
    }

    /// The records that are not served, in a sentence; `None` if all are.
    fn record_problem(&self) -> Option<String> {
        if let Some(why) = &self.unreadable {
            return Some(format!("the job records cannot be looked at: {why}"));
        }
        let (path, why) = self.complained.iter().min()?;
        let more = match self.complained.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        Some(format!("{}: {why}; that job gets no credentials{more}", path.display()))
    }

    pub(super) fn identify(&self) {
        let recorded = self.runs.identity();
        let (cluster, node) = recorded.map_or((None, None), |(cluster, node)| (Some(cluster), Some(node)));
        let cluster = self.config.cluster.clone().or(cluster);
        let node = self.config.node.clone().or(node).or_else(|| self.parts.host.clone());
        self.parts.identity.set(cluster, node);
    }

    /// The server's words. It holds no powers and gets none: it can note outcomes of runs and end those that ended.
    fn hear(&mut self, generation: u64, message: ToKeeper) {
        let Some(server) = self.server.as_mut().filter(|server| server.generation == generation) else { return };
        match message {
            ToKeeper::Ready => server.ready = true,
            ToKeeper::Here { id } => server.liveness.answered(id, Instant::now()),
            ToKeeper::Configured { problem } => self.configured(problem.as_deref().map(sentence)),
            // Signed on another thread; never sent here.
            ToKeeper::Sign { .. } => {}
            // Looked at with the pokes; never sent here.
            ToKeeper::Look { .. } => {}
            ToKeeper::Attested { run, facts } => self.attested(&run, facts),
            ToKeeper::Over { run } => {
                let Some(known) = self.runs.get(&run).filter(|known| !known.job.ended) else { return };
                self.note(known.path.clone(), &run, file::OVER, "");
                self.over.insert(run);
            }
            ToKeeper::Opened { run: id, session } => {
                let Some(run) = self.runs.get_mut(&id) else { return };
                run.job.session = Some(session);
                let (job, path) = (run.job.job, run.path.clone());
                self.note(path, &id, file::SESSION, &session.to_string());
                self.parts.desk.board.set(job, &id, Outcome::Open);
            }
            ToKeeper::Refused { run: id, reason } => {
                let reason = sentence(&reason);
                let Some(run) = self.runs.get_mut(&id) else { return self.refuse_late(&id, reason) };
                run.job.refused = Some(reason.clone());
                let (job, path) = (run.job.job, run.path.clone());
                self.note(path, &id, file::REFUSED, &reason);
                self.parts.desk.board.set(job, &id, Outcome::Refused { reason });
            }
            ToKeeper::Waiting { run: id, reason } => {
                let known = self.runs.get(&id).map(|run| run.job.job);
                let Some(job) = known.or_else(|| self.late.job(&id)) else { return };
                let outcome = Outcome::Opening { reason: Some(sentence(&reason)) };
                self.parts.desk.board.set(job, &id, outcome);
            }
            ToKeeper::EndDelivered { run: id } => {
                let Some(run) = self.runs.get(&id) else { return };
                if !run.job.ended {
                    tracing::error!(job = %run.job.job, "the server process wants to end a running job: refused");
                    return;
                }
                let path = run.path.clone();
                self.runs.remove(&id);
                if let Some(path) = path {
                    self.remove_directory(&path, &id);
                }
            }
            ToKeeper::Report { id, health, jobs } => {
                let Some((_, reply)) = self.reports.remove(&id) else { return };
                let _ = reply.try_send(self.report(Some(health), jobs));
            }
        }
    }

    fn note(&self, path: Option<PathBuf>, run: &RunId, name: &str, text: &str) {
        // The job may have ended since the last look: then its directory is another's, and the note has no reader.
        match path.map(|path| records::write_note(&path, run, name, text)) {
            None | Some(Ok(()) | Err(Refused::NoRecord)) => {}
            Some(Err(error)) => tracing::error!(%error, name, "cannot keep what became of a job"),
        }
    }

    fn remove_directory(&self, path: &std::path::Path, run: &RunId) {
        if let Err(error) = records::remove(path, run) {
            tracing::error!(?path, %error, "cannot remove the directory of an ended job");
        }
    }

    /// Asks the server how things are; without one, or with too many questions open, the keeper's own view must do.
    fn ask_server(&mut self, reply: SyncSender<Report>) {
        match &self.server {
            Some(server) if server.ready && self.reports.len() < MAX_REPORTS => {
                self.next_report += 1;
                self.reports.insert(self.next_report, (Instant::now(), reply));
                self.tell(&ToServer::Report { id: self.next_report });
            }
            _ => {
                let _ = reply.try_send(self.report(None, self.own_statuses()));
            }
        }
    }

    fn expire_reports(&mut self, now: Instant) {
        let late = |asked: &Instant| now.duration_since(*asked) >= REPORT_PATIENCE;
        let expired: Vec<u64> = self.reports.iter().filter(|(_, (asked, _))| late(asked)).map(|(id, _)| *id).collect();
        for id in expired {
            if let Some((_, reply)) = self.reports.remove(&id) {
                let _ = reply.try_send(self.report(None, self.own_statuses()));
            }
        }
    }

    fn report(&self, health: Option<Health>, jobs: Vec<JobStatus>) -> Report {
        let (running, undelivered_ends) = self.runs.counts();
        let health = Health {
            serving: health.as_ref().is_some_and(|health| health.serving) && self.endpoint_problem.is_none(),
            endpoint_problem: self.endpoint_problem.clone().or_else(|| health.as_ref()?.endpoint_problem.clone()),
            refusal_problem: health.as_ref().and_then(|health| health.refusal_problem.clone()),
            record_problem: self.record_problem(),
            note: health.as_ref().and_then(|health| health.note.clone()),
            credvend_problem: match health {
                Some(health) => health.credvend_problem,
                None if self.endpoint_ours => {
                    Some("the server process does not answer; credd replaces one that died or hangs".to_owned())
                }
                None => None,
            },
            jobs: running,
            undelivered_ends,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Report { health, jobs }
    }

    /// The jobs as the records tell; as many as fit an answer, the highest ids first, as the server's answer has them.
    fn own_statuses(&self) -> Vec<JobStatus> {
        let status = |job: &Job| JobStatus {
            job: job.job,
            user: job.user.to_string(),
            uid: job.uid.0,
            project: job.account.as_ref().map(ToString::to_string),
            state: match (job.ended, &job.refused, job.session) {
                (true, ..) => "ending",
                (_, Some(_), _) => "refused",
                (_, None, Some(_)) => "open",
                _ => "opening",
            }
            .to_owned(),
            session: job.session.map(|session| session.to_string()),
            reason: job.refused.clone(),
            credentials_until: None,
        };
        let mut statuses: Vec<JobStatus> = self.runs.all().map(|run| status(&run.job)).collect();
        statuses.extend(self.late.jobs().map(late_status));
        statuses.sort_by_key(|status| std::cmp::Reverse(status.job));
        let mut room = MAX_LINE_BYTES - 4096;
        let fits = |status: &JobStatus| {
            let bytes = serde_json::to_vec(status).map_or(0, |text| text.len() + 1);
            room = room.saturating_sub(bytes);
            room > 0
        };
        statuses.into_iter().take_while(fits).collect()
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

    fn hear_last(&mut self, message: ToKeeper) {
        match message {
            ToKeeper::Opened { run, session } => {
                let path = self.runs.get(&run).and_then(|run| run.path.clone());
                self.note(path, &run, file::SESSION, &session.to_string());
            }
            ToKeeper::EndDelivered { run } => {
                let ended = self.runs.get(&run).filter(|known| known.job.ended);
                if let Some(path) = ended.and_then(|known| known.path.clone()) {
                    self.remove_directory(&path, &run);
                }
            }
            _ => {}
        }
    }
}

/// What an earlier keeper left in the record's directory stands.
fn first_outcome(job: &Job) -> Outcome {
    match (&job.refused, job.session) {
        (Some(reason), _) => Outcome::Refused { reason: reason.clone() },
        (None, Some(_)) => Outcome::Open,
        (None, None) => Outcome::Opening { reason: None },
    }
}

/// A sentence that may be shown on a terminal: it comes from a process that reads what jobs write.
fn sentence(text: &str) -> String {
    text.chars().take(MAX_SENTENCE).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
