//! Looking for a directory by its inode number below a job's directory.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

use super::CgroupId;
use super::steps::Steps;
use super::watch::Watch;

/// Directories that a whole search reads. Slurm makes three for a step and one for a task, which need not be read.
pub const MAX_READ: usize = 512;
/// What is done at a time, in looks at a directory's attributes; reading it costs as much as [`READ_COST`] of them. It is
/// some tenths of a millisecond.
const SLICE: usize = 384;
const READ_COST: usize = 16;
/// Slurm's are four deep; the rest is for what a user makes in a delegated one.
const MAX_DEPTH: usize = 16;
/// Cgroups of one job that are remembered. More than that, and the search starts from nothing.
pub const MAX_SEEN: usize = 4096;
/// No link is followed.
pub const OPEN: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
/// Where Slurm puts a step's tasks.
const TASKS: &str = "user";

/// What is known of the cgroups below one job's directory. It belongs to one run of a job: to be dropped with it.
#[derive(Debug, Default)]
pub struct Seen {
    pub(super) cgroups: HashSet<u64>,
    /// The job's directory as it was when its steps were read last.
    pub(super) directory: Option<Directory>,
    pub(super) steps: Steps,
    /// A search that is not finished.
    pub(super) search: Option<Search>,
}

/// A job's directory.
#[derive(Debug)]
pub(super) struct Directory {
    pub name: String,
    pub version: Version,
    /// Tells whether it is as it was.
    pub watch: Option<Watch>,
}

/// What changes when a directory is made or removed in another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    pub inode: u64,
    /// Two more than it has directories.
    links: u64,
    /// The kernel keeps it for cgroups whose owner or mode was set, as Slurm sets its directories' owner.
    changed: (i64, i64),
}

impl Version {
    pub(super) fn of(stat: &FileStat) -> Self {
        Version { inode: stat.st_ino, links: stat.st_nlink, changed: (stat.st_mtime, stat.st_mtime_nsec) }
    }
}

#[derive(Debug)]
pub(super) struct Search {
    id: u64,
    /// The number of the job's directory, which may be made anew meanwhile.
    top: u64,
    /// Directories to be read, and how deep they are.
    left: Vec<(PathBuf, usize)>,
    read: usize,
    /// A directory could not be read: a user may close those in a part of the hierarchy that was delegated to the job.
    closed: bool,
}

/// How far a search has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Found,
    NotFound,
    /// Not all directories could be read: they are too many, or closed to this process.
    Unread,
    Unfinished,
}

impl Seen {
    /// Whether this cgroup was seen below the job's directory.
    pub fn has(&self, id: CgroupId) -> bool {
        self.cgroups.contains(&id.0)
    }

    /// Notes what a directory of the job holds, so that a step's second task costs nothing; whether `id` is there.
    pub(super) fn take(&mut self, children: &[(u64, OsString)], id: u64) -> bool {
        let room = MAX_SEEN.saturating_sub(self.cgroups.len());
        self.cgroups.extend(children.iter().map(|(inode, _)| *inode).take(room));
        let found = children.iter().any(|(inode, _)| *inode == id);
        if found {
            self.cgroups.insert(id);
        }
        found
    }

    /// Makes room for what is about to be found.
    pub(super) fn trim(&mut self) {
        if self.cgroups.len() >= MAX_SEEN {
            self.cgroups.clear();
        }
    }
}

/// Looks for a directory with this number at or below `top`, and notes all that it comes across. It does a [`SLICE`] of
/// the work; called again for the same number, it goes on.
///
/// The kernel numbers cgroups in the order in which they are made, so what was made last before the one that is looked
/// for is looked at first: the way leads straight down to it in all but odd cases.
pub(super) fn search(name: &str, top: Dir, id: u64, seen: &mut Seen) -> Progress {
    let (Ok(own), Ok(root)) = (fstat(&top), top.as_fd().try_clone_to_owned()) else { return Progress::Unread };
    if own.st_ino == id {
        seen.cgroups.insert(id);
        return Progress::Found;
    }
    let mut search = match seen.search.take().filter(|search| (search.id, search.top) == (id, own.st_ino)) {
        Some(search) => search,
        None => {
            seen.trim();
            Search { id, top: own.st_ino, left: vec![(PathBuf::new(), 0)], read: 0, closed: false }
        }
    };
    if search.read == 0 {
        // As it is before it is read: what comes later counts as a change.
        seen.directory = Some(Directory { name: name.to_owned(), version: Version::of(&own), watch: None });
        seen.steps.clear();
    }
    let progress = search.go_on(top, &root, seen);
    if progress == Progress::Unfinished {
        seen.search = Some(search);
    }
    progress
}

