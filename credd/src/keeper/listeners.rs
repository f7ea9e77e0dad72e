//! The three listening sockets: the service manager's, if it holds them, or our own.
//!
//! The HTTP listener is the one that matters: whoever listens on the endpoint's port is sent the jobs' tokens. So it
//! is served only after the kernel has said that the listener on that address is the very socket held here.

use std::fs::{self, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use listenfd::ListenFd;
use nix::sys::socket::{Backlog, listen};
use peer::TcpPeers;

/// Connections that the kernel keeps for us, also while the server process is replaced.
const BACKLOG: i32 = 4096;

/// What the service manager passed, each at most once.
#[derive(Debug, Default)]
pub struct Passed {
    /// `FileDescriptorName=http`
    pub http: Option<TcpListener>,
    /// `FileDescriptorName=root`
    pub root: Option<UnixListener>,
    /// `FileDescriptorName=user`
    pub user: Option<UnixListener>,
}

/// Takes the service manager's sockets over (sd_listen_fds(3)). Once, at the start, before any thread runs.
///
/// # Errors
/// A sentence: a socket without one of the names, twice, or of the wrong kind.
pub fn passed() -> Result<Passed, String> {
    // Read first: taking the descriptors removes the variables.
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut descriptors = ListenFd::from_env();
    let mut passed = Passed::default();
    let names: Vec<&str> = names.split(':').collect();
    if descriptors.len() > names.len() {
        return Err("the service manager passed sockets without names: set FileDescriptorName= in their units".into());
    }
    for (at, name) in names.iter().enumerate().take(descriptors.len()) {
        let wrong = |error: io::Error| format!("the socket that the service manager calls {name:?}: {error}");
        let known = match *name {
            "http" => put(&mut passed.http, descriptors.take_tcp_listener(at).map_err(wrong)?),
            "root" => put(&mut passed.root, descriptors.take_unix_listener(at).map_err(wrong)?),
            "user" => put(&mut passed.user, descriptors.take_unix_listener(at).map_err(wrong)?),
            _ => return Err(format!("the service manager passed a socket {name:?}; known are http, root and user")),
        };
        if !known {
            return Err(format!("the service manager passed two sockets {name:?}"));
        }
    }
    Ok(passed)
}

fn put<T>(place: &mut Option<T>, value: Option<T>) -> bool {
    value.is_some_and(|value| place.replace(value).is_none())
}

/// Why the endpoint cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum EndpointProblem {
    /// Somebody else has the port. Jobs must not be sent there.
    #[error("{address} on this node is held by {holder}, not by credd: end that process; no job gets credentials until then", holder = holder(*uid))]
    Foreign {
        /// The endpoint.
        address: SocketAddr,
        /// Who listens there, if the kernel knows.
        uid: Option<u32>,
    },
    /// The service manager's socket is not at the configured address.
    #[error("the service manager's socket `http` listens on {found}, credd.toml says {address}: make them agree")]
    Elsewhere {
        /// The endpoint.
        address: SocketAddr,
        /// Where the socket is.
        found: SocketAddr,
    },
    /// The kernel refuses.
    #[error("cannot listen on {address}: {source}")]
    Io {
        /// The endpoint.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

fn holder(uid: Option<u32>) -> String {
    uid.map_or_else(|| "another process".to_owned(), |uid| format!("a process of uid {uid}"))
}

/// Binds the endpoint.
///
/// # Errors
/// [`EndpointProblem`]
pub fn bind_http(address: SocketAddr, peers: &TcpPeers) -> Result<TcpListener, EndpointProblem> {
    match TcpListener::bind(address) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Err(EndpointProblem::Foreign { address, uid: peers.listener_owner(address).ok().flatten() })
        }
        Err(source) => Err(EndpointProblem::Io { address, source }),
    }
}

/// Makes sure that connections to `address` arrive at this socket.
///
/// # Errors
/// [`EndpointProblem`]
pub fn verify_http(listener: &TcpListener, address: SocketAddr, peers: &TcpPeers) -> Result<(), EndpointProblem> {
    let io = |source| EndpointProblem::Io { address, source };
    let found = listener.local_addr().map_err(io)?;
    if found != address {
        return Err(EndpointProblem::Elsewhere { address, found });
    }
    listen(listener, Backlog::new(BACKLOG).unwrap_or(Backlog::MAXCONN)).map_err(|error| io(error.into()))?;
    let inode = nix::sys::stat::fstat(listener.as_fd()).map_err(|error| io(error.into()))?.st_ino;
    match peers.listener(address).map_err(io)? {
        Some(owner) if u64::from(owner.inode) == inode & u64::from(u32::MAX) => Ok(()),
        other => Err(EndpointProblem::Foreign { address, uid: other.map(|owner| owner.uid) }),
    }
}

/// Binds a Unix socket at a path of ours, in place of one that an earlier keeper left. [`super::run_dir::lock`] is held.
///
/// # Errors
/// Something else than a socket is there, or the kernel refuses.
pub fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::other(format!("{} is there and is no socket", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // The umask keeps others out until the mode is as it should be.
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_its_holder() {
        let peers = TcpPeers::new().unwrap();
        let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = foreign.local_addr().unwrap();
        let error = bind_http(address, &peers).unwrap_err();
        let me = nix::unistd::geteuid();
        assert!(error.to_string().contains(&format!("a process of uid {me}")), "{error}");
        drop(foreign);
        let ours = bind_http(address, &peers).unwrap();
        verify_http(&ours, address, &peers).unwrap();
    }

    #[test]
    fn a_socket_that_is_not_the_one_on_the_address_is_not_served() {
        let peers = TcpPeers::new().unwrap();
        let one = TcpListener::bind("127.0.0.1:0").unwrap();
        let two = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = two.local_addr().unwrap();
        assert!(matches!(verify_http(&one, address, &peers), Err(EndpointProblem::Elsewhere { .. })));
    }

    #[test]
    fn of_two_sockets_on_one_address_only_the_one_that_gets_the_connections_is_served() {
        use nix::sys::socket::{
            AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt::ReusePort,
        };
        let shared = |port: u16| {
            let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
            setsockopt(&socket, ReusePort, &true).unwrap();
            bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrIn::new(127, 0, 0, 1, port)).unwrap();
            listen(&socket, Backlog::new(1).unwrap()).unwrap();
            TcpListener::from(socket)
        };
        let one = shared(0);
        let address = one.local_addr().unwrap();
        let two = shared(address.port());
        let peers = TcpPeers::new().unwrap();
        let refused = [&one, &two].map(|listener| verify_http(listener, address, &peers).is_err());
        assert_eq!(refused.iter().filter(|refused| **refused).count(), 1, "{refused:?}");
    }

    #[test]
    fn a_stale_unix_socket_is_replaced_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(bind_unix(&path, 0o600).unwrap());
        bind_unix(&path, 0o666).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        fs::write(dir.path().join("f"), b"").unwrap();
        assert!(bind_unix(&dir.path().join("f"), 0o600).is_err());
    }
}
