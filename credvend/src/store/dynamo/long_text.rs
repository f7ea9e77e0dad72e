//! Texts that may not fit an item: DynamoDB holds 400 KB in one. What is longer is cut into pieces in a partition of their
//! own, written before the item that names them, so that whoever sees the item finds them.

use super::db::Db;
use super::item::{Item, Row, key, put, text};
use super::keys;
use crate::store::StoreError;

/// So much stands in the item itself where it is read with it anyway.
pub(super) const MUCH: usize = 200_000;
/// And so much where the item is read and written often without it: DynamoDB counts whole items.
pub(super) const LITTLE: usize = 2_000;
/// One piece.
const PIECE: usize = 350_000;
/// The attribute of a piece.
const PIECE_TEXT: &str = "PieceText";

/// Puts a text into an item, or its pieces beside it.
pub(super) async fn write(db: &Db, item: &mut Item, name: &str, long: &str, inline: usize) -> Result<(), StoreError> {
    if long.len() <= inline {
        put(item, name, text(long));
        return Ok(());
    }
    let of = uuid::Uuid::new_v4().to_string();
    let mut rest = long;
    let mut pieces = vec![];
    while !rest.is_empty() {
        let mut end = rest.len().min(PIECE);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (piece, after) = rest.split_at(end);
        let mut item = key(keys::pieces(&of), format!("{:04}", pieces.len()));
        put(&mut item, PIECE_TEXT, text(piece));
        pieces.push(item);
        rest = after;
    }
    put(item, &in_pieces(name), text(format!("{} {of}", pieces.len())));
    db.write_all(&db.tables.state, pieces, vec![]).await
}

fn in_pieces(name: &str) -> String {
    format!("{name}Pieces")
}

fn named(item: &Item, name: &str) -> Result<Option<(usize, String)>, StoreError> {
    let (row, attribute) = (Row(item), in_pieces(name));
    let Some(place) = row.opt_text(&attribute)? else { return Ok(None) };
    let (count, of) = place.split_once(' ').ok_or_else(|| row.broken(&attribute, "it names no pieces"))?;
    Ok(Some((count.parse().map_err(|e| row.broken(&attribute, e))?, of.to_owned())))
}

/// What an item has of a text.
pub(super) enum Found {
    /// It has none.
    Nothing,
    /// All of it.
    Whole(String),
    /// It names pieces, and some are not there.
    Gone,
}

/// Looks for the text.
pub(super) async fn find(db: &Db, item: &Item, name: &str) -> Result<Found, StoreError> {
    let Some((count, of)) = named(item, name)? else {
        return Ok(Row(item).opt_text(name)?.map_or(Found::Nothing, |text| Found::Whole(text.to_owned())));
    };
    let pieces = db.partition(&db.tables.state, &keys::pieces(&of), (keys::LOWEST, keys::HIGHEST)).await?;
    if pieces.len() != count {
        return Ok(Found::Gone);
    }
    let text = pieces.iter().map(|piece| Row(piece).text(PIECE_TEXT).map(str::to_owned));
    text.collect::<Result<String, _>>().map(Found::Whole)
}

/// Its pieces were replaced or deleted while it was read.
pub(super) fn gone() -> StoreError {
    StoreError::Unavailable("a long text in DynamoDB changed while it was read".into())
}

/// The text again; `None` if the item has none.
pub(super) async fn read(db: &Db, item: &Item, name: &str) -> Result<Option<String>, StoreError> {
    match find(db, item, name).await? {
        Found::Nothing => Ok(None),
        Found::Whole(text) => Ok(Some(text)),
        Found::Gone => Err(gone()),
    }
}

/// The keys of the pieces of an item.
pub(super) fn pieces(item: &Item, name: &str) -> Result<Vec<Item>, StoreError> {
    let Some((count, of)) = named(item, name)? else { return Ok(vec![]) };
    Ok((0..count).map(|i| key(keys::pieces(&of), format!("{i:04}"))).collect())
}

/// Deletes the pieces of an item that goes, or that was replaced.
pub(super) async fn delete(db: &Db, item: &Item, name: &str) -> Result<(), StoreError> {
    db.write_all(&db.tables.state, vec![], pieces(item, name)?).await
}
