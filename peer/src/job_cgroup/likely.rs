//! To which of a user's jobs a socket's cgroup belongs, found with a few reads however many jobs there are.
//!
//! The kernel numbers cgroups in the order in which they are made, and slurmstepd makes the directories of a step's tasks
//! right after the step's own. So a task's step is most likely the one with the greatest number below the task's, among
//! the steps of all jobs. Those are remembered, and the kernel reports in which jobs a step began or ended since (see
//! `watch.rs`; a look at a job's directory tells it too). What is said here is certain where it names a job; otherwise the
//! whole search has to decide.

use std::collections::BinaryHeap;
use std::path::Path;

use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, SFlag, fstat, fstatat};

use super::search::{self, Directory, Seen, Version, directories_in, tasks_in};
use super::watch::{Change, Told};
use super::{CgroupId, JobCgroups, JobName, Scope};

/// Directories that are read, beside those of the jobs in which a step began.
const MAX_READ: usize = 6;
/// Jobs whose directories are read because steps began in them.
const MAX_CHANGED: usize = 8;
/// Jobs that are looked at.
const MAX_JOBS: usize = 256;

/// A directory in which to look next: its number, and the job's place in the list.
type Candidate = (u64, usize, Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A job whose steps are not known.
    Job,
    Step,
}

/// What a look at a job's directory shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// The job's steps are known.
    Known,
    /// They are known again: the kernel told which began or ended.
    Grown,
    /// Steps began or ended in it.
    Changed { inode: u64 },
    /// Nothing is known of this directory.
    New { inode: u64 },
}

