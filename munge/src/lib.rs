//! A small safe binding to libmunge: encode a payload, decode a credential, know who encoded it.
//!
//! Both calls block: libmunge talks to munged over a Unix socket, 0.1 ms as a rule; it retries an absent daemon for
//! some seconds before [`Error::Unreachable`]. Asynchronous callers use their runtime's blocking threads. A context
//! is made for each call, so a [`Munge`] may be shared between threads.

mod context;
mod error;
mod ffi;

use std::ffi::CString;
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

pub use error::Error;

use context::Context;

/// What calls return.
pub type Result<T> = std::result::Result<T, Error>;

/// The longest payload that is encoded or accepted from a credential. munged itself allows far more; nothing here
/// needs it.
pub const MAX_PAYLOAD_BYTES: usize = 64 * 1024;

/// The longest credential that is decoded: a payload of [`MAX_PAYLOAD_BYTES`] in base64, with its headers.
pub const MAX_CREDENTIAL_BYTES: usize = 96 * 1024;

/// A way to one munged.
#[derive(Debug, Clone)]
pub struct Munge {
    socket: Option<CString>,
}

/// How to encode. The default is munged's time-to-live and no restriction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// How long the credential may be decoded: whole seconds, rounded up, at least one; munged caps it.
    pub ttl: Option<Duration>,
    /// The only uid that may decode it. munged enforces this against root too.
    pub only_uid: Option<u32>,
}

/// A credential that this host's munged vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// What was encoded.
    pub payload: Vec<u8>,
    /// The uid of the process that encoded, as its munged saw it.
    pub uid: u32,
    /// Its gid.
    pub gid: u32,
    /// The address that the encoding munged names as its origin; `None` if it names none. Root there may set any.
    pub encode_addr: Option<Ipv4Addr>,
    /// When it was encoded, by the encoding host's clock.
    pub encode_time: SystemTime,
    /// Its time-to-live.
    pub ttl: Duration,
}

impl Munge {
    /// The munged behind `socket`, or behind the path that libmunge was built with. Nothing is contacted yet.
    ///
    /// # Errors
    /// [`Error::BadPath`].
    pub fn new(socket: Option<&Path>) -> Result<Self> {
        let socket = match socket {
            Some(path) => Some(CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::BadPath)?),
            None => None,
        };
        Ok(Munge { socket })
    }

    /// Signs `payload` in the name of this process's effective uid and gid.
    ///
    /// # Errors
    /// [`Error::TooLong`], [`Error::Unreachable`], or what munged says.
    pub fn encode(&self, payload: &[u8], options: EncodeOptions) -> Result<String> {
        within("the payload", payload.len(), MAX_PAYLOAD_BYTES)?;
        let context = Context::new(self.socket.as_deref())?;
        if let Some(ttl) = options.ttl {
            context.set_ttl(ttl)?;
        }
        if let Some(uid) = options.only_uid {
            context.restrict_to_uid(uid)?;
        }
        context.encode(payload)
    }

    /// Checks a credential. It can be decoded once by each munged: a second time is [`Error::Replayed`].
    ///
    /// # Errors
    /// Every variant of [`Error`]; a credential that fails any check yields nothing of its contents.
    pub fn decode(&self, credential: &str) -> Result<Decoded> {
        within("the MUNGE credential", credential.len(), MAX_CREDENTIAL_BYTES)?;
        let text = CString::new(credential).map_err(|_| Error::BadCred("it holds a NUL byte".into()))?;
        let decoded = Context::new(self.socket.as_deref())?.decode(&text)?;
        within("the payload", decoded.payload.len(), MAX_PAYLOAD_BYTES)?;
        Ok(decoded)
    }
}

fn within(what: &'static str, length: usize, limit: usize) -> Result<()> {
    if length > limit { Err(Error::TooLong { what, length, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_munged_is_unreachable_and_lengths_are_bounded() {
        assert_eq!(Munge::new(Some(Path::new("a\0b"))).unwrap_err(), Error::BadPath);
        let munge = Munge::new(Some(Path::new("/nonexistent/munge.socket"))).unwrap();
        let error = munge.encode(&[0; MAX_PAYLOAD_BYTES + 1], EncodeOptions::default()).unwrap_err();
        assert!(matches!(error, Error::TooLong { what: "the payload", .. }), "{error}");
        let error = munge.decode(&"x".repeat(MAX_CREDENTIAL_BYTES + 1)).unwrap_err();
        assert!(matches!(error, Error::TooLong { .. }), "{error}");
        assert!(matches!(munge.decode("a\0b"), Err(Error::BadCred(_))));
        let error = munge.encode(b"", EncodeOptions::default()).unwrap_err();
        assert!(matches!(&error, Error::Unreachable(text) if text.contains("/nonexistent/munge.socket")), "{error}");
    }
}
