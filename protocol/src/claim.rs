//! What a node's root signs with MUNGE for one request to `credvend`.
//!
//! The credential travels as `Authorization: Munge <credential>`. It proves "root on a host with the cluster's key
//! said this, now, once"; every field is there so that the saying cannot be used for anything else.

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterName, Invalid, NodeName};

/// The scheme word in the `Authorization` header.
pub const SCHEME: &str = "Munge";

/// No payload is longer; a longer one is refused unread.
pub const MAX_PAYLOAD_BYTES: usize = 4096;

/// How far the claim's time may be from credvend's clock, in seconds. MUNGE's own time-to-live is bound by the same.
pub const MAX_SKEW_SECONDS: i64 = 60;

/// The signed statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Claim {
    /// [`Claim::VERSION`].
    pub version: u32,
    /// The node's cluster.
    pub cluster: ClusterName,
    /// The node, as Slurm names it.
    pub node: NodeName,
    /// `GET`, `POST`, …
    pub method: String,
    /// Path and query of the request.
    pub path: String,
    /// SHA-256 of the body, lower-case hex.
    pub body: String,
    /// SHA-256 of the certificate that the node saw credvend present, lower-case hex; empty on plain loopback HTTP.
    /// A credential signed for an impostor is worthless at the real service.
    pub server: String,
    /// Seconds since 1970.
    pub time: i64,
    /// 128 random bits, lower-case hex: every credential is new, also in a retry.
    pub nonce: String,
}

impl Claim {
    /// The format of today.
    pub const VERSION: u32 = 1;

    /// Reads a payload that MUNGE has verified.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Invalid> {
        let bad = |why: String| Invalid::new("MUNGE payload", "", why);
        if bytes.len() > MAX_PAYLOAD_BYTES {
            return Err(bad(format!("it is longer than {MAX_PAYLOAD_BYTES} bytes")));
        }
        let claim: Claim = serde_json::from_slice(bytes)
            .map_err(|e| bad(format!("{:?} error at line {} column {}", e.classify(), e.line(), e.column())))?;
        if claim.version != Self::VERSION {
            return Err(bad(format!("its version is {}, this program reads {}", claim.version, Self::VERSION)));
        }
        Ok(claim)
    }

    /// The payload to sign.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain values")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Claim::from_json(&bytes);
        }
    }
}
