//! A munged of a test's own: private key, private socket. The tests of munge's callers use this file, too.

use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);

/// Stops when it is dropped.
pub struct Munged {
    child: Child,
    dir: tempfile::TempDir,
}

/// Bytes that nobody guesses.
pub fn random<const N: usize>() -> [u8; N] {
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
            .stderr(std::fs::File::create(path("stderr")).unwrap())
            .spawn()
            .unwrap();
        let munged = Munged { child, dir };
        let end = Instant::now() + DEADLINE;
        while std::os::unix::net::UnixStream::connect(munged.socket()).is_err() {
            let stderr = std::fs::read_to_string(munged.dir.path().join("stderr")).unwrap_or_default();
            assert!(Instant::now() < end, "munged did not come up: {stderr}");
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
}

impl Drop for Munged {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
