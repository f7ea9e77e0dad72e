//! `credd` ↔ `credvend`. A node triggers attestation; it states no fact that is believed.
//!
//! | verb | path | body → answer |
//! |---|---|---|
//! | POST | [`ATTEST`] | [`AttestRequest`] → [`SlurmFacts`]: what Slurm says of a job of which the node knows no more than its uid |
//! | POST | [`OpenRequest::path`] | [`OpenRequest`] → [`OpenResponse`]: open the job's session, or join it |
//! | POST | `/node/v1/sessions/{uuid}/credentials` | [`CredentialsRequest`] → [`CredentialsResponse`] |
//! | POST | `/node/v1/sessions/{uuid}/leave` | [`LeaveRequest`] → `{}`: the job ended here; credvend asks Slurm |
//! | GET | [`STREAM`], [`stream_path`] | one [`Event`] a line, for as long as both live |
//! | POST | [`HEARD`] | [`HeardRequest`] → `{}`: what these events said to drop has been dropped |
//!
//! The stream's answer has a header [`handshake_ticket::HEADER`](crate::handshake_ticket::HEADER), from releases that
//! know it.
//!
//! Errors are [`ApiError`]. `retry = false` is final for that job: the node stops asking and tells the user.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::credentials::{Credentials, rfc3339_z};
use crate::endpoint;
use crate::ids::{ClusterName, JobId, PartitionName, ProjectId, RoleName, SessionId, Uid, UserName};
pub use crate::late::SlurmFacts;

/// Open or join a session.
pub const OPEN: &str = "/node/v1/sessions";
/// What Slurm says of a job.
pub const ATTEST: &str = "/node/v1/jobs";
/// The standing stream.
pub const STREAM: &str = "/node/v1/stream";
/// Where a node answers the events that ask for it.
pub const HEARD: &str = "/node/v1/heard";

/// The path for a session's credentials.
pub fn credentials_path(session: SessionId) -> String {
    format!("{OPEN}/{session}/credentials")
}

/// The path to leave a session.
pub fn leave_path(session: SessionId) -> String {
    format!("{OPEN}/{session}/leave")
}

/// The stream's path for a node that has heard everything of `epoch` up to number `after`. It is told what followed, as if
/// it had been there. An epoch that does not look like one of credvend's is not sent: the node then starts anew.
pub fn stream_path(known: Option<(&str, u64)>) -> String {
    match known {
        Some((epoch, after)) if plain_epoch(epoch) => format!("{STREAM}?epoch={epoch}&after={after}"),
        _ => STREAM.to_owned(),
    }
}

/// Whether an epoch may stand in a path as it is.
pub fn plain_epoch(epoch: &str) -> bool {
    (1..=64).contains(&epoch.len()) && epoch.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

/// The longest line of the stream, its end included.
pub const MAX_EVENT_BYTES: usize = 16 * 1024;

/// The most sessions of one event, and the most bytes of its reason: whatever they are, the line fits
/// [`MAX_EVENT_BYTES`].
pub const MAX_EVENT_SESSIONS: usize = 256;
/// See [`MAX_EVENT_SESSIONS`].
pub const MAX_REASON_BYTES: usize = 1024;

/// The most numbers in one [`HeardRequest`].
pub const MAX_HEARD: usize = 256;

/// The longest request body that credvend reads from anybody.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// "This job runs on me, says my record": credvend looks for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct OpenRequest {
    /// The raw job id.
    pub job: JobId,
    /// The restart count in the node's record: tells a requeued job's runs apart.
    pub restart: u32,
    /// The uid in the node's record. A mismatch with Slurm is refused: the node would serve the wrong user.
    pub uid: Uid,
    /// The account in the node's record, if any; a mismatch with Slurm is refused and logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<ProjectId>,
    /// The partition in the node's record, which chose the role and the other options there; a mismatch is refused. It
    /// stands in the path's query: a credvend of an older release refuses a body with a field that it does not know.
    #[serde(skip)]
    pub partition: Option<PartitionName>,
}

impl OpenRequest {
    /// The path with its query.
    pub fn path(&self) -> String {
        match &self.partition {
            Some(partition) => format!("{OPEN}?partition={}", endpoint::segment(partition.as_str())),
            None => OPEN.to_owned(),
        }
    }
}

/// "A step of this job runs on me, and that is all I know": credvend looks for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AttestRequest {
    /// The raw job id.
    pub job: JobId,
    /// The job's uid on the node. A mismatch with Slurm is refused.
    pub uid: Uid,
}

/// The session, with the facts as Slurm states them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OpenResponse {
    /// credvend's UUID for this run of the job.
    pub session: SessionId,
    /// The cluster.
    pub cluster: ClusterName,
    /// The job.
    pub job: JobId,
    /// Its user.
    pub user: UserName,
    /// The user's uid at the cluster.
    pub uid: Uid,
    /// Its project.
    pub project: ProjectId,
    /// Its partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<PartitionName>,
    /// The roles that the project has.
    pub roles: Vec<RoleName>,
}

/// Which of the project's roles.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CredentialsRequest {
    /// By its name within the project.
    pub role: RoleName,
    /// The credentials must live at least this many seconds more; older ones in credvend's hands do not do.
    #[serde(default)]
    pub min_life_seconds: u32,
    /// The number of the newest event that the node has heard, 0 if none: the answer must not be older than that event,
    /// whichever credvend gives it.
    #[serde(default)]
    pub heard: u64,
}

