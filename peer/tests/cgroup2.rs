//! Sockets made in cgroups of a real cgroup v2 hierarchy, mounted by the test beside whatever the machine uses itself.
#![forbid(unsafe_code)]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use peer::{CgroupId, JobCgroups, JobName, Owner, Seen, TcpPeers, Verdict};

const NOBODY: u32 = 65534;
const NOT_HERE: &str = "mounts a cgroup v2 hierarchy: run this test as root on a kernel that has one";

/// A hierarchy of the calling thread's own mount namespace, and a scope for a node's jobs in it. The directories are the
/// whole machine's, so each test has a slice and a node of its own.
struct Hierarchy {
    _mounted_on: tempfile::TempDir,
    root: PathBuf,
    slice: PathBuf,
    node: String,
}

impl Hierarchy {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("peertest{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let mounted_on = tempfile::tempdir().unwrap();
        let root = mounted_on.path().join("cgroup");
        fs::create_dir(&root).unwrap();
        unshare(CloneFlags::CLONE_NEWNS).expect(NOT_HERE);
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("none"), &root, Some("cgroup2"), MsFlags::empty(), None::<&str>).expect(NOT_HERE);
        let slice = root.join(format!("{name}.slice"));
        fs::create_dir(&slice).unwrap();
        fs::create_dir(slice.join(format!("{name}_slurmstepd.scope"))).unwrap();
        Hierarchy { _mounted_on: mounted_on, root, slice, node: name }
    }

    /// Makes a cgroup below the scope.
    fn make(&self, path: &str) -> PathBuf {
        let path = self.slice.join(format!("{}_slurmstepd.scope", self.node)).join(path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn verdict(&self, owner: Owner, job: u32, sluid: Option<&str>) -> Verdict {
        self.cgroups().made_in(owner.cgroup, JobName { node: &self.node, job, sluid }, &mut Seen::default())
    }

    fn cgroups(&self) -> JobCgroups {
        JobCgroups::at(self.root.clone(), 0)
    }
}

impl Drop for Hierarchy {
    fn drop(&mut self) {
        fn remove(dir: &Path) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove(&entry.path());
                }
            }
            // Processes that were killed a moment ago may still be in it.
            for _ in 0..1000 {
                if fs::remove_dir(dir).is_ok() {
                    break;
                }
                std::thread::yield_now();
            }
        }
        remove(&self.slice);
    }
}

/// A process that connects from within a cgroup and waits until its input ends. `then` is done after connecting.
struct Client(Child);

