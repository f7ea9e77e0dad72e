//! A credvend that says what a test wants: the node's API over real TLS.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use credd_protocol::credentials::Credentials;
use credd_protocol::handshake_ticket;
use credd_protocol::node_api::{
    ATTEST, ApiError, AttestRequest, CredentialsRequest, CredentialsResponse, Event, HEARD, HeardRequest, OPEN,
    OpenRequest, OpenResponse, SlurmFacts,
};
use credd_protocol::{RoleName, Secret, SessionId, hex};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Frame;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::Acceptor;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use super::super::clock::Clock;
use super::super::clock::fake::FakeClock;

type Body = BoxBody<Bytes, Infallible>;

/// What it was asked, and what it shall say.
pub struct Script {
    pub clock: FakeClock,
    /// Of the credentials it gives.
    pub life: Duration,
    /// How long each answer takes.
    pub delay: Duration,
    /// What it says instead of opening, giving, or taking leave: status and error.
    pub refuse_open: Option<(u16, ApiError)>,
    pub refuse_attest: Option<(u16, ApiError)>,
    pub refuse_credentials: Option<(u16, ApiError)>,
    pub refuse_leave: Option<(u16, ApiError)>,
    /// What it says to all of those with success, whatever it is.
    pub nonsense: Option<Bytes>,
    /// Facts it opens a session with, other than those asked for.
    pub other_uid: Option<u32>,
    /// The partition that it says the job is in.
    pub partition: Option<&'static str>,
    pub attests: u32,
    /// What each opening's path said besides.
    pub open_queries: Vec<Option<String>>,
    pub opens: u32,
    pub credentials: u32,
    pub min_lives: Vec<u32>,
    pub roles: Vec<RoleName>,
    pub leaves: Vec<SessionId>,
    /// Which session each key was given to.
    pub given: HashMap<String, SessionId>,
    pub streams: u32,
    /// What each stream's node said it knew.
    pub known: Vec<Option<(String, u64)>>,
    pub heard: Vec<HeardRequest>,
    pub refuse_heard: bool,
    pub heard_with_requests: Vec<u64>,
    /// What it says to whoever asks for credentials, whatever it is.
    pub odd_credentials: Option<(u16, Bytes)>,
    /// So many leaves are taken without an answer that is understood.
    pub lost_leaves: u32,
    /// Its clock's, against the node's.
    pub skew: time::Duration,
    told: Vec<(u64, Event)>,
    /// All `Authorization` headers.
    pub authorizations: Vec<String>,
    /// The paths of requests without one.
    pub unsigned: Vec<String>,
    /// What the answer to a stream's request gives as a ticket.
    pub ticket: Option<String>,
    /// It breaks off where one is shown.
    pub dislikes_tickets: bool,
    /// The protocols that each handshake offered.
    pub offered: Vec<Vec<String>>,
    sessions: HashMap<u32, SessionId>,
    listeners: Vec<mpsc::UnboundedSender<Result<Frame<Bytes>, Infallible>>>,
    pub epoch: String,
    pub seq: u64,
}

pub fn error(code: &str, message: &str, retry: bool) -> ApiError {
    ApiError { code: code.into(), message: message.into(), retry, retry_after: None, ended: None }
}

/// The service itself.
pub struct FakeCredvend {
    pub address: SocketAddr,
    pub pin: String,
    pub certificate_pem: String,
    pub script: Rc<RefCell<Script>>,
    tls: TlsAcceptor,
    running: Option<tokio::task::JoinHandle<()>>,
}

