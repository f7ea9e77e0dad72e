//! Cgroup v2 directories as Slurm makes them for the jobs of one node, in a real hierarchy beside whatever the machine
//! uses itself.
//!
//! The directories are the whole machine's, so a scope has a slice and a node's name of its own. They are removed in the
//! end. What uses this needs root and a kernel with cgroup v2 (`has_cgroup2`).

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// A hierarchy, mounted for the calling thread, and a scope of slurmstepd's in it.
pub struct SlurmScope {
    root: PathBuf,
    slice: PathBuf,
    scope: PathBuf,
    outside: PathBuf,
    entered: Cell<bool>,
}

/// Gives the calling thread mounts of its own, which end with it and with its children.
///
/// # Errors
/// It is not root, or the kernel does not let it.
pub fn own_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    Ok(mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?)
}

impl SlurmScope {
    /// Mounts the hierarchy at `dir/cgroup`, and makes the scope of this node. All controllers that the hierarchy has are
    /// enabled, as on a node where Slurm constrains jobs: they multiply what a directory holds.
    ///
    /// # Errors
    /// It is not root, or the kernel has no cgroup v2.
    pub fn new(dir: &Path, node: &str) -> io::Result<Self> {
        let root = dir.join("cgroup");
        fs::create_dir_all(&root)?;
        mount(Some("none"), &root, Some("cgroup2"), MsFlags::empty(), None::<&str>)?;
        let slice = root.join(format!("{node}.slice"));
        let scope = slice.join(format!("{node}_slurmstepd.scope"));
        let outside = slice.join("session-1.scope");
        let made = SlurmScope { root, slice, scope, outside, entered: Cell::new(false) };
        made.make_dirs(&made.scope)?;
        made.make_dirs(&made.outside)?;
        Ok(made)
    }

    /// Where the hierarchy is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A cgroup of no job, as an ssh session's.
    pub fn outside(&self) -> &Path {
        &self.outside
    }

    /// Makes a cgroup below the scope, and those between, as slurmstepd does: it sets the owner of each.
    ///
    /// # Errors
    /// The kernel does not let it.
    pub fn make(&self, path: &str) -> io::Result<PathBuf> {
        let path = self.scope.join(path);
        self.make_dirs(&path)?;
        Ok(path)
    }

    fn make_dirs(&self, path: &Path) -> io::Result<()> {
        let below = path.strip_prefix(&self.root).map_err(io::Error::other)?;
        let mut dir = self.root.clone();
        for part in below {
            let child = dir.join(part);
            if !child.exists() {
                // No process may be in a cgroup that has controllers for those below it.
                enable_controllers(&dir);
                fs::create_dir(&child)?;
                chown(&child, Some(0), Some(0))?;
            }
            dir = child;
        }
        Ok(())
    }

    /// Moves this process into a cgroup. It leaves it in the end.
    ///
    /// # Errors
    /// The kernel does not let it.
    pub fn enter(&self, cgroup: &Path) -> io::Result<()> {
        self.entered.set(true);
        fs::write(cgroup.join("cgroup.procs"), "0")
    }
}

impl Drop for SlurmScope {
    fn drop(&mut self) {
        if self.entered.get() {
            let _ = fs::write(self.root.join("cgroup.procs"), "0");
        }
        remove(&self.slice);
        let _ = umount2(&self.root, MntFlags::MNT_DETACH);
    }
}

/// For the cgroups below this one.
fn enable_controllers(cgroup: &Path) {
    for controller in fs::read_to_string(cgroup.join("cgroup.controllers")).unwrap_or_default().split_whitespace() {
        // One that cannot be enabled here is not.
        let _ = fs::write(cgroup.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn remove(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    // Processes that were killed a moment ago may still be in it.
    for _ in 0..1000 {
        if fs::remove_dir(dir).is_ok() || !dir.exists() {
            break;
        }
        std::thread::yield_now();
    }
}
