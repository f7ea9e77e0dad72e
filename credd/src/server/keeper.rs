//! The server's end of the socket pair: what the keeper (root) says, and what it is told.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use credd_protocol::JobId;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use crate::config::Config;
use crate::control::{MAX_LINE_BYTES, ToKeeper, ToServer};
use crate::handover;

/// The keeper signs with a local munged in well under a millisecond; if it does not answer, munged hangs.
const SIGN_PATIENCE: Duration = Duration::from_secs(5);

/// Questions about records that the keeper has not answered. More are not asked: it hangs, and its queue must not grow.
const MAX_LOOKS: usize = 256;

/// What to sign.
#[derive(Debug)]
pub struct ToSign<'a> {
    /// `GET` or `POST`.
    pub method: &'a str,
    /// Under `/node/v1/`.
    pub path: &'a str,
    /// SHA-256 of the body, hex.
    pub body: String,
    /// SHA-256 of credvend's certificate, hex, or empty.
    pub server: String,
}

/// Says things to the keeper.
///
/// The queue has no bound of its own: each message answers one of the keeper's, or stands for one of a bounded number
/// of jobs, of requests to credvend and of looks.
pub struct Keeper {
    out: RefCell<Option<mpsc::UnboundedSender<ToKeeper>>>,
    asked: RefCell<HashMap<u64, oneshot::Sender<Result<String, String>>>>,
    looks: RefCell<HashMap<u64, oneshot::Sender<()>>>,
    next: Cell<u64>,
}

impl Keeper {
    /// One that writes into `out`.
    pub fn new(out: mpsc::UnboundedSender<ToKeeper>) -> Rc<Self> {
        Rc::new(Keeper {
            out: RefCell::new(Some(out)),
            asked: RefCell::default(),
            looks: RefCell::default(),
            next: Cell::new(1),
        })
    }

    /// Says `message`. If the keeper is gone, the reading side has noticed already.
    pub fn tell(&self, message: ToKeeper) {
        if let Some(out) = &*self.out.borrow() {
            let _ = out.send(message);
        }
    }

    /// Says nothing more: the writer ends when everything said is written.
    pub fn close(&self) {
        self.out.borrow_mut().take();
    }

    /// A MUNGE credential for one attempt at one request.
    ///
    /// # Errors
    /// The keeper's sentence, or that it did not answer.
    pub async fn sign(&self, what: ToSign<'_>) -> Result<String, String> {
        let id = self.new_id();
        let (sender, receiver) = oneshot::channel();
        self.asked.borrow_mut().insert(id, sender);
        self.tell(ToKeeper::Sign {
            id,
            method: what.method.to_owned(),
            path: what.path.to_owned(),
            body: what.body,
            server: what.server,
        });
        let answer = tokio::time::timeout(SIGN_PATIENCE, receiver).await;
        self.asked.borrow_mut().remove(&id);
        match answer {
            Ok(Ok(answer)) => answer,
            _ => Err("this node's credd got no MUNGE credential in time; is munged well?".to_owned()),
        }
    }

    /// Has the keeper look for a job's record. What comes is done when it has looked, and after everything that it found
    /// was heard; `None` if too many such questions are without an answer.
    pub fn look(&self, job: JobId) -> Option<oneshot::Receiver<()>> {
        // Those whose asker went away stand in the keeper's queue all the same.
        if self.looks.borrow().len() >= MAX_LOOKS {
            return None;
        }
        let id = self.new_id();
        let (sender, receiver) = oneshot::channel();
        self.looks.borrow_mut().insert(id, sender);
        self.tell(ToKeeper::Look { id, job });
        Some(receiver)
    }

    /// The keeper's answer to a [`ToKeeper::Look`].
    pub fn looked(&self, id: u64) {
        if let Some(sender) = self.looks.borrow_mut().remove(&id) {
            let _ = sender.send(());
        }
    }

    fn new_id(&self) -> u64 {
        self.next.replace(self.next.get() + 1)
    }

    /// The keeper's answer to a [`ToKeeper::Sign`].
    pub fn signed(&self, id: u64, credential: Result<String, String>) {
        // None: it came too late.
        if let Some(sender) = self.asked.borrow_mut().remove(&id) {
            let _ = sender.send(credential);
        }
    }
}

/// Reads the next message; `None` at the end.
///
/// # Errors
/// A line that is too long or not understood: the two processes are of different builds, or the keeper is broken.
pub async fn next_message(from: &mut BufReader<OwnedReadHalf>, line: &mut Vec<u8>) -> anyhow::Result<Option<ToServer>> {
    line.clear();
    let limit = u64::try_from(MAX_LINE_BYTES).expect("a small constant");
    let read = (&mut *from).take(limit).read_until(b'\n', line).await.context("reading from the keeper")?;
    if read == 0 {
        return Ok(None);
    }
    anyhow::ensure!(line.ends_with(b"\n"), "the keeper sent a line of more than {MAX_LINE_BYTES} bytes, or broke off");
    serde_json::from_slice(line).map(Some).context("the keeper sent a line that this server does not understand")
}

/// Reads the configuration that follows [`ToServer::Configure`].
///
/// # Errors
/// The keeper is gone, or what it sent is no configuration: the two processes are of different builds.
pub async fn configuration(from: &mut BufReader<OwnedReadHalf>, bytes: u32) -> anyhow::Result<Config> {
    let mut json = Zeroizing::new(vec![0; handover::bounded(bytes)?]);
    from.read_exact(&mut json).await.context("reading the configuration from the keeper")?;
    // Not with its cause, which could quote a key.
    serde_json::from_slice(&json).map_err(|_| anyhow::anyhow!("the keeper sent a configuration that is none"))
}

/// Writes what is queued until the queue or the socket closes.
pub async fn write_messages(mut to: OwnedWriteHalf, mut queue: mpsc::UnboundedReceiver<ToKeeper>) {
    while let Some(message) = queue.recv().await {
        let mut line = serde_json::to_vec(&message).expect("plain values");
        line.push(b'\n');
        if to.write_all(&line).await.is_err() {
            return;
        }
    }
}
