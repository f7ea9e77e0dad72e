//! What the keeper (root) and the server (no powers) of one `credd` say to each other: lines of JSON over a socket pair.
//!
//! The keeper never reads a byte that a job wrote; the server is never given a job's token (it sees what jobs
//! send), a MUNGE key or root's uid.

use std::fmt;

use credd_protocol::handshake_ticket::HandshakeTicket;
use credd_protocol::late::SlurmFacts;
use credd_protocol::local::{Health, JobStatus};
use credd_protocol::record::JobOptions;
use credd_protocol::{
    ClusterName, Invalid, JobId, NodeName, PartitionName, ProjectId, SessionId, Sluid, TokenHash, Uid, UserName,
};
use serde::{Deserialize, Serialize};

/// The longest line on the socket pair.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// Why nothing is signed on a node without a cluster in its configuration, before the first job's record names it.
pub const NOT_NAMED: &str = "the cluster's name is not known before the first job, so credvend is not asked yet, and tells this node \
                             nothing; set `cluster` in credd.toml, as `credvend pin` prints it";

/// One run of a job on this node. Differs for every record the plugin ever wrote, also under the same job id.
///
/// It is the first 16 hex digits of the token's hash: nothing can be learned from it, and it needs no bookkeeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct RunId(u64);

impl RunId {
    /// The run whose token has this hash.
    pub fn of(token: TokenHash) -> Self {
        RunId(token.first_digits())
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<RunId> for String {
    fn from(run: RunId) -> String {
        run.to_string()
    }
}

impl TryFrom<String> for RunId {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        let digits = Some(&text).filter(|text| text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit()));
        let number = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        number.map(RunId).ok_or_else(|| Invalid::new("run", &text, "it must be 16 hex digits"))
    }
}

/// A record as the server gets it: everything but the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Job {
    /// Which run.
    pub run: RunId,
    /// The raw job id.
    pub job: JobId,
    /// The restart count.
    pub restart: u32,
    /// The cluster.
    pub cluster: ClusterName,
    /// This node.
    pub node: NodeName,
    /// The job's user.
    pub user: UserName,
    /// The only uid that is served.
    pub uid: Uid,
    /// The job's account, if any.
    pub account: Option<ProjectId>,
    /// The job's partition.
    pub partition: PartitionName,
    /// Whether this node opens the session; the others join at first use.
    pub first_node: bool,
    /// The run's SLUID, where Slurm has one: its cgroup may be named by it.
    #[serde(default)]
    pub sluid: Option<Sluid>,
    /// The job that leads the heterogeneous job of which this is another component.
    #[serde(default)]
    pub het_leader: Option<JobId>,
    /// The hash of the job's token here.
    pub token: TokenHash,
    /// The resolved options.
    pub options: JobOptions,
    /// credvend's UUID, if an earlier credd learned it.
    pub session: Option<SessionId>,
    /// The refusal an earlier credd was told, if any.
    pub refused: Option<String>,
    /// Whether the job has ended already: serve nothing, tell credvend.
    pub ended: bool,
}

/// A late record as the server gets it: all that is known of the job is whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LateJob {
    /// Which run.
    pub run: RunId,
    /// The raw job id.
    pub job: JobId,
    /// The only uid that is served.
    pub uid: Uid,
    /// The hash of the job's token here.
    pub token: TokenHash,
    /// Why it gets no credentials, if that is known.
    pub refused: Option<String>,
}

/// A late record's job, for `credd status`: whose name the uid has is Slurm's to say, and was not heard yet.
pub fn late_status(job: &LateJob) -> JobStatus {
    JobStatus {
        job: job.job,
        user: job.uid.to_string(),
        uid: job.uid.0,
        project: None,
        state: if job.refused.is_some() { "refused" } else { "opening" }.to_owned(),
        session: None,
        reason: job.refused.clone(),
        credentials_until: None,
    }
}

