//! Whether a socket was made in a Slurm job, on nodes where Slurm keeps its jobs in cgroup v2 directories.
//!
//! Slurm's cgroup/v2 plugin makes, as root, `SLICE/[NODE_]slurmstepd.scope/JOB/step_X/{slurm,user/task_N}` below the
//! root of the hierarchy. `SLICE` is `system.slice` unless cgroup.conf says otherwise; `JOB` is `job_N`, or the job's
//! SLUID (Slurm 26.05). The kernel remembers with each socket the cgroup in which it was made and tells its id
//! ([`Owner::cgroup`](crate::Owner::cgroup)); the id is the inode number of the cgroup's directory. So the socket was made in a job
//! if that number is found below the job's directory. It needs no privilege and nothing of /proc/PID.
//!
//! Why that is a proof: every directory down to the job's own belongs to root and nobody else may write in it, so only
//! root makes, removes or renames what is there, and only root moves a process from one job's directory to another's. A
//! user with a delegated directory (below a step) can make cgroups in it, which still are in the job. The number of a
//! removed cgroup is not used again: the kernel counts them with 64 bits, and a socket keeps its cgroup in being.
//!
//! What it does not prove: a process can hand an open socket to another one of the same user, and a process that Slurm's
//! daemon lost (a killed slurmstepd) stays in its job's directory for as long as it lives.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::dir::{Dir, Type};
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, fstat, fstatat};

/// Directories that one search reads. Slurm makes three for a step and one for a task, which need not be read.
const MAX_READ: usize = 512;
/// Slurm's are four deep; the rest is for what a user makes in a delegated one.
const MAX_DEPTH: usize = 16;
/// Cgroups of one job that are remembered. More than that, and the search starts from nothing.
const MAX_SEEN: usize = 4096;
/// No link is followed.
const OPEN: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
/// Where Slurm puts a step's tasks.
const TASKS: &str = "user";
/// What Slurm uses unless cgroup.conf has `CgroupSlice`.
const DEFAULT_SLICE: &str = "system.slice";

/// The id of a cgroup v2: the inode number of its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupId(pub u64);

/// Slurm's directories in the cgroup v2 hierarchy.
#[derive(Debug)]
pub struct JobCgroups {
    /// Where the hierarchy is mounted; `None` if it is not.
    root: Option<PathBuf>,
    /// Root.
    owner: u32,
    /// Slurm's scopes for a node, as they were found last.
    scopes: Mutex<(String, Scopes)>,
}

/// Open: a way to them costs more than what is looked up below them.
type Scopes = Arc<Vec<OwnedFd>>;

/// A job as its directory is called.
#[derive(Debug, Clone, Copy)]
pub struct JobName<'a> {
    /// The node's name: several slurmd on one host have a scope each.
    pub node: &'a str,
    /// The job's id. A component of a heterogeneous job has its own.
    pub job: u32,
    /// The run's SLUID, where Slurm has one.
    pub sluid: Option<&'a str>,
}

/// What is known of the cgroups below one job's directory. It belongs to one run of a job: to be dropped with it.
#[derive(Debug, Default)]
pub struct Seen(HashSet<u64>);

/// Whether a socket was made in a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// In this job: proven.
    Inside,
    /// Slurm's jobs have directories here, and the socket was not made below this job's; or there are so many below it
    /// that it was not found.
    Outside,
    /// Slurm does not keep its jobs in cgroup v2 directories on this node, or the kernel does not tell cgroups of
    /// sockets: nothing can be said.
    NotTracked,
}

impl Seen {
    /// Whether this cgroup was seen below the job's directory.
    pub fn has(&self, id: CgroupId) -> bool {
        self.0.contains(&id.0)
    }

    /// Notes what a directory of the job holds, so that a step's second task costs nothing; whether `id` is there.
    fn take(&mut self, children: &[(u64, OsString)], id: u64) -> bool {
        let room = MAX_SEEN.saturating_sub(self.0.len());
        self.0.extend(children.iter().map(|(inode, _)| *inode).take(room));
        let found = children.iter().any(|(inode, _)| *inode == id);
        if found {
            self.0.insert(id);
        }
        found
    }
}

impl JobCgroups {
    /// Of this machine: where the mount table has a cgroup v2 hierarchy.
    pub fn new() -> Self {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        JobCgroups { root: table.lines().find_map(cgroup2_mount), owner: 0, scopes: Mutex::default() }
    }

    /// Of a hierarchy at `root` whose trusted directories belong to `owner`.
    pub fn at(root: PathBuf, owner: u32) -> Self {
        JobCgroups { root: Some(root), owner, scopes: Mutex::default() }
    }

