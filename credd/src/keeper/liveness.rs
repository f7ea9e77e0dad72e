//! Whether the server process still does something: it is asked from time to time, and one that does not answer is to be
//! replaced. Jobs at its sockets get no answer either, and nobody else would notice.
//!
//! A node may be so busy that a healthy process does not get to run. Then this one does not either: only the seconds in
//! which it was itself on time count.

use std::time::{Duration, Instant};

/// A node's cores belong to its jobs: no more wake-ups than this.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// While an answer is missing.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// This process was on time if it woke up within this.
const ON_TIME: Duration = Duration::from_millis(500);
/// So many looks on time without an answer, and it hangs.
const HANGS: u32 = 10;
/// So many looks that found it stopped by a signal, which needs no guess.
const STOPPED: u32 = 2;
/// It hangs, however busy the node is.
const AT_LAST: Duration = Duration::from_secs(120);

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Wait,
    /// Ask this question.
    Ask(u64),
    /// Replace the process, for this reason.
    Replace(&'static str),
}

/// Of one server process.
#[derive(Debug)]
pub struct Liveness {
    question: u64,
    asked: Option<Instant>,
    on_time: u32,
    stopped: u32,
    next: Instant,
}

impl Liveness {
    /// Of a process that starts now.
    pub fn new(now: Instant) -> Self {
        Liveness { question: 0, asked: None, on_time: 0, stopped: 0, next: now + ASK_EVERY }
    }

    /// When to look again.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// The process answered a question.
    pub fn answered(&mut self, question: u64, now: Instant) {
        if self.asked.is_some() && question == self.question {
            self.asked = None;
            self.next = now + ASK_EVERY;
        }
    }

    /// Looks, when it is time to. What came from the process has been taken before.
    pub fn look(&mut self, now: Instant, is_stopped: impl FnOnce() -> bool) -> Verdict {
        if now < self.next {
            return Verdict::Wait;
        }
        let on_time = now.duration_since(self.next) <= ON_TIME;
        self.next = now + LOOK_EVERY;
        let Some(asked) = self.asked else {
            self.question += 1;
            (self.asked, self.on_time, self.stopped) = (Some(now), 0, 0);
            return Verdict::Ask(self.question);
        };
        self.on_time += u32::from(on_time);
        self.stopped = if is_stopped() { self.stopped + 1 } else { 0 };
        if self.stopped >= STOPPED {
            Verdict::Replace("it was stopped by a signal")
        } else if self.on_time >= HANGS || now.duration_since(asked) >= AT_LAST {
            Verdict::Replace("it does not answer")
        } else {
            Verdict::Wait
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks whenever it is time to, so much too late, until something else than waiting comes of it.
    fn until_verdict(liveness: &mut Liveness, late: Duration, stopped: bool) -> (Verdict, Instant) {
        loop {
            let now = liveness.next() + late;
            match liveness.look(now, || stopped) {
                Verdict::Wait => {}
                verdict => return (verdict, now),
            }
        }
    }

    #[test]
    fn who_answers_is_asked_again_and_who_does_not_is_replaced() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        assert_eq!(liveness.look(start, || true), Verdict::Wait);
        for question in 1..4 {
            let (verdict, at) = until_verdict(&mut liveness, Duration::ZERO, true);
            assert_eq!(verdict, Verdict::Ask(question));
            liveness.answered(question - 1, at);
            assert!(liveness.next() < at + ASK_EVERY, "an old answer is none");
            liveness.answered(question, at);
            assert_eq!(liveness.next(), at + ASK_EVERY);
        }
        let (_, asked) = until_verdict(&mut liveness, Duration::ZERO, false);
        let (verdict, at) = until_verdict(&mut liveness, Duration::ZERO, false);
        assert_eq!(verdict, Verdict::Replace("it does not answer"));
        assert_eq!(at - asked, LOOK_EVERY * HANGS);
    }

    #[test]
    fn a_stopped_one_is_replaced_sooner() {
        let mut liveness = Liveness::new(Instant::now());
        let (_, asked) = until_verdict(&mut liveness, Duration::ZERO, true);
        let (verdict, at) = until_verdict(&mut liveness, Duration::ZERO, true);
        assert_eq!(verdict, Verdict::Replace("it was stopped by a signal"));
        assert_eq!(at - asked, LOOK_EVERY * STOPPED);
    }

    #[test]
    fn on_an_overloaded_node_a_silent_one_gets_more_time_but_not_for_ever() {
        let mut liveness = Liveness::new(Instant::now());
        let late = Duration::from_secs(3);
        let (_, asked) = until_verdict(&mut liveness, late, false);
        let (verdict, at) = until_verdict(&mut liveness, late, false);
        assert_eq!(verdict, Verdict::Replace("it does not answer"));
        assert!(at - asked >= AT_LAST, "{:?}", at - asked);
    }
}
