//! `credvend.toml`: every option, its default, and what may stand there.
//!
//! Reading gathers all problems with their lines. [`Config::parse`] and [`Config::read`] look at the text alone, which
//! is enough for asking a running service; [`Config::load`] also looks at the files it names, and refuses secrets that
//! others may read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use credd_protocol::{ClusterName, NodeName, Region, RoleArn};
use pinned_tls::Fingerprint;
use toml_edit::{Document, Table};

use crate::audit::{self, Fsync, OnFailure};
use crate::server::connections::Bounds;
use crate::session_name::{Names, Part};
use crate::source::turns::Rate;
use crate::vending::AddressCheck;
use fields::{Section, Source};

mod fields;
pub mod secret_file;

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
    /// `public-url`: how jobs outside the nodes' proxy reach this service; stands in the seed's answers.
    pub public_url: String,
    /// `localhost-port`: the port of the nodes' proxy, for the seed's answers.
    pub localhost_port: u16,
    /// `session-tokens`: whether the seed's GET with a session token is served.
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

/// `[store]`. What belongs to the other kind may stand there too: `credvend store copy` moves a site from one to the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// `kind`: `sqlite` or `dynamodb`.
    pub kind: StoreKind,
    /// `path`: the SQLite file.
    pub path: PathBuf,
    /// `table-prefix`: before each DynamoDB table's name.
    pub table_prefix: String,
    /// `region`: of the DynamoDB tables; unset, that of `[aws]`.
    pub region: Option<Region>,
    /// `endpoint`: another DynamoDB, as in tests, or a VPC endpoint.
    pub endpoint: Option<String>,
}

/// See [`Store`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum StoreKind {
    /// One file, one credvend.
    Sqlite,
    /// Tables of AWS, any number of credvends.
    Dynamodb,
}

/// Where the projects are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProjectsFrom {
    /// In projects.toml.
    File,
    /// In the DynamoDB store's table of projects, as in the first version.
    Store,
}

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

/// `[aws]`: how credvend itself reaches AWS. Its credentials come from the SDK's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aws {
    /// `region`; unset, `AWS_REGION` or `AWS_DEFAULT_REGION` of the environment.
    pub region: Option<Region>,
    /// `sts-endpoint`: another STS, as in tests.
    pub sts_endpoint: Option<String>,
    /// `iam-endpoint`: another IAM.
    pub iam_endpoint: Option<String>,
    /// `allow-instance-metadata`: take credvend's own identity from a metadata service. Whoever else on this host
    /// reaches that service has the same authority, so this is off.
    pub allow_instance_metadata: bool,
    /// `revoker-roles`: one for each AWS account, assumed to put Deny policies on that account's project roles.
    pub revoker_roles: Vec<RoleArn>,
}

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

/// Who states the facts about a cluster's jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attest {
    /// The cluster's own slurmctld, asked from here.
    Slurm,
    /// A head that pushes, as in the first version.
    Head,
}

/// `[[cluster]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// `name`: `ClusterName` of its slurm.conf.
    pub name: ClusterName,
    /// `attest`: `slurm` or `head`.
    pub attest: Attest,
    /// `slurm-conf`: `SLURM_CONF` for the questions to slurmctld; unset, Slurm's own default.
    pub slurm_conf: Option<PathBuf>,
    /// `slurm-bin`: the directory of squeue, sinfo and scontrol; unset, the usual ones are looked into. `PATH` does not count.
    pub slurm_bin: Option<PathBuf>,
    /// `sees-private-jobs`: believe that a job is gone although the site has `PrivateData=jobs`: credvend's user is a
    /// Slurm operator there.
    pub sees_private_jobs: bool,
    /// `head-secret-file`: one file or several; every line is a valid secret.
    pub head_secret_files: Vec<PathBuf>,
    /// `trust-unenforced-accounts`.
    pub trust_unenforced_accounts: bool,
    /// `node-address-check`: `off`, `warn` or `require`; unset, `warn` in this release and `require` from the next one on.
    pub node_address_check: Option<AddressCheck>,
    /// `node-addresses`: addresses that nodes have besides Slurm's NodeAddr.
    pub node_addresses: BTreeMap<NodeName, Vec<IpAddr>>,
    /// `head-session-max-days`: a head's session that is older is ended.
    pub head_session_max_days: u32,
    /// `munge-socket`: of the munged that has this cluster's key; unset, libmunge's default.
    pub munge_socket: Option<PathBuf>,
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// `max-connections`: open at once. A node holds two.
    pub max_connections: u32,
    /// `max-connections-per-address`.
    pub max_connections_per_address: u32,
    /// `max-unauthenticated-per-address`: of these, without a request that proved a node, a head or an administrator.
    pub max_unauthenticated_per_address: u32,
    /// `handshakes-per-address`: TLS handshakes a second.
    pub handshakes_per_address: u32,
    /// `max-streams-per-node`: a new stream ends the oldest.
    pub max_streams_per_node: u32,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// `format = "json"` instead of text.
    pub json: bool,
    /// `filter`: as in `RUST_LOG`.
    pub filter: String,
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

