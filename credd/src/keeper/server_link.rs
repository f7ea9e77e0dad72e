//! The keeper's end of the control socket: whoever has something to say to the server process says it here.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::config::Config;
use crate::control::{MAX_LINE_BYTES, ToServer};
use crate::{handover, line};

/// A server that does not read for so long is taken for dead.
const PATIENCE: Duration = Duration::from_secs(10);

/// The writing half. Lines of several threads do not mix.
#[derive(Debug)]
pub struct ServerLink {
    stream: Mutex<UnixStream>,
}

impl ServerLink {
    /// Over this socket.
    pub fn new(stream: UnixStream) -> Self {
        // It fails for a timeout of zero only.
        let _ = stream.set_write_timeout(Some(PATIENCE));
        ServerLink { stream: Mutex::new(stream) }
    }

    /// Says it.
    ///
    /// # Errors
    /// The server is gone or does not read; then the socket is closed both ways, so that its reader notices.
    pub fn send(&self, message: &ToServer) -> io::Result<()> {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        line::send(&*stream, message, MAX_LINE_BYTES).inspect_err(|error| {
            if error.kind() != io::ErrorKind::InvalidData {
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
        })
    }

    /// Hands another configuration over: a line and what follows it, which nobody else's line may come between.
    ///
    /// # Errors
    /// As [`ServerLink::send`], and for a configuration that is too long.
    pub fn configure(&self, config: &Config) -> io::Result<()> {
        let json = handover::json(config)?;
        let bytes = u32::try_from(json.len()).map_err(io::Error::other)?;
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        line::send(&*stream, &ToServer::Configure { bytes }, MAX_LINE_BYTES)
            .and_then(|()| (&*stream).write_all(&json))
            .inspect_err(|_| drop(stream.shutdown(std::net::Shutdown::Both)))
    }

    /// Says nothing more: whoever reads at either end notices.
    pub fn close(&self) {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}
