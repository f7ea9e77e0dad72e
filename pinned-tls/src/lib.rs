//! TLS to a server that is who it should be if it shows exactly the pinned certificate, or one that a given authority
//! signed for its name.
//!
//! credd uses it towards credvend, `credvend hook` towards credvend, and a cluster's credvend towards a central one: what
//! decides whom secrets are sent to is written once.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};

/// SHA-256 of a certificate's DER bytes. Written `sha256:` and 64 hex digits, as `credvend pin` prints it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

/// A text that is no pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a pin is sha256: and the 64 hex digits of a certificate's SHA-256, as `credvend pin` prints it")]
pub struct PinError;

impl Fingerprint {
    /// Of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Fingerprint(Sha256::digest(certificate).into())
    }

    /// From 64 hex digits, without the `sha256:` before them.
    ///
    /// # Errors
    /// Any other text.
    pub fn from_hex(hex: &str) -> Result<Self, PinError> {
        let mut bytes = [0u8; 32];
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(PinError);
        }
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| PinError)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| PinError)?;
        }
        Ok(Fingerprint(bytes))
    }
}

impl FromStr for Fingerprint {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        Fingerprint::from_hex(text.strip_prefix("sha256:").ok_or(PinError)?)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who the server must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust<'a> {
    /// Whoever shows this certificate and holds its key; its name, chain and dates do not matter.
    Pin(Fingerprint),
    /// Whoever shows a certificate for its name that one of these authorities signed: PEM.
    CaPem(&'a str),
    /// The same with the system's authorities.
    System,
}

/// A client's own certificate and key, PEM.
#[derive(Clone, Copy)]
pub struct Client<'a> {
    /// The chain, the client's own first.
    pub certificate_pem: &'a str,
    /// Its private key.
    pub key_pem: &'a str,
}

/// The fingerprint that the latest handshake saw and accepted.
#[derive(Debug, Clone, Default)]
pub struct Seen(Arc<Mutex<Option<Fingerprint>>>);

impl Seen {
    /// The latest one.
    pub fn get(&self) -> Option<Fingerprint> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, fingerprint: Fingerprint) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(fingerprint);
    }
}

/// Certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The authorities.
    #[error("the CA file has no usable certificate: {0}")]
    Ca(String),
    /// The client's certificate or its key.
    #[error("the client certificate cannot be used: {0}")]
    Client(String),
    /// rustls itself.
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] Error),
}

/// The server showed another certificate than the pinned one.
#[derive(Debug, thiserror::Error)]
#[error("the server's certificate is {shown}, the pin is {pin}; `credvend pin` on its host prints the right line")]
struct WrongPin {
    shown: Fingerprint,
    pin: Fingerprint,
}

/// The client side of TLS. Without resumption: a resumed session shows no certificate, and `seen` must be of the one that
/// is there now.
///
/// # Errors
/// What is wrong with the certificates that were given.
pub fn client_config(trust: Trust<'_>, client: Option<Client<'_>>, seen: Seen) -> Result<ClientConfig, TlsError> {
    let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::ring::default_provider());
    let who = match trust {
        Trust::Pin(pin) => Who::Pinned(pin),
        Trust::CaPem(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|e| TlsError::Ca(e.to_string()))?;
                roots.add(certificate).map_err(|e| TlsError::Ca(e.to_string()))?;
            }
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
            Who::Signed(verifier.map_err(|e| TlsError::Ca(e.to_string()))?)
        }
        Trust::System => Who::Signed(Arc::new(rustls_platform_verifier::Verifier::new(provider.clone())?)),
    };
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { who, algorithms, seen }));
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(client.certificate_pem.as_bytes()).collect();
            let chain = chain.map_err(|e| TlsError::Client(e.to_string()))?;
            let key = PrivateKeyDer::from_pem_slice(client.key_pem.as_bytes())
                .map_err(|e| TlsError::Client(e.to_string()))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| TlsError::Client(e.to_string()))?
        }
    };
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

#[derive(Debug)]
enum Who {
    Pinned(Fingerprint),
    Signed(Arc<dyn ServerCertVerifier>),
}

#[derive(Debug)]
struct Verifier {
    who: Who,
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
        let fingerprint = Fingerprint::of(end_entity);
        match &self.who {
            Who::Pinned(pin) if *pin == fingerprint => {}
            Who::Pinned(pin) => {
                let wrong = WrongPin { shown: fingerprint, pin: *pin };
                return Err(Error::Other(OtherError(Arc::new(wrong))));
            }
            Who::Signed(authority) => {
                authority.verify_server_cert(end_entity, intermediates, server_name, ocsp, now)?;
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pin_is_as_credvend_prints_it() {
        let pin: Fingerprint = format!("sha256:{}", "0f".repeat(32)).parse().unwrap();
        assert_eq!(pin, Fingerprint([15; 32]));
        assert_eq!(pin.to_string(), format!("sha256:{}", "0f".repeat(32)));
        for bad in ["", "sha256:", "sha1:0f", &"0f".repeat(32), &format!("sha256:{}", "zz".repeat(32))] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_authority_must_be_one() {
        let config = |trust| client_config(trust, None, Seen::default());
        assert!(matches!(config(Trust::CaPem("")), Err(TlsError::Ca(_))));
        assert!(config(Trust::Pin(Fingerprint([0xab; 32]))).is_ok());
    }

    #[test]
    fn only_the_pinned_certificate_passes_and_is_remembered() {
        let provider = rustls::crypto::ring::default_provider();
        let (own, other) = (CertificateDer::from(vec![1, 2, 3]), CertificateDer::from(vec![1, 2, 4]));
        let verifier = Verifier {
            who: Who::Pinned(Fingerprint::of(&own)),
            algorithms: provider.signature_verification_algorithms,
            seen: Seen::default(),
        };
        let name = ServerName::try_from("anything").unwrap();
        let verify = |end: &CertificateDer<'_>| verifier.verify_server_cert(end, &[], &name, &[], UnixTime::now());
        let said = verify(&other).unwrap_err().to_string();
        for part in [Fingerprint::of(&own), Fingerprint::of(&other)] {
            assert!(said.contains(&part.to_string()) && said.contains("`credvend pin`"), "{said}");
        }
        assert_eq!(verifier.seen.get(), None);
        assert!(verify(&own).is_ok());
        assert_eq!(verifier.seen.get(), Some(Fingerprint::of(&own)));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*", hex in "[0-9a-fA-F]{60,68}") {
            let _ = text.parse::<Fingerprint>();
            prop_assert_eq!(format!("sha256:{hex}").parse::<Fingerprint>().is_ok(), hex.len() == 64);
        }
    }
}
