//! The database file: who may reach it, what it is, and its schema.

use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use rusqlite_migration::{Error as MigrationError, M, MigrationDefinitionError, Migrations};

use super::errors::explain;
use crate::disk;
use crate::store::StoreError;

const FIRST: &str = include_str!("migrations/001-first.sql");
const RUNS: &str = include_str!("migrations/002-runs.sql");
const ORDERS: &str = include_str!("migrations/003-orders.sql");
const NOTES: &str = include_str!("migrations/004-notes.sql");
const ORDERED: &str = include_str!("migrations/005-ordered.sql");
const STEPS: &[M<'_>] = &[M::up(FIRST), M::up(RUNS), M::up(ORDERS), M::up(NOTES), M::up(ORDERED)];
/// How many steps there are: the number in `user_version`.
pub(super) const SCHEMA: usize = STEPS.len();

/// "credd" in the file's header: another program's database is refused before it is touched.
const APPLICATION_ID: i32 = 0x6372_6464;

/// How long SQLite itself waits for a lock of another process, such as a backup.
const BUSY: Duration = Duration::from_secs(5);

/// The log is copied into the file after so many pages (32 MiB): the more, the more often a page that many commits
/// changed is copied once only; the less, the shorter the commit that has to wait for it.
const CHECKPOINT_PAGES: i64 = 8192;

/// The writer's page cache.
const CACHE_KIB: i64 = 16 * 1024;

/// Files up to this size are checked as a whole at every start (about a second for this much).
const CHECKED_BYTES: u64 = 256 << 20;

/// Opens the file for writing, with its schema up to date.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    check_directory(path)?;
    let size = make_or_check(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut connection = Connection::open_with_flags(path, flags).map_err(|e| explain(path, &e))?;
    prepare(path, &mut connection, size).map_err(|e| match e {
        Failed::Sqlite(e) => explain(path, &e),
        Failed::Said(e) => e,
    })?;
    Ok(connection)
}

/// Opens the file once more, for reading only.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    // Not SQLITE_OPEN_READ_ONLY: a reader of a WAL database must be able to make its shared-memory file.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let open = || -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "query_only", true)?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(connection)
    };
    open().map_err(|e| explain(path, &e))
}

/// The number of the file's schema. Nothing of the file is changed: a running credvend of another release may have it.
pub(super) fn look(path: &Path) -> Result<usize, StoreError> {
    check_directory(path)?;
    let size = make_or_check(path)?;
    if let Some(why) = disk::why_not_writable(path) {
        return Err(StoreError::Broken(format!("{} cannot be written: {why}", path.display())));
    }
    let connection = open_reader(path)?;
    let seen = own_and_whole(path, &connection, size)
        .and_then(|()| Ok(connection.pragma_query_value(None, "user_version", |row| row.get::<_, u32>(0))?));
    match seen {
        Ok(schema) if schema as usize > SCHEMA => Err(newer(path)),
        Ok(schema) => Ok(schema as usize),
        Err(Failed::Sqlite(e)) => Err(explain(path, &e)),
        Err(Failed::Said(e)) => Err(e),
    }
}

enum Failed {
    Sqlite(rusqlite::Error),
    Said(StoreError),
}

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Self {
        Failed::Sqlite(error)
    }
}

/// Whether it is a database of ours, or an empty one, and whole as far as its size lets it be checked.
fn own_and_whole(path: &Path, connection: &Connection, size: u64) -> Result<(), Failed> {
    let at = path.display();
    let said = |text: String| Err(Failed::Said(StoreError::Broken(text)));
    let id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if id != APPLICATION_ID && (id != 0 || tables != 0) {
        return said(format!("{at} is another program's database; name another file"));
    }
    if size > 0 && size <= CHECKED_BYTES {
        let verdict: String = connection.pragma_query_value(None, "quick_check", |row| row.get(0))?;
        if verdict != "ok" {
            return said(format!(
                "{at} is corrupt ({verdict:?}); stop credvend, keep the file, and restore a backup or start with a new one"
            ));
        }
    }
    Ok(())
}

fn newer(path: &Path) -> StoreError {
    let at = path.display();
    StoreError::Broken(format!(
        "{at} was written by a newer credvend than this one, which knows schema {SCHEMA}; install the newer version again"
    ))
}

