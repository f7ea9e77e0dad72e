//! One running server process, seen from the keeper.

use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use super::Event;
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
}

impl Server {
    /// Ends what is left of it, and says how it ended.
    pub fn end(mut self) -> String {
        let Some(child) = &mut self.child else { return "closed its socket".to_owned() };
        // A process without its control socket is of no use, so it may as well be killed.
        let _ = child.kill();
        child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
    }

    /// Waits for a server that was told to stop.
    pub fn finish(mut self) {
        let deadline = Instant::now() + STOP_PATIENCE;
        if let Some(child) = &mut self.child {
            while Instant::now() < deadline && !matches!(child.try_wait(), Ok(Some(_))) {
                #[expect(clippy::disallowed_methods, reason = "wait(2) has no deadline; nobody waits for this thread")]
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        self.end();
    }
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
