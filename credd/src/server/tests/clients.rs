//! What real clients send, byte for byte, as `testbed/capture-clients` recorded it (`credd/tests/clients/*.json`).

use credd_protocol::{JobToken, TokenHash};
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;

use super::house::{House, in_a_house, read_answer};
use crate::control::RunId;

/// As capture-clients has it.
const TOKEN: &str = "credd1-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[derive(Deserialize)]
struct Fixture {
    client: String,
    connections: Vec<Vec<String>>,
}

fn fixtures() -> Vec<Fixture> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");
    let files = std::fs::read_dir(directory).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    files.map(|text| serde_json::from_slice(&text).unwrap()).collect()
}

#[test]
fn every_client_is_served_as_it_asks() {
    in_a_house(async || {
        let mut house = House::new().await;
        let token = TokenHash::of(TOKEN.parse::<JobToken>().unwrap().expose());
        house.job_with(7, |job| (job.run, job.token) = (RunId::of(token), token)).await;
        let fixtures = fixtures();
        assert!(fixtures.len() >= 22, "{} clients", fixtures.len());
        // The house's port is the kernel's choice; all else is the client's.
        let own_port = format!("127.0.0.1:{}", house.endpoint.port());
        for Fixture { client, connections } in fixtures {
            assert!(connections.iter().flatten().any(|request| request.contains(TOKEN)), "{client}");
            for requests in connections {
                let mut stream = house.connect().await;
                for request in requests {
                    let sent = request.replace("127.0.0.1:9999", &own_port);
                    stream.write_all(sent.as_bytes()).await.unwrap();
                    let answer = read_answer(&mut stream).await;
                    assert_eq!((answer.status, answer.word().as_str()), (200, "ASIA0001"), "{client}: {request:?}");
                }
            }
        }
    });
}

#[test]
fn the_aws_common_runtime_sends_no_port() {
    let bare =
        |fixture: &Fixture| fixture.connections.iter().flatten().any(|it| it.contains("\r\nHost: 127.0.0.1\r\n"));
    let names: Vec<_> = fixtures().into_iter().filter(bare).map(|fixture| fixture.client).collect();
    assert!(names.iter().any(|name| name.starts_with("awscrt ")), "{names:?}");
}
