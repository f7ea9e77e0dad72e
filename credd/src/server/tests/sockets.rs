//! The users' socket, and a keeper that goes away.

use std::time::Duration;

use credd_protocol::Uid;
use credd_protocol::local::Response;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::house::{House, in_a_house, own_uid};

async fn say(house: &House, line: &[u8]) -> Option<Response> {
    let mut stream = UnixStream::connect(&house.user_socket).await.unwrap();
    stream.write_all(line).await.unwrap();
    let mut all = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut all)).await;
    // Closing a socket with unread bytes in it resets the connection: that is an end, too.
    let _ = read.expect("the server ends it");
    serde_json::from_slice(&all).ok()
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

#[test]
fn a_keeper_that_is_gone_ends_the_server() {
    in_a_house(async || {
        let house = House::new().await;
        let server = house.keeper_goes();
        let served = tokio::time::timeout(Duration::from_secs(5), server).await.expect("ends").unwrap();
        assert!(served.unwrap_err().to_string().contains("keeper"));
    });
}
