//! The one thread that writes. What has gathered while it was waiting for the disk goes into one commit.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::errors::explain;
use super::place::Place;
use crate::store::StoreError;

/// Writes that may wait. More callers than these wait for a place, at most [`PATIENCE`].
const QUEUE: usize = 4096;

/// The most writes of one commit: bounds how long the first of them waits for the last.
const BATCH: usize = 512;

/// How long a caller waits for a place in the queue.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tells the caller what became of its write, once the commit's fate is known.
type Tell = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// A write: runs inside the shared transaction, or not at all where there is none.
type Work = Box<dyn FnOnce(Option<&Connection>) -> Tell + Send>;

pub(super) struct Writer {
    queue: mpsc::Sender<Work>,
    path: PathBuf,
}

impl Writer {
    /// The thread ends when the writer is dropped and the queue is empty.
    pub(super) fn start(connection: Connection, path: &Path) -> Result<Self, StoreError> {
        let (queue, work) = mpsc::channel(QUEUE);
        let at = path.to_owned();
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || run(connection, work, &at))
            .map_err(|e| StoreError::Broken(format!("the store's writing thread cannot be started: {e}")))?;
        Ok(Writer { queue, path: path.to_owned() })
    }

    /// Runs `op` in a transaction and returns its value once it is durable. A caller that goes away does not stop the
    /// write: every write is an intent that may be repeated.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        op: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let path = self.path.clone();
        let work: Work = Box::new(move |db| {
            let result = db.map_or(Err(rusqlite::Error::InvalidQuery), |db| in_savepoint(db, op));
            Box::new(move |committed| {
                let _ = answer.send(match (committed, result) {
                    (Err(e), _) => Err(e),
                    (Ok(()), Err(e)) => Err(explain(&path, &e)),
                    (Ok(()), Ok(value)) => Ok(value),
                });
            })
        });
        let gone = || StoreError::Broken("the store's writing thread has ended".into());
        match tokio::time::timeout(PATIENCE, self.queue.send(work)).await {
            Err(_) => {
                return Err(StoreError::Unavailable(format!("{QUEUE} writes wait already; the disk does not keep up")));
            }
            Ok(Err(_)) => return Err(gone()),
            Ok(Ok(())) => {}
        }
        answered.await.map_err(|_| gone())?
    }
}

/// A write of several statements is undone as a whole when one of them fails.
fn in_savepoint<T>(db: &Connection, op: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    db.prepare_cached("SAVEPOINT op")?.execute([])?;
    let result = op(db);
    // After a full disk or an I/O error SQLite may have rolled everything back, the savepoint with it.
    if !db.is_autocommit() {
        if result.is_err() {
            db.prepare_cached("ROLLBACK TO op")?.execute([])?;
        }
        db.prepare_cached("RELEASE op")?.execute([])?;
    }
    result
}

fn run(mut db: Connection, mut queue: mpsc::Receiver<Work>, path: &Path) {
    let mut batch: VecDeque<Work> = VecDeque::new();
    let mut place = Place::of(path);
    while let Some(first) = queue.blocking_recv() {
        batch.push_back(first);
        while batch.len() < BATCH {
            match queue.try_recv() {
                Ok(work) => batch.push_back(work),
                Err(_) => break,
            }
        }
        commit(&mut db, &mut batch, &mut place, path);
    }
}

/// Why a batch was not written.
enum Failed {
    Sqlite(rusqlite::Error),
    /// The file is not where it was.
    Moved(String),
}

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Self {
        Failed::Sqlite(error)
    }
}

impl Failed {
    fn explain(&self, path: &Path) -> StoreError {
        match self {
            Failed::Sqlite(error) => explain(path, error),
            Failed::Moved(why) => StoreError::Broken(why.clone()),
        }
    }
}

/// One transaction. If it cannot begin, or breaks, or cannot commit, every caller hears so: nothing was written.
fn commit(db: &mut Connection, batch: &mut VecDeque<Work>, place: &mut Place, path: &Path) {
    let mut told: Vec<Tell> = Vec::with_capacity(batch.len());
    let result = (|| -> Result<(), Failed> {
        place.changed().map_or(Ok(()), |why| Err(Failed::Moved(why)))?;
        db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        while let Some(work) = batch.pop_front() {
            told.push(work(Some(db)));
            if db.is_autocommit() {
                // SQLite rolled the transaction back by itself; what follows must not be written outside of one.
                return Err(Failed::Sqlite(rusqlite::Error::SqliteFailure(
                    rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL),
                    Some("the transaction was rolled back".into()),
                )));
            }
        }
        db.prepare_cached("COMMIT")?.execute([])?;
        // A file that went away meanwhile took this commit with it.
        place.changed().map_or(Ok(()), |why| Err(Failed::Moved(why)))
    })();
    if let Err(failed) = &result {
        if !db.is_autocommit()
            && let Err(e) = db.execute_batch("ROLLBACK")
        {
            tracing::error!(error = %e, "a failed transaction could not be rolled back");
        }
        tracing::error!(error = %failed.explain(path), writes = told.len() + batch.len(), "nothing was written");
    }
    let verdict = || result.as_ref().copied().map_err(|failed| failed.explain(path));
    // Those that did not run hear it too.
    told.extend(batch.drain(..).map(|work| work(None)));
    told.into_iter().for_each(|tell| tell(verdict()));
}
