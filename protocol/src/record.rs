//! The job record: what the plugin leaves on the node's tmpfs at job start, for `credd` and for the job's steps.
//!
//! ```text
//! /run/credd/                  root, 0755
//!   endpoint                   written by credd once the listener is its own: the port (text)
//!   root.sock                  root only (plugin, `credd status` as root)
//!   user.sock                  everybody, peers checked
//!   jobs/ID/record             root only: a running job's record; ID is the raw Slurm job id
//!   jobs/ID/names              other names of the run, if it has any: [`RunNames`]; there before the record is
//!   jobs/ID/late               in place of a record that the job's start did not leave: [`crate::late`]
//!   jobs/ID/was-late           the same file, renamed by credd when it wrote the record
//!   jobs/ID/off                written by credd beside a late record: the job's partition, which is off
//!   jobs/ID/session            written by credd: credvend's session UUID
//!   jobs/ID/refused            written by credd: why the job has no credentials, a sentence for its user
//!   jobs/ID/notified           written by the plugin: its user has been told of variables that win over the role
//!   jobs/ID/over               written by credd: the run is over by Slurm's word, though its epilog did not note it
//!   ended/ID.RESTART.NONCE/    an ended job's directory, until credvend has been told
//!   tokens/ID                  root's, readable to the job's user by its ACL: the token, only with `token-file`
//!   new/ID.NONCE               a job's directory or note that the plugin is writing; one rename puts it in its place
//!   skipped/ID                 written by the plugin in place of a record: why a job of a partition that is on has none
//! ```
//!
//! One rename(2) from `jobs/` to `ended/` ends a job: a step that starts later finds nothing, and the directory that
//! remains is the journal of ends not yet delivered.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ids::{
    ClusterName, Invalid, JobId, NodeName, PartitionName, ProjectId, Region, RoleName, Sluid, Uid, UserName,
};
use crate::secret::JobToken;

/// Where everything of a node's running state lies by default.
pub const RUN_DIR: &str = "/run/credd";

/// No record is longer than this; a longer file is refused unread.
pub const MAX_RECORD_BYTES: u64 = 16 * 1024;

/// The paths under a node's run directory (by default [`RUN_DIR`]).
#[derive(Debug, Clone)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// The run directory at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        RunDir(path.into())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Says that the endpoint's listener is credd's own; its text is the port.
    pub fn endpoint(&self) -> PathBuf {
        self.0.join("endpoint")
    }

    /// The root socket.
    pub fn root_socket(&self) -> PathBuf {
        self.0.join("root.sock")
    }

    /// The users' socket.
    pub fn user_socket(&self) -> PathBuf {
        self.0.join("user.sock")
    }

    /// The directory of the running jobs.
    pub fn jobs(&self) -> PathBuf {
        self.0.join("jobs")
    }

    /// A running job's directory.
    pub fn job(&self, job: JobId) -> PathBuf {
        self.0.join("jobs").join(job.to_string())
    }

    /// The directory of the jobs whose end has not been delivered.
    pub fn ended(&self) -> PathBuf {
        self.0.join("ended")
    }

    /// The directory of token files.
    pub fn tokens(&self) -> PathBuf {
        self.0.join("tokens")
    }

    /// A job's token file, where its partition or its user asked for one.
    pub fn token_file(&self, job: JobId) -> PathBuf {
        self.0.join("tokens").join(job.to_string())
    }

    /// Where what is being written lies, until one rename puts it in its place as a whole. What stays here is swept by
    /// credd.
    pub fn unfinished(&self) -> PathBuf {
        self.0.join("new")
    }

    /// The plugin's note that a job has no record, and why.
    pub fn skipped(&self, job: JobId) -> PathBuf {
        self.0.join("skipped").join(job.to_string())
    }
}

impl Default for RunDir {
    fn default() -> Self {
        RunDir::new(RUN_DIR)
    }
}

/// The file names inside a job's directory.
pub mod file {
    /// The record itself.
    pub const RECORD: &str = "record";
    /// What a step left where there was no record: [`crate::late::LateRecord`].
    pub const LATE: &str = "late";
    /// A late record that credd has completed: beside the record that came of it.
    pub const WAS_LATE: &str = "was-late";
    /// Other names of the run: [`super::RunNames`].
    pub const NAMES: &str = "names";
    /// The name of the job's partition, which is off; beside a late record.
    pub const OFF: &str = "off";
    /// credvend's session UUID, as text.
    pub const SESSION: &str = "session";
    /// By Slurm's word the record's run is over. A step that begins all the same is of another run.
    pub const OVER: &str = "over";
    /// Why the job was refused, one sentence.
    pub const REFUSED: &str = "refused";
    /// Empty: the job's user has been told which variables win over the project's role.
    pub const NOTIFIED: &str = "notified";
}

/// What a job without credentials means to a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// The job runs without credentials and says so.
    #[default]
    Continue,
    /// The job fails, cleanly, with the reason on its stderr.
    Fail,
}

/// The options of a job, resolved by the plugin from `plugstack.conf` and the job's own options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct JobOptions {
    /// Fetch credentials at job start, before anybody asks.
    #[serde(default)]
    pub prefetch: bool,
    /// What to do when there are none.
    #[serde(default)]
    pub on_error: OnError,
    /// The role asked for, by its name within the project.
    #[serde(default)]
    pub role: RoleName,
    /// Sets `AWS_REGION` and `AWS_DEFAULT_REGION` where the job has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Region>,
    /// Also offer the token as a file.
    #[serde(default)]
    pub token_file: bool,
    /// How long a step of an `on-error=fail` partition waits for the session, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub wait_ms: u32,
    /// The job's credentials are not served from the node's cache when credvend has not been heard of for so many
    /// seconds. Absent: until they expire, or as credd.toml says for the whole node. Of two bounds the stricter counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unheard_seconds: Option<u32>,
}

