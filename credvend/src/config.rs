//! `credvend.toml`: every option, its default, and what may stand there.
//!
//! Reading gathers all problems with their lines. [`Config::parse`] and [`Config::read`] look at the text alone, which
//! is enough for asking a running service; [`Config::load`] also looks at the files it names, and refuses secrets that
//! others may read.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml_edit::{Document, Table};

use crate::audit;
use crate::session_name::{Names, Part};
use crate::source::turns::Rate;
pub use aws::Aws;
pub use clusters::{Attest, Cluster};
use fields::{Section, Source};
pub use limits::Limits;
pub use logs::Log;
pub use store::{ProjectsFrom, Store, StoreKind};
pub use tls::Tls;
pub use upstream::Upstream;

mod aws;
mod clusters;
mod fields;
mod limits;
mod logs;
pub mod secret_file;
mod store;
mod tls;
mod upstream;

/// Where the file is unless the command line or `CREDVEND_CONFIG` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/credvend/credvend.toml";

/// Why a template without `{cluster}` does not do for several.
pub const NO_CLUSTER: &str = "there are several clusters, and users and jobs of two of them may have the same name or number: \
                              it needs {cluster}";

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `listen`: one address and port, or several.
    pub listen: Vec<SocketAddr>,
    /// `plain-http`: no TLS; loopback addresses only.
    pub plain_http: bool,
    /// `public-url`: how jobs outside the nodes' proxy reach this service; stands in the answers of the IAM Credentials
    /// API (v1).
    pub public_url: String,
    /// `localhost-port`: the port of the nodes' proxy, for the answers of the IAM Credentials API (v1).
    pub localhost_port: u16,
    /// `session-tokens`: whether the v1 GET with a session token is served.
    pub session_tokens: bool,
    /// `state-dir`: the store and the self-signed certificate.
    pub state_dir: PathBuf,
    /// `admin-socket`.
    pub admin_socket: PathBuf,
    /// `admin-group`: whose members may use the admin socket besides root and credvend's own user.
    pub admin_group: Option<String>,
    /// `projects`: path of projects.toml.
    pub projects: PathBuf,
    /// `session-name` and `node-names-up-to`.
    pub names: Names,
    /// `projects-from`: whether the projects are those of the file, or of the store's table.
    pub projects_from: ProjectsFrom,
    /// `[store]`.
    pub store: Store,
    /// `[tls]`.
    pub tls: Tls,
    /// `[aws]`.
    pub aws: Aws,
    /// `[upstream]`: a central vending API that is asked instead of STS.
    pub upstream: Option<Upstream>,
    /// `[sts]`: how often this process asks STS at most.
    pub sts: Rate,
    /// `[[cluster]]`, at least one.
    pub clusters: Vec<Cluster>,
    /// `any-cluster`: whether projects that name no clusters are served on all of several.
    pub any_cluster: Option<bool>,
    /// `[limits]`.
    pub limits: Limits,
    /// `[log]`.
    pub log: Log,
    /// `[audit]`.
    pub audit: audit::Settings,
    /// `[metrics] listen`: where Prometheus asks; unset, nowhere.
    pub metrics: Option<SocketAddr>,
}

/// Why there is no configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {}", problems.join("\n"))]
pub struct ConfigError {
    /// Which file.
    pub path: String,
    /// Everything that is wrong with it.
    pub problems: Vec<String>,
}

impl Config {
    /// Reads the file, and no other.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let error = |problems| ConfigError { path: path.display().to_string(), problems };
        let text = read_own(path).map_err(|e| error(vec![format!("cannot be read: {e}")]))?;
        Config::parse(&text).map_err(error)
    }

    /// Reads the file and looks at the files that it names.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config = Config::read(path)?;
        let problems = config.file_problems();
        if problems.is_empty() {
            return Ok(config);
        }
        Err(ConfigError { path: path.display().to_string(), problems })
    }

    /// Reads the text alone.
    ///
    /// # Errors
    /// Everything that is wrong, each with its line.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let source = Source::new(text);
        let document = match Document::parse(text) {
            Ok(document) => document,
            Err(error) => {
                let line = source.line(error.span().map_or(0, |span| span.start));
                return Err(vec![format!("line {line}: {}", error.message())]);
            }
        };
        let empty = Table::new();
        let config = read(&Section::root(&source, document.as_table()), &empty);
        let problems = source.into_problems();
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }

    fn file_problems(&self) -> Vec<String> {
        let secrets = self.tls.key.iter().chain(self.clusters.iter().flat_map(|c| &c.head_secret_files));
        let secrets = secrets.chain(self.upstream.iter().map(|upstream| &upstream.head_secret_file));
        let mut problems: Vec<String> = secrets.filter_map(|path| secret_file::problem(path)).collect();
        let projects = (self.projects_from == ProjectsFrom::File).then_some(&self.projects);
        let readable =
            self.tls.certificate.iter().chain(&self.tls.client_ca).chain(&self.tls.client_crl).chain(projects);
        let readable = readable.chain(self.upstream.iter().filter_map(|upstream| upstream.ca_file.as_ref()));
        problems.extend(readable.filter_map(|path| {
            std::fs::File::open(path).err().map(|error| format!("{} cannot be read: {error}", path.display()))
        }));
        problems
    }

    /// The addresses are all of this host alone.
    pub fn loopback_only(&self) -> bool {
        self.listen.iter().all(|address| address.ip().to_canonical().is_loopback())
    }
}

