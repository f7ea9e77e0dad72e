//! Another configuration in a running server: what it keeps, and what changes.

use super::house::{House, ask_on, in_a_house};
use crate::config::Config;
use crate::control::{ToKeeper, ToServer};

impl House {
    /// Tells another configuration, and waits for the answer.
    pub async fn configure(&mut self, config: &Config) -> Option<String> {
        let json = crate::handover::json(config).unwrap();
        self.tell(&ToServer::Configure { bytes: u32::try_from(json.len()).unwrap() }).await;
        self.tell_bytes(&json).await;
        self.until("the answer", |h| h.said.borrow().iter().any(|said| matches!(said, ToKeeper::Configured { .. })))
            .await;
        let mut said = self.said.borrow_mut();
        let at = said.iter().position(|said| matches!(said, ToKeeper::Configured { .. })).unwrap();
        let ToKeeper::Configured { problem } = said.remove(at) else { unreachable!() };
        problem
    }

    pub fn configuration(&self, more: &str) -> Config {
        let (address, pin) = (self.credvend.address, &self.credvend.pin);
        let text = format!("[credvend]\nurl = \"https://{address}\"\npin = \"sha256:{pin}\"\n{more}");
        crate::config::parse(&text).unwrap()
    }
}

#[test]
fn a_reload_keeps_jobs_connections_and_cached_credentials() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (_, token) = house.job(7).await;
        let mut kept = house.connect().await;
        let port = house.endpoint.port();
        assert_eq!(ask_on(&mut kept, port, 7, &token).await.status, 200);
        let mut config = house.configuration("request-timeout = \"9s\"\n");
        config.http.max_connections = 2;
        assert_eq!(house.configure(&config).await, None);
        assert_eq!(ask_on(&mut kept, port, 7, &token).await.status, 200, "on the same connection");
        assert_eq!(house.counts(), (1, 1), "nothing was asked for again");
        // It is asked on the new way, too.
        let streams = house.credvend.script.borrow().streams;
        config.credvend.request_timeout *= 2;
        assert_eq!(house.configure(&config).await, None);
        house.until("another stream", |h| h.credvend.script.borrow().streams > streams).await;
        // The new bound counts: the third connection makes the first one go.
        let (_second, _third) = (house.connect().await, house.connect().await);
        let mut closed = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut kept, &mut closed).await.unwrap();
        assert_eq!(closed, "");
        // Without a cache every request asks.
        let config = house.configuration("[cache]\nmode = \"off\"\n");
        assert_eq!(house.configure(&config).await, None);
        for fetched in [2, 3] {
            assert_eq!(house.ask(7, &token).await.status, 200);
            assert_eq!(house.counts().1, fetched);
        }
    });
}

#[test]
fn a_configuration_that_does_not_serve_changes_nothing() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (_, token) = house.job(7).await;
        let mut bad = house.configuration("[cache]\nmode = \"off\"\n");
        bad.credvend.trust = crate::config::Trust::CaPem("no certificate".into());
        let problem = house.configure(&bad).await.expect("it is in force");
        assert!(problem.contains("towards credvend"), "{problem}");
        for _ in 0..3 {
            assert_eq!(house.ask(7, &token).await.status, 200);
        }
        assert_eq!(house.counts(), (1, 1), "the earlier cache's mode");
        house.tell(&ToServer::Ping { id: 9 }).await;
        house.until("it is there", |h| h.heard(&ToKeeper::Here { id: 9 })).await;
    });
}

#[test]
fn metrics_move_to_another_address() {
    in_a_house(async || {
        let mut house = House::new().await;
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (one, other) = (free(), free());
        for (address, gone) in [(Some(one), None), (Some(other), Some(one)), (None, Some(other))] {
            let mut config = house.configuration("");
            config.metrics = address;
            assert_eq!(house.configure(&config).await, None);
            for (address, there) in [(address, true), (gone, false)] {
                let Some(address) = address else { continue };
                while tokio::net::TcpStream::connect(address).await.is_ok() != there {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            }
        }
    });
}
