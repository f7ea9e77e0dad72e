//! What is said to the init of a test host: one JSON line there, one back, over a Unix socket of root's.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// A program that the init keeps: it is the init's child, and its end is noticed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Service {
    /// What it is called in requests.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Where its output goes, appended.
    pub log: PathBuf,
    /// Listeners to pass as systemd does (`LISTEN_FDS`, `LISTEN_FDNAMES`, `LISTEN_PID`), in this order from
    /// descriptor 3.
    #[serde(default)]
    pub listeners: Vec<String>,
}

/// A listening socket that the init holds, whoever serves it: what a systemd socket unit is on a real node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Listener {
    /// A TCP socket.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix {
        /// Its path in the host.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Its owner and group.
        owner: (u32, u32),
    },
}

/// A request to the init.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// Hold this listener under this name.
    Listen(String, Listener),
    /// Let a listener go.
    Close(String),
    /// Start a service that is not running.
    Start(Service),
    /// Send a signal (its number) to a service.
    Signal(String, i32),
    /// Tell about a service.
    Status(String),
}

/// The init's answer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Reply {
    /// Why it did nothing.
    pub error: Option<String>,
    /// The service's process id inside the host, if it runs.
    pub pid: Option<i32>,
    /// How it ended, if it ran: an exit status, or minus the signal.
    pub ended: Option<i32>,
}

/// Asks the init whose socket is at `socket`.
pub fn ask(socket: &Path, request: &Request) -> Result<Reply> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("the host of {} is gone", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all((serde_json::to_string(request)? + "\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("the host's init did not answer")?;
    let reply: Reply = serde_json::from_str(&line)?;
    if let Some(error) = reply.error {
        bail!("{error}");
    }
    Ok(reply)
}
