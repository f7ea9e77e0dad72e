//! HTTPS to credvend: each attempt signed anew, bounded in time and size, never redirected. Handshakes show the ticket that
//! credvend gave to this node, so that no user of it can use up what they need.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use credd_protocol::causes::causes;
use credd_protocol::claim::SCHEME;
use credd_protocol::handshake_ticket::{self, HandshakeTicket};
use credd_protocol::hex;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use rustls::ClientConfig;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::super::keeper::{Keeper, ToSign};
use super::super::trouble::Trouble;
use super::{Soon, Wire, refusal, tls};
use crate::config;
use crate::control::ToKeeper;

/// No answer is longer.
pub const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// One credvend.
pub struct Https {
    base: String,
    connecting: Connecting,
    /// Whose handshakes show no ticket.
    plain: reqwest::Client,
    /// Whose handshakes show this one.
    known: RefCell<Option<(HandshakeTicket, reqwest::Client)>>,
    /// Which of them connects: the other one after each failure, since what stands in between may not like the ticket.
    plainly: Cell<bool>,
    patience: Duration,
    seen: Option<tls::Seen>,
    signs: bool,
    keeper: Rc<Keeper>,
}

/// How connections are made.
struct Connecting {
    https_only: bool,
    timeout: Duration,
    tls: ClientConfig,
}

impl Connecting {
    fn client(&self, ticket: Option<&HandshakeTicket>) -> reqwest::Result<reqwest::Client> {
        let mut tls = self.tls.clone();
        if let Some(ticket) = ticket {
            tls.alpn_protocols = vec![ticket.as_str().into(), b"http/1.1".to_vec()];
        }
        reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(self.timeout)
            .tcp_keepalive(Duration::from_secs(30))
            .pool_max_idle_per_host(4)
            .pool_idle_timeout(Duration::from_secs(30))
            .https_only(self.https_only)
            .tls_backend_preconfigured(tls)
            .build()
    }
}

