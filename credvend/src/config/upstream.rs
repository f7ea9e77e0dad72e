//! `[upstream]`: a central vending API in place of AWS.

use std::path::PathBuf;

use credd_protocol::ClusterName;
use pinned_tls::Fingerprint;
use toml_edit::Table;

use super::base_url;
use super::fields::Section;

/// `[upstream]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// `url`: `https://HOST[:PORT]`, with the stage of an API Gateway as its path.
    pub url: String,
    /// `pin`: its certificate's. With neither this nor `ca-file`, one of the system's authorities must have signed it.
    pub pin: Option<Fingerprint>,
    /// `ca-file`: PEM.
    pub ca_file: Option<PathBuf>,
    /// `head-secret-file`: the last line is sent.
    pub head_secret_file: PathBuf,
    /// `cluster`: its name there; unset, the cluster's own.
    pub cluster: Option<ClusterName>,
}

pub(super) fn read_upstream<'s>(root: &Section<'s, '_>, empty: &'s Table) -> Option<Upstream> {
    let there = root.has("upstream");
    let section = root.section("upstream", empty);
    if !there {
        return None;
    }
    let url = section.text("url");
    match &url {
        None if section.has("url") => {}
        None => section.problem("needs url"),
        Some(url) => match base_url(url) {
            Ok(()) if url.starts_with("http://") && !on_loopback(url) => {
                section.problem_at("url", "without TLS, only 127.0.0.1 and [::1] may be asked: a secret goes there");
            }
            Ok(()) => {}
            Err(why) => section.problem_at("url", why),
        },
    }
    let (pin, ca_file) = (section.parsed("pin"), section.path("ca-file"));
    if section.has("pin") && section.has("ca-file") {
        section.problem_at("ca-file", "has no effect beside pin: keep one of them");
    }
    let head_secret_file = section.path("head-secret-file");
    if !section.has("head-secret-file") {
        section.problem("needs head-secret-file: what the upstream knows this head by");
    }
    let cluster = section.parsed("cluster");
    if cluster.is_some() && root.sections("cluster").len() > 1 {
        section.problem_at("cluster", "two clusters cannot have one name there: remove it, or serve one cluster only");
    }
    section.finish();
    Some(Upstream {
        url: url?.trim_end_matches('/').to_owned(),
        pin,
        ca_file,
        head_secret_file: head_secret_file?,
        cluster,
    })
}

fn on_loopback(url: &str) -> bool {
    let host = url.parse::<hyper::Uri>().ok().and_then(|uri| uri.host().map(str::to_owned)).unwrap_or_default();
    host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