/// Keeper → server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "to-server", rename_all = "kebab-case")]
pub enum ToServer {
    /// A record was found: at start, after a poke, or by the periodic look. Sent again after a restart of the server;
    /// a run already known is no news.
    Job(Box<Job>),
    /// A late record was found: ask credvend, and answer with [`ToKeeper::Attested`], whereupon the run comes as a
    /// [`ToServer::Job`]. Sent again with the reason if it gets no credentials, or without one if it is to be asked again.
    Late(Box<LateJob>),
    /// This run is over on this node: forget its token and credentials at once, then tell credvend.
    Ended {
        /// Which run.
        run: RunId,
    },
    /// What an earlier server process said by [`ToKeeper::Ticket`].
    Ticket {
        /// For the next handshakes.
        ticket: HandshakeTicket,
    },
    /// All records that were there at start have been sent.
    Scanned,
    /// The answer to [`ToKeeper::Sign`].
    Signed {
        /// Of the request.
        id: u64,
        /// The MUNGE credential, or why there is none.
        credential: Result<String, String>,
    },
    /// The answer to [`ToKeeper::Look`]: if the job has a record here, it has been sent.
    Looked {
        /// Of the question.
        id: u64,
    },
    /// Somebody at the root socket wants to know: answer with [`ToKeeper::Report`].
    Report {
        /// Of this question.
        id: u64,
    },
    /// Are you there? Answered by [`ToKeeper::Here`].
    Ping {
        /// Comes back with the answer.
        id: u64,
    },
    /// Another configuration, which follows this line in so many bytes of JSON. Answered by [`ToKeeper::Configured`].
    Configure {
        /// The length of what follows.
        bytes: u32,
    },
    /// End in order: finish what is being answered, then exit.
    Stop,
}

/// Server → keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "to-keeper", rename_all = "kebab-case")]
pub enum ToKeeper {
    /// The listeners are being served.
    Ready,
    /// credvend's word by which this node's handshakes are known: keep it for the next server process, and the next credd.
    Ticket {
        /// For the next handshakes.
        ticket: HandshakeTicket,
    },
    /// The answer to [`ToServer::Ping`].
    Here {
        /// Of the question.
        id: u64,
    },
    /// The answer to [`ToServer::Configure`].
    Configured {
        /// Why the earlier configuration stays in force; `None` if it does not.
        problem: Option<String>,
    },
    /// Sign a request to credvend as this node's root. Cluster, node, time and nonce are the keeper's to fill in.
    Sign {
        /// Comes back with the answer.
        id: u64,
        /// `GET` or `POST`.
        method: String,
        /// A path under `/node/v1/`; the keeper refuses others.
        path: String,
        /// SHA-256 of the body, lower-case hex.
        body: String,
        /// SHA-256 of the server's certificate, lower-case hex, or empty.
        server: String,
    },
    /// A process shows a token that is not known: look whether its job's record is here. Answered by
    /// [`ToServer::Looked`].
    Look {
        /// Comes back with the answer.
        id: u64,
        /// The job that the process claims to be of.
        job: JobId,
    },
    /// What Slurm says of a late record's job, by credvend: the keeper completes the record.
    Attested {
        /// Which run.
        run: RunId,
        /// Slurm's facts.
        facts: SlurmFacts,
    },
    /// credvend opened (or joined) the run's session: remember it in `jobs/ID/session`.
    Opened {
        /// Which run.
        run: RunId,
        /// credvend's UUID.
        session: SessionId,
    },
    /// credvend refused the run for good: remember the sentence in `jobs/ID/refused`.
    Refused {
        /// Which run.
        run: RunId,
        /// For the job's user.
        reason: String,
    },
    /// The run is over by Slurm's word, though not ended on this node: note it in `jobs/ID/over`, for a step that begins
    /// all the same.
    Over {
        /// Which run.
        run: RunId,
    },
    /// Still trying; `reason` is the last obstacle.
    Waiting {
        /// Which run.
        run: RunId,
        /// For the job's user.
        reason: String,
    },
    /// credvend knows that this run ended here: its directory may go.
    EndDelivered {
        /// Which run.
        run: RunId,
    },
    /// The answer to [`ToServer::Report`].
    Report {
        /// Of the question.
        id: u64,
        /// Of the server.
        health: Health,
        /// All jobs.
        jobs: Vec<JobStatus>,
    },
}
