//! A munged of our own, and what a node says with it.

#[path = "../../../munge/tests/munged/mod.rs"]
mod running;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use credd_protocol::claim::Claim;
use credd_protocol::hex;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Request};
use munge::{EncodeOptions, Munge};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::world::{World, request};

pub struct Munged(running::Munged);

impl Munged {
    pub fn start() -> Self {
        Munged(running::Munged::start())
    }

    pub fn socket(&self) -> PathBuf {
        self.0.socket()
    }

    pub fn encode(&self, claim: &Claim) -> String {
        Munge::new(Some(&self.socket())).unwrap().encode(&claim.to_json(), EncodeOptions::default()).unwrap()
    }

    /// As some user makes it.
    pub fn encode_as(&self, uid: u32, claim: &Claim) -> String {
        let payload = String::from_utf8(claim.to_json()).unwrap();
        let output = Command::new("munge")
            .arg(format!("--socket={}", self.socket().display()))
            .arg(format!("--string={payload}"))
            .uid(uid)
            .gid(uid)
            .current_dir("/")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The request of node n1, signed as it should be.
    pub fn signed(&self, world: &World, method: Method, target: &str, body: &str) -> Request<Full<Bytes>> {
        let credential = self.encode(&claim(world, &method, target, body));
        request(method, target, Some(&format!("Munge {credential}")), body)
    }
}

/// What node n1 says about its request.
pub fn claim(world: &World, method: &Method, target: &str, body: &str) -> Claim {
    Claim {
        version: Claim::VERSION,
        cluster: "lab".parse().unwrap(),
        node: "n1".parse().unwrap(),
        method: method.to_string(),
        path: target.to_owned(),
        body: hex::encode(&Sha256::digest(body)),
        server: world.fingerprint.clone(),
        time: OffsetDateTime::now_utc().unix_timestamp(),
        nonce: hex::encode(&running::random::<16>()),
    }
}
