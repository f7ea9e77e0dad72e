//! What credvend tells the nodes on the standing stream, and the answers it asks for: sessions that are over, sessions whose
//! credentials are dead in AWS. Dropping comes first and waits for nothing; an answer follows a little later, together
//! with the others that are due.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashSet};
use std::rc::Rc;
use std::time::Duration;

use credd_protocol::SessionId;
use credd_protocol::node_api::{Event, HeardRequest, MAX_EVENT_SESSIONS, MAX_HEARD, MAX_REASON_BYTES};
use credd_protocol::printable::one_line;
use tokio::sync::Notify;

use super::Server;
use super::backoff::Backoff;
use super::clock::Now;
use super::trouble::Trouble;

/// Answers come within this: credvend waits for them for two seconds, and has thousands of nodes.
const SPREAD: Duration = Duration::from_secs(1);
const ANSWER_AGAIN: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// Unanswered events that are kept; beyond, credvend is left to think that the oldest were not heard.
const MAX_UNANSWERED: usize = 4096;

/// What the processes of a job are told that Slurm has no more.
const OVER: &str = "Slurm says that this job is over, and no epilog of it was seen on this node.";

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
            Event::Invalidated { seq, .. } | Event::Renew { seq, .. } => self.advance(*seq, 1),
        }
    }

    fn advance(&mut self, seq: u64, by: u64) -> bool {
        let Some((_, known)) = &mut self.known else { return true };
        let missed = seq > known.saturating_add(by);
        *known = seq.max(*known);
        missed
    }
}

/// What was heard, and what of it is to be answered.
#[derive(Default)]
pub struct News {
    position: RefCell<Position>,
    heard: Cell<Option<Now>>,
    unanswered: RefCell<BTreeSet<u64>>,
    asked: Notify,
}

impl News {
    /// When credvend last said something on the stream.
    pub fn heard(&self) -> Option<Now> {
        self.heard.get()
    }

    /// Up to which event of which epoch everything was heard.
    pub fn position(&self) -> Option<(String, u64)> {
        self.position.borrow().known.clone()
    }

    /// The number of the newest event, 0 before the first.
    pub fn newest(&self) -> u64 {
        self.position.borrow().known.as_ref().map_or(0, |(_, seq)| *seq)
    }

    fn to_answer(&self, seq: u64) {
        let mut unanswered = self.unanswered.borrow_mut();
        unanswered.insert(seq);
        if unanswered.len() > MAX_UNANSWERED {
            unanswered.pop_first();
        }
        self.asked.notify_one();
    }

    /// The next answer; `None` if none is due.
    fn next_answer(&self) -> Option<HeardRequest> {
        let seqs: Vec<u64> = self.unanswered.borrow().iter().take(MAX_HEARD).copied().collect();
        let (epoch, _) = self.position()?;
        (!seqs.is_empty()).then_some(HeardRequest { epoch, seqs })
    }

    fn answered(&self, answer: &HeardRequest) {
        // Numbers of another epoch are others' numbers.
        if self.position().is_some_and(|(epoch, _)| epoch == answer.epoch) {
            let mut unanswered = self.unanswered.borrow_mut();
            for seq in &answer.seqs {
                unanswered.remove(seq);
            }
        }
    }
}

impl Server {
    /// A line of the standing stream; `None` is one that is not understood.
    pub(super) fn credvend_said(&self, event: Option<Event>) {
        self.credvend.heard();
        self.look_after_credvend();
        self.news.heard.set(Some(self.clock.now()));
        let missed = match &event {
            Some(event) => {
                let before = self.news.position();
                let missed = self.news.position.borrow_mut().missed(event);
                if matches!((before, event), (Some((old, _)), Event::Hello { epoch, .. }) if old != *epoch) {
                    self.news.unanswered.borrow_mut().clear();
                }
                missed
            }
            // An event of a later version may matter: what is here must be looked at again.
            None => true,
        };
        if missed {
            self.cache.borrow_mut().suspect_all();
        }
        let (seq, answer) = match event {
            Some(Event::Invalidated { seq, sessions, reason, answer, completed }) => {
                self.refuse_sessions(&bounded(sessions), &plain(&reason));
                let completed = bounded(completed);
                // As a rule the job's epilog was here before, and nothing of it is left.
                if !self.jobs.borrow().of_sessions(&completed).is_empty() {
                    self.end_sessions(&completed, OVER);
                }
                (seq, answer)
            }
            Some(Event::Renew { seq, sessions, reason, answer }) => {
                self.renew_sessions(&bounded(sessions), &plain(&reason));
                (seq, answer)
            }
            Some(Event::Hello { .. } | Event::Ping { .. }) | None => return,
        };
        if answer {
            self.news.to_answer(seq);
        }
    }
}