impl Limits {
    /// The bounds of network connections.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            total: self.max_connections,
            per_address: self.max_connections_per_address,
            unauthenticated_per_address: self.max_unauthenticated_per_address,
            handshakes_per_address: self.handshakes_per_address,
        }
    }
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
    let tls = read_tls(root.section("tls", empty), plain_http);
    let store = read_store(root.section("store", empty), &state_dir);
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
        aws: read_aws(root.section("aws", empty)),
        upstream: read_upstream(root, empty),
        sts: read_sts(root.section("sts", empty)),
        clusters: read_clusters(root, empty),
        any_cluster: root.boolean("any-cluster"),
        limits: read_limits(root.section("limits", empty)),
        log: read_log(root.section("log", empty)),
        metrics: read_metrics(root.section("metrics", empty)),
        audit: read_audit(root.section("audit", empty), &state_dir),
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

fn read_store(section: Section<'_, '_>, state_dir: &Path) -> Store {
    let kind = section.word("kind", &[("sqlite", StoreKind::Sqlite), ("dynamodb", StoreKind::Dynamodb)]);
    let prefix = section.text("table-prefix").unwrap_or_else(|| "credvend-".into());
    // With the longest of our names behind it, DynamoDB's 3 to 255 characters.
    if prefix.len() > 128 || !prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
        section.problem_at("table-prefix", format!("{prefix:?} must be at most 128 letters, digits, '_', '.' and '-'"));
    }
    let endpoint = section.text("endpoint");
    if let Some(Err(why)) = endpoint.as_deref().map(base_url) {
        section.problem_at("endpoint", why);
    }
    let store = Store {
        kind: kind.unwrap_or(StoreKind::Sqlite),
        path: section.path("path").unwrap_or_else(|| state_dir.join("credvend.sqlite")),
        table_prefix: prefix,
        region: section.parsed("region"),
        endpoint,
    };
    section.finish();
    store
}

fn read_tls(section: Section<'_, '_>, plain_http: bool) -> Tls {
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

fn read_aws(section: Section<'_, '_>) -> Aws {
    let endpoint = |key: &'static str| {
        let url = section.text(key)?;
        base_url(&url).map_err(|why| section.problem_at(key, why)).ok()?;
        Some(url)
    };
    let aws = Aws {
        region: section.parsed("region"),
        sts_endpoint: endpoint("sts-endpoint"),
        iam_endpoint: endpoint("iam-endpoint"),
        allow_instance_metadata: section.boolean("allow-instance-metadata").unwrap_or(false),
        revoker_roles: read_revokers(&section),
    };
    section.finish();
    aws
}

fn read_upstream<'s>(root: &Section<'s, '_>, empty: &'s Table) -> Option<Upstream> {
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

fn read_revokers(section: &Section<'_, '_>) -> Vec<RoleArn> {
    let mut revokers: Vec<RoleArn> = Vec::new();
    for text in section.texts("revoker-roles").unwrap_or_default() {
        match text.parse::<RoleArn>() {
            Err(error) => section.problem_at("revoker-roles", error),
            Ok(arn) if revokers.iter().any(|known| known.account_id() == arn.account_id()) => {
                let account = arn.account_id();
                section.problem_at(
                    "revoker-roles",
                    format!("account {account} has two; one revoker does for all its roles"),
                );
            }
            Ok(arn) => revokers.push(arn),
        }
    }
    revokers
}

fn read_sts(section: Section<'_, '_>) -> Rate {
    let usual = Rate::default();
    let rate = Rate {
        per_second: section.number("rate", 1, 10_000).unwrap_or(usual.per_second),
        burst: section.number("burst", 1, 10_000).unwrap_or(usual.burst),
    };
    section.finish();
    rate
}

fn read_clusters<'s>(root: &Section<'s, '_>, empty: &'s Table) -> Vec<Cluster> {
    let sections = root.sections("cluster");
    if sections.is_empty() {
        root.problem("at least one [[cluster]] is needed");
    }
    let (mut names, mut clusters) = (BTreeSet::new(), Vec::new());
    for section in sections {
        let name: Option<ClusterName> = section.parsed("name");
        let attest = section.word("attest", &[("slurm", Attest::Slurm), ("head", Attest::Head)]);
        let check = [("off", AddressCheck::Off), ("warn", AddressCheck::Warn), ("require", AddressCheck::Require)];
        let cluster = |name| Cluster {
            name,
            attest: attest.unwrap_or(Attest::Slurm),
            slurm_conf: section.path("slurm-conf"),
            slurm_bin: section.path("slurm-bin"),
            sees_private_jobs: section.boolean("sees-private-jobs").unwrap_or(false),
            head_secret_files: section.paths("head-secret-file"),
            trust_unenforced_accounts: section.boolean("trust-unenforced-accounts").unwrap_or(false),
            node_address_check: section.word("node-address-check", &check),
            node_addresses: read_node_addresses(section.section("node-addresses", empty)),
            head_session_max_days: section.number("head-session-max-days", 1, 3650).unwrap_or(30),
            munge_socket: section.path("munge-socket"),
        };
        match name {
            Some(name) => {
                if !names.insert(name.clone()) {
                    section.problem_at("name", format!("cluster {name} is there twice"));
                }
                clusters.push(cluster(name));
            }
            None => {
                // The rest is read nevertheless, so that its problems are listed too.
                let unnamed = cluster("unnamed".parse().expect("a valid name"));
                if !section.has("name") {
                    section.problem("needs a name");
                }
                drop(unnamed);
            }
        }
        section.finish();
    }
    clusters
}

