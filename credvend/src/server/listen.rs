//! Sockets and connections: every one bounded in number, header and time, and ended gracefully.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::unistd::{Gid, Group, Uid, User};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use super::tls::Certificates;
use super::{Connection, Server};

/// A TLS handshake takes no longer.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// A request's header takes no longer, nor does a kept connection idle longer.
const HEADER_PATIENCE: Duration = Duration::from_secs(60);
/// What runs when the service stops has this long.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// All header lines of a request together.
const MAX_HEADER_BYTES: usize = 32 * 1024;
const MAX_HEADERS: usize = 64;

/// How many connections there may be, in all and of one address.
pub struct ConnectionLimits {
    total: u32,
    slots: Arc<Semaphore>,
    per_address: usize,
    addresses: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

struct Slot {
    _permit: OwnedSemaphorePermit,
    address: IpAddr,
    addresses: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl ConnectionLimits {
    /// With these bounds.
    pub fn new(total: u32, per_address: u32) -> Self {
        ConnectionLimits {
            total,
            slots: Arc::new(Semaphore::new(total as usize)),
            per_address: per_address as usize,
            addresses: Arc::default(),
        }
    }

    /// A place for a connection of this address.
    ///
    /// # Errors
    /// Which bound is reached, by the name of its option.
    fn enter(&self, address: IpAddr) -> Result<Slot, String> {
        let slots = self.slots.clone().try_acquire_owned();
        let permit = slots.map_err(|_| format!("[limits] max-connections = {} is reached", self.total))?;
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let count = addresses.entry(address).or_default();
        if *count >= self.per_address {
            let most = self.per_address;
            return Err(format!("[limits] max-connections-per-address = {most} is reached for this one"));
        }
        *count += 1;
        Ok(Slot { _permit: permit, address, addresses: self.addresses.clone() })
    }

    /// Waits until every connection has ended, but not for ever.
    pub async fn drained(&self) -> bool {
        let all = self.slots.acquire_many(self.total);
        tokio::time::timeout(STOP_PATIENCE + Duration::from_secs(1), all).await.is_ok()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

/// Serves a network socket until the service stops; without certificates, plain HTTP.
pub async fn serve_tcp(
    server: Arc<Server>,
    listener: TcpListener,
    certificates: Option<Arc<Certificates>>,
    limits: Arc<ConnectionLimits>,
) {
    let mut stopping = server.stopping.clone();
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
        let slot = match limits.enter(peer.ip().to_canonical()) {
            Ok(slot) => slot,
            Err(why) => {
                server.vending.metrics().connection_refused();
                server.refusals.note_connection(peer, &why);
                continue;
            }
        };
        let (server, certificates) = (server.clone(), certificates.clone());
        tokio::spawn(async move {
            if let Err(error) = tcp_connection(server, stream, peer, certificates).await {
                tracing::debug!(%peer, %error, "connection ended");
            }
            drop(slot);
        });
    }
}

async fn tcp_connection(
    server: Arc<Server>,
    stream: TcpStream,
    peer: SocketAddr,
    certificates: Option<Arc<Certificates>>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let Some(certificates) = certificates else {
        return http(server, stream, Connection::Plain { peer }).await;
    };
    let live = certificates.live();
    let accepting = TlsAcceptor::from(live.config).accept(stream);
    let stream = tokio::time::timeout(HANDSHAKE_PATIENCE, accepting)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long"))?
        .inspect_err(|error| server.refusals.note_connection(peer, &format!("TLS handshake: {error}")))?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
    let connection =
        Connection::Tls { peer, certificate: certificate.map(|c| c.into_owned()), fingerprint: live.fingerprint };
    http(server, stream, connection).await
}

async fn http(
    server: Arc<Server>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    connection: Connection,
) -> io::Result<()> {
    let mut stopping = server.stopping.clone();
    let connection = Arc::new(connection);
    let service = service_fn(move |request| {
        let (server, connection) = (server.clone(), connection.clone());
        async move { Ok::<_, Infallible>(server.handle(&connection, request).await) }
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

/// Too many open files, and the like: wait a little rather than spin.
async fn accept_failed(error: &io::Error) {
    tracing::error!(%error, "a connection cannot be accepted");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// The administrators' socket. Its file goes when the service ends.
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    group: Option<Gid>,
}

impl AdminSocket {
    /// Binds `path`, for root, this process's own user, and the members of `group`.
    ///
    /// # Errors
    /// A path that is something else, a service that already listens there, an unknown group.
    pub fn bind(path: &Path, group: Option<&str>) -> io::Result<Self> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("admin-socket {}: {error}", path.display()));
        let group = match group {
            None => None,
            Some(name) => {
                let found = Group::from_name(name).map_err(io::Error::from)?;
                let unknown = || named(io::Error::other(format!("there is no group {name:?} (admin-group)")));
                Some(found.ok_or_else(unknown)?.gid)
            }
        };
        if let Ok(metadata) = std::fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(named(io::Error::other("there is something else at this path")));
            }
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(named(io::Error::other("another credvend listens there")));
            }
            std::fs::remove_file(path).map_err(named)?;
        }
        // The caller's umask keeps everybody out until the mode is set.
        let listener = UnixListener::bind(path).map_err(named)?;
        if let Some(group) = group {
            nix::unistd::chown(path, None, Some(group)).map_err(|e| named(e.into()))?;
        }
        let mode = if group.is_some() { 0o660 } else { 0o600 };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(named)?;
        Ok(AdminSocket { listener, path: path.to_owned(), group })
    }