/// A line has no room for more than twice as many.
fn bounded(sessions: Vec<SessionId>) -> HashSet<SessionId> {
    debug_assert!(sessions.len() <= 2 * MAX_EVENT_SESSIONS);
    sessions.into_iter().collect()
}

fn plain(reason: &str) -> String {
    one_line(reason, MAX_REASON_BYTES)
}

/// Answers what asks for it, for as long as the server lives. Nothing waits for this.
pub async fn answer(server: Rc<Server>) {
    let news = &server.news;
    let mut failures = 0u32;
    loop {
        if news.next_answer().is_none() {
            news.asked.notified().await;
        }
        let wait = if failures == 0 {
            // Meanwhile others may come, and go along.
            SPREAD.mul_f64(server.dice.roll())
        } else {
            ANSWER_AGAIN.wait(failures, &*server.dice)
        };
        tokio::time::sleep(wait).await;
        let Some(answer) = news.next_answer() else { continue };
        match server.credvend.say_heard(&answer).await {
            Ok(()) => {
                failures = 0;
                news.answered(&answer);
            }
            Err(Trouble::Never(reason) | Trouble::Over(reason) | Trouble::Gone(reason)) => {
                failures = 0;
                news.answered(&answer);
                tracing::info!(events = answer.seqs.len(), why = reason, "credvend has no use for this answer");
            }
            Err(Trouble::No(reason) | Trouble::Site(reason) | Trouble::Outage(reason) | Trouble::Busy(reason, _)) => {
                failures = failures.saturating_add(1);
                if failures.is_power_of_two() {
                    tracing::warn!(why = reason, failures, "credvend does not know yet what this node has dropped");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(epoch: &str, seq: u64) -> Event {
        Event::Hello { epoch: epoch.into(), seq }
    }

    fn invalidated(seq: u64) -> Event {
        Event::Invalidated {
            seq,
            sessions: vec![SessionId::random()],
            reason: "r".into(),
            answer: false,
            completed: vec![],
        }
    }

    fn renew(seq: u64) -> Event {
        Event::Renew { seq, sessions: vec![SessionId::random()], reason: "r".into(), answer: true }
    }

    #[test]
    fn gaps_are_noticed_and_nothing_else() {
        let mut at = Position::default();
        assert!(at.missed(&hello("a", 5)), "what came before the first hello is not known");
        assert!(!at.missed(&Event::Ping { seq: 5 }));
        assert!(!at.missed(&invalidated(6)));
        assert!(!at.missed(&hello("a", 6)), "a reconnect that missed nothing, or is told what it missed");
        assert!(at.missed(&hello("a", 7)));
        assert!(at.missed(&hello("b", 7)));
        assert!(at.missed(&Event::Ping { seq: 9 }));
        assert!(!at.missed(&Event::Ping { seq: 9 }));
        assert!(at.missed(&renew(11)));
        assert!(!at.missed(&renew(11)), "heard twice");
        assert!(!at.missed(&renew(12)));
    }

    #[test]
    fn answers_are_bounded_together_and_only_of_their_epoch() {
        let news = News::default();
        assert!(news.next_answer().is_none());
        news.position.borrow_mut().missed(&hello("a", 0));
        for seq in 1..=2 * MAX_UNANSWERED as u64 {
            news.to_answer(seq);
        }
        let first = news.next_answer().unwrap();
        assert_eq!(
            (first.epoch.as_str(), first.seqs.len(), first.seqs[0]),
            ("a", MAX_HEARD, MAX_UNANSWERED as u64 + 1)
        );
        news.answered(&first);
        assert_eq!(news.next_answer().unwrap().seqs[0], first.seqs[0] + MAX_HEARD as u64);
        news.position.borrow_mut().missed(&hello("b", 0));
        let (second, left) = (news.next_answer().unwrap(), news.unanswered.borrow().len());
        news.answered(&HeardRequest { epoch: "a".into(), ..second });
        assert_eq!(news.unanswered.borrow().len(), left);
    }
}
