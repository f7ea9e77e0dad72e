//! Page cursors: a place in a listing's order, tied to the listing it came from.
//!
//! The check digits are no secret: whoever may list may list everything. They catch a cursor that was cut, or that
//! belongs to another filter, before it silently skips rows.

use credd_protocol::hex;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::store::{Cursor, Page, StoreError};

/// The sort key of a row: the time it is ordered by, then its row number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) at: i64,
    pub(super) seq: i64,
}

impl Place {
    /// Before everything.
    pub(super) const NEWEST: Place = Place { at: i64::MAX, seq: i64::MAX };
}

/// What a cursor is good for: a listing and its filter.
pub(super) fn scope(listing: &str, filter: &impl Serialize) -> Result<String, StoreError> {
    let filter =
        serde_json::to_string(filter).map_err(|e| StoreError::Broken(format!("a filter cannot be written: {e}")))?;
    Ok(format!("{listing} {filter}"))
}

fn check_digits(scope: &str, place: Place) -> String {
    let hash = Sha256::digest(format!("{scope} {} {}", place.at, place.seq).as_bytes());
    hex::encode(&hash[..6])
}

pub(super) fn write(scope: &str, place: Place) -> Cursor {
    Cursor(format!("s1.{}.{}.{}", place.at, place.seq, check_digits(scope, place)))
}

pub(super) fn read(scope: &str, cursor: &Cursor) -> Result<Place, StoreError> {
    let bad = || StoreError::BadCursor;
    let rest = cursor.0.strip_prefix("s1.").filter(|r| r.len() < 64).ok_or_else(bad)?;
    let mut parts = rest.split('.');
    let (Some(at), Some(seq), Some(digits), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(bad());
    };
    let place = Place { at: at.parse().map_err(|_| bad())?, seq: seq.parse().map_err(|_| bad())? };
    if write(scope, place).0 != cursor.0 || digits.is_empty() {
        return Err(bad());
    }
    Ok(place)
}

/// A page of at most `size` items, of what was read with one row more.
pub(super) fn page<T>(scope: &str, mut rows: Vec<(Place, T)>, size: usize) -> Page<T> {
    let more = rows.len() > size;
    rows.truncate(size);
    let next = rows.last().filter(|_| more).map(|(place, _)| write(scope, *place));
    Page { items: rows.into_iter().map(|(_, item)| item).collect(), next }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in ".*", at: i64, seq: i64) {
            prop_assert!(read("x", &Cursor(text)).is_err());
            let place = Place { at, seq };
            prop_assert_eq!(read("x", &write("x", place)).unwrap(), place);
            prop_assert!(read("y", &write("x", place)).is_err());
        }
    }
}
