//! Every refusal reaches the log, with who, what and why; but nobody floods it.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::refusal::Refusal;

/// Lines of one kind within [`WINDOW`]; the rest is counted.
const MAX_LINES: u32 = 200;
const WINDOW: Duration = Duration::from_secs(10);

/// Two budgets: a flood of strangers does not hide what authenticated callers are refused.
#[derive(Default)]
pub struct RefusalLog {
    strangers: Mutex<Budget>,
    known: Mutex<Budget>,
}

/// So many lines within a time, and a count of the others.
#[derive(Default)]
pub(crate) struct Budget {
    since: Option<Instant>,
    lines: u32,
    dropped: u64,
}

impl Budget {
    /// Whether a line may be written, and how many were dropped before it.
    pub(crate) fn take(&mut self, now: Instant) -> (bool, u64) {
        let mut dropped = 0;
        if self.since.is_none_or(|since| now.duration_since(since) >= WINDOW) {
            dropped = std::mem::take(&mut self.dropped);
            (self.since, self.lines) = (Some(now), 0);
        }
        if self.lines < MAX_LINES {
            self.lines += 1;
            (true, dropped)
        } else {
            self.dropped += 1;
            (false, dropped)
        }
    }
}

impl RefusalLog {
    /// Notes a connection that ended before its first request: a failed handshake, too many of one address.
    pub fn note_connection(&self, peer: SocketAddr, why: &str) {
        if take(&self.strangers) {
            tracing::warn!(%peer, why, "connection refused");
        }
    }

    /// Notes one refusal. `target` is hostile: it is escaped and cut.
    pub fn note(&self, who: &str, peer: Option<SocketAddr>, method: &str, target: &str, refusal: &Refusal) {
        // An earlier credd asks for this to see the certificate that it signs its requests for.
        if (method, target, refusal.status()) == ("GET", "/", 404) {
            return tracing::debug!(who, "a first handshake");
        }
        let budget =
            if matches!(refusal.status(), 400 | 401 | 404 | 405 | 413) { &self.strangers } else { &self.known };
        if !take(budget) {
            return;
        }
        let peer = peer.map(|peer| peer.to_string()).unwrap_or_else(|| "the admin socket".into());
        // The query may hold a user's text, and a mistaken client's secret.
        let path: String = target.split('?').next().unwrap_or_default().chars().take(200).collect();
        let (code, why) = (refusal.code(), refusal.to_string());
        if refusal.status() >= 500 {
            tracing::error!(code, who, peer, method, ?path, why, "refused");
        } else {
            tracing::warn!(code, who, peer, method, ?path, why, "refused");
        }
    }
}

fn take(budget: &Mutex<Budget>) -> bool {
    let (write, dropped) = budget.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
    if dropped > 0 {
        tracing::warn!(dropped, "more refusals than the log takes were counted only");
    }
    write
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted() {
        let (mut budget, start) = (Budget::default(), Instant::now());
        let written = (0..1_000).filter(|_| budget.take(start).0).count();
        assert_eq!(written, MAX_LINES as usize);
        assert_eq!(budget.take(start + WINDOW), (true, 1_000 - u64::from(MAX_LINES)));
    }
}
