//! The reading connections. With a write-ahead log they neither wait for the writer nor make it wait, and each read
//! sees everything that was committed before it began.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::errors::explain;
use super::file;
use crate::store::StoreError;

const CONNECTIONS: usize = 4;

/// How long a caller waits for a connection.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Readers {
    idle: Arc<Mutex<Vec<Connection>>>,
    free: Arc<Semaphore>,
    path: PathBuf,
}

impl Readers {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let connections = (0..CONNECTIONS).map(|_| file::open_reader(path)).collect::<Result<Vec<_>, _>>()?;
        Ok(Readers {
            idle: Arc::new(Mutex::new(connections)),
            free: Arc::new(Semaphore::new(CONNECTIONS)),
            path: path.to_owned(),
        })
    }

    pub(super) async fn read<T: Send + 'static>(
        &self,
        op: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = match tokio::time::timeout(PATIENCE, self.free.clone().acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            _ => return Err(StoreError::Unavailable("too many reads wait already".into())),
        };
        let (idle, path) = (self.idle.clone(), self.path.clone());
        let job = move || {
            let pooled = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let db = match pooled {
                Some(db) => db,
                // A read that panicked took its connection with it.
                None => file::open_reader(&path)?,
            };
            let result = op(&db).map_err(|e| explain(&path, &e));
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(db);
            drop(permit);
            result
        };
        match tokio::task::spawn_blocking(job).await {
            Ok(result) => result,
            Err(e) => Err(StoreError::Broken(format!("a read of the store ended abnormally: {e}"))),
        }
    }
}