/// What is served to the job, and under which name AWS logs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CredentialsResponse {
    /// The document.
    pub credentials: Credentials,
    /// The role-session name, as credvend composed it.
    pub session_name: String,
    /// When they were issued: with the expiration, their whole lifetime.
    #[serde(with = "rfc3339_z")]
    pub issued: OffsetDateTime,
}

/// The job ended on this node. Empty today; unknown fields are refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LeaveRequest {}

/// A line of the standing stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// First line. A node that knew another epoch, or an older `seq`, has missed something: it checks its sessions anew
    /// (drops its cache and asks again).
    Hello {
        /// Changes when credvend cannot tell what a node has missed.
        epoch: String,
        /// The number of the newest event.
        seq: u64,
    },
    /// Nothing happened; the line shows that both live. Sent every [`PING_SECONDS`].
    Ping {
        /// The number of the newest event.
        seq: u64,
    },
    /// The sessions are over: drop their credentials, serve no more.
    Invalidated {
        /// This event's number.
        seq: u64,
        /// Which sessions; at most [`MAX_EVENT_SESSIONS`].
        sessions: Vec<SessionId>,
        /// A sentence for the jobs' users; at most [`MAX_REASON_BYTES`].
        reason: String,
        /// This node is to say when it has dropped them: [`HEARD`].
        #[serde(default)]
        answer: bool,
        /// Sessions whose jobs are over, says Slurm: a job of theirs that still has a record here has ended without its
        /// end being seen. They are not among `sessions`, and ride on this line because a credd that does not know of
        /// them would take an unknown line for a gap: it passes over what it does not know of a line that it knows.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        completed: Vec<SessionId>,
    },
    /// The sessions live, but what was issued for them before is dead in AWS: drop it, and ask anew when it is needed.
    Renew {
        /// This event's number.
        seq: u64,
        /// Which sessions; at most [`MAX_EVENT_SESSIONS`].
        sessions: Vec<SessionId>,
        /// Why, for the node's log; at most [`MAX_REASON_BYTES`].
        reason: String,
        /// See [`Event::Invalidated`].
        #[serde(default)]
        answer: bool,
    },
}

/// "I have dropped what these events named."
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct HeardRequest {
    /// The epoch that the numbers are of.
    pub epoch: String,
    /// Of the events; at most [`MAX_HEARD`].
    pub seqs: Vec<u64>,
}

/// How often a stream without news shows life.
pub const PING_SECONDS: u64 = 15;

/// Why credvend refused, for credd, its log and the job's user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ApiError {
    /// A word for programs; the table in `docs/errors.md` lists them.
    pub code: String,
    /// A sentence: what happened, to which job, what to do.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retry: bool,
    /// In how many seconds, where credvend knows: sooner it will not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
    /// With the code `SessionEnded`, how the session ended: `COMPLETED` or `INVALIDATED`. A credvend of release 0.1 does not
    /// send it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_event_fits_its_line() {
        for worst in ["\u{1}", "\"", "x", "é"] {
            let reason = worst.repeat(MAX_REASON_BYTES / worst.len());
            let sessions = vec![SessionId::random(); MAX_EVENT_SESSIONS];
            let event = Event::Invalidated { seq: u64::MAX, sessions, reason, answer: false, completed: vec![] };
            let line = serde_json::to_vec(&event).unwrap().len() + 1;
            assert!(line <= MAX_EVENT_BYTES, "{line}");
        }
    }

    #[test]
    fn a_records_partition_stands_in_the_query_and_not_in_the_body() {
        let job = JobId::try_from(7).unwrap();
        let mut request = OpenRequest { job, restart: 0, uid: Uid(1), account: None, partition: None };
        assert_eq!(request.path(), OPEN);
        request.partition = Some("gpu-a100".parse().unwrap());
        assert_eq!(request.path(), "/node/v1/sessions?partition=gpu-a100");
        assert_eq!(serde_json::to_string(&request).unwrap(), r#"{"job":7,"restart":0,"uid":1}"#);
    }

    /// As a credd of release 0.1 before it reads a line.
    #[test]
    fn a_credd_that_knows_nothing_of_completed_sessions_hears_a_line_without_sessions() {
        #[derive(Debug, PartialEq, Deserialize)]
        #[serde(tag = "event", rename_all = "kebab-case")]
        enum Before {
            Invalidated { seq: u64, sessions: Vec<SessionId>, reason: String, answer: bool },
        }
        let completed = vec![SessionId::random()];
        let (sessions, reason) = (vec![], String::new());
        let line = Event::Invalidated { seq: 7, sessions, reason, answer: false, completed };
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), line);
        let heard: Before = serde_json::from_str(&text).unwrap();
        assert_eq!(heard, Before::Invalidated { seq: 7, sessions: vec![], reason: String::new(), answer: false });
        let old = r#"{"event":"invalidated","seq":7,"sessions":[],"reason":"","answer":false}"#;
        assert!(
            matches!(serde_json::from_str(old).unwrap(), Event::Invalidated { completed, .. } if completed.is_empty())
        );
    }

    #[test]
    fn only_an_epoch_that_looks_like_one_is_asked_for() {
        assert_eq!(stream_path(None), STREAM);
        assert_eq!(stream_path(Some(("0d-x_1", 7))), "/node/v1/stream?epoch=0d-x_1&after=7");
        for epoch in ["", "a&b", "a/../b", "a b", "é", &"x".repeat(65)] {
            assert_eq!(stream_path(Some((epoch, 7))), STREAM, "{epoch:?}");
        }
    }
}
