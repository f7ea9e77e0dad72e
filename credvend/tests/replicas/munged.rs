//! A munged of our own, and what node n1 says with it to a credvend without TLS.

use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use credd_protocol::claim::Claim;
use munge::{EncodeOptions, Munge};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::site::DEADLINE;

pub struct Munged {
    child: Child,
    dir: tempfile::TempDir,
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0u8; N];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes
}

impl Munged {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path("key")).unwrap();
        file.write_all(&random::<64>()).unwrap();
        let child = Command::new(option_env!("MUNGED_FOUND").unwrap_or("munged"))
            .args(["--foreground", "--force", "--num-threads=2"])
            .args(["key-file=key", "socket=socket", "pid-file=pid", "log-file=log", "seed-file=seed"].map(|option| {
                let (name, file) = option.split_once('=').unwrap();
                format!("--{name}={}", path(file).display())
            }))
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
            std::thread::sleep(Duration::from_millis(5));
        }
        munged
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub fn claim(&self, method: &str, target: &str, body: &str) -> Claim {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        Claim {
            version: Claim::VERSION,
            cluster: "lab".parse().unwrap(),
            node: "n1".parse().unwrap(),
            method: method.to_owned(),
            path: target.to_owned(),
            body: hex(&Sha256::digest(body)),
            server: String::new(),
            time: OffsetDateTime::now_utc().unix_timestamp(),
            nonce: hex(&random::<16>()),
        }
    }

    pub fn encode(&self, claim: &Claim) -> String {
        Munge::new(Some(&self.socket())).unwrap().encode(&claim.to_json(), EncodeOptions::default()).unwrap()
    }

    /// A new claim for this request, signed.
    pub fn say(&self, method: &str, target: &str, body: &str) -> String {
        self.encode(&self.claim(method, target, body))
    }
}

impl Drop for Munged {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
