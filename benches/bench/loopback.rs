//! An HTTP server on loopback: the pretend services of this bench, and the bare server that credd is compared with.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;

/// An answer's body: some bytes, or a line at once and another one from time to time.
pub enum Answer {
    /// All at once.
    Whole(Full<Bytes>),
    /// A first line, and then this one again and again.
    Lines { first: Option<Bytes>, then: Bytes, pause: Pin<Box<tokio::time::Sleep>> },
}

impl Answer {
    /// All at once.
    pub fn whole(body: impl Into<Bytes>) -> Self {
        Answer::Whole(Full::new(body.into()))
    }

    /// A stream that never ends.
    pub fn lines(first: String, then: String) -> Self {
        Answer::Lines { first: Some(first.into()), then: then.into(), pause: Box::pin(tokio::time::sleep(PAUSE)) }
    }
}

const PAUSE: Duration = Duration::from_secs(10);

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Answer::Whole(body) => Pin::new(body).poll_frame(cx),
            Answer::Lines { first, then, pause } => {
                if let Some(line) = first.take() {
                    return Poll::Ready(Some(Ok(Frame::data(line))));
                }
                std::task::ready!(pause.as_mut().poll(cx));
                pause.as_mut().reset(tokio::time::Instant::now() + PAUSE);
                Poll::Ready(Some(Ok(Frame::data(then.clone()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Answer::Whole(body) if body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::Whole(body) => body.size_hint(),
            Answer::Lines { .. } => SizeHint::default(),
        }
    }
}

/// Serves on a thread of its own until the program ends. The handler gets method, path with query, and body.
pub fn serve<H>(handler: H) -> Result<SocketAddr>
where
    H: Fn(&Method, &str, &[u8]) -> Response<Answer> + Send + Sync + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let handler = Arc::new(handler);
    std::thread::spawn(move || {
        let answer = move |request: Request<Incoming>| {
            let handler = handler.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
                Ok::<_, Infallible>(handler(&head.method, path, &body))
            }
        };
        run(listener, answer)
    });
    Ok(address)
}

/// Accepts and serves on this thread: one thread, no time-outs, no limits.
pub fn run<S, F, B>(listener: TcpListener, answer: S) -> Result<()>
where
    S: Fn(Request<Incoming>) -> F + Clone + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + 'static,
    B: Body<Data = Bytes, Error = Infallible> + 'static,
{
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            let answer = answer.clone();
            tokio::task::spawn_local(async move {
                // Whatever ends a connection is the client's matter.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            });
        }
    })
}
