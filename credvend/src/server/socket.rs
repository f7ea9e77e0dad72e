//! A network connection whose other end must take what it is sent.
//!
//! Without that, whoever pipelines requests and reads no answer fills the kernel's buffers and keeps connections for as
//! long as it likes. Here the kernel's buffers are small, nothing more is read while an answer waits to be taken, and
//! a connection of which nothing is taken for [`WRITE_PATIENCE`] is reset.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;

use super::connections::Place;

/// The other end takes some byte of what waits for it within this time.
pub const WRITE_PATIENCE: Duration = Duration::from_secs(15);

/// The kernel's buffers of each connection: twice this, by its own count. Without a bound it grows them to megabytes for
/// whoever reads slowly. Our answers and requests are smaller.
const BUFFER_BYTES: usize = 64 * 1024;

/// How long the kernel waits for a peer to acknowledge data, also after the connection was closed here.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Sets what each accepted connection inherits.
///
/// # Errors
/// The kernel's.
pub fn bound_buffers(listener: &TcpListener) -> io::Result<()> {
    setsockopt(listener, sockopt::SndBuf, &BUFFER_BYTES)?;
    setsockopt(listener, sockopt::RcvBuf, &BUFFER_BYTES)?;
    let millis = u32::try_from(USER_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    setsockopt(listener, sockopt::TcpUserTimeout, &millis)?;
    Ok(())
}

/// See the module.
pub struct Socket {
    tcp: TcpStream,
    place: Arc<Place>,
    /// Runs while the kernel takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Whoever wanted to read meanwhile.
    reader: Option<Waker>,
    unread: bool,
}

/// The text of the error by which an unread connection ends.
const UNREAD: &str = "it does not read what it asked for";

/// Whether a connection ended because its answers were not taken.
pub fn is_unread(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(|e| {
            e.kind() == io::ErrorKind::TimedOut && e.get_ref().is_some_and(|inner| inner.to_string() == UNREAD)
        }) {
            return true;
        }
        next = error.source();
    }
    false
}

impl Socket {
    /// A connection in its place.
    pub fn new(tcp: TcpStream, place: Arc<Place>) -> Self {
        Socket { tcp, place, stalled: None, reader: None, unread: false }
    }

    /// Sends small answers at once.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_nodelay(&self) -> io::Result<()> {
        self.tcp.set_nodelay(true)
    }

    fn moved(&mut self) {
        self.stalled = None;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn waits<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_PATIENCE)));
        if stalled.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.unread = true;
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, UNREAD)))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.stalled.is_some() {
            this.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut this.tcp).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match Pin::new(&mut this.tcp).poll_write(context, bytes) {
            Poll::Pending => this.waits(context),
            ready => {
                this.moved();
                ready
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match Pin::new(&mut this.tcp).poll_write_vectored(context, bytes) {
            Poll::Pending => this.waits(context),
            ready => {
                this.moved();
                ready
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(context)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // With a reset the kernel forgets at once what nobody takes.
        if self.unread || self.place.crowded_out() {
            let _ = self.tcp.set_zero_linger();
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;

    use super::*;

    #[tokio::test]
    async fn accepted_connections_have_small_buffers_and_a_user_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        bound_buffers(&listener).unwrap();
        let (client, accepted) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), async { listener.accept().await });
        let (_client, (accepted, _)) = (client.unwrap(), accepted.unwrap());
        assert_eq!(getsockopt(&accepted, sockopt::SndBuf).unwrap(), 2 * BUFFER_BYTES);
        assert_eq!(getsockopt(&accepted, sockopt::RcvBuf).unwrap(), 2 * BUFFER_BYTES);
        assert_eq!(u128::from(getsockopt(&accepted, sockopt::TcpUserTimeout).unwrap()), USER_TIMEOUT.as_millis());
    }
}
