//! Sockets made in cgroups of a real cgroup v2 hierarchy, mounted by the test beside whatever the machine uses itself.
#![forbid(unsafe_code)]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use peer::{CgroupId, JobCgroups, JobName, Owner, Seen, TcpPeers, Verdict};
use testbed::slurm_scope::{SlurmScope, own_mounts};

const NOBODY: u32 = 65534;
const NOT_HERE: &str = "mounts a cgroup v2 hierarchy: run this test as root on a kernel that has one";

/// A scope for a node's jobs. Each test has one of its own.
struct Hierarchy {
    scope: SlurmScope,
    node: String,
    _mounted_on: tempfile::TempDir,
}

impl Hierarchy {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let node = format!("peertest{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let mounted_on = tempfile::tempdir().unwrap();
        own_mounts().expect(NOT_HERE);
        let scope = SlurmScope::new(mounted_on.path(), &node).expect(NOT_HERE);
        Hierarchy { scope, node, _mounted_on: mounted_on }
    }

    /// Makes a cgroup below the scope.
    fn make(&self, path: &str) -> PathBuf {
        self.scope.make(path).unwrap()
    }

    fn verdict(&self, owner: Owner, job: u32, sluid: Option<&str>) -> Verdict {
        self.cgroups().made_in(owner.cgroup, JobName { node: &self.node, job, sluid }, &mut Seen::default())
    }

    fn cgroups(&self) -> JobCgroups {
        JobCgroups::at(self.scope.root().to_owned(), 0)
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
    let _client = Client::new(machine.scope.outside(), address, NOBODY, ":");
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

#[test]
#[cfg_attr(not(has_cgroup2), ignore = "mounts a cgroup v2 hierarchy: run this test as root on a kernel that has one")]
fn a_new_step_of_one_of_many_jobs_is_found_whichever_job_began_last() {
    let machine = Hierarchy::new();
    let task = |job: u32, step: u32| {
        machine.make(&format!("job_{job}/step_{step}/slurm"));
        let task = machine.make(&format!("job_{job}/step_{step}/user/task_0"));
        CgroupId(fs::metadata(task).unwrap().ino())
    };
    let cgroups = machine.cgroups();
    let named = |job| JobName { node: &machine.node, job, sluid: None };
    let mut jobs: Vec<(u32, Seen)> = (1..=30).map(|job| (job, Seen::default())).collect();
    let likely = |id, jobs: &mut Vec<(u32, Seen)>| {
        let mut all: Vec<_> = jobs.iter_mut().map(|(job, seen)| (named(*job), seen)).collect();
        cgroups.likely(id, &mut all).map(|at| jobs[at].0)
    };
    let first: Vec<_> = (1..=30).map(|job| task(job, 0)).collect();
    for job in [30, 4, 17] {
        assert_eq!(likely(first[job - 1], &mut jobs), Some(job as u32), "by the numbers of the jobs alone");
    }
    // Whatever is not found is searched in all of them, which are known then.
    assert_eq!(likely(CgroupId(u64::MAX), &mut jobs), None);
    for (job, seen) in &mut jobs {
        assert_eq!(cgroups.made_in(Some(CgroupId(u64::MAX)), named(*job), seen), Verdict::Outside);
    }
    for (step, job) in [17, 3, 29, 1, 17, 30].into_iter().enumerate() {
        assert_eq!(likely(task(job, step as u32 + 1), &mut jobs), Some(job));
    }
    // One step ends and the next one begins: the number of steps stays.
    fs::remove_dir(machine.make("job_3/step_2/user/task_0")).unwrap();
    for dir in ["job_3/step_2/user", "job_3/step_2/slurm", "job_3/step_2"] {
        fs::remove_dir(machine.make(dir)).unwrap();
    }
    assert_eq!(likely(task(3, 9), &mut jobs), Some(3));
    // A job's directory goes with its last step, also while it is kept open here, and comes with the next one.
    for dir in ["step_0/user/task_0", "step_0/user", "step_0/slurm", "step_0", ""] {
        fs::remove_dir(machine.make(&format!("job_4/{dir}"))).unwrap();
    }
    assert_eq!(likely(task(4, 1), &mut jobs), Some(4));
    assert_eq!(likely(task(31, 0), &mut jobs), None, "a job of which nothing is known");
}

#[test]
#[cfg_attr(not(has_cgroup2), ignore = "mounts a cgroup v2 hierarchy: run this test as root on a kernel that has one")]
fn a_socket_of_another_job_and_one_of_no_job_are_told_apart() {
    let machine = Hierarchy::new();
    machine.make("job_7/step_0/user/task_0");
    let nine = machine.make("job_9/step_0/user/task_0");
    let (listener, address) = listener();
    let cgroups = machine.cgroups();
    let seven = JobName { node: &machine.node, job: 7, sluid: None };
    let others = cgroups.other_jobs(&machine.node, &[seven]).unwrap();
    assert_eq!(others.iter().map(|job| job.job()).collect::<Vec<_>>(), [Some(9)]);
    for (cgroup, verdict) in [(nine.as_path(), Verdict::Inside), (machine.scope.outside(), Verdict::Outside)] {
        let _client = Client::new(cgroup, address, NOBODY, ":");
        let owner = owner(&listener);
        let found = cgroups.made_in_directory(owner.cgroup, &machine.node, &others[0], &mut Seen::default());
        assert_eq!((found, machine.verdict(owner, 7, None)), (verdict, Verdict::Outside));
    }
}
