//! The API's four verbs over HTTP: bounded in time, size and number, never redirected, each secret sent to nobody but the
//! configured server.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use credd_protocol::causes::causes;
use credd_protocol::credentials_api_v1::{OpenSession, SessionStatus, SetStatus};
use credd_protocol::{ClusterName, ProjectId, Secret, UserName};
use pinned_tls::{Fingerprint, Seen, Trust};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Url};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::answer::{Trouble, Verb, trouble};
use crate::config::secret_file;

/// The longest answer that is taken.
const MAX_ANSWER: usize = 64 * 1024;
/// The head secret's file.
const MAX_SECRET_FILE: u64 = 16 * 1024;
/// Requests at the same time; others wait within their deadline.
const AT_ONCE: usize = 64;
/// Attempts at one request, and the longest pause before the second; it doubles.
const ATTEMPTS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// How the upstream is recognized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// By its certificate's pin.
    Pin(Fingerprint),
    /// By the authorities in this PEM file.
    CaFile(PathBuf),
    /// By the system's authorities.
    System,
}

/// How long one request may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To open a connection.
    pub connect: Duration,
    /// For one attempt: a central service waits for STS itself.
    pub attempt: Duration,
    /// For all that one question needs: opening a session, asking, attempts and pauses.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts { connect: Duration::from_secs(2), attempt: Duration::from_secs(7), total: Duration::from_secs(12) }
    }
}

/// An upstream's API.
pub(super) struct Client {
    base: Url,
    http: reqwest::Client,
    secret_file: PathBuf,
    timeouts: Timeouts,
    places: Semaphore,
}

