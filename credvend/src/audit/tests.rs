//! What is written, how often it is synced, and what happens when it cannot be.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::{Condvar, Mutex};

use credd_protocol::credentials::Credentials;
use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::node_api::CredentialsResponse;
use credd_protocol::{NodeName, RoleName, Secret, SessionId, TokenHash, Uid};
use serde_json::Value;
use time::OffsetDateTime;

use super::file::{LogFile, Medium};
use super::writer::Writer;
use super::*;
use crate::clock::SystemClock;
use crate::store::conformance::T0;
use crate::store::{Block, Issuance, Order, OrderId, Origin, Run, Session, Subject};

/// A disk that fills up: it takes `room` bytes.
#[derive(Default)]
struct Disk {
    bytes: Vec<u8>,
    room: usize,
    syncs: usize,
    sync_fails: bool,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Disk>>);

impl Medium for Shared {
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut disk = self.0.lock().unwrap();
        let n = bytes.len().min(disk.room);
        if n == 0 {
            return Err(io::Error::from_raw_os_error(nix::libc::ENOSPC));
        }
        disk.room -= n;
        disk.bytes.extend(&bytes[..n]);
        Ok(n)
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.syncs += 1;
        if disk.sync_fails { Err(io::Error::other("I/O error")) } else { Ok(()) }
    }

    fn is_elsewhere(&self) -> bool {
        false
    }

    fn reopen(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn with_room(room: usize) -> Self {
        let disk = Shared::default();
        disk.room(room);
        disk
    }

    fn room(&self, bytes: usize) {
        self.0.lock().unwrap().room = bytes;
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().bytes.clone()).unwrap()
    }

    fn log(&self, fsync: Fsync, on_failure: OnFailure) -> Log {
        let settings = Settings { path: "/nowhere".into(), fsync, on_failure };
        let (clock, state) = (Arc::new(SystemClock), Arc::<State>::default());
        let medium = Box::new(self.clone());
        let writer = Writer::over(medium, &settings, clock.clone(), state.clone(), Arc::default()).unwrap();
        Log::over(writer, &settings, clock, state, Arc::default()).unwrap()
    }
}

fn lines(text: &str) -> Vec<Value> {
    assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

fn started(what: &str) -> Event<'_> {
    Event::ServiceStarted { what }
}

