//! The audit log: who got which role, under which name and key, on which node, until when; one JSON line for each event.
//!
//! | file | what |
//! |---|---|
//! | `event` | everything that is written, as one enum, and the line that each becomes |
//! | `repeats` | deliveries of the same document to the same receiver: a line a minute, and a count |
//! | `writer` | the thread that writes: many lines for one write and one fsync, and what happens when it cannot |
//! | `file` | the file: opened to append, never through a link, followed when it is rotated |
//! | [`read`] | reading it again, with its rotated siblings, for `credvend audit` |
//!
//! No secret has a place in [`Event`]: no variant takes one. `docs/audit.md` documents the format and the policies.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::server::refusal_log::Budget;
use repeats::Repeats;

mod event;
mod file;
pub mod read;
mod repeats;
#[cfg(test)]
mod tests;
mod writer;

pub use event::{Event, FIELDS, KINDS, Refused, To};
pub use file::check;

/// Lines that wait for the writer; beyond it they are lost and counted, or refused.
const QUEUE: usize = 16_384;

/// How long a caller waits for its line: a disk that hangs must not hang the service with it.
const PATIENCE: Duration = Duration::from_secs(3);

/// `[audit]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `path`.
    pub path: PathBuf,
    /// `fsync`.
    pub fsync: Fsync,
    /// `on-failure`.
    pub on_failure: OnFailure,
}

/// When lines are forced to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fsync {
    /// Before the event takes effect; callers at the same time share one.
    Each,
    /// Once a second: a power failure costs at most that.
    #[default]
    Interval,
    /// When the kernel likes.
    Never,
}

/// What happens to requests whose line cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// They are refused with 503: nothing is vended that is not on record in this file. Ends and revocations go on.
    Refuse,
    /// They go on; the store has every issuance anyway.
    #[default]
    Continue,
}

/// The log. One for the process.
pub struct Log {
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    on_failure: OnFailure,
    /// None: nothing is written, as in tests of other things.
    sender: Option<SyncSender<Message>>,
    state: Arc<State>,
    refusals: Budgets,
    repeats: Mutex<Repeats>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// Two, as the service's log has: a flood of strangers does not hide what is refused to those who proved who they are.
#[derive(Default)]
struct Budgets {
    strangers: Mutex<Budget>,
    known: Mutex<Budget>,
}

/// What the writer and those who hand it lines know of each other.
struct State {
    /// The file works.
    works: AtomicBool,
    /// Lines that were given up, and not yet told in the log itself.
    lost: AtomicU64,
}

impl Default for State {
    fn default() -> Self {
        State { works: AtomicBool::new(true), lost: AtomicU64::new(0) }
    }
}

/// To the writer.
enum Message {
    Line(Line),
    Reopen(oneshot::Sender<Result<(), String>>),
    Stop,
}

/// One event's text: a JSON object that lacks what only the writer knows.
struct Line {
    json: String,
    done: Option<oneshot::Sender<Result<(), String>>>,
}

/// A line that is not on record, where that is a reason to refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the audit log cannot be written ({0}), and [audit] on-failure = \"refuse\": nothing is vended until it can be; an administrator must look at the disk of credvend's host"
)]
pub struct Unwritten(String);

impl From<Unwritten> for Refusal {
    fn from(error: Unwritten) -> Self {
        Refusal::Unavailable(error.to_string())
    }
}

impl Log {
    /// Opens the file and starts the writer.
    ///
    /// # Errors
    /// The file cannot be opened for appending, or is not one that a log of this kind may be in.
    pub fn open(settings: &Settings, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let state = Arc::<State>::default();
        let writer = writer::Writer::open(settings, clock.clone(), state.clone(), metrics.clone())?;
        Self::over(writer, settings, clock, state, metrics)
    }