impl FakeCredvend {
    /// One that has an address and does not listen yet.
    pub fn new(clock: FakeClock) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let pin = hex::encode(&Sha256::digest(&certificate));
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let script = Script {
            clock,
            life: Duration::from_secs(3600),
            delay: Duration::ZERO,
            refuse_open: None,
            refuse_attest: None,
            refuse_credentials: None,
            refuse_leave: None,
            nonsense: None,
            other_uid: None,
            partition: None,
            attests: 0,
            open_queries: Vec::new(),
            opens: 0,
            credentials: 0,
            min_lives: Vec::new(),
            roles: Vec::new(),
            leaves: Vec::new(),
            given: HashMap::new(),
            streams: 0,
            known: Vec::new(),
            heard: Vec::new(),
            refuse_heard: false,
            heard_with_requests: Vec::new(),
            odd_credentials: None,
            lost_leaves: 0,
            skew: time::Duration::ZERO,
            told: Vec::new(),
            authorizations: Vec::new(),
            unsigned: Vec::new(),
            ticket: None,
            dislikes_tickets: false,
            offered: Vec::new(),
            sessions: HashMap::new(),
            listeners: Vec::new(),
            epoch: "first".into(),
            seq: 0,
        };
        FakeCredvend {
            address,
            pin,
            certificate_pem: made.cert.pem(),
            script: Rc::new(RefCell::new(script)),
            tls: TlsAcceptor::from(Arc::new(config)),
            running: None,
        }
    }

    pub async fn start(&mut self) {
        let listener = tokio::net::TcpListener::bind(self.address).await.unwrap();
        let (tls, script) = (self.tls.clone(), self.script.clone());
        self.running = Some(tokio::task::spawn_local(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, script) = (tls.clone(), script.clone());
                connections.spawn_local(async move {
                    let Ok(begun) = LazyConfigAcceptor::new(Acceptor::default(), stream).await else { return };
                    let protocols = begun.client_hello().alpn().map(|all| all.map(text).collect::<Vec<_>>());
                    let protocols = protocols.unwrap_or_default();
                    let known = !protocols.is_empty();
                    script.borrow_mut().offered.push(protocols);
                    if known && script.borrow().dislikes_tickets {
                        return;
                    }
                    let Ok(stream) = begun.into_stream(tls.config().clone()).await else { return };
                    let service = hyper::service::service_fn(move |request| answer(script.clone(), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        }));
    }

    /// Stops listening and breaks every connection.
    pub async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
            let _ = running.await;
        }
        self.script.borrow_mut().listeners.clear();
    }

    /// Says something on every stream.
    pub fn say(&self, event: &Event) {
        let mut line = serde_json::to_vec(event).unwrap();
        line.push(b'\n');
        let line = Bytes::from(line);
        self.script.borrow_mut().listeners.retain(|l| l.send(Ok(Frame::data(line.clone()))).is_ok());
    }

    /// Says the next piece of news, on every stream and on those that come later.
    pub fn tell(&self, event: impl FnOnce(u64) -> Event) {
        let event = {
            let mut script = self.script.borrow_mut();
            script.seq += 1;
            let (seq, event) = (script.seq, event(script.seq));
            script.told.push((seq, event.clone()));
            event
        };
        self.say(&event);
    }

    pub fn invalidate(&self, session: SessionId, reason: &str) {
        let reason = reason.to_owned();
        self.tell(|seq| Event::Invalidated { seq, sessions: vec![session], reason, answer: false, completed: vec![] });
    }
}

