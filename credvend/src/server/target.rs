//! What a request's target says: the values in its path, and its query.

use credd_protocol::Invalid;

use crate::refusal::Refusal;

/// No query has more pairs.
const MAX_QUERY_PAIRS: usize = 16;

/// The values of a path's placeholders, and the query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The API stage before the path, such as `prod`, where the IAM Credentials API (v1) was asked with one.
    pub stage: Option<String>,
    /// The path's values by the names of their placeholders, decoded.
    values: Vec<(&'static str, String)>,
    query: String,
}

impl Target {
    /// With these values, and a query that is not decoded yet.
    pub(super) fn new(stage: Option<String>, values: Vec<(&'static str, String)>, query: &str) -> Self {
        Target { stage, values, query: query.to_owned() }
    }

    /// The text in place of a placeholder of this route's path.
    pub fn text(&self, name: &str) -> &str {
        self.values.iter().find(|(of, _)| *of == name).map_or("", |(_, value)| value)
    }

    /// The same, read as what it must be.
    ///
    /// # Errors
    /// [`Refusal::BadRequest`].
    pub fn value<T: std::str::FromStr<Err = Invalid>>(&self, name: &str) -> Result<T, Refusal> {
        parse(self.text(name))
    }

    /// The same, where the path may be one without this placeholder.
    ///
    /// # Errors
    /// [`Refusal::BadRequest`].
    pub fn value_if_there<T: std::str::FromStr<Err = Invalid>>(&self, name: &str) -> Result<Option<T>, Refusal> {
        self.values.iter().find(|(of, _)| *of == name).map(|(_, value)| parse(value)).transpose()
    }

    /// The query's keys and values, decoded.
    ///
    /// # Errors
    /// [`Refusal::BadRequest`].
    pub fn pairs(&self) -> Result<Vec<(String, String)>, Refusal> {
        let all = self.query.split('&').filter(|pair| !pair.is_empty());
        let pairs: Vec<&str> = all.take(MAX_QUERY_PAIRS + 1).collect();
        if pairs.len() > MAX_QUERY_PAIRS {
            return Err(bad(format!("a query has at most {MAX_QUERY_PAIRS} pairs")));
        }
        let pair = |text: &str| {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            Ok((decode(key)?, decode(value)?))
        };
        pairs.into_iter().map(pair).collect()
    }
}

/// A name as a path segment: what RFC 3986 lets stand there stays, since some SDKs encode a `%` again.
pub fn encode_segment(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!$&()*+,;=:@".contains(&byte) {
            text.push(byte.into());
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// Resolves `%XX`; what comes out is text without control characters.
pub(super) fn decode(text: &str) -> Result<String, Refusal> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let [high, low, tail @ ..] = tail else { return Err(bad("a % must be followed by two hex digits")) };
        let (Some(high), Some(low)) = (digit(*high), digit(*low)) else {
            return Err(bad("a % must be followed by two hex digits"));
        };
        bytes.push(high << 4 | low);
        rest = tail;
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => Ok(text),
        _ => Err(bad("the path and query must be text without control characters")),
    }
}

/// A text of a path or query, read as what it must be.
///
/// # Errors
/// [`Refusal::BadRequest`].
pub(super) fn parse<T: std::str::FromStr<Err = Invalid>>(text: &str) -> Result<T, Refusal> {
    text.parse().map_err(|e: Invalid| bad(e.to_string()))
}

pub(super) fn bad(why: impl Into<String>) -> Refusal {
    Refusal::BadRequest(why.into())
}

/// The beginning of a text, for a message.
pub(super) fn cut(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_segment_survives_encoding(name in "[ -~é漢]{1,40}") {
            prop_assert_eq!(decode(&encode_segment(&name)).unwrap(), name.clone());
            prop_assert!(!encode_segment(&name).contains(['/', '?', '#']));
        }
    }
}