    fn over(
        writer: writer::Writer,
        settings: &Settings,
        clock: Arc<dyn Clock>,
        state: Arc<State>,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let (sender, receiver) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(&receiver))?;
        Ok(Log {
            clock,
            metrics,
            on_failure: settings.on_failure,
            sender: Some(sender),
            state,
            refusals: Budgets::default(),
            repeats: Mutex::default(),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// A log that keeps nothing: for what is put together without a configuration.
    pub fn none() -> Arc<Self> {
        Arc::new(Log {
            clock: Arc::new(crate::clock::SystemClock),
            metrics: Arc::default(),
            on_failure: OnFailure::Continue,
            sender: None,
            state: Arc::default(),
            refusals: Budgets::default(),
            repeats: Mutex::default(),
            thread: Mutex::default(),
        })
    }

    /// Whether the file could be written the last time.
    pub fn works(&self) -> bool {
        self.state.works.load(Ordering::Acquire)
    }

    /// Puts an event on record before it takes effect: the caller goes on only with `Ok`. The line may also stand for
    /// something that then did not happen (the caller hung up, the file failed a moment later); never the other way round.
    ///
    /// # Errors
    /// It is not on record, and the policy is to refuse then.
    pub async fn record(&self, event: Event<'_>) -> Result<(), Unwritten> {
        self.count(&event);
        self.tell_repeats(None, false);
        self.put(event).await
    }

    /// As [`Log::record`], of a document that somebody gets. Who gets the same again within a minute is on record already and
    /// is counted only. Says whether this was a line.
    ///
    /// # Errors
    /// As [`Log::record`].
    pub async fn deliver(&self, event: Event<'_>) -> Result<bool, Unwritten> {
        self.count(&event);
        self.tell_repeats(Some(&event), false);
        // Where everything must be on record, a log that fails lets nothing pass, the same again neither.
        let may_count = self.on_failure == OnFailure::Continue || self.state.works.load(Ordering::Acquire);
        if may_count && self.repeats().counted(&event, self.clock.now()) {
            return Ok(false);
        }
        self.put(event.clone()).await?;
        self.repeats().on_record(&event, self.clock.now());
        Ok(true)
    }

    fn repeats(&self) -> MutexGuard<'_, Repeats> {
        self.repeats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands in what was counted instead of written.
    fn tell_repeats(&self, of: Option<&Event<'_>>, end: bool) {
        let lines = self.repeats().over(of, self.clock.now(), end);
        for json in lines {
            self.hand_in_line(json);
        }
    }

    async fn put(&self, event: Event<'_>) -> Result<(), Unwritten> {
        let Some(sender) = &self.sender else { return Ok(()) };
        let refuse = self.on_failure == OnFailure::Refuse;
        if !refuse && !self.state.works.load(Ordering::Acquire) {
            // Known to be broken: nobody waits for it.
            self.hand_in(&event);
            return Ok(());
        }
        let (done, written) = oneshot::channel();
        let line = Line { json: event.to_json(self.clock.now()), done: Some(done) };
        let result = match sender.try_send(Message::Line(line)) {
            Err(_) => {
                self.lost();
                Err("too many lines wait for the disk".to_owned())
            }
            Ok(()) => match tokio::time::timeout(PATIENCE, written).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err("its writer has stopped".into()),
                Err(_) => Err(self.hangs()),
            },
        };
        result.or_else(|why| if refuse { Err(Unwritten(why)) } else { Ok(()) })
    }

    /// The disk hangs: whoever comes next need not wait for it too. The writer's next success says that it works again.
    fn hangs(&self) -> String {
        let why = format!("the disk took more than {} s", PATIENCE.as_secs());
        self.metrics.audit_failed();
        if self.state.works.swap(false, Ordering::AcqRel) {
            tracing::error!(why, "the audit log cannot be written");
        }
        why
    }

    /// Puts on record what has happened already, or what no broken log may prevent: ends, revocations, refusals. Does not
    /// wait.
    pub fn note(&self, event: Event<'_>) {
        self.count(&event);
        self.tell_repeats(None, false);
        if let Event::Refused(refused) = &event {
            // Whoever may ask may be refused, as often as they like: a flood must not fill the disk.
            let strangers = refused.is_of_stranger();
            let budget = if strangers { &self.refusals.strangers } else { &self.refusals.known };
            let (write, dropped) = budget.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
            if dropped > 0 {
                self.hand_in(&Event::RefusalsOmitted { count: dropped, strangers });
            }
            if !write {
                return;
            }
        }
        self.hand_in(&event);
    }

    fn count(&self, event: &Event<'_>) {
        let code = match event {
            Event::Refused(refused) => refused.refusal.map(Refusal::code),
            _ => None,
        };
        self.metrics.event(event.kind(), code);
    }

    fn hand_in(&self, event: &Event<'_>) {
        if self.sender.is_some() {
            self.hand_in_line(event.to_json(self.clock.now()));
        }
    }

    fn hand_in_line(&self, json: String) {
        let Some(sender) = &self.sender else { return };
        let line = Line { json, done: None };
        if sender.try_send(Message::Line(line)).is_err() {
            self.lost();
        }
    }

    fn lost(&self) {
        self.state.lost.fetch_add(1, Ordering::AcqRel);
        self.metrics.audit_lost(1);
    }

    /// Opens the path again, as after a rotation. What was written so far stays where it is.
    ///
    /// # Errors
    /// The new file cannot be used; the old one goes on.
    pub fn reopen(&self) -> Result<(), String> {
        let Some(sender) = &self.sender else { return Ok(()) };
        let (done, reopened) = oneshot::channel();
        sender.send(Message::Reopen(done)).map_err(|_| "its writer has stopped".to_owned())?;
        reopened.blocking_recv().unwrap_or_else(|_| Err("its writer has stopped".into()))
    }

    /// Writes and syncs all that was handed in.
    pub fn close(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(thread), Some(sender)) = (thread, &self.sender) {
            self.tell_repeats(None, true);
            let _ = sender.send(Message::Stop);
            let _ = thread.join();
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.close();
    }
}
