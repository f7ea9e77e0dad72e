//! Bounds, and requests that are no requests.

use credd_protocol::node_api::MAX_BODY_BYTES;
use hyper::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::world::{DEADLINE, SECRET, World, request};

#[tokio::test]
async fn a_body_is_bounded_whether_or_not_it_says_so() {
    let world = World::start().await;
    let large = " ".repeat(MAX_BODY_BYTES);
    let seen = world.call(None, request(Method::POST, "/sessions", Some(SECRET), &large)).await;
    assert_eq!(seen.status, 400, "just as long as allowed");
    let seen = world.call(None, request(Method::POST, "/sessions", Some(SECRET), &format!("{large} "))).await;
    assert_eq!(seen.refusal(), (413, "TooLarge".into()));
    let chunk = format!("{:x}\r\n{large}\r\n", large.len());
    let text = format!(
        "POST /sessions HTTP/1.1\r\nhost: x\r\nauthorization: {SECRET}\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n"
    );
    assert!(raw(&world, text.as_bytes()).await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test]
async fn what_is_not_quite_http_is_refused() {
    let world = World::start().await;
    let long = "x".repeat(40_000);
    for (text, expected) in [
        (format!("GET /health HTTP/1.1\r\nhost: x\r\nx: {long}\r\n\r\n"), "HTTP/1.1 431 "),
        (format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(5_000)), "HTTP/1.1 400 "),
        (
            "GET /admin/v1/status HTTP/1.1\r\nhost: x\r\nauthorization: a\r\nauthorization: b\r\n\r\n".into(),
            "HTTP/1.1 401 ",
        ),
        ("GET /sessions/%ff/cluster/a/project/b HTTP/1.1\r\nhost: x\r\n\r\n".into(), "HTTP/1.1 400 "),
        ("BREW /sessions HTTP/1.1\r\nhost: x\r\n\r\n".into(), "HTTP/1.1 405 "),
        ("\u{16}\u{3}\u{1} nonsense\r\n\r\n".into(), "HTTP/1.1 400 "),
    ] {
        let seen = raw(&world, text.as_bytes()).await;
        assert!(seen.starts_with(expected), "{expected} for {:?}, not {seen:?}", &text[..text.len().min(60)]);
    }
}

#[tokio::test]
async fn an_address_has_only_so_many_connections() {
    let world = World::with(None, 4).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(("127.0.0.1", world.plain_port)).await.unwrap();
        // An answer shows that it has been taken in.
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut first = [0u8; 12];
        stream.read_exact(&mut first).await.unwrap();
        open.push(stream);
    }
    let mut fifth = TcpStream::connect(("127.0.0.1", world.plain_port)).await.unwrap();
    let mut nothing = [0u8; 1];
    let read = tokio::time::timeout(DEADLINE, fifth.read(&mut nothing)).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert!(world.metrics.text().contains("credvend_connections_refused_total 1\n"));
    // The administrators' socket is not among them.
    assert_eq!(world.call_admin(request(Method::GET, "/admin/v1/status", None, "")).await.status, 200);
}

async fn raw(world: &World, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", world.plain_port)).await.unwrap();
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}