impl JobCgroups {
    /// Which of these jobs, all of one node, a socket of this cgroup was made in; `None` if that is not found quickly: then
    /// [`JobCgroups::made_in`] has to say it of each.
    pub fn likely(&self, socket: CgroupId, jobs: &mut [(JobName<'_>, &mut Seen)]) -> Option<usize> {
        let (root, node) = (self.root.as_ref()?, jobs.first()?.0.node);
        let scopes = self.scopes(root, node);
        // Several slices with a scope for this node are an oddity that the whole search takes care of.
        let [scope] = scopes.as_slice() else { return None };
        self.look_for(scope, socket, jobs).or_else(|| {
            // A directory that is watched may have been removed and made anew.
            let stale = |seen: &&mut Seen| seen.directory.as_ref().is_some_and(|known| is_stale(scope, known));
            let mut any = false;
            for (_, seen) in jobs.iter_mut().take(MAX_JOBS).filter(|(_, seen)| stale(seen)) {
                (any, seen.directory) = (true, None);
            }
            any.then(|| self.look_for(scope, socket, jobs)).flatten()
        })
    }

    fn look_for(&self, scope: &Scope, socket: CgroupId, jobs: &mut [(JobName<'_>, &mut Seen)]) -> Option<usize> {
        let mut candidates = BinaryHeap::new();
        let mut changed = 0;
        let told = self.watches.learn();
        for (at, (name, seen)) in jobs.iter_mut().enumerate().take(MAX_JOBS) {
            match self.look(scope, name, seen, &told) {
                None => continue,
                Some(Look::Changed { .. }) if changed < MAX_CHANGED => {
                    changed += 1;
                    if self.is_in_new_step(scope, name, socket.0, seen) {
                        return Some(at);
                    }
                }
                Some(Look::New { inode } | Look::Changed { inode }) => {
                    candidates.extend((inode <= socket.0).then_some((inode, at, Kind::Job)));
                    continue;
                }
                Some(Look::Known) => {}
                Some(Look::Grown) if seen.has(socket) => return Some(at),
                Some(Look::Grown) => {}
            }
            candidates.extend(seen.steps.newest_before(socket.0).map(|step| (step, at, Kind::Step)));
        }
        self.look_through(scope, socket.0, jobs, candidates)
    }

    /// Whether it is in the job's newest step before it, of a job that has other steps than before.
    fn is_in_new_step(&self, scope: &Scope, job: &JobName<'_>, id: u64, seen: &mut Seen) -> bool {
        let newest = seen.steps.newest();
        self.read_job(scope, job, id, seen)
            || seen.steps.newest_before(id).is_some_and(|step| Some(step) > newest && is_in_step(scope, step, id, seen))
    }

    /// Looks in those with the greatest numbers first.
    fn look_through(
        &self,
        scope: &Scope,
        id: u64,
        jobs: &mut [(JobName<'_>, &mut Seen)],
        mut candidates: BinaryHeap<Candidate>,
    ) -> Option<usize> {
        for _ in 0..MAX_READ {
            let (number, at, kind) = candidates.pop()?;
            let (name, seen) = &mut jobs[at];
            let found = match kind {
                Kind::Job => self.read_job(scope, name, id, seen),
                Kind::Step => is_in_step(scope, number, id, seen),
            };
            if found {
                return Some(at);
            }
            let below = if kind == Kind::Job { id } else { number };
            candidates.extend(seen.steps.newest_before(below).map(|step| (step, at, Kind::Step)));
        }
        None
    }

    /// Reads which steps the job has; whether `id` is one of them, or the job's own.
    fn read_job(&self, scope: &Scope, job: &JobName<'_>, id: u64, seen: &mut Seen) -> bool {
        seen.trim();
        seen.steps.clear();
        seen.directory = None;
        let named = |name: String| {
            // What comes after this counts as a change.
            let watch = self.watches.add(&scope.path.join(&name));
            search::open(scope, Path::new(&name)).ok().map(|dir| (name, watch, dir))
        };
        let Some((name, watch, dir)) = job.directories().find_map(named) else { return false };
        let Some(stat) = fstat(&dir).ok().filter(|_| self.is_trusted(&dir)) else { return false };
        let Ok(steps) = directories_in(dir) else { return false };
        let found = seen.take(&steps, id);
        seen.steps.add(steps);
        seen.directory = Some(Directory { name, version: Version::of(&stat), watch });
        found || (stat.st_ino == id && seen.cgroups.insert(id))
    }

    /// How the job's directory is now, compared with what is known of it; `None` if the job has none. Steps of which the
    /// kernel has told are known afterwards.
    fn look(&self, scope: &Scope, job: &JobName<'_>, seen: &mut Seen, told: &Told) -> Option<Look> {
        let by_any_name = || job.directories().find_map(|name| version(scope, &name));
        let Some(known) = &mut seen.directory else {
            return by_any_name().map(|now| Look::New { inode: now.inode });
        };
        let mut lost = false;
        if let Some(watch) = &known.watch {
            if !watch.has_changes(told) {
                return Some(Look::Known);
            }
            let changes = watch.take();
            if !changes.lost {
                seen.note_changes(scope, changes.known);
                return Some(Look::Grown);
            }
            (known.watch, lost) = (None, true);
        } else {
            known.watch = self.watches.add(&scope.path.join(&known.name));
        }
        let now = version(scope, &known.name).or_else(by_any_name)?;
        let inode = now.inode;
        Some(match known.version {
            before if before.inode != inode => Look::New { inode },
            before if before != now || lost => Look::Changed { inode },
            _ => Look::Known,
        })
    }
}

impl Seen {
    /// Notes which steps began or ended in the job.
    fn note_changes(&mut self, scope: &Scope, changes: Vec<Change>) {
        let Some(job) = &self.directory else { return };
        let mut made = Vec::new();
        for change in changes {
            match change {
                Change::Made(name) => {
                    let path = Path::new(&job.name).join(&name);
                    let stat = fstatat(scope, &path, AtFlags::AT_SYMLINK_NOFOLLOW).ok();
                    // Or it has ended by now.
                    made.extend(stat.filter(is_directory).map(|stat| (stat.st_ino, name)));
                }
                Change::Removed(name) => self.steps.remove(&name),
            }
        }
        self.trim();
        self.take(&made, 0);
        self.steps.add(made);
    }
}

fn is_directory(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode).contains(SFlag::S_IFDIR)
}

fn version(scope: &Scope, name: &str) -> Option<Version> {
    fstatat(scope, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok().map(|stat| Version::of(&stat))
}

/// Whether the job's directory was removed.
fn is_stale(scope: &Scope, known: &Directory) -> bool {
    version(scope, &known.name).is_none_or(|now| now.inode != known.version.inode)
}

/// Whether a cgroup is among the tasks of a step.
fn is_in_step(scope: &Scope, step: u64, id: u64, seen: &mut Seen) -> bool {
    let (Some(job), Some(step)) = (&seen.directory, seen.steps.name(step)) else { return false };
    let path = Path::new(&job.name).join(step);
    tasks_in(scope, &path).is_ok_and(|tasks| seen.take(&tasks, id))
}
