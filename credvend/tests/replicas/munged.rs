//! A munged of our own, and what a node says with it to a credvend without TLS.

#[path = "../../../munge/tests/munged/mod.rs"]
mod running;

use std::path::PathBuf;

use credd_protocol::claim::Claim;
use credd_protocol::hex;
use munge::{EncodeOptions, Munge};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

pub struct Munged(running::Munged);

impl Munged {
    pub fn start() -> Self {
        Munged(running::Munged::start())
    }

    pub fn socket(&self) -> PathBuf {
        self.0.socket()
    }

    pub fn claim(&self, node: &str, method: &str, target: &str, body: &str) -> Claim {
        Claim {
            version: Claim::VERSION,
            cluster: "lab".parse().unwrap(),
            node: node.parse().unwrap(),
            method: method.to_owned(),
            path: target.to_owned(),
            body: hex::encode(&Sha256::digest(body)),
            server: String::new(),
            time: OffsetDateTime::now_utc().unix_timestamp(),
            nonce: hex::encode(&running::random::<16>()),
        }
    }

    pub fn encode(&self, claim: &Claim) -> String {
        Munge::new(Some(&self.socket())).unwrap().encode(&claim.to_json(), EncodeOptions::default()).unwrap()
    }

    /// A new claim for this request, signed.
    pub fn say(&self, node: &str, method: &str, target: &str, body: &str) -> String {
        self.encode(&self.claim(node, method, target, body))
    }
}
