//! Against a real munged of our own: private key, private socket.
#![forbid(unsafe_code)]

use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use munge::{EncodeOptions, Error, Munge};
use proptest::prelude::*;

// munged says nothing when it is ready, and its clock cannot be injected: both are polled, with a deadline.
#[expect(clippy::disallowed_methods, reason = "see above")]
fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

const DEADLINE: Duration = Duration::from_secs(20);

struct Munged {
    child: Child,
    dir: tempfile::TempDir,
}

impl Munged {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut key = [0u8; 64];
        std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut key).unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path("key")).unwrap();
        std::io::Write::write_all(&mut file, &key).unwrap();
        let program = option_env!("MUNGED").unwrap_or("munged");
        let child = Command::new(program)
            .args(["--foreground", "--force", "--num-threads=2"])
            .arg(format!("--key-file={}", path("key").display()))
            .arg(format!("--socket={}", path("socket").display()))
            .arg(format!("--pid-file={}", path("pid").display()))
            .arg(format!("--log-file={}", path("log").display()))
            .arg(format!("--seed-file={}", path("seed").display()))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(path("stderr")).unwrap())
            .spawn()
            .unwrap();
        let munged = Munged { child, dir };
        let end = Instant::now() + DEADLINE;
        while std::os::unix::net::UnixStream::connect(munged.socket()).is_err() {
            let stderr = std::fs::read_to_string(munged.dir.path().join("stderr")).unwrap_or_default();
            assert!(Instant::now() < end, "munged did not come up: {stderr}");
            pause(5);
        }
        munged
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn client(&self) -> Munge {
        Munge::new(Some(&self.socket())).unwrap()
    }
}

impl Drop for Munged {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn my_uid() -> u32 {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap())
}

#[test]
#[cfg_attr(not(has_munged), ignore = "munged is not installed")]
fn a_credential_is_decoded_once_and_names_its_maker() {
    let munged = Munged::start();
    let munge = munged.client();
    let options = EncodeOptions { ttl: Some(Duration::from_millis(59_001)), only_uid: Some(my_uid()) };
    let credential = munge.encode(b"a \0 payload", options).unwrap();
    assert!(credential.starts_with("MUNGE:") && !credential.contains('\n'));
    let decoded = munge.decode(&credential).unwrap();
    assert_eq!((decoded.payload.as_slice(), decoded.uid), (&b"a \0 payload"[..], my_uid()));
    assert_eq!(decoded.ttl, Duration::from_secs(60));
    let age = SystemTime::now().duration_since(decoded.encode_time).unwrap();
    assert!(age < DEADLINE, "{age:?}");
    assert_eq!(munge.decode(&credential).unwrap_err(), Error::Replayed);
}

#[test]
#[cfg_attr(not(has_munged), ignore = "munged is not installed")]
fn what_is_wrong_with_a_credential_is_told_apart() {
    let (munged, other) = (Munged::start(), Munged::start());
    let munge = munged.client();

    let foreign = other.client().encode(b"x", EncodeOptions::default()).unwrap();
    assert!(matches!(munge.decode(&foreign), Err(Error::BadCred(_))));
    let mut altered = munge.encode(b"a longer payload to hit", EncodeOptions::default()).unwrap().into_bytes();
    let middle = altered.len() / 2;
    altered[middle] = if altered[middle] == b'A' { b'B' } else { b'A' };
    assert!(matches!(munge.decode(std::str::from_utf8(&altered).unwrap()), Err(Error::BadCred(_))));

    let options = EncodeOptions { only_uid: Some(my_uid() + 1), ..EncodeOptions::default() };
    let not_ours = munge.encode(b"", options).unwrap();
    assert_eq!(munge.decode(&not_ours).unwrap_err(), Error::Unauthorized);
    let anybody = EncodeOptions { only_uid: Some(u32::MAX), ..EncodeOptions::default() };
    assert!(munge.encode(b"", anybody).is_err());

    // munged looks at the time before it looks for a replay; its clock cannot be injected.
    let brief = EncodeOptions { ttl: Some(Duration::from_nanos(1)), ..EncodeOptions::default() };
    let brief = munge.encode(b"", brief).unwrap();
    let end = Instant::now() + DEADLINE;
    loop {
        match munge.decode(&brief) {
            Err(Error::Expired) => break,
            Ok(_) | Err(Error::Replayed) if Instant::now() < end => pause(50),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
#[cfg_attr(not(has_munged), ignore = "munged is not installed")]
fn payloads_of_every_length_survive_and_no_text_is_taken_for_a_credential() {
    let munged = Munged::start();
    let munge = munged.client();
    for length in [0, 1, 4096, munge::MAX_PAYLOAD_BYTES] {
        // Incompressible, so that the longest credential is really met.
        let mut payload = vec![0u8; length];
        std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut payload).unwrap();
        let credential = munge.encode(&payload, EncodeOptions::default()).unwrap();
        assert_eq!(munge.decode(&credential).unwrap().payload, payload, "{length} bytes");
    }
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 64, ..Default::default() });
    runner
        .run(&"(MUNGE:)?[ -~]{0,200}:?", |text| {
            prop_assert!(munge.decode(&text).is_err());
            Ok(())
        })
        .unwrap();
}
