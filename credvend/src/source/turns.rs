//! A limited rate towards STS, shared fairly: AWS limits an account's calls, and a job that starts on thousands of nodes
//! must not use them all up.
//!
//! A bucket of tokens, one for each call. Where calls have to wait, the projects take turns, one token each, so that a
//! project with one call waits for as many others as there are projects, not calls. When AWS says nevertheless that it
//! is too much (other clients use the same account), the rate is cut, and recovers slowly. All of it is of this process:
//! replicas share nothing, and each has its own rate.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use credd_protocol::ProjectId;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// The longest that a call may have to wait for its turn. One that would wait longer is refused at once.
const LONGEST: Duration = Duration::from_secs(60);

/// The most calls that wait, of all projects together: some tens of megabytes.
const MAX_WAITING: usize = 65_536;

/// What is left of the rate after AWS said that it was too much; the calls under way at that moment say it only once.
const CUT: f64 = 0.7;
const CUT_ONCE_IN: Duration = Duration::from_millis(500);

/// What comes back of it in each second, and what always stays, as parts of the whole.
const RECOVERY: f64 = 0.05;
const LEAST: f64 = 0.02;

/// `[sts] rate` and `burst`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Calls in a second, in the long run.
    pub per_second: u32,
    /// Calls at once after a pause.
    pub burst: u32,
}

impl Default for Rate {
    /// Half of the 600 calls in a second that AWS is said to allow an account in a region: others may need it too.
    fn default() -> Self {
        Rate { per_second: 300, burst: 100 }
    }
}

/// So many calls wait that another would not be made in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowded {
    /// When it may be worth asking again.
    pub again_in: Duration,
}

/// See the module.
#[derive(Clone)]
pub struct Turns(Arc<Mutex<State>>);

struct State {
    whole: Rate,
    /// What AWS seems to bear.
    rate: f64,
    tokens: f64,
    filled: Instant,
    cut: Option<Instant>,
    queues: HashMap<ProjectId, VecDeque<oneshot::Sender<()>>>,
    /// The projects that have somebody waiting, the next one first.
    round: VecDeque<ProjectId>,
    waiting: usize,
    /// A task hands out the tokens.
    handing_out: bool,
}

impl Turns {
    /// Begins with a full bucket.
    pub fn new(rate: Rate) -> Self {
        let whole = Rate { per_second: rate.per_second.max(1), burst: rate.burst.max(1) };
        Turns(Arc::new(Mutex::new(State {
            whole,
            rate: f64::from(whole.per_second),
            tokens: f64::from(whole.burst),
            filled: Instant::now(),
            cut: None,
            queues: HashMap::new(),
            round: VecDeque::new(),
            waiting: 0,
            handing_out: false,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// It would take too long.
    pub async fn turn(&self, project: &ProjectId) -> Result<(), Crowded> {
        self.take(project, false).await
    }

    /// Waits for another turn after a call that failed: before the other calls of the same project, which came later.
    ///
    /// # Errors
    /// It would take too long.
    pub async fn again(&self, project: &ProjectId) -> Result<(), Crowded> {
        self.take(project, true).await
    }

    async fn take(&self, project: &ProjectId, first: bool) -> Result<(), Crowded> {
        let turn = {
            let mut state = self.state();
            state.fill();
            if state.waiting == 0 && state.tokens >= 1.0 {
                state.tokens -= 1.0;
                return Ok(());
            }
            let wait = state.wait(project);
            if !first && (wait > LONGEST || state.waiting >= MAX_WAITING) {
                return Err(Crowded { again_in: wait.min(LONGEST) });
            }
            let (send, turn) = oneshot::channel();
            state.enqueue(project, send, first);
            if !state.handing_out {
                state.handing_out = true;
                tokio::spawn(hand_out(self.clone()));
            }
            turn
        };
        // The sender goes away only with the queue, at the end of the process.
        turn.await.map_err(|_| Crowded { again_in: LONGEST })
    }

    /// How long a call of this project that comes now will probably wait.
    pub fn delay(&self, project: &ProjectId) -> Duration {
        let mut state = self.state();
        state.fill();
        state.wait(project)
    }

    /// AWS says that there were too many calls.
    pub fn throttled(&self) {
        let mut state = self.state();
        state.fill();
        let now = Instant::now();
        if state.cut.is_some_and(|cut| now - cut < CUT_ONCE_IN) {
            return;
        }
        let whole = f64::from(state.whole.per_second);
        state.cut = Some(now);
        state.rate = (state.rate * CUT).max(whole * LEAST);
        state.tokens = state.tokens.min(0.0);
        tracing::warn!(
            rate = state.rate.round(),
            configured = whole,
            "AWS STS limits the rate; credvend asks less often for a while"
        );
    }

    /// How many calls wait.
    pub fn waiting(&self) -> usize {
        self.state().waiting
    }

    /// The calls in a second that are made at most right now.
    pub fn rate(&self) -> f64 {
        let mut state = self.state();
        state.fill();
        state.rate
    }
}

impl State {
    fn fill(&mut self) {
        let now = Instant::now();
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now;
        let whole = f64::from(self.whole.per_second);
        // Timers wake some milliseconds late: what came meanwhile is not lost to a small bucket.
        let most = f64::from(self.whole.burst).max(1.0 + whole * 0.005);
        self.tokens = (self.tokens + passed * self.rate).min(most);
        self.rate = (self.rate + passed * whole * RECOVERY).min(whole);
    }

    /// Each of the projects that wait gets one token in a round.
    fn wait(&self, project: &ProjectId) -> Duration {
        let own = self.queues.get(project).map_or(0, VecDeque::len);
        let before: usize = self.queues.values().map(|others| others.len().min(own + 1)).sum();
        let missing = before as f64 + 1.0 - self.tokens;
        Duration::from_secs_f64((missing / self.rate).clamp(0.0, 86_400.0))
    }

    fn enqueue(&mut self, project: &ProjectId, turn: oneshot::Sender<()>, first: bool) {
        self.waiting += 1;
        let queue = self.queues.entry(project.clone()).or_default();
        if queue.is_empty() {
            self.round.push_back(project.clone());
        }
        if first { queue.push_front(turn) } else { queue.push_back(turn) }
    }

    /// Gives away the tokens that there are.
    fn give(&mut self) {
        while self.tokens >= 1.0 {
            let Some(project) = self.round.pop_front() else { return };
            let Some(queue) = self.queues.get_mut(&project) else { continue };
            // Who has gone away takes no token.
            while let Some(turn) = queue.pop_front() {
                self.waiting -= 1;
                if turn.send(()).is_ok() {
                    self.tokens -= 1.0;
                    break;
                }
            }
            if queue.is_empty() {
                self.queues.remove(&project);
            } else {
                self.round.push_back(project);
            }
        }
    }
}

/// Hands out tokens as they come, for as long as somebody waits.
async fn hand_out(turns: Turns) {
    loop {
        let next = {
            let mut state = turns.state();
            state.fill();
            state.give();
            if state.waiting == 0 {
                state.handing_out = false;
                return;
            }
            Duration::from_secs_f64(((1.0 - state.tokens) / state.rate).clamp(0.001, 1.0))
        };
        tokio::time::sleep(next).await;
    }
}

#[cfg(test)]
#[path = "turns_tests.rs"]
mod tests;
