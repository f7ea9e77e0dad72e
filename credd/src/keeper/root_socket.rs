//! The root socket: the plugin's pokes and questions, and `credd status` of root.
//!
//! One thread a connection, one request, one answer. All who may connect are root, so the bounds guard against
//! accidents: a hanging plugin, thousands of steps that start at once.

use std::io::{self, BufReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use credd_protocol::JobId;
use credd_protocol::local::{MAX_LINE_BYTES, Outcome, Request, Response};

use super::board::Board;
use super::{Event, Report};
use crate::line;

/// Connections at the same time; further ones are told to come again.
const MAX_CONNECTIONS: usize = 256;

/// For the request to arrive, and for the answer to be taken.
const LINE_PATIENCE: Duration = Duration::from_secs(5);

/// The longest wait for an outcome, whatever is asked for.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// For the main loop to look at the records.
const LOOK_PATIENCE: Duration = Duration::from_secs(5);

/// For a new configuration to be in force. A server process that hangs is replaced sooner.
const RELOAD_PATIENCE: Duration = Duration::from_secs(30);

/// What a connection needs to answer.
#[derive(Debug, Clone)]
pub struct Desk {
    /// The outcomes.
    pub board: Arc<Board>,
    /// The main loop.
    pub events: SyncSender<Event>,
}

/// Serves the socket on a thread of its own, for ever.
///
/// # Errors
/// No thread can be made.
pub fn serve(listener: UnixListener, desk: Desk) -> io::Result<()> {
    let open = Arc::new(AtomicUsize::new(0));
    std::thread::Builder::new().name("root-socket".into()).spawn(move || {
        loop {
            match listener.accept() {
                Ok((stream, _)) => hand_on(stream, &desk, &open),
                Err(error) => {
                    // Out of descriptors, as a rule: some connection will end.
                    tracing::error!(%error, "the root socket cannot accept a connection");
                    #[expect(clippy::disallowed_methods, reason = "no event tells that a descriptor is free again")]
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    })?;
    Ok(())
}

/// Counts a connection as long as it lives.
struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn hand_on(stream: UnixStream, desk: &Desk, open: &Arc<AtomicUsize>) {
    let seated = open.fetch_add(1, Ordering::AcqRel);
    let seat = Seat(Arc::clone(open));
    if seated >= MAX_CONNECTIONS {
        let _ = stream.set_write_timeout(Some(Duration::from_millis(10)));
        let busy = Response::Error(format!("{MAX_CONNECTIONS} requests are being answered: ask again"));
        let _ = line::send(&stream, &busy, MAX_LINE_BYTES);
        return;
    }
    let desk = desk.clone();
    let spawned = std::thread::Builder::new().name("root-client".into()).stack_size(256 * 1024).spawn(move || {
        let _seat = seat;
        if let Err(error) = converse(&stream, &desk) {
            tracing::debug!(%error, "a connection to the root socket ended early");
        }
    });
    if let Err(error) = spawned {
        tracing::error!(%error, "no thread for a connection to the root socket");
    }
}

/// One request, one answer.
///
/// # Errors
/// The stream's. A request that is none gets an answer that says so.
pub fn converse(stream: &UnixStream, desk: &Desk) -> io::Result<()> {
    let arrived = Instant::now();
    stream.set_write_timeout(Some(LINE_PATIENCE))?;
    let creds = peer::unix_peer(stream)?;
    // The socket's mode says the same; a mode can be changed by mistake.
    if creds.uid != 0 && creds.uid != nix::unistd::geteuid().as_raw() {
        let refusal = Response::Error("this socket is root's: use user.sock".to_owned());
        return line::send(stream, &refusal, MAX_LINE_BYTES);
    }
    let mut reader = BufReader::new(Timed { stream, until: arrived + LINE_PATIENCE });
    let response = match line::receive::<Request>(&mut reader, MAX_LINE_BYTES) {
        Ok(None) => return Ok(()),
        Ok(Some(request)) => answer(&request, desk),
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
            Response::Error(error.to_string())
        }
        Err(error) => return Err(error),
    };
    line::send(stream, &response, MAX_LINE_BYTES).or_else(|error| match error.kind() {
        io::ErrorKind::InvalidData => {
            line::send(stream, &Response::Error("there are too many jobs for one answer".to_owned()), MAX_LINE_BYTES)
        }
        _ => Err(error),
    })
}

fn answer(request: &Request, desk: &Desk) -> Response {
    match *request {
        Request::Started { job } | Request::Ended { job } => match desk.events.send(Event::Look(job, None)) {
            Ok(()) => Response::Ok,
            Err(_) => Response::Error("credd is stopping".to_owned()),
        },
        Request::Outcome { job, wait_ms } => Response::Outcome(outcome(job, wait_ms, desk)),
        Request::Health => report(desk).map_or_else(Response::Error, |report| Response::Health(report.health)),
        Request::Metrics => Response::Error("the users' socket answers that".to_owned()),
        Request::Reload => reload(desk),
        Request::Status => report(desk).map_or_else(Response::Error, |report| Response::Status(report.jobs)),
    }
}

fn outcome(job: JobId, wait_ms: u32, desk: &Desk) -> Outcome {
    let deadline = Instant::now() + Duration::from_millis(wait_ms.into()).min(MAX_WAIT);
    // The board knows what the last look saw; the record may be a moment old, and a requeued job's earlier run may be
    // what stands there.
    let (looked, wait) = sync_channel(1);
    if desk.events.send(Event::Look(job, Some(looked))).is_ok() {
        let _ = wait.recv_timeout(LOOK_PATIENCE);
    }
    desk.board.wait(job, deadline)
}

fn reload(desk: &Desk) -> Response {
    let (reply, wait) = sync_channel(1);
    if desk.events.send(Event::Reload(reply)).is_err() {
        return Response::Error("credd is stopping".to_owned());
    }
    match wait.recv_timeout(RELOAD_PATIENCE) {
        Ok(Ok(note)) => Response::Reloaded { note },
        Ok(Err(problem)) => Response::Error(problem),
        Err(_) => {
            Response::Error("credd does not say whether the new configuration is in force: see its log".to_owned())
        }
    }
}

fn report(desk: &Desk) -> Result<Report, String> {
    let (reply, wait) = sync_channel(1);
    let late = || "credd's main loop does not answer".to_owned();
    desk.events.send(Event::Report(reply)).map_err(|_| late())?;
    wait.recv_timeout(LOOK_PATIENCE).map_err(|_| late())
}

/// A stream that is read until a deadline, however slowly its bytes come.
struct Timed<'s> {
    stream: &'s UnixStream,
    until: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;
    use std::sync::mpsc::Receiver;

    use proptest::prelude::*;

    use super::*;
    use crate::control::RunId;
    use credd_protocol::TokenHash;

    fn desk() -> (Desk, Receiver<Event>) {
        let (events, received) = sync_channel(64);
        (Desk { board: Arc::default(), events }, received)
    }

    /// What the socket answers to these bytes.
    fn talk(desk: &Desk, bytes: &[u8]) -> Option<Response> {
        let (client, server) = UnixStream::pair().unwrap();
        (&client).write_all(bytes).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        converse(&server, desk).unwrap();
        drop(server);
        line::receive(&mut BufReader::new(&client), MAX_LINE_BYTES).unwrap()
    }

    #[test]
    fn pokes_reach_the_main_loop_and_outcomes_come_from_the_board() {
        let (desk, events) = desk();
        let job = JobId::try_from(3).unwrap();
        assert_eq!(talk(&desk, b"{\"op\":\"started\",\"job\":3}\n"), Some(Response::Ok));
        assert!(matches!(events.try_recv().unwrap(), Event::Look(poked, None) if poked == job));
        desk.board.enter(job, &RunId::of(TokenHash::of("r")), Outcome::Open);
        drop(events);
        let answer = talk(&desk, b"{\"op\":\"outcome\",\"job\":3,\"wait-ms\":4000000000}\n");
        assert_eq!(answer, Some(Response::Outcome(Outcome::Open)));
        assert_eq!(talk(&desk, b""), None);
    }

    #[test]
    fn an_outcome_is_as_new_as_the_record() {
        let (desk, events) = desk();
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| talk(&desk, b"{\"op\":\"outcome\",\"job\":4,\"wait-ms\":0}\n"));
            let Event::Look(_, Some(looked)) = events.recv().unwrap() else { panic!("not a look") };
            let job = JobId::try_from(4).unwrap();
            desk.board.enter(job, &RunId::of(TokenHash::of("earlier")), Outcome::Refused { reason: String::new() });
            desk.board.enter(job, &RunId::of(TokenHash::of("r")), Outcome::Open);
            looked.send(()).unwrap();
            assert_eq!(asked.join().unwrap(), Some(Response::Outcome(Outcome::Open)));
        });
    }

    #[test]
    fn what_is_no_request_gets_an_error_that_shows_nothing() {
        let (desk, _events) = desk();
        let long = [vec![b'x'; MAX_LINE_BYTES + 9], b"\n".to_vec()].concat();
        for bytes in [&b"hello\n"[..], b"{\"op\":\"status\",\"x\":1}\n", b"{\"op\":\"sta", &long[..], b"\xff\n"] {
            let Some(Response::Error(text)) = talk(&desk, bytes) else { panic!("accepted") };
            assert!(!text.contains("hello"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_a_connection_thread(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (desk, events) = desk();
            drop(events);
            let _ = talk(&desk, &bytes);
        }
    }
}
