//! Every way `credvend` says no, in one table: sentence, code, HTTP status, whether asking again may help.
//!
//! `docs/errors.md` is this table with what an AWS SDK then does. credd turns a final refusal into 403 for the job and
//! a passing one into 503 once the SDK's patience ends; it never passes a 429 on.

use std::time::Duration;

use credd_protocol::node_api::ApiError;
use credd_protocol::{ClusterName, JobId, NodeName, ProjectId, RoleArn, RoleName, SessionId};

use crate::attest::AttestError;
use crate::source::SourceError;
use crate::store::StoreError;

/// A refusal. Its text names the job or session, the cause and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No credential, or one that proves nothing. Details are logged, not told.
    #[error("the caller is not authenticated: {0}")]
    Unauthenticated(String),
    /// An authenticated caller asks for a verb of somebody else.
    #[error("this verb is not for {who}: {why}")]
    NotAllowed {
        /// The caller.
        who: String,
        /// Whose verb it is, what to use instead.
        why: String,
    },
    /// A request that does not parse.
    #[error("the request is not valid: {0}")]
    BadRequest(String),
    /// No such path.
    #[error("{0}")]
    NotFound(String),
    /// What a page in a browser may have made it send.
    #[error("the request may be a browser's, which some page made: {0}")]
    BrowserRequest(String),
    /// A path with another method.
    #[error("{why}")]
    MethodNotAllowed {
        /// What the path is for.
        why: String,
        /// The methods that it has, as the `Allow` header lists them.
        allow: String,
    },
    /// A body that is too long.
    #[error("the request is too large: {0}")]
    TooLarge(String),
    /// A cluster that the configuration does not have.
    #[error("cluster {0} is not in credvend's configuration; add a [[cluster]] for it")]
    UnknownCluster(ClusterName),
    /// A node asks, and its cluster's head states the jobs.
    #[error(
        "cluster {0}: its head states its jobs (attest = \"head\" in credvend's configuration), so its nodes get nothing here; \
         remove credd from them, or set attest = \"slurm\""
    )]
    HeadStatesJobs(ClusterName),
    /// Slurm knows no such job, or it is over.
    #[error("job {job} of cluster {cluster} is not running: {why}")]
    JobNotRunning {
        /// The job.
        job: JobId,
        /// The cluster.
        cluster: ClusterName,
        /// In which state Slurm has it.
        why: String,
    },
    /// Slurm has the job, but not on the caller.
    #[error("job {job} does not run on node {node}, says Slurm; its credentials are for its own nodes only")]
    NotOnNode {
        /// The job.
        job: JobId,
        /// The calling node.
        node: NodeName,
    },
    /// The node's record contradicts Slurm.
    #[error("node {node} states {what} for job {job} that Slurm contradicts; nothing is vended")]
    Contradicted {
        /// The job.
        job: JobId,
        /// The calling node.
        node: NodeName,
        /// Which fact, both values.
        what: String,
    },
    /// The node's address is not the one Slurm has.
    #[error("a caller at {peer} says that it is node {node}, which Slurm has at {expected}")]
    WrongAddress {
        /// The claimed node.
        node: NodeName,
        /// Where the connection came from.
        peer: String,
        /// Slurm's NodeAddr.
        expected: String,
    },
    /// The site does not enforce accounts, so a project would rest on the user's word.
    #[error(
        "cluster {cluster} does not enforce accounts ({why}), so any user could claim any project; set AccountingStorageEnforce=associations, or trust-unenforced-accounts = true in credvend's configuration"
    )]
    AccountsNotEnforced {
        /// The cluster.
        cluster: ClusterName,
        /// What Slurm's configuration says.
        why: String,
    },
    /// The job has no account.
    #[error("job {job} has no account, so it belongs to no project; submit it with --account")]
    NoAccount {
        /// The job.
        job: JobId,
    },
    /// The job's account is not what it was.
    #[error(
        "job {job} was started in project {opened}, but Slurm has it in {now} now; nothing more is vended until that is undone, or the job is requeued"
    )]
    AccountChanged {
        /// The job.
        job: JobId,
        /// The session's project.
        opened: ProjectId,
        /// Slurm's account of today, and whose it is.
        now: String,
    },
    /// The project map lacks it.
    #[error("project {project} has no role: it is not in credvend's projects.toml; ask the administrators to add it")]
    UnknownProject {
        /// The project.
        project: ProjectId,
    },
    /// The project is another cluster's.
    #[error("project {project} is not served on cluster {cluster}: {why}; ask the administrators")]
    ProjectElsewhere {
        /// The project.
        project: ProjectId,
        /// The cluster of who asks.
        cluster: ClusterName,
        /// Whose it is.
        why: String,
    },
    /// The project lacks that role.
    #[error("project {project} has no role named {role}; it has: {has}")]
    UnknownRole {
        /// The project.
        project: ProjectId,
        /// What was asked for.
        role: RoleName,
        /// What there is.
        has: String,
    },
    /// No such session, or not the caller's.
    #[error("session {0} is not known here")]
    UnknownSession(String),
    /// The session has ended.
    #[error("session {session} is {status}: {why}")]
    SessionEnded {
        /// The session.
        session: SessionId,
        /// INVALIDATED or COMPLETED.
        status: &'static str,
        /// Why.
        why: String,
    },
    /// An administrator keeps it out.
    #[error(
        "{whom} is blocked by {by}{why}; nothing is opened or vended for it until an administrator lifts that (credvend unblock)"
    )]
    Blocked {
        /// Whom.
        whom: String,
        /// By whom.
        by: String,
        /// Why, in brackets; or empty.
        why: String,
    },
    /// AWS refuses the role.
    #[error("credvend does not get {}: {why}", given(role))]
    RoleRefused {
        /// The role.
        role: RoleArn,
        /// AWS' reason and the remedy.
        why: String,
    },
    /// It can be done, but not within the caller's patience.
    #[error("{why}")]
    Busy {
        /// What is waited for.
        why: String,
        /// When to ask again: at least one second.
        again_in: Duration,
    },
    /// Something else is out of order for now.
    #[error("{0}")]
    Unavailable(String),
    /// A defect or a broken store.
    #[error("credvend cannot go on: {0}")]
    Internal(String),
}