/// The text of a configuration that not everybody can change: it says whom to believe and where secrets go.
///
/// # Errors
/// It cannot be read, or everybody can write it.
pub fn read_own(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mode = std::os::unix::fs::MetadataExt::mode(&file.metadata()?);
    if mode & 0o002 != 0 {
        return Err(std::io::Error::other(format!("everybody can change it (mode {:o}): chmod o-w it", mode & 0o7777)));
    }
    let mut text = String::new();
    std::io::Read::read_to_string(&mut file, &mut text)?;
    Ok(text)
}

fn read<'s>(root: &Section<'s, '_>, empty: &'s Table) -> Config {
    let listen = read_listen(root);
    let plain_http = root.boolean("plain-http").unwrap_or(false);
    if plain_http && !listen.iter().all(|address| address.ip().to_canonical().is_loopback()) {
        root.problem_at("plain-http", "without TLS, only loopback addresses may be listened on");
    }
    let state_dir = root.path("state-dir").unwrap_or_else(|| "/var/lib/credvend".into());
    let tls = tls::read_tls(root.section("tls", empty), plain_http);
    let store = store::read_store(root.section("store", empty), &state_dir);
    let projects_from = root.word("projects-from", &[("file", ProjectsFrom::File), ("store", ProjectsFrom::Store)]);
    if projects_from == Some(ProjectsFrom::Store) && store.kind == StoreKind::Sqlite {
        root.problem_at("projects-from", "the SQLite store keeps no projects: it needs [store] kind = \"dynamodb\"");
    }
    if projects_from == Some(ProjectsFrom::Store) && root.has("upstream") {
        root.problem_at("projects-from", "with an [upstream] the projects are those of projects.toml");
    }
    let public_url = root.text("public-url");
    if let Some(url) = &public_url
        && let Err(why) = base_url(url)
    {
        root.problem_at("public-url", why);
    }
    let config = Config {
        public_url: public_url
            .map(|url| url.trim_end_matches('/').to_owned())
            .unwrap_or_else(|| default_url(&listen, &tls, plain_http)),
        localhost_port: root
            .number("localhost-port", 1, 65_535)
            .and_then(|port| port.try_into().ok())
            .unwrap_or(credd_protocol::endpoint::DEFAULT_PORT),
        session_tokens: root.boolean("session-tokens").unwrap_or(true),
        admin_socket: root.path("admin-socket").unwrap_or_else(|| "/run/credvend/admin.sock".into()),
        admin_group: root.text("admin-group"),
        projects: root.path("projects").unwrap_or_else(|| "/etc/credvend/projects.toml".into()),
        names: read_names(root),
        projects_from: projects_from.unwrap_or(ProjectsFrom::File),
        store,
        aws: aws::read_aws(root.section("aws", empty)),
        upstream: upstream::read_upstream(root, empty),
        sts: aws::read_sts(root.section("sts", empty)),
        clusters: clusters::read_clusters(root, empty),
        any_cluster: root.boolean("any-cluster"),
        limits: limits::read_limits(root.section("limits", empty)),
        log: logs::read_log(root.section("log", empty)),
        metrics: logs::read_metrics(root.section("metrics", empty)),
        audit: logs::read_audit(root.section("audit", empty), &state_dir),
        listen,
        plain_http,
        state_dir,
        tls,
    };
    if config.clusters.len() > 1 && !config.names.template.has(Part::Cluster) {
        root.problem_at("session-name", NO_CLUSTER);
    }
    root.finish();
    config
}

fn read_names(root: &Section<'_, '_>) -> Names {
    let usual = Names::default();
    Names {
        template: root.parsed("session-name").unwrap_or(usual.template),
        node_names_up_to: root.number("node-names-up-to", 0, 100_000).unwrap_or(usual.node_names_up_to),
    }
}

fn read_listen(root: &Section<'_, '_>) -> Vec<SocketAddr> {
    let texts = root.texts("listen").unwrap_or_else(|| vec!["0.0.0.0:8443".to_owned()]);
    if texts.is_empty() {
        root.problem_at("listen", "needs at least one address");
    }
    let parse = |text: &String| match text.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            root.problem_at("listen", format!("{text:?} must be an address and a port, as 10.0.0.1:8443 or [::]:8443"));
            None
        }
    };
    texts.iter().filter_map(parse).collect()
}

/// `http(s)://host[:port][/path]`, nothing else.
fn base_url(url: &str) -> Result<(), String> {
    let uri: hyper::Uri = url.parse().map_err(|e| format!("{url:?} is no URL: {e}"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        return Err(format!("{url:?} must begin with http:// or https:// and a host"));
    }
    if uri.query().is_some() || uri.authority().is_some_and(|a| a.as_str().contains('@')) {
        return Err(format!("{url:?} must have no query and no user"));
    }
    Ok(())
}

fn default_url(listen: &[SocketAddr], tls: &Tls, plain_http: bool) -> String {
    let scheme = if plain_http { "http" } else { "https" };
    let Some(address) = listen.first() else { return String::new() };
    match tls.names.first() {
        Some(name) => format!("{scheme}://{name}:{}", address.port()),
        None if !address.ip().is_unspecified() => format!("{scheme}://{address}"),
        None => {
            let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
            format!("{scheme}://{}:{}", host.unwrap_or_else(|| "localhost".into()), address.port())
        }
    }
}

#[cfg(test)]
mod tests;
