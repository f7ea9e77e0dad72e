//! The thread that writes. Lines that came while the last write was under way go together into the next: one write, and
//! where asked for one fsync, for however many wait.
//!
//! A line that could not be written waits here, in order, until the file works again: what was handed in is lost only
//! when too much of it waits, and then a line says how much.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context;
use credd_protocol::hex;
use tokio::sync::oneshot;

use super::event::Event;
use super::file::{LogFile, Medium};
use super::{Fsync, Line, Message, Settings, State};
use crate::clock::Clock;
use crate::metrics::Metrics;

/// `fsync = "interval"`; also how often a broken file is tried again, and a rotated one is noticed at the latest.
const INTERVAL: Duration = Duration::from_secs(1);

/// The most lines of one write.
const BATCH: usize = 4096;

/// The most lines that wait for a broken file.
const BACKLOG: usize = 16_384;

pub(super) struct Writer {
    path: PathBuf,
    fsync: Fsync,
    clock: Arc<dyn Clock>,
    state: Arc<State>,
    metrics: Arc<Metrics>,
    file: Box<dyn Medium>,
    /// Tells one process' lines from another's; they are numbered from 1.
    run: String,
    number: u64,
    waiting: VecDeque<Waiting>,
    /// So much of the first that waits is in the file.
    begun: usize,
    unsynced: bool,
    ticked: Instant,
    trouble: Option<String>,
}

struct Waiting {
    bytes: Vec<u8>,
    done: Option<oneshot::Sender<Result<(), String>>>,
}

impl Writer {
    pub(super) fn open(
        settings: &Settings,
        clock: Arc<dyn Clock>,
        state: Arc<State>,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let file = LogFile::open(&settings.path)
            .with_context(|| format!("the audit log {} cannot be used ([audit] path)", settings.path.display()))?;
        Self::over(Box::new(file), settings, clock, state, metrics)
    }

    pub(super) fn over(
        file: Box<dyn Medium>,
        settings: &Settings,
        clock: Arc<dyn Clock>,
        state: Arc<State>,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let mut run = [0u8; 4];
        getrandom::fill(&mut run).context("no random bits")?;
        Ok(Writer {
            path: settings.path.clone(),
            fsync: settings.fsync,
            clock,
            state,
            metrics,
            file,
            run: hex::encode(&run),
            number: 0,
            waiting: VecDeque::new(),
            begun: 0,
            unsynced: false,
            ticked: Instant::now(),
            trouble: None,
        })
    }

    /// Until the log is closed.
    pub(super) fn run(mut self, receiver: &Receiver<Message>) {
        loop {
            // Without anything to do at the next tick there is none.
            let idle = (!self.unsynced || self.fsync == Fsync::Never) && self.waiting.is_empty();
            let first = if idle {
                receiver.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                receiver.recv_timeout(INTERVAL.saturating_sub(self.ticked.elapsed()))
            };
            let mut going = !matches!(first, Err(RecvTimeoutError::Disconnected));
            let more = std::iter::from_fn(|| receiver.try_recv().ok());
            for message in first.into_iter().chain(more).take(BATCH) {
                match message {
                    Message::Line(line) => self.take(line),
                    Message::Reopen(done) => {
                        // What came before the rotation belongs before it.
                        self.write();
                        let _ = done.send(self.reopen());
                    }
                    Message::Stop => going = false,
                }
            }
            if self.ticked.elapsed() >= INTERVAL {
                self.tick();
            }
            self.write();
            if !going {
                // What was lost, if the file has just begun to work again.
                self.write();
                let _ = self.sync();
                return;
            }
        }
    }

    /// Numbers a line.
    fn take(&mut self, line: Line) {
        self.number += 1;
        let rest = line.json.strip_prefix('{').unwrap_or(&line.json);
        let bytes = format!("{{\"v\":1,\"run\":\"{}\",\"seq\":{},{rest}\n", self.run, self.number).into_bytes();
        self.waiting.push_back(Waiting { bytes, done: line.done });
    }

    fn tick(&mut self) {
        self.ticked = Instant::now();
        if self.fsync != Fsync::Never {
            let _ = self.sync();
        }
        if self.file.is_elsewhere() {
            // Else lines would go to a file that nobody looks at, or that is gone.
            let _ = self.reopen();
        }
    }

    /// Writes what waits, and answers who waits for it.
    fn write(&mut self) {
        let lost = if self.trouble.is_none() { self.state.lost.swap(0, Ordering::AcqRel) } else { 0 };
        if lost > 0 {
            let event = Event::LinesLost { count: lost };
            self.take(Line { json: event.to_json(self.clock.now()), done: None });
        }
        if self.waiting.is_empty() {
            return;
        }
        let bytes: Vec<u8> = self.waiting.iter().flat_map(|line| &line.bytes).copied().collect();
        let mut from = self.begun;
        let mut result = Ok(());
        while from < bytes.len() {
            match self.file.append(&bytes[from..]) {
                Ok(0) => result = Err("nothing was written".to_owned()),
                Ok(n) => from += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => result = Err(error.to_string()),
            }
            if result.is_err() {
                break;
            }
        }
        self.unsynced |= from > self.begun;
        let mut written = vec![];
        while let Some(line) = self.waiting.pop_front_if(|line| line.bytes.len() <= from) {
            from -= line.bytes.len();
            written.push(line.done);
        }
        self.begun = from;
        self.metrics.audit_written(written.len() as u64);
        let synced = if self.fsync == Fsync::Each && !written.is_empty() { self.sync() } else { Ok(()) };
        for done in written.into_iter().flatten() {
            let _ = done.send(synced.clone());
        }
        if let Err(why) = result {
            self.broken(&why);
        } else if synced.is_ok() {
            self.mended();
        }
    }

    fn sync(&mut self) -> Result<(), String> {
        if !self.unsynced {
            return Ok(());
        }
        let result = self.file.sync().map_err(|error| format!("fsync: {error}"));
        self.unsynced = result.is_err();
        self.metrics.audit_synced();
        if let Err(why) = &result {
            self.broken(why);
        }
        result
    }

    /// Nobody waits any longer; the lines do, as many as there is room for.
    fn broken(&mut self, why: &str) {
        self.state.works.store(false, Ordering::Release);
        self.metrics.audit_failed();
        for line in &mut self.waiting {
            if let Some(done) = line.done.take() {
                let _ = done.send(Err(why.to_owned()));
            }
        }
        let excess = self.waiting.len().saturating_sub(BACKLOG);
        self.waiting.truncate(BACKLOG);
        self.state.lost.fetch_add(excess as u64, Ordering::AcqRel);
        self.metrics.audit_lost(excess as u64);
        if self.trouble.as_deref() != Some(why) {
            tracing::error!(path = %self.path.display(), why, "the audit log cannot be written");
            self.trouble = Some(why.to_owned());
        }
    }

    fn mended(&mut self) {
        let worked = self.state.works.swap(true, Ordering::AcqRel);
        if self.trouble.take().is_some() || !worked {
            tracing::warn!(path = %self.path.display(), "the audit log works again");
        }
    }

    fn reopen(&mut self) -> Result<(), String> {
        let _ = self.sync();
        match self.file.reopen() {
            Ok(()) => {
                // The line that was begun in the other file is whole in this one.
                self.begun = 0;
                Ok(())
            }
            Err(error) => {
                let why = format!("{} cannot be opened: {error}; the file opened before goes on", self.path.display());
                tracing::error!("{why}");
                Err(why)
            }
        }
    }
}
