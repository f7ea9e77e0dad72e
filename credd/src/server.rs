//! The server process: HTTP for the jobs, the users' socket, the cache, and the way to credvend. It has no powers.

use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};

use crate::config::Config;

/// The sockets that the keeper hands over, bound and listening.
#[derive(Debug)]
pub struct Listeners {
    /// For the jobs' SDKs: `[http] listen`.
    pub http: TcpListener,
    /// For `credd status` of ordinary users.
    pub user: UnixListener,
}

/// Serves until the keeper says stop or goes away.
///
/// # Errors
/// What made serving impossible; the keeper starts another server after a pause.
pub fn run(_control: UnixStream, _listeners: Listeners, _config: Config) -> anyhow::Result<()> {
    anyhow::bail!("under construction")
}
