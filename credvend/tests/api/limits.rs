//! Bounds, and requests that are no requests.

use std::time::Duration;

use credd_protocol::handshake_ticket;
use credd_protocol::node_api::MAX_BODY_BYTES;
use credvend::server::connections::Bounds;
use hyper::Method;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::world::{DEADLINE, Identity, SECRET, World, request};

/// For what the server does in its own time, on a machine that does much else.
const LONG: Duration = Duration::from_secs(60);

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

/// Asked with a token that nobody gave.
const TOKENS: &str = "/sessions/1/cluster/lab/project/genomics";

/// A kept connection, asked once.
struct Kept(TlsStream<TcpStream>);

impl Kept {
    async fn ask(&mut self, target: &str) -> std::io::Result<u16> {
        let stream = &mut self.0;
        let token = if target.starts_with("/sessions/") { "authorization: what-nobody-gave\r\n" } else { "" };
        stream.write_all(format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n{token}\r\n").as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
        let mut body = vec![0; length.unwrap_or("0").parse().unwrap()];
        stream.read_exact(&mut body).await?;
        Ok(head["http/1.1 ".len()..][..3].parse().unwrap())
    }

    /// Waits until the other end closes it.
    async fn closed(mut self) {
        let end = tokio::time::timeout(LONG, self.0.read_u8()).await.expect("it stays open");
        assert!(end.is_err(), "{end:?}");
    }
}

async fn kept(world: &World, who: Option<&Identity>, target: &str) -> Kept {
    let mut kept = Kept(world.handshake(who).await.unwrap());
    kept.ask(target).await.unwrap();
    kept
}

#[tokio::test]
async fn an_address_has_only_so_many_connections() {
    let world = World::with(None, 4).await;
    let node = world.certificate("credd:node:lab:n1");
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(kept(&world, Some(&node), "/admin/v1/status").await);
    }
    let mut fifth = TcpStream::connect(("127.0.0.1", world.port)).await.unwrap();
    let mut nothing = [0u8; 1];
    let read = tokio::time::timeout(DEADLINE, fifth.read(&mut nothing)).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert!(world.metrics.text().contains("credvend_connections_refused_total 1\n"));
    for kept in &mut open {
        assert_eq!(kept.ask("/admin/v1/status").await.unwrap(), 403, "what proved a node goes on");
    }
    // The administrators' socket is not among them.
    assert_eq!(world.call_admin(request(Method::GET, "/admin/v1/status", None, "")).await.status, 200);
}

#[tokio::test]
async fn connections_without_proof_do_not_keep_a_nodes_own_out() {
    let bounds = Bounds { unauthenticated_per_address: 3, handshakes_per_address: 1000, ..Bounds::of(64, 8) };
    let world = World::bounded(None, bounds).await;
    let certificate = world.certificate("credd:node:lab:n1");
    let mut node = kept(&world, Some(&certificate), "/admin/v1/status").await;
    // A user of the node opens as many as it can; some say nothing at all, others show a token of their own making.
    let (mut silent, mut talking) = (vec![], vec![]);
    for _ in 0..10 {
        silent.push(TcpStream::connect(("127.0.0.1", world.port)).await.unwrap());
        talking.push(kept(&world, None, TOKENS).await);
    }
    assert_eq!(node.ask("/admin/v1/status").await.unwrap(), 403, "the node's connection is still its own");
    let mut another = kept(&world, Some(&certificate), "/admin/v1/status").await;
    assert_eq!(another.ask("/admin/v1/status").await.unwrap(), 403, "and it gets further ones");
    // The oldest went first, and at once: not when it would have been late.
    talking.remove(0).closed().await;
    let text = world.metrics.text();
    let crowded = |line: &&str| line.starts_with("credvend_connections_closed_total{reason=\"crowded\"}");
    let count: u32 = text.lines().find(crowded).unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(count >= 15, "{count}");
    assert!(text.contains("credvend_connections_refused_total 0\n"), "{text}");
}

#[tokio::test]
async fn a_connection_that_proves_nothing_has_a_few_seconds_for_each_request() {
    let world = World::start().await;
    let certificate = world.certificate("credd:node:lab:n1");
    let mut node = kept(&world, Some(&certificate), "/admin/v1/status").await;
    let silent = TcpStream::connect(("127.0.0.1", world.plain_port)).await.unwrap();
    let (shaken, asked) = (Kept(world.handshake(None).await.unwrap()), kept(&world, None, "/health").await);
    let mut slow = TcpStream::connect(("127.0.0.1", world.plain_port)).await.unwrap();
    slow.write_all(b"GET /health HTTP/1.1\r\nhost").await.unwrap();
    shaken.closed().await;
    asked.closed().await;
    for mut stream in [silent, slow] {
        let end = tokio::time::timeout(LONG, stream.read_u8()).await.expect("it stays open");
        assert!(end.is_err());
    }
    assert!(world.metrics.text().contains("credvend_connections_closed_total{reason=\"late\"} 4\n"));
    assert_eq!(node.ask("/admin/v1/status").await.unwrap(), 403, "a node's connection is kept");
}

/// Pipelines requests until nothing more is taken; how many went out whole.
async fn pipeline(stream: &mut TlsStream<TcpStream>) -> usize {
    let mut sent = 0;
    let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    loop {
        match tokio::time::timeout(Duration::from_secs(3), stream.write_all(request)).await {
            Ok(Ok(())) => sent += 1,
            _ => return sent,
        }
        assert!(sent < 50_000, "all that is asked is taken, whether or not its answers are");
    }
}

