//! The real program, both of its processes, as root: what each may do, and what happens when one of them dies.
#![forbid(unsafe_code)]

mod node;

use std::fs;
use std::io::BufReader;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use credd_protocol::local::{Outcome, Request, Response};
use credd_protocol::{JobId, SessionId};
use nix::sys::signal::{Signal, kill};
use node::{Node, PATIENCE, USER, credd, free_address, output, runs, start_job, status_of};

#[test]
#[cfg_attr(not(is_root), ignore = "credd is root's: run this test as root")]
fn the_server_process_has_no_powers() {
    let node = Node::started();
    let server = node.server().expect("no server process");
    let nobody = nix::unistd::User::from_name(USER).unwrap().unwrap();
    assert_eq!(status_of(server, "Uid"), vec![nobody.uid.to_string(); 4].join(" "));
    assert_eq!(status_of(server, "Gid"), vec![nobody.gid.to_string(); 4].join(" "));
    assert_eq!(status_of(server, "Groups"), "");
    for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert_eq!(status_of(server, set), "0000000000000000", "{set}");
    }
    assert_eq!((status_of(server, "Seccomp"), status_of(server, "Seccomp_filters")), ("2".into(), "3".into()));
    assert!(!node.log().contains("is not confined"), "{}", node.log());
    assert_eq!(status_of(server, "Name"), "credd-server", "its file is /proc/self/exe");
    assert_eq!(status_of(node.keeper(), "Name"), "credd");
    assert!(!fs::read_to_string(format!("/proc/{server}/environ")).unwrap().contains("SECRET_OF_THE_ADMIN"));
    for process in [server, node.keeper()] {
        assert_eq!(status_of(process, "NoNewPrivs"), "1");
        let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"]);
    }
    // The files in /proc of a process that may be neither dumped nor traced are root's, not its user's.
    assert_eq!(fs::metadata(format!("/proc/{server}/environ")).unwrap().uid(), 0);
    let open: Vec<String> = fs::read_dir(format!("/proc/{server}/fd"))
        .unwrap()
        .filter_map(|entry| Some(fs::read_link(entry.ok()?.path()).ok()?.display().to_string()))
        .collect();
    assert!(!open.iter().any(|target| target.contains("keeper.lock")), "{open:?}");
    let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o777;
    let run_dir = node.run_dir();
    assert_eq!((mode(run_dir.root_socket()), mode(run_dir.user_socket())), (0o600, 0o666));
    assert_eq!(fs::read_to_string(run_dir.endpoint()).unwrap().trim(), node.address.port().to_string());
}

/// What of the unit's sandbox can be had without systemd: exactly its capabilities.
#[test]
#[cfg_attr(not(is_root), ignore = "credd is root's: run this test as root")]
fn the_capabilities_of_the_unit_are_enough() {
    let unit = include_str!("../../packaging/systemd/credd.service");
    let bounding = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let kept: String = bounding.split_whitespace().map(|name| format!(",+{}", name[4..].to_lowercase())).collect();
    let mut node = Node::new(free_address());
    let child = Command::new("setpriv")
        .args(["--inh-caps=-all", &format!("--bounding-set=-all{kept}"), "--"])
        .args([env!("CARGO_BIN_EXE_credd"), "run", "--config"])
        .arg(node.config())
        .stdin(Stdio::null())
        .stderr(fs::File::create(node.log_path()).unwrap())
        .spawn();
    node.keeper = Some(child.unwrap());
    node.until("ready", |node| node.log().contains("credd is ready"));
    // CAP_KILL, CAP_SETGID, CAP_SETUID: 5, 6 and 7 of capabilities(7).
    assert_eq!(status_of(node.keeper(), "CapEff"), "00000000000000e0");
    start_job(&node.run_dir(), 9, 1001);
    node.ask(&Request::Started { job: JobId::try_from(9).unwrap() });
    node.until("the job is known", |node| node.jobs() == [9]);
    // A server process that does nothing any more is ended by force: that takes CAP_KILL, its uid is another one.
    let server = node.server().unwrap();
    kill(server, Signal::SIGSTOP).unwrap();
    node.until("the one that hangs is gone", |_| !runs(server));
    node.until("the job is known to another", |node| node.jobs() == [9]);
    assert!(node.stop().success());
}

