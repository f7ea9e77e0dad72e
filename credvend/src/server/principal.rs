//! Who asks: the `Authorization` header, the client's certificate, or the administrator's socket → one [`Principal`].
//!
//! An `Authorization` header decides where there is one; else the certificate does. What a principal may do is
//! [`Server::dispatch`](super::Server)'s to say.

use std::collections::BTreeSet;
use std::fmt;

use credd_protocol::{ClusterName, NodeName, Secret, TokenHash, claim, hex};
use hyper::{HeaderMap, Method, header};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Connection;
use super::head_secrets::HeadSecrets;
use super::munge_claim::{Expected, MungeVerifier};
use super::route::Callers;
use crate::refusal::Refusal;
use crate::vending::{Head, Node};

/// No `Authorization` header is longer: a MUNGE credential of the longest claim has less.
const MAX_AUTHORIZATION_BYTES: usize = 16 * 1024;

/// Somebody who proved who they are, or bears a token nobody has looked up yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// No header, no certificate.
    Nobody,
    /// A head, by a secret of its cluster or a certificate.
    Head(Head),
    /// A node, by MUNGE as root or a certificate.
    Node(Node),
    /// The bearer of something that is no head's secret: maybe a session token.
    Bearer(TokenHash),
    /// An administrator, by the socket or a certificate.
    Admin(String),
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Principal::Nobody => f.write_str("an unauthenticated caller"),
            Principal::Head(head) => write!(f, "the head of cluster {}", head.cluster),
            Principal::Node(node) => write!(f, "node {} of cluster {}", node.name, node.cluster),
            Principal::Bearer(_) => f.write_str("the bearer of a token"),
            Principal::Admin(name) => write!(f, "administrator {name}"),
        }
    }
}

/// The parts of a request that prove something.
pub struct Asked<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Path and query, as they came.
    pub target: &'a str,
    /// The whole body.
    pub body: &'a [u8],
    /// All headers.
    pub headers: &'a HeaderMap,
}

/// See [`Authenticator::heads_of`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadProof<'a> {
    /// It cannot, or there is no such cluster.
    None,
    /// By a certificate alone; the cluster as the configuration spells it.
    Certificate(&'a ClusterName),
    /// By a secret.
    Secret,
}

/// Knows every way to prove who one is.
pub struct Authenticator {
    /// The configured clusters.
    pub clusters: BTreeSet<ClusterName>,
    /// The heads' secrets.
    pub secrets: HeadSecrets,
    /// The nodes' MUNGE credentials.
    pub munge: MungeVerifier,
    /// Whether a head can prove itself by a certificate.
    pub head_certificates: bool,
}

impl Authenticator {
    /// How a head of this cluster can prove itself, and so open sessions that have tokens.
    pub fn heads_of(&self, cluster: &ClusterName) -> HeadProof<'_> {
        let configured = self.clusters.iter().find(|own| own.as_str().eq_ignore_ascii_case(cluster.as_str()));
        match configured {
            Some(own) if self.secrets.any_of(own) => HeadProof::Secret,
            Some(own) if self.head_certificates => HeadProof::Certificate(own),
            _ => HeadProof::None,
        }
    }

    /// Who asks.
    ///
    /// # Errors
    /// [`Refusal::Unauthenticated`] where something was shown that proves nothing.
    pub async fn authenticate(
        &self,
        connection: &Connection,
        asked: &Asked<'_>,
        now: OffsetDateTime,
    ) -> Result<Principal, Refusal> {
        if let Connection::AdminSocket { name } = connection {
            return Ok(Principal::Admin(name.clone()));
        }
        // A certificate that names nobody is refused even where the header would do: someone issued it by mistake.
        let certified = match connection {
            Connection::Tls { certificate: Some(certificate), .. } => Some(self.certified(certificate, connection)?),
            _ => None,
        };
        let peer = connection.peer().map(|peer| peer.ip().to_canonical());
        match authorization(asked.headers)? {
            Some(Authorization::Munge(credential)) => self.munged(connection, asked, credential, now).await,
            Some(Authorization::Raw(secret)) => Ok(match self.secrets.cluster_of(&secret) {
                Some(cluster) => Principal::Head(Head { cluster, peer }),
                None => Principal::Bearer(TokenHash::of(secret.expose())),
            }),
            None => Ok(certified.unwrap_or(Principal::Nobody)),
        }
    }

    async fn munged(
        &self,
        connection: &Connection,
        asked: &Asked<'_>,
        credential: String,
        now: OffsetDateTime,
    ) -> Result<Principal, Refusal> {
        let server = match connection {
            Connection::Tls { fingerprint, .. } => &**fingerprint,
            _ => "",
        };
        let expected = Expected {
            method: asked.method.as_str(),
            target: asked.target,
            body: hex::encode(&Sha256::digest(asked.body)),
            server,
            now,
        };
        let claim = self.munge.verify(credential, &expected).await.map_err(|refusal| match refusal {
            // Of this MUNGE key there is no cluster of that name, but there is one whose nodes have nothing to ask.
            Refusal::UnknownCluster(cluster) if self.clusters.contains(&cluster) => Refusal::HeadStatesJobs(cluster),
            refusal => refusal,
        })?;
        let peer = connection.peer().map(|peer| peer.ip().to_canonical());
        Ok(Principal::Node(Node { cluster: self.configured(claim.cluster)?, name: claim.node, peer, certified: false }))
    }

    fn certified(&self, certificate: &[u8], connection: &Connection) -> Result<Principal, Refusal> {
        let refused = |why: String| Refusal::Unauthenticated(format!("the client certificate: {why}"));
        let named = certificate_name(certificate).map_err(refused)?;
        let peer = connection.peer().map(|peer| peer.ip().to_canonical());
        Ok(match named {
            CertificateName::Node(cluster, name) => {
                Principal::Node(Node { cluster: self.configured(cluster)?, name, peer, certified: true })
            }
            CertificateName::Head(cluster) => Principal::Head(Head { cluster: self.configured(cluster)?, peer }),
            CertificateName::Admin(name) => Principal::Admin(format!("{name} (certificate)")),
        })
    }

    /// The cluster as the configuration spells it, which is how the store has it.
    fn configured(&self, cluster: ClusterName) -> Result<ClusterName, Refusal> {
        self.clusters.get(&cluster).cloned().ok_or(Refusal::UnknownCluster(cluster))
    }
}

