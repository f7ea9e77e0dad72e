//! Page cursors: a sort key, tied to the listing it came from. DynamoDB's own `LastEvaluatedKey` leaves this module's
//! callers never: what comes back is only ever compared with sort keys of the partition that the filter names.
//!
//! The check digits are no secret: whoever may list may list everything. They catch a cursor that was cut, or that
//! belongs to another filter, before it silently skips items.

use credd_protocol::hex;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::store::{Cursor, Page, StoreError};

/// No sort key of a listing is longer.
const LONGEST: usize = 700;

/// What a cursor is good for: a listing and its filter.
pub(super) fn scope(listing: &str, filter: &impl Serialize) -> Result<String, StoreError> {
    let filter =
        serde_json::to_string(filter).map_err(|e| StoreError::Broken(format!("a filter cannot be written: {e}")))?;
    Ok(format!("{listing} {filter}"))
}

fn check_digits(scope: &str, place: &str) -> String {
    let hash = Sha256::digest(format!("{scope} {place}").as_bytes());
    hex::encode(&hash[..6])
}

pub(super) fn write(scope: &str, place: &str) -> Cursor {
    Cursor(format!("d1.{}.{place}", check_digits(scope, place)))
}

pub(super) fn read(scope: &str, cursor: &Cursor) -> Result<String, StoreError> {
    let rest = cursor.0.strip_prefix("d1.").filter(|r| r.len() <= LONGEST).ok_or(StoreError::BadCursor)?;
    let (digits, place) = rest.split_once('.').ok_or(StoreError::BadCursor)?;
    if place.is_empty() || check_digits(scope, place) != digits {
        return Err(StoreError::BadCursor);
    }
    Ok(place.to_owned())
}

/// A page of at most `size` items, of what was read with one more.
pub(super) fn page<T>(scope: &str, mut rows: Vec<(String, T)>, size: usize) -> Page<T> {
    let more = rows.len() > size;
    rows.truncate(size);
    let next = rows.last().filter(|_| more).map(|(place, _)| write(scope, place));
    Page { items: rows.into_iter().map(|(_, item)| item).collect(), next }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in ".*", place in "[0-9a-f#]{1,80}") {
            prop_assert!(read("x", &Cursor(text)).is_err());
            prop_assert_eq!(read("x", &write("x", &place)).unwrap(), place.clone());
            prop_assert!(read("y", &write("x", &place)).is_err());
        }
    }
}
