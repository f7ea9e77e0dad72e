//! `GET /metrics`, on a socket of its own: nobody who may ask there proves anything, so it is for this host alone unless
//! the configuration says otherwise, and nothing of a user, job or node is on it.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::Server;
use super::tls::Certificates;
use super::tls::expiry::Expiring;
use crate::metrics::CONTENT_TYPE;

/// Prometheus needs one.
const CONNECTIONS: usize = 16;
/// A connection lasts no longer, whatever it does.
const PATIENCE: Duration = Duration::from_secs(60);

/// Serves the page until the service stops.
pub async fn serve(server: Arc<Server>, listener: TcpListener, certificates: Option<Arc<Certificates>>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut stopping = server.stopping.clone();
    loop {
        let accepted = tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        // Too many: closed without an answer.
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (server, certificates) = (server.clone(), certificates.clone());
        let mut stopping = server.stopping.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => {}
                _ = tokio::time::timeout(PATIENCE, connection(server, stream, certificates)) => {}
            }
            drop(place);
        });
    }
}

async fn connection(server: Arc<Server>, stream: TcpStream, certificates: Option<Arc<Certificates>>) -> io::Result<()> {
    let service = service_fn(move |request| {
        let page = page(&server, certificates.as_deref(), &request);
        async move { Ok::<_, Infallible>(page) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}

fn page<B>(server: &Server, certificates: Option<&Certificates>, request: &Request<B>) -> Response<Full<Bytes>> {
    let (status, content_type, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            server.look_at_gauges(certificates);
            (StatusCode::OK, CONTENT_TYPE, server.vending.metrics().text())
        }
        _ => (StatusCode::NOT_FOUND, "text/plain", "GET /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

impl Server {
    /// What is not counted as it happens. Asks neither store nor Slurm: the page is there when they are not.
    fn look_at_gauges(&self, certificates: Option<&Certificates>) {
        let metrics = self.vending.metrics();
        for (cluster, _) in &self.admin.about.clusters {
            metrics.nodes_connected(cluster, self.streams.nodes_of(cluster));
        }
        self.vending.look_at_gauges();
        let Some(live) = certificates.map(Certificates::live) else { return };
        let of = |what| live.expiries.iter().filter(move |expiry| expiry.what == what);
        let first = |time: Option<OffsetDateTime>| time.map_or(0, OffsetDateTime::unix_timestamp);
        metrics.client_crl_expires(
            first(of(Expiring::ClientCrl).map(|expiry| expiry.at).min()),
            first(of(Expiring::ClientCrl).map(|expiry| expiry.warn_from).min()),
        );
        for (certificate, what) in [("server", Expiring::Server), ("client-ca", Expiring::ClientCa)] {
            if let Some(at) = of(what).map(|expiry| expiry.at).min() {
                metrics.certificate_expires(certificate, at);
            }
        }
    }
}