fn prepare(path: &Path, connection: &mut Connection, size: u64) -> Result<(), Failed> {
    let at = path.display();
    let said = |text: String| Err(Failed::Said(StoreError::Broken(text)));
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(64);
    own_and_whole(path, connection, size)?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return said(format!(
            "{at} cannot use a write-ahead log (it stays in mode {mode:?}); put it on a local file system, not on a network's"
        ));
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    match Migrations::from_slice(STEPS).to_latest(connection) {
        Ok(()) => Ok(()),
        Err(MigrationError::MigrationDefinition(MigrationDefinitionError::DatabaseTooFarAhead)) => {
            Err(Failed::Said(newer(path)))
        }
        Err(MigrationError::RusqliteError { err, .. }) => Err(Failed::Sqlite(err)),
        Err(e) => said(format!("{at}: its schema cannot be brought up to date: {e}")),
    }
}

/// The directory decides who can replace the file, so it must be nobody else's.
fn check_directory(path: &Path) -> Result<(), StoreError> {
    let broken = |text: String| Err(StoreError::Broken(text));
    let Some(directory) = path.parent().filter(|p| path.is_absolute() && !p.as_os_str().is_empty()) else {
        return broken(format!("{} is not an absolute path of a file", path.display()));
    };
    let at = directory.display();
    if !directory.exists() {
        // Only the last part: a missing parent is as a rule a mount that is not there.
        if let Err(e) = DirBuilder::new().mode(0o700).create(directory) {
            return broken(format!("the directory {at} does not exist and cannot be made: {e}"));
        }
    }
    let meta = match directory.metadata() {
        Ok(meta) => meta,
        Err(e) => return broken(format!("the directory {at} cannot be looked at: {e}")),
    };
    let me = nix::unistd::geteuid().as_raw();
    if !meta.is_dir() {
        return broken(format!("{at} is not a directory"));
    }
    if meta.uid() != me && meta.uid() != 0 {
        return broken(somebody_elses(&format!("the directory {at}"), meta.uid(), me));
    }
    if meta.mode() & 0o022 != 0 {
        return broken(format!("others can write the directory {at} (mode {:o}): chmod go-w it", meta.mode() & 0o7777));
    }
    Ok(())
}

/// What to do depends on which of the two is the mistake; as a rule an administrator's command was run as root.
fn somebody_elses(what: &str, owner: u32, me: u32) -> String {
    let named = |uid: u32| {
        let user = nix::unistd::User::from_uid(uid.into()).ok().flatten();
        user.map_or_else(|| format!("uid {uid}"), |user| format!("{} (uid {uid})", user.name))
    };
    let (owner, me) = (named(owner), named(me));
    format!("{what} belongs to {owner}, and this is run as {me}; run it as its owner, or let credvend's user own it")
}

#[cfg(test)]
#[test]
fn who_owns_what_is_said_by_name() {
    let said = somebody_elses("the directory /x", 4_000_000_001, 0);
    assert_eq!(
        said,
        "the directory /x belongs to uid 4000000001, and this is run as root (uid 0); run it as its owner, or let \
         credvend's user own it"
    );
}

/// Makes the file (0600; SQLite gives its companions the same mode) or looks at the one there is. Returns its size.
fn make_or_check(path: &Path) -> Result<u64, StoreError> {
    let at = path.display();
    let broken = |text: String| Err(StoreError::Broken(text));
    let open = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits() | nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open(path);
    let meta = match open.and_then(|f| f.metadata()) {
        Ok(meta) => meta,
        Err(e) => return broken(format!("{at} cannot be opened for writing: {e}")),
    };
    let me = nix::unistd::geteuid().as_raw();
    if !meta.is_file() {
        return broken(format!("{at} is not a regular file"));
    }
    if meta.uid() != me {
        return broken(somebody_elses(&at.to_string(), meta.uid(), me));
    }
    if meta.mode() & 0o077 != 0 {
        return broken(format!("others can reach {at} (mode {:o}): chmod 600 it", meta.mode() & 0o7777));
    }
    Ok(meta.len())
}
