//! What a job's SDK is told. Several SDKs print `message` to their user: it names the job, the cause and the remedy.
//!
//! SDKs give up after a 403 and ask again after a 503; nothing here answers 429, which some of them treat as a defect.

use std::sync::LazyLock;

use bytes::Bytes;
use credd_protocol::credentials::ErrorBody;
use credd_protocol::{JobId, Uid};
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{HeaderMap, Response, StatusCode};

use super::gate::Wrong;
use super::no_own_job::{NoOwnJob, ROOTLESS};

/// An answer's body.
pub type Body = Full<Bytes>;

/// Why another node's token does not suffice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unproven {
    /// This node accepts none.
    Off,
    /// The node wants the cgroup to prove it, and there are none.
    NoCgroups,
    /// Without cgroups, it could be of several components of a heterogeneous job.
    SeveralComponents,
}

/// Why a request got no credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denial {
    /// Its head.
    Head(Wrong),
    /// Its token is none of credd's.
    NotAToken,
    /// Its token is nobody's here, and no job of this user here is what its path names.
    UnknownToken {
        /// The path's job.
        job: JobId,
        /// Who sent it.
        caller: Uid,
    },
    /// The path's job runs here, and the token is no job's here; that the process is of the job is not proven.
    OtherNodesToken {
        /// The path's job.
        job: JobId,
        /// What is missing.
        why: Unproven,
    },
    /// The same, and the kernel says that the process is not of the job.
    OutsideJob(JobId),
    /// Its token's job is over.
    JobEnded(JobId),
    /// Its path names another job than its token.
    OtherJob {
        /// The path's.
        asked: JobId,
        /// The token's.
        own: JobId,
    },
    /// Another user's process sent it.
    OtherUser {
        /// The token's job.
        job: JobId,
        /// Who sent it.
        caller: Uid,
    },
    /// The kernel names nobody.
    NoCaller(String),
    /// credvend said no for good.
    Refused {
        /// The job.
        job: JobId,
        /// credvend's sentence.
        reason: String,
    },
    /// credvend said no; an administrator may mend it.
    RefusedForNow {
        /// The job.
        job: JobId,
        /// credvend's sentence.
        reason: String,
    },
    /// Not now.
    NotNow {
        /// The job.
        job: JobId,
        /// What stands in the way.
        reason: String,
    },
    /// credd has not read its records yet.
    Starting,
    /// The keeper does not say whether the claimed job has a record.
    RecordsUnread(JobId),
    /// One user asks too much at a time.
    Crowded(JobId),
    /// A request without a token, and no job is clearly meant.
    NoOwnJob {
        /// Who sent it.
        uid: Uid,
        /// Why.
        why: NoOwnJob,
    },
}

impl Denial {
    fn status(&self) -> StatusCode {
        match self {
            Denial::Head(Wrong::Method) => StatusCode::METHOD_NOT_ALLOWED,
            Denial::Head(Wrong::Path) => StatusCode::NOT_FOUND,
            Denial::Head(Wrong::NoJob) => StatusCode::BAD_REQUEST,
            Denial::NotNow { .. }
            | Denial::Starting
            | Denial::RecordsUnread(_)
            | Denial::Crowded(_)
            | Denial::NoOwnJob { why: NoOwnJob::Crowded, .. } => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::FORBIDDEN,
        }
    }

