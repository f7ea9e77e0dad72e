//! The network faces: who may ask for what, over TLS and over the administrator's Unix socket.
//!
//! | module | what |
//! |---|---|
//! | [`listen`] | sockets, connections, the graceful stop |
//! | [`connections`] | how many there may be, and which give way |
//! | [`socket`] | a connection whose other end must read |
//! | [`admin_socket`] | the administrators' own |
//! | [`tls`] | the certificate: given, or made at first start and pinned |
//! | [`tickets`] | by which a node's handshakes are known from others of its address |
//! | [`routes`] | the table of all that can be asked for: method, path, name, who may, what answers |
//! | [`route`], [`target`] | method and target → a row of it, with what the target says |
//! | [`browser`] | requests that a browser may have been made to send |
//! | [`principal`] | headers and certificate → [`principal::Principal`] |
//! | [`seed`], [`node`], [`admin`], [`revocations`] | the handlers; [`stream`] is the nodes' standing one |
//! | [`metrics_page`] | what Prometheus reads, on a socket of its own |
//! | [`answer`] | results and refusals → HTTP |
//!
//! Who may do what: each row names one kind of caller, and [`dispatch`] gives it no other.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use credd_protocol::handshake_ticket::HandshakeTicket;
use credd_protocol::node_api::MAX_BODY_BYTES;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use hyper::{Request, Response, header};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::audit::{Event, Refused};
use crate::clock::Clock;
use crate::refusal::Refusal;
use crate::vending::{Node, Vending};
use answer::Reply;
use principal::{Authenticator, Principal};
use route::{Call, Callers, Found, Invalidator, Route, Work};
use tickets::Tickets;

pub mod admin;
pub mod admin_socket;
pub mod answer;
pub mod browser;
pub mod connections;
pub mod credentials_api_v1;
pub mod head_secrets;
pub mod listen;
pub mod metrics_page;
pub mod munge_claim;
pub mod node;
pub mod principal;
pub mod refusal_log;
pub mod revocations;
pub mod route;
pub mod routes;
pub mod socket;
pub mod stream;
pub mod target;
pub mod tickets;
pub mod tls;
pub mod visible_group;

/// How long a request's body may take to arrive.
const BODY_PATIENCE: Duration = Duration::from_secs(10);

/// What a connection is known by before its first request.
#[derive(Debug, Clone)]
pub enum Connection {
    /// TLS from the network.
    Tls {
        /// The other end.
        peer: SocketAddr,
        /// The client's certificate, of a configured authority.
        certificate: Option<CertificateDer<'static>>,
        /// SHA-256 of the certificate that this connection was shown, lower-case hex.
        fingerprint: Arc<str>,
        /// The host names in that certificate.
        names: Arc<[String]>,
        /// For the nodes that prove themselves on it.
        tickets: Tickets,
    },
    /// Plain HTTP on a loopback address.
    Plain {
        /// The other end.
        peer: SocketAddr,
    },
    /// The administrator's socket; the caller may use it.
    AdminSocket {
        /// The caller, for the log.
        name: String,
    },
}

impl Connection {
    /// What lets this node's next handshakes be known for its own.
    fn ticket(&self, node: &Node) -> Option<HandshakeTicket> {
        let Connection::Tls { peer, tickets, .. } = self else { return None };
        tickets.of(&node.cluster, &node.name, peer.ip())
    }

    /// The other end, if it has an address.
    pub fn peer(&self) -> Option<SocketAddr> {
        match self {
            Connection::Tls { peer, .. } | Connection::Plain { peer } => Some(*peer),
            Connection::AdminSocket { .. } => None,
        }
    }
}

/// What of the configuration the verbs need.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Without a slash at its end.
    pub public_url: String,
    /// The port of the nodes' proxy.
    pub localhost_port: u16,
    /// Whether session tokens are served.
    pub session_tokens: bool,
    /// No request takes longer.
    pub request_patience: Duration,
    /// A new stream of a node ends its oldest.
    pub max_streams_per_node: usize,
    /// The host name of `public-url`.
    pub host: Option<String>,
}

/// Everything a request needs.
pub struct Server {
    /// What it does.
    pub vending: Arc<Vending>,
    /// Who asks.
    pub authenticator: Authenticator,
    /// How it answers.
    pub settings: Settings,
    /// What only an administrator asks.
    pub admin: admin::Admin,
    /// The nodes' standing streams.
    pub streams: stream::Streams,
    /// Refusals, for the log.
    pub refusals: refusal_log::RefusalLog,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Turns true once: streams end, connections finish what they do.
    pub stopping: watch::Receiver<bool>,
}

