//! A munged of our own, and what a node says with it.

use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use credd_protocol::claim::Claim;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Request};
use munge::{EncodeOptions, Munge};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::world::{DEADLINE, World, request};

pub struct Munged {
    child: Child,
    dir: tempfile::TempDir,
}

impl Munged {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut key = [0u8; 64];
        std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut key).unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path("key")).unwrap();
        std::io::Write::write_all(&mut file, &key).unwrap();
        let child = Command::new(option_env!("MUNGED_FOUND").unwrap_or("munged"))
            .args(["--foreground", "--force", "--num-threads=2"])
            .arg(format!("--key-file={}", path("key").display()))
            .arg(format!("--socket={}", path("socket").display()))
            .arg(format!("--pid-file={}", path("pid").display()))
            .arg(format!("--log-file={}", path("log").display()))
            .arg(format!("--seed-file={}", path("seed").display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let munged = Munged { child, dir };
        let end = Instant::now() + DEADLINE;
        while std::os::unix::net::UnixStream::connect(munged.socket()).is_err() {
            assert!(Instant::now() < end, "munged did not come up");
            #[expect(
                clippy::disallowed_methods,
                reason = "munged tells nobody that it listens; polled with a deadline"
            )]
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        munged
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
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

impl Drop for Munged {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What node n1 says about its request.
pub fn claim(world: &World, method: &Method, target: &str, body: &str) -> Claim {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let mut nonce = [0u8; 16];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut nonce).unwrap();
    Claim {
        version: Claim::VERSION,
        cluster: "lab".parse().unwrap(),
        node: "n1".parse().unwrap(),
        method: method.to_string(),
        path: target.to_owned(),
        body: hex(&Sha256::digest(body)),
        server: world.fingerprint.clone(),
        time: OffsetDateTime::now_utc().unix_timestamp(),
        nonce: hex(&nonce),
    }
}
