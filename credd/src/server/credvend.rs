//! The node's side of `credd_protocol::node_api`: each attempt signed anew, bounded in time and size, never redirected.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use credd_protocol::claim::SCHEME;
use credd_protocol::node_api::{
    ApiError, CredentialsRequest, CredentialsResponse, LeaveRequest, OPEN, OpenRequest, OpenResponse, STREAM,
    credentials_path, leave_path,
};
use credd_protocol::{Secret, SessionId};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::keeper::{Keeper, ToSign};
use super::trouble::Trouble;
use crate::config;

pub mod stream;
pub mod tls;

/// Requests of this node that credvend has to work on at a time; the others queue here.
const UNDER_WAY: usize = 16;
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// A client of credvend.
pub struct Credvend {
    base: String,
    client: reqwest::Client,
    patience: Duration,
    seen: Option<tls::Seen>,
    signs: bool,
    keeper: Rc<Keeper>,
    under_way: Semaphore,
    problem: RefCell<Option<String>>,
    heard: Cell<Option<Instant>>,
    came_back: Cell<bool>,
}

impl Credvend {
    /// A client for the credvend of the configuration. Nothing is sent yet.
    ///
    /// # Errors
    /// A URL or certificate that cannot be used.
    pub fn new(config: &config::Credvend, keeper: Rc<Keeper>) -> anyhow::Result<Self> {
        let url = reqwest::Url::parse(&config.url)
            .map_err(|e| anyhow::anyhow!("credvend's url {:?} is not a URL: {e}", config.url))?;
        anyhow::ensure!(
            matches!(url.path(), "" | "/") && url.query().is_none() && url.username().is_empty(),
            "credvend's url {:?} must be https://HOST[:PORT] and nothing more",
            config.url
        );
        let builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(config.connect_timeout)
            .tcp_keepalive(Duration::from_secs(30))
            .pool_max_idle_per_host(4)
            .pool_idle_timeout(Duration::from_secs(30));
        let seen = tls::Seen::default();
        let (builder, seen) = match url.scheme() {
            "https" => {
                let tls = tls::client_config(&config.trust, config.identity.as_ref(), seen.clone())?;
                (builder.https_only(true).tls_backend_preconfigured(tls), Some(seen))
            }
            "http" => {
                let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
                anyhow::ensure!(
                    host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()),
                    "credvend's url {:?} is plain http, which is allowed to 127.0.0.1 and [::1] only: use https",
                    config.url
                );
                // No certificate is the one of 64 zeros: TLS is not used, and would not work. reqwest wants a backend.
                let nobody = tls::client_config(&config::Trust::Pin("0".repeat(64)), None, seen)?;
                (builder.tls_backend_preconfigured(nobody), None)
            }
            other => anyhow::bail!("credvend's url begins with {other:?}; it must be https://HOST[:PORT]"),
        };
        Ok(Credvend {
            base: config.url.trim_end_matches('/').to_owned(),
            client: builder.build()?,
            patience: config.request_timeout,
            seen,
            signs: config.identity.is_none(),
            keeper,
            under_way: Semaphore::new(UNDER_WAY),
            problem: RefCell::new(Some("credvend has not been asked yet".to_owned())),
            heard: Cell::new(None),
            came_back: Cell::new(false),
        })
    }

    /// Opens or joins a job's session.
    ///
    /// # Errors
    /// Why not.
    pub async fn open(&self, request: &OpenRequest) -> Result<OpenResponse, Trouble> {
        self.post(OPEN, request).await
    }

    /// Fetches a session's credentials.
    ///
    /// # Errors
    /// Why not.
    pub async fn credentials(
        &self,
        session: SessionId,
        request: &CredentialsRequest,
    ) -> Result<CredentialsResponse, Trouble> {
        self.post(&credentials_path(session), request).await
    }

    /// Says that the session's job ended here.
    ///
    /// # Errors
    /// Why credvend does not know it now.
    pub async fn leave(&self, session: SessionId) -> Result<(), Trouble> {
        self.post::<serde_json::Value>(&leave_path(session), &LeaveRequest {}).await.map(|_| ())
    }

    /// The obstacle of the last exchange, if it failed.
    pub fn problem(&self) -> Option<String> {
        self.problem.borrow().clone()
    }

    /// credvend spoke just now.
    pub fn heard(&self) {
        self.heard.set(Some(Instant::now()));
        if self.problem.take().is_some() {
            self.came_back.set(true);
        }
    }

    /// Whether an outage has ended since this was last asked.
    pub fn came_back(&self) -> bool {
        self.came_back.take()
    }

    /// Whether credvend has been silent for longer than `max`, if there is such a bound.
    pub fn unheard(&self, max: Option<Duration>) -> bool {
        max.is_some_and(|max| self.heard.get().is_none_or(|at| at.elapsed() > max))
    }

    async fn post<A: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<A, Trouble> {
        let _permit = self.under_way.acquire().await.expect("never closed");
        // Boxed, and made only now: a thousand jobs may wait for the permit, and an exchange is large.
        let exchange = Box::pin(async {
            let body = serde_json::to_vec(body).expect("plain values");
            let response = self.send(Method::POST, path, body).await?;
            self.read(response).await
        });
        let answer = tokio::time::timeout(self.patience, exchange).await.unwrap_or_else(|_| {
            Err(Trouble::Outage(format!("credvend did not answer within {} s", self.patience.as_secs())))
        });
        match answer {
            Ok(bytes) => {
                self.heard();
                understood(path, &bytes)
            }
            Err(trouble) => {
                self.note(&trouble);
                Err(trouble)
            }
        }
    }

    fn note(&self, trouble: &Trouble) {
        match trouble {
            Trouble::Outage(reason) => *self.problem.borrow_mut() = Some(reason.clone()),
            // A refusal is an answer.
            Trouble::No(_) | Trouble::Never(_) | Trouble::Gone(_) => self.heard(),
        }
    }

    /// Sends one attempt, with its own signature.
    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<reqwest::Response, Trouble> {
        let mut request = self.client.request(method.clone(), format!("{}{path}", self.base));
        if self.signs {
            let server = self.fingerprint().await?;
            let hash: [u8; 32] = Sha256::digest(&body).into();
            let to_sign = ToSign { method: method.as_str(), path, body: hex(&hash), server };
            let credential = self.keeper.sign(to_sign).await.map_err(Trouble::Outage)?;
            let text = Zeroizing::new(format!("{SCHEME} {}", credential.trim_end()));
            let mut value = HeaderValue::from_str(&text)
                .map_err(|_| Trouble::Outage("munged gave a credential that no header can carry".to_owned()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        if method == Method::POST {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        request.send().await.map_err(|e| Trouble::Outage(self.unreachable(&e)))
    }

    /// The certificate that requests are signed for: the pin, or what the last handshake showed. A first handshake is
    /// made where there was none.
    async fn fingerprint(&self) -> Result<String, Trouble> {
        let Some(seen) = &self.seen else { return Ok(String::new()) };
        if seen.get().is_none() {
            let hello = self.client.get(format!("{}/", self.base)).timeout(self.patience).send().await;
            hello.map_err(|e| Trouble::Outage(self.unreachable(&e)))?;
        }
        Ok(seen.get().map(|f| hex(&f.0)).unwrap_or_default())
    }

    async fn read(&self, response: reqwest::Response) -> Result<Zeroizing<Vec<u8>>, Trouble> {
        let status = response.status();
        let body = self.read_body(response).await?;
        if status.is_success() { Ok(body) } else { Err(refusal(status, &body)) }
    }

    async fn read_body(&self, mut response: reqwest::Response) -> Result<Zeroizing<Vec<u8>>, Trouble> {
        let mut body = Zeroizing::new(Vec::with_capacity(4096));
        while let Some(chunk) = response.chunk().await.map_err(|e| Trouble::Outage(self.unreachable(&e)))? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(Trouble::Outage(format!("credvend's answer has more than {MAX_ANSWER_BYTES} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    async fn open_stream(&self) -> Result<reqwest::Response, Trouble> {
        let sending = tokio::time::timeout(self.patience, self.send(Method::GET, STREAM, Vec::new()));
        let response = sending.await.unwrap_or_else(|_| {
            Err(Trouble::Outage(format!("credvend opened no stream within {} s", self.patience.as_secs())))
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = tokio::time::timeout(self.patience, self.read_body(response)).await;
        Err(refusal(status, &body.ok().and_then(Result::ok).unwrap_or_default()))
    }

    /// The chain of causes in one sentence; the URL is the configuration's, nothing of it is secret.
    fn unreachable(&self, error: &reqwest::Error) -> String {
        let mut text = format!("credvend at {} cannot be reached", self.base);
        let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
        let mut last = String::new();
        while let Some(error) = cause {
            let said = error.to_string();
            if !last.contains(&said) {
                let _ = write!(text, ": {said}");
            }
            last = said;
            cause = error.source();
        }
        text
    }
}

/// What a successful answer says.
fn understood<A: DeserializeOwned>(path: &str, body: &[u8]) -> Result<A, Trouble> {
    serde_json::from_slice(body).map_err(|e| {
        // The category and the place: never the text, which may hold a secret.
        Trouble::Outage(format!(
            "credvend's answer to {path} is not understood ({:?} at column {}): is it of another version?",
            e.classify(),
            e.column()
        ))
    })
}

/// What an answer other than success means.
fn refusal(status: StatusCode, body: &[u8]) -> Trouble {
    let Ok(error) = serde_json::from_slice::<ApiError>(body) else {
        return Trouble::Outage(format!("credvend answered {status} without saying why"));
    };
    let reason: String = error.message.chars().filter(|c| !c.is_control()).take(1000).collect();
    // Who is not authenticated is a matter of this node's munged and clock, not of the job.
    let about_the_job = status.is_client_error()
        && !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
    match (error.retry, about_the_job) {
        (false, _) if error.code == "UnknownSession" => Trouble::Gone(reason),
        (false, _) => Trouble::Never(reason),
        (true, true) => Trouble::No(reason),
        (true, false) => Trouble::Outage(reason),
    }
}

/// The document's bytes as they are sent to jobs. Their memory is erased when the last answer with them is gone; what
/// hyper, the kernel and the TLS library copied of them is beyond this process' reach.
pub fn document_body(credentials: &credd_protocol::credentials::Credentials) -> bytes::Bytes {
    // Written into a buffer that never grows: a growing one would leave copies behind.
    let secrets: [&Secret; 2] = [&credentials.secret_access_key, &credentials.token];
    let capacity =
        1024 + 2 * secrets.iter().map(|s| s.expose().len()).sum::<usize>() + credentials.role_arn.as_str().len();
    let mut body = Zeroizing::new(Vec::with_capacity(capacity));
    serde_json::to_writer(&mut *body, credentials).expect("plain values");
    // Kept for an hour by the thousand: in exactly as many bytes as it has. The buffer is erased, too.
    bytes::Bytes::from_owner(Erased(Zeroizing::new(body.to_vec())))
}

struct Erased(Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for Erased {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes, among them what is nearly an answer.
    fn said() -> impl Strategy<Value = Vec<u8>> {
        let credentials = r#"{"credentials":{"AccessKeyId":"A","SecretAccessKey":"SECRET","Token":"SECRET","Expiration":"2026-11-22T10:00:00Z","RoleArn":"arn:aws:iam::123456789012:role/r"},"session-name":"lab","issued":"2026-11-22T09:00:00Z"}"#;
        let error = r#"{"code":"UnknownRole","message":"no \u001b role","retry":false}"#;
        let whole = prop_oneof![Just(credentials.as_bytes().to_vec()), Just(error.as_bytes().to_vec())];
        let mutated = (whole, any::<prop::sample::Index>(), proptest::collection::vec(any::<u8>(), 0..4), 0usize..8);
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300),
            Just(vec![b'['; MAX_ANSWER_BYTES]),
            mutated.prop_map(|(mut whole, at, put, take)| {
                let start = at.index(whole.len());
                let end = (start + take).min(whole.len());
                whole.splice(start..end, put);
                whole
            }),
        ]
    }

    proptest! {
        #[test]
        fn no_answer_hurts_and_none_is_shown(body in said(), status in 100u16..600) {
            if let Err(trouble) = understood::<OpenResponse>("/p", &body) {
                prop_assert!(!trouble.reason().contains("SECRET") && trouble.reason().len() < 200);
            }
            match understood::<CredentialsResponse>("/p", &body) {
                Ok(answer) => {
                    let document: serde_json::Value = serde_json::from_slice(&document_body(&answer.credentials)).unwrap();
                    prop_assert!(document["AccessKeyId"].is_string());
                }
                Err(trouble) => prop_assert!(!trouble.reason().contains("SECRET") && trouble.reason().len() < 200),
            }
            let trouble = refusal(StatusCode::from_u16(status).unwrap(), &body);
            prop_assert!(trouble.reason().chars().count() <= 1000 && !trouble.reason().contains(char::is_control));
        }

        #[test]
        fn a_refusals_sentence_is_bounded_and_without_controls(message in any::<String>(), times in 1usize..2000) {
            let error = ApiError { code: "X".into(), message: message.repeat(times), retry: false };
            let trouble = refusal(StatusCode::FORBIDDEN, &serde_json::to_vec(&error).unwrap());
            prop_assert!(trouble.reason().chars().count() <= 1000 && !trouble.reason().contains(char::is_control));
        }
    }

    #[test]
    fn refusals_are_told_apart() {
        let body =
            |retry| serde_json::to_vec(&ApiError { code: "X".into(), message: "a\u{1b}b".into(), retry }).unwrap();
        let of = |status: u16, retry| refusal(StatusCode::from_u16(status).unwrap(), &body(retry));
        assert_eq!(of(403, false), Trouble::Never("ab".into()));
        assert_eq!(of(403, true), Trouble::No("ab".into()));
        assert_eq!(of(401, true), Trouble::Outage("ab".into()));
        assert_eq!(of(503, true), Trouble::Outage("ab".into()));
        assert!(matches!(refusal(StatusCode::BAD_GATEWAY, b"<html>"), Trouble::Outage(_)));
        assert!(matches!(refusal(StatusCode::FORBIDDEN, b""), Trouble::Outage(_)), "a proxy's 403 is not credvend's");
    }
}