    /// Serves it until the service stops.
    pub async fn serve(self, server: Arc<Server>, limits: Arc<ConnectionLimits>) {
        let mut stopping = server.stopping.clone();
        loop {
            let accepted = tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    accept_failed(&error).await;
                    continue;
                }
            };
            let Ok(slot) = limits.enter(IpAddr::from([0, 0, 0, 0])) else { continue };
            let (server, group) = (server.clone(), self.group);
            tokio::spawn(async move {
                match admin_caller(&stream, group).await {
                    Ok(name) => {
                        if let Err(error) = http(server, stream, Connection::AdminSocket { name }).await {
                            tracing::debug!(%error, "admin connection ended");
                        }
                    }
                    Err(why) => tracing::warn!(why, "a caller of the admin socket was refused"),
                }
                drop(slot);
            });
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Who is at the other end, if they may administer.
async fn admin_caller(stream: &UnixStream, group: Option<Gid>) -> Result<String, String> {
    let credentials = stream.peer_cred().map_err(|e| format!("its kernel credentials cannot be read: {e}"))?;
    let (uid, gid) = (Uid::from_raw(credentials.uid()), Gid::from_raw(credentials.gid()));
    // Directory services may be slow to answer.
    let look = tokio::task::spawn_blocking(move || {
        let user = User::from_uid(uid).ok().flatten();
        let allowed = uid.is_root()
            || uid == Uid::effective()
            || group.is_some_and(|group| group == gid || user.as_ref().is_some_and(|user| in_group(user, group)));
        let name = user.map_or_else(|| format!("uid {uid}"), |user| user.name);
        if allowed { Ok(name) } else { Err(format!("{name:?} (uid {uid}) is neither root nor in admin-group")) }
    });
    look.await.unwrap_or_else(|_| Err("its user cannot be looked up".into()))
}

fn in_group(user: &User, group: Gid) -> bool {
    let Ok(name) = CString::new(user.name.as_str()) else { return false };
    nix::unistd::getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_bounded_in_all_and_per_address() {
        let limits = ConnectionLimits::new(3, 2);
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let (one, _two) = (limits.enter(a), limits.enter(a));
        assert!(one.is_ok());
        let third = limits.enter(a).err().unwrap();
        assert!(third.contains("max-connections-per-address = 2"), "{third}");
        let _three = limits.enter(b);
        let fourth = limits.enter(b).err().unwrap();
        assert!(fourth.contains("max-connections = 3"), "{fourth}");
        drop(one);
        assert!(limits.enter(a).is_ok());
    }

    #[tokio::test]
    async fn a_socket_is_bound_once_and_a_stale_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = AdminSocket::bind(&path, None).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(AdminSocket::bind(&path, None).is_err());
        drop(first);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        AdminSocket::bind(&path, None).unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(AdminSocket::bind(&file, None).is_err() && file.exists());
        assert!(AdminSocket::bind(&path, Some("no-such-group-here")).is_err());
    }
}
