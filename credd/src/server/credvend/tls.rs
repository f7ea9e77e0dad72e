//! Who credvend must be, as the configuration says it.

use pinned_tls::{Client, Fingerprint};
use rustls::ClientConfig;

use crate::config::{Identity, Trust};

pub use pinned_tls::Seen;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Nothing says who credvend is.
    #[error("credvend's url is https, but nothing says who credvend is: set pin or ca-file")]
    NobodyToTrust,
    /// The pin.
    #[error("credvend's pin must be the 64 hex digits of its certificate's SHA-256")]
    Pin,
    /// What was configured does not serve.
    #[error("towards credvend: {0}")]
    Unusable(#[from] pinned_tls::TlsError),
}

/// The client side of TLS to credvend. `seen` holds the certificate that a node signs its requests for.
///
/// # Errors
/// What is wrong with the certificates that were configured.
pub fn client_config(trust: &Trust, identity: Option<&Identity>, seen: Seen) -> Result<ClientConfig, TlsError> {
    let trust = match trust {
        Trust::Loopback => return Err(TlsError::NobodyToTrust),
        Trust::Pin(hex) => pinned_tls::Trust::Pin(Fingerprint::from_hex(hex).map_err(|_| TlsError::Pin)?),
        Trust::CaPem(pem) => pinned_tls::Trust::CaPem(pem),
        Trust::System => pinned_tls::Trust::System,
    };
    let client = identity
        .map(|identity| Client { certificate_pem: &identity.certificate_pem, key_pem: identity.key_pem.expose() });
    Ok(pinned_tls::client_config(trust, client, seen)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn https_without_trust_or_with_a_bad_pin_is_refused() {
        let config = |trust| client_config(&trust, None, Seen::default());
        assert!(matches!(config(Trust::Loopback), Err(TlsError::NobodyToTrust)));
        assert!(matches!(config(Trust::Pin("zz".repeat(32))), Err(TlsError::Pin)));
        assert!(matches!(config(Trust::CaPem(String::new())), Err(TlsError::Unusable(_))));
        assert!(config(Trust::Pin("ab".repeat(32))).is_ok());
    }
}