    /// Where the hierarchy is mounted, if it is: what [`JobCgroups::made_in`] must be able to list.
    pub fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// Whether a socket of this cgroup was made in the job. Reads some directories (see the constants), and none if the
    /// cgroup was seen below the job's before.
    pub fn made_in(&self, socket: Option<CgroupId>, job: JobName<'_>, seen: &mut Seen) -> Verdict {
        let (Some(root), Some(id)) = (&self.root, socket) else { return Verdict::NotTracked };
        if seen.has(id) {
            return Verdict::Inside;
        }
        let mut scopes = self.scopes(root, job.node);
        // Slurm may have made its scope anew.
        for again in [false, true] {
            if again {
                scopes = self.scopes_anew(root, job.node);
            }
            let names = scopes.iter().flat_map(|scope| job.directories().map(move |name| (scope, name)));
            let open = |(scope, name): (_, String)| Dir::openat(scope, name.as_str(), OPEN, Mode::empty()).ok();
            let dirs: Vec<Dir> = names.filter_map(open).collect();
            if dirs.is_empty() {
                continue;
            }
            let inside = dirs.into_iter().any(|dir| self.is_trusted(&dir) && search(dir, id.0, seen));
            return if inside { Verdict::Inside } else { Verdict::Outside };
        }
        if scopes.is_empty() { Verdict::NotTracked } else { Verdict::Outside }
    }

    /// The ids of these jobs' own cgroups, where they have one; all of one node. The kernel numbers cgroups in the order in
    /// which they are made: a socket's is most likely in the job whose own is the greatest below it.
    pub fn of_jobs(&self, jobs: &[JobName<'_>]) -> Vec<Option<CgroupId>> {
        let (Some(root), Some(first)) = (&self.root, jobs.first()) else { return vec![None; jobs.len()] };
        let mut inodes = HashMap::new();
        for scope in self.scopes(root, first.node).iter() {
            let children = Dir::openat(scope, ".", OPEN, Mode::empty()).and_then(directories_in).unwrap_or_default();
            inodes.extend(children.into_iter().map(|(inode, name)| (name, inode)));
        }
        let inode = |name: String| inodes.get(OsStr::new(&name)).copied();
        jobs.iter().map(|job| job.directories().find_map(inode).map(CgroupId)).collect()
    }

    /// Slurm's scopes for this node, as they were found last.
    fn scopes(&self, root: &Path, node: &str) -> Scopes {
        let known = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0 == node && !known.1.is_empty() {
            return known.1.clone();
        }
        drop(known);
        self.scopes_anew(root, node)
    }

    fn scopes_anew(&self, root: &Path, node: &str) -> Scopes {
        let found = Arc::new(self.find_scopes(root, node));
        *self.scopes.lock().unwrap_or_else(PoisonError::into_inner) = (node.to_owned(), found.clone());
        found
    }

    /// The node's own scope in each slice, or else the one that has no node's name. Those of other slices count where the
    /// default one has none.
    fn find_scopes(&self, root: &Path, node: &str) -> Vec<OwnedFd> {
        let Some(root) = open(root, OPEN, Mode::empty()).ok().filter(|root| self.is_trusted(root)) else {
            return vec![];
        };
        let trusted = |parent: &OwnedFd, name: &OsStr| {
            openat(parent, name, OPEN, Mode::empty()).ok().filter(|dir| self.is_trusted(dir))
        };
        let in_slice = |slice: &OsStr| {
            let slice = trusted(&root, slice)?;
            let names = [format!("{node}_slurmstepd.scope"), "slurmstepd.scope".to_owned()];
            names.iter().find_map(|name| trusted(&slice, OsStr::new(name)))
        };
        if let Some(scope) = in_slice(OsStr::new(DEFAULT_SLICE)) {
            return vec![scope];
        }
        let slices = Dir::openat(&root, ".", OPEN, Mode::empty()).and_then(directories_in).unwrap_or_default();
        let slices = slices.into_iter().filter(|(_, name)| name.as_encoded_bytes().ends_with(b".slice"));
        slices.filter_map(|(_, name)| in_slice(&name)).collect()
    }

    /// A directory of root's in which nobody else may write.
    fn is_trusted(&self, dir: &impl AsFd) -> bool {
        fstat(dir).is_ok_and(|stat| stat.st_uid == self.owner && stat.st_mode & 0o022 == 0)
    }
}

impl Default for JobCgroups {
    fn default() -> Self {
        JobCgroups::new()
    }
}

impl JobName<'_> {
    fn directories(&self) -> impl Iterator<Item = String> {
        let plain = |sluid: &&str| !sluid.is_empty() && sluid.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let sluid = self.sluid.filter(plain);
        sluid.map(str::to_owned).into_iter().chain([format!("job_{}", self.job)])
    }
}

