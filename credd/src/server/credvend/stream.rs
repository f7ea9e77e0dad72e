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
    let mut lines = Lines::default();
    let silence = server.settings.silence;
    loop {
        let chunk = match tokio::time::timeout(silence, response.chunk()).await {
            Err(_) => return Trouble::Outage(format!("no sign of life for {} s", silence.as_secs())),
            Ok(Err(error)) => return Trouble::Outage(server.credvend.unreachable(&error)),
            Ok(Ok(None)) => return Trouble::Outage("credvend closed the stream".to_owned()),
            Ok(Ok(Some(chunk))) => chunk,
        };
        let taken = lines.take(&chunk, |event| match event {
            Some(event) => {
                *failures = 0;
                server.credvend_said(position.missed(&event), event);
            }
            // An event of a later version may matter: what is here must be looked at again.
            None => server.credvend_said(true, Event::Ping { seq: 0 }),
        });
        if let Err(trouble) = taken {
            return trouble;
        }
    }
}

/// Makes events of what comes in pieces.
#[derive(Default)]
struct Lines {
    unfinished: Vec<u8>,
}

impl Lines {
    /// Says the events that `chunk` completes, `None` for one that is not understood.
    fn take(&mut self, chunk: &[u8], mut said: impl FnMut(Option<Event>)) -> Result<(), Trouble> {
        for piece in chunk.split_inclusive(|b| *b == b'\n') {
            if self.unfinished.len() + piece.len() > MAX_EVENT_BYTES {
                return Err(Trouble::Outage(format!("credvend sent an event of more than {MAX_EVENT_BYTES} bytes")));
            }
            self.unfinished.extend_from_slice(piece);
            if !piece.ends_with(b"\n") {
                continue;
            }
            let line = self.unfinished.trim_ascii();
            if !line.is_empty() {
                said(serde_json::from_slice(line).ok());
            }
            self.unfinished.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use credd_protocol::SessionId;
    use proptest::prelude::*;

    use super::*;

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

    /// Lines of credvend's, and others.
    fn said() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            any::<u64>().prop_map(|seq| serde_json::to_vec(&Event::Ping { seq }).unwrap()),
            any::<u64>().prop_map(|seq| serde_json::to_vec(&invalidated(seq)).unwrap()),
            (".{0,9}", any::<u64>()).prop_map(|(epoch, seq)| serde_json::to_vec(&hello(&epoch, seq)).unwrap()),
            proptest::collection::vec(any::<u8>(), 0..60),
            (MAX_EVENT_BYTES - 2..MAX_EVENT_BYTES + 2).prop_map(|length| vec![b'['; length]),
        ];
        proptest::collection::vec(line, 0..6).prop_map(|lines| lines.join(&b'\n'))
    }

    proptest! {
        #[test]
        fn events_do_not_depend_on_how_they_were_cut_and_no_line_hurts(said in said(), size in 1usize..5000) {
            let hear = |size: usize| {
                let (mut lines, mut position, mut heard) = (Lines::default(), Position::default(), Vec::new());
                let ended = said.chunks(size).try_for_each(|chunk| {
                    let taken = lines.take(chunk, |event| {
                        let missed = event.as_ref().map(|event| position.missed(event));
                        heard.push((event, missed));
                    });
                    assert!(lines.unfinished.len() <= MAX_EVENT_BYTES);
                    taken
                });
                (heard, ended.is_err())
            };
            let heard = hear(size);
            prop_assert_eq!(&heard, &hear(said.len().max(1)));
            let longest = said.split_inclusive(|b| *b == b'\n').map(<[u8]>::len).max().unwrap_or_default();
            prop_assert_eq!(heard.1, longest > MAX_EVENT_BYTES);
        }
    }
}
