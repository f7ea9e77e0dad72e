//! Deliveries that repeat themselves: whoever asks for the same document again and again, as fast as a connection carries
//! it, gets one line a minute and a count, and fills no disk.

use std::collections::HashMap;
use std::net::IpAddr;

use credd_protocol::SessionId;
use time::{Duration, OffsetDateTime};

use super::event::{Event, To, again};

/// Within this, the same document to the same receiver is one line and a count.
const MINUTE: Duration = Duration::MINUTE;

/// Between two looks for minutes that are over.
const LOOK: Duration = Duration::seconds(20);

/// The most receivers of one document that are told apart by their addresses within a minute: a node has few, and a head's
/// token may be on every node of its job. What is over it is counted with the last.
const MOST_OF_NODE: usize = 4;
const MOST_OF_BEARER: usize = 256;

/// The most documents' receivers that are remembered (about 200 bytes each); beyond it every delivery is a line.
const MAX_KNOWN: usize = 65_536;

/// The most lines about repeats at a time, unless it is the end: the queue is for others too. The rest comes with the next look.
const MAX_LINES: usize = 1024;

/// A document, and who has it but for their address.
#[derive(PartialEq, Eq, Hash)]
struct Place {
    session: SessionId,
    role: String,
    key_id: String,
    /// None: whoever bears the token.
    node: Option<String>,
}

/// A minute of one receiver.
struct Known {
    peer: Option<IpAddr>,
    since: OffsetDateTime,
    /// How often after the line that is on record.
    again: u64,
    /// That line's text without its time, once there was one.
    body: String,
}

impl Known {
    fn fresh(&self, now: OffsetDateTime) -> bool {
        now >= self.since && now - self.since < MINUTE
    }

    /// The line about what is counted, which then is on record.
    fn line(&mut self, now: OffsetDateTime) -> Option<String> {
        let count = std::mem::take(&mut self.again);
        (count > 0).then(|| again(&std::mem::take(&mut self.body), count, now))
    }
}

/// What was delivered within the last minute.
#[derive(Default)]
pub(super) struct Repeats {
    known: HashMap<Place, Vec<Known>>,
    looked: Option<OffsetDateTime>,
}

impl Repeats {
    /// Counts it, if this very delivery is on record already.
    pub(super) fn counted(&mut self, event: &Event<'_>, now: OffsetDateTime) -> bool {
        let Some((place, peer, most)) = place(event) else { return false };
        let Some(receivers) = self.known.get_mut(&place) else { return false };
        match own(receivers, peer, most).filter(|known| known.fresh(now)) {
            None => false,
            Some(known) => {
                known.again += 1;
                if known.body.is_empty() {
                    known.body = event.body();
                }
                true
            }
        }
    }

    /// It is on record from now on.
    pub(super) fn on_record(&mut self, event: &Event<'_>, now: OffsetDateTime) {
        let Some((place, peer, most)) = place(event) else { return };
        if self.known.len() >= MAX_KNOWN && !self.known.contains_key(&place) {
            return;
        }
        let receivers = self.known.entry(place).or_default();
        let new = Known { peer, since: now, again: 0, body: String::new() };
        match own(receivers, peer, most) {
            // Somebody else may have been as fast, and been followed.
            Some(known) if known.fresh(now) => {}
            Some(known) => *known = new,
            None => receivers.push(new),
        }
    }

    /// The lines about repeats whose minute is over: those of `event` in any case, the others now and then, all at the end.
    pub(super) fn over(&mut self, event: Option<&Event<'_>>, now: OffsetDateTime, end: bool) -> Vec<String> {
        let mut lines = vec![];
        if let Some((place, peer, most)) = event.and_then(place)
            && let Some(known) = self.known.get_mut(&place).and_then(|receivers| own(receivers, peer, most))
            && !known.fresh(now)
        {
            lines.extend(known.line(now));
        }
        if !end && self.looked.is_some_and(|at| now >= at && now - at < LOOK) {
            return lines;
        }
        self.looked = Some(now);
        self.known.retain(|_, receivers| {
            receivers.retain_mut(|known| {
                let stays = (known.fresh(now) || lines.len() >= MAX_LINES) && !end;
                if !stays {
                    lines.extend(known.line(now));
                }
                stays
            });
            !receivers.is_empty()
        });
        lines
    }
}

/// Where a receiver of this address is counted; with the last, where there are too many.
fn own(receivers: &mut [Known], peer: Option<IpAddr>, most: usize) -> Option<&mut Known> {
    let at = receivers.iter().position(|known| known.peer == peer);
    receivers.get_mut(at.unwrap_or(most - 1))
}

/// What a delivery is about, from which address it was asked for, and how many of those are told apart.
fn place(event: &Event<'_>) -> Option<(Place, Option<IpAddr>, usize)> {
    let Event::CredentialsDelivered { session, role, to, document, .. } = event else { return None };
    let (node, peer, most) = match to {
        To::Node { node, peer } => (Some(node.to_string()), *peer, MOST_OF_NODE),
        To::Bearer { peer, .. } => (None, *peer, MOST_OF_BEARER),
    };
    let (role, key_id) = (role.to_string(), document.credentials.access_key_id.clone());
    Some((Place { session: session.id, role, key_id, node }, peer, most))
}
