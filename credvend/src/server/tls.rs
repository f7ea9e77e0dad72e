//! The server's certificate: given by the configuration, or made once in the state directory and pinned by the nodes.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use credd_protocol::hex;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::sync::Notify;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::tickets::Tickets;
use crate::config::{Tls, secret_file};
use expiry::{Expiring, Expiry};

pub mod expiry;

/// The names of the made certificate and its key in the state directory.
const MADE: [&str; 2] = ["server.crt", "server.key"];

/// Why there is no certificate to show.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("{path}: {why}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Certificate and key do not fit, or similar.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

/// Where certificate and key are, and which clients' certificates count.
#[derive(Debug, Clone)]
pub struct Files {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    client_crl: Vec<PathBuf>,
    /// Whether this program made them.
    pub made_here: bool,
}

impl Files {
    /// Those of the configuration; without any, those in `state_dir`, which are made if they are not there.
    ///
    /// # Errors
    /// A directory that cannot be written.
    pub fn prepare(tls: &Tls, state_dir: &Path) -> Result<Self, TlsError> {
        let files = Files::named(tls, state_dir);
        if files.made_here && !files.certificate.exists() {
            make(&files, tls)?;
        }
        Ok(files)
    }

    /// The same without making anything.
    pub fn named(tls: &Tls, state_dir: &Path) -> Self {
        let (certificate, key) = match (&tls.certificate, &tls.key) {
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
            _ => (state_dir.join(MADE[0]), state_dir.join(MADE[1])),
        };
        Files {
            certificate,
            key,
            client_ca: tls.client_ca.clone(),
            client_crl: tls.client_crl.clone(),
            made_here: tls.certificate.is_none(),
        }
    }

    /// SHA-256 of the server's own certificate, lower-case hex: what nodes pin and sign for.
    ///
    /// # Errors
    /// No readable certificate.
    pub fn fingerprint(&self) -> Result<String, TlsError> {
        let chain = chain(&self.certificate)?;
        Ok(fingerprint(&chain))
    }

    fn load(&self) -> Result<Live, TlsError> {
        if let Some(why) = secret_file::problem(&self.key) {
            return Err(TlsError::File { path: self.key.clone(), why });
        }
        let chain = chain(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|e| TlsError::File { path: self.key.clone(), why: format!("no private key can be read: {e}") })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let setup = |e: String| TlsError::Setup(e);
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| setup(e.to_string()))?;
        let clients = self.client_ca.as_deref().map(|path| self.clients(path, provider)).transpose()?;
        let builder = match &clients {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
        };
        let fingerprint = fingerprint(&chain).into();
        let expiries = self.expiries(&chain)?.into();
        let names = chain.first().map(names).unwrap_or_default().into();
        let tickets = Tickets::by(key.secret_der());
        let mut config = builder.with_single_cert(chain, key).map_err(|e| setup(e.to_string()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Live { config: Arc::new(config), fingerprint, names, clients, tickets, expiries })
    }

    /// Knows the clients' certificates: of these authorities, and on none of the lists. A certificate about which no list
    /// speaks, or only one that has expired, is refused: a list that is not renewed must not let in again whom it keeps out.
    fn clients(&self, path: &Path, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let mut roots = RootCertStore::empty();
        for authority in chain(path)? {
            roots.add(authority).map_err(|e| TlsError::File { path: path.to_owned(), why: e.to_string() })?;
        }
        let mut lists = Vec::new();
        for path in &self.client_crl {
            lists.extend(revocation_lists(path)?);
        }
        let mut builder =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).allow_unauthenticated();
        if !lists.is_empty() {
            builder = builder.with_crls(lists).enforce_revocation_expiration();
        }
        builder.build().map_err(|e| TlsError::Setup(e.to_string()))
    }

    /// When the server's certificate, the client authorities and their revocation lists end.
    fn expiries(&self, own: &[CertificateDer<'_>]) -> Result<Vec<Expiry>, TlsError> {
        let mut expiries = Vec::new();
        expiries.extend(own.first().and_then(|own| Expiry::of_certificate(Expiring::Server, &self.certificate, own)));
        if let Some(path) = &self.client_ca {
            let authorities = chain(path)?;
            expiries.extend(authorities.iter().filter_map(|own| Expiry::of_certificate(Expiring::ClientCa, path, own)));
        }
        for path in &self.client_crl {
            for list in revocation_lists(path)? {
                let expiry = Expiry::of_list(path, &list);
                expiries.push(expiry.map_err(|why| TlsError::File { path: path.clone(), why: why.to_owned() })?);
            }
        }
        Ok(expiries)
    }
}

/// What new connections are shown.
#[derive(Clone)]
pub struct Live {
    /// For the acceptor.
    pub config: Arc<ServerConfig>,
    /// Of the certificate in it.
    pub fingerprint: Arc<str>,
    /// The host names in it, without wildcards.
    pub names: Arc<[String]>,
    /// Knows the clients' certificates.
    clients: Option<Arc<dyn ClientCertVerifier>>,
    /// By this certificate's key.
    pub tickets: Tickets,
    /// When certificates and revocation lists end.
    pub expiries: Arc<[Expiry]>,
}

impl Live {
    /// What an administrator should know: what has ended, or ends soon.
    pub fn warnings(&self, now: OffsetDateTime) -> Vec<String> {
        self.expiries.iter().filter_map(|expiry| expiry.warning(now)).collect()
    }

