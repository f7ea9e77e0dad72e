//! `[tls]`.

use std::path::PathBuf;

use super::fields::Section;

/// `[tls]`: with neither certificate nor key, one is made at first start and pinned by the nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// `certificate`: a PEM chain, the server's own first.
    pub certificate: Option<PathBuf>,
    /// `key`: its private key, PEM.
    pub key: Option<PathBuf>,
    /// `client-ca`: PEM; certificates of these authorities identify nodes, heads and administrators.
    pub client_ca: Option<PathBuf>,
    /// `client-crl`: PEM; lists of those authorities' revoked certificates, one file or several.
    pub client_crl: Vec<PathBuf>,
    /// `names`: host names and addresses for the self-signed certificate; the first stands in `public-url`'s default.
    pub names: Vec<String>,
}

pub(super) fn read_tls(section: Section<'_, '_>, plain_http: bool) -> Tls {
    let tls = Tls {
        certificate: section.path("certificate"),
        key: section.path("key"),
        client_ca: section.path("client-ca"),
        client_crl: section.paths("client-crl"),
        names: section.texts("names").unwrap_or_default(),
    };
    match (&tls.certificate, &tls.key) {
        (Some(_), None) => section.problem_at("certificate", "needs key beside it"),
        (None, Some(_)) => section.problem_at("key", "needs certificate beside it"),
        _ => {}
    }
    if tls.client_ca.is_none() && !tls.client_crl.is_empty() {
        section.problem_at("client-crl", "has no effect without client-ca");
    }
    if plain_http && tls.client_ca.is_some() {
        section.problem_at("client-ca", "has no effect with plain-http = true");
    }
    for name in &tls.names {
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:*_".contains(&b)) {
            section.problem_at("names", format!("{name:?} is neither a host name nor an address"));
        }
    }
    section.finish();
    tls
}