#[test]
#[cfg_attr(not(is_root), ignore = "credd is root's: run this test as root")]
fn jobs_survive_the_death_of_the_server_process_and_of_the_keeper() {
    let mut node = Node::started();
    start_job(&node.run_dir(), 41, 1001);
    let job = JobId::try_from(41).unwrap();
    assert_eq!(node.ask(&Request::Started { job }), Response::Ok);
    node.until("the job is known", |node| node.jobs() == [41]);
    let outcome = node.ask(&Request::Outcome { job, wait_ms: 0 });
    assert!(matches!(outcome, Response::Outcome(Outcome::Opening { .. })), "{outcome:?}");

    let server = node.server().unwrap();
    kill(server, Signal::SIGKILL).unwrap();
    TcpStream::connect(node.address).expect("the port was let go");
    node.until("another server process", |node| node.server().is_some_and(|other| other != server));
    node.until("the job is known again", |node| node.jobs() == [41]);

    let server = node.server().unwrap();
    kill(node.keeper(), Signal::SIGKILL).unwrap();
    node.keeper.take().unwrap().wait().unwrap();
    node.until("the server process goes with its keeper", |_| !runs(server));
    start_job(&node.run_dir(), 42, 1001);
    let ended = node.run_dir().ended().join("41.0.x");
    fs::rename(node.run_dir().job(job), &ended).unwrap();
    // credvend knows of it, and cannot be told of its end.
    fs::write(ended.join("session"), SessionId::random().to_string()).unwrap();
    fs::write(node.log_path(), "").unwrap();
    node.start();
    node.until("what happened meanwhile is known", |node| {
        let Response::Health(health) = node.ask(&Request::Health) else { panic!("no health") };
        (health.jobs, health.undelivered_ends) == (1, 1)
    });
}

#[test]
#[cfg_attr(not(is_root), ignore = "credd is root's: run this test as root")]
fn a_stop_is_orderly_and_leaves_the_records() {
    let mut node = Node::started();
    let record = start_job(&node.run_dir(), 7, 1001);
    let server = node.server().unwrap();
    let asked = Instant::now();
    let status = node.stop();
    assert!(status.success(), "{status}");
    assert!(asked.elapsed() < Duration::from_secs(2), "nothing was under way, and yet it took {:?}", asked.elapsed());
    assert!(!runs(server));
    assert!(node.run_dir().job(record.job).join("record").exists());
    assert!(!node.run_dir().endpoint().exists(), "nobody holds the port, and jobs would be sent there");
    assert!(!node.log().contains(&record.token.expose()[8..]));
}

#[test]
#[cfg_attr(not(is_root), ignore = "credd is root's: run this test as root")]
fn a_listener_of_the_service_manager_outlives_credd() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut node = Node::new(listener.local_addr().unwrap());
    node.start_on(&listener);
    assert!(!node.log().contains("no socket unit"));
    assert!(node.stop().success());
    assert!(node.run_dir().endpoint().exists(), "the listener is still ours: jobs may be sent there");
    TcpStream::connect(node.address).unwrap();
}

#[test]
#[cfg_attr(not(is_root), ignore = "credd is root's: run this test as root")]
fn another_users_listener_is_named_and_nothing_is_served_until_it_goes() {
    let address = free_address();
    let mut node = Node::new(address);
    // Bound as root, then held by another user's process alone: the kernel goes by who made it, so a user must make it.
    let script = "import socket,sys\ns=socket.socket()\ns.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1)\n\
                  s.bind(('127.0.0.1',int(sys.argv[1])))\ns.listen()\nprint('ok',flush=True)\nsys.stdin.read()";
    let mut foreign = std::os::unix::process::CommandExt::uid(
        Command::new("python3").args(["-c", script, &address.port().to_string()]),
        65534,
    )
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut BufReader::new(foreign.stdout.as_mut().unwrap()), &mut line).unwrap();
    assert_eq!(line, "ok\n");
    node.start();
    assert!(node.log().contains("held by a process of uid 65534"), "{}", node.log());
    assert!(!node.run_dir().endpoint().exists() && node.server().is_none());
    drop(foreign.stdin.take());
    foreign.wait().unwrap();
    node.until("the endpoint is served", |node| node.run_dir().endpoint().exists() && node.server().is_some());
}

