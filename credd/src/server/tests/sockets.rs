//! Many connections, the users' socket, and a keeper that goes away.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use credd_protocol::Uid;
use credd_protocol::local::Response;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use super::super::whois::{Caller, WhoIs};
use super::house::{House, ask_on, in_a_house, own_uid};

async fn say(house: &House, line: &[u8]) -> Option<Response> {
    let mut stream = UnixStream::connect(&house.user_socket).await.unwrap();
    stream.write_all(line).await.unwrap();
    let mut all = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut all)).await;
    // Closing a socket with unread bytes in it resets the connection: that is an end, too.
    let _ = read.expect("the server ends it");
    serde_json::from_slice(&all).ok()
}

/// Who connects from 127.0.0.N is user N; from 127.0.0.1, the test's own.
struct BySource;

impl WhoIs for BySource {
    fn caller(&self, _: SocketAddr, peer: SocketAddr) -> Result<Caller, String> {
        match peer.ip() {
            IpAddr::V4(ip) if ip.octets()[3] != 1 => Ok(Caller::of(ip.octets()[3].into())),
            _ => Ok(Caller::of(own_uid())),
        }
    }
}

async fn connect_as(house: &House, user: u8) -> BufReader<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, user], 0))).unwrap();
    BufReader::new(socket.connect(house.endpoint).await.unwrap())
}

#[test]
fn a_few_users_idle_connections_do_not_keep_others_waiting() {
    in_a_house(async || {
        let mut house = House::with(|plan, _| {
            plan.settings.limits.endpoint = super::super::watch::Bounds { all: 64, per_user: 16, strangers: 8 };
            // Nothing is closed for its age: a place comes free at once, or never.
            plan.settings.limits.idle = Duration::from_secs(3600);
            plan.whois = Box::new(BySource);
        })
        .await;
        for user in 2..=5u8 {
            house.job_with(100 + u32::from(user), |job| job.uid = Uid(user.into())).await;
        }
        let (_, token) = house.job(7).await;
        let port = house.endpoint.port();
        // One that was there before them, and has been served.
        let mut first = house.connect().await;
        assert_eq!(ask_on(&mut first, port, 7, &token).await.status, 200);
        let mut crowd = Vec::new();
        for _ in 0..20 {
            for user in 2..=5u8 {
                crowd.push(connect_as(&house, user).await);
            }
        }
        for _ in 0..20 {
            assert_eq!(house.ask(7, &token).await.status, 200);
        }
        assert_eq!(ask_on(&mut first, port, 7, &token).await.status, 200, "its own connection was never closed");
    });
}

#[test]
fn silent_users_at_the_users_socket_make_room() {
    in_a_house(async || {
        let house = House::with(|plan, _| {
            plan.settings.limits.user_socket = super::super::watch::Bounds { all: 2, per_user: 2, strangers: 2 };
            plan.settings.limits.user_socket_patience = Duration::from_secs(3600);
        })
        .await;
        let mut silent = Vec::new();
        for _ in 0..4 {
            silent.push(UnixStream::connect(&house.user_socket).await.unwrap());
        }
        assert!(matches!(say(&house, b"{\"op\":\"health\"}\n").await, Some(Response::Health(_))));
        for stream in &mut silent[..3] {
            assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap_or(0), 0);
        }
        let last = tokio::time::timeout(Duration::from_millis(20), silent[3].read_to_end(&mut Vec::new())).await;
        assert!(last.is_err(), "only as many as needed make room");
    });
}

#[test]
fn users_see_their_own_jobs() {
    in_a_house(async || {
        let mut house = House::new().await;
        house.job(7).await;
        house.job_with(8, |job| job.uid = Uid(own_uid() + 1)).await;
        let health = || say(&house, b"{\"op\":\"health\"}\n");
        while !matches!(health().await, Some(Response::Health(health)) if health.jobs == 2) {}
        let Some(Response::Status(jobs)) = say(&house, b"{\"op\":\"status\"}\n").await else { panic!("status") };
        let ids: Vec<u32> = jobs.iter().map(|job| job.job.get()).collect();
        // Root sees all.
        assert_eq!(ids, if own_uid() == 0 { vec![8, 7] } else { vec![7] });
        assert_eq!(jobs.last().unwrap().state, "opening");
    });
}

#[test]
fn other_lines_are_errors_or_ends() {
    in_a_house(async || {
        let house = House::new().await;
        for line in [
            &b"{\"op\":\"outcome\",\"job\":7,\"wait-ms\":1}\n"[..],
            b"{\"op\":\"started\",\"job\":7}\n",
            b"\n",
            b"\xff\xfe\n",
            b"{}\n",
        ] {
            assert!(matches!(say(&house, line).await, Some(Response::Error(_))), "{line:?}");
        }
        assert!(!matches!(say(&house, &vec![b'x'; 10_000]).await, Some(Response::Health(_))));
        // Nothing said: the server does not wait for ever.
        assert!(say(&house, b"").await.is_none());
    });
}

/// Bytes that look a little like a request, and bytes that do not.
fn noise() -> Vec<Vec<u8>> {
    let pieces = proptest::sample::select(vec![
        &b"GET "[..],
        b"/sessions/7/cluster/lab/project/p",
        b" HTTP/1.1\r\n",
        b" HTTP/1.0\r\n",
        b"Host: 127.0.0.1:9999\r\n",
        b"Authorization: ",
        b"credd1-",
        b"\r\n",
        b"\r\n\r\n",
        b"Content-Length: 99999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"{\"op\":\"health\"",
        b"{\"op\":\"status\"}\n",
        b"}\n",
        b"\0",
        b"\xff\xfe",
        b"Connection: upgrade\r\n",
        b"Expect: 100-continue\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]);
    let piece = prop_oneof![
        3 => pieces.prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 0..60),
    ];
    let text = proptest::collection::vec(piece, 1..12).prop_map(|pieces| pieces.concat());
    let mut runner = TestRunner::deterministic();
    (0..150).map(|_| text.new_tree(&mut runner).unwrap().current()).collect()
}

#[test]
fn no_bytes_at_the_endpoint_or_the_users_socket_hurt_the_server() {
    in_a_house(async || {
        let mut house = House::with(|plan, _| plan.settings.limits.idle = Duration::from_millis(50)).await;
        let (_, token) = house.job(7).await;
        for text in noise() {
            let mut stream = house.connect().await;
            let _ = stream.write_all(&text).await;
            let _ = stream.shutdown().await;
            let mut all = Vec::new();
            let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut all)).await;
            assert!(read.is_ok(), "held open by {:?}", String::from_utf8_lossy(&text));
            assert!(!String::from_utf8_lossy(&all).contains("AccessKeyId"));
        }
        for mut text in noise() {
            text.push(b'\n');
            let _ = say(&house, &text).await;
        }
        assert_eq!(house.ask(7, &token).await.status, 200);
    });
}

#[test]
fn the_first_handshake_asks_for_what_credvend_answers_to_anybody() {
    in_a_house(async || {
        let house = House::new().await;
        let unsigned = house.credvend.script.borrow().unsigned.clone();
        assert!(!unsigned.is_empty() && unsigned.iter().all(|path| path == "/health"), "{unsigned:?}");
    });
}

#[test]
fn a_keeper_that_is_gone_ends_the_server() {
    in_a_house(async || {
        let house = House::new().await;
        let server = house.keeper_goes();
        let served = tokio::time::timeout(Duration::from_secs(5), server).await.expect("ends").unwrap();
        assert!(served.unwrap_err().to_string().contains("keeper"));
    });
}
