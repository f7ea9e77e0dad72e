//! Secrets that redact and erase themselves.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::hex;
use crate::ids::Invalid;

/// A text that must not be seen: `Debug` redacts it, it has no `Display`, and its memory is erased on drop.
///
/// It is deliberately not `Serialize`: a response type that must carry one says so field by field, with
/// [`Secret::serialize_exposed`].
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over.
    pub fn new(text: String) -> Self {
        Secret(Zeroizing::new(text))
    }

    /// The secret itself. Every call is a place to look at in a review.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// For `#[serde(serialize_with = …)]` on the few fields whose purpose is to hand a secret on.
    pub fn serialize_exposed<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(secret.expose())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl PartialEq for Secret {
    /// In constant time for texts of one length.
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Secret {}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Secret::new)
    }
}

/// How every job token begins: lets the plugin tell a token of ours from a user's own, and secret scanners find leaks.
pub const TOKEN_PREFIX: &str = "credd1-";

/// A job's bearer token for the endpoint of one node: [`TOKEN_PREFIX`] and 256 random bits in lower-case hex.
///
/// It has no newline and only unreserved characters, so every SDK sends it unchanged.
#[derive(Clone, PartialEq, Eq)]
pub struct JobToken(Secret);

impl JobToken {
    /// A new token from the kernel's random source.
    ///
    /// # Errors
    /// Where getrandom(2) fails.
    pub fn mint() -> Result<Self, getrandom::Error> {
        let mut bits = Zeroizing::new([0u8; 32]);
        getrandom::fill(&mut bits[..])?;
        let mut text = String::with_capacity(TOKEN_PREFIX.len() + 64);
        text.push_str(TOKEN_PREFIX);
        hex::push(&mut text, &bits[..]);
        Ok(JobToken(Secret::new(text)))
    }

    /// The token as it stands in the job's environment.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// What may be kept where the token may not.
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(self.expose())
    }
}

impl fmt::Debug for JobToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[job token]")
    }
}

impl FromStr for JobToken {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let hex = text.strip_prefix(TOKEN_PREFIX).unwrap_or_default();
        if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            Ok(JobToken(Secret::new(text.to_owned())))
        } else {
            // The text is not shown: it may be a mistyped secret.
            Err(Invalid::new("job token", "", "it must be credd1- and 64 lower-case hex digits"))
        }
    }
}

impl Serialize for JobToken {
    /// The job record is where a token lives, and [`crate::own_api::OwnToken`] hands one over; nothing else holds this type
    /// and is serialized.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.expose())
    }
}

impl<'de> Deserialize<'de> for JobToken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The SHA-256 of a bearer token. Tokens have 256 random bits, so a plain hash is as good as a slow one.
#[derive(Clone, Copy)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// The hash of a token as a client sent it.
    pub fn of(token: &str) -> Self {
        TokenHash(Sha256::digest(token.as_bytes()).into())
    }

    /// Its 64 lower-case hex digits.
    pub fn to_hex(self) -> String {
        let mut text = String::with_capacity(64);
        hex::push(&mut text, &self.0);
        text
    }

    /// Its first 16 hex digits as a number, which says nothing of the token.
    pub fn first_digits(self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

impl PartialEq for TokenHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for TokenHash {}

impl std::hash::Hash for TokenHash {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[token hash]")
    }
}

impl FromStr for TokenHash {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bad = || Invalid::new("token hash", "", "it must be 64 hex digits");
        if text.len() != 64 || !text.is_ascii() {
            return Err(bad());
        }
        let mut bytes = [0u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        Ok(TokenHash(bytes))
    }
}

impl Serialize for TokenHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_hex())
    }
}

impl<'de> Deserialize<'de> for TokenHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_differ_parse_and_redact() {
        let (one, two) = (JobToken::mint().unwrap(), JobToken::mint().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.expose().parse::<JobToken>().unwrap(), one);
        assert_eq!(one.hash().to_hex().parse::<TokenHash>().unwrap(), one.hash());
        let hex = &one.expose()[TOKEN_PREFIX.len()..];
        for shown in [format!("{one:?}"), format!("{:?}", one.hash()), format!("{:?}", Secret::new("canary".into()))] {
            assert!(!shown.contains(hex) && !shown.contains("canary"), "{shown}");
        }
        assert!(format!("{}\n", one.expose()).parse::<JobToken>().is_err());
    }
}