#[tokio::test]
async fn who_does_not_read_its_answers_is_cut_off_and_who_reads_late_gets_them_all() {
    let world = World::start().await;
    let certificate = world.certificate("credd:node:lab:n1");
    let connection = async || {
        let Kept(stream) = kept(&world, Some(&certificate), "/admin/v1/status").await;
        // What this side's kernel takes is no matter of the server's.
        setsockopt(stream.get_ref().0, sockopt::RcvBuf, &65_536).unwrap();
        setsockopt(stream.get_ref().0, sockopt::SndBuf, &65_536).unwrap();
        stream
    };
    let mut late = connection().await;
    let sent = pipeline(&mut late).await;
    let (mut late, mut write) = tokio::io::split(late);
    // Some requests are still in this side's hands.
    let flushed = tokio::spawn(async move { write.flush().await.map(|()| write) });
    let (mut answers, mut rest) = (0, Vec::new());
    while answers < sent {
        let read = tokio::time::timeout(LONG, late.read_buf(&mut rest)).await.expect("answers stop");
        let read = read.unwrap_or_else(|error| panic!("{answers} of {sent}: {error}"));
        assert!(read > 0, "{answers} of {sent}");
        let text = String::from_utf8_lossy(&rest).into_owned();
        answers += text.matches("HTTP/1.1 200").count();
        // What may be the beginning of the next one.
        rest.drain(..text.rfind("HTTP/1.1 200").map_or(0, |at| at + 1));
    }
    flushed.await.unwrap().unwrap();
    let mut deaf = connection().await;
    pipeline(&mut deaf).await;
    let cut = async {
        while !world.metrics.text().contains("credvend_connections_closed_total{reason=\"unread\"} 1\n") {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(LONG, cut).await.expect("it is not cut off");
}

#[tokio::test]
async fn an_address_makes_only_so_many_handshakes() {
    let bounds = Bounds { handshakes_per_address: 1, ..Bounds::of(64, 8) };
    let world = World::bounded(None, bounds).await;
    let mut made = 0;
    while let Ok(stream) = world.handshake(None).await {
        drop(stream);
        made += 1;
        assert!(made < 60, "handshakes have no rate");
    }
    assert!(made >= 8, "a node that comes back needs a few: {made}");
    assert!(world.metrics.text().contains("credvend_connections_refused_total 1\n"));
    // It gets the next one soon.
    let again = async {
        while world.handshake(None).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(LONG, again).await.expect("it never gets another");
}

/// A user of the address who does nothing but open connections, silent ones and beginnings of handshakes by turns, until
/// this is dropped.
struct Flood {
    _callers: tokio::task::JoinSet<()>,
}

impl Flood {
    fn of(world: &World) -> Self {
        let mut tasks = tokio::task::JoinSet::new();
        for hello in [vec![], world.hello(), world.hello()] {
            let port = world.port;
            tasks.spawn(async move {
                let mut open = std::collections::VecDeque::new();
                loop {
                    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                    let _ = stream.write_all(&hello).await;
                    open.push_back(stream);
                    if open.len() > 64 {
                        open.pop_front();
                    }
                }
            });
        }
        Flood { _callers: tasks }
    }
}

/// What the standing stream of this node gives it.
async fn ticket_of(world: &World, node: &Identity) -> String {
    let stream = world.open(Some(node), request(Method::GET, "/node/v1/stream", None, "")).await.unwrap();
    stream.headers()[handshake_ticket::HEADER].to_str().unwrap().to_owned()
}

/// How many of so many attempts get an answer over a connection of their own.
async fn served(world: &World, node: &Identity, ticket: Option<&str>, attempts: usize) -> usize {
    let mut served = 0;
    for _ in 0..attempts {
        let Ok(stream) = world.handshake_with(Some(node), ticket).await else { continue };
        if matches!(Kept(stream).ask("/admin/v1/status").await, Ok(403)) {
            served += 1;
        }
    }
    served
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_its_address_keeps_no_node_out_that_has_a_ticket() {
    let bounds = Bounds { handshakes_per_address: 1, ..Bounds::of(1024, 256) };
    let world = World::bounded(None, bounds).await;
    let (node, neighbour) = (world.certificate("credd:node:lab:n1"), world.certificate("credd:node:lab:n2"));
    let (ticket, other) = (ticket_of(&world, &node).await, ticket_of(&world, &neighbour).await);
    assert_ne!(ticket, other);
    let _flood = Flood::of(&world);
    let used_up = async { while world.handshake(None).await.is_ok() {} };
    tokio::time::timeout(LONG, used_up).await.expect("the address has handshakes without end");
    let refused = served(&world, &node, None, 20).await;
    assert!(refused < 10, "the flood is none: {refused} of 20 without a ticket");
    let forged = format!("{}{}", &ticket[..ticket.len() - 2], if ticket.ends_with("00") { "01" } else { "00" });
    let refused = served(&world, &node, Some(&forged), 20).await;
    assert!(refused < 10, "{refused} of 20 with a ticket of its own making");
    // Behind the same address, each has its own. A connection may be crowded out before its first message was read.
    for (who, ticket) in [(&node, &ticket), (&neighbour, &other)] {
        let let_in = served(&world, who, Some(ticket), 20).await;
        assert!(let_in >= 15, "{let_in} of 20");
    }
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