impl Client {
    fn new(cgroup: &Path, address: SocketAddr, uid: u32, then: &str) -> Self {
        let script = format!("exec 3<>/dev/tcp/{}/{}; {then}; echo; read -r _", address.ip(), address.port());
        // The process moves itself while it is root, as slurmstepd moves a task before it becomes the user's.
        let enter = format!(
            "echo 0 > {}/cgroup.procs && exec setpriv --reuid {uid} --regid {uid} --clear-groups \
                             bash -c '{script}'",
            cgroup.display()
        );
        let mut command = Command::new("bash");
        command.args(["-c", &enter]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.process_group(0).spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        Client(child)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The kernel's word on the next connection's other end.
fn owner(listener: &TcpListener) -> Owner {
    let (stream, peer) = listener.accept().unwrap();
    TcpPeers::new().unwrap().owner(stream.local_addr().unwrap(), peer).unwrap()
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[test]
#[cfg_attr(not(has_cgroup2), ignore = "mounts a cgroup v2 hierarchy: run this test as root on a kernel that has one")]
fn a_users_socket_tells_the_job_it_was_made_in_and_no_other() {
    let machine = Hierarchy::new();
    let task = machine.make("job_7/step_0/user/task_0");
    machine.make("job_8/step_0/user/task_0");
    let sluid = machine.make("s4HP2WQ8ZK1RT0/step_batch/user/task_0");
    let (listener, address) = listener();
    let client = Client::new(&task, address, NOBODY, ":");
    let seven = owner(&listener);
    assert_eq!((seven.uid, seven.cgroup), (NOBODY, Some(CgroupId(fs::metadata(&task).unwrap().ino()))));
    assert_eq!(machine.verdict(seven, 7, None), Verdict::Inside);
    assert_eq!(machine.verdict(seven, 8, None), Verdict::Outside);
    assert_eq!(machine.verdict(seven, 9, Some("s4HP2WQ8ZK1RT0")), Verdict::Outside);
    drop(client);
    let _client = Client::new(&sluid, address, NOBODY, ":");
    let nine = owner(&listener);
    assert_eq!(machine.verdict(nine, 9, Some("s4HP2WQ8ZK1RT0")), Verdict::Inside);
    assert_eq!(machine.verdict(nine, 7, None), Verdict::Outside);
    let _client = Client::new(&machine.root, address, NOBODY, ":");
    assert_eq!(machine.verdict(owner(&listener), 7, None), Verdict::Outside, "a process outside of all jobs");
}

#[test]
#[cfg_attr(not(has_cgroup2), ignore = "mounts a cgroup v2 hierarchy: run this test as root on a kernel that has one")]
fn a_socket_stays_in_the_cgroup_it_was_made_in() {
    let machine = Hierarchy::new();
    let (seven, eight) = (machine.make("job_7/step_0/user/task_0"), machine.make("job_8/step_0/user/task_0"));
    let (listener, address) = listener();
    let _moved = Client::new(&seven, address, 0, &format!("echo 0 > {}/cgroup.procs", eight.display()));
    let moved = owner(&listener);
    assert_eq!(machine.verdict(moved, 7, None), Verdict::Inside);
    assert_eq!(machine.verdict(moved, 8, None), Verdict::Outside);
    // The user may not move itself.
    let into_eight = format!(
        "echo 0 2>/dev/null > {}/cgroup.procs && exec 3<>/dev/tcp/{}/{}",
        eight.display(),
        address.ip(),
        address.port()
    );
    let _client = Client::new(&seven, address, NOBODY, &into_eight);
    assert_eq!(machine.verdict(owner(&listener), 7, None), Verdict::Inside);
}

#[test]
#[cfg_attr(not(has_cgroup2), ignore = "mounts a cgroup v2 hierarchy: run this test as root on a kernel that has one")]
fn a_removed_cgroup_proves_nothing_and_its_id_is_not_used_again() {
    let machine = Hierarchy::new();
    let task = machine.make("job_7/step_0/user/task_0");
    let other = machine.make("job_8/step_0/user/task_0");
    let (listener, address) = listener();
    // The process leaves its cgroup, as a leftover that Slurm lost, and the cgroup goes.
    let _client = Client::new(&task, address, 0, &format!("echo 0 > {}/cgroup.procs", other.display()));
    let left = owner(&listener);
    assert_eq!(machine.verdict(left, 7, None), Verdict::Inside);
    fs::remove_dir(&task).unwrap();
    assert_eq!(machine.verdict(left, 7, None), Verdict::Outside);
    for _ in 0..50 {
        fs::create_dir(&task).unwrap();
        assert_ne!(Some(CgroupId(fs::metadata(&task).unwrap().ino())), left.cgroup);
        assert_eq!(machine.verdict(left, 7, None), Verdict::Outside);
        fs::remove_dir(&task).unwrap();
    }
}

#[test]
#[cfg_attr(not(has_cgroup2), ignore = "mounts a cgroup v2 hierarchy: run this test as root on a kernel that has one")]
fn a_users_own_directories_make_no_job_but_may_lie_below_one() {
    let machine = Hierarchy::new();
    let task = machine.make("job_7/step_0/user/task_0");
    let own = |dir: &Path| {
        std::os::unix::fs::chown(dir, Some(NOBODY), None).unwrap();
        std::os::unix::fs::chown(dir.join("cgroup.procs"), Some(NOBODY), None).unwrap();
    };
    own(&task);
    let container = task.join("container");
    fs::create_dir(&container).unwrap();
    own(&container);
    let (listener, address) = listener();
    let _client = Client::new(&container, address, NOBODY, ":");
    assert_eq!(machine.verdict(owner(&listener), 7, None), Verdict::Inside);
    // A job's directory that is the user's could have been made by the user.
    own(&machine.make("job_9"));
    let pretended = machine.make("job_9/step_0");
    own(&pretended);
    let _client = Client::new(&pretended, address, NOBODY, ":");
    assert_eq!(machine.verdict(owner(&listener), 9, None), Verdict::Outside);
}