    /// The word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Denial::Head(Wrong::Method) => "MethodNotAllowed",
            Denial::Head(Wrong::Path) => "NotFound",
            Denial::Head(Wrong::Host) => "WrongHost",
            Denial::Head(Wrong::Browser) => "BrowserRequest",
            Denial::Head(Wrong::NoToken) => "NoToken",
            Denial::NotAToken | Denial::UnknownToken { .. } => "UnknownToken",
            Denial::OtherNodesToken { .. } => "OtherNodesToken",
            Denial::OutsideJob(_) => "OutsideJob",
            Denial::Head(Wrong::NoClient) => "NoClient",
            Denial::Head(Wrong::NoJob) => "BadRequest",
            Denial::JobEnded(_) => "JobEnded",
            Denial::OtherJob { .. } => "OtherJob",
            Denial::OtherUser { .. } => "OtherUser",
            Denial::NoCaller(_) => "NoCaller",
            Denial::Refused { .. } => "Refused",
            Denial::RefusedForNow { .. } => "RefusedForNow",
            Denial::NotNow { .. } => "NotNow",
            Denial::Starting => "Starting",
            Denial::RecordsUnread(_) => "RecordsUnread",
            Denial::Crowded(_) => "TooManyRequests",
            Denial::NoOwnJob { why, .. } => why.code(),
        }
    }

    /// The sentence for people.
    pub fn message(&self) -> String {
        match self {
            Denial::Head(Wrong::Method) => "credd answers GET only.".to_owned(),
            Denial::Head(Wrong::Path) => {
                "This is credd, which gives Slurm jobs their AWS credentials; it has nothing at this path. Use \
                 AWS_CONTAINER_CREDENTIALS_FULL_URI as the job found it in its environment."
                    .to_owned()
            }
            Denial::Head(Wrong::Host) => {
                "The Host header is not this endpoint's own (127.0.0.1 or localhost, with its port or without one). Use \
                 AWS_CONTAINER_CREDENTIALS_FULL_URI as the job found it in its environment."
                    .to_owned()
            }
            Denial::Head(Wrong::Browser) => {
                "The request comes from a browser or through a proxy (Origin, Referer, Sec-Fetch-* or a forwarding \
                 header); credentials are for the job's own processes. If a proxy is set, add 127.0.0.1 to NO_PROXY."
                    .to_owned()
            }
            Denial::Head(Wrong::NoToken) => "The request has no token in its Authorization header. A job finds it in \
                 AWS_CONTAINER_AUTHORIZATION_TOKEN; was the environment cleaned on the way to this process?"
                .to_owned(),
            Denial::NotAToken => "The Authorization header does not hold a token of credd's. Send \
                 AWS_CONTAINER_AUTHORIZATION_TOKEN as the job found it in its environment, with nothing before or after it."
                .to_owned(),
            Denial::UnknownToken { job, caller } => format!(
                "Neither the URL nor the token is of this node: no job {job} of uid {caller} runs here, and no job here has \
                 this token. They are of another job or node, of a job that ended long ago, or the job's start was not \
                 recorded. Ask from within a step of the running job; if it persists, ask the administrators to look at \
                 credd's log on this node."
            ),
            Denial::OtherNodesToken { job, why } => format!(
                "The URL is right, job {job} runs on this node; the token is not: it is another node's, carried over by a \
                 launcher or a framework, and {} Start this process with srun, or do not forward \
                 AWS_CONTAINER_AUTHORIZATION_TOKEN to other nodes.",
                match why {
                    Unproven::Off => "this node accepts no other node's token (http.foreign-token in credd.toml).",
                    Unproven::NoCgroups => {
                        "this node accepts one only from a process in the job's cgroup (http.foreign-token in \
                         credd.toml), while Slurm keeps no cgroup v2 for its jobs here."
                    }
                    Unproven::SeveralComponents => {
                        "several components of this heterogeneous job run here: nothing shows to which one this \
                         process belongs."
                    }
                }
            ),
            Denial::OutsideJob(job) => format!(
                "The URL is right, job {job} runs on this node; the token is another node's, which is accepted only from \
                 the job's own processes, and the kernel says that this connection was not made in the job's cgroup. Start \
                 this process with srun, within the job."
            ),
            Denial::JobEnded(job) => {
                format!("Job {job} has ended on this node, so its AWS credentials are no longer given out.")
            }
            Denial::OtherJob { asked, own } => format!(
                "The path asks for job {asked}, but the token is job {own}'s. One of \
                 AWS_CONTAINER_CREDENTIALS_FULL_URI and AWS_CONTAINER_AUTHORIZATION_TOKEN was carried over from \
                 another job: use both as this job found them."
            ),
            Denial::OtherUser { job, caller } => format!(
                "The token is job {job}'s, but this process runs as uid {caller}, not as the job's user: a job's \
                 credentials are for its own user only (setuid programs and user switches do not get them). {ROOTLESS}"
            ),
            Denial::NoCaller(why) => format!(
                "The kernel does not say which process sent this request ({why}), so it gets nothing. Do not close or \
                 half-close the connection before the answer."
            ),
            Denial::Refused { job, reason } => format!("Job {job} gets no AWS credentials: {reason}"),
            Denial::RefusedForNow { job, reason } => format!(
                "Job {job} gets no AWS credentials for now: {reason} (It is asked for again from time to time; the job \
                 need not be restarted.)"
            ),
            Denial::NotNow { job, reason } => format!(
                "The AWS credentials of job {job} are not there yet: {reason} (credd keeps trying; the job need not be \
                 restarted.)"
            ),
            Denial::Starting => {
                "credd has just started on this node and has not read its records yet; try again in a second."
                    .to_owned()
            }
            Denial::RecordsUnread(job) => format!(
                "credd's root process on this node does not answer, so whether this token is of job {job} is not known \
                 yet; try again in a few seconds. If it lasts, ask the administrators to look at credd on this node."
            ),
            Denial::Head(Wrong::NoClient) => "A request without a token needs the header X-Credd-Client: it shows that the \
                 user's own program made the request, not one that fetches what others name. Use credd credentials or \
                 credd env."
                .to_owned(),
            Denial::Head(Wrong::NoJob) => {
                "X-Credd-Job and X-Credd-Job-Hint hold one job's raw id, as squeue -O JobID shows it.".to_owned()
            }
            Denial::NoOwnJob { uid, why } => why.message(*uid),
            Denial::Crowded(job) => format!(
                "Too many requests of job {job}'s user wait for credentials on this node; let the job's processes ask \
                 less often or share what they get."
            ),
        }
    }

    /// The whole answer.
    pub fn response(&self) -> Response<Body> {
        let body = ErrorBody::new(self.code(), &self.message()).to_json();
        let status = self.status();
        let mut response = json(Bytes::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("2"));
        } else {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET"));
        }
        response
    }
}

/// 200 with a document.
pub fn json(body: Bytes) -> Response<Body> {
    // A copy of a map costs half of what filling one does.
    static HEADERS: LazyLock<HeaderMap> = LazyLock::new(|| {
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers
    });
    let mut response = Response::new(Full::new(body));
    response.headers_mut().clone_from(&HEADERS);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denials_have_the_status_that_sdks_take_right() {
        let job = JobId::try_from(7).unwrap();
        let of = |d: Denial| d.response().status().as_u16();
        assert_eq!(of(Denial::UnknownToken { job, caller: Uid(1001) }), 403);
        assert_eq!(of(Denial::OutsideJob(job)), 403);
        assert_eq!(of(Denial::Head(Wrong::NoToken)), 403);
        assert_eq!(of(Denial::Head(Wrong::Path)), 404);
        assert_eq!(of(Denial::Head(Wrong::Method)), 405);
        assert_eq!(of(Denial::Crowded(job)), 503);
        let response = Denial::NotNow { job, reason: "r.".into() }.response();
        assert_eq!((response.status().as_u16(), response.headers()["retry-after"].to_str().unwrap()), (503, "2"));
        assert!(Denial::Refused { job, reason: "because".into() }.message().contains("7"));
    }
}
