//! Processes in the cgroups of Slurm jobs ask the real program: which of them another node's token serves.
//!
//! The hierarchy is a real one, with directories as Slurm makes them. It is the whole machine's, so the test's node has a
//! name of its own, and with it a scope. There is no credvend: a process that has passed every check is told so (503).
#![forbid(unsafe_code)]

mod node;

use std::fs::{self, Permissions};
use std::io::BufReader;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use credd_protocol::local::{MAX_LINE_BYTES, Request, Response};
use credd_protocol::record::{JobRecord, RunDir, RunNames};
use credd_protocol::{JobId, JobToken, Sluid, Uid, fixtures};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use node::write_record;

const PATIENCE: Duration = Duration::from_secs(60);
const ALICE: u32 = 65_001;
const BOB: u32 = 65_002;

struct Node {
    dir: tempfile::TempDir,
    name: String,
    address: SocketAddr,
    credd: Child,
    slice: PathBuf,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let name = format!("callers{}", std::process::id());
        let root = dir.path().join("cgroup");
        fs::create_dir(&root).unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("none"), &root, Some("cgroup2"), MsFlags::empty(), None::<&str>).unwrap();
        let slice = root.join(format!("{name}.slice"));
        fs::create_dir_all(slice.join(format!("{name}_slurmstepd.scope"))).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let text = format!(
            "cluster = \"lab\"\nnode = {name:?}\nuser = \"nobody\"\nrun-dir = {:?}\n\
             [credvend]\nurl = \"http://127.0.0.1:1\"\nconnect-timeout = \"200ms\"\n[http]\nlisten = \"{address}\"\n",
            dir.path().join("run"),
        );
        fs::write(dir.path().join("credd.toml"), text).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_credd"));
        command.args(["run", "--config"]).arg(dir.path().join("credd.toml"));
        command.env_remove("NOTIFY_SOCKET").env_remove("JOURNAL_STREAM").stdin(Stdio::null()).stderr(log);
        let credd = command.spawn().unwrap();
        let node = Node { dir, name, address, credd, slice };
        let deadline = Instant::now() + PATIENCE;
        while !node.log().contains("credd is ready") {
            assert!(Instant::now() < deadline, "credd does not start: {}", node.log());
            #[expect(clippy::disallowed_methods, reason = "a poll with a deadline: another process is watched")]
            std::thread::sleep(Duration::from_millis(5));
        }
        node
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Leaves a job's record as the plugin does, and says so.
    fn job(&self, job: u32, uid: u32, sluid: Option<Sluid>, het_leader: Option<u32>) {
        let node = self.name.parse().unwrap();
        let record = JobRecord { node, uid: Uid(uid), gid: uid, first_node: false, ..fixtures::record(job) };
        let job = record.job;
        let het_leader = het_leader.map(|leader| JobId::try_from(leader).unwrap());
        let run_dir = RunDir::new(self.dir.path().join("run"));
        write_record(&run_dir, &record, &RunNames { sluid, het_leader });
        let stream = UnixStream::connect(run_dir.root_socket()).unwrap();
        credd::line::send(&stream, &Request::Started { job }, MAX_LINE_BYTES).unwrap();
        let _: Option<Response> = credd::line::receive(&mut BufReader::new(&stream), MAX_LINE_BYTES).unwrap();
    }

    /// A cgroup below Slurm's scope.
    fn cgroup(&self, path: &str) -> PathBuf {
        let path = self.slice.join(format!("{}_slurmstepd.scope", self.name)).join(path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// A process of this user in this cgroup asks for the job with another node's token; the code it is told.
    fn ask(&self, cgroup: &Path, uid: u32, job: u32) -> String {
        let (ip, port) = (self.address.ip(), self.address.port());
        let token = JobToken::mint().unwrap();
        let request = format!(
            "GET /sessions/{job}/cluster/lab/project/genomics HTTP/1.1\\r\\nHost: {}\\r\\nAuthorization: {}\\r\\n\
             Connection: close\\r\\n\\r\\n",
            self.address,
            token.expose()
        );
        let asks = format!("exec 3<>/dev/tcp/{ip}/{port}; printf \"{request}\" >&3; cat <&3");
        let enters = format!(
            "echo 0 > {}/cgroup.procs && exec setpriv --reuid {uid} --regid {uid} --clear-groups bash -c '{asks}'",
            cgroup.display()
        );
        let done = Command::new("bash").args(["-c", &enters]).stdin(Stdio::null()).output().unwrap();
        let answer = String::from_utf8(done.stdout).unwrap();
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_else(|| panic!("{answer:?}; {}", self.log()));
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        body["Code"].as_str().unwrap().to_owned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        fn remove(dir: &Path) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove(&entry.path());
                }
            }
            let _ = fs::remove_dir(dir);
        }
        let _ = self.credd.kill();
        let _ = self.credd.wait();
        remove(&self.slice);
        if std::thread::panicking() {
            eprintln!("credd's log:\n{}", self.log());
        }
    }
}

#[test]
#[cfg_attr(not(has_cgroup2), ignore = "mounts a cgroup v2 hierarchy: run this test as root on a kernel that has one")]
fn a_process_is_served_as_the_job_in_whose_cgroup_it_asks() {
    let node = Node::new();
    let sluid = "s4HP2WQ8ZK1RT0";
    node.job(7, ALICE, None, None);
    node.job(8, ALICE, Some(sluid.parse().unwrap()), None);
    node.job(9, BOB, None, None);
    node.job(11, ALICE, None, Some(10));
    node.job(12, ALICE, None, Some(10));
    let passed = "NotNow";
    let seven = node.cgroup("job_7/step_0/user/task_0");
    let eight = node.cgroup(&format!("{sluid}/step_batch/user/task_0"));
    let nine = node.cgroup("job_9/step_0/user/task_0");
    let eleven = node.cgroup("job_11/step_0/user/task_0");
    node.cgroup("job_12/step_0/user/task_0");
    assert_eq!(node.ask(&seven, ALICE, 7), passed);
    assert_eq!(node.ask(&eight, ALICE, 8), passed, "the directory has the run's SLUID");
    assert_eq!(node.ask(&eleven, ALICE, 10), passed, "the leader's URL in a component's process");
    for (cgroup, uid, job, code) in [
        (&seven, ALICE, 8, "OutsideJob"),
        (&eight, ALICE, 7, "OutsideJob"),
        (&seven, ALICE, 10, "OutsideJob"),
        (&node.slice, ALICE, 7, "OutsideJob"),
        (&seven, ALICE, 9, "UnknownToken"),
        (&seven, BOB, 7, "UnknownToken"),
        (&nine, ALICE, 9, "UnknownToken"),
        (&seven, 0, 7, "UnknownToken"),
        (&seven, ALICE, 13, "UnknownToken"),
    ] {
        assert_eq!(node.ask(cgroup, uid, job), code, "job {job} by {uid} in {}", cgroup.display());
    }
}
