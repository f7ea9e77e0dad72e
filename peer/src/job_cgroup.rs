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

mod likely;
mod search;
mod steps;
#[cfg(test)]
mod tests;
mod watch;

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{open, openat};
use nix::sys::stat::{Mode, fstat};

pub use search::Seen;
use search::{MAX_SEEN, OPEN, Progress, directories_in, search};
use watch::Watches;

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
    /// Of jobs' directories.
    watches: Watches,
}

/// Open: a way to them costs more than what is looked up below them.
type Scopes = Arc<Vec<Scope>>;

/// A directory in which Slurm keeps the jobs of a node.
#[derive(Debug)]
struct Scope {
    path: PathBuf,
    fd: OwnedFd,
}

impl AsFd for Scope {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

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

/// The directory of a job, by its name alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobDirectory {
    name: String,
}

/// Whether a socket was made in a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// In this job: proven.
    Inside,
    /// Slurm's jobs have directories here, and the socket was not made below this job's.
    Outside,
    /// Not all directories below this job's could be read: they are too many, or closed to this process.
    Unread,
    /// Some of the directories are read; to be asked again, for the same job and socket.
    Unfinished,
    /// Slurm does not keep its jobs in cgroup v2 directories on this node, or the kernel does not tell cgroups of
    /// sockets: nothing can be said.
    NotTracked,
}

impl JobCgroups {
    /// Of this machine: where the mount table has a cgroup v2 hierarchy.
    pub fn new() -> Self {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        JobCgroups {
            root: table.lines().find_map(cgroup2_mount),
            owner: 0,
            scopes: Mutex::default(),
            watches: Watches::new(),
        }
    }

    /// Of a hierarchy at `root` whose trusted directories belong to `owner`.
    pub fn at(root: PathBuf, owner: u32) -> Self {
        JobCgroups { root: Some(root), owner, scopes: Mutex::default(), watches: Watches::new() }
    }

    /// Where the hierarchy is mounted, if it is: what [`JobCgroups::made_in`] must be able to list.
    pub fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// Whether a socket of this cgroup was made in the job. Reads some directories (see [`Verdict::Unfinished`]), and none if
    /// the cgroup was seen below the job's before.
    pub fn made_in(&self, socket: Option<CgroupId>, job: JobName<'_>, seen: &mut Seen) -> Verdict {
        let names: Vec<String> = job.directories().collect();
        self.made_below(socket, job.node, &names, seen)
    }

    /// Whether a socket of this cgroup was made in the job that has this directory on this node.
    pub fn made_in_directory(
        &self,
        socket: Option<CgroupId>,
        node: &str,
        job: &JobDirectory,
        seen: &mut Seen,
    ) -> Verdict {
        self.made_below(socket, node, std::slice::from_ref(&job.name), seen)
    }

    fn made_below(&self, socket: Option<CgroupId>, node: &str, names: &[String], seen: &mut Seen) -> Verdict {
        let (Some(root), Some(id)) = (&self.root, socket) else { return Verdict::NotTracked };
        if seen.has(id) {
            return Verdict::Inside;
        }
        let mut scopes = self.scopes(root, node);
        // Slurm may have made its scope anew.
        for again in [false, true] {
            if again {
                scopes = self.scopes_anew(root, node);
            }
            let ways = scopes.iter().flat_map(|scope| names.iter().map(move |name| (scope, name)));
            let mut dirs: Vec<(String, Dir)> = Vec::new();
            let mut verdict = Verdict::Outside;
            for (scope, name) in ways {
                match search::open(scope, Path::new(name)) {
                    Ok(dir) => dirs.push((name.clone(), dir)),
                    // Not there, or nothing of Slurm's.
                    Err(Errno::ENOENT | Errno::ENODEV | Errno::ELOOP | Errno::ENOTDIR) => {}
                    Err(_) => verdict = Verdict::Unread,
                }
            }
            if dirs.is_empty() && verdict == Verdict::Outside {
                continue;
            }
            for (name, dir) in dirs.into_iter().filter(|(_, dir)| self.is_trusted(dir)) {
                match search(&name, dir, id.0, seen) {
                    Progress::Found => return Verdict::Inside,
                    Progress::Unfinished => return Verdict::Unfinished,
                    Progress::Unread => verdict = Verdict::Unread,
                    Progress::NotFound => {}
                }
            }
            return verdict;
        }
        if scopes.is_empty() { Verdict::NotTracked } else { Verdict::Outside }
    }

    /// The directories in Slurm's scope for this node, except those of `known` jobs: whoever is below one of them belongs to
    /// another job. `None` if they cannot be read, or are too many.
    pub fn other_jobs(&self, node: &str, known: &[JobName<'_>]) -> Option<Vec<JobDirectory>> {
        let root = self.root.as_ref()?;
        let known: Vec<String> = known.iter().flat_map(JobName::directories).collect();
        let mut others = Vec::new();
        for scope in self.scopes(root, node).iter() {
            let children = search::open(scope, Path::new(".")).and_then(directories_in).ok()?;
            if children.len() > MAX_SEEN {
                return None;
            }
            let names = children.into_iter().map(|(_, name)| name.to_string_lossy().into_owned());
            let names = names.filter(|name| !known.contains(name));
            others.extend(names.map(|name| JobDirectory { name }));
        }
        Some(others)
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
    fn find_scopes(&self, root: &Path, node: &str) -> Vec<Scope> {
        let top = open(root, OPEN, Mode::empty()).ok().filter(|top| self.is_trusted(top));
        let Some(top) = top.map(|fd| Scope { path: root.to_owned(), fd }) else { return vec![] };
        let trusted = |parent: &Scope, name: &OsStr| {
            let fd = openat(parent, name, OPEN, Mode::empty()).ok().filter(|dir| self.is_trusted(dir))?;
            Some(Scope { path: parent.path.join(name), fd })
        };
        let in_slice = |slice: &OsStr| {
            let slice = trusted(&top, slice)?;
            let names = [format!("{node}_slurmstepd.scope"), "slurmstepd.scope".to_owned()];
            names.iter().find_map(|name| trusted(&slice, OsStr::new(name)))
        };
        if let Some(scope) = in_slice(OsStr::new(DEFAULT_SLICE)) {
            return vec![scope];
        }
        let slices = Dir::openat(&top, ".", OPEN, Mode::empty()).and_then(directories_in).unwrap_or_default();
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

impl JobDirectory {
    /// The directory of the job with this id.
    pub fn of_job(job: u32) -> Self {
        JobDirectory { name: format!("job_{job}") }
    }

    /// A directory with this name.
    pub fn named(name: &str) -> Self {
        JobDirectory { name: name.to_owned() }
    }

    /// The job's id, if the directory is called by it.
    pub fn job(&self) -> Option<u32> {
        self.name.strip_prefix("job_")?.parse().ok()
    }

    /// The job's SLUID, if the directory is called by it.
    pub fn sluid(&self) -> Option<&str> {
        Some(self.name.as_str()).filter(|name| is_sluid(name))
    }
}

fn is_sluid(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

impl JobName<'_> {
    fn directories(&self) -> impl Iterator<Item = String> {
        let sluid = self.sluid.filter(|sluid| is_sluid(sluid));
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