/// The mount point, if a line of /proc/self/mountinfo is of a whole cgroup v2 hierarchy.
fn cgroup2_mount(line: &str) -> Option<PathBuf> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    // An escaped name (a space, say) is nobody's choice for it.
    (root == "/" && file_system.starts_with("cgroup2 ") && !point.contains('\\')).then(|| PathBuf::from(point))
}

/// Looks for a directory with this inode number at or below `top`, and notes all that it comes across.
///
/// The kernel numbers cgroups in the order in which they are made, so what was made last before the one that is looked
/// for is looked at first: the way leads straight down to it in all but odd cases.
fn search(top: Dir, id: u64, seen: &mut Seen) -> bool {
    let (Ok(own), Ok(root)) = (fstat(&top), top.as_fd().try_clone_to_owned()) else { return false };
    if seen.0.len() >= MAX_SEEN {
        seen.0.clear();
    }
    if own.st_ino == id {
        seen.0.insert(id);
        return true;
    }
    let open = |path: &Path| Dir::openat(&root, path, OPEN, Mode::empty());
    let mut left = vec![(PathBuf::new(), 0)];
    let mut first = Some(top);
    for _ in 0..MAX_READ {
        let Some((path, depth)) = next(&root, &mut left) else { return false };
        let dir = first.take().map_or_else(|| open(&path), Ok);
        let Ok(mut children) = dir.and_then(directories_in) else { continue };
        if seen.take(&children, id) {
            return true;
        }
        if depth == MAX_DEPTH {
            continue;
        }
        children.sort_unstable_by_key(|(inode, _)| (*inode < id, *inode));
        if depth == 0
            && let Some((_, step)) = children.last()
            && open(&Path::new(step).join(TASKS)).and_then(directories_in).is_ok_and(|tasks| seen.take(&tasks, id))
        {
            return true;
        }
        children.truncate(MAX_SEEN.saturating_sub(left.len()));
        left.extend(children.into_iter().map(|(_, name)| (path.join(name), depth + 1)));
    }
    false
}

