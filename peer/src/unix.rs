//! The other end of a Unix socket: SO_PEERCRED of unix(7).

use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt};

/// Who connected, at the time of connect(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Creds {
    /// The effective uid.
    pub uid: u32,
    /// The effective gid.
    pub gid: u32,
    /// The process. It may have ended, and the number may be another process's by now.
    pub pid: i32,
}

/// Who is on the other end of a connected Unix socket.
///
/// # Errors
/// getsockopt(2) fails: the socket is not a Unix one.
pub fn unix_peer(socket: &impl AsFd) -> io::Result<Creds> {
    let creds = getsockopt(socket, sockopt::PeerCredentials)?;
    // The kernel says -1 where it knows nobody; nobody is to be taken for such a uid.
    if creds.uid() == u32::MAX {
        return Err(io::Error::other("the kernel knows no owner of the other end"));
    }
    Ok(Creds { uid: creds.uid(), gid: creds.gid(), pid: creds.pid() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_pair_is_our_own() {
        let (one, _two) = UnixStream::pair().unwrap();
        let creds = unix_peer(&one).unwrap();
        assert_eq!(creds.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(creds.gid, nix::unistd::getegid().as_raw());
        assert_eq!(creds.pid.cast_unsigned(), std::process::id());
    }

    #[test]
    fn a_tcp_socket_has_no_peer_credentials() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(unix_peer(&listener).is_err());
    }
}
