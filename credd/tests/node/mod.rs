//! The real program, both of its processes, as root, in a run directory and on a port of its own.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs::{self, Permissions};
use std::io::BufReader;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use credd_protocol::local::{MAX_LINE_BYTES, Request, Response};
use credd_protocol::record::{JobRecord, RunDir, RunNames, file};
use credd_protocol::{Uid, fixtures};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// For what takes milliseconds, on a machine that is busy otherwise.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whom the server process runs as here: on every system, and nobody's.
pub const USER: &str = "nobody";

/// A node of its own: a directory, a port, and the real program.
pub struct Node {
    pub dir: TempDir,
    pub address: SocketAddr,
    pub keeper: Option<Child>,
}

impl Node {
    /// A node whose credd does not run yet.
    pub fn new(address: SocketAddr) -> Node {
        assert!(nix::unistd::geteuid().is_root(), "run these tests as root: credd is root's");
        let dir = tempfile::tempdir().unwrap();
        // The users' socket is for users, who must get there.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let text = format!(
            "cluster = \"lab\"\nnode = \"n1\"\nuser = {USER:?}\nrun-dir = {:?}\n[munge]\nsocket = {:?}\n\
             [credvend]\nurl = \"http://127.0.0.1:1\"\nconnect-timeout = \"200ms\"\n[http]\nlisten = \"{address}\"\n",
            dir.path().join("run"),
            dir.path().join("no-munge"),
        );
        fs::write(dir.path().join("credd.toml"), text).unwrap();
        Node { dir, address, keeper: None }
    }

    pub fn started() -> Node {
        let mut node = Node::new(free_address());
        node.start();
        node
    }

    pub fn start(&mut self) {
        let child = credd(["run", "--config", self.config().to_str().unwrap()])
            .env("SECRET_OF_THE_ADMIN", "x")
            .stdin(Stdio::null())
            .stderr(fs::File::options().create(true).append(true).open(self.log_path()).unwrap())
            .spawn();
        self.keeper = Some(child.unwrap());
        self.until("ready", |node| node.log().contains("credd is ready"));
    }

    /// Starts credd as the service manager does, with its socket.
    pub fn start_on(&mut self, listener: &TcpListener) {
        let _ = fs::remove_file(self.log_path());
        self.try_on(listener);
        self.until("ready", |node| node.log().contains("credd is ready"));
    }

    /// The same, whatever comes of it.
    pub fn try_on(&mut self, listener: &TcpListener) {
        // What systemd does: descriptor 3, and the process's own id in the environment.
        let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=http; exec \"$@\"";
        let child = Command::new("bash")
            .args(["-c", script, "bash", env!("CARGO_BIN_EXE_credd"), "run", "--config"])
            .arg(self.config())
            .env_remove("NOTIFY_SOCKET")
            .env_remove("JOURNAL_STREAM")
            .stdin(OwnedFd::from(listener.try_clone().unwrap()))
            .stderr(fs::File::options().create(true).append(true).open(self.log_path()).unwrap())
            .spawn();
        self.keeper = Some(child.unwrap());
    }

    pub fn run_dir(&self) -> RunDir {
        RunDir::new(self.dir.path().join("run"))
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("credd.toml")
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub fn keeper(&self) -> Pid {
        Pid::from_raw(self.keeper.as_ref().unwrap().id().cast_signed())
    }

    /// The server process.
    pub fn server(&self) -> Option<Pid> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.keeper())).ok()?;
        let mut children = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok());
        let pid = children.find_map(|list| list.split_whitespace().next().map(str::to_owned))?;
        Some(Pid::from_raw(pid.parse().ok()?))
    }

    pub fn until(&self, what: &str, mut reached: impl FnMut(&Node) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !reached(self) {
            assert!(Instant::now() < deadline, "in vain: {what}");
            #[expect(clippy::disallowed_methods, reason = "a poll with a deadline: another process is watched")]
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn ask(&self, request: &Request) -> Response {
        let stream = UnixStream::connect(self.run_dir().root_socket()).unwrap();
        credd::line::send(&stream, request, MAX_LINE_BYTES).unwrap();
        credd::line::receive(&mut BufReader::new(&stream), MAX_LINE_BYTES).unwrap().unwrap()
    }

    pub fn jobs(&self) -> Vec<u32> {
        match self.ask(&Request::Status) {
            Response::Status(jobs) => jobs.iter().map(|job| job.job.get()).collect(),
            other => panic!("{other:?}"),
        }
    }

    pub fn stop(&mut self) -> ExitStatus {
        kill(self.keeper(), Signal::SIGTERM).unwrap();
        self.keeper.take().unwrap().wait().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
        if std::thread::panicking() {
            eprintln!("credd's log:\n{}", self.log());
        }
    }
}

pub fn credd<const N: usize>(arguments: [&str; N]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_credd"));
    command.args(arguments).env_remove("NOTIFY_SOCKET").env_remove("JOURNAL_STREAM");
    command
}

pub fn output(mut command: Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Leaves a record as the plugin does.
pub fn start_job(run_dir: &RunDir, job: u32, uid: u32) -> JobRecord {
    let record = JobRecord { uid: Uid(uid), gid: uid, ..fixtures::record(job) };
    write_record(run_dir, &record, &RunNames::default());
    record
}

/// The same, with this record, and the run's other names.
pub fn write_record(run_dir: &RunDir, record: &JobRecord, names: &RunNames) {
    let new = run_dir.path().join(format!("new-{}", record.job));
    fs::create_dir(&new).unwrap();
    fs::set_permissions(&new, Permissions::from_mode(0o700)).unwrap();
    for (name, bytes) in [(file::RECORD, Some(record.to_json())), (file::NAMES, names.to_json())] {
        let Some(bytes) = bytes else { continue };
        fs::write(new.join(name), bytes).unwrap();
        fs::set_permissions(new.join(name), Permissions::from_mode(0o600)).unwrap();
    }
    fs::rename(&new, run_dir.job(record.job)).unwrap();
}

pub fn runs(pid: Pid) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// A line of /proc/PID/status.
pub fn status_of(pid: Pid, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
    line.split_once(':').unwrap().1.split_whitespace().collect::<Vec<_>>().join(" ")
}