impl Refusal {
    /// The word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::Unauthenticated(_) => "Unauthenticated",
            Refusal::NotAllowed { .. } => "NotAllowed",
            Refusal::BadRequest(_) => "BadRequest",
            Refusal::NotFound(_) => "NotFound",
            Refusal::BrowserRequest(_) => "BrowserRequest",
            Refusal::MethodNotAllowed { .. } => "MethodNotAllowed",
            Refusal::TooLarge(_) => "TooLarge",
            Refusal::UnknownCluster(_) | Refusal::HeadStatesJobs(_) => "UnknownCluster",
            Refusal::JobNotRunning { .. } => "JobNotRunning",
            Refusal::NotOnNode { .. } => "NotOnNode",
            Refusal::Contradicted { .. } => "Contradicted",
            Refusal::WrongAddress { .. } => "WrongAddress",
            Refusal::AccountsNotEnforced { .. } => "AccountsNotEnforced",
            Refusal::NoAccount { .. } => "NoAccount",
            Refusal::AccountChanged { .. } => "AccountChanged",
            Refusal::UnknownProject { .. } => "UnknownProject",
            Refusal::ProjectElsewhere { .. } => "ProjectElsewhere",
            Refusal::UnknownRole { .. } => "UnknownRole",
            Refusal::UnknownSession(_) => "UnknownSession",
            Refusal::SessionEnded { .. } => "SessionEnded",
            Refusal::Blocked { .. } => "Blocked",
            Refusal::RoleRefused { .. } => "RoleRefused",
            Refusal::Busy { .. } => "Busy",
            Refusal::Unavailable(_) => "Unavailable",
            Refusal::Internal(_) => "Internal",
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Refusal::Unauthenticated(_) => 401,
            Refusal::BadRequest(_) => 400,
            Refusal::UnknownSession(_) | Refusal::NotFound(_) => 404,
            Refusal::MethodNotAllowed { .. } => 405,
            Refusal::TooLarge(_) => 413,
            Refusal::Unavailable(_) | Refusal::Busy { .. } => 503,
            Refusal::Internal(_) => 500,
            _ => 403,
        }
    }

    /// Whether the same request may succeed later without anybody changing it. A role that AWS refuses, an unknown
    /// project, a changed account, a block and unenforced accounts may be mended by an administrator while the job runs: they are
    /// asked for again, seldom.
    pub fn retry(&self) -> bool {
        matches!(
            self,
            Refusal::Unavailable(_)
                | Refusal::Busy { .. }
                | Refusal::Internal(_)
                | Refusal::RoleRefused { .. }
                | Refusal::Blocked { .. }
                | Refusal::AccountChanged { .. }
                | Refusal::UnknownProject { .. }
                | Refusal::ProjectElsewhere { .. }
                | Refusal::UnknownCluster(_)
                | Refusal::HeadStatesJobs(_)
                | Refusal::AccountsNotEnforced { .. }
                | Refusal::Unauthenticated(_)
                | Refusal::WrongAddress { .. }
        )
    }

    /// As it goes over the wire.
    pub fn to_api_error(&self) -> ApiError {
        ApiError {
            code: self.code().to_owned(),
            message: self.to_string(),
            retry: self.retry(),
            retry_after: self.retry_after(),
            ended: match self {
                Refusal::SessionEnded { status, .. } => Some((*status).to_owned()),
                _ => None,
            },
        }
    }

    /// After how many seconds it is worth asking again, where that is known. Never in a 429: SDKs take that for the end.
    pub fn retry_after(&self) -> Option<u32> {
        let Refusal::Busy { again_in, .. } = self else { return None };
        Some(u32::try_from(again_in.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).clamp(1, 3600))
    }
}

