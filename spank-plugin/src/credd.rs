//! credd's root socket, asked by a caller who must not wait: every call has a deadline, also for connecting.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use credd_protocol::JobId;
use credd_protocol::local::{MAX_LINE_BYTES, Outcome, Request};
use credd_protocol::record::RunDir;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// How long a job's start or end may be held up to tell credd of it; credd looks for records by itself too.
pub const TELL_DEADLINE: Duration = Duration::from_millis(100);

/// Between two attempts at a credd that is starting.
const PAUSE: Duration = Duration::from_millis(50);

/// How much longer than its patience a caller listens: the answer at the end of it is on its way.
const GRACE: Duration = Duration::from_millis(250);

/// Tells credd something and does not wait for the answer.
///
/// # Errors
/// Where credd cannot be told at once. Nothing is lost: the record or its end is on disk.
pub fn tell(run_dir: &RunDir, request: &Request) -> io::Result<()> {
    let stream = connect_now(run_dir)?;
    stream.set_write_timeout(Some(TELL_DEADLINE))?;
    send(&stream, request)
}

/// What became of the job's session, known by `end`; an `end` in the past asks once all the same.
///
/// # Errors
/// Why credd did not answer.
pub fn outcome(run_dir: &RunDir, job: JobId, end: Instant) -> io::Result<Outcome> {
    let mut last = Err(io::ErrorKind::TimedOut.into());
    poll_until(end, || {
        last = ask(run_dir, job, end.saturating_duration_since(Instant::now()));
        // Else down, starting, or not yet aware of the record: it may be there in a moment.
        matches!(last, Ok(Outcome::Open | Outcome::Refused { .. })).then_some(())
    });
    last
}

/// Why a job that demands credentials has none by `end`, in a sentence; `None` if its session is open.
pub fn why_not_open(run_dir: &RunDir, job: JobId, end: Instant, wait: Duration) -> Option<String> {
    let waited = wait.as_millis();
    match outcome(run_dir, job, end) {
        Ok(Outcome::Open) => None,
        Ok(Outcome::Refused { reason }) => Some(reason),
        Ok(Outcome::Opening { reason }) => {
            let obstacle = reason.map_or(String::new(), |reason| format!(" ({reason})"));
            Some(format!("they were not there within {waited} ms{obstacle}"))
        }
        Ok(Outcome::Unknown) => Some("credd on this node does not know the job; tell your administrator".into()),
        Err(error) => {
            Some(format!("credd on this node did not answer within {waited} ms ({error}); tell your administrator"))
        }
    }
}

/// The first thing that `look` finds, looking again until `end`; once at least.
pub fn poll_until<T>(end: Instant, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    loop {
        let found = look();
        let left = end.saturating_duration_since(Instant::now());
        if found.is_some() || left.is_zero() {
            return found;
        }
        pause(PAUSE.min(left));
    }
}

#[expect(clippy::disallowed_methods, reason = "polls with a deadline; that credd comes up is no event to wait for")]
fn pause(time: Duration) {
    thread::sleep(time);
}

fn ask(run_dir: &RunDir, job: JobId, left: Duration) -> io::Result<Outcome> {
    let stream = connect_now(run_dir)?;
    let end = Instant::now() + left + GRACE;
    stream.set_write_timeout(Some(left + GRACE))?;
    let wait_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
    send(&stream, &Request::Outcome { job, wait_ms })?;
    understand(&read_line(&stream, end)?)
}

fn understand(line: &[u8]) -> io::Result<Outcome> {
    match Outcome::from_line(line) {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(error)) => Err(io::Error::other(error)),
        Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "its answer was not understood")),
    }
}

/// A Unix socket connects at once or not at all: a full backlog is EAGAIN for a non-blocking one.
fn connect_now(run_dir: &RunDir) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(&run_dir.root_socket())?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn send(mut stream: &UnixStream, request: &Request) -> io::Result<()> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn read_line(mut stream: &UnixStream, end: Instant) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut chunk = [0u8; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let count = match stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error),
        };
        let (read, rest) = chunk[..count].split_at(chunk[..count].iter().position(|b| *b == b'\n').unwrap_or(count));
        line.extend_from_slice(read);
        if !rest.is_empty() {
            return Ok(line);
        }
        if line.len() > MAX_LINE_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is too long"));
        }
    }
}

#[cfg(test)]
mod tests {
    use credd_protocol::local::Response;
    use proptest::prelude::*;

