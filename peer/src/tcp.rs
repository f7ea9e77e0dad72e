//! The other end of a TCP connection on this host.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::CgroupId;
use crate::wire::{self, Answer, State, Tcp};

/// The kernel answers within the call that asks; this only bounds what should not happen.
const PATIENCE_MS: i64 = 200;

/// Answers to questions that were given up, at most so many, are skipped.
const MAX_STALE: usize = 16;

/// Who owns the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The uid that made the socket.
    pub uid: u32,
    /// The socket's inode: of all sockets that are open now, only this one has it.
    pub inode: u32,
    /// The cgroup v2 in which the socket was made, whoever holds it now and wherever that process was moved since:
    /// [`JobCgroups`](crate::JobCgroups) says whether it is a Slurm job's. `None` if the kernel does not say (before 5.8).
    pub cgroup: Option<CgroupId>,
}

/// Why nobody can be named as the other end.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The other end is not a socket of this host (and network namespace), or is gone without a trace.
    #[error("no socket of this host is the other end of {local} - {peer}")]
    NotHere {
        /// Our end.
        local: SocketAddr,
        /// The other end.
        peer: SocketAddr,
    },
    /// There is such a socket, but its process has closed it or it was never connected: nobody answers for it.
    #[error("the other end of {local} - {peer} is not held by any process (state {state})", state = state.0)]
    NotHeld {
        /// Our end.
        local: SocketAddr,
        /// The other end.
        peer: SocketAddr,
        /// Its state.
        state: State,
    },
    /// The kernel could not be asked.
    #[error("cannot ask the kernel for the other end of a connection: {0}")]
    Io(#[from] io::Error),
}

/// A kept netlink socket to ask on. One question at a time; each takes microseconds, so it may be asked from
/// asynchronous code.
#[derive(Debug)]
pub struct TcpPeers {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    socket: OwnedFd,
    sequence: u32,
}

impl TcpPeers {
    /// Opens the netlink socket. It needs no privilege.
    ///
    /// # Errors
    /// The kernel has no `SOCK_DIAG`, or a sandbox forbids AF_NETLINK.
    pub fn new() -> io::Result<Self> {
        let socket =
            socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(PATIENCE_MS))?;
        // Connected to the kernel (port 0), the socket takes no message from any process.
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(TcpPeers { inner: Mutex::new(Inner { socket, sequence: 0 }) })
    }

    /// Who holds the other end of the connection that is `local` here and `peer` there, both as our own socket says.
    ///
    /// # Errors
    /// [`PeerError`]; then nobody is to be served.
    pub fn owner(&self, local: SocketAddr, peer: SocketAddr) -> Result<Owner, PeerError> {
        let (local, peer) = (wire::plain(local), wire::plain(peer));
        let not_here = PeerError::NotHere { local, peer };
        if local.is_ipv4() != peer.is_ipv4() {
            return Err(not_here);
        }
        let Some(found) = self.lookup(peer, local)? else { return Err(not_here) };
        // Where the exact connection is gone, the kernel falls back to a listener on the port.
        if found.local != peer || found.remote != local {
            return Err(not_here);
        }
        if found.state != State::ESTABLISHED || found.inode == 0 {
            return Err(PeerError::NotHeld { local, peer, state: found.state });
        }
        Ok(Owner { uid: found.uid, inode: found.inode, cgroup: found.cgroup })
    }

    /// Whoever listens where a connection to `address` would arrive; `None` if nobody does.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn listener(&self, address: SocketAddr) -> io::Result<Option<Owner>> {
        let nowhere: IpAddr =
            if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let found = self.lookup(address, SocketAddr::new(nowhere, 0))?;
        let found = found.filter(|found| found.state == State::LISTEN && found.inode != 0);
        Ok(found.map(|found| Owner { uid: found.uid, inode: found.inode, cgroup: found.cgroup }))
    }

    /// The uid of [`TcpPeers::listener`].
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn listener_owner(&self, address: SocketAddr) -> io::Result<Option<u32>> {
        Ok(self.listener(address)?.map(|owner| owner.uid))
    }

    /// The socket with these addresses, whatever its state, as the kernel describes it. Not for decisions: see [`Tcp`].
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn lookup(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Tcp>> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.sequence = inner.sequence.wrapping_add(1);
        let request = wire::request(inner.sequence, local, remote);
        send(inner.socket.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut buffer = [0u8; 2048];
        for _ in 0..MAX_STALE {
            let length = match recv(inner.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                outcome => outcome?,
            };
            match wire::answer(&buffer[..length], inner.sequence) {
                Some(Answer::Found(found)) => return Ok(Some(found)),
                Some(Answer::Errno(errno)) if errno == Errno::ENOENT as i32 => return Ok(None),
                Some(Answer::Errno(errno)) => return Err(io::Error::from_raw_os_error(errno)),
                Some(Answer::Stale) => {}
                None => return Err(io::Error::other("an answer of the kernel is malformed")),
            }
        }
        Err(io::Error::other("the kernel did not answer"))
    }
}
