//! The endpoint that the jobs' SDKs ask: plain HTTP on the node's loopback.
//!
//! Every connection's other end is looked up once, when it is accepted: the kernel's answer holds for as long as the
//! connection is the same. Every request of it must be of a job of that uid.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use credd_protocol::TokenHash;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use super::answer::{self, Body, Denial};
use super::jobs::Run;
use super::last_asked::LastAsked;
use super::watch::{self, Close};
use super::whois::Caller;
use super::{Load, STOP_PATIENCE, Server, gate, newcomer, own, vend};

/// hyper answers 431 to longer heads, and to more than its own hundred headers (a bound of ours would cost time).
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// In a stop: how long a connection may still ask.
const STILL_ASKS: Duration = Duration::from_secs(1);
/// Connections whose caller the kernel does not name are counted together under this.
const NOBODY: u32 = u32::MAX;

/// Accepts connections until the task is aborted. Where there are too many, [`super::watch`] says which one goes.
pub async fn accept(server: Rc<Server>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => admit(&server, stream, peer),
            Err(error) => {
                // EMFILE and its like pass when others close; ECONNABORTED at once.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Asks the kernel who it is, and serves it if there is a place; without one it is closed.
fn admit(server: &Rc<Server>, stream: TcpStream, peer: SocketAddr) {
    let caller = match stream.local_addr() {
        Ok(local) => server.whois.caller(local, peer),
        Err(error) => Err(error.to_string()),
    };
    let load = server.load(caller.as_ref().map_or(NOBODY, |caller| caller.uid.0));
    let stranger = !caller.as_ref().is_ok_and(|caller| server.jobs.borrow().has_job_of(caller.uid));
    let Some(watched) = server.watch.admit(&load.endpoint, stranger) else { return };
    let server = server.clone();
    tokio::task::spawn_local(async move { connection(&server, stream, watched, caller, &load).await });
}

async fn connection(
    server: &Rc<Server>,
    stream: TcpStream,
    watched: watch::Connection,
    caller: Result<Caller, String>,
    load: &Load,
) {
    let _ = stream.set_nodelay(true);
    let last = LastAsked::default();
    let service = service_fn(|request| respond(server, &watched, &caller, load, &last, request));
    let mut http = http1::Builder::new();
    http.max_buf_size(MAX_HEAD_BYTES);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    // Whatever else ends a connection is the client's matter.
    if watched.run(connection.as_mut()).await != Some(Close::Stopping) {
        return;
    }
    // Who has just been accepted is about to ask, and who keeps a connection may be asking at this moment. Both would see it
    // closed instead of an answer, also by hyper's graceful shutdown. So what is asked soon is answered, and `respond` adds
    // that this was the last answer.
    if tokio::time::timeout(STILL_ASKS, connection.as_mut()).await.is_err() && watched.is_answering() {
        let _ = tokio::time::timeout(STOP_PATIENCE, connection).await;
    }
}

async fn respond(
    server: &Rc<Server>,
    watched: &watch::Connection,
    caller: &Result<Caller, String>,
    load: &Load,
    last: &LastAsked,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let _answering = watched.answering();
    let mut response = match credentials(server, caller, load, last, &request).await {
        Ok(body) => answer::json(body),
        Err(denial) => {
            server.metrics.denied(denial.code());
            server.denials.borrow_mut().note(&denial, caller);
            denial.response()
        }
    };
    if server.watch.is_stopping() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// The checks in their order, then the credentials.
async fn credentials<B>(
    server: &Rc<Server>,
    caller: &Result<Caller, String>,
    load: &Load,
    last: &LastAsked,
    request: &Request<B>,
) -> Result<Bytes, Denial> {
    let head = match gate::head(request.method(), request.uri(), request.headers(), &server.hosts) {
        Err(gate::Wrong::Method) if gate::is_own(request.method(), request.uri()) => {
            let own = gate::own(request.uri(), request.headers(), &server.hosts).map_err(Denial::Head)?;
            return Box::pin(own::answer(server, caller, load, own)).await;
        }
        head => head.map_err(Denial::Head)?,
    };
    if let Some(run) = last.run(head.path(), head.token) {
        of_the_jobs_user(&run, caller)?;
        return vend::serve(server, &run, load).await;
    }
    let asked = head.asked().map_err(Denial::Head)?;
    let token = TokenHash::of(asked.token);
    let known = server.jobs.borrow().by_token(&token).cloned();
    let run = match known {
        Some(run) => newcomer::of_the_path(run, asked.job)?,
        // Boxed, as is every wait: the usual answer's future stays small.
        None => Box::pin(newcomer::run_of(server, caller, load, &asked, &token)).await?,
    };
    of_the_jobs_user(&run, caller)?;
    last.remember(head.path(), asked.token, &run);
    vend::serve(server, &run, load).await
}

/// The kernel says that the connection's other end is the job's user.
fn of_the_jobs_user(run: &Run, caller: &Result<Caller, String>) -> Result<(), Denial> {
    match caller {
        Ok(caller) if caller.uid == run.job.uid => Ok(()),
        Ok(caller) => Err(Denial::OtherUser { job: run.job.job, caller: caller.uid }),
        Err(why) => Err(Denial::NoCaller(why.clone())),
    }
}
