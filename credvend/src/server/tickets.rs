//! The nodes' [handshake tickets](credd_protocol::handshake_ticket): made from the certificate's key and checked by it, so
//! nothing is stored, replicas with one key know each other's, and a restart forgets none.
//!
//! A ticket is a name for the node, which says nothing to anybody else, and a MAC over that name and the node's address. It
//! opens no door: it only says which rate a handshake counts against. With another key all tickets are void; nodes then
//! come as they came before they had one, and get a new one with their next stream.

use std::fmt;
use std::net::IpAddr;

use credd_protocol::handshake_ticket::HandshakeTicket;
use credd_protocol::{ClusterName, NodeName};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// The node that a ticket was given to, by a name that only tells nodes apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Holder([u8; 8]);

/// Makes tickets, and knows its own.
#[derive(Clone)]
pub struct Tickets {
    key: Hmac<Sha256>,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets(..)")
    }
}

const MAC_BYTES: usize = 16;

impl Tickets {
    /// By the private key of the server's certificate.
    pub fn by(private_key: &[u8]) -> Self {
        // The private key itself serves for nothing but this one derivation.
        let derived = keyed(private_key).chain_update(b"credd handshake tickets, 1").finalize().into_bytes();
        Tickets { key: keyed(&derived) }
    }

    /// The node's, for handshakes from this address.
    pub fn of(&self, cluster: &ClusterName, node: &NodeName, address: IpAddr) -> Option<HandshakeTicket> {
        // No name has a NUL.
        let name = format!("node\0{}\0{}", cluster.as_str().to_lowercase(), node.as_str());
        let full = self.key.clone().chain_update(name.as_bytes()).finalize().into_bytes();
        let mut holder = [0; 8];
        holder.copy_from_slice(&full[..8]);
        let mac = self.mac(holder, address);
        HandshakeTicket::of(&[&holder[..], &mac[..]].concat()).ok()
    }

    /// The node that `ticket` was given to, if it was, and for this address.
    pub fn holder(&self, ticket: &HandshakeTicket, address: IpAddr) -> Option<Holder> {
        let bytes = ticket.bytes();
        let (holder, mac) = bytes.split_first_chunk::<8>()?;
        let genuine: bool = self.mac(*holder, address).ct_eq(mac).into();
        genuine.then_some(Holder(*holder))
    }

    fn mac(&self, holder: [u8; 8], address: IpAddr) -> [u8; MAC_BYTES] {
        let address = address.to_canonical().to_string();
        let parts = self.key.clone().chain_update(b"ticket\0").chain_update(holder).chain_update(address.as_bytes());
        let mut mac = [0; MAC_BYTES];
        mac.copy_from_slice(&parts.finalize().into_bytes()[..MAC_BYTES]);
        mac
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ticket(tickets: &Tickets, node: &str, address: [u8; 4]) -> HandshakeTicket {
        tickets.of(&"lab".parse().unwrap(), &node.parse().unwrap(), address.into()).unwrap()
    }

    #[test]
    fn a_ticket_is_good_for_its_node_at_its_address_and_by_its_key() {
        let (tickets, others) = (Tickets::by(b"key"), Tickets::by(b"another"));
        let (here, elsewhere) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let (first, second) = (ticket(&tickets, "n1", [10, 0, 0, 1]), ticket(&tickets, "n2", [10, 0, 0, 1]));
        let holder = tickets.holder(&first, here).unwrap();
        assert_eq!(Tickets::by(b"key").holder(&first, here), Some(holder), "after a restart, at another replica");
        assert_eq!(tickets.holder(&first, "::ffff:10.0.0.1".parse().unwrap()), Some(holder));
        assert_ne!(tickets.holder(&second, here).unwrap(), holder);
        assert_eq!(tickets.holder(&first, elsewhere), None);
        assert_eq!(others.holder(&first, here), None);
        for cut in 0..first.bytes().len() {
            let Ok(shorter) = HandshakeTicket::of(&first.bytes()[..cut]) else { continue };
            assert_eq!(tickets.holder(&shorter, here), None, "{cut}");
        }
        assert!(!format!("{tickets:?}").contains("key"));
    }

    proptest! {
        #[test]
        fn no_forged_one_is_genuine(bytes in proptest::collection::vec(any::<u8>(), 1..64)) {
            let forged = HandshakeTicket::of(&bytes).unwrap();
            prop_assert_eq!(Tickets::by(b"key").holder(&forged, IpAddr::from([10, 0, 0, 1])), None);
        }
    }
}
