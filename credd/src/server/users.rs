//! The users' socket: everybody may connect; the kernel says who it is (SO_PEERCRED), and a user sees its own jobs.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use credd_protocol::local::{Request, Response};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::Server;
use super::status::Reader;

/// A request has some twenty bytes.
const MAX_REQUEST_BYTES: u64 = 1024;

/// Accepts connections for as long as the server lives.
pub async fn accept(server: Rc<Server>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => admit(&server, stream),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection at the users' socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves it if there is a place; without one it is closed.
fn admit(server: &Rc<Server>, stream: UnixStream) {
    let Ok(uid) = stream.peer_cred().map(|creds| creds.uid()) else { return };
    let load = server.load(uid);
    let Some(watched) = server.user_watch.admit(&load.user_socket, false) else { return };
    let server = server.clone();
    tokio::task::spawn_local(async move {
        let _load = load;
        // A client that is gone or slow is its own matter.
        let exchange = pin!(exchange(&server, uid, stream));
        let _ = tokio::time::timeout(server.settings.get().limits.user_socket_patience, watched.run(exchange)).await;
    });
}

/// One request, one answer.
async fn exchange(server: &Server, uid: u32, mut stream: UnixStream) -> std::io::Result<()> {
    let (read, mut write) = stream.split();
    let mut line = Vec::new();
    BufReader::new(read).take(MAX_REQUEST_BYTES).read_until(b'\n', &mut line).await?;
    let mut answer = serde_json::to_vec(&respond(server, uid, &line)).expect("plain values");
    answer.push(b'\n');
    write.write_all(&answer).await
}

fn respond(server: &Server, uid: u32, line: &[u8]) -> Response {
    if !line.ends_with(b"\n") {
        return Response::Error(format!("a request is a line of JSON of at most {MAX_REQUEST_BYTES} bytes"));
    }
    match serde_json::from_slice::<Request>(line) {
        Ok(Request::Health) => Response::Health(server.health(Reader::of_uid(uid))),
        Ok(Request::Metrics) => Response::Metrics(server.metrics_text()),
        Ok(Request::Status) => Response::Status(server.jobs_of((uid != 0).then_some(uid))),
        Ok(_) => Response::Error("this socket answers health, status and metrics only".to_owned()),
        Err(_) => Response::Error("the request is not understood; health, status and metrics are".to_owned()),
    }
}