#[test]
#[cfg_attr(not(is_root), ignore = "credd is root's: run this test as root")]
fn two_credds_do_not_take_each_others_sockets() {
    let node = Node::started();
    let second = output(credd(["run", "--config", node.config().to_str().unwrap()]));
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another credd runs here"), "{second:?}");
    assert_eq!(node.jobs(), [] as [u32; 0]);
}

#[test]
#[cfg_attr(not(is_root), ignore = "credd is root's: run this test as root")]
fn a_bad_configuration_is_told_whole_and_ends_with_78() {
    let node = Node::new(free_address());
    let good = fs::read_to_string(node.config()).unwrap();
    assert!(output(credd(["check-config", "--config", node.config().to_str().unwrap()])).status.success());
    fs::write(node.config(), good.replace("cluster =", "clutser =").replace("http://127", "ftp://127")).unwrap();
    for command in ["check-config", "run"] {
        let told = output(credd([command, "--config", node.config().to_str().unwrap()]));
        let text = String::from_utf8_lossy(&told.stderr);
        assert_eq!(told.status.code(), Some(78), "{text}");
        assert!(text.contains("line 1: there is no option") && text.contains("line 8:"), "{text}");
    }
    for (user, reason) in [("no-such-user", "there is no user"), ("root", "must have no powers")] {
        fs::write(node.config(), good.replace(USER, user)).unwrap();
        let told = output(credd(["run", "--config", node.config().to_str().unwrap()]));
        assert_eq!(told.status.code(), Some(78));
        assert!(String::from_utf8_lossy(&told.stderr).contains(reason), "{told:?}");
    }
}

#[test]
#[cfg_attr(not(is_root), ignore = "credd is root's: run this test as root")]
fn status_and_health_are_for_people_and_programs() {
    let mut node = Node::started();
    start_job(&node.run_dir(), 5, 1001);
    node.ask(&Request::Started { job: JobId::try_from(5).unwrap() });
    node.until("the job is known", |node| node.jobs() == [5]);
    let run_dir = node.run_dir().path().to_str().unwrap().to_owned();
    let shown = output(credd(["status", "--json", "--run-dir", &run_dir]));
    let jobs: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&jobs[0]["job"], &jobs[0]["user"]), (&5.into(), &"alice".into()));
    let shown = output(credd(["status", "--run-dir", &run_dir]));
    assert!(String::from_utf8_lossy(&shown.stdout).starts_with("JOB  USER   PROJECT"), "{shown:?}");
    // credvend is not there: not well, and said why.
    let health = output(credd(["health", "--run-dir", &run_dir]));
    assert_eq!(health.status.code(), Some(1), "{health:?}");
    node.stop();
    let health = output(credd(["health", "--run-dir", &run_dir]));
    assert_eq!(health.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&health.stderr).contains("credd does not run here"), "{health:?}");
}

#[test]
#[cfg_attr(not(is_root), ignore = "credd is root's: run this test as root")]
fn the_server_command_is_not_for_people() {
    let refused = output(credd(["server"]));
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("must not be root"), "{refused:?}");
}

