//! `credd credentials` and `credd env`: asks the node's endpoint for credentials, or a token, of one of the caller's own
//! jobs, and prints them for programs that cannot ask by themselves.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use credd_protocol::credentials::{Credentials, ErrorBody, rfc3339_z};
use credd_protocol::own_api::{self, OwnCredentials, OwnToken};
use credd_protocol::record::RunDir;
use credd_protocol::{JobId, Region, endpoint};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::header::{CONTENT_LENGTH, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

/// For one exchange; the server waits less.
const PATIENCE: Duration = Duration::from_secs(10);
/// For credentials that are not there yet.
const WHOLE_PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_secs(1);
/// No answer is longer.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

const FULL_URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
const TOKEN: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";
const KEYS: [&str; 4] =
    ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CREDENTIAL_EXPIRATION"];
const REGIONS: [&str; 2] = ["AWS_REGION", "AWS_DEFAULT_REGION"];
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];
const LOOPBACK: &str = "127.0.0.1";

/// Why there is nothing to print.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// credd, or what it asks, has nothing yet: try again.
    #[error("{0}")]
    NotNow(String),
    /// No, and why; or it could not be asked.
    #[error("{0}")]
    No(String),
}

impl From<anyhow::Error> for NoAnswer {
    fn from(error: anyhow::Error) -> Self {
        NoAnswer::No(format!("{error:#}"))
    }
}

/// What the caller's environment holds, behind a function so that tests can say it.
pub type Getenv<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The document of `credential_process`.
///
/// # Errors
/// [`NoAnswer`].
pub fn credentials(run_dir: &RunDir, job: Option<JobId>, getenv: Getenv<'_>) -> Result<Zeroizing<String>, NoAnswer> {
    let own: OwnCredentials = ask(run_dir, own_api::CREDENTIALS, job, getenv)?;
    Ok(process_document(&own.credentials))
}

fn process_document(credentials: &Credentials) -> Zeroizing<String> {
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
    let mut text = serde_json::to_string_pretty(&document).expect("plain values");
    text.push('\n');
    Zeroizing::new(text)
}

/// Variables, by name: to be set, or, without a value, to be unset.
pub struct Variables(BTreeMap<&'static str, Option<Zeroizing<String>>>);

/// The variables with keys, or, with `endpoint`, those with which SDKs ask and renew by themselves.
///
/// # Errors
/// [`NoAnswer`].
pub fn variables(
    run_dir: &RunDir,
    job: Option<JobId>,
    endpoint: bool,
    getenv: Getenv<'_>,
) -> Result<Variables, NoAnswer> {
    Ok(if endpoint {
        Variables::asking(&ask(run_dir, own_api::TOKEN, job, getenv)?, getenv)
    } else {
        Variables::with_keys(&ask(run_dir, own_api::CREDENTIALS, job, getenv)?, getenv)
    })
}

impl Variables {
    fn with_keys(own: &OwnCredentials, getenv: Getenv<'_>) -> Self {
        let keys = &own.credentials;
        let values = [
            keys.access_key_id.clone(),
            keys.secret_access_key.expose().to_owned(),
            keys.token.expose().to_owned(),
            rfc3339_z::format(keys.expiration),
        ];
        let mut variables = Variables(BTreeMap::new());
        for (name, value) in KEYS.into_iter().zip(values) {
            variables.set(name, value);
        }
        variables.set_region(own.region.as_ref(), getenv);
        variables
    }

    fn asking(own: &OwnToken, getenv: Getenv<'_>) -> Self {
        let mut variables = Variables(BTreeMap::new());
        // Every SDK prefers keys, and most prefer these two, to what is set here.
        for name in
            KEYS.into_iter().chain(["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"])
        {
            variables.0.insert(name, None);
        }
        variables.set(FULL_URI, own.uri.clone());
        variables.set(TOKEN, own.token.expose().to_owned());
        variables.set_region(own.region.as_ref(), getenv);
        // No proxy may see the token, also one that is set later.
        for name in NO_PROXY {
            let old = getenv(name).filter(|value| !value.is_empty());
            let value = match old {
                Some(old) if old.split(',').any(|item| item.trim() == LOOPBACK) => old,
                Some(old) => format!("{old},{LOOPBACK}"),
                None => LOOPBACK.to_owned(),
            };
            variables.set(name, value);
        }
        variables
    }

    fn set(&mut self, name: &'static str, value: String) {
        self.0.insert(name, Some(Zeroizing::new(value)));
    }

    /// Both names, since botocore ignores the first; neither if one of them is set.
    fn set_region(&mut self, region: Option<&Region>, getenv: Getenv<'_>) {
        if let Some(region) = region
            && !REGIONS.iter().any(|name| getenv(name).is_some_and(|value| !value.is_empty()))
        {
            for name in REGIONS {
                self.set(name, region.to_string());
            }
        }
    }

    /// For the `eval` of a POSIX shell. Each line stands by itself also where the shell has joined them.
    pub fn shell(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::new());
        for (name, value) in &self.0 {
            let _ = match value {
                Some(value) => writeln!(text, "export {name}={};", quoted(value).as_str()),
                None => writeln!(text, "unset {name};"),
            };
        }
        text
    }

    /// An object of the names; `null` where a variable is to be unset.
    pub fn json(&self) -> Zeroizing<String> {
        let plain: BTreeMap<_, _> =
            self.0.iter().map(|(name, value)| (name, value.as_ref().map(|value| value.as_str()))).collect();
        let mut text = serde_json::to_string_pretty(&plain).expect("plain values");
        text.push('\n');
        Zeroizing::new(text)
    }
}

