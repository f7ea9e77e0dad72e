//! The users' socket: everybody may connect; the kernel says who it is (SO_PEERCRED), and a user sees its own jobs.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use credd_protocol::local::{Request, Response};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::{Counted, Server};

/// A request has some twenty bytes.
const MAX_REQUEST_BYTES: u64 = 1024;
/// For the whole exchange.
const PATIENCE: Duration = Duration::from_secs(2);

/// Accepts connections for as long as the server lives.
pub async fn accept(server: Rc<Server>, listener: UnixListener) {
    let places = Arc::new(Semaphore::new(server.settings.limits.user_socket_connections));
    loop {
        let permit = places.clone().acquire_owned().await.expect("never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = server.clone();
                tokio::task::spawn_local(async move {
                    // A client that is gone or slow is its own matter.
                    let _ = tokio::time::timeout(PATIENCE, exchange(&server, stream)).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection at the users' socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One request, one answer.
async fn exchange(server: &Server, mut stream: UnixStream) -> std::io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let load = server.load(uid);
    let Some(_counted) = Counted::one(&load.user_socket, server.settings.limits.user_socket_connections_per_user)
    else {
        return Ok(());
    };
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
        Ok(Request::Health) => Response::Health(server.health()),
        Ok(Request::Metrics) => Response::Metrics(server.metrics_text()),
        Ok(Request::Status) => Response::Status(server.jobs_of((uid != 0).then_some(uid))),
        Ok(_) => Response::Error("this socket answers health, status and metrics only".to_owned()),
        Err(_) => Response::Error("the request is not understood; health, status and metrics are".to_owned()),
    }
}