/// The refusal for a principal that is none of these callers.
pub fn not_allowed(connection: &Connection, callers: Callers, principal: &Principal) -> Refusal {
    let (for_whom, prove) = callers.proof();
    match (principal, connection) {
        (Principal::Nobody, _) => Refusal::Unauthenticated(format!("{for_whom}; {prove}")),
        (Principal::Bearer(_), Connection::Tls { .. } | Connection::Plain { .. }) => {
            Refusal::Unauthenticated(format!("what it sent in Authorization is not known here as proof; {for_whom}"))
        }
        _ => Refusal::NotAllowed { who: principal.to_string(), why: format!("{for_whom}; {prove}") },
    }
}

/// What an `Authorization` header holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Authorization {
    /// `Munge CREDENTIAL`.
    Munge(String),
    /// A secret without a scheme, as the IAM Credentials API (v1) and the SDKs send it.
    Raw(Secret),
}

/// Reads the header.
///
/// # Errors
/// More than one header, an overlong one, one that is not visible ASCII.
pub fn authorization(headers: &HeaderMap) -> Result<Option<Authorization>, Refusal> {
    let refused = |why: &str| Err(Refusal::Unauthenticated(format!("the Authorization header {why}")));
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return refused("is there more than once");
    }
    if value.len() > MAX_AUTHORIZATION_BYTES {
        return refused("is too long");
    }
    let Ok(text) = value.to_str() else { return refused("must be visible ASCII") };
    if text.is_empty() || text.contains('\t') {
        return refused("is empty or has a tab");
    }
    match text.split_once(' ') {
        Some((scheme, credential)) if scheme.eq_ignore_ascii_case(claim::SCHEME) => {
            if !credential.starts_with("MUNGE:") || credential.contains(' ') {
                return refused("must be `Munge ` and one MUNGE credential");
            }
            Ok(Some(Authorization::Munge(credential.to_owned())))
        }
        _ => Ok(Some(Authorization::Raw(Secret::new(text.to_owned())))),
    }
}

/// Whom a client certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateName {
    /// `credd:node:CLUSTER:NODE`.
    Node(ClusterName, NodeName),
    /// `credd:head:CLUSTER`.
    Head(ClusterName),
    /// `credd:admin:NAME`.
    Admin(String),
}

/// Reads the one `credd:` URI among a certificate's subject alternative names.
///
/// # Errors
/// Why it names nobody.
pub fn certificate_name(der: &[u8]) -> Result<CertificateName, String> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| "it is no X.509 certificate".to_owned())?;
    if !rest.is_empty() {
        return Err("bytes follow it".into());
    }
    let names = certificate.subject_alternative_name().map_err(|_| "its alternative names are malformed".to_owned())?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) if uri.get(..6).is_some_and(|s| s.eq_ignore_ascii_case("credd:")) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri_name(uri),
        (None, _) => Err("it has no credd: URI among its alternative names".into()),
        (Some(_), Some(_)) => Err("it has several credd: URIs among its alternative names".into()),
    }
}

