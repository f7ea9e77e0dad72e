//! `credd credentials` and `credd env` ask the node's endpoint for credentials or a token of one of the caller's own jobs.
//! They print the answer for programs that cannot use the endpoint themselves.

mod variables;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use credd_protocol::credentials::{Credentials, ErrorBody, rfc3339_z};
use credd_protocol::own_api::{self, OwnCredentials};
use credd_protocol::record::RunDir;
use credd_protocol::{JobId, endpoint};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::header::{CONTENT_LENGTH, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

pub use variables::Variables;

/// Time limit of one request. The server's own limit is shorter.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time limit of all requests together, while the credentials are not available yet.
const WHOLE_PATIENCE: Duration = Duration::from_secs(30);
/// Time between two requests.
const PAUSE: Duration = Duration::from_secs(1);
/// Size limit of an answer.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

const FULL_URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
const TOKEN: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";

/// Why there is nothing to print.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// The credentials are not available yet; a later request may succeed.
    #[error("{0}")]
    NotNow(String),
    /// The request was refused, or credd could not be asked.
    #[error("{0}")]
    No(String),
}

impl From<anyhow::Error> for NoAnswer {
    fn from(error: anyhow::Error) -> Self {
        NoAnswer::No(format!("{error:#}"))
    }
}

/// Reads a variable of the caller's environment. A function, so that tests can replace the environment.
pub type Getenv<'a> = &'a dyn Fn(&str) -> Option<Vec<u8>>;

/// The JSON document of `credential_process`.
///
/// # Errors
/// [`NoAnswer`].
pub fn credentials(run_dir: &RunDir, job: Option<JobId>, getenv: Getenv<'_>) -> Result<Zeroizing<Vec<u8>>, NoAnswer> {
    let own: OwnCredentials = ask(run_dir, own_api::CREDENTIALS, job, getenv)?;
    Ok(process_document(&own.credentials))
}

fn process_document(credentials: &Credentials) -> Zeroizing<Vec<u8>> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Document<'a> {
        version: u32,
        access_key_id: &'a str,
        secret_access_key: &'a str,
        session_token: &'a str,
        expiration: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        account_id: Option<&'a str>,
    }
    let document = Document {
        version: 1,
        access_key_id: &credentials.access_key_id,
        secret_access_key: credentials.secret_access_key.expose(),
        session_token: credentials.token.expose(),
        expiration: rfc3339_z::format(credentials.expiration),
        account_id: credentials.account_id.as_deref(),
    };
    let mut text = serde_json::to_vec_pretty(&document).expect("plain values");
    text.push(b'\n');
    Zeroizing::new(text)
}

/// The variables with keys, or, with [`Kind::Endpoint`], those with which SDKs ask and renew by themselves.
///
/// # Errors
/// [`NoAnswer`].
pub fn variables(run_dir: &RunDir, job: Option<JobId>, kind: Kind, getenv: Getenv<'_>) -> Result<Variables, NoAnswer> {
    Ok(match kind {
        Kind::Endpoint => Variables::with_endpoint(&ask(run_dir, own_api::TOKEN, job, getenv)?, getenv),
        Kind::Keys => Variables::with_keys(&ask(run_dir, own_api::CREDENTIALS, job, getenv)?, getenv),
    })
}

/// Which variables `credd env` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The keys themselves.
    Keys,
    /// The endpoint's URL and a token.
    Endpoint,
}

/// Asks, and repeats the request while the credentials are not available yet.
fn ask<T: DeserializeOwned>(
    run_dir: &RunDir,
    path: &str,
    job: Option<JobId>,
    getenv: Getenv<'_>,
) -> Result<T, NoAnswer> {
    let address = address(run_dir, getenv);
    verify_listener(address)?;
    let hint = hint(getenv);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let deadline = Instant::now() + WHOLE_PATIENCE;
    runtime.block_on(async {
        loop {
            let exchange = tokio::time::timeout(PATIENCE, exchange(address, path, job, hint)).await;
            let answer = exchange.context("credd on this node does not answer; tell your administrator")?;
            match answer {
                Err(NoAnswer::NotNow(_)) if Instant::now() + PAUSE < deadline => tokio::time::sleep(PAUSE).await,
                answer => {
                    let bytes = answer?;
                    let text = "credd's answer is not understood; is the running credd of another release?";
                    return Ok(serde_json::from_slice(&bytes).context(text)?);
                }
            }
        }
    })
}

