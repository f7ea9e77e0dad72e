//! Processes in the cgroups of Slurm jobs ask the real program, with another node's token or with none.
//!
//! The hierarchy is a real one, with directories as Slurm makes them. There is no credvend: a process that has passed
//! every check is told so (503).
#![forbid(unsafe_code)]

mod node;

use std::fs::{self, Permissions};
use std::io::BufReader;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use credd_protocol::local::{MAX_LINE_BYTES, Request, Response};
use credd_protocol::record::{JobRecord, RunDir, RunNames};
use credd_protocol::{JobId, JobToken, Sluid, Uid, fixtures, own_api};
use testbed::slurm_scope::{SlurmScope, own_mounts};

use node::write_record;

const PATIENCE: Duration = Duration::from_secs(60);
const ALICE: u32 = 65_001;
const BOB: u32 = 65_002;

struct Node {
    name: String,
    address: SocketAddr,
    credd: Child,
    scope: SlurmScope,
    dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("callers{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        own_mounts().unwrap();
        let scope = SlurmScope::new(dir.path(), &name).unwrap();
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
        let node = Node { name, address, credd, scope, dir };
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
        self.scope.make(path).unwrap()
    }

    /// A process of this user in this cgroup asks for the job with another node's token; the code it is told.
    fn ask(&self, cgroup: &Path, uid: u32, job: u32) -> String {
        let token = JobToken::mint().unwrap();
        let head =
            format!("GET /sessions/{job}/cluster/lab/project/genomics HTTP/1.1\\r\\nAuthorization: {}", token.expose());
        self.send(cgroup, uid, &head).0
    }

    /// The same without a token, as `credd credentials` does; with these further headers.
    fn ask_own(&self, cgroup: &Path, uid: u32, more: &str) -> (String, String) {
        let (path, client) = (own_api::CREDENTIALS, own_api::CLIENT);
        self.send(cgroup, uid, &format!("PUT {path} HTTP/1.1\\r\\nContent-Length: 0\\r\\n{client}: test{more}"))
    }

    /// Code and message of the answer.
    fn send(&self, cgroup: &Path, uid: u32, head: &str) -> (String, String) {
        let (ip, port) = (self.address.ip(), self.address.port());
        // Without `Connection`: no request without a token may have a header that credd does not send.
        let request = format!("{head}\\r\\nHost: {}\\r\\n\\r\\n", self.address);
        let asks = format!(
            "exec 3<>/dev/tcp/{ip}/{port}; printf \"{request}\" >&3; while read -r line <&3 && [ \"$line\" != $'\\r' ]; do \
             echo \"$line\"; case $line in [Cc]ontent-[Ll]ength:*) n=${{line//[!0-9]/}};; esac; done; echo; \
             head -c \"$n\" <&3"
        );
        let enters =
            "echo 0 > \"$1\"/cgroup.procs && exec setpriv --reuid \"$2\" --regid \"$2\" --clear-groups bash -c \"$3\"";
        let mut command = Command::new("bash");
        command.args(["-c", enters, "bash"]).arg(cgroup).arg(uid.to_string()).arg(asks);
        let done = command.stdin(Stdio::null()).output().unwrap();
        let answer = String::from_utf8(done.stdout).unwrap();
        let body = answer.split("\n\n").nth(1).unwrap_or_else(|| panic!("{answer:?}; {}", self.log()));
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        (body["Code"].as_str().unwrap().to_owned(), body["message"].as_str().unwrap().to_owned())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.credd.kill();
        let _ = self.credd.wait();
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
    let outside = node.scope.outside().to_owned();
    assert_eq!(node.ask(&seven, ALICE, 7), passed);
    assert_eq!(node.ask(&eight, ALICE, 8), passed, "the directory has the run's SLUID");
    assert_eq!(node.ask(&eleven, ALICE, 10), passed, "the leader's URL in a component's process");
    for (cgroup, uid, job, code) in [
        (&seven, ALICE, 8, "OutsideJob"),
        (&eight, ALICE, 7, "OutsideJob"),
        (&seven, ALICE, 10, "OutsideJob"),
        (&outside, ALICE, 7, "OutsideJob"),
        (&seven, ALICE, 9, "UnknownToken"),
        (&seven, BOB, 7, "UnknownToken"),
        (&nine, ALICE, 9, "UnknownToken"),
        (&seven, 0, 7, "UnknownToken"),
        (&seven, ALICE, 13, "UnknownToken"),
    ] {
        assert_eq!(node.ask(cgroup, uid, job), code, "job {job} by {uid} in {}", cgroup.display());
    }
}

#[test]
#[cfg_attr(not(has_cgroup2), ignore = "mounts a cgroup v2 hierarchy: run this test as root on a kernel that has one")]
fn a_process_in_a_job_without_credentials_gets_no_other_jobs() {
    let node = Node::new();
    node.job(7, ALICE, None, None);
    let passed = "NotNow";
    let seven = node.cgroup("job_7/step_0/user/task_0");
    let without = node.cgroup("job_9/step_0/user/task_0");
    let by_sluid = node.cgroup("s4HP2WQ8ZK1RT0/step_batch/user/task_0");
    let outside = node.scope.outside();
    let job = |job: u32| format!("\\r\\n{}: {job}", own_api::JOB);
    assert_eq!(node.ask_own(&seven, ALICE, "").0, passed);
    for cgroup in [&without, &by_sluid] {
        for more in [String::new(), job(7), format!("\\r\\n{}: 7", own_api::HINT)] {
            let (code, message) = node.ask_own(cgroup, ALICE, &more);
            assert_eq!(code, "OtherJob", "{message}");
            // Of job 7 no SLUID was recorded, so the directory with one may be its own.
            let told = if *cgroup == without {
                ["job 9", "srun --overlap", "(7)"]
            } else {
                ["the SLUID s4HP2WQ8ZK1RT0", "of job 7 no SLUID", "AWS_CONTAINER_AUTHORIZATION_TOKEN"]
            };
            assert!(told.iter().all(|part| message.contains(part)), "{message}");
        }
    }
    // As by ssh: again and again, without a further search.
    for more in [String::new(), job(7), job(7)] {
        assert_eq!(node.ask_own(outside, ALICE, &more).0, passed);
    }
    assert_eq!(node.ask_own(outside, BOB, &job(7)).0, "NoJob");
    assert_eq!(node.ask_own(&seven, BOB, "").0, "NoJob");
    node.job(8, ALICE, None, None);
    assert_eq!(node.ask_own(&seven, ALICE, &job(8)).0, "OtherJob");
    assert_eq!(node.ask_own(&without, ALICE, &job(8)).0, "OtherJob");
    assert_eq!(node.ask_own(outside, ALICE, "").0, "SeveralJobs");
    assert_eq!(node.ask_own(outside, ALICE, &job(8)).0, passed);
    // Its record comes late: from then on the process is of a job with credentials.
    node.job(9, ALICE, None, None);
    assert_eq!(node.ask_own(&without, ALICE, "").0, passed);
}
