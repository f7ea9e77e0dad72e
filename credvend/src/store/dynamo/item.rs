//! Items to and from types. An item that does not read is an error of the table, never a default.

use std::collections::HashMap;
use std::fmt::Display;
use std::str::FromStr;

use aws_sdk_dynamodb::types::AttributeValue;
use time::{Duration, OffsetDateTime};

use crate::store::StoreError;

/// What DynamoDB keeps under one key.
pub(super) type Item = HashMap<String, AttributeValue>;

/// The partition key of every table but the projects' and the nonces'.
pub(super) const PK: &str = "Pk";
/// The sort key.
pub(super) const SK: &str = "Sk";
/// Where an item is alone in its partition.
pub(super) const ALONE: &str = "-";
/// The attribute that DynamoDB's TTL looks at, in seconds since 1970. Only a hint: what counts is asked of other attributes.
pub(super) const TTL: &str = "ExpiresAtSeconds";

pub(super) fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

pub(super) fn number(value: impl Display) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

/// When DynamoDB may delete an item: this long after a time, and never sooner than that after now, whatever time the item
/// is of.
pub(super) fn forgotten(after: OffsetDateTime, slack: Duration) -> AttributeValue {
    number(after.max(OffsetDateTime::now_utc()).saturating_add(slack).unix_timestamp())
}

/// An item's key, or the beginning of an item.
pub(super) fn key(pk: impl Into<String>, sk: impl Into<String>) -> Item {
    HashMap::from([(PK.to_owned(), text(pk)), (SK.to_owned(), text(sk))])
}

/// Adds an attribute.
pub(super) fn put(item: &mut Item, name: &str, value: AttributeValue) {
    item.insert(name.to_owned(), value);
}

/// Adds an attribute if there is something.
pub(super) fn put_text(item: &mut Item, name: &str, value: Option<impl Into<String>>) {
    if let Some(value) = value {
        item.insert(name.to_owned(), text(value));
    }
}

/// Microseconds since 1970, rounded down.
pub(super) fn micros(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos().div_euclid(1000)).unwrap_or(i64::MAX)
}

/// Out of what the type holds is cut to its ends.
pub(super) fn from_micros(micros: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).unwrap_or(if micros < 0 {
        time::PrimitiveDateTime::MIN.assume_utc()
    } else {
        time::PrimitiveDateTime::MAX.assume_utc()
    })
}

/// Reads an item's attributes.
#[derive(Clone, Copy)]
pub(super) struct Row<'a>(pub(super) &'a Item);

impl<'a> Row<'a> {
    /// What is wrong with it, with its key.
    pub(super) fn broken(self, name: &str, why: impl Display) -> StoreError {
        let part = |name| self.opt_text(name).ok().flatten().unwrap_or("?");
        StoreError::Broken(format!("DynamoDB's item {:?} {:?} does not read: {name}: {why}", part(PK), part(SK)))
    }

    pub(super) fn opt_text(self, name: &str) -> Result<Option<&'a str>, StoreError> {
        match self.0.get(name) {
            None => Ok(None),
            Some(AttributeValue::S(text)) => Ok(Some(text)),
            Some(_) => Err(StoreError::Broken(format!("DynamoDB's attribute {name} is no string"))),
        }
    }

    pub(super) fn text(self, name: &str) -> Result<&'a str, StoreError> {
        self.opt_text(name)?.ok_or_else(|| self.broken(name, "it is missing"))
    }

    /// As one of the validated text types.
    pub(super) fn parsed<T: FromStr<Err: Display>>(self, name: &str) -> Result<T, StoreError> {
        self.text(name)?.parse().map_err(|e| self.broken(name, e))
    }

    pub(super) fn opt_parsed<T: FromStr<Err: Display>>(self, name: &str) -> Result<Option<T>, StoreError> {
        self.opt_text(name)?.map(|text| text.parse().map_err(|e| self.broken(name, e))).transpose()
    }

    pub(super) fn opt_number<T: FromStr<Err: Display>>(self, name: &str) -> Result<Option<T>, StoreError> {
        match self.0.get(name) {
            None => Ok(None),
            Some(AttributeValue::N(digits)) => digits.parse().map(Some).map_err(|e| self.broken(name, e)),
            Some(_) => Err(self.broken(name, "it is no number")),
        }
    }

    pub(super) fn number<T: FromStr<Err: Display>>(self, name: &str) -> Result<T, StoreError> {
        self.opt_number(name)?.ok_or_else(|| self.broken(name, "it is missing"))
    }

    pub(super) fn time(self, name: &str) -> Result<OffsetDateTime, StoreError> {
        Ok(from_micros(self.number(name)?))
    }

    /// A list of strings; none if it is not there.
    pub(super) fn texts(self, name: &str) -> Result<Vec<&'a str>, StoreError> {
        match self.0.get(name) {
            None => Ok(vec![]),
            Some(AttributeValue::L(list)) => list
                .iter()
                .map(|one| one.as_s().map(String::as_str).map_err(|_| self.broken(name, "it is no list of strings")))
                .collect(),
            Some(_) => Err(self.broken(name, "it is no list")),
        }
    }
}