async fn exchange(
    address: SocketAddr,
    path: &str,
    job: Option<JobId>,
    hint: Option<JobId>,
) -> Result<Zeroizing<Vec<u8>>, NoAnswer> {
    let stream = tokio::net::TcpStream::connect(address).await.with_context(|| {
        format!("credd does not serve here: nobody answers at {address}. This works on the nodes of a running job")
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    let mut request = Request::builder()
        .method(Method::PUT)
        .uri(path)
        .header(HOST, address.to_string())
        .header(CONTENT_LENGTH, 0)
        .header(own_api::CLIENT, concat!("credd/", env!("CARGO_PKG_VERSION")));
    for (name, job) in [(own_api::JOB, job), (own_api::HINT, hint)] {
        if let Some(job) = job {
            request = request.header(name, job.to_string());
        }
    }
    let request = request.body(Empty::<Bytes>::new()).context("no request")?;
    let answer = sender.send_request(request).await.map_err(broken)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("credd's answer broke off: {error}"))?.to_bytes();
    let body = Zeroizing::new(body.to_vec());
    if status == StatusCode::OK {
        return Ok(body);
    }
    let said = serde_json::from_slice::<ErrorBody>(&body);
    let reason = match said {
        _ if status == StatusCode::METHOD_NOT_ALLOWED => {
            "the running credd is of an earlier release and knows no requests without a token; it must be restarted"
                .into()
        }
        Ok(said) => crate::query::printable(&said.message),
        Err(_) => format!("credd answered {status}"),
    };
    Err(if status == StatusCode::SERVICE_UNAVAILABLE { NoAnswer::NotNow(reason) } else { NoAnswer::No(reason) })
}

fn broken(error: hyper::Error) -> NoAnswer {
    NoAnswer::No(format!("the connection to credd on this node broke: {error}"))
}

/// The endpoint's address: from credd's own file; in a container that does not show credd's directory, from the job's
/// environment; else with the default port.
fn address(run_dir: &RunDir, getenv: Getenv<'_>) -> SocketAddr {
    let said = std::fs::read_to_string(run_dir.endpoint()).ok().and_then(|text| text.trim().parse::<u16>().ok());
    let in_environment = || {
        let uri = full_uri(getenv)?;
        uri.split(['/', ':']).nth(4)?.parse::<u16>().ok()
    };
    let port = said.or_else(in_environment).unwrap_or(endpoint::DEFAULT_PORT);
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The job that this process's environment names: in the endpoint's URL, which in a heterogeneous job names the component
/// itself, or in SLURM_JOB_ID.
fn hint(getenv: Getenv<'_>) -> Option<JobId> {
    let of_uri = full_uri(getenv).and_then(|uri| endpoint::job_of_path(&uri[uri.find("/sessions/")?..]));
    of_uri.or_else(|| text(getenv, "SLURM_JOB_ID")?.parse().ok())
}

/// The endpoint's URL in the environment, if it is credd's.
fn full_uri(getenv: Getenv<'_>) -> Option<String> {
    text(getenv, FULL_URI).filter(|uri| endpoint::is_ours(uri))
}

fn text(getenv: Getenv<'_>, name: &str) -> Option<String> {
    String::from_utf8(getenv(name)?).ok()
}

/// Refuses a listener of another user, which may have taken the port while credd was down and hand out its own keys.
/// credd's listener is root's.
fn verify_listener(address: SocketAddr) -> Result<(), NoAnswer> {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    // In a user namespace, root's uid may look like another user's: there the port is trusted, as every SDK trusts it.
    let whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
    let owner = peer::TcpPeers::new().and_then(|peers| peers.listener_owner(address));
    match owner {
        Ok(Some(uid)) if whole && !may_be_credd(uid, nix::unistd::geteuid().as_raw()) => Err(NoAnswer::No(format!(
            "a process of uid {uid} listens on port {}, not credd, so it was not asked for credentials; tell your \
             administrator",
            address.port()
        ))),
        // If nobody listens, connecting fails with the reason.
        _ => Ok(()),
    }
}

/// A listener of the caller's own is accepted, too: it gives the caller nothing that the caller does not have.
fn may_be_credd(uid: u32, own: u32) -> bool {
    uid == 0 || uid == own
}

#[cfg(test)]
mod tests {
    use super::*;
    use credd_protocol::Secret;

    pub fn own() -> OwnCredentials {
        let credentials = Credentials {
            access_key_id: "ASIAEXAMPLE".into(),
            secret_access_key: Secret::new("it's/a+secret".into()),
            token: Secret::new("$(token)`x`".into()),
            expiration: time::macros::datetime!(2026-01-31 12:00:00 UTC),
            role_arn: "arn:aws:iam::123456789012:role/r".parse().unwrap(),
            account_id: Some("123456789012".into()),
        };
        OwnCredentials { job: 7.try_into().unwrap(), region: Some("eu-west-1".parse().unwrap()), credentials }
    }

    pub fn nothing(_: &str) -> Option<Vec<u8>> {
        None
    }

    #[test]
    fn the_document_is_credential_processs() {
        let text = process_document(&own().credentials);
        let document: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let expected = serde_json::json!({
            "Version": 1, "AccessKeyId": "ASIAEXAMPLE", "SecretAccessKey": "it's/a+secret", "SessionToken": "$(token)`x`",
            "Expiration": "2026-01-31T12:00:00Z", "AccountId": "123456789012",
        });
        assert_eq!(document, expected);
    }

    #[test]
    fn the_environment_says_which_job_and_which_port() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(dir.path());
        let uri = "http://127.0.0.1:1234/sessions/8/cluster/lab/project/p?roleSessionName=x";
        let component = |name: &str| match name {
            "SLURM_JOB_ID" => Some(b"7".to_vec()),
            FULL_URI => Some(uri.into()),
            _ => None,
        };
        let plain = |name: &str| (name == "SLURM_JOB_ID").then(|| b"7".to_vec());
        let foreign = |name: &str| (name == FULL_URI).then(|| b"http://169.254.170.23/v1/sessions/8".to_vec());
        assert_eq!((hint(&component).unwrap().get(), address(&run_dir, &component).port()), (8, 1234));
        assert_eq!((hint(&plain).unwrap().get(), address(&run_dir, &plain).port()), (7, 9999));
        assert_eq!((hint(&foreign), address(&run_dir, &foreign).port()), (None, 9999));
        std::fs::write(run_dir.endpoint(), "4321\n").unwrap();
        assert_eq!(address(&run_dir, &component).port(), 4321);
    }

    #[test]
    fn only_roots_listener_is_asked() {
        assert!(may_be_credd(0, 1001) && may_be_credd(1001, 1001) && may_be_credd(0, 0));
        assert!(!may_be_credd(1002, 1001) && !may_be_credd(1002, 0));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(verify_listener(listener.local_addr().unwrap()).is_ok(), "one's own");
    }
}
