//! What the server process's sandbox lets through: each attempt in a process of its own, which is this very program.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus};

use credd::sandbox;
use nix::sys::signal::Signal;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

/// Names the attempt in the process that makes it.
const ATTEMPT: &str = "CREDD_SANDBOX_ATTEMPT";

/// What the attempts are made with, opened before the sandbox is entered.
struct Tools {
    pair: (UnixStream, UnixStream),
    tcp: TcpListener,
}

/// Has a process of its own enter the sandbox and make the attempt of this name.
fn attempt(name: &str) -> ExitStatus {
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "in_a_process_of_its_own", "--nocapture", "--include-ignored"])
        // As the supervisor starts the server process.
        .env("RES_OPTIONS", "single-request")
        .env(ATTEMPT, name)
        .output()
        .unwrap();
    let said = [&run.stdout[..], &run.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat();
    assert!(run.status.signal().is_some() || said.contains("1 passed"), "{name}: {said}");
    run.status
}

/// The other side of [`attempt`]; nothing where nobody asked for one.
#[test]
#[ignore = "the other tests run it, each in a process of its own"]
fn in_a_process_of_its_own() {
    let Some(name) = std::env::var_os(ATTEMPT) else { return };
    let tools = Tools { pair: UnixStream::pair().unwrap(), tcp: TcpListener::bind("127.0.0.1:0").unwrap() };
    // The filter counts for the threads that follow, and for this one.
    let files = sandbox::enter(Some(Path::new("/var"))).unwrap();
    match name.to_str().unwrap() {
        "serve" => serve(&tools),
        "exec" => panic!("{}", Command::new("/bin/true").exec()),
        "spawn" => drop(refused(Command::new("/bin/true").status())),
        "write" => write_files(),
        "read" => read_files(files),
        "pass" => pass_a_descriptor(&tools),
        "undo" => undo(),
        other => panic!("{other}"),
    }
}

#[track_caller]
fn refused<T, E: Into<io::Error>>(outcome: Result<T, E>) -> io::Error {
    let Err(error) = outcome else { panic!("it is allowed") };
    let error = error.into();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
    error
}

/// What the server does all day.
fn serve(tools: &Tools) {
    let address = tools.tcp.local_addr().unwrap();
    let client = std::thread::Builder::new().name("client".into()).spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(b"?").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    });
    let (mut stream, _) = tools.tcp.accept().unwrap();
    stream.read_exact(&mut [0]).unwrap();
    stream.write_all(b"!").unwrap();
    client.unwrap().join().unwrap();
    // credvend's name, and whatever the host's resolver asks for it; the second is of no host, and asks name servers.
    assert!("localhost:1".to_socket_addrs().unwrap().next().is_some());
    let _ = "credvend.invalid:1".to_socket_addrs();
    // The page of metrics, the kernel's word about a caller, and a runtime.
    TcpListener::bind("127.0.0.1:0").unwrap();
    peer::TcpPeers::new().unwrap().listener(address).unwrap().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let name = runtime.block_on(async {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        tokio::net::lookup_host("localhost:1").await.map(|mut found| found.next())
    });
    assert!(name.unwrap().is_some());
}

fn write_files() {
    let dir = std::env::temp_dir();
    refused(File::create(dir.join("credd-sandbox-test")));
    refused(File::options().append(true).open("/dev/null"));
    refused(File::options().write(true).open("/proc/self/comm"));
    refused(fs::create_dir(dir.join("credd-sandbox-test")));
    refused(fs::remove_file("/nonexistent"));
    refused(fs::rename("/nonexistent", "/nonexistent2"));
    refused(fs::set_permissions("/", std::os::unix::fs::PermissionsExt::from_mode(0o755)));
}

/// What name resolution needs may be read; of the rest, what Landlock is there for.
fn read_files(files: sandbox::Files) {
    fs::read("/etc/hosts").unwrap();
    fs::read_dir("/etc").unwrap().next().unwrap().unwrap();
    // In place of the cgroups: directories, not what is in them.
    fs::read_dir("/var/lib").unwrap().next().unwrap().unwrap();
    if files != sandbox::Files::Unrestricted {
        for path in ["/proc/self/environ", "/proc/self/status", "/tmp", "/root", "/home", "/dev/null", "/sys"] {
            refused(File::open(path));
        }
        for entry in fs::read_dir("/var/lib/dpkg").into_iter().flatten().filter_map(Result::ok) {
            assert!(!entry.path().is_file() || File::open(entry.path()).is_err(), "{entry:?}");
        }
    }
}

/// To the accomplice at the other end of a socket.
fn pass_a_descriptor(tools: &Tools) {
    let descriptors = [tools.tcp.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    refused(rustix::net::sendmsg(&tools.pair.0, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::empty()));
    // What carries no descriptor passes.
    (&tools.pair.0).write_all(b"x").unwrap();
}

/// What would let it outlive its supervisor, be read by others, or disturb them.
fn undo() {
    use nix::sys::prctl;
    refused(prctl::set_pdeathsig(None));
    refused(prctl::set_dumpable(true));
    refused(nix::sys::signal::kill(nix::unistd::getppid(), None));
    refused(nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 10, 10));
    refused(nix::unistd::setsid());
    refused(nix::unistd::dup2_stdout(File::open("/etc/hosts").unwrap()));
    prctl::set_name(c"thread").unwrap();
}

#[test]
fn the_server_can_do_its_work() {
    assert!(attempt("serve").success());
}

#[test]
fn it_can_start_no_program_and_no_process() {
    assert_eq!(attempt("exec").signal(), Some(Signal::SIGSYS as i32), "who becomes another program is killed");
    assert!(attempt("spawn").success());
}

#[test]
fn it_can_write_no_file_and_read_few() {
    assert!(attempt("write").success());
    assert!(attempt("read").success());
}

#[test]
fn it_can_pass_no_descriptor_on() {
    assert!(attempt("pass").success());
}

#[test]
fn it_can_undo_nothing() {
    assert!(attempt("undo").success());
}
