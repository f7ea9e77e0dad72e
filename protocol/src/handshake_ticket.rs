//! The proof that a TLS handshake is a node's own, before credvend has computed anything for it.
//!
//! Every process of a node comes from the node's address, and behind a NAT other nodes do, too. So an address's rate of
//! handshakes can be used up by whoever opens connections fast enough. credvend gives each node that proved itself a
//! ticket, in the [`HEADER`] of the standing stream's answer; credd shows it in the next handshakes, as the first of the
//! application protocols (ALPN) that it offers, and such a handshake has a rate of the node's own.
//!
//! The ClientHello is not encrypted: whoever can read the network sees the ticket. It is good for one address, lets
//! nobody ask for anything, and whoever stands there can cut the connection anyway.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::hex;
use crate::ids::Invalid;

/// The header of the standing stream's answer that holds the ticket.
pub const HEADER: &str = "credd-handshake-ticket";

/// What every ticket begins with.
const PREFIX: &str = "credd-ticket-";
/// The most hex digits of one: the name of a protocol has at most 255 bytes.
const MAX_DIGITS: usize = 128;

/// A ticket. What its digits mean is credvend's affair.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HandshakeTicket(String);

impl HandshakeTicket {
    /// The ticket whose hex digits are these bytes.
    ///
    /// # Errors
    /// There is no byte, or there are more than 64.
    pub fn of(bytes: &[u8]) -> Result<Self, Invalid> {
        let mut text = PREFIX.to_owned();
        hex::push(&mut text, bytes);
        text.parse()
    }

    /// The one that is offered as a protocol, if this is one.
    pub fn from_protocol(name: &[u8]) -> Option<Self> {
        // Before an error is made of it: anybody can offer anything.
        let looks_like_one = name.starts_with(PREFIX.as_bytes()) && name.len() <= PREFIX.len() + MAX_DIGITS;
        looks_like_one.then(|| std::str::from_utf8(name).ok()?.parse().ok())?
    }

    /// As a header has it, and the handshake.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The bytes that [`HandshakeTicket::of`] was made of.
    pub fn bytes(&self) -> Vec<u8> {
        let digit = |byte: u8| (byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).unwrap_or(0);
        self.0.as_bytes()[PREFIX.len()..].chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
    }
}

impl FromStr for HandshakeTicket {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let digits = text.strip_prefix(PREFIX).unwrap_or_default();
        let hex = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if digits.is_empty() || !digits.len().is_multiple_of(2) || digits.len() > MAX_DIGITS || !hex {
            let why = format!("it must be {PREFIX} and an even number of hex digits, {MAX_DIGITS} at most");
            return Err(Invalid::new("handshake ticket", text, why));
        }
        Ok(HandshakeTicket(text.to_owned()))
    }
}

impl TryFrom<String> for HandshakeTicket {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<HandshakeTicket> for String {
    fn from(ticket: HandshakeTicket) -> String {
        ticket.0
    }
}

impl fmt::Debug for HandshakeTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandshakeTicket(..)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_ticket_is_its_bytes_and_is_not_shown() {
        let ticket = HandshakeTicket::of(&[0, 0xab, 0xff]).unwrap();
        assert_eq!(ticket.as_str(), "credd-ticket-00abff");
        assert_eq!(ticket.bytes(), [0, 0xab, 0xff]);
        assert_eq!(HandshakeTicket::from_protocol(b"credd-ticket-00abff"), Some(ticket.clone()));
        assert!(!format!("{ticket:?}").contains("ab"));
        for bad in
            ["", "credd-ticket-", "credd-ticket-a", "credd-ticket-AB", "credd-ticket-zz", "h2", "credd-ticket-ab "]
        {
            assert!(bad.parse::<HandshakeTicket>().is_err(), "{bad}");
        }
        assert_eq!(HandshakeTicket::from_protocol(&[b"credd-ticket-".as_slice(), &[b'a'; 1000]].concat()), None);
        assert!(HandshakeTicket::of(&[7; 65]).is_err());
    }

    proptest! {
        #[test]
        fn no_protocol_panics(name in proptest::collection::vec(any::<u8>(), 0..300), digits in "[0-9a-f]{0,140}") {
            let _ = HandshakeTicket::from_protocol(&name);
            let text = format!("credd-ticket-{digits}");
            let ticket = HandshakeTicket::from_protocol(text.as_bytes());
            let fits = !digits.is_empty() && digits.len() % 2 == 0 && digits.len() <= MAX_DIGITS;
            prop_assert_eq!(ticket.is_some(), fits);
            if let Some(ticket) = ticket {
                prop_assert!(ticket.as_str().len() <= 255);
                prop_assert_eq!(HandshakeTicket::of(&ticket.bytes()).unwrap(), ticket);
            }
        }
    }
}