/// A role, for a sentence.
fn given(role: &RoleArn) -> String {
    if crate::projects::is_upstreams(role) {
        "its project's role from the upstream".into()
    } else {
        format!("role {role} from AWS")
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Refusal::Unavailable(error.to_string()),
            StoreError::BadCursor => Refusal::BadRequest(error.to_string()),
            StoreError::Broken(_) => Refusal::Internal(error.to_string()),
        }
    }
}

impl From<AttestError> for Refusal {
    fn from(error: AttestError) -> Self {
        match error {
            AttestError::TooOften { again_in, .. } => Refusal::Busy { why: error.to_string(), again_in },
            _ => Refusal::Unavailable(error.to_string()),
        }
    }
}

impl Refusal {
    /// A source's error about one role.
    pub fn from_source(role: &RoleArn, error: SourceError) -> Self {
        match error {
            SourceError::Refused(why) => Refusal::RoleRefused { role: role.clone(), why },
            SourceError::Unavailable(why) | SourceError::Ended(why) => Refusal::Unavailable(why),
            SourceError::Busy { why, again_in } => Refusal::Busy { why, again_in },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn one_of_each() -> Vec<Refusal> {
        let text = || "why".to_owned();
        let (job, session) = (JobId::try_from(7).unwrap(), SessionId::random());
        let cluster: ClusterName = "lab".parse().unwrap();
        let node: NodeName = "n1".parse().unwrap();
        let project: ProjectId = "genomics".parse().unwrap();
        let role: RoleArn = "arn:aws:iam::123456789012:role/r".parse().unwrap();
        vec![
            Refusal::Unauthenticated(text()),
            Refusal::NotAllowed { who: text(), why: text() },
            Refusal::BadRequest(text()),
            Refusal::NotFound(text()),
            Refusal::BrowserRequest(text()),
            Refusal::MethodNotAllowed { why: text(), allow: "GET".into() },
            Refusal::TooLarge(text()),
            Refusal::UnknownCluster(cluster.clone()),
            Refusal::HeadStatesJobs(cluster.clone()),
            Refusal::JobNotRunning { job, cluster: cluster.clone(), why: text() },
            Refusal::NotOnNode { job, node: node.clone() },
            Refusal::Contradicted { job, node: node.clone(), what: text() },
            Refusal::WrongAddress { node, peer: text(), expected: text() },
            Refusal::AccountsNotEnforced { cluster, why: text() },
            Refusal::NoAccount { job },
            Refusal::AccountChanged { job, opened: project.clone(), now: text() },
            Refusal::UnknownProject { project: project.clone() },
            Refusal::ProjectElsewhere { project: project.clone(), cluster: "hpc".parse().unwrap(), why: text() },
            Refusal::UnknownRole { project, role: RoleName::default(), has: text() },
            Refusal::UnknownSession(text()),
            Refusal::SessionEnded { session, status: "COMPLETED", why: text() },
            Refusal::Blocked { whom: text(), by: text(), why: text() },
            Refusal::RoleRefused { role, why: text() },
            Refusal::Busy { why: text(), again_in: Duration::from_millis(1500) },
            Refusal::Unavailable(text()),
            Refusal::Internal(text()),
        ]
    }

    #[test]
    fn how_a_session_ended_is_a_field_of_its_own() {
        for refusal in one_of_each() {
            let ended = refusal.to_api_error().ended;
            let expected = (refusal.code() == "SessionEnded").then_some("COMPLETED");
            assert_eq!(ended.as_deref(), expected, "{}", refusal.code());
        }
    }

    #[test]
    fn the_documents_table_is_this_one() {
        let document = include_str!("../../docs/errors.md");
        let table = document.split("## What credvend says").nth(1).unwrap().split("\n## ").next().unwrap();
        let rows: BTreeMap<&str, (u16, bool)> = table
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .map(|line| {
                let cells: Vec<&str> = line.split('|').map(str::trim).collect();
                (cells[0].trim_end_matches('`'), (cells[1].parse().unwrap(), cells[2] == "yes"))
            })
            .collect();
        let here: BTreeMap<&str, (u16, bool)> =
            one_of_each().iter().map(|r| (r.code(), (r.status(), r.retry()))).collect();
        assert_eq!(rows, here);
    }
    #[test]
    fn the_openapi_document_has_every_code() {
        let document = include_str!("../../docs/openapi.yaml");
        let list = document.split("    ErrorCode:\n      enum:\n").nth(1).unwrap();
        let listed: Vec<&str> = list.lines().map_while(|line| line.strip_prefix("        - ")).collect();
        let here: std::collections::BTreeSet<&str> = one_of_each().iter().map(Refusal::code).collect();
        assert_eq!(listed, here.into_iter().collect::<Vec<_>>());
    }
}