impl Client {
    /// Nothing is sent yet.
    pub(super) fn new(url: &str, known: &Known, secret_file: PathBuf, timeouts: Timeouts) -> anyhow::Result<Self> {
        let base = Url::parse(url.trim_end_matches('/')).with_context(|| format!("upstream.url {url:?}"))?;
        let pem;
        let trust = match known {
            Known::Pin(pin) => Trust::Pin(*pin),
            Known::CaFile(path) => {
                pem = std::fs::read_to_string(path)
                    .with_context(|| format!("upstream.ca-file {} cannot be read", path.display()))?;
                Trust::CaPem(&pem)
            }
            Known::System => Trust::System,
        };
        let builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            // As programs of HTTP/1.1 write them: the handlers of the original deployment look for `Authorization`, and
            // nothing else.
            .http1_only()
            .http1_title_case_headers()
            .connect_timeout(timeouts.connect)
            .tcp_keepalive(Duration::from_secs(30))
            .pool_idle_timeout(Duration::from_secs(30));
        let loopback = base
            .host_str()
            .is_some_and(|host| host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()));
        let builder = match (base.scheme(), loopback) {
            ("https", _) => builder.https_only(true),
            // A proxy of the environment would get the secret in clear.
            ("http", true) => builder.no_proxy(),
            _ => anyhow::bail!("upstream.url {url:?} must be https, or http on 127.0.0.1 or [::1]"),
        };
        let tls = pinned_tls::client_config(trust, None, Seen::default()).context("upstream")?;
        let http = builder.tls_backend_preconfigured(tls).build().context("upstream")?;
        Ok(Client { base, http, secret_file, timeouts, places: Semaphore::new(AT_ONCE) })
    }

    /// Where the upstream is.
    pub(super) fn url(&self) -> &str {
        self.base.as_str()
    }

    pub(super) fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// `POST /sessions`. Not repeated by itself: whether it came through decides what is sent next.
    pub(super) async fn open(&self, request: &OpenSession) -> Result<Zeroizing<Vec<u8>>, Trouble> {
        let body = serde_json::to_vec(request).map_err(|e| Trouble::Refused(e.to_string()))?;
        let secret = self.secret()?;
        self.once(Verb::Open, Method::POST, &["sessions"], None, &secret, Some(body)).await
    }

    /// `GET /sessions/{session}/cluster/{cluster}/project/{project}?roleSessionName=…`.
    pub(super) async fn credentials(
        &self,
        token: &Secret,
        session: &str,
        cluster: &ClusterName,
        project: &ProjectId,
        role_session_name: &str,
    ) -> Result<Zeroizing<Vec<u8>>, Trouble> {
        let path = ["sessions", session, "cluster", cluster.as_str(), "project", project.as_str()];
        let query = Some(("roleSessionName", role_session_name));
        self.patiently(|| self.once(Verb::Credentials, Method::GET, &path, query, token, None)).await
    }

    /// `PUT /sessions/{session}/cluster/{cluster}`, or the short form where an upstream has only that.
    pub(super) async fn set_status(
        &self,
        session: &str,
        cluster: &ClusterName,
        status: SessionStatus,
    ) -> Result<(), Trouble> {
        let body = serde_json::to_vec(&SetStatus { status }).map_err(|e| Trouble::Refused(e.to_string()))?;
        let secret = self.secret()?;
        let long = ["sessions", session, "cluster", cluster.as_str()];
        let put = |path| self.once(Verb::Status, Method::PUT, path, None, &secret, Some(body.clone()));
        match self.patiently(|| put(&long)).await {
            Err(Trouble::NoRoute(_)) => self.patiently(|| put(&long[..2])).await.map(drop),
            other => other.map(drop),
        }
    }

    /// `DELETE /sessions/users/{user}`.
    pub(super) async fn revoke_user(&self, user: &UserName) -> Result<Zeroizing<Vec<u8>>, Trouble> {
        let secret = self.secret()?;
        let path = ["sessions", "users", user.as_str()];
        self.patiently(|| self.once(Verb::RevokeUser, Method::DELETE, &path, None, &secret, None)).await
    }

    /// Reads the file each time: a secret that is being replaced has two lines, and the last one is the new one.
    fn secret(&self) -> Result<Secret, Trouble> {
        let bad = |why: String| Trouble::Passing(why);
        if let Some(problem) = secret_file::problem(&self.secret_file) {
            return Err(bad(problem));
        }
        let at = self.secret_file.display();
        let read = || -> std::io::Result<Secret> {
            let mut text = String::new();
            let file = std::fs::File::open(&self.secret_file)?;
            std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX_SECRET_FILE), &mut text)?;
            Ok(Secret::new(text))
        };
        let text = read().map_err(|e| bad(format!("{at} cannot be read: {e}")))?;
        match text.expose().lines().map(str::trim).rfind(|line| !line.is_empty()) {
            Some(line) => Ok(Secret::new(line.to_owned())),
            None => Err(bad(format!("{at} has no secret"))),
        }
    }

    /// What may be repeated, a few times where the trouble may pass.
    async fn patiently<T, F: Future<Output = Result<T, Trouble>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> Result<T, Trouble> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..ATTEMPTS {
            match attempt().await {
                Err(Trouble::Passing(_)) => {}
                done => return done,
            }
            tokio::time::sleep(pause.mul_f64(0.5 + f64::from(random_byte()) / 510.0)).await;
            pause *= 2;
        }
        attempt().await
    }

    async fn once(
        &self,
        verb: Verb,
        method: Method,
        path: &[&str],
        query: Option<(&str, &str)>,
        secret: &Secret,
        body: Option<Vec<u8>>,
    ) -> Result<Zeroizing<Vec<u8>>, Trouble> {
        if let Some(name) = path.iter().find(|name| matches!(**name, "." | "..")) {
            return Err(Trouble::Refused(format!("the name {name:?} cannot stand in a URL's path")));
        }
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if let Some((name, value)) = query {
            url.query_pairs_mut().append_pair(name, value);
        }
        let mut authorization = HeaderValue::from_str(secret.expose())
            .map_err(|_| Trouble::Refused("a secret that no header can carry".into()))?;
        authorization.set_sensitive(true);
        let mut request = self.http.request(method, url).header(AUTHORIZATION, authorization);
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        let exchange = async {
            let _place = self.places.acquire().await;
            let response = request.send().await.map_err(|e| self.unreachable(&e))?;
            let status = response.status();
            let body = self.body(response).await?;
            if status.is_success() { Ok(body) } else { Err(trouble(verb, status.as_u16(), &body)) }
        };
        tokio::time::timeout(self.timeouts.attempt, exchange)
            .await
            .unwrap_or_else(|_| Err(Trouble::Passing(format!("it did not answer within {:?}", self.timeouts.attempt))))
    }

    async fn body(&self, mut response: reqwest::Response) -> Result<Zeroizing<Vec<u8>>, Trouble> {
        let mut body = Zeroizing::new(Vec::with_capacity(4096));
        while let Some(chunk) = response.chunk().await.map_err(|e| self.unreachable(&e))? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(Trouble::Passing(format!("its answer has more than {MAX_ANSWER} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// The chain of causes, without the URL: a path of it names a session.
    fn unreachable(&self, error: &reqwest::Error) -> Trouble {
        Trouble::Passing(format!("it cannot be reached{}", causes(error)))
    }
}

pub(super) fn random_byte() -> u8 {
    let mut byte = [0u8];
    // Without random bits everybody waits equally long.
    let _ = getrandom::fill(&mut byte);
    byte[0]
}
