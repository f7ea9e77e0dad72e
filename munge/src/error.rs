//! What can go wrong, by cause: each variant asks for a different reaction of the caller.

use std::ffi::c_int;

use crate::ffi;

/// Why libmunge did not encode or decode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This munged has decoded the credential before.
    #[error("the MUNGE credential was used before (replay)")]
    Replayed,
    /// Its time-to-live is over, or the clocks of the two hosts differ by more.
    #[error("the MUNGE credential has expired; check that the hosts' clocks agree")]
    Expired,
    /// It was made in this host's future.
    #[error("the MUNGE credential comes from the future; check that the hosts' clocks agree")]
    Rewound,
    /// It is no credential, is damaged, or was made with another key.
    #[error("the MUNGE credential is not valid here ({0}); check that the hosts share one MUNGE key")]
    BadCred(String),
    /// It was made for another user or group than the one who decodes.
    #[error("the MUNGE credential is not for this user")]
    Unauthorized,
    /// munged does not answer.
    #[error("munged cannot be reached ({0}); check that it runs and that the socket path is right")]
    Unreachable(String),
    /// The payload or the credential is longer than this binding handles.
    #[error("{what} has {length} bytes; the limit is {limit}")]
    TooLong {
        /// Which of the two.
        what: &'static str,
        /// Its length in bytes.
        length: usize,
        /// [`MAX_PAYLOAD_BYTES`](crate::MAX_PAYLOAD_BYTES) or
        /// [`MAX_CREDENTIAL_BYTES`](crate::MAX_CREDENTIAL_BYTES).
        limit: usize,
    },
    /// The socket path holds a NUL byte.
    #[error("the path of the MUNGE socket holds a NUL byte")]
    BadPath,
    /// Anything else, in libmunge's words.
    #[error("MUNGE error {code}: {text}")]
    Other {
        /// `munge_err_t`.
        code: i32,
        /// munge_ctx_strerror(3) or munge_strerror(3).
        text: String,
    },
}

impl Error {
    /// The error for a `munge_err_t` other than success.
    pub(crate) fn from_code(code: c_int, text: String) -> Self {
        match code {
            ffi::EMUNGE_CRED_REPLAYED => Error::Replayed,
            ffi::EMUNGE_CRED_EXPIRED => Error::Expired,
            ffi::EMUNGE_CRED_REWOUND => Error::Rewound,
            ffi::EMUNGE_CRED_UNAUTHORIZED => Error::Unauthorized,
            ffi::EMUNGE_SOCKET | ffi::EMUNGE_TIMEOUT => Error::Unreachable(text),
            ffi::EMUNGE_BAD_CRED
            | ffi::EMUNGE_BAD_VERSION
            | ffi::EMUNGE_BAD_CIPHER
            | ffi::EMUNGE_BAD_MAC
            | ffi::EMUNGE_BAD_ZIP
            | ffi::EMUNGE_BAD_REALM
            | ffi::EMUNGE_CRED_INVALID => Error::BadCred(text),
            ffi::EMUNGE_BAD_LENGTH => Error::Other { code, text: format!("{text} (munged refused the length)") },
            code => Error::Other { code, text },
        }
    }

    /// Whether trying again, with a new credential, may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Unreachable(_))
    }
}
