//! The node's Unix sockets: one request, one answer, each a line of JSON.
//!
//! The root socket takes what the plugin says; the users' socket takes the last three verbs only, and shows a user
//! nothing but its own jobs. A line longer than [`MAX_LINE_BYTES`] ends the connection.

use serde::{Deserialize, Serialize};

use crate::ids::JobId;

/// The longest line either side reads.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// What may be asked of credd on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// A record was written. The plugin does not wait for the answer.
    Started {
        /// Whose record.
        job: JobId,
    },
    /// A job's directory was moved to `ended/`. The plugin does not wait for the answer.
    Ended {
        /// Which job.
        job: JobId,
    },
    /// What became of a job's session? Answered as soon as it is known, at the latest after `wait_ms`.
    #[serde(rename_all = "kebab-case")]
    Outcome {
        /// Which job.
        job: JobId,
        /// The caller's patience in milliseconds.
        wait_ms: u32,
    },
    /// Is credd well, and does it reach credvend?
    Health,
    /// The jobs on this node: all for root, one's own for a user.
    Status,
    /// The server's metrics: numbers about the node, nothing about a user. The users' socket alone answers this.
    Metrics,
    /// Read the configuration again. The root socket alone answers this, when the outcome is known.
    Reload,
}

/// The answer to [`Request::Outcome`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    /// credvend has not answered yet; `reason` says what stands in the way, if anything.
    Opening {
        /// The last obstacle, a sentence.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The session is open (and, with `prefetch`, its first credentials are there).
    Open,
    /// credvend refused the job for good.
    Refused {
        /// Why, and what to do: a sentence for the job's user.
        reason: String,
    },
    /// No such job here.
    Unknown,
}

impl Outcome {
    /// Reads the line that answers [`Request::Outcome`]; the inner `Err` is credd's sentence. It means what
    /// [`Response`] means, and spares the plugin, which every job step loads, the code that reads the other answers.
    /// Unknown fields are ignored.
    ///
    /// # Errors
    /// Another line.
    pub fn from_line(line: &[u8]) -> Result<Result<Self, String>, serde_json::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        enum Answer {
            Outcome(Fields),
            Error(String),
        }
        #[derive(Deserialize)]
        struct Fields {
            state: State,
            #[serde(default)]
            reason: Option<String>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        enum State {
            Opening,
            Open,
            Refused,
            Unknown,
        }
        let Fields { state, reason } = match serde_json::from_slice(line)? {
            Answer::Outcome(fields) => fields,
            Answer::Error(why) => return Ok(Err(why)),
        };
        Ok(Ok(match (state, reason) {
            (State::Opening, reason) => Outcome::Opening { reason },
            (State::Open, _) => Outcome::Open,
            (State::Refused, Some(reason)) => Outcome::Refused { reason },
            (State::Refused, None) => return Err(serde::de::Error::missing_field("reason")),
            (State::Unknown, _) => Outcome::Unknown,
        }))
    }
}

/// A job as `credd status` shows it. No secret is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct JobStatus {
    /// The raw job id.
    pub job: JobId,
    /// The job's user name.
    pub user: String,
    /// Its uid.
    pub uid: u32,
    /// Its account, if Slurm gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// `opening`, `open`, `refused`, `ending`.
    pub state: String,
    /// credvend's UUID, once open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Why it is refused or still opening.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Until when the cached credentials live (RFC 3339, `Z`), if any are cached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_until: Option<String>,
}

/// The answer to [`Request::Health`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Health {
    /// Whether jobs are being served.
    pub serving: bool,
    /// Whether the listener on the endpoint's address is ours; a sentence if not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint_problem: Option<String>,
    /// Whether the last exchange with credvend worked; the error if not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credvend_problem: Option<String>,
    /// Whether credvend refuses this node's jobs one and all; what it says, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal_problem: Option<String>,
    /// Whether job records lie here that cannot be served; which and why, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record_problem: Option<String>,
    /// What an administrator may want to know, and need not mend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Jobs with a record on this node.
    pub jobs: usize,
    /// Ended jobs whose end credvend has not acknowledged yet.
    pub undelivered_ends: usize,
    /// The running program's version.
    pub version: String,
}

/// Every answer: exactly one of these fields, or `error`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// To `started` and `ended`.
    Ok,
    /// To `outcome`.
    Outcome(Outcome),
    /// To `health`.
    Health(Health),
    /// To `status`.
    Status(Vec<JobStatus>),
    /// To `metrics`: Prometheus' text format.
    Metrics(String),
    /// To `reload`: the new configuration is in force.
    Reloaded {
        /// What in it a restart alone changes, a sentence.
        note: Option<String>,
    },
    /// The request was not understood or not allowed; a sentence.
    Error(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugins_lines_are_stable() {
        let job = JobId::try_from(7).unwrap();
        assert_eq!(serde_json::to_string(&Request::Started { job }).unwrap(), r#"{"op":"started","job":7}"#);
        assert_eq!(
            serde_json::to_string(&Request::Outcome { job, wait_ms: 9 }).unwrap(),
            r#"{"op":"outcome","job":7,"wait-ms":9}"#
        );
        assert_eq!(
            serde_json::to_string(&Response::Outcome(Outcome::Open)).unwrap(),
            r#"{"outcome":{"state":"open"}}"#
        );
        assert!(serde_json::from_str::<Request>(r#"{"op":"started","job":0}"#).is_err());
    }

    #[test]
    fn an_outcome_is_read_without_the_other_answers() {
        let reason = || "why".to_owned();
        let outcomes = [
            Outcome::Opening { reason: None },
            Outcome::Opening { reason: Some(reason()) },
            Outcome::Open,
            Outcome::Refused { reason: reason() },
            Outcome::Unknown,
        ];
        for outcome in outcomes {
            let line = serde_json::to_vec(&Response::Outcome(outcome.clone())).unwrap();
            assert_eq!(Outcome::from_line(&line).unwrap(), Ok(outcome));
        }
        let line = serde_json::to_vec(&Response::Error(reason())).unwrap();
        assert_eq!(Outcome::from_line(&line).unwrap(), Err(reason()));
        for other in [r#""ok""#, r#"{"metrics":"x"}"#, r#"{"outcome":{"state":"refused"}}"#, "{}", ""] {
            assert!(Outcome::from_line(other.as_bytes()).is_err(), "{other}");
            assert!(!matches!(serde_json::from_str(other), Ok(Response::Outcome(_) | Response::Error(_))), "{other}");
        }
    }
}