fn quoted(value: &str) -> Zeroizing<String> {
    Zeroizing::new(format!("'{}'", value.replace('\'', r"'\''")))
}

/// Asks, and asks again while there is nothing yet.
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

/// Where credd serves: what it says itself, or, in a container that does not show its directory, what the job's
/// environment says; else the usual port.
fn address(run_dir: &RunDir, getenv: Getenv<'_>) -> SocketAddr {
    let said = std::fs::read_to_string(run_dir.endpoint()).ok().and_then(|text| text.trim().parse::<u16>().ok());
    let in_environment = || {
        let uri = getenv(FULL_URI).filter(|uri| endpoint::is_ours(uri))?;
        uri.split(['/', ':']).nth(4)?.parse::<u16>().ok()
    };
    let port = said.or_else(in_environment).unwrap_or(endpoint::DEFAULT_PORT);
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Which job this process's environment speaks of: the one in its URL, which is the component's own in a heterogeneous
/// job, or Slurm's.
fn hint(getenv: Getenv<'_>) -> Option<JobId> {
    let uri = getenv(FULL_URI).filter(|uri| endpoint::is_ours(uri));
    let of_uri = uri.and_then(|uri| endpoint::job_of_path(&uri[uri.find("/sessions/")?..]));
    of_uri.or_else(|| getenv("SLURM_JOB_ID")?.parse().ok())
}

/// Whoever has taken the port while credd was down must not hand out keys of its own: only root's listener is credd's.
fn verify_listener(address: SocketAddr) -> Result<(), NoAnswer> {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    // In a user namespace root is not told from others: there, as for every SDK, the port is trusted.
    let whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
    let owner = peer::TcpPeers::new().and_then(|peers| peers.listener_owner(address));
    match owner {
        Ok(Some(uid)) if whole && !may_be_credd(uid, nix::unistd::geteuid().as_raw()) => Err(NoAnswer::No(format!(
            "port {} is held by a process of uid {uid}, not by credd: nothing is asked there; tell your administrator",
            address.port()
        ))),
        // Without anybody there, connecting says so.
        _ => Ok(()),
    }
}

/// A user can deceive itself without us.
fn may_be_credd(uid: u32, own: u32) -> bool {
    uid == 0 || uid == own
}

#[cfg(test)]
mod tests {
    use super::*;
    use credd_protocol::Secret;

    fn own() -> OwnCredentials {
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

    fn nothing(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn the_document_is_credential_processs() {
        let text = process_document(&own().credentials);
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({
            "Version": 1, "AccessKeyId": "ASIAEXAMPLE", "SecretAccessKey": "it's/a+secret", "SessionToken": "$(token)`x`",
            "Expiration": "2026-01-31T12:00:00Z", "AccountId": "123456789012",
        });
        assert_eq!(document, expected);
    }

    #[test]
    fn a_shell_gets_exactly_the_values_whatever_is_in_them() {
        let variables = Variables::with_keys(&own(), &nothing);
        for script in ["eval \"$1\"", "eval $1"] {
            let script =
                format!("{script}; printf '%s|' \"$AWS_SECRET_ACCESS_KEY\" \"$AWS_SESSION_TOKEN\" \"$AWS_REGION\"");
            let shell =
                std::process::Command::new("sh").args(["-c", &script, "sh", &variables.shell()]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&shell.stdout), "it's/a+secret|$(token)`x`|eu-west-1|", "{script}");
        }
        let own_region = |name: &str| (name == "AWS_DEFAULT_REGION").then(|| "us-east-1".to_owned());
        assert!(!Variables::with_keys(&own(), &own_region).shell().contains("REGION"));
    }

    #[test]
    fn the_endpoints_variables_win_over_keys_and_bypass_proxies() {
        let token = credd_protocol::JobToken::mint().unwrap();
        let own = OwnToken { job: 7.try_into().unwrap(), region: None, uri: "http://127.0.0.1:9999/x".into(), token };
        let proxied = |name: &str| (name == "no_proxy").then(|| "a,*".to_owned());
        let json: serde_json::Value = serde_json::from_str(&Variables::asking(&own, &proxied).json()).unwrap();
        for unset in KEYS.into_iter().chain(["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"]) {
            assert!(json[unset].is_null() && json.get(unset).is_some(), "{unset}");
        }
        assert_eq!(
            (json[FULL_URI].as_str(), json[TOKEN].as_str()),
            (Some("http://127.0.0.1:9999/x"), Some(own.token.expose()))
        );
        assert_eq!((json["NO_PROXY"].as_str(), json["no_proxy"].as_str()), (Some("127.0.0.1"), Some("a,*,127.0.0.1")));
        assert!(Variables::asking(&own, &proxied).shell().contains("unset AWS_ACCESS_KEY_ID;\n"));
    }

    #[test]
    fn the_environment_says_which_job_and_which_port() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(dir.path());
        let uri = "http://127.0.0.1:1234/sessions/8/cluster/lab/project/p?roleSessionName=x";
        let component = |name: &str| match name {
            "SLURM_JOB_ID" => Some("7".to_owned()),
            FULL_URI => Some(uri.to_owned()),
            _ => None,
        };
        let plain = |name: &str| (name == "SLURM_JOB_ID").then(|| "7".to_owned());
        let foreign = |name: &str| (name == FULL_URI).then(|| "http://169.254.170.23/v1/sessions/8".to_owned());
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