    /// Whether a client's certificate still is what it was in its handshake.
    fn still_good(&self, chain: &[CertificateDer<'_>]) -> Result<(), String> {
        let (Some(clients), [own, intermediates @ ..]) = (&self.clients, chain) else {
            return Err("client certificates are not taken any more".into());
        };
        clients.verify_client_cert(own, intermediates, UnixTime::now()).map(drop).map_err(|error| error.to_string())
    }
}

/// The certificate in force; a reload replaces it for new connections.
pub struct Certificates {
    files: Files,
    live: RwLock<Live>,
    reloaded: Notify,
}

/// How often the certificate of an open connection is looked at again: it, or the list that speaks of it, may expire.
const LOOK_AGAIN: Duration = Duration::from_secs(120);

impl Certificates {
    /// Loads the files.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn open(files: Files) -> Result<Self, TlsError> {
        let live = RwLock::new(files.load()?);
        Ok(Certificates { files, live, reloaded: Notify::new() })
    }

    /// What is in force.
    pub fn live(&self) -> Live {
        self.live.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Loads the files again; on an error what was in force stays.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn reload(&self) -> Result<(), TlsError> {
        let live = self.files.load()?;
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = live;
        self.reloaded.notify_waiters();
        Ok(())
    }

    /// Waits until a client's certificate is not good any more, and says why: whoever is revoked must not go on over the
    /// connections that it has.
    pub async fn refused(&self, chain: &[CertificateDer<'_>]) -> String {
        loop {
            let reloaded = self.reloaded.notified();
            if let Err(why) = self.live().still_good(chain) {
                return why;
            }
            let _ = tokio::time::timeout(LOOK_AGAIN, reloaded).await;
        }
    }
}

fn fingerprint(chain: &[CertificateDer<'_>]) -> String {
    chain.first().map(|leaf| hex::encode(&Sha256::digest(leaf))).unwrap_or_default()
}

/// The host names of a certificate. A wildcard's are somebody else's too.
fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, read)) = X509Certificate::from_der(certificate) else { return vec![] };
    let names = read.subject_alternative_name().ok().flatten();
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let host = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) if !name.contains('*') => Some((*name).to_owned()),
        _ => None,
    };
    names.iter().filter_map(host).collect()
}

fn revocation_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let error = |why: String| TlsError::File { path: path.to_owned(), why };
    let lists: Result<Vec<_>, _> =
        CertificateRevocationListDer::pem_file_iter(path).map_err(|e| error(format!("cannot be read: {e}")))?.collect();
    let lists = lists.map_err(|e| error(format!("holds a damaged CRL: {e}")))?;
    if lists.is_empty() { Err(error("holds no CRL (PEM, X509 CRL)".into())) } else { Ok(lists) }
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |why: String| TlsError::File { path: path.to_owned(), why };
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|e| error(format!("cannot be read: {e}")))?.collect();
    let chain = chain.map_err(|e| error(format!("holds a damaged certificate: {e}")))?;
    if chain.is_empty() { Err(error("holds no certificate".into())) } else { Ok(chain) }
}

/// Makes a key and a self-signed certificate for this host's names. Nodes pin it, so its dates mean nothing: it never
/// expires by itself.
fn make(files: &Files, tls: &Tls) -> Result<(), TlsError> {
    let setup = |e: rcgen::Error| TlsError::Setup(e.to_string());
    let mut names = tls.names.clone();
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    for name in host.into_iter().filter(|name| !name.is_empty()).chain(["localhost".into(), "127.0.0.1".into()]) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut params = rcgen::CertificateParams::new(names).map_err(setup)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "credvend");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2120, 1, 1);
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let key = rcgen::KeyPair::generate().map_err(setup)?;
    let certificate = params.self_signed(&key).map_err(setup)?;
    // The certificate comes last: where it is, the key is.
    write(&files.key, zeroize::Zeroizing::new(key.serialize_pem()).as_bytes(), 0o600)?;
    write(&files.certificate, certificate.pem().as_bytes(), 0o644)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), TlsError> {
    let error = |e: std::io::Error| TlsError::File { path: path.to_owned(), why: format!("cannot be written: {e}") };
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new).map_err(error)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(error)?;
    fs::rename(&new, path).map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_certificate_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let tls = Tls { names: vec!["credvend.example.org".into(), "10.0.0.1".into()], ..Tls::default() };
        let files = Files::prepare(&tls, dir.path()).unwrap();
        let first = files.fingerprint().unwrap();
        assert_eq!(fs::metadata(dir.path().join("server.key")).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Files::prepare(&tls, dir.path()).unwrap();
        assert_eq!((first.len(), again.fingerprint().unwrap()), (64, first.clone()));
        assert_eq!(*Certificates::open(again).unwrap().live().fingerprint, *first);
    }

    #[test]
    fn a_readable_key_and_a_strangers_key_are_refused() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let files = Files::prepare(&Tls::default(), dir.path()).unwrap();
        let key = dir.path().join("server.key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Certificates::open(files.clone()), Err(TlsError::File { .. })));
        Files::prepare(&Tls::default(), other.path()).unwrap();
        fs::copy(other.path().join("server.key"), &key).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(Certificates::open(files), Err(TlsError::Setup(_))));
    }
}
