//! Against a real munged of our own: private key, private socket.
#![forbid(unsafe_code)]

mod munged;

use std::io::Read;
use std::time::{Duration, Instant, SystemTime};

use munge::{EncodeOptions, Error, Munge};
use munged::Munged;
use proptest::prelude::*;

#[expect(clippy::disallowed_methods, reason = "munged's clock cannot be injected; polled with a deadline")]
fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

const DEADLINE: Duration = Duration::from_secs(20);

fn client(munged: &Munged) -> Munge {
    Munge::new(Some(&munged.socket())).unwrap()
}

fn my_uid() -> u32 {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap())
}

#[test]
#[cfg_attr(not(has_munged), ignore = "munged is not installed")]
fn a_credential_is_decoded_once_and_names_its_maker() {
    let munged = Munged::start();
    let munge = client(&munged);
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
    let munge = client(&munged);

    let foreign = client(&other).encode(b"x", EncodeOptions::default()).unwrap();
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
    let munge = client(&munged);
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
