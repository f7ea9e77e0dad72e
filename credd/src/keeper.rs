//! The keeper: the part of credd that is root, kept small.
//!
//! One thread owns all state and takes [`Event`]s; others wait for somebody: the root socket's connections, the server
//! process's words, signals, munged.

pub mod board;
mod launch;
mod listeners;
mod liveness;
pub mod process;
mod records;
mod reload;
pub mod root_socket;
mod run_dir;
mod runs;
mod server_link;
mod server_process;
mod signals;
mod signer;
mod state;

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use credd_protocol::local::{Health, JobStatus};
use credd_protocol::record::RunDir;
use credd_protocol::{JobId, NodeName};
use munge::Munge;
use nix::sys::signal::Signal;
use peer::TcpPeers;

use crate::config::Config;
use crate::control::ToKeeper;
use crate::keeper::launch::ServerProgram;
use crate::keeper::root_socket::Desk;
use crate::keeper::signer::{Identity, Signer};
use crate::keeper::state::{Keeper, Parts};

/// Events that may wait for the main loop; who has more waits with them.
const QUEUE: usize = 1024;

/// What the main loop hears.
#[derive(Debug)]
pub enum Event {
    /// Look at this job's directories, then say so.
    Look(JobId, Option<SyncSender<()>>),
    /// Somebody wants to know how things are.
    Report(SyncSender<Report>),
    /// Read the configuration again, and say what came of it.
    Reload(SyncSender<Result<Option<String>, String>>),
    /// The server process of this generation spoke.
    Server(u64, ToKeeper),
    /// Its socket is closed.
    ServerGone(u64),
    /// SIGTERM, SIGINT or SIGHUP.
    Signal(Signal),
}

/// How things are.
#[derive(Debug, Clone)]
pub struct Report {
    /// Of the whole.
    pub health: Health,
    /// All jobs.
    pub jobs: Vec<JobStatus>,
}

/// What keeps credd from starting.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The admin's to mend: credd exits with [`crate::config::EXIT_BAD_CONFIG`].
    #[error("{0}")]
    Config(String),
    /// The machine's.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// What went wrong.
        source: std::io::Error,
    },
}

/// For `map_err`: what was being done.
fn doing<E: Into<std::io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> StartError {
    let doing = doing.into();
    move |source| StartError::Io { doing, source: source.into() }
}

/// Runs the keeper until SIGTERM.
///
/// # Errors
/// [`StartError`]; once it runs, it goes on whatever happens.
pub fn run(config_path: &Path, config: Config) -> Result<(), StartError> {
    // Before any thread: the descriptors' variables are taken out of the environment, and signals are blocked for all.
    let passed = listeners::passed().map_err(StartError::Config)?;
    signals::block().map_err(doing("cannot block signals"))?;
    process::harden().map_err(doing("cannot harden this process"))?;
    process::raise_descriptor_limit();
    let program = ServerProgram::new(&config.user).map_err(StartError::Config)?;

    let run_dir = config.run_dir();
    run_dir::prepare(&run_dir).map_err(doing("cannot prepare the run directory"))?;
    let _lock = run_dir::lock(&run_dir).map_err(doing("cannot start"))?;
    if !run_dir::is_in_memory(&run_dir) {
        tracing::warn!(run_dir = ?run_dir.path(), "the run directory is not on a tmpfs: job tokens would reach a disk");
    }
    let peers = TcpPeers::new().map_err(doing("cannot ask the kernel about sockets"))?;
    let self_bound = passed.http.is_none();
    if self_bound {
        tracing::warn!("no socket unit holds the endpoint: while credd restarts, any user can take its port");
        run_dir::remove_endpoint(&run_dir).map_err(doing("cannot remove the endpoint file"))?;
    }
    if let Some(http) = &passed.http {
        listeners::verify_http(http, config.http.listen, &peers)
            .map_err(|problem| StartError::Config(problem.to_string()))?;
    }
    let root = unix_listener(passed.root, &run_dir.root_socket(), 0o600)?;
    let user = unix_listener(passed.user, &run_dir.user_socket(), 0o666)?;

    let munge = Munge::new(config.munge.socket.as_deref()).map_err(|error| StartError::Config(error.to_string()))?;
    let identity = Arc::new(Identity::default());
    let signer = Signer::start(munge, Arc::clone(&identity)).map_err(doing("cannot start a thread"))?;
    let (events, received) = sync_channel(QUEUE);
    let desk = Desk { board: Arc::default(), events: events.clone() };
    root_socket::serve(root, desk.clone()).map_err(doing("cannot start a thread"))?;
    signals::listen(events).map_err(doing("cannot start a thread"))?;

    tracing::info!(version = env!("CARGO_PKG_VERSION"), run_dir = ?run_dir.path(), "credd starts");
    let parts = Parts {
        config_path: config_path.to_owned(),
        host: short_host_name(),
        program: Box::new(program),
        passed_http: passed.http,
        user,
        peers,
        desk,
        signer,
        identity,
    };
    let clean = Clean { self_bound, endpoint: run_dir.endpoint() };
    Keeper::new(config, parts).run(&received);
    clean.up();
    tracing::info!("credd ends; the job records stay");
    Ok(())
}

fn unix_listener(passed: Option<UnixListener>, path: &Path, mode: u32) -> Result<UnixListener, StartError> {
    let Some(listener) = passed else {
        return listeners::bind_unix(path, mode).map_err(doing(format!("cannot listen on {}", path.display())));
    };
    let found = listener.local_addr().map_err(doing("cannot ask where a passed socket listens"))?;
    if found.as_pathname() != Some(path) {
        let text = format!("the service manager's socket is at {found:?}, it must be at {}", path.display());
        return Err(StartError::Config(text));
    }
    Ok(listener)
}

/// The endpoint file outlives credd only with a listener that does.
struct Clean {
    self_bound: bool,
    endpoint: PathBuf,
}

impl Clean {
    fn up(&self) {
        if self.self_bound
            && let Err(error) = run_dir::remove_if_there(&self.endpoint)
        {
            tracing::error!(%error, "cannot remove the endpoint file");
        }
    }
}

/// Sends no new job to an endpoint that nobody serves: credd cannot start, and the service manager holds the port. Nothing is
/// done if another credd runs.
pub fn withdraw_endpoint(run_dir: &RunDir) {
    if let Ok(_lock) = run_dir::lock(run_dir)
        && let Err(error) = run_dir::remove_endpoint(run_dir)
    {
        daemon_log::complain(&format!("credd: cannot remove {}: {error}", run_dir.endpoint().display()));
    }
}

/// Slurm's usual name of a node: the host's, up to the first dot.
fn short_host_name() -> Option<NodeName> {
    let name = nix::unistd::gethostname().ok()?.into_string().ok()?;
    name.split('.').next()?.parse().ok()
}

/// Everything wrong with a configuration that only this machine can tell, for `credd check-config`.
pub fn check(config: &Config) -> Vec<String> {
    ServerProgram::new(&config.user).err().into_iter().collect()
}

#[cfg(test)]
mod tests;
