//! Who credvend must be: the pinned certificate, or one of a given CA, or both.

use std::sync::{Arc, Mutex};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};

use crate::config::{Identity, Trust};

/// SHA-256 of a certificate's DER bytes.
pub type Fingerprint = [u8; 32];

/// The fingerprint that the latest handshake saw and accepted. A node signs its requests for exactly this one.
#[derive(Debug, Clone, Default)]
pub struct Seen(Arc<Mutex<Option<Fingerprint>>>);

impl Seen {
    /// The latest one.
    pub fn get(&self) -> Option<Fingerprint> {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn set(&self, fingerprint: Fingerprint) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(fingerprint);
    }
}

#[derive(Debug)]
struct Verifier {
    pin: Option<Fingerprint>,
    authority: Option<Arc<dyn ServerCertVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
    seen: Seen,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let fingerprint: Fingerprint = Sha256::digest(end_entity).into();
        if self.pin.is_some_and(|pin| pin != fingerprint) {
            return Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        }
        if let Some(authority) = &self.authority {
            authority.verify_server_cert(end_entity, intermediates, server_name, ocsp, now)?;
        } else if self.pin.is_none() {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        }
        self.seen.set(fingerprint);
        Ok(ServerCertVerified::assertion())
    }

    // The pin says which certificate; the signatures say that the other side has its key.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Nothing says who credvend is.
    #[error("credvend's url is https, but nothing says who credvend is: set pin or ca-file")]
    NobodyToTrust,
    /// The pin.
    #[error("credvend's pin must be the 64 hex digits of its certificate's SHA-256")]
    Pin,
    /// The CA file.
    #[error("credvend's CA file has no usable certificate: {0}")]
    Ca(String),
    /// The client certificate or its key.
    #[error("this node's client certificate cannot be used: {0}")]
    Client(String),
    /// rustls itself.
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] Error),
}

/// The client side of TLS to credvend.
///
/// # Errors
/// What is wrong with the certificates that were configured.
pub fn client_config(trust: &Trust, identity: Option<&Identity>, seen: Seen) -> Result<ClientConfig, TlsError> {
    let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::ring::default_provider());
    let (mut pin, mut authority) = (None, None::<Arc<dyn ServerCertVerifier>>);
    match trust {
        Trust::Loopback => return Err(TlsError::NobodyToTrust),
        Trust::Pin(hex) => pin = Some(fingerprint(hex).ok_or(TlsError::Pin)?),
        Trust::CaPem(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|e| TlsError::Ca(e.to_string()))?;
                roots.add(certificate).map_err(|e| TlsError::Ca(e.to_string()))?;
            }
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
            authority = Some(verifier.map_err(|e| TlsError::Ca(e.to_string()))?);
        }
        Trust::System => authority = Some(Arc::new(rustls_platform_verifier::Verifier::new(provider.clone())?)),
    }
    let algorithms = provider.signature_verification_algorithms;
    let verifier = Arc::new(Verifier { pin, authority, algorithms, seen });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let chain: Result<Vec<_>, _> =
                CertificateDer::pem_slice_iter(identity.certificate_pem.as_bytes()).collect();
            let chain = chain.map_err(|e| TlsError::Client(e.to_string()))?;
            let key = PrivateKeyDer::from_pem_slice(identity.key_pem.expose().as_bytes())
                .map_err(|e| TlsError::Client(e.to_string()))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| TlsError::Client(e.to_string()))?
        }
    };
    // A resumed session shows no certificate, and a request must be signed for the one that is there now.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn fingerprint(hex: &str) -> Option<Fingerprint> {
    let mut bytes = [0u8; 32];
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn https_without_trust_or_with_a_bad_pin_is_refused() {
        let config = |trust| client_config(&trust, None, Seen::default());
        assert!(matches!(config(Trust::Loopback), Err(TlsError::NobodyToTrust)));
        assert!(matches!(config(Trust::Pin("zz".repeat(32))), Err(TlsError::Pin)));
        assert!(matches!(config(Trust::CaPem(String::new())), Err(TlsError::Ca(_))));
        assert!(config(Trust::Pin("ab".repeat(32))).is_ok());
        assert_eq!(fingerprint(&"0f".repeat(32)), Some([15; 32]));
    }
}
