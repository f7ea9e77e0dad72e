//! `[limits]`.

use super::fields::Section;
use crate::server::connections::Bounds;

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// `max-connections`: open at once. A node holds two.
    pub max_connections: u32,
    /// `max-connections-per-address`.
    pub max_connections_per_address: u32,
    /// `max-unauthenticated-per-address`: of these, without a request that proved a node, a head or an administrator.
    pub max_unauthenticated_per_address: u32,
    /// `handshakes-per-address`: TLS handshakes a second.
    pub handshakes_per_address: u32,
    /// `max-streams-per-node`: a new stream ends the oldest.
    pub max_streams_per_node: u32,
}

impl Limits {
    /// The bounds of network connections.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            total: self.max_connections,
            per_address: self.max_connections_per_address,
            unauthenticated_per_address: self.max_unauthenticated_per_address,
            handshakes_per_address: self.handshakes_per_address,
        }
    }
}

pub(super) fn read_limits(section: Section<'_, '_>) -> Limits {
    let per_address = section.number("max-connections-per-address", 4, 1_000_000).unwrap_or(256);
    let (unauthenticated, handshakes) = (
        section.number("max-unauthenticated-per-address", 2, 1_000_000),
        section.number("handshakes-per-address", 1, 1_000_000),
    );
    if unauthenticated.is_some_and(|most| most > per_address) {
        let why = format!("cannot be more than max-connections-per-address ({per_address})");
        section.problem_at("max-unauthenticated-per-address", why);
    }
    let limits = Limits {
        max_connections: section.number("max-connections", 16, 1_000_000).unwrap_or(65_536),
        max_connections_per_address: per_address,
        max_unauthenticated_per_address: unauthenticated.unwrap_or_else(|| Bounds::usual_unauthenticated(per_address)),
        handshakes_per_address: handshakes.unwrap_or_else(|| Bounds::usual_handshakes(per_address)),
        max_streams_per_node: section.number("max-streams-per-node", 1, 16).unwrap_or(2),
    };
    section.finish();
    limits
}
