//! The keeper as the other side sees it: these tests are its server process, its plugin and its foreign port holder.

use std::fs;
use std::io::{self, BufReader};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use credd_protocol::fixtures::{self, facts, record};
use credd_protocol::handshake_ticket::HandshakeTicket;
use credd_protocol::late::{LateRecord, SlurmFacts};
use credd_protocol::local::{MAX_LINE_BYTES as LOCAL_LINE, Outcome, Request, Response};
use credd_protocol::record::{JobRecord, RunDir, file};
use credd_protocol::{JobId, SessionId, TokenHash};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::launch::Launch;
use super::records::tests::{end, run_dir, start};
use super::*;
use crate::control::{Job, LateJob, MAX_LINE_BYTES, RunId, ToServer};
use crate::{config, handover, line};

/// Long enough for a busy machine; nothing waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(20);

/// Gives the test the server's end.
struct Fake(std::sync::mpsc::Sender<UnixStream>);

impl Launch for Fake {
    fn launch(&self) -> io::Result<(UnixStream, Option<Child>)> {
        let (ours, theirs) = UnixStream::pair()?;
        theirs.set_read_timeout(Some(PATIENCE))?;
        self.0.send(theirs).map_err(io::Error::other)?;
        Ok((ours, None))
    }
}

struct Node {
    _dir: TempDir,
    run_dir: RunDir,
    desk: Desk,
    servers: Receiver<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    /// A keeper over this run directory, whose endpoint is at `address`.
    fn start(dir: TempDir, run_dir: RunDir, address: SocketAddr) -> Node {
        Node::start_named(dir, run_dir, address, "")
    }

    /// The same, with the lines of credd.toml that say where it is.
    fn start_named(dir: TempDir, run_dir: RunDir, address: SocketAddr, named: &str) -> Node {
        let text = format!(
            "run-dir = {:?}\n{named}\n[credvend]\nurl = \"http://127.0.0.1:1\"\n[http]\nlisten = \"{address}\"",
            run_dir.path()
        );
        let config = config::parse(&text).unwrap();
        let (launched, servers) = channel();
        let (events, received) = sync_channel(QUEUE);
        let desk = Desk { board: Arc::default(), events };
        let identity = Arc::new(Identity::default());
        let munge = Munge::new(Some(Path::new("/nonexistent"))).unwrap();
        let parts = Parts {
            config_path: PathBuf::from("/nonexistent"),
            host: short_host_name(),
            program: Box::new(Fake(launched)),
            passed_http: None,
            user: listeners::bind_unix(&run_dir.user_socket(), 0o666).unwrap(),
            peers: TcpPeers::new().unwrap(),
            desk: desk.clone(),
            signer: Signer::start(munge, Arc::clone(&identity)).unwrap(),
            identity,
        };
        let thread = std::thread::spawn(move || Keeper::new(config, parts).run(&received));
        Node { _dir: dir, run_dir, desk, servers, thread: Some(thread) }
    }

    fn new() -> Node {
        let (dir, run_dir) = run_dir();
        Node::start(dir, run_dir, free_address())
    }

    fn server(&self) -> FakeServer {
        let control = self.servers.recv_timeout(PATIENCE).unwrap();
        let (listeners, _) = handover::take(&control).unwrap();
        FakeServer { control: BufReader::new(control), _listeners: listeners }
    }

    fn ask(&self, request: &Request) -> Response {
        ask(&self.desk, request)
    }

