//! What `credd credentials` and `credd env` ask of the node's endpoint: credentials, or a token, for a process that has
//! none, because its environment was cleaned or its program cannot ask by itself.
//!
//! Such a request carries no secret: the kernel's word on the connection's other end is the whole proof. So it must be
//! one that the user's own process has made on purpose. It is a PUT with the header [`CLIENT`]: neither a page in a
//! browser (without the consent of the server, which credd never gives) nor a web program that fetches whatever URL it
//! is told (SSRF) can send that.

use serde::{Deserialize, Serialize};

use crate::credentials::Credentials;
use crate::ids::{JobId, Region};
use crate::secret::JobToken;

/// Every path of this kind begins so.
pub const PREFIX: &str = "/own/";
/// PUT: answered with [`OwnCredentials`].
pub const CREDENTIALS: &str = "/own/v1/credentials";
/// PUT: mints a token for the job; answered with [`OwnToken`].
pub const TOKEN: &str = "/own/v1/token";

/// The names of all headers of such a request begin so, but for those that every HTTP client sends.
pub const HEADERS: &str = "x-credd-";
/// Required; says which program asks. Its value is not looked at.
pub const CLIENT: &str = "x-credd-client";
/// Optional: this job and no other.
pub const JOB: &str = "x-credd-job";
/// Optional: which job the caller believes to be in. It chooses where the caller's user has several.
pub const HINT: &str = "x-credd-job-hint";

/// The credentials of one of the caller's own jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OwnCredentials {
    /// Whose.
    pub job: JobId,
    /// The region of the job's partition, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Region>,
    /// What the job's SDKs get.
    pub credentials: Credentials,
}

/// A token for one of the caller's own jobs, and where to show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OwnToken {
    /// Whose.
    pub job: JobId,
    /// The region of the job's partition, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Region>,
    /// For `AWS_CONTAINER_CREDENTIALS_FULL_URI`.
    pub uri: String,
    /// For `AWS_CONTAINER_AUTHORIZATION_TOKEN`.
    pub token: JobToken,
}