/// `{ n1 = "10.0.0.1", n2 = ["10.0.0.2", "fd00::2"] }`.
fn read_node_addresses(section: Section<'_, '_>) -> BTreeMap<NodeName, Vec<IpAddr>> {
    let mut read = BTreeMap::new();
    for (key, texts) in section.all_texts() {
        let node: NodeName = match key.parse() {
            Ok(node) => node,
            Err(error) => {
                section.problem_at(&key, error);
                continue;
            }
        };
        let address = |text: &String| match text.parse::<IpAddr>() {
            Ok(ip) => Some(ip.to_canonical()),
            Err(_) => {
                section.problem_at(&key, format!("{text:?} is no IP address"));
                None
            }
        };
        read.insert(node, texts.iter().filter_map(address).collect());
    }
    read
}

fn read_limits(section: Section<'_, '_>) -> Limits {
    let per_address = section.number("max-connections-per-address", 4, 1_000_000).unwrap_or(256);
    let (unauthenticated, handshakes) = (
        section.number("max-unauthenticated-per-address", 2, 1_000_000),
        section.number("handshakes-per-address", 1, 1_000_000),
    );
    if unauthenticated.is_some_and(|most| most > per_address) {
        let why = format!("cannot be more than max-connections-per-address ({per_address})");
        section.problem_at("max-unauthenticated-per-address", why);
    }
    let limits = Limits {
        max_connections: section.number("max-connections", 16, 1_000_000).unwrap_or(65_536),
        max_connections_per_address: per_address,
        max_unauthenticated_per_address: unauthenticated.unwrap_or_else(|| Bounds::usual_unauthenticated(per_address)),
        handshakes_per_address: handshakes.unwrap_or_else(|| Bounds::usual_handshakes(per_address)),
        max_streams_per_node: section.number("max-streams-per-node", 1, 16).unwrap_or(2),
    };
    section.finish();
    limits
}

fn read_log(section: Section<'_, '_>) -> Log {
    let filter = section.text("filter").unwrap_or_else(|| "info".into());
    if let Err(error) = filter.parse::<tracing_subscriber::filter::Targets>() {
        section.problem_at("filter", error);
    }
    let log = Log { json: section.word("format", &[("text", false), ("json", true)]).unwrap_or(false), filter };
    section.finish();
    log
}

/// Whoever reaches the page may read it, and an interface more is one to think about: beyond this host only when said twice.
fn read_metrics(section: Section<'_, '_>) -> Option<SocketAddr> {
    let listen: Option<SocketAddr> = section.parsed("listen");
    let beyond = section.boolean("beyond-loopback").unwrap_or(false);
    if listen.is_some_and(|address| !address.ip().to_canonical().is_loopback()) && !beyond {
        section.problem_at("listen", "anybody who reaches it may read it; set beyond-loopback = true if that is meant");
    }
    section.finish();
    listen
}

fn read_audit(section: Section<'_, '_>, state_dir: &Path) -> audit::Settings {
    let fsync = [("each", Fsync::Each), ("interval", Fsync::Interval), ("never", Fsync::Never)];
    let settings = audit::Settings {
        path: section.path("path").unwrap_or_else(|| state_dir.join("audit.jsonl")),
        fsync: section.word("fsync", &fsync).unwrap_or_default(),
        on_failure: section
            .word("on-failure", &[("refuse", OnFailure::Refuse), ("continue", OnFailure::Continue)])
            .unwrap_or_default(),
    };
    section.finish();
    settings
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
