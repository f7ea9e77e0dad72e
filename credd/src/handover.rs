//! What a new server process is given: its sockets and the configuration, over the control socket, which is its
//! standard input. After that the socket carries the lines of [`crate::control`].
//!
//! One byte carries both descriptors (SCM_RIGHTS of unix(7)); then come a length of four bytes and the configuration
//! in JSON. Nothing lies in arguments, environment or files.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

use crate::config::Config;
use crate::server::Listeners;

/// A configuration with three PEM files of a megabyte is shorter.
const MAX_CONFIG_BYTES: usize = 8 << 20;

/// Hands over.
///
/// # Errors
/// The socket's: the server process is gone.
pub fn give(control: &UnixStream, http: &TcpListener, user: &UnixListener, config: &Config) -> io::Result<()> {
    let descriptors = [http.as_fd(), user.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for two descriptors"));
    }
    rustix::net::sendmsg(control, &[IoSlice::new(b"L")], &mut ancillary, SendFlags::NOSIGNAL)?;
    let json = json(config)?;
    let length = u32::try_from(json.len()).map_err(io::Error::other)?;
    let mut control = control;
    control.write_all(&length.to_be_bytes())?;
    control.write_all(&json)
}

/// A configuration as it goes over the control socket; it may hold a key.
///
/// # Errors
/// It is too long.
pub fn json(config: &Config) -> io::Result<zeroize::Zeroizing<Vec<u8>>> {
    let json = zeroize::Zeroizing::new(serde_json::to_vec(config).map_err(io::Error::other)?);
    bounded(u32::try_from(json.len()).map_err(io::Error::other)?)?;
    Ok(json)
}

/// The length of a configuration, if one can be so long.
///
/// # Errors
/// `InvalidData`: it cannot.
pub fn bounded(length: u32) -> io::Result<usize> {
    match usize::try_from(length) {
        Ok(length) if length <= MAX_CONFIG_BYTES => Ok(length),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the configuration is too long")),
    }
}

/// Takes over.
///
/// # Errors
/// The socket's, or `InvalidData` if it is not the keeper who speaks.
pub fn take(control: &UnixStream) -> io::Result<(Listeners, Config)> {
    let bad = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let mut byte = [0u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        rustix::net::recvmsg(control, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let Ok([http, user]) = <[OwnedFd; 2]>::try_from(descriptors) else {
        return Err(bad("the keeper handed over no sockets: this command is not for people"));
    };
    if received.bytes != 1 || byte != *b"L" {
        return Err(bad("the keeper did not begin with its sockets"));
    }
    let mut control = control;
    let mut length = [0u8; 4];
    control.read_exact(&mut length)?;
    let mut json = zeroize::Zeroizing::new(vec![0u8; bounded(u32::from_be_bytes(length))?]);
    control.read_exact(&mut json)?;
    let config = serde_json::from_slice(&json).map_err(|_| bad("the configuration is not one"))?;
    Ok((Listeners { http: TcpListener::from(http), user: UnixListener::from(user) }, config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_and_configuration_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let http = TcpListener::bind("127.0.0.1:0").unwrap();
        let user = UnixListener::bind(dir.path().join("s")).unwrap();
        let config = crate::config::parse("[credvend]\nurl = \"http://127.0.0.1:1\"").unwrap();
        let (keeper, server) = UnixStream::pair().unwrap();
        give(&keeper, &http, &user, &config).unwrap();
        (&keeper).write_all(b"{}\n").unwrap();
        let (listeners, taken) = take(&server).unwrap();
        assert_eq!(listeners.http.local_addr().unwrap(), http.local_addr().unwrap());
        assert_eq!(listeners.user.local_addr().unwrap().as_pathname(), user.local_addr().unwrap().as_pathname());
        assert_eq!(taken.credvend.url, config.credvend.url);
        // Not a byte of what follows was swallowed.
        let mut rest = [0u8; 3];
        (&server).read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"{}\n");
    }

    #[test]
    fn others_are_not_mistaken_for_the_keeper() {
        let (other, server) = UnixStream::pair().unwrap();
        (&other).write_all(b"GET / HTTP/1.1\r\n").unwrap();
        assert!(take(&server).is_err());
        let (other, server) = UnixStream::pair().unwrap();
        drop(other);
        assert!(take(&server).is_err());
    }
}