fn default_wait_ms() -> u32 {
    5_000
}

impl Default for JobOptions {
    fn default() -> Self {
        JobOptions {
            prefetch: false,
            on_error: OnError::default(),
            role: RoleName::default(),
            region: None,
            token_file: false,
            wait_ms: default_wait_ms(),
            max_unheard_seconds: None,
        }
    }
}

/// A job on this node: facts from slurmctld (the prolog's process environment), options, and the node's token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct JobRecord {
    /// [`JobRecord::VERSION`].
    pub version: u32,
    /// The raw job id.
    pub job: JobId,
    /// `SLURM_JOB_RESTART_COUNT`: how often the job was requeued before.
    #[serde(default)]
    pub restart: u32,
    /// `SLURM_CLUSTER_NAME`.
    pub cluster: ClusterName,
    /// `SLURMD_NODENAME`: this node.
    pub node: NodeName,
    /// `SLURM_JOB_USER`.
    pub user: UserName,
    /// `SLURM_JOB_UID`.
    pub uid: Uid,
    /// `SLURM_JOB_GID`.
    pub gid: u32,
    /// `SLURM_JOB_ACCOUNT`; absent on a cluster without accounting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<ProjectId>,
    /// `SLURM_JOB_PARTITION`.
    pub partition: PartitionName,
    /// Whether this node comes first in the job's node list: its credd opens the session, the others join.
    pub first_node: bool,
    /// When the record was made, in seconds since 1970.
    pub created: u64,
    /// The bearer token of the job on this node.
    pub token: JobToken,
    /// The resolved options.
    #[serde(default)]
    pub options: JobOptions,
}

impl JobRecord {
    /// The format written today. Another one is refused: plugin and credd come from one package.
    pub const VERSION: u32 = 1;

    /// Reads a record's file contents.
    ///
    /// # Errors
    /// What is wrong with the text; it never shows the token.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Invalid> {
        let bad = |why: String| Invalid::new("job record", "", why);
        if bytes.len() as u64 > MAX_RECORD_BYTES {
            return Err(bad(format!("it is longer than {MAX_RECORD_BYTES} bytes")));
        }
        // serde_json shows a value only of the wrong type; category and place suffice, and cannot hold a secret.
        let record: JobRecord = serde_json::from_slice(bytes)
            .map_err(|e| bad(format!("{:?} error at line {} column {}", e.classify(), e.line(), e.column())))?;
        if record.version != Self::VERSION {
            return Err(bad(format!("its version is {}, this program reads {}", record.version, Self::VERSION)));
        }
        Ok(record)
    }

    /// The record's file contents.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record has only string keys and plain values")
    }
}

/// Other names that Slurm and users have for a run, in the file [`file::NAMES`] beside its record. Not in the record itself:
/// a credd of the previous release refuses a record with fields that it does not know, and leaves other files alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RunNames {
    /// `SLURM_JOB_SLUID` (Slurm 25.11 and later): the job's cgroup may be named by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sluid: Option<Sluid>,
    /// `SLURM_HET_JOB_ID`, if it is another job's: the job is a component of the heterogeneous job that this one leads,
    /// and users name the component by the leader's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub het_leader: Option<JobId>,
}

impl RunNames {
    /// Reads the file's contents. Credentials do not depend on them: contents that are not understood are no names.
    pub fn from_json(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// The file's contents; `None` if there is nothing to say, and then there is no file.
    pub fn to_json(&self) -> Option<Vec<u8>> {
        let written = || serde_json::to_vec(self).expect("names are plain strings and numbers");
        (*self != RunNames::default()).then(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::record;
    use proptest::prelude::*;

    #[test]
    fn a_record_has_the_fields_of_the_previous_release_and_other_names_have_a_file_of_their_own() {
        let written: serde_json::Value = serde_json::from_slice(&record(12).to_json()).unwrap();
        let mut fields: Vec<&str> = written.as_object().unwrap().keys().map(String::as_str).collect();
        fields.sort_unstable();
        let known = [
            "account",
            "cluster",
            "created",
            "first-node",
            "gid",
            "job",
            "node",
            "options",
            "partition",
            "restart",
            "token",
            "uid",
            "user",
            "version",
        ];
        assert_eq!(fields, known, "a credd of the previous release refuses a record with any other");

        assert_eq!(RunNames::default().to_json(), None);
        let names =
            RunNames { sluid: Some("s4HP2WQ8ZK1RT0".parse().unwrap()), het_leader: Some(JobId::try_from(11).unwrap()) };
        let text = String::from_utf8(names.to_json().unwrap()).unwrap();
        assert_eq!(RunNames::from_json(&text), names);
        let later = text.replace('{', "{\"of-a-later-release\":1,");
        assert_eq!(RunNames::from_json(&later), names);
        assert_eq!(RunNames::from_json(r#"{"sluid":"../s"}"#), RunNames::default());
    }

    #[test]
    fn a_record_survives_its_file() {
        let record = record(12);
        assert_eq!(JobRecord::from_json(&record.to_json()).unwrap(), record);
    }

    #[test]
    fn a_records_debug_and_errors_hide_the_token() {
        let record = record(12);
        let token = record.token.expose().to_owned();
        assert!(!format!("{record:?}").contains(&token[8..]));
        let mut text = String::from_utf8(record.to_json()).unwrap();
        text = text.replace(&token, &token.to_uppercase());
        let error = JobRecord::from_json(text.as_bytes()).unwrap_err().to_string();
        assert!(!error.to_lowercase().contains(&token[8..]), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = JobRecord::from_json(&bytes);
        }
    }
}