    fn outcome(&self, record: &JobRecord) -> Outcome {
        match self.ask(&Request::Outcome { job: record.job, wait_ms: 0 }) {
            Response::Outcome(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn health(&self) -> Health {
        match self.ask(&Request::Health) {
            Response::Health(health) => health,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the keeper has come so far.
    fn until(&self, what: &str, mut reached: impl FnMut(&Node) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !reached(self) {
            assert!(Instant::now() < deadline, "in vain: {what}");
            #[expect(
                clippy::disallowed_methods,
                reason = "a poll with a deadline: the keeper tells nobody how far it is"
            )]
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn poke_ended(&self, job: JobId) {
        assert_eq!(self.ask(&Request::Ended { job }), Response::Ok);
    }

    fn join(mut self) -> TempDir {
        self.thread.take().unwrap().join().unwrap();
        self._dir
    }
}

struct FakeServer {
    control: BufReader<UnixStream>,
    _listeners: crate::server::Listeners,
}

impl FakeServer {
    fn say(&self, message: &ToKeeper) {
        line::send(self.control.get_ref(), message, MAX_LINE_BYTES).unwrap();
    }

    fn hear(&mut self) -> ToServer {
        loop {
            match line::receive(&mut self.control, MAX_LINE_BYTES).unwrap().expect("the keeper hung up") {
                ToServer::Ping { id } => self.say(&ToKeeper::Here { id }),
                message => return message,
            }
        }
    }

    fn hear_job(&mut self) -> Job {
        match self.hear() {
            ToServer::Job(job) => *job,
            other => panic!("not a job: {other:?}"),
        }
    }
}

fn ask(desk: &Desk, request: &Request) -> Response {
    let (client, server) = UnixStream::pair().unwrap();
    line::send(&client, request, LOCAL_LINE).unwrap();
    root_socket::converse(&server, desk).unwrap();
    line::receive(&mut BufReader::new(&client), LOCAL_LINE).unwrap().unwrap()
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn run_of(record: &JobRecord) -> RunId {
    RunId::of(record.token.hash())
}

#[test]
fn a_job_from_its_record_to_its_delivered_end() {
    let (dir, run_dir) = run_dir();
    let (early, late) = (record(1), record(2));
    start(&run_dir, &early);
    let node = Node::start(dir, run_dir, free_address());
    let mut server = node.server();
    assert_eq!(server.hear_job().run, run_of(&early));
    assert_eq!(server.hear(), ToServer::Scanned);
    assert!(node.run_dir.endpoint().exists());
    server.say(&ToKeeper::Ready);

    start(&node.run_dir, &late);
    assert_eq!(node.outcome(&late), Outcome::Opening { reason: None }, "an unknown job is looked for");
    assert_eq!(server.hear_job().run, run_of(&late));
    server.say(&ToKeeper::Waiting { run: run_of(&late), reason: "no\nway".into() });
    node.until("waiting", |node| node.outcome(&late) == Outcome::Opening { reason: Some("no way".into()) });

    // Nobody poked: its process is there before the word of its start.
    let fast = record(3);
    start(&node.run_dir, &fast);
    for (id, job) in [(8, fast.job), (9, JobId::try_from(4).unwrap())] {
        server.say(&ToKeeper::Look { id, job });
    }
    assert_eq!(server.hear_job().run, run_of(&fast));
    assert_eq!((server.hear(), server.hear()), (ToServer::Looked { id: 8 }, ToServer::Looked { id: 9 }));

    let session = SessionId::random();
    server.say(&ToKeeper::Opened { run: run_of(&late), session });
    server.say(&ToKeeper::Refused { run: run_of(&early), reason: "no such project".into() });
    node.until("open", |node| node.outcome(&late) == Outcome::Open);
    node.until("refused", |node| node.outcome(&early) == Outcome::Refused { reason: "no such project".into() });
    let note = |record: &JobRecord, name| fs::read_to_string(node.run_dir.job(record.job).join(name)).unwrap();
    assert_eq!(note(&late, file::SESSION), session.to_string());
    assert_eq!(note(&early, file::REFUSED), "no such project");

    // A server that is in the wrong hands cannot end what runs.
    server.say(&ToKeeper::EndDelivered { run: run_of(&late) });
    let ended = end(&node.run_dir, &late);
    node.poke_ended(late.job);
    assert_eq!(server.hear(), ToServer::Ended { run: run_of(&late) });
    assert!(ended.join(file::RECORD).exists());
    assert_eq!(node.outcome(&late), Outcome::Unknown);
    server.say(&ToKeeper::EndDelivered { run: run_of(&late) });
    node.until("the end is forgotten", |_| !ended.exists());

    node.desk.events.send(Event::Signal(Signal::SIGTERM)).unwrap();
    assert_eq!(server.hear(), ToServer::Stop);
    drop(server);
    let dir = node.join();
    assert!(RunDir::new(dir.path()).job(early.job).exists(), "a record belongs to its job, not to credd");
}

#[test]
fn a_handshake_ticket_outlives_the_server_process_and_credd() {
    let node = Node::new();
    let mut server = node.server();
    assert_eq!(server.hear(), ToServer::Scanned);
    let ticket: HandshakeTicket = "credd-ticket-0a0b".parse().unwrap();
    server.say(&ToKeeper::Ticket { ticket: ticket.clone() });
    node.until("it is kept", |node| super::run_dir::ticket(&node.run_dir).is_some());
    drop(server);
    let mut server = node.server();
    assert_eq!(server.hear(), ToServer::Ticket { ticket: ticket.clone() });
    assert_eq!(server.hear(), ToServer::Scanned);
    node.desk.events.send(Event::Signal(Signal::SIGTERM)).unwrap();
    assert_eq!(server.hear(), ToServer::Stop);
    drop(server);
    let run_dir = node.run_dir.clone();
    let node = Node::start(node.join(), run_dir, free_address());
    assert_eq!(node.server().hear(), ToServer::Ticket { ticket });
}

#[test]
fn a_server_that_dies_is_replaced_and_told_everything_again() {
    let node = Node::new();
    let mut server = node.server();
    assert_eq!(server.hear(), ToServer::Scanned);
    let (open, ended) = (record(1), record(2));
    start(&node.run_dir, &open);
    start(&node.run_dir, &ended);
    node.outcome(&open);
    let session = SessionId::random();
    server.say(&ToKeeper::Opened { run: run_of(&open), session });
    node.until("open", |node| node.outcome(&open) == Outcome::Open);
    end(&node.run_dir, &ended);
    node.poke_ended(ended.job);
    node.until("ended", |node| node.outcome(&ended) == Outcome::Unknown);
    server.control.get_ref().shutdown(Shutdown::Both).unwrap();

    let mut server = node.server();
    let mut jobs = [server.hear_job(), server.hear_job()];
    jobs.sort_by_key(|job| job.job);
    assert_eq!((jobs[0].session, jobs[0].ended), (Some(session), false));
    assert_eq!((jobs[1].session, jobs[1].ended), (None, true));
    assert_eq!(server.hear(), ToServer::Scanned);
    assert_eq!(node.outcome(&open), Outcome::Open, "what is known stays known");
}

#[test]
fn ends_outlive_the_keeper() {
    let (dir, run_dir) = run_dir();
    let (one, refused) = (record(1), record(2));
    start(&run_dir, &one);
    end(&run_dir, &one);
    start(&run_dir, &refused);
    super::records::write_note(&run_dir.job(refused.job), &run_of(&refused), file::REFUSED, "no role").unwrap();
    let node = Node::start(dir, run_dir, free_address());
    let mut server = node.server();
    let mut jobs = [server.hear_job(), server.hear_job()];
    jobs.sort_by_key(|job| job.job);
    assert!(jobs[0].ended && !jobs[1].ended);
    assert_eq!(jobs[1].refused.as_deref(), Some("no role"));
    assert_eq!(node.outcome(&refused), Outcome::Refused { reason: "no role".into() });
}

/// Leaves a late record as a step does.
fn leave_late(run_dir: &RunDir, job: u32) -> LateRecord {
    let late = fixtures::late(job, &fixtures::policies());
    let dir = run_dir.job(late.job);
    super::records::tests::write(&dir, b"");
    fs::rename(dir.join(file::RECORD), dir.join(file::LATE)).unwrap();
    fs::write(dir.join(file::LATE), late.to_bytes().unwrap()).unwrap();
    late
}

#[test]
fn a_late_record_is_completed_by_slurms_word_and_its_partition_decides() {
    let (dir, run_dir) = run_dir();
    let late = leave_late(&run_dir, 1);
    let run = RunId::of(late.token.hash());
    let node = Node::start_named(dir, run_dir, free_address(), "cluster = \"lab\"\nnode = \"n1\"");
    let mut server = node.server();
    let told = LateJob { run, job: late.job, uid: late.uid, token: late.token.hash(), refused: None };
    assert_eq!(server.hear(), ToServer::Late(Box::new(told.clone())));
    assert_eq!(server.hear(), ToServer::Scanned);
    let outcome = |node: &Node, job| match node.ask(&Request::Outcome { job, wait_ms: 0 }) {
        Response::Outcome(outcome) => outcome,
        other => panic!("{other:?}"),
    };
    assert_eq!(outcome(&node, late.job), Outcome::Opening { reason: None });
    let Response::Status(jobs) = node.ask(&Request::Status) else { panic!("no status") };
    assert_eq!((jobs[0].job, jobs[0].uid, jobs[0].state.as_str()), (late.job, 1001, "opening"));

    server.say(&ToKeeper::Attested { run, facts: facts("gpu") });
    let job = server.hear_job();
    assert_eq!((&job.run, job.restart, job.options.role.as_str()), (&run, 2, "train"));
    assert_eq!((job.user.as_str(), job.partition.as_str(), job.token), ("alice", "gpu", late.token.hash()));
    let kept = JobRecord::from_json(&fs::read(node.run_dir.job(late.job).join(file::RECORD)).unwrap()).unwrap();
    assert_eq!((kept.token, kept.restart), (late.token.clone(), 2));
    assert!(!node.run_dir.job(late.job).join(file::LATE).exists());
    assert!(node.run_dir.job(late.job).join(file::WAS_LATE).exists());
    // Nothing said later changes what it is.
    server.say(&ToKeeper::Attested { run, facts: facts("batch") });
    server.say(&ToKeeper::Opened { run, session: SessionId::random() });
    node.until("open", |node| outcome(node, late.job) == Outcome::Open);

    let off = leave_late(&node.run_dir, 2);
    assert_eq!(outcome(&node, off.job), Outcome::Opening { reason: None });
    let ToServer::Late(told) = server.hear() else { panic!("not told") };
    server.say(&ToKeeper::Attested { run: told.run, facts: facts("debug") });
    let ToServer::Late(told) = server.hear() else { panic!("not told") };
    assert_eq!(told.refused.as_deref(), Some("they are switched off for partition debug"));
    node.until("off", |node| matches!(outcome(node, off.job), Outcome::Refused { .. }));
    let kept = |name| fs::read_to_string(node.run_dir.job(off.job).join(name)).unwrap();
    assert_eq!((kept(file::OFF), kept(file::REFUSED)), ("debug".into(), told.refused.unwrap()));

    // An end that comes before Slurm's word leaves nothing to deliver.
    let ended = node.run_dir.ended().join("2.0.x");
    fs::rename(node.run_dir.job(off.job), &ended).unwrap();
    node.poke_ended(off.job);
    assert_eq!(server.hear(), ToServer::Ended { run: told.run });
    node.until("it is gone", |_| !ended.exists());
}

/// Makes the keeper look at all records.
fn look_at_all(node: &Node) {
    for job in 1000..1100 {
        node.desk.events.send(Event::Look(job.try_into().unwrap(), None)).unwrap();
    }
}

#[test]
fn a_late_run_that_is_refused_goes_when_its_steps_are_gone_whichever_credd_was_told() {
    let (dir, run_dir) = run_dir();
    let [refused, waiting] = [1, 2].map(|job| leave_late(&run_dir, job));
    // One that was completed, and then refused: it never had a session.
    let completed = fixtures::record(3);
    start(&run_dir, &completed);
    fs::write(run_dir.job(completed.job).join(file::WAS_LATE), "").unwrap();
    super::records::write_note(&run_dir.job(completed.job), &run_of(&completed), file::REFUSED, "no role").unwrap();
    // One whose prolog left it: its allocation may have no step for hours, and its epilog comes.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let ordinary = JobRecord { created: now - 20 * 3600, ..fixtures::record(4) };
    // One whose epilog was lost.
    let forgotten = JobRecord { created: now - 25 * 3600, ..fixtures::record(5) };
    for record in [&ordinary, &forgotten] {
        start(&run_dir, record);
        super::records::write_note(&run_dir.job(record.job), &run_of(record), file::REFUSED, "no role").unwrap();
    }
    // A credd before this one was told.
    let run = RunId::of(refused.token.hash());
    super::records::write_note(&run_dir.job(refused.job), &run, file::REFUSED, "Slurm says another uid").unwrap();
    let steps = [refused.job, completed.job, forgotten.job].map(|job| {
        let directory = fs::File::open(run_dir.job(job)).unwrap();
        nix::fcntl::Flock::lock(directory, nix::fcntl::FlockArg::LockSharedNonblock)
            .map_err(|(_, error)| error)
            .unwrap()
    });

    let node = Node::start(dir, run_dir, free_address());
    let mut server = node.server();
    while server.hear() != ToServer::Scanned {}
    let there = |node: &Node| [1, 2, 3, 4, 5].map(|job| node.run_dir.job(JobId::try_from(job).unwrap()).exists());
    look_at_all(&node);
    let _ = node.health();
    look_at_all(&node);
    let _ = node.health();
    assert_eq!(there(&node), [true; 5], "their steps live");
    drop(steps);
    look_at_all(&node);
    let mut ended = [server.hear(), server.hear(), server.hear()].map(|message| match message {
        ToServer::Ended { run } => run,
        other => panic!("{other:?}"),
    });
    ended.sort();
    let mut expected = [run, run_of(&completed), run_of(&forgotten)];
    expected.sort();
    assert_eq!(ended, expected);
    assert_eq!(there(&node), [false, true, false, true, false]);
    // There is no end to deliver of the one that credvend never heard of.
    node.until("the late one's is removed", |node| fs::read_dir(node.run_dir.ended()).unwrap().count() == 2);
    assert!(node.run_dir.job(waiting.job).join(file::LATE).exists());
}

#[test]
fn a_record_that_is_over_by_slurms_word_is_ended_also_by_the_next_credd() {
    let (dir, run_dir) = run_dir();
    let [stuck, other] = [1, 2].map(record);
    let run = start(&run_dir, &stuck);
    start(&run_dir, &other);
    super::records::write_note(&run_dir.job(stuck.job), &run, file::OVER, "").unwrap();
    let node = Node::start(dir, run_dir, free_address());
    let mut server = node.server();
    while server.hear() != ToServer::Scanned {}
    assert!(node.run_dir.job(stuck.job).exists(), "its epilog has until the next look");
    look_at_all(&node);
    assert_eq!(server.hear(), ToServer::Ended { run });
    assert!(!node.run_dir.job(stuck.job).exists() && node.run_dir.job(other.job).exists());
}

#[test]
fn the_server_cannot_name_the_node_by_a_late_record() {
    let (dir, run_dir) = run_dir();
    let lates = [1, 2].map(|job| leave_late(&run_dir, job));
    let node = Node::start_named(dir, run_dir, free_address(), "cluster = \"lab\"\nnode = \"n1\"");
    let mut server = node.server();
    for _ in &lates {
        assert!(matches!(server.hear(), ToServer::Late(_)));
    }
    assert_eq!(server.hear(), ToServer::Scanned);
    let (elsewhere, another) = (
        SlurmFacts { node: "n2".parse().unwrap(), ..facts("batch") },
        SlurmFacts { cluster: "other".parse().unwrap(), ..facts("batch") },
    );
    for (late, facts) in lates.iter().zip([elsewhere, another]) {
        let run = RunId::of(late.token.hash());
        server.say(&ToKeeper::Attested { run, facts });
        let ToServer::Late(told) = server.hear() else { panic!("not told") };
        assert!(told.refused.unwrap().contains("another node or cluster"));
        assert!(!node.run_dir.job(late.job).join(file::RECORD).exists());
    }
}

#[test]
fn a_foreign_port_holder_is_an_alarm_and_nothing_is_served() {
    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    let (dir, run_dir) = run_dir();
    let record = record(1);
    start(&run_dir, &record);
    let node = Node::start(dir, run_dir, foreign.local_addr().unwrap());
    node.until("alarm", |node| node.health().endpoint_problem.is_some());
    let problem = node.health().endpoint_problem.unwrap();
    assert!(problem.contains(&format!("uid {}", nix::unistd::geteuid())), "{problem}");
    assert!(!node.run_dir.endpoint().exists() && !node.health().serving && node.health().jobs == 1);
    assert_eq!(node.outcome(&record), Outcome::Opening { reason: Some(problem) });
    assert!(node.servers.try_recv().is_err(), "a server runs without an endpoint");
    drop(foreign);
    let mut server = node.server();
    assert_eq!(server.hear_job().job, record.job);
    assert!(node.run_dir.endpoint().exists());
    assert_eq!(node.health().endpoint_problem, None);
}

#[test]
fn reports_come_from_the_server_and_without_it_from_the_records() {
    let node = Node::new();
    let mut server = node.server();
    assert_eq!(server.hear(), ToServer::Scanned);
    let record = record(1);
    start(&node.run_dir, &record);
    node.outcome(&record);
    assert_eq!(server.hear_job().job, record.job);
    // Not ready yet: the keeper answers alone.
    let Response::Status(jobs) = node.ask(&Request::Status) else { panic!("no status") };
    assert_eq!((jobs[0].job, jobs[0].state.as_str()), (record.job, "opening"));
    server.say(&ToKeeper::Ready);
    std::thread::scope(|scope| {
        let desk = node.desk.clone();
        let asked = scope.spawn(move || {
            // The first question may overtake the word that the server is ready.
            let deadline = Instant::now() + PATIENCE;
            loop {
                assert!(Instant::now() < deadline, "the server's report does not come");
                let Response::Health(health) = ask(&desk, &Request::Health) else { panic!("no health") };
                if health.credvend_problem.as_deref() == Some("down") {
                    return health;
                }
            }
        });
        let ToServer::Report { id } = server.hear() else { panic!("not asked") };
        let health = Health {
            serving: true,
            endpoint_problem: None,
            credvend_problem: Some("down".into()),
            refusal_problem: None,
            record_problem: None,
            note: None,
            jobs: 99,
            undelivered_ends: 99,
            version: "other".into(),
        };
        server.say(&ToKeeper::Report { id, health, jobs: Vec::new() });
        let health = asked.join().unwrap();
        assert!(health.serving);
        assert_eq!((health.jobs, health.undelivered_ends), (1, 0), "the records count, not the server's word");
    });
}

#[test]
fn the_server_gets_nothing_signed_but_requests_to_credvend() {
    let node = Node::new();
    let mut server = node.server();
    assert_eq!(server.hear(), ToServer::Scanned);
    let (method, path) = ("POST".to_owned(), "/sessions".to_owned());
    server.say(&ToKeeper::Sign { id: 4, method, path, body: "0".repeat(64), server: String::new() });
    match server.hear() {
        ToServer::Signed { id: 4, credential: Err(reason) } => assert!(reason.contains("path"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_server_that_babbles_is_replaced() {
    let node = Node::new();
    let server = node.server();
    io::Write::write_all(&mut server.control.get_ref(), b"{\"to-keeper\":\"give-me-root\"}\n").unwrap();
    node.server();
}

#[test]
fn a_poke_during_a_storm_is_not_lost() {
    let node = Node::new();
    let mut server = node.server();
    assert_eq!(server.hear(), ToServer::Scanned);
    let records: Vec<JobRecord> = (1..=50).map(record).collect();
    let events: SyncSender<Event> = node.desk.events.clone();
    for record in &records {
        start(&node.run_dir, record);
        events.send(Event::Look(record.job, None)).unwrap();
    }
    let mut heard: Vec<u32> = records.iter().map(|_| server.hear_job().job.get()).collect();
    heard.sort_unstable();
    assert_eq!(heard, (1..=50).collect::<Vec<_>>());
}

#[test]
fn an_answer_about_very_many_jobs_fits_its_line() {
    let (dir, run_dir) = run_dir();
    for job in 1..=1000 {
        start(&run_dir, &record(job));
    }
    let node = Node::start(dir, run_dir, free_address());
    // The server listens, and never says that it is ready: the keeper answers alone.
    let mut server = node.server();
    let heard = std::thread::spawn(move || (0..1000).map(|_| server.hear_job().job).max());
    assert_eq!(heard.join().unwrap().unwrap().get(), 1000);
    node.until("the look", |node| node.health().jobs == 1000);
    let Response::Status(jobs) = node.ask(&Request::Status) else { panic!("no status") };
    assert_eq!(jobs[0].job.get(), 1000);
    assert!((200..1000).contains(&jobs.len()), "{}", jobs.len());
}

#[test]
fn a_record_whose_epilog_never_came_is_ended_by_slurms_word() {
    let node = Node::new();
    let mut server = node.server();
    assert_eq!(server.hear(), ToServer::Scanned);
    let (stuck, other) = (record(1), record(2));
    let run = start(&node.run_dir, &stuck);
    start(&node.run_dir, &other);
    for record in [&stuck, &other] {
        node.outcome(record);
        assert_eq!(server.hear_job().job, record.job);
    }
    server.say(&ToKeeper::Over { run });
    // Nothing happens before all records are looked at: the epilog has until then.
    server.say(&ToKeeper::Over { run: RunId::of(TokenHash::of("nobody's")) });
    for job in 100..200 {
        let _ = node.desk.events.send(Event::Look(job.try_into().unwrap(), None));
    }
    assert_eq!(server.hear(), ToServer::Ended { run });
    assert!(!node.run_dir.job(stuck.job).exists() && node.run_dir.job(other.job).exists());
    assert_eq!(fs::read_dir(node.run_dir.ended()).unwrap().count(), 1);
    assert_eq!(node.health().undelivered_ends, 1);
}

#[test]
fn a_record_that_is_not_served_is_told_by_health() {
    let node = Node::new();
    node.server();
    let record = record(1);
    start(&node.run_dir, &record);
    fs::set_permissions(node.run_dir.job(record.job), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let _ = node.ask(&Request::Started { job: record.job });
    node.until("health to say it", |node| node.health().record_problem.is_some());
    let problem = node.health().record_problem.unwrap();
    assert!(problem.contains("changed by others") && problem.contains("no credentials"), "{problem}");
}
