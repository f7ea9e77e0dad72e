//! The statements about notes.

use rusqlite::{Connection, OptionalExtension, params};

use super::cursor::Place;
use crate::store::PAGE;

pub(super) fn put(db: &Connection, kind: &str, key: &str, text: &str) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO notes (kind, key, text) VALUES (?1, ?2, ?3) ON CONFLICT (kind, key) DO UPDATE SET text = excluded.text",
    )?
    .execute([kind, key, text])?;
    Ok(())
}

pub(super) const GET: &str = "SELECT text FROM notes WHERE kind = ?1 AND key = ?2";

pub(super) fn get(db: &Connection, kind: &str, key: &str) -> rusqlite::Result<Option<String>> {
    db.prepare_cached(GET)?.query_row([kind, key], |row| row.get(0)).optional()
}

pub(super) const REMOVE: &str = "DELETE FROM notes WHERE kind = ?1 AND key = ?2";

pub(super) fn remove(db: &Connection, kind: &str, key: &str) -> rusqlite::Result<()> {
    db.prepare_cached(REMOVE)?.execute([kind, key])?;
    Ok(())
}

pub(super) const LIST: &str = "SELECT key, text, seq FROM notes INDEXED BY notes_listed
     WHERE kind = ?1 AND seq < ?2 ORDER BY seq DESC LIMIT ?3";

pub(super) fn list(
    db: &Connection,
    kind: &str,
    from: Option<Place>,
) -> rusqlite::Result<Vec<(Place, (String, String))>> {
    let from = from.unwrap_or(Place::NEWEST);
    db.prepare_cached(LIST)?
        .query_map(params![kind, from.seq, PAGE as i64 + 1], |row| {
            Ok((Place { at: 0, seq: row.get(2)? }, (row.get(0)?, row.get(1)?)))
        })?
        .collect()
}
