//! The standing stream: credvend's word that a session is over reaches the node within a second.

use std::rc::Rc;
use std::time::Duration;

use credd_protocol::node_api::{Event, MAX_EVENT_BYTES};

use super::super::Server;
use super::super::backoff::Backoff;
use super::super::trouble::Trouble;

/// A whole cluster loses credvend in one moment, and shall not come back in one.
pub const RECONNECT: Backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(60));

/// Keeps the stream open for as long as the server lives.
pub async fn keep_open(server: Rc<Server>) {
    let mut failures = 0u32;
    loop {
        match server.credvend.open_stream(server.news.position()).await {
            Ok(response) => {
                let before = failures;
                let trouble = follow(&server, response, &mut failures).await;
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
        tokio::select! {
            () = tokio::time::sleep(RECONNECT.wait(failures, &*server.dice)) => {}
            () = server.credvend.replaced.notified() => failures = 0,
        }
    }
}

/// Follows one stream to its end.
async fn follow(server: &Rc<Server>, mut response: reqwest::Response, failures: &mut u32) -> Trouble {
    let mut lines = Lines::default();
    let silence = server.settings.get().silence;
    loop {
        let heard = tokio::select! {
            heard = tokio::time::timeout(silence, response.chunk()) => heard,
            () = server.credvend.replaced.notified() => {
                // The loop that opens streams is to hear of it, too.
                server.credvend.replaced.notify_one();
                return Trouble::Outage("another credvend is configured".to_owned());
            }
        };
        let chunk = match heard {
            Err(_) => return Trouble::Outage(format!("no sign of life for {} s", silence.as_secs())),
            Ok(Err(error)) => return server.credvend.wire().broken(&error),
            Ok(Ok(None)) => return Trouble::Outage("credvend closed the stream".to_owned()),
            Ok(Ok(Some(chunk))) => chunk,
        };
        let taken = lines.take(&chunk, |event| {
            if event.is_some() {
                *failures = 0;
            }
            server.credvend_said(event);
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
        Event::Invalidated {
            seq,
            sessions: vec![SessionId::random()],
            reason: "r".into(),
            answer: true,
            completed: vec![],
        }
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
                let (mut lines, mut heard) = (Lines::default(), Vec::new());
                let ended = said.chunks(size).try_for_each(|chunk| {
                    let taken = lines.take(chunk, |event| heard.push(event));
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