#[test]
#[cfg_attr(not(is_root), ignore = "credd is root's: run this test as root")]
fn the_service_manager_hears_ready_when_jobs_may_be_sent_and_of_the_end() {
    let mut node = Node::new(free_address());
    let socket = node.dir.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = |word: &str| {
        let mut datagram = [0; 4096];
        // A reload or a problem would have a word of its own; what is none of those asked for is passed over.
        for _ in 0..1000 {
            let length = manager.recv(&mut datagram).unwrap_or_else(|error| panic!("no {word}: {error}"));
            let said = String::from_utf8(datagram[..length].to_vec()).unwrap();
            if said.lines().any(|line| line == word) {
                return said;
            }
            assert!(word == "READY=1" || !said.contains("READY=1"), "twice: {said}");
        }
        panic!("never {word}");
    };
    // What is announced too early may be there a moment later: that is not so five times.
    for _ in 0..5 {
        let child = credd(["run", "--config", node.config().to_str().unwrap()])
            .env("NOTIFY_SOCKET", &socket)
            .env("WATCHDOG_USEC", "200000")
            .stdin(Stdio::null())
            .stderr(fs::File::create(node.log_path()).unwrap())
            .spawn();
        node.keeper = Some(child.unwrap());
        let said = hear("READY=1");
        let Response::Health(health) = node.ask(&Request::Health) else { panic!("no health") };
        assert!(health.serving, "ready before the server process serves: {health:?}");
        let announced = fs::read_to_string(node.run_dir().endpoint()).expect("ready, and jobs do not know the port");
        assert_eq!(announced.trim(), node.address.port().to_string());
        assert!(node.server().is_some() && said.contains("STATUS=serving"), "{said}");
        hear("WATCHDOG=1");
        kill(node.keeper(), Signal::SIGTERM).unwrap();
        hear("STOPPING=1");
        assert!(node.keeper.take().unwrap().wait().unwrap().success());
    }
}

#[test]
#[cfg_attr(not(is_root), ignore = "credd is root's: run this test as root")]
fn every_line_of_a_json_log_is_json() {
    let mut node = Node::new(free_address());
    let plain = fs::read_to_string(node.config()).unwrap();
    fs::write(node.config(), format!("{plain}[log]\nformat = \"json\"\nlevel = \"debug\"\n")).unwrap();
    node.start();
    // Both processes have something to say: credvend is not there, and one record is refused.
    start_job(&node.run_dir(), 3, 1001);
    fs::write(node.run_dir().job(JobId::try_from(3).unwrap()).join("session"), "no\nsession").unwrap();
    start_job(&node.run_dir(), 4, 1001);
    for job in [3, 4] {
        node.ask(&Request::Started { job: JobId::try_from(job).unwrap() });
    }
    node.until("the server's words", |node| node.log().contains("no session yet"));
    assert!(node.stop().success());
    let log = node.log();
    assert!(log.lines().count() > 3, "{log}");
    for line in log.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(entry["level"].is_string() && entry["message"].is_string(), "{line}");
    }
}

/// What systemd does for a service: stderr is a stream to the journal, and `JOURNAL_STREAM` says which one.
#[test]
#[cfg_attr(not(is_root), ignore = "credd is root's: run this test as root")]
fn lines_in_the_journal_have_a_priority_and_no_time() {
    let mut node = Node::new(free_address());
    let log = fs::File::create(node.log_path()).unwrap();
    let meta = log.metadata().unwrap();
    let journal = format!("{}:{}", meta.dev(), meta.ino());
    let child = credd(["run", "--config", node.config().to_str().unwrap()])
        .env("JOURNAL_STREAM", &journal)
        .stdin(Stdio::null())
        .stderr(log)
        .spawn();
    node.keeper = Some(child.unwrap());
    node.until("ready", |node| node.log().contains("credd is ready"));
    // Of both processes: the server's, which has it from the keeper, are those about credvend.
    start_job(&node.run_dir(), 4, 1001);
    node.ask(&Request::Started { job: JobId::try_from(4).unwrap() });
    node.until("the server's words", |node| node.log().contains("no session yet"));
    assert!(node.stop().success());
    for line in node.log().lines() {
        let of = |level: &str| line.contains(&format!("{level} credd::"));
        let right = match line.get(..3) {
            Some("<3>") => of("ERROR"),
            Some("<4>") => of("WARN"),
            Some("<6>") => of("INFO"),
            _ => false,
        };
        assert!(right, "{line}");
    }
    assert!(node.log().contains("<4>WARN credd::server::session: no session yet job=4 "), "{}", node.log());
    // What is said before the log runs, too.
    fs::write(node.config(), "bad").unwrap();
    let log = fs::File::create(node.log_path()).unwrap();
    let mut refused = credd(["run", "--config", node.config().to_str().unwrap()]);
    assert!(!refused.env("JOURNAL_STREAM", &journal).stderr(log).status().unwrap().success());
    assert!(!node.log().is_empty() && node.log().lines().all(|line| line.starts_with("<3>")), "{}", node.log());
}
