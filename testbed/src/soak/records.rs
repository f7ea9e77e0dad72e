//! What the clients in the jobs write down: one JSON line each, in one file of each user, which all hosts share.

use serde::{Deserialize, Serialize};

use super::clock::Ms;

/// The file, in the user's home.
pub const FILE: &str = "soak.jsonl";

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "kebab-case")]
pub enum Line {
    /// A client begins.
    Begin(Begin),
    /// It asked and was answered, or not.
    Asked(Asked),
    /// What must not stand in any log: pieces of what it was given.
    Secrets {
        /// The pieces.
        texts: Vec<String>,
    },
    /// Who AWS says that it is.
    Identity {
        /// Whose run.
        run: String,
        /// The ARN, or what the AWS command line said instead.
        arn: String,
    },
    /// It ends by itself.
    End {
        /// Whose run.
        run: String,
        /// When.
        at: Ms,
    },
}

/// A client's job, as its environment says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// Names the run of this job on this node, as its token does; not the token.
    pub run: String,
    /// The raw job id.
    pub job: u32,
    /// How often it was requeued.
    pub restart: u32,
    /// The node.
    pub node: String,
    /// The user whom the kernel sees.
    pub user: String,
    /// The Slurm account, so the project.
    pub account: String,
    /// Its partition.
    pub partition: String,
    /// When.
    pub at: Ms,
    /// Whether there is a URL and a token in the environment.
    pub equipped: bool,
}

/// One request and its outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Whose run.
    pub run: String,
    /// When it was sent.
    pub sent: Ms,
    /// When the answer was there.
    pub got: Ms,
    /// The status; 0 if there was none.
    pub status: u16,
    /// Of a refusal: its code. Of none: what happened to the connection.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// Of a document: its access key id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// Of a document: its role.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub role: String,
    /// Of a document: what is wrong with it, if anything is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub wrong: String,
}