/// Reads one `credd:` URI, exactly. In a cluster's and a node's name `%` and two hex digits stand for what a URI cannot
/// hold, or for a `:`.
///
/// # Errors
/// What is wrong with it.
pub fn uri_name(uri: &str) -> Result<CertificateName, String> {
    let bad = |why: String| format!("its name {:?}: {why}", uri.chars().take(80).collect::<String>());
    if !uri.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(bad("a URI has no space and no character beyond ASCII".into()));
    }
    let name = |part: &str| super::target::decode(part).map_err(|e| bad(e.to_string()));
    let parts: Vec<&str> = uri.split(':').collect();
    match parts[..] {
        ["credd", "node", cluster, node] => Ok(CertificateName::Node(
            name(cluster)?.parse().map_err(|e: credd_protocol::Invalid| bad(e.to_string()))?,
            name(node)?.parse().map_err(|e: credd_protocol::Invalid| bad(e.to_string()))?,
        )),
        ["credd", "head", cluster] => {
            Ok(CertificateName::Head(name(cluster)?.parse().map_err(|e: credd_protocol::Invalid| bad(e.to_string()))?))
        }
        ["credd", "admin", name] => {
            // An administrator is named as a user is.
            let name: credd_protocol::UserName =
                name.parse().map_err(|e: credd_protocol::Invalid| bad(e.to_string()))?;
            Ok(CertificateName::Admin(name.as_str().to_owned()))
        }
        _ => Err(bad("it must be credd:node:CLUSTER:NODE, credd:head:CLUSTER or credd:admin:NAME".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    fn header(value: &[u8]) -> Result<Option<Authorization>, Refusal> {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        authorization(&headers)
    }

    #[test]
    fn a_header_is_a_credential_a_raw_secret_or_nothing() {
        assert_eq!(authorization(&HeaderMap::new()).unwrap(), None);
        assert_eq!(header(b"munge MUNGE:abc:").unwrap(), Some(Authorization::Munge("MUNGE:abc:".into())));
        assert_eq!(header(b"Bearer x").unwrap(), Some(Authorization::Raw(Secret::new("Bearer x".into()))));
        for bad in [&b""[..], b"Munge abc", b"Munge MUNGE:a: b", b"Munge  MUNGE:a:", b"a\tb", b"caf\xc3\xa9"] {
            assert_eq!(header(bad).unwrap_err().status(), 401, "{bad:?}");
        }
        assert!(header("x".repeat(MAX_AUTHORIZATION_BYTES + 1).as_bytes()).is_err());
        let mut twice = HeaderMap::new();
        twice.append(header::AUTHORIZATION, HeaderValue::from_static("a"));
        twice.append(header::AUTHORIZATION, HeaderValue::from_static("b"));
        assert!(authorization(&twice).is_err());
    }

    #[test]
    fn certificate_names_are_exact() {
        let node = CertificateName::Node("lab".parse().unwrap(), "n1".parse().unwrap());
        assert_eq!(uri_name("credd:node:lab:n1").unwrap(), node);
        assert_eq!(uri_name("credd:head:lab").unwrap(), CertificateName::Head("lab".parse().unwrap()));
        assert_eq!(uri_name("credd:admin:root").unwrap(), CertificateName::Admin("root".into()));
        let escaped = CertificateName::Node("my lab:x%".parse().unwrap(), "n:1".parse().unwrap());
        assert_eq!(uri_name("credd:node:my%20lab%3ax%25:n%3A1").unwrap(), escaped);
        for bad in [
            "credd:",
            "credd:node:lab%",
            "credd:head:lab%0a",
            "credd:node:lab",
            "credd:node:lab:n1:",
            "credd:node::n1",
            "credd:node:l b:n1",
            "credd:head:lab:x",
            "credd:admin:",
            "credd:admin:a:b",
            "CREDD:admin:a",
            "credd:root:a",
            " credd:admin:a",
        ] {
            assert!(uri_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_certificate_has_exactly_one_name_of_ours() {
        let certificate = |uris: &[&str]| {
            let mut params = rcgen::CertificateParams::new(vec!["n1.example.org".to_owned()]).unwrap();
            for uri in uris {
                params.subject_alt_names.push(rcgen::SanType::URI((*uri).try_into().unwrap()));
            }
            params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
        };
        let head = CertificateName::Head("lab".parse().unwrap());
        assert_eq!(certificate_name(&certificate(&["credd:head:lab", "https://x"])).unwrap(), head);
        assert!(certificate_name(&certificate(&[])).is_err());
        assert!(certificate_name(&certificate(&["https://x"])).is_err());
        assert!(certificate_name(&certificate(&["credd:head:lab", "credd:admin:a"])).is_err());
        assert!(certificate_name(&certificate(&["credd:head:lab", "CREDD:admin:a"])).is_err());
        let mut longer = certificate(&["credd:head:lab"]);
        longer.push(0);
        assert!(certificate_name(&longer).is_err());
    }

    proptest! {
        #[test]
        fn no_header_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                headers.insert(header::AUTHORIZATION, value);
                let _ = authorization(&headers);
            }
        }

        #[test]
        fn no_name_panics(uri in ".*", part in "[a-z:]{0,30}") {
            let _ = uri_name(&uri);
            let _ = uri_name(&format!("credd:{part}"));
        }

        #[test]
        fn no_certificate_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = certificate_name(&bytes);
        }
    }
}