/// The next one that has directories in it.
fn next(root: &OwnedFd, left: &mut Vec<(PathBuf, usize)>) -> Option<(PathBuf, usize)> {
    loop {
        let (path, depth) = left.pop()?;
        // Two links: no directory in it. File systems that count otherwise never say two.
        let is_leaf = || fstatat(root, &path, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(|stat| stat.st_nlink == 2);
        if depth == 0 || !is_leaf() {
            return Some((path, depth));
        }
    }
}

/// The directories in `dir` (at most [`MAX_SEEN`]) with their inode numbers. Nothing that is not a directory itself.
fn directories_in(mut dir: Dir) -> nix::Result<Vec<(u64, OsString)>> {
    let mut children = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if entry.file_type() == Some(Type::Directory) && name != b"." && name != b".." {
            children.push((entry.ino(), OsStr::from_bytes(name).to_owned()));
        }
        if children.len() == MAX_SEEN {
            break;
        }
    }
    Ok(children)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    /// A hierarchy of directories in place of the kernel's.
    struct Hierarchy(tempfile::TempDir);

    impl Hierarchy {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
            Hierarchy(dir)
        }

        /// Makes directories; the last one's id.
        fn make(&self, path: &str) -> CgroupId {
            let mut whole = self.0.path().to_owned();
            for part in path.split('/') {
                whole.push(part);
                if !whole.exists() {
                    fs::create_dir(&whole).unwrap();
                    fs::set_permissions(&whole, fs::Permissions::from_mode(0o755)).unwrap();
                }
            }
            CgroupId(fs::metadata(&whole).unwrap().ino())
        }

        fn verdict(&self, id: CgroupId, job: u32) -> Verdict {
            self.cgroups().made_in(Some(id), JobName { node: "n1", job, sluid: None }, &mut Seen::default())
        }

        fn cgroups(&self) -> JobCgroups {
            JobCgroups::at(self.0.path().to_owned(), nix::unistd::geteuid().as_raw())
        }

        fn mode(&self, path: &str, mode: u32) {
            fs::set_permissions(self.0.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    const SCOPE: &str = "system.slice/slurmstepd.scope";

    #[test]
    fn every_cgroup_of_a_job_is_in_it_and_no_other() {
        let machine = Hierarchy::new();
        let below = ["", "/step_0", "/step_0/user", "/step_0/user/task_0", "/step_batch/user/task_special/podman/x"];
        let own: Vec<_> = below.iter().map(|below| machine.make(&format!("{SCOPE}/job_7{below}"))).collect();
        let other = machine.make(&format!("{SCOPE}/job_70/step_0/user/task_0"));
        let beside = machine.make("system.slice/slurmd.service");
        let user = machine.make("user.slice/user-1001.slice/job_7/step_0/user/task_0");
        let job = |job| JobName { node: "n1", job, sluid: None };
        assert_eq!(machine.cgroups().of_jobs(&[job(8), job(7)]), [None, Some(own[0])]);
        for id in own {
            assert_eq!(machine.verdict(id, 7), Verdict::Inside);
            assert_eq!(machine.verdict(id, 70), Verdict::Outside);
            assert_eq!(machine.verdict(id, 8), Verdict::Outside, "a job without a directory");
        }
        for id in [other, beside, user, CgroupId(0), CgroupId(1), machine.make(SCOPE), machine.make("system.slice")] {
            assert_eq!(machine.verdict(id, 7), Verdict::Outside);
        }
    }

    #[test]
    fn nothing_is_said_where_slurm_keeps_no_cgroup_v2_directories() {
        let machine = Hierarchy::new();
        let id = machine.make("system.slice/slurmd.service");
        assert_eq!(machine.verdict(id, 7), Verdict::NotTracked);
        let job = JobName { node: "n1", job: 7, sluid: None };
        assert_eq!(machine.cgroups().made_in(None, job, &mut Seen::default()), Verdict::NotTracked);
        let none = JobCgroups { root: None, owner: 0, scopes: Mutex::default() };
        assert_eq!(none.made_in(Some(id), job, &mut Seen::default()), Verdict::NotTracked);
        machine.make(SCOPE);
        assert_eq!(machine.verdict(id, 7), Verdict::Outside, "Slurm tracks its jobs, and this is none of them");
        assert_eq!(machine.cgroups().made_in(None, job, &mut Seen::default()), Verdict::NotTracked);
    }

    #[test]
    fn a_directory_that_others_may_write_in_proves_nothing() {
        for (path, verdict) in [
            ("", Verdict::NotTracked),
            ("system.slice", Verdict::NotTracked),
            (SCOPE, Verdict::NotTracked),
            ("system.slice/slurmstepd.scope/job_7", Verdict::Outside),
        ] {
            for mode in [0o777, 0o775, 0o757] {
                let machine = Hierarchy::new();
                let id = machine.make(&format!("{SCOPE}/job_7/step_0/user/task_0"));
                machine.mode(path, mode);
                assert_eq!(machine.verdict(id, 7), verdict, "{path} {mode:o}");
                machine.mode(path, 0o755);
                assert_eq!(machine.verdict(id, 7), Verdict::Inside);
            }
        }
    }

    #[test]
    fn directories_of_another_owner_prove_nothing_and_delegated_ones_below_a_job_are_its_own() {
        let machine = Hierarchy::new();
        let id = machine.make(&format!("{SCOPE}/job_7/step_0/user/task_0"));
        let stranger = JobCgroups::at(machine.0.path().to_owned(), nix::unistd::geteuid().as_raw() + 1);
        let job = JobName { node: "n1", job: 7, sluid: None };
        assert_eq!(stranger.made_in(Some(id), job, &mut Seen::default()), Verdict::NotTracked);
        machine.mode("system.slice/slurmstepd.scope/job_7/step_0", 0o777);
        assert_eq!(machine.verdict(id, 7), Verdict::Inside);
    }

    #[test]
    fn no_link_leads_to_another_jobs_cgroups() {
        let machine = Hierarchy::new();
        let id = machine.make(&format!("{SCOPE}/job_8/step_0/user/task_0"));
        machine.make(&format!("{SCOPE}/job_7/step_0"));
        let scope = machine.0.path().join(SCOPE);
        symlink(scope.join("job_8/step_0/user"), scope.join("job_7/step_0/user")).unwrap();
        symlink(scope.join("job_8/step_0"), scope.join("job_7/step_1")).unwrap();
        symlink(scope.join("job_8"), scope.join("job_9")).unwrap();
        assert_eq!(machine.verdict(id, 7), Verdict::Outside);
        assert_eq!(machine.verdict(id, 9), Verdict::Outside);
        assert_eq!(machine.verdict(id, 8), Verdict::Inside);
    }

    #[test]
    fn the_directory_may_have_the_runs_sluid_and_slurm_a_slice_or_a_scope_of_its_own() {
        let machine = Hierarchy::new();
        let sluid = "s4HP2WQ8ZK1RT0";
        let id = machine.make(&format!("slurm.slice/n1_slurmstepd.scope/{sluid}/step_0/user/task_0"));
        let made_in =
            |node, job, sluid| machine.cgroups().made_in(Some(id), JobName { node, job, sluid }, &mut Seen::default());
        assert_eq!(made_in("n1", 7, Some(sluid)), Verdict::Inside);
        assert_eq!(made_in("n1", 7, None), Verdict::Outside);
        assert_eq!(made_in("n1", 7, Some("s4HP2WQ8ZK1RT1")), Verdict::Outside);
        for no_name in ["../n1_slurmstepd.scope", "", ".", ".."] {
            assert_eq!(made_in("n1", 7, Some(no_name)), Verdict::Outside, "{no_name:?} is no job's directory");
        }
        assert_eq!(made_in("n2", 7, Some(sluid)), Verdict::NotTracked, "another slurmd's");
        machine.make("slurm.slice/slurmstepd.scope/job_7");
        assert_eq!(made_in("n1", 7, Some(sluid)), Verdict::Inside, "the node's own scope goes before the general one");
        assert_eq!(made_in("n2", 7, Some(sluid)), Verdict::Outside);
    }

    #[test]
    fn a_step_is_read_once_for_all_its_tasks_and_what_is_seen_is_bounded() {
        let machine = Hierarchy::new();
        let tasks: Vec<_> =
            (0..40).map(|task| machine.make(&format!("{SCOPE}/job_7/step_0/user/task_{task}"))).collect();
        let (cgroups, job) = (machine.cgroups(), JobName { node: "n1", job: 7, sluid: None });
        let mut seen = Seen::default();
        assert_eq!(cgroups.made_in(Some(tasks[3]), job, &mut seen), Verdict::Inside);
        let (own, elsewhere) = (machine.0.path().join(SCOPE).join("job_7"), machine.0.path().join("elsewhere"));
        fs::rename(&own, &elsewhere).unwrap();
        for task in &tasks {
            assert_eq!(cgroups.made_in(Some(*task), job, &mut seen), Verdict::Inside);
        }
        assert_eq!(cgroups.made_in(Some(tasks[0]), job, &mut Seen::default()), Verdict::Outside);
        fs::rename(&elsewhere, &own).unwrap();
        let mut full = Seen((1_000_000..1_000_000 + MAX_SEEN as u64).collect());
        let late = machine.make(&format!("{SCOPE}/job_7/step_1/user/task_0"));
        assert_eq!(cgroups.made_in(Some(late), job, &mut full), Verdict::Inside);
        assert!(full.has(late) && full.0.len() <= MAX_SEEN);
        for number in 0..MAX_READ {
            machine.make(&format!("{SCOPE}/job_7/step_0/user/task_0/user_made_{number}/x/y"));
        }
        assert_eq!(cgroups.made_in(Some(CgroupId(1)), job, &mut Seen::default()), Verdict::Outside);
    }

    #[test]
    fn a_scope_that_slurm_made_anew_is_found() {
        let machine = Hierarchy::new();
        let (cgroups, job) = (machine.cgroups(), JobName { node: "n1", job: 7, sluid: None });
        let scope = machine.0.path().join(SCOPE);
        for _ in 0..3 {
            let task = machine.make(&format!("{SCOPE}/job_7/step_0/user/task_0"));
            assert_eq!(cgroups.made_in(Some(task), job, &mut Seen::default()), Verdict::Inside);
            fs::remove_dir_all(scope.join("job_7")).unwrap();
            assert_eq!(cgroups.made_in(Some(task), job, &mut Seen::default()), Verdict::Outside);
            fs::remove_dir_all(&scope).unwrap();
            assert_eq!(cgroups.made_in(Some(task), job, &mut Seen::default()), Verdict::NotTracked);
        }
    }

    #[test]
    fn the_mount_table_says_where_the_hierarchy_is() {
        let line = |rest: &str| cgroup2_mount(&format!("30 24 0:26 {rest}"));
        let found = Some(PathBuf::from("/sys/fs/cgroup"));
        assert_eq!(line("/ /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"), found);
        assert_eq!(line("/ /sys/fs/cgroup ro - cgroup2 none rw"), found);
        for other in [
            "/ /sys/fs/cgroup rw - tmpfs tmpfs rw",
            "/ /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids",
            "/docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
            "/ /a\\040b rw - cgroup2 cgroup2 rw",
            "/",
            "",
        ] {
            assert_eq!(line(other), None, "{other}");
        }
    }
}