    use super::*;
    use crate::scripted_job::{answering, record, run_dir};
    use std::os::unix::net::UnixListener;

    #[test]
    fn an_absent_credd_costs_nothing_to_tell_and_the_deadline_to_ask() {
        let (_temp, paths) = run_dir();
        let job = record().job;
        assert!(tell(&paths, &Request::Started { job }).is_err());
        let error = outcome(&paths, job, Instant::now() + Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_credd_that_never_accepts_holds_nobody_up() {
        let (_temp, paths) = run_dir();
        let job = record().job;
        let listener = UnixListener::bind(paths.root_socket()).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let start = Instant::now();
        while tell(&paths, &Request::Started { job }).is_ok() {
            assert!(start.elapsed() < Duration::from_secs(20), "the backlog never filled");
        }
        assert!(outcome(&paths, job, Instant::now() + Duration::from_millis(20)).is_err());
    }

    #[test]
    fn answers_are_told_apart_and_an_early_unknown_is_asked_again() {
        let (_temp, paths) = run_dir();
        let job = record().job;
        let lines = answering(
            &paths,
            vec![
                "garbage".into(),
                r#"{"outcome":{"state":"unknown"}}"#.into(),
                r#"{"outcome":{"state":"refused","reason":"no role"}}"#.into(),
            ],
        );
        let answer = outcome(&paths, job, Instant::now() + Duration::from_secs(10)).unwrap();
        assert_eq!(answer, Outcome::Refused { reason: "no role".into() });
        let asked = lines.join().unwrap();
        assert_eq!(asked.len(), 3);
        assert!(asked[0].starts_with(r#"{"op":"outcome","job":12,"wait-ms":"#), "{}", asked[0]);
    }

    #[test]
    fn an_endless_answer_is_cut_off() {
        let (_temp, paths) = run_dir();
        let lines = answering(&paths, vec!["x".repeat(2 * MAX_LINE_BYTES)]);
        let error = ask(&paths, record().job, Duration::from_secs(10)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        lines.join().unwrap();
    }

    /// Bytes, among them pieces of what credd says.
    fn said() -> impl Strategy<Value = Vec<u8>> {
        let word = prop_oneof![
            Just(br#"{"outcome":"#.to_vec()),
            Just(br#"{"outcome":{"state":"open"}}"#.to_vec()),
            Just(br#"{"state":"refused","reason":"#.to_vec()),
            Just(br#"{"error":"no"}"#.to_vec()),
            Just(br#""ok""#.to_vec()),
            Just(b"}".to_vec()),
            Just(b"\n".to_vec()),
            Just(vec![b'['; 1000]),
            (0usize..2 * MAX_LINE_BYTES).prop_map(|length| vec![b'x'; length]),
            proptest::collection::vec(any::<u8>(), 0..50),
        ];
        proptest::collection::vec(word, 0..6).prop_map(|words| words.concat())
    }

    proptest! {
        #[test]
        fn no_answer_hurts_and_none_is_read_without_bound(said in said()) {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let read = thread::scope(|scope| {
                let said = &said;
                scope.spawn(move || {
                    // The reader may have had enough.
                    let _ = theirs.write_all(said);
                });
                let read = read_line(&ours, Instant::now() + Duration::from_secs(20));
                ours.shutdown(std::net::Shutdown::Both).unwrap();
                read
            });
            let first = said.iter().position(|b| *b == b'\n').map(|end| &said[..end]);
            match (read, first) {
                (Ok(line), Some(first)) => {
                    prop_assert_eq!(&line[..], first);
                    prop_assert!(line.len() <= MAX_LINE_BYTES + 4096);
                    let _ = understand(&line);
                }
                (Ok(line), None) => prop_assert!(false, "{} bytes without an end", line.len()),
                (Err(error), first) => {
                    let cut = error.kind() == io::ErrorKind::InvalidData && said.len() > MAX_LINE_BYTES;
                    let ended = error.kind() == io::ErrorKind::UnexpectedEof && first.is_none();
                    prop_assert!(cut || ended, "{error}");
                }
            }
        }

        #[test]
        fn what_credd_can_mean_is_understood(reason in ".{0,60}", opening in any::<bool>()) {
            let meant =
                if opening { Outcome::Opening { reason: Some(reason) } } else { Outcome::Refused { reason } };
            let line = serde_json::to_vec(&Response::Outcome(meant.clone())).unwrap();
            prop_assert_eq!(understand(&line).unwrap(), meant);
        }
    }
}
