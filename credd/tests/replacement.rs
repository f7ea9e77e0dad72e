//! What jobs and administrators notice while credd is reloaded, restarted, broken off or hangs: the real program, its socket
//! held as the service manager holds it.
#![forbid(unsafe_code)]

mod node;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use credd_protocol::local::{Request, Response};
use credd_protocol::record::JobRecord;
use nix::sys::signal::{Signal, kill};
use node::{Node, PATIENCE, credd, free_address, output, runs, start_job};

/// One connection of a client, and what it is about to send.
struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    fn connect(address: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Client { reader: BufReader::new(stream) })
    }

    /// Whether the other end has closed it while nothing was asked.
    fn is_closed(&self) -> bool {
        let stream = self.reader.get_ref();
        stream.set_nonblocking(true).unwrap();
        let peeked = stream.peek(&mut [0]);
        stream.set_nonblocking(false).unwrap();
        !matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Sends a request and reads its whole answer: the status, and whether the connection goes on.
    fn ask(&mut self, request: &str) -> io::Result<(u16, bool)> {
        self.reader.get_ref().write_all(request.as_bytes())?;
        let broken = || io::Error::new(io::ErrorKind::UnexpectedEof, "no whole answer");
        let mut line = String::new();
        let mut next = |reader: &mut BufReader<TcpStream>| -> io::Result<String> {
            line.clear();
            reader.read_line(&mut line)?;
            line.strip_suffix("\r\n").map(str::to_lowercase).ok_or_else(broken)
        };
        let status = next(&mut self.reader)?;
        let (mut length, mut kept) = (0, true);
        loop {
            let header = next(&mut self.reader)?;
            match header.split_once(": ") {
                None => break,
                Some(("content-length", value)) => length = value.parse().map_err(io::Error::other)?,
                Some(("connection", "close")) => kept = false,
                Some(_) => {}
            }
        }
        self.reader.read_exact(&mut vec![0; length])?;
        let status = status.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.ok_or_else(broken)?, kept))
    }
}

fn request(record: &JobRecord, address: SocketAddr) -> String {
    let path = format!("/sessions/{}/cluster/lab/project/genomics?roleSessionName=lab-alice-n1", record.job);
    format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: {}\r\n\r\n", record.token.expose())
}

/// A client that asks without a pause until it is told to stop; how often it was answered. It opens a connection for each
/// request, or keeps one for as long as it may.
fn poll(address: SocketAddr, request: &str, keeps: bool, stop: &AtomicBool, answered: &AtomicUsize) -> io::Result<()> {
    let mut client = None;
    while !stop.load(Ordering::Relaxed) {
        let mut open = match client.take() {
            Some(open) => open,
            None => Client::connect(address)?,
        };
        let (status, kept) = open.ask(request)?;
        assert!(status == 403 || status == 503, "{status}");
        answered.fetch_add(1, Ordering::Relaxed);
        client = (keeps && kept && !open.is_closed()).then_some(open);
    }
    Ok(())
}

#[test]
#[cfg_attr(not(is_root), ignore = "credd is root's: run this test as root")]
fn nobody_who_asks_notices_a_reload_or_a_restart() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut node = Node::new(listener.local_addr().unwrap());
    // credvend is not there: one request of the user waits for it at a time, the others are told at once.
    let plain = fs::read_to_string(node.config()).unwrap();
    let crowded = format!("{plain}max-waiting-per-user = 1\n");
    fs::write(node.config(), &crowded).unwrap();
    node.start_on(&listener);
    let uid = nix::unistd::getuid().as_raw();
    let record = start_job(&node.run_dir(), 7, uid);
    node.ask(&Request::Started { job: record.job });
    node.until("the job is known", |node| node.jobs() == [7]);

    let (address, request) = (node.address, request(&record, node.address));
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let clients = [true, true, false, false].map(|keeps| {
            let (request, stop, answered) = (&request, &stop, &answered);
            scope.spawn(move || poll(address, request, keeps, stop, answered))
        });
        let some_more = |node: &Node| {
            let before = answered.load(Ordering::Relaxed);
            node.until("more answers", |_| {
                answered.load(Ordering::Relaxed) > before + 40 || clients.iter().any(|client| client.is_finished())
            });
        };
        for round in 0..6 {
            some_more(&node);
            let server = node.server().unwrap();
            fs::write(node.config(), crowded.replace("200ms", &format!("{}ms", 300 + round))).unwrap();
            let run_dir = node.run_dir().path().to_str().unwrap().to_owned();
            let told = output(credd(["reload", "--run-dir", &run_dir]));
            assert!(told.status.success(), "{told:?}");
            assert_eq!(node.server(), Some(server), "another process knows nothing of what was cached");
            some_more(&node);
            assert!(node.stop().success());
            node.start_on(&listener);
        }
        some_more(&node);
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().unwrap().expect("a request was not answered");
        }
    });
}

#[test]
#[cfg_attr(not(is_root), ignore = "credd is root's: run this test as root")]
fn what_was_accepted_before_a_stop_and_asks_after_it_is_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut node = Node::new(listener.local_addr().unwrap());
    node.start_on(&listener);
    let record = start_job(&node.run_dir(), 7, nix::unistd::getuid().as_raw());
    let request = request(&record, node.address);
    let mut accepted = Client::connect(node.address).unwrap();
    // When the one after it has been answered, it has been accepted.
    Client::connect(node.address).unwrap().ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    kill(node.keeper(), Signal::SIGTERM).unwrap();
    node.until("the stop", |node| node.log().contains("stopping"));
    assert_eq!(accepted.ask(&request).unwrap().0, 503);
    assert!(node.keeper.take().unwrap().wait().unwrap().success());
}