impl Https {
    /// To the credvend of the configuration. Nothing is sent yet.
    ///
    /// # Errors
    /// A URL or certificate that cannot be used.
    pub fn new(config: &config::Credvend, keeper: Rc<Keeper>) -> anyhow::Result<Self> {
        let url = reqwest::Url::parse(&config.url)
            .map_err(|e| anyhow::anyhow!("credvend's url {:?} is not a URL: {e}", config.url))?;
        let seen = tls::Seen::default();
        let (tls, seen) = match url.scheme() {
            "https" => {
                let tls = tls::client_config(&config.trust, config.identity.as_ref(), seen.clone())?;
                (tls, Some(seen))
            }
            "http" => {
                let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
                anyhow::ensure!(
                    host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()),
                    "credvend's url {:?} is plain http, which is allowed to 127.0.0.1 and [::1] only: use https",
                    config.url
                );
                // No certificate is the one of 64 zeros: TLS is not used, and would not work. reqwest wants a backend.
                (tls::client_config(&config::Trust::Pin("0".repeat(64)), None, seen)?, None)
            }
            other => anyhow::bail!("credvend's url begins with {other:?}; it must be https://HOST[:PORT]"),
        };
        let connecting = Connecting { https_only: seen.is_some(), timeout: config.connect_timeout, tls };
        Ok(Https {
            base: config.url.trim_end_matches('/').to_owned(),
            plain: connecting.client(None)?,
            connecting,
            known: RefCell::default(),
            plainly: Cell::new(false),
            patience: config.request_timeout,
            seen,
            signs: config.identity.is_none(),
            keeper,
        })
    }

    /// What requests are sent with now, and whether its handshakes show no ticket although there is one.
    fn client(&self) -> (reqwest::Client, bool) {
        let plainly = self.plainly.get();
        match &*self.known.borrow() {
            Some((_, client)) if !plainly => (client.clone(), plainly),
            _ => (self.plain.clone(), plainly),
        }
    }

    /// A request failed that was sent with a [`Self::client`] of this kind. Several that fail together are one failure.
    fn failed(&self, error: &reqwest::Error, plainly: bool) -> Trouble {
        if error.is_connect() {
            self.plainly.set(!plainly);
        }
        Trouble::Outage(self.unreachable(error))
    }

    /// Remembers the ticket that credvend sent with an answer, if it is another one.
    fn take_ticket(&self, headers: &HeaderMap) {
        let ticket = headers.get(handshake_ticket::HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(ticket) = ticket
            && self.seen.is_some()
            && self.ticket().as_ref() != Some(&ticket)
        {
            self.keeper.tell(ToKeeper::Ticket { ticket: ticket.clone() });
            self.show(ticket);
        }
    }

    async fn open_stream(&self, path: &str) -> Result<reqwest::Response, Trouble> {
        let sending = tokio::time::timeout(self.patience, self.send(Method::GET, path, Vec::new()));
        let response = sending.await.unwrap_or_else(|_| {
            Err(Trouble::Outage(format!("credvend opened no stream within {} s", self.patience.as_secs())))
        })?;
        let status = response.status();
        if status.is_success() {
            self.take_ticket(response.headers());
            return Ok(response);
        }
        let body = tokio::time::timeout(self.patience, self.read_body(response)).await;
        Err(refusal(status, &body.ok().and_then(Result::ok).unwrap_or_default()))
    }

    /// Sends one attempt, with its own signature.
    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<reqwest::Response, Trouble> {
        let server = if self.signs { self.fingerprint().await? } else { String::new() };
        let (client, plainly) = self.client();
        let mut request = client.request(method.clone(), format!("{}{path}", self.base));
        if self.signs {
            let hash: [u8; 32] = Sha256::digest(&body).into();
            let to_sign = ToSign { method: method.as_str(), path, body: hex::encode(&hash), server };
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
        request.send().await.map_err(|e| self.failed(&e, plainly))
    }

    /// The certificate that requests are signed for: the pin, or what the last handshake showed. A first handshake is
    /// made where there was none.
    async fn fingerprint(&self) -> Result<String, Trouble> {
        let Some(seen) = &self.seen else { return Ok(String::new()) };
        if seen.get().is_none() {
            let (client, plainly) = self.client();
            let hello = client.get(format!("{}/health", self.base)).timeout(self.patience).send().await;
            hello.map_err(|e| self.failed(&e, plainly))?;
        }
        Ok(seen.get().map(|f| hex::encode(&f.0)).unwrap_or_default())
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

    /// The chain of causes in one sentence; the URL is the configuration's, nothing of it is secret.
    fn unreachable(&self, error: &reqwest::Error) -> String {
        format!("credvend at {} cannot be reached{}", self.base, causes(error))
    }
}

impl Wire for Https {
    fn post<'a>(&'a self, path: &'a str, body: Vec<u8>) -> Soon<'a, Zeroizing<Vec<u8>>> {
        let exchange = async move { self.read(self.send(Method::POST, path, body).await?).await };
        Box::pin(async move {
            tokio::time::timeout(self.patience, exchange).await.unwrap_or_else(|_| {
                Err(Trouble::Outage(format!("credvend did not answer within {} s", self.patience.as_secs())))
            })
        })
    }

    fn stream(&self, path: String) -> Soon<'_, reqwest::Response> {
        Box::pin(async move { self.open_stream(&path).await })
    }

    /// What is under way ends on the connections that it has; the next handshakes are made anew.
    fn show(&self, ticket: HandshakeTicket) {
        match self.connecting.client(Some(&ticket)) {
            Ok(client) => *self.known.borrow_mut() = Some((ticket, client)),
            Err(error) => tracing::warn!(%error, "handshakes with credvend show no ticket"),
        }
    }

    fn ticket(&self) -> Option<HandshakeTicket> {
        self.known.borrow().as_ref().map(|(ticket, _)| ticket.clone())
    }

    fn broken(&self, error: &reqwest::Error) -> Trouble {
        Trouble::Outage(self.unreachable(error))
    }
}
