//! SQLite's errors in words.

use std::path::Path;

use rusqlite::{Error, ErrorCode};

use crate::store::StoreError;

/// What an error of SQLite means for the administrator.
pub(super) fn explain(path: &Path, error: &Error) -> StoreError {
    let at = path.display();
    let Error::SqliteFailure(failure, _) = error else {
        return StoreError::Broken(format!("{at}: {error}"));
    };
    match failure.code {
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => StoreError::Unavailable(format!(
            "another process holds {at} locked ({error}); only one credvend may use it, and backups must use sqlite3's .backup"
        )),
        ErrorCode::OperationInterrupted | ErrorCode::OutOfMemory | ErrorCode::SchemaChanged => {
            StoreError::Unavailable(format!("{at}: {error}"))
        }
        ErrorCode::DiskFull => StoreError::Broken(format!("no space is left for {at}; free some on its file system")),
        ErrorCode::ReadOnly => {
            StoreError::Broken(format!("{at} cannot be written ({error}); check the mount, the file's owner and mode"))
        }
        ErrorCode::DatabaseCorrupt => StoreError::Broken(format!(
            "{at} is corrupt ({error}); stop credvend, keep the file, and restore a backup or start with a new one"
        )),
        ErrorCode::NotADatabase => {
            StoreError::Broken(format!("{at} is not an SQLite database; move it away or name another file"))
        }
        ErrorCode::CannotOpen | ErrorCode::PermissionDenied => StoreError::Broken(format!(
            "{at} cannot be opened ({error}); check that its directory exists and is credvend's"
        )),
        ErrorCode::SystemIoFailure => StoreError::Broken(format!(
            "reading or writing {at} failed ({error}); look at the disk and the kernel's log"
        )),
        _ => StoreError::Broken(format!("{at}: {error}")),
    }
}