impl Server {
    /// Answers one request; never fails, never takes longer than the settings allow. `on_proof` is called as soon as the
    /// request has proven a node, a head or an administrator; the bearer of a token may be anybody.
    pub async fn handle<B>(
        self: &Arc<Self>,
        connection: &Connection,
        request: Request<B>,
        on_proof: impl Fn(),
    ) -> Response<answer::AnyBody>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let begun = Instant::now();
        let target = request.uri().path_and_query().map_or("/", |t| t.as_str()).to_owned();
        let method = request.method().clone();
        // Who reads the answer is known also where the target is not valid.
        let (route, callers, result) = match route::find(&method, &target) {
            Ok(found) => {
                let route = found.route;
                let result = self.authenticated(connection, found, &target, request, on_proof).await;
                (Some(route), Some(route.callers()), result)
            }
            Err((asked, refusal)) => (None, asked.map(Route::callers), Err((None, refusal))),
        };
        let (name, code) =
            (route.map_or("none", |route| route.name), result.as_ref().err().map_or("ok", |(_, r)| r.code()));
        self.vending.metrics().request(name, code, begun.elapsed());
        match result {
            Ok(reply) => reply.into_response(),
            Err((who, refusal)) => {
                if route.is_some_and(|route| route.callers() == Callers::Node) && who.is_none() {
                    self.vending.refused_at_the_door(&refusal);
                }
                let who = who.unwrap_or_else(|| "an unauthenticated caller".into());
                if let Some(route) = route.filter(|route| on_record_here(route, &refusal)) {
                    let peer = connection.peer().map(|peer| peer.ip().to_string());
                    let (by, request) = (Some(who.as_str()), Some(route.name));
                    let refused = Refused { by, peer, request, refusal: Some(&refusal), ..Refused::default() };
                    self.vending.audit().note(Event::Refused(refused));
                }
                self.refusals.note(&who, connection.peer(), method.as_str(), &target, &refusal);
                answer::refused(&refusal, callers == Some(Callers::Bearer)).into_response()
            }
        }
    }

    async fn authenticated<B>(
        self: &Arc<Self>,
        connection: &Connection,
        found: Found,
        target: &str,
        request: Request<B>,
        on_proof: impl Fn(),
    ) -> Result<Reply, (Option<String>, Refusal)>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let Found { route, work } = found;
        let call = |body| Call { server: self.clone(), connection: connection.clone(), body };
        let work = match work {
            Work::Everybody(answer) => return answer(call(Bytes::new()), ()).await.map_err(|refusal| (None, refusal)),
            work => work,
        };
        let (parts, body) = request.into_parts();
        let body = read_body(&parts.headers, body).await.map_err(|refusal| (None, refusal))?;
        let asked = principal::Asked { method: &parts.method, target, body: &body, headers: &parts.headers };
        let principal = self
            .authenticator
            .authenticate(connection, &asked, self.clock.now())
            .await
            .map_err(|refusal| (None, refusal))?;
        let who = principal.to_string();
        if !parts.headers.contains_key(header::AUTHORIZATION) {
            browser::refuse(connection, &principal, &asked, self.settings.host.as_deref())
                .map_err(|refusal| (Some(who.clone()), refusal))?;
        }
        if matches!(principal, Principal::Node(_) | Principal::Head(_) | Principal::Admin(_)) {
            on_proof();
        }
        // A caller that hangs up must not leave a revocation half done: the work goes on by itself.
        let work = tokio::spawn(dispatch(call(body), route.callers(), work, principal));
        let result = match tokio::time::timeout(self.settings.request_patience, work).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(Refusal::Internal(format!("a defect, please report it: {panic}"))),
            Err(_) => Err(Refusal::Unavailable(format!(
                "no answer within {} s; the work goes on, ask again",
                self.settings.request_patience.as_secs()
            ))),
        };
        result.map_err(|refusal| (Some(who), refusal))
    }
}

/// Gives a request to its handler, if the caller is one whom the route is for. Whatever is not listed is refused.
async fn dispatch(call: Call, callers: Callers, work: Work, principal: Principal) -> Result<Reply, Refusal> {
    match (work, principal) {
        (Work::Head(answer), Principal::Head(head)) => answer(call, head).await,
        (Work::HeadOrAdmin(answer), Principal::Head(head)) => answer(call, head.into()).await,
        (Work::HeadOrAdmin(answer), Principal::Admin(by)) => answer(call, Invalidator { by, clusters: None }).await,
        (Work::Bearer(answer), Principal::Bearer(token)) => answer(call, token).await,
        (Work::Node(answer), Principal::Node(node)) => answer(call, node).await,
        (Work::Admin(answer), Principal::Admin(name)) => answer(call, name).await,
        (_, principal) => Err(principal::not_allowed(&call.connection, callers, &principal)),
    }
}

/// Who proved nothing, and who may not what they ask for. What got as far as [`Vending`] is put on record there, where
/// more is known of it; what is no request at all is for the service's log.
fn on_record_here(route: &Route, refusal: &Refusal) -> bool {
    match refusal {
        Refusal::Unauthenticated(_) => route.callers() != Callers::Bearer,
        Refusal::NotAllowed { .. } | Refusal::WrongAddress { .. } => route.recorded,
        Refusal::BrowserRequest(_) => true,
        _ => false,
    }
}

/// The whole body, within [`MAX_BODY_BYTES`] and [`BODY_PATIENCE`].
async fn read_body<B>(headers: &hyper::HeaderMap, body: B) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let too_large = || Refusal::TooLarge(format!("a body has at most {MAX_BODY_BYTES} bytes"));
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > MAX_BODY_BYTES as u64) {
        return Err(too_large());
    }
    let whole = Limited::new(body, MAX_BODY_BYTES);
    match tokio::time::timeout(BODY_PATIENCE, async { std::pin::pin!(whole).collect().await }).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(Refusal::BadRequest(format!("the body cannot be read: {error}"))),
        Err(_) => Err(Refusal::BadRequest(format!("the body did not arrive within {} s", BODY_PATIENCE.as_secs()))),
    }
}