impl Search {
    fn go_on(&mut self, top: Dir, root: &OwnedFd, seen: &mut Seen) -> Progress {
        let mut top = Some(top);
        let mut work = 0;
        while work < SLICE {
            let Some((path, depth)) = self.left.pop() else {
                return if self.closed { Progress::Unread } else { Progress::NotFound };
            };
            work += 1;
            if depth > 0 && is_leaf(root, &path) {
                continue;
            }
            if self.read >= MAX_READ {
                return Progress::Unread;
            }
            (self.read, work) = (self.read + 1, work + READ_COST);
            let dir = match top.take() {
                Some(top) if depth == 0 => Ok(top),
                _ => open(root, &path),
            };
            let children = match dir.and_then(directories_in) {
                Ok(children) => children,
                // Removed meanwhile.
                Err(Errno::ENOENT | Errno::ENODEV) => continue,
                Err(_) => {
                    self.closed = true;
                    continue;
                }
            };
            if depth == 0 {
                seen.steps.clear();
                seen.steps.add(children.iter().cloned());
            }
            if seen.take(&children, self.id) || (depth == 0 && self.is_in_last_step(root, &children, seen)) {
                return Progress::Found;
            }
            if (depth == MAX_DEPTH && !children.is_empty()) || self.left.len() + children.len() > MAX_SEEN {
                return Progress::Unread;
            }
            self.add(&path, depth, children);
        }
        Progress::Unfinished
    }

    /// Whether it is among the tasks of the step that was made last before it.
    fn is_in_last_step(&self, job: &OwnedFd, steps: &[(u64, OsString)], seen: &mut Seen) -> bool {
        let before = steps.iter().filter(|(inode, _)| *inode < self.id).max_by_key(|(inode, _)| *inode);
        before.is_some_and(|(_, step)| tasks_in(job, Path::new(step)).is_ok_and(|tasks| seen.take(&tasks, self.id)))
    }

    fn add(&mut self, path: &Path, depth: usize, mut children: Vec<(u64, OsString)>) {
        children.sort_unstable_by_key(|(inode, _)| (*inode < self.id, *inode));
        self.left.extend(children.into_iter().map(|(_, name)| (path.join(name), depth + 1)));
    }
}

/// The directories of a step's tasks.
pub(super) fn tasks_in(at: impl AsFd, step: &Path) -> nix::Result<Vec<(u64, OsString)>> {
    open(at, &step.join(TASKS)).and_then(directories_in)
}

pub(super) fn open(at: impl AsFd, path: &Path) -> nix::Result<Dir> {
    Dir::openat(at, path, OPEN, Mode::empty())
}

/// Whether a directory has none in it: two links. File systems that count otherwise never say two.
fn is_leaf(root: &OwnedFd, path: &Path) -> bool {
    fstatat(root, path, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(|stat| stat.st_nlink == 2)
}

/// The directories in `dir` (at most [`MAX_SEEN`] and one) with their inode numbers. Nothing that is not a directory itself.
pub(super) fn directories_in(mut dir: Dir) -> nix::Result<Vec<(u64, OsString)>> {
    let mut children = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if entry.file_type() == Some(Type::Directory) && name != b"." && name != b".." {
            children.push((entry.ino(), OsStr::from_bytes(name).to_owned()));
        }
        if children.len() > MAX_SEEN {
            break;
        }
    }
    Ok(children)
}
