//! Notes: a text under a kind and a key.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::db::Db;
use super::item::{Item, Row, SK, key, put, text};
use super::walk::Walk;
use super::{cursor, keys, long_text};
use crate::store::archive::Record;
use crate::store::{Cursor, PAGE, Page, StoreError};

const NOTE_KEY: &str = "NoteKey";
const KIND: &str = "NoteKind";
const NOTE: &str = "NoteText";

fn partition(kind: &str, shard: u8) -> String {
    format!("notes#{shard}#{}", keys::bounded(kind))
}

fn note_key(kind: &str, note: &str) -> Item {
    let shard = Sha256::digest(note.as_bytes())[0] % keys::SHARDS;
    key(partition(kind, shard), keys::bounded(note))
}

pub(super) async fn put_note(db: &Db, kind: &str, note: &str, words: &str) -> Result<(), StoreError> {
    let mut item = note_key(kind, note);
    let old = db.get(&db.tables.state, item.clone()).await?;
    put(&mut item, NOTE_KEY, text(note));
    put(&mut item, KIND, text(kind));
    long_text::write(db, &mut item, NOTE, words, long_text::MUCH).await?;
    db.write_all(&db.tables.state, vec![item], vec![]).await?;
    match old {
        Some(old) => long_text::delete(db, &old, NOTE).await,
        None => Ok(()),
    }
}

pub(super) async fn get(db: &Db, kind: &str, note: &str) -> Result<Option<String>, StoreError> {
    match db.get(&db.tables.state, note_key(kind, note)).await? {
        Some(item) => long_text::read(db, &item, NOTE).await,
        None => Ok(None),
    }
}

pub(super) async fn remove(db: &Db, kind: &str, note: &str) -> Result<(), StoreError> {
    if let Some(old) = db.get(&db.tables.state, note_key(kind, note)).await? {
        db.write_all(&db.tables.state, vec![], vec![note_key(kind, note)]).await?;
        long_text::delete(db, &old, NOTE).await?;
    }
    Ok(())
}

/// An item as a record of a copy.
pub(super) async fn record(db: &Db, item: &Item) -> Result<Record, StoreError> {
    let row = Row(item);
    let words = long_text::read(db, item, NOTE).await?.ok_or_else(|| row.broken(NOTE, "it is missing"))?;
    Ok(Record::Note { kind: row.text(KIND)?.to_owned(), key: row.text(NOTE_KEY)?.to_owned(), text: words })
}

pub(super) async fn list(
    db: &Arc<Db>,
    kind: &str,
    from: Option<&Cursor>,
) -> Result<Page<(String, String)>, StoreError> {
    let scope = cursor::scope("notes", &kind)?;
    let from = from.map(|c| cursor::read(&scope, c)).transpose()?.unwrap_or(keys::HIGHEST.into());
    let group = (0..keys::SHARDS).map(|shard| partition(kind, shard)).collect();
    let mut walk = Walk::new(db, &db.tables.state, [group], (" ", &from), Some(PAGE as i32 / 2));
    let mut found = vec![];
    while found.len() <= PAGE {
        let Some(item) = walk.next().await? else { break };
        let row = Row(&item);
        if let Some(words) = long_text::read(db, &item, NOTE).await? {
            found.push((row.text(SK)?.to_owned(), (row.text(NOTE_KEY)?.to_owned(), words)));
        }
    }
    Ok(cursor::page(&scope, found, PAGE))
}
