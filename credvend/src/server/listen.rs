//! Sockets and connections: every one bounded in number, header and time, and ended gracefully.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use credd_protocol::handshake_ticket::HandshakeTicket;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::server::{Acceptor, ClientHello};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::LazyConfigAcceptor;

use super::connections::{Closed, ConnectionLimits, Place};
use super::socket::{Socket, bound_buffers, is_unread};
use super::tls::Certificates;
use super::{Connection, Server};

/// A TLS handshake takes no longer, also while thousands of nodes come back at once.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// A request's header takes no longer, nor does a kept connection idle longer; without proof, see [`super::connections`].
const HEADER_PATIENCE: Duration = Duration::from_secs(60);
/// What runs when the service stops has this long.
pub const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// All header lines of a request together.
const MAX_HEADER_BYTES: usize = 32 * 1024;
const MAX_HEADERS: usize = 64;

/// Serves a network socket until the service stops; without certificates, plain HTTP.
pub async fn serve_tcp(
    server: Arc<Server>,
    listener: TcpListener,
    certificates: Option<Arc<Certificates>>,
    limits: Arc<ConnectionLimits>,
) {
    let mut stopping = server.stopping.clone();
    if let Err(error) = bound_buffers(&listener) {
        tracing::warn!(%error, "the kernel's buffers of connections cannot be bounded");
    }
    loop {
        let accepted = tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                accept_failed(&error).await;
                continue;
            }
        };
        let address = peer.ip().to_canonical();
        let place = match limits.enter(address) {
            Ok(place) => Arc::new(place),
            Err(why) => {
                server.refused(peer, &why);
                continue;
            }
        };
        let (server, certificates, limits) = (server.clone(), certificates.clone(), limits.clone());
        tokio::spawn(async move {
            let socket = Socket::new(stream, place.clone());
            let served = match certificates {
                Some(certificates) => tls_connection(&server, socket, peer, place, &certificates, &limits).await,
                None => plain_connection(&server, socket, peer, place).await,
            };
            if let Err(error) = served {
                if is_unread(&error) {
                    server.vending.metrics().connection_closed("unread");
                    server.refusals.note_connection(peer, "it does not read what it asked for");
                }
                tracing::debug!(%peer, %error, "connection ended");
            }
        });
    }
}

async fn plain_connection(server: &Arc<Server>, socket: Socket, peer: SocketAddr, place: Arc<Place>) -> io::Result<()> {
    socket.set_nodelay()?;
    http(server.clone(), socket, Connection::Plain { peer }, place).await
}

async fn tls_connection(
    server: &Arc<Server>,
    socket: Socket,
    peer: SocketAddr,
    place: Arc<Place>,
    certificates: &Certificates,
    limits: &ConnectionLimits,
) -> io::Result<()> {
    socket.set_nodelay()?;
    let noted = |error: &io::Error| server.refusals.note_connection(peer, &format!("TLS handshake: {error}"));
    // The first message may hold a ticket. Reading it costs little beside the handshake: no key is used yet.
    let hello = LazyConfigAcceptor::new(Acceptor::default(), socket);
    let begun = tokio::select! {
        closed = place.over() => return Err(server.closed(peer, closed)),
        begun = hello => begun.inspect_err(noted)?,
    };
    let live = certificates.live();
    let ticket = shown(&begun.client_hello()).and_then(|ticket| live.tickets.holder(&ticket, peer.ip()));
    if let Err(why) = limits.handshake(&place, ticket) {
        server.refused(peer, &why);
        return Err(io::Error::other(why));
    }
    let handshake = place.request();
    let accepting = begun.into_stream(live.config);
    let shaken = tokio::select! {
        closed = place.over() => return Err(server.closed(peer, closed)),
        shaken = tokio::time::timeout(HANDSHAKE_PATIENCE, accepting) => shaken,
    };
    drop(handshake);
    let stream = shaken
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long"))?
        .inspect_err(noted)?;
    let chain: Vec<_> = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
    let connection = Connection::Tls {
        peer,
        certificate: chain.first().cloned(),
        fingerprint: live.fingerprint,
        names: live.names,
        tickets: live.tickets,
    };
    let served = http(server.clone(), stream, connection, place);
    if chain.is_empty() {
        return served.await;
    }
    tokio::select! {
        ended = served => ended,
        why = certificates.refused(&chain) => {
            server.refusals.note_connection(peer, &format!("its certificate is not good any more: {why}"));
            Err(io::Error::other(why))
        }
    }
}

/// The ticket that a client shows. credd offers it as the first protocol, so the others, of which a hostile client offers
/// thousands, are not looked at.
fn shown(hello: &ClientHello<'_>) -> Option<HandshakeTicket> {
    hello.alpn()?.next().and_then(HandshakeTicket::from_protocol)
}

pub(super) async fn http(
    server: Arc<Server>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    connection: Connection,
    place: Arc<Place>,
) -> io::Result<()> {
    let mut stopping = server.stopping.clone();
    let (connection, served, asking) = (Arc::new(connection), server.clone(), place.clone());
    let peer = connection.peer();
    let service = service_fn(move |request| {
        let (server, connection, place) = (served.clone(), connection.clone(), asking.clone());
        async move {
            let _under_way = place.request();
            Ok::<_, Infallible>(server.handle(&connection, request, || place.authenticated()).await)
        }
    });
    let mut http = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_PATIENCE)
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_HEADER_BYTES)
            .max_buf_size(2 * MAX_HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = tokio::select! {
        ended = http.as_mut() => Some(ended),
        closed = place.over() => return Err(peer.map_or_else(|| io::Error::other("closed"), |peer| server.closed(peer, closed))),
        _ = stopping.wait_for(|stop| *stop) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            http.as_mut().graceful_shutdown();
            tokio::time::timeout(STOP_PATIENCE, http).await.unwrap_or(Ok(()))
        }
    };
    ended.map_err(io::Error::other)
}

impl Server {
    /// Counts a connection that is closed at once.
    fn refused(&self, peer: SocketAddr, why: &str) {
        self.vending.metrics().connection_refused();
        self.refusals.note_connection(peer, why);
    }

    /// Counts a connection that is closed although it might go on.
    fn closed(&self, peer: SocketAddr, why: Closed) -> io::Error {
        self.vending.metrics().connection_closed(why.word());
        if why == Closed::Crowded {
            let why = "newer connections without proof need its place ([limits] max-unauthenticated-per-address)";
            self.refusals.note_connection(peer, why);
        }
        io::Error::other(why.word())
    }
}

/// Too many open files, and the like: wait a little rather than spin.
pub(super) async fn accept_failed(error: &io::Error) {
    tracing::error!(%error, "a connection cannot be accepted");
    tokio::time::sleep(Duration::from_millis(100)).await;
}
