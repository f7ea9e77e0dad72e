//! One running server process, seen from the keeper.

use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::Event;
use super::liveness::{Liveness, Verdict};
use super::server_link::ServerLink;
use super::signer::{self, Signer};
use crate::control::{MAX_LINE_BYTES, ToKeeper};
use crate::line;

/// For the server to finish what it is answering.
pub const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// The running server process.
pub struct Server {
    pub generation: u64,
    pub link: Arc<ServerLink>,
    pub child: Option<Child>,
    pub started: Instant,
    pub ready: bool,
    pub liveness: Liveness,
}

impl Server {
    /// One that was started just now.
    pub fn new(generation: u64, link: Arc<ServerLink>, child: Option<Child>, now: Instant) -> Self {
        Server { generation, link, child, started: now, ready: false, liveness: Liveness::new(now) }
    }

    /// What its silence, if it is silent, calls for.
    pub fn look(&mut self, now: Instant) -> Verdict {
        let child = self.child.as_ref();
        self.liveness.look(now, || child.is_some_and(is_stopped))
    }

    /// Ends what is left of it, and says how it ended.
    pub fn end(mut self) -> String {
        self.link.close();
        let Some(child) = &mut self.child else { return "closed its socket".to_owned() };
        // A process without its control socket is of no use, and it has the listener: it is dead when this returns. Its
        // sandbox lets it have no other process that could.
        let _ = child.kill();
        child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
    }
}

/// Whether a signal has stopped the process (SIGSTOP, SIGTTIN and their like).
fn is_stopped(child: &Child) -> bool {
    let pid = Pid::from_raw(child.id().cast_signed());
    // Only looked at: whoever waits for the process is told all the same.
    let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    matches!(waitid(Id::Pid(pid), flags), Ok(WaitStatus::Stopped(..)))
}

/// The way of one server's words.
pub struct Route {
    pub generation: u64,
    pub events: SyncSender<Event>,
    pub signer: Signer,
    pub link: Arc<ServerLink>,
}

impl Route {
    /// Reads until the server is gone, or says what nobody understands.
    pub fn read(self, control: UnixStream) {
        let mut reader = BufReader::new(control);
        loop {
            match line::receive::<ToKeeper>(&mut reader, MAX_LINE_BYTES) {
                Ok(Some(ToKeeper::Sign { id, method, path, body, server })) => {
                    let link = Arc::clone(&self.link);
                    self.signer.sign(signer::Request { id, method, path, body, server, link });
                }
                Ok(Some(message)) => {
                    if self.events.send(Event::Server(self.generation, message)).is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                    tracing::error!(%error, "the server process speaks another language");
                    break;
                }
                // It was killed, with something for it or of it under way.
                Err(error) => {
                    tracing::debug!(%error, "the server process is gone");
                    break;
                }
            }
        }
        let _ = self.events.send(Event::ServerGone(self.generation));
    }
}