#[test]
fn lines_that_wait_together_share_one_write_and_one_sync() {
    let disk = Shared::with_room(1 << 20);
    let settings = Settings { path: "/nowhere".into(), fsync: Fsync::Each, on_failure: OnFailure::Refuse };
    let writer =
        Writer::over(Box::new(disk.clone()), &settings, Arc::new(SystemClock), Arc::default(), Arc::default()).unwrap();
    let (sender, receiver) = sync_channel(200);
    let mut answers = vec![];
    for _ in 0..100 {
        let (done, answer) = oneshot::channel();
        sender.send(Message::Line(Line { json: started("x").to_json(T0), done: Some(done) })).unwrap();
        answers.push(answer);
    }
    sender.send(Message::Stop).unwrap();
    writer.run(&receiver);
    assert!(answers.into_iter().all(|answer| answer.blocking_recv() == Ok(Ok(()))));
    assert_eq!(disk.0.lock().unwrap().syncs, 1);
    let numbers: Vec<u64> = lines(&disk.text()).iter().map(|line| line["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_full_disk_refuses_or_does_not_and_every_line_is_whole_when_there_is_room_again() {
    for on_failure in [OnFailure::Refuse, OnFailure::Continue] {
        // The second line is cut in its middle.
        let disk = Shared::with_room(150);
        let log = disk.log(Fsync::Interval, on_failure);
        log.record(started("one")).await.unwrap();
        let second = log.record(started("two")).await;
        let third = log.record(started("three")).await;
        log.note(started("four"));
        match on_failure {
            OnFailure::Refuse => {
                for refused in [second, third] {
                    let refusal = Refusal::from(refused.unwrap_err());
                    assert_eq!((refusal.status(), refusal.retry()), (503, true));
                    assert!(refusal.to_string().contains("No space left"), "{refusal}");
                }
            }
            OnFailure::Continue => assert_eq!((second, third), (Ok(()), Ok(()))),
        }
        disk.room(1 << 20);
        // Whoever comes next pushes out what waits.
        log.record(started("five")).await.unwrap();
        log.close();
        let said: Vec<String> =
            lines(&disk.text()).iter().map(|line| line["what"].as_str().unwrap().to_owned()).collect();
        assert_eq!(said, ["one", "two", "three", "four", "five"]);
    }
}

/// A disk that takes nothing and says nothing until it is let go.
struct Hanging {
    disk: Shared,
    free: Arc<(Mutex<bool>, Condvar)>,
}

impl Medium for Hanging {
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (free, freed) = &*self.free;
        drop(freed.wait_while(free.lock().unwrap(), |free| !*free).unwrap());
        self.disk.append(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn is_elsewhere(&self) -> bool {
        false
    }

    fn reopen(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The time is tokio's own, which goes on only where somebody waits for it.
#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_is_waited_for_once() {
    let (disk, free) = (Shared::with_room(1 << 20), Arc::<(Mutex<bool>, Condvar)>::default());
    let settings = Settings { path: "/nowhere".into(), fsync: Fsync::Never, on_failure: OnFailure::Continue };
    let (clock, state, metrics) = (Arc::new(SystemClock), Arc::<State>::default(), Arc::<Metrics>::default());
    let medium = Box::new(Hanging { disk: disk.clone(), free: free.clone() });
    let writer = Writer::over(medium, &settings, clock.clone(), state.clone(), metrics.clone()).unwrap();
    let log = Log::over(writer, &settings, clock, state.clone(), metrics.clone()).unwrap();
    let begun = tokio::time::Instant::now();
    for _ in 0..100 {
        log.record(started("x")).await.unwrap();
    }
    let (waited, page) = (begun.elapsed(), metrics.text());
    // First of all: whatever fails, the log's end waits for its writer.
    *free.0.lock().unwrap() = true;
    free.1.notify_all();
    log.close();
    assert!((PATIENCE..PATIENCE * 2).contains(&waited), "one waits, and 99 do not: {waited:?}");
    assert!(page.contains("\ncredvend_audit_writable 0\n"));
    assert!(state.works.load(Ordering::Acquire) && metrics.text().contains("\ncredvend_audit_writable 1\n"));
    assert_eq!(lines(&disk.text()).len(), 100);
}

#[tokio::test]
async fn what_is_not_on_the_disk_for_certain_is_refused() {
    let disk = Shared::with_room(1 << 20);
    disk.0.lock().unwrap().sync_fails = true;
    let log = disk.log(Fsync::Each, OnFailure::Refuse);
    assert!(log.record(started("one")).await.unwrap_err().to_string().contains("fsync"));
    disk.0.lock().unwrap().sync_fails = false;
    log.record(started("two")).await.unwrap();
}

#[tokio::test]
async fn too_much_that_waits_is_lost_and_that_is_told() {
    let disk = Shared::with_room(0);
    let settings = Settings { path: "/nowhere".into(), fsync: Fsync::Never, on_failure: OnFailure::Continue };
    let (clock, state, metrics) = (Arc::new(SystemClock), Arc::<State>::default(), Arc::<Metrics>::default());
    let writer =
        Writer::over(Box::new(disk.clone()), &settings, clock.clone(), state.clone(), metrics.clone()).unwrap();
    let log = Arc::new(Log::over(writer, &settings, clock, state, metrics).unwrap());
    let count = 40_000;
    for _ in 0..count {
        log.note(started("x"));
    }
    disk.room(1 << 30);
    log.record(started("last")).await.unwrap();
    log.record(started("after it")).await.unwrap();
    log.close();
    let lines = lines(&disk.text());
    let lost: u64 = lines.iter().filter(|l| l["event"] == "lines-lost").map(|l| l["count"].as_u64().unwrap()).sum();
    let kept = lines.iter().filter(|l| l["what"] == "x" || l["what"] == "last" || l["what"] == "after it").count();
    assert!(lost > 0);
    // "last" may itself be among them; a line that is lost is counted.
    assert_eq!(lost + kept as u64, count + 2);
}

#[tokio::test]
async fn a_flood_of_refusals_is_cut_and_counted() {
    let disk = Shared::with_room(1 << 24);
    let log = disk.log(Fsync::Never, OnFailure::Continue);
    for _ in 0..5_000 {
        log.note(Event::Refused(Refused::default()));
    }
    log.record(started("x")).await.unwrap();
    log.close();
    let refused = lines(&disk.text()).iter().filter(|l| l["event"] == "refused").count();
    assert!((1..=600).contains(&refused), "{refused}");
}

#[tokio::test]
async fn strangers_do_not_hide_what_is_refused_to_a_node() {
    let disk = Shared::with_room(1 << 24);
    let log = disk.log(Fsync::Never, OnFailure::Continue);
    let (stranger, known) = (Refusal::Unauthenticated("x".into()), Refusal::UnknownSession("x".into()));
    for _ in 0..5_000 {
        log.note(Event::Refused(Refused { refusal: Some(&stranger), ..Refused::default() }));
    }
    log.note(Event::Refused(Refused { refusal: Some(&known), ..Refused::default() }));
    log.close();
    let lines = lines(&disk.text());
    let count = |code: &str| lines.iter().filter(|line| line["code"] == code).count();
    assert!((1..=600).contains(&count("Unauthenticated")), "{}", count("Unauthenticated"));
    assert_eq!(count("UnknownSession"), 1);
}

/// Who gets a document again and again has two lines a minute; if the log fails, and nothing may pass without it, that does
/// not either.
#[tokio::test]
async fn a_repeated_delivery_is_refused_where_the_log_fails_and_must_not() {
    for on_failure in [OnFailure::Refuse, OnFailure::Continue] {
        let disk = Shared::with_room(1 << 20);
        let log = disk.log(Fsync::Never, on_failure);
        let (s, role, node) = (sample(), RoleName::default(), "n1".parse().unwrap());
        let to = To::Node { node: &node, peer: Some(PEER) };
        let event =
            Event::CredentialsDelivered { session: &s.session, role: &role, to, document: &s.document, named: true };
        assert_eq!(log.deliver(event.clone()).await, Ok(true));
        assert_eq!(log.deliver(event.clone()).await, Ok(false));
        disk.room(0);
        let _ = log.record(started("x")).await;
        assert_eq!(log.deliver(event).await.is_ok(), on_failure == OnFailure::Continue);
        disk.room(1 << 20);
    }
}

#[test]
fn the_file_is_ours_alone_and_no_link_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    drop(LogFile::open(&path).unwrap());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    let refused = |path: &std::path::Path| LogFile::open(path).map(|_| ()).unwrap_err().to_string();
    for (mode, good) in [(0o640, true), (0o644, false), (0o660, false), (0o602, false), (0o600, true)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(LogFile::open(&path).is_ok(), good, "{mode:o}");
    }
    let link = dir.path().join("link");
    symlink(&path, &link).unwrap();
    refused(&link);
    symlink(dir.path().join("nothing"), dir.path().join("dangling")).unwrap();
    refused(&dir.path().join("dangling"));
    assert!(!dir.path().join("nothing").exists());
    std::fs::hard_link(&path, dir.path().join("hard")).unwrap();
    assert!(refused(&path).contains("other names"));
    refused(dir.path());
    nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    assert!(LogFile::open(&dir.path().join("fifo")).is_err(), "and it does not hang");
}

#[tokio::test]
async fn a_cut_line_is_ended_and_a_rotation_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    std::fs::write(&path, "{\"event\":\"cut").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let settings = Settings { path: path.clone(), fsync: Fsync::Each, on_failure: OnFailure::Refuse };
    let log = Arc::new(Log::open(&settings, Arc::new(SystemClock), Arc::default()).unwrap());
    log.record(started("one")).await.unwrap();
    std::fs::rename(&path, dir.path().join("audit.jsonl.1")).unwrap();
    let reopened = log.clone();
    tokio::task::spawn_blocking(move || reopened.reopen()).await.unwrap().unwrap();
    log.record(started("two")).await.unwrap();
    log.close();
    let old = std::fs::read_to_string(dir.path().join("audit.jsonl.1")).unwrap();
    assert_eq!(old.lines().next().unwrap(), "{\"event\":\"cut");
    assert!(old.ends_with('\n') && old.lines().count() == 2 && old.contains("one"), "{old}");
    let new = lines(&std::fs::read_to_string(&path).unwrap());
    assert_eq!((new.len(), new[0]["what"].as_str().unwrap()), (1, "two"));
    // A path that cannot be used any more: the old file goes on.
    std::fs::rename(&path, dir.path().join("audit.jsonl.2")).unwrap();
    std::fs::create_dir(&path).unwrap();
    let log = Arc::new(log);
    assert!(log.reopen().is_err());
}

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

struct Sample {
    session: Session,
    head: Session,
    issuance: Issuance,
    document: CredentialsResponse,
    order: Order,
    block: Block,
}

fn sample() -> Sample {
    let session = Session {
        id: SessionId::random(),
        cluster: "lab".parse().unwrap(),
        user: "alice".parse().unwrap(),
        uid: Some(Uid(1001)),
        project: "genomics".parse().unwrap(),
        partition: None,
        nodes: vec!["n1".parse().unwrap()],
        origin: Origin::Slurm(Run { job: 7.try_into().unwrap(), restart: 1, submitted: T0 }),
        opened: T0,
        ended: None,
        status: SessionStatus::Completed,
        why: None,
    };
    let token = TokenHash::of("canary-session-token");
    let head = Session {
        origin: Origin::Head { head_session: "1300".into(), submitted: "x".into(), token },
        uid: None,
        ..session.clone()
    };
    let issuance = Issuance {
        session: session.id,
        user: session.user.clone(),
        cluster: session.cluster.clone(),
        project: session.project.clone(),
        role: RoleName::default(),
        role_arn: "arn:aws:iam::123456789012:role/g".parse().unwrap(),
        role_id: "AROAG".into(),
        session_name: "lab-alice-n1".into(),
        source_identity: Some("alice".into()),
        key_id: "ASIA1".into(),
        node: Some("n1".parse().unwrap()),
        issued: T0,
        expires: T0 + time::Duration::HOUR,
    };
    let document = CredentialsResponse {
        credentials: Credentials {
            access_key_id: "ASIA1".into(),
            secret_access_key: Secret::new("canary-secret".into()),
            token: Secret::new("canary-token".into()),
            expiration: T0 + time::Duration::HOUR,
            role_arn: issuance.role_arn.clone(),
            account_id: None,
        },
        session_name: "lab-alice-n1".into(),
        issued: T0,
    };
    let order = Order {
        id: OrderId::random(),
        subject: Subject::User("alice".parse().unwrap()),
        clusters: Some(vec!["lab".parse().unwrap()]),
        by: "root".into(),
        why: Some("left".into()),
        wide: false,
        at: T0,
        done: None,
        report: None,
    };
    let block = Block {
        subject: Subject::Job("lab".parse().unwrap(), 7.try_into().unwrap()),
        by: "root".into(),
        why: None,
        at: T0,
    };
    Sample { session, head, issuance, document, order, block }
}

fn one_of_each<'a>(s: &'a Sample, role: &'a RoleName, node: &'a NodeName, refusal: &'a Refusal) -> Vec<Event<'a>> {
    let arn = &s.issuance.role_arn;
    vec![
        started("credvend"),
        Event::ServiceStopped,
        Event::LinesLost { count: 3 },
        Event::RefusalsOmitted { count: 3, strangers: true },
        Event::SessionOpened { session: &s.session, node: Some(node), peer: Some(PEER) },
        Event::SessionOpened { session: &s.head, node: None, peer: None },
        Event::TokenReplaced { session: &s.head, peer: Some(PEER) },
        Event::SessionEnded { session: &s.session, why: "Slurm says that the job is over" },
        Event::CredentialsIssued { session: &s.session, issuance: &s.issuance },
        Event::CredentialsDelivered {
            session: &s.session,
            role,
            to: To::Node { node, peer: Some(PEER) },
            document: &s.document,
            named: true,
        },
        Event::CredentialsDelivered {
            session: &s.head,
            role,
            to: To::Bearer { claimed: Some("x"), peer: Some(PEER) },
            document: &s.document,
            named: false,
        },
        Event::Refused(Refused {
            stranger: false,
            by: Some("the head"),
            peer: Some("10.0.0.1".into()),
            cluster: Some(&s.session.cluster),
            node: Some(node),
            job: Some(7.try_into().unwrap()),
            user: Some(&s.session.user),
            uid: Some(Uid(5)),
            project: Some(&s.session.project),
            session: Some(s.session.id),
            head_session: Some("1300"),
            role: Some(role),
            request: Some("node-open"),
            refusal: Some(refusal),
        }),
        Event::RevocationOrdered { order: &s.order },
        Event::RevocationDone { order: &s.order, sessions: 1, denied: 2, lacking: 0 },
        Event::Blocked { block: &s.block },
        Event::Unblocked { by: "root", subject: &s.block.subject },
        Event::DenyInForce { role_arn: arn, entries: 2 },
        Event::DenyFailed { role_arn: arn, why: "IAM is away" },
        Event::ProjectsChanged { by: "SIGHUP", changes: "+ genomics default" },
    ]
}

#[test]
fn every_line_is_one_ascii_object_of_documented_fields_without_a_secret() {
    let (s, role, node) = (sample(), RoleName::default(), "n1".parse().unwrap());
    let refusal = Refusal::BadRequest("a \"quoted\" \\ line\nwith \u{1b}[2J and \u{202e}reversed \u{1f600}".into());
    let (mut kinds, mut fields) = (BTreeSet::new(), BTreeSet::from(["v".to_owned(), "run".into(), "seq".into()]));
    for event in one_of_each(&s, &role, &node, &refusal) {
        let json = event.to_json(T0);
        assert!(json.bytes().all(|b| (b' '..=b'~').contains(&b)), "{json}");
        assert!(!json.contains("canary"), "{json}");
        let Value::Object(object) = serde_json::from_str(&json).unwrap() else { panic!("{json}") };
        assert_eq!(object["event"], event.kind());
        assert_eq!(object["time"], "2026-03-01T12:00:00.123Z", "T0");
        if let Event::Refused(_) = event {
            assert_eq!(object["why"], refusal.to_string());
        }
        kinds.insert(event.kind());
        fields.extend(object.keys().cloned());
    }
    assert_eq!(kinds, KINDS.iter().copied().collect());
    assert_eq!(fields, FIELDS.iter().map(|field| (*field).to_owned()).collect());
}

/// A name that AWS never saw must not look like one that joins CloudTrail.
#[test]
fn behind_an_upstream_no_name_is_given_for_awss() {
    let mut s = sample();
    s.issuance.role_id = String::new();
    let (role, node) = (RoleName::default(), "n1".parse().unwrap());
    let to = To::Node { node: &node, peer: None };
    let issued = Event::CredentialsIssued { session: &s.session, issuance: &s.issuance };
    let delivered =
        Event::CredentialsDelivered { session: &s.session, role: &role, to, document: &s.document, named: false };
    for event in [issued, delivered] {
        let line: Value = serde_json::from_str(&event.to_json(T0)).unwrap();
        for field in ["session-name", "principal-id", "role-id"] {
            assert!(line.get(field).is_none(), "{line}");
        }
        assert_eq!((&line["asked-name"], &line["key-id"]), (&"lab-alice-n1".into(), &"ASIA1".into()), "{line}");
    }
}

#[test]
fn the_document_has_every_event_and_every_field() {
    let document = include_str!("../../../docs/audit.md");
    let table = |heading: &str| -> BTreeSet<&str> {
        let section = document.split(heading).nth(1).unwrap_or_else(|| panic!("no {heading:?}"));
        let rows = section.split("\n## ").next().unwrap().lines();
        rows.filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect()
    };
    assert_eq!(table("## Events\n"), KINDS.iter().copied().collect());
    assert_eq!(table("## Fields\n"), FIELDS.iter().copied().collect());
}

#[test]
fn texts_are_cut() {
    let long = "x".repeat(100_000);
    assert!(started(&long).to_json(OffsetDateTime::UNIX_EPOCH).len() < 2000);
}
