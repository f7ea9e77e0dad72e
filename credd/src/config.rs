//! What the admin decides: `credd.toml`, checked as a whole. The keeper reads it and hands the result to the server.

mod document;
mod file;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use credd_protocol::record::RunDir;
use credd_protocol::{ClusterName, NodeName, Secret};
use serde::{Deserialize, Serialize};

pub use document::Problem;
pub use file::{LoadError, load, parse, run_dir_of};

/// Where the file is looked for.
pub const DEFAULT_PATH: &str = "/etc/credd/credd.toml";

/// The exit code for a configuration that is not in order: EX_CONFIG of sysexits.h.
pub const EXIT_BAD_CONFIG: u8 = 78;

/// A configuration that was found in order. The files it names have been read: the server process may not open them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    /// `cluster`: records of another cluster are refused. Absent: the records say.
    pub cluster: Option<ClusterName>,
    /// `node`: this node's name in Slurm, for what is signed before any job came. Absent: the records say.
    pub node: Option<NodeName>,
    /// `run-dir`
    pub run_dir: PathBuf,
    /// `user`: whom the server process runs as.
    pub user: String,
    /// `[credvend]`
    pub credvend: Credvend,
    /// `[munge]`
    pub munge: Munge,
    /// `[http]`
    pub http: Http,
    /// `[cache]`
    pub cache: Cache,
    /// `[log]`
    pub log: Log,
    /// `[metrics] listen`: where Prometheus asks, on loopback. Absent: nowhere, and `credd metrics` tells.
    pub metrics: Option<SocketAddr>,
}

impl Config {
    /// The paths of the node's running state.
    pub fn run_dir(&self) -> RunDir {
        RunDir::new(&self.run_dir)
    }
}

/// How to reach credvend, and how both sides know each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credvend {
    /// `url`, without a trailing slash: https, or http on loopback.
    pub url: String,
    /// By what credvend's certificate is judged.
    pub trust: Trust,
    /// `certificate` and `key`: how this node proves itself. Absent: with MUNGE.
    pub identity: Option<Identity>,
    /// `connect-timeout`
    pub connect_timeout: Duration,
    /// `request-timeout`: for a whole exchange, except the standing stream.
    pub request_timeout: Duration,
}

/// By what credvend's certificate is judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// Nothing is checked: plain HTTP on loopback.
    Loopback,
    /// `pin`: SHA-256 of the certificate's DER, lower-case hex. Name and chain do not matter.
    Pin(String),
    /// `ca-file`, its contents: PEM.
    CaPem(String),
    /// The system's store of authorities.
    System,
}

/// A certificate of this node and its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// PEM, the chain.
    pub certificate_pem: String,
    /// PEM.
    #[serde(serialize_with = "Secret::serialize_exposed")]
    pub key_pem: Secret,
}

/// The way to munged.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Munge {
    /// `socket`; absent: libmunge's own.
    pub socket: Option<PathBuf>,
}

/// The face that the jobs' SDKs see.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Http {
    /// `listen`: on 127.0.0.1.
    pub listen: SocketAddr,
    /// `max-connections`: of all users together.
    pub max_connections: usize,
    /// `max-connections-per-user`
    pub max_connections_per_user: usize,
    /// `max-waiting-per-user`: requests of one user that may wait for credvend at the same time.
    pub max_waiting_per_user: usize,
    /// `foreign-token`: for a process that sends another node's token.
    pub foreign_token: ProofOfJob,
    /// `without-token`: for a process that sends none.
    pub without_token: ProofOfJob,
}

/// What has to prove that a process belongs to a job, if its token does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProofOfJob {
    /// Its cgroup; on a node where Slurm keeps its jobs in no cgroup v2, its uid.
    Uid,
    /// Its cgroup.
    Cgroup,
    /// Nothing does: such requests are refused.
    Off,
}

/// The credentials kept in memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cache {
    /// `mode`
    pub mode: CacheMode,
    /// `max-entries`: the oldest go first.
    pub max_entries: usize,
    /// `max-unheard`: serve nothing from the cache if credvend has not been heard of for so long. Absent: serve until the
    /// credentials expire.
    pub max_unheard: Option<Duration>,
}

/// Whether credentials are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheMode {
    /// They are, and refreshed before they expire.
    Store,
    /// Every request asks credvend.
    Off,
}

/// What is logged, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Log {
    /// `format`
    pub format: LogFormat,
    /// `level`: a filter of tracing-subscriber, such as `info` or `credd=debug`.
    pub level: String,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
