//! The standing stream: credvend's word that a session is over reaches the node within a second.

use std::rc::Rc;
use std::time::Duration;

use credd_protocol::node_api::Event;

use super::super::Server;
use super::super::backoff::Backoff;
use super::super::trouble::Trouble;

const RECONNECT: Backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(60));
const MAX_EVENT_BYTES: usize = 16 * 1024;

/// The point in credvend's history up to which this node has heard everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    known: Option<(String, u64)>,
}

impl Position {
    /// Whether `event` shows that something before it was missed.
    pub fn missed(&mut self, event: &Event) -> bool {
        match event {
            Event::Hello { epoch, seq } => {
                let missed = self.known.as_ref() != Some(&(epoch.clone(), *seq));
                self.known = Some((epoch.clone(), *seq));
                missed
            }
            Event::Ping { seq } => self.advance(*seq, 0),
            Event::Invalidated { seq, .. } => self.advance(*seq, 1),
        }
    }

    fn advance(&mut self, seq: u64, by: u64) -> bool {
        let Some((_, known)) = &mut self.known else { return true };
        let missed = seq > known.saturating_add(by);
        *known = seq.max(*known);
        missed
    }
}

/// Keeps the stream open for as long as the server lives.
pub async fn keep_open(server: Rc<Server>) {
    let mut position = Position::default();
    let mut failures = 0u32;
    loop {
        match server.credvend.open_stream().await {
            Ok(response) => {
                let before = failures;
                let trouble = follow(&server, response, &mut position, &mut failures).await;
                if failures == 0 || before != failures {
                    tracing::info!(why = trouble.reason(), "the stream from credvend broke off");
                }
                failures = failures.saturating_add(1);
            }
            Err(trouble) => {
                failures = failures.saturating_add(1);
                server.credvend.note(&trouble);
                if failures.is_power_of_two() {
                    tracing::warn!(why = trouble.reason(), failures, "no stream from credvend");
                }
            }
        }
        tokio::time::sleep(RECONNECT.wait(failures, &*server.dice)).await;
    }
}

/// Follows one stream to its end.
async fn follow(
    server: &Rc<Server>,
    mut response: reqwest::Response,
    position: &mut Position,
    failures: &mut u32,
) -> Trouble {
    let mut line: Vec<u8> = Vec::new();
    let silence = server.settings.silence;
    loop {
        let chunk = match tokio::time::timeout(silence, response.chunk()).await {
            Err(_) => return Trouble::Outage(format!("no sign of life for {} s", silence.as_secs())),
            Ok(Err(error)) => return Trouble::Outage(server.credvend.unreachable(&error)),
            Ok(Ok(None)) => return Trouble::Outage("credvend closed the stream".to_owned()),
            Ok(Ok(Some(chunk))) => chunk,
        };
        for piece in chunk.split_inclusive(|b| *b == b'\n') {
            line.extend_from_slice(piece);
            if line.len() > MAX_EVENT_BYTES {
                return Trouble::Outage(format!("credvend sent an event of more than {MAX_EVENT_BYTES} bytes"));
            }
            if !line.ends_with(b"\n") {
                continue;
            }
            if !line.trim_ascii().is_empty() {
                match serde_json::from_slice::<Event>(&line) {
                    Ok(event) => {
                        *failures = 0;
                        server.credvend_said(position.missed(&event), event);
                    }
                    // An event of a later version may matter: what is here must be looked at again.
                    Err(_) => server.credvend_said(true, Event::Ping { seq: 0 }),
                }
            }
            line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use credd_protocol::SessionId;

    fn hello(epoch: &str, seq: u64) -> Event {
        Event::Hello { epoch: epoch.into(), seq }
    }

    fn invalidated(seq: u64) -> Event {
        Event::Invalidated { seq, session: SessionId::random(), reason: "r".into() }
    }

    #[test]
    fn gaps_are_noticed_and_nothing_else() {
        let mut at = Position::default();
        assert!(at.missed(&hello("a", 5)), "what came before the first hello is not known");
        assert!(!at.missed(&Event::Ping { seq: 5 }));
        assert!(!at.missed(&invalidated(6)));
        assert!(!at.missed(&hello("a", 6)), "a reconnect that missed nothing");
        assert!(at.missed(&hello("a", 7)));
        assert!(at.missed(&hello("b", 7)));
        assert!(at.missed(&Event::Ping { seq: 9 }));
        assert!(!at.missed(&Event::Ping { seq: 9 }));
        assert!(at.missed(&invalidated(11)));
        assert!(!at.missed(&invalidated(11)), "heard twice");
    }
}