async fn answer(
    script: Rc<RefCell<Script>>,
    request: Request<hyper::body::Incoming>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    if let Some(value) = request.headers().get("authorization") {
        script.borrow_mut().authorizations.push(value.to_str().unwrap().to_owned());
    } else {
        script.borrow_mut().unsigned.push(path);
        return Ok(refused(&(401, error("Unauthenticated", "who are you?", true))));
    }
    if path == "/node/v1/stream" {
        return Ok(stream(&script, request.uri().query()));
    }
    let query = request.uri().query().map(str::to_owned);
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let delay = script.borrow().delay;
    tokio::time::sleep(delay).await;
    let mut script = script.borrow_mut();
    if let Some(nonsense) = &script.nonsense {
        return Ok(Response::new(Full::new(nonsense.clone()).boxed()));
    }
    if path == ATTEST {
        script.attests += 1;
        let _: AttestRequest = serde_json::from_slice(&body).unwrap();
        if let Some(refusal) = &script.refuse_attest {
            return Ok(refused(refusal));
        }
        return Ok(json(&slurm_facts(script.partition.unwrap_or("batch"))));
    }
    if path == OPEN {
        script.opens += 1;
        script.open_queries.push(query);
        let asked: OpenRequest = serde_json::from_slice(&body).unwrap();
        if let Some(refusal) = &script.refuse_open {
            return Ok(refused(refusal));
        }
        let session = *script.sessions.entry(asked.job.get()).or_insert_with(SessionId::random);
        return Ok(json(&OpenResponse {
            session,
            cluster: "lab".parse().unwrap(),
            job: asked.job,
            user: "alice".parse().unwrap(),
            uid: credd_protocol::Uid(script.other_uid.unwrap_or(asked.uid.0)),
            project: "genomics".parse().unwrap(),
            partition: script.partition.map(|name| name.parse().unwrap()),
            roles: vec![RoleName::default()],
        }));
    }
    if path == HEARD {
        script.heard.push(serde_json::from_slice(&body).unwrap());
        if script.refuse_heard {
            return Ok(refused(&(503, error("Unavailable", "the store is away", true))));
        }
        return Ok(json(&serde_json::json!({})));
    }
    let rest = path.strip_prefix("/node/v1/sessions/").unwrap();
    let (session, verb) = rest.split_once('/').unwrap();
    match verb {
        "leave" => {
            if let Some(refusal) = &script.refuse_leave {
                return Ok(refused(refusal));
            }
            script.leaves.push(session.parse().unwrap());
            if script.lost_leaves > 0 {
                script.lost_leaves -= 1;
                return Ok(Response::new(Full::new(Bytes::from_static(b"<html>")).boxed()));
            }
            Ok(json(&serde_json::json!({})))
        }
        "credentials" => {
            script.credentials += 1;
            let asked: CredentialsRequest = serde_json::from_slice(&body).unwrap();
            script.min_lives.push(asked.min_life_seconds);
            script.roles.push(asked.role);
            script.heard_with_requests.push(asked.heard);
            if let Some(refusal) = &script.refuse_credentials {
                return Ok(refused(refusal));
            }
            if let Some((status, body)) = &script.odd_credentials {
                let mut response = Response::new(Full::new(body.clone()).boxed());
                *response.status_mut() = (*status).try_into().unwrap();
                return Ok(response);
            }
            let key = format!("ASIA{:04}", script.credentials);
            script.given.insert(key.clone(), session.parse().unwrap());
            let issued = script.clock.now().wall + script.skew;
            Ok(json(&CredentialsResponse {
                credentials: Credentials {
                    access_key_id: key,
                    secret_access_key: Secret::new("secret".into()),
                    token: Secret::new("token".into()),
                    expiration: issued + script.life,
                    role_arn: "arn:aws:iam::123456789012:role/genomics".parse().unwrap(),
                    account_id: None,
                },
                session_name: "lab-alice-n1".into(),
                issued,
            }))
        }
        other => panic!("{other}"),
    }
}

/// What it says of a job.
pub fn slurm_facts(partition: &str) -> SlurmFacts {
    SlurmFacts {
        cluster: "lab".parse().unwrap(),
        node: "n1".parse().unwrap(),
        restart: 1,
        user: "alice".parse().unwrap(),
        account: Some("genomics".parse().unwrap()),
        partition: partition.parse().unwrap(),
    }
}

fn stream(script: &Rc<RefCell<Script>>, query: Option<&str>) -> Response<Body> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let mut script = script.borrow_mut();
    script.streams += 1;
    let known = query.map(|query| {
        let (epoch, after) = query.split_once('&').unwrap();
        (epoch.strip_prefix("epoch=").unwrap().to_owned(), after.strip_prefix("after=").unwrap().parse().unwrap())
    });
    script.known.push(known.clone());
    let mut seq = script.seq;
    let mut lines = vec![];
    if let Some((_, after)) = known.filter(|(epoch, after)| *epoch == script.epoch && *after <= seq) {
        seq = after;
        lines.extend(script.told.iter().filter(|(seq, _)| *seq > after).map(|(_, event)| event.clone()));
    }
    lines.insert(0, Event::Hello { epoch: script.epoch.clone(), seq });
    for event in &lines {
        let mut line = serde_json::to_vec(event).unwrap();
        line.push(b'\n');
        sender.send(Ok(Frame::data(Bytes::from(line)))).unwrap();
    }
    script.listeners.push(sender);
    struct Lines(mpsc::UnboundedReceiver<Result<Frame<Bytes>, Infallible>>);
    impl hyper::body::Body for Lines {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.poll_recv(cx)
        }
    }
    let mut response = Response::new(BoxBody::new(Lines(receiver)));
    if let Some(ticket) = &script.ticket {
        response.headers_mut().insert(handshake_ticket::HEADER, ticket.parse().unwrap());
    }
    response
}

fn text(protocol: &[u8]) -> String {
    String::from_utf8(protocol.to_vec()).unwrap()
}

fn json(value: &impl serde::Serialize) -> Response<Body> {
    Response::new(Full::new(Bytes::from(serde_json::to_vec(value).unwrap())).boxed())
}

fn refused((status, error): &(u16, ApiError)) -> Response<Body> {
    let mut response = json(error);
    *response.status_mut() = (*status).try_into().unwrap();
    response
}
