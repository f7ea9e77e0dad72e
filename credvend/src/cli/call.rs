//! One HTTP request on one connection: to the administrators' socket, or to credvend over TLS.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::config::Config;

/// A revocation waits for AWS; nothing else takes this long.
const PATIENCE: Duration = Duration::from_secs(90);
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// An answer's status and body.
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
}

/// Sends one request over an open connection.
pub async fn send(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<Answer> {
    // Header names as HTTP/1.1 programs write them: the original IAM Credentials API looks up `Authorization` with its capital.
    let mut http = hyper::client::conn::http1::Builder::new();
    http.title_case_headers(true);
    let (mut sender, connection) = http.handshake(TokioIo::new(io)).await?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
    driver.abort();
    match body {
        Ok(body) => Ok(Answer { status, body: body.to_bytes() }),
        Err(error) => bail!("the answer cannot be read: {error}"),
    }
}

/// Asks the running service as an administrator.
pub fn admin<T: DeserializeOwned>(config: &Config, method: Method, path: &str) -> anyhow::Result<T> {
    super::block_on(ask(config, method, path, Full::new(Bytes::new())))?
}

/// The same with a body.
pub fn admin_with<T: DeserializeOwned>(
    config: &Config,
    method: Method,
    path: &str,
    body: &impl Serialize,
) -> anyhow::Result<T> {
    let body = json(body)?;
    super::block_on(ask(config, method, path, body))?
}

/// One request of an administrator's.
pub async fn ask<T: DeserializeOwned>(
    config: &Config,
    method: Method,
    path: &str,
    body: Full<Bytes>,
) -> anyhow::Result<T> {
    let asking = async {
        let io = connect(&config.admin_socket).await?;
        let request = Request::builder().method(method).uri(path).header(header::HOST, "admin-socket").body(body)?;
        let answer = send(io, request).await.context("credvend hung up; see its log (is this user allowed there?)")?;
        // 409 is a reload that did not take everything; its body says what.
        if !answer.status.is_success() && answer.status != StatusCode::CONFLICT {
            let why = serde_json::from_slice::<credd_protocol::node_api::ApiError>(&answer.body);
            bail!("{}", why.map_or_else(|_| format!("credvend answered {}", answer.status), |error| error.message));
        }
        serde_json::from_slice(&answer.body).context("credvend's answer is not understood; is it another version?")
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .with_context(|| format!("no answer within {} s", PATIENCE.as_secs()))?
}

async fn connect(socket: &Path) -> anyhow::Result<tokio::net::UnixStream> {
    tokio::net::UnixStream::connect(socket).await.with_context(|| {
        format!("credvend cannot be reached at {} (admin-socket); is `credvend serve` running?", socket.display())
    })
}

/// A JSON body.
pub fn json(value: &impl Serialize) -> anyhow::Result<Full<Bytes>> {
    Ok(Full::new(Bytes::from(serde_json::to_vec(value)?)))
}