#[test]
#[cfg_attr(not(is_root), ignore = "credd is root's: run this test as root")]
fn a_reload_is_in_force_in_the_same_process_or_says_that_it_is_not() {
    let node = Node::started();
    let good = fs::read_to_string(node.config()).unwrap();
    let server = node.server().unwrap();
    let run_dir = node.run_dir().path().to_str().unwrap().to_owned();
    let reload = || output(credd(["reload", "--run-dir", &run_dir]));
    let bad_pin = good.replace("http://127.0.0.1:1\"", "https://127.0.0.1:1\"\ncertificate = \"/dev/null\"");
    for (text, problem) in [("bad", "line 1"), (&good.replace("200ms", "2 days"), "connect-timeout"), (&bad_pin, "key")]
    {
        fs::write(node.config(), text).unwrap();
        let told = reload();
        let said = String::from_utf8_lossy(&told.stderr).into_owned();
        assert_eq!(told.status.code(), Some(1), "{said}");
        assert!(said.contains("the configuration in force stays") && said.contains(problem), "{said}");
    }
    fs::write(node.config(), good.replace("200ms", "300ms") + "[log]\nlevel = \"debug\"\n").unwrap();
    let told = reload();
    assert!(told.status.success(), "{told:?}");
    assert_eq!(node.server(), Some(server));
    // The signal does the same; who sent it reads the log.
    fs::write(node.config(), "bad").unwrap();
    kill(node.keeper(), Signal::SIGHUP).unwrap();
    node.until("refused", |node| node.log().matches("line 1: key with no value").count() == 2);
    fs::write(node.config(), good.replace("127.0.0.1:1\"", "127.0.0.1:2\"") + "[metrics]\nlisten = \"127.0.0.1:0\"\n")
        .unwrap();
    let _ = reload();
    fs::write(node.config(), good.replace(&node.address.to_string(), &free_address().to_string())).unwrap();
    let told = reload();
    assert!(told.status.success() && String::from_utf8_lossy(&told.stdout).contains("a restart alone"), "{told:?}");
    assert_eq!(node.server(), Some(server));
    assert_eq!(node.jobs(), [] as [u32; 0]);
}

#[test]
#[cfg_attr(not(is_root), ignore = "credd is root's: run this test as root")]
fn a_server_process_that_hangs_is_replaced_and_requests_are_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut node = Node::new(listener.local_addr().unwrap());
    node.start_on(&listener);
    let record = start_job(&node.run_dir(), 7, nix::unistd::getuid().as_raw());
    node.ask(&Request::Started { job: record.job });
    node.until("the job is known", |node| node.jobs() == [7]);
    let server = node.server().unwrap();
    kill(server, Signal::SIGSTOP).unwrap();
    // It is accepted by the kernel alone, and waits for whoever comes.
    let mut client = Client::connect(node.address).unwrap();
    assert_eq!(client.ask(&request(&record, node.address)).unwrap().0, 503);
    assert!(!runs(server), "two processes have the listener");
    assert!(node.log().contains("it was stopped by a signal"), "{}", node.log());
    node.until("all is well", |node| {
        let Response::Health(health) = node.ask(&Request::Health) else { panic!("no health") };
        health.serving && node.server().is_some_and(|other| other != server)
    });
    assert!(node.stop().success());
}

#[test]
#[cfg_attr(not(is_root), ignore = "credd is root's: run this test as root")]
fn no_new_job_is_sent_to_a_credd_that_cannot_start() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut node = Node::new(listener.local_addr().unwrap());
    node.start_on(&listener);
    let good = fs::read_to_string(node.config()).unwrap();
    let endpoint = node.run_dir().endpoint();
    // Somebody tries a bad one by hand: the credd that runs is left alone.
    fs::write(node.config(), good.replace("cluster =", "clutser =")).unwrap();
    let by_hand = output(credd(["run", "--config", node.config().to_str().unwrap()]));
    assert_eq!(by_hand.status.code(), Some(78));
    assert!(endpoint.exists(), "jobs are served, and new ones do not know where");
    for bad in [good.replace("cluster =", "clutser ="), good.replace(node::USER, "no-such-user"), format!("{good}=\n")]
    {
        assert!(node.stop().success());
        assert!(endpoint.exists(), "the service manager holds the port while credd restarts");
        fs::write(node.config(), bad).unwrap();
        node.try_on(&listener);
        assert_eq!(node.keeper.take().unwrap().wait().unwrap().code(), Some(78), "{}", node.log());
        assert!(!endpoint.exists(), "new jobs are sent where nobody answers");
        fs::write(node.config(), &good).unwrap();
        node.start_on(&listener);
        assert!(endpoint.exists());
    }
}

#[test]
#[cfg_attr(not(is_root), ignore = "credd is root's: run this test as root")]
fn health_names_who_holds_the_port() {
    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut node = Node::new(foreign.local_addr().unwrap());
    // As the service manager starts it when the socket unit has failed: without that socket.
    node.start();
    let run_dir = node.run_dir().path().to_str().unwrap().to_owned();
    let health = output(credd(["health", "--run-dir", &run_dir]));
    let said = String::from_utf8_lossy(&health.stdout).into_owned();
    assert_eq!(health.status.code(), Some(1));
    let holder = format!("held by a process of uid {}", nix::unistd::getuid());
    assert!(said.contains("NOT SERVING") && said.contains(&holder), "{said}");
    drop(foreign);
    node.until("the port is taken", |node| node.run_dir().endpoint().exists() && node.server().is_some());
}
