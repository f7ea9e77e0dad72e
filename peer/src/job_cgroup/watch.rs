//! Which steps jobs got and lost, as the kernel reports it (inotify): a job in which nothing happened costs no system call,
//! and one with a new step is not read again.
//!
//! A change is reported before mkdir(2) or rmdir(2) returns, so no process is in a new step's cgroup before it. What nobody has
//! asked for yet is bounded: by the kernel (`fs.inotify.max_queued_events`), and here by [`MAX_CHANGES`] for each directory.
//! Beyond it is known that something was lost, and the directory is to be read.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

/// Watches at a time, of all users.
const MAX_WATCHES: usize = 512;
/// Changes of one directory that are kept until they are asked for.
const MAX_CHANGES: usize = 64;
/// The kernel's reports come some eighty at a time; so many times they are read before the caller goes on. The rest waits for
/// the next time.
const MAX_READS: usize = 32;

/// What the kernel watches for this process.
#[derive(Debug, Clone, Default)]
pub(super) struct Watches(Option<Arc<Kernel>>);

/// A directory that is watched until this is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    descriptor: WatchDescriptor,
    kernel: Arc<Kernel>,
}

/// The directories in which something has happened that was not taken yet.
#[derive(Debug, Default)]
pub(super) struct Told(HashSet<WatchDescriptor>);

/// What has happened in a directory since it was asked last.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// In their order.
    pub known: Vec<Change>,
    /// There were others.
    pub lost: bool,
}

/// A directory in the watched one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    Made(OsString),
    Removed(OsString),
}

#[derive(Debug)]
struct Kernel {
    inotify: Inotify,
    watched: Mutex<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    changes: HashMap<WatchDescriptor, Changes>,
    /// Those that have any.
    told: HashSet<WatchDescriptor>,
}

impl Watches {
    /// Where the kernel lets this process watch; otherwise nothing is watched.
    pub fn new() -> Self {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        Watches(inotify.map(|inotify| Arc::new(Kernel { inotify, watched: Mutex::default() })))
    }

    /// Watches a directory from now on; `None` where that is not possible, there are too many watches, or it is watched.
    pub fn add(&self, directory: &Path) -> Option<Watch> {
        let kernel = self.0.as_ref()?;
        let mut watched = kernel.watched();
        if watched.changes.len() >= MAX_WATCHES {
            return None;
        }
        let events = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE;
        let how = AddWatchFlags::IN_ONLYDIR | AddWatchFlags::IN_DONT_FOLLOW;
        let descriptor = kernel.inotify.add_watch(directory, events | how).ok()?;
        // The kernel has one watch for a directory, however many ask for it.
        if watched.changes.contains_key(&descriptor) {
            return None;
        }
        watched.changes.insert(descriptor, Changes::default());
        Some(Watch { descriptor, kernel: kernel.clone() })
    }

    /// Learns what has happened, and in which directories: [`Watch::take`] says it afterwards.
    pub fn learn(&self) -> Told {
        let Some(kernel) = &self.0 else { return Told::default() };
        let mut watched = kernel.watched();
        for _ in 0..MAX_READS {
            let Ok(events) = kernel.inotify.read_events() else { break };
            events.into_iter().for_each(|event| watched.note(event));
        }
        Told(watched.told.clone())
    }
}

impl Kernel {
    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    fn note(&mut self, event: InotifyEvent) {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            self.changes.values_mut().for_each(Changes::lose);
            self.told = self.changes.keys().copied().collect();
        }
        // What is not watched any more is nobody's business.
        let Some(changes) = self.changes.get_mut(&event.wd) else { return };
        self.told.insert(event.wd);
        match event.name {
            Some(name) if event.mask.contains(AddWatchFlags::IN_CREATE) => changes.note(Change::Made(name)),
            Some(name) if event.mask.contains(AddWatchFlags::IN_DELETE) => changes.note(Change::Removed(name)),
            // The watch has ended: the directory or its file system is gone.
            _ => changes.lose(),
        }
    }
}

impl Changes {
    fn note(&mut self, change: Change) {
        if self.known.len() < MAX_CHANGES {
            self.known.push(change);
        } else {
            self.lose();
        }
    }

    fn lose(&mut self) {
        *self = Changes { known: Vec::new(), lost: true };
    }
}

impl Watch {
    /// Whether something has happened here.
    pub fn has_changes(&self, told: &Told) -> bool {
        told.0.contains(&self.descriptor)
    }

    /// What has happened since this was called last, as far as [`Watches::learn`] has learnt.
    pub fn take(&self) -> Changes {
        let mut watched = self.kernel.watched();
        watched.told.remove(&self.descriptor);
        watched.changes.get_mut(&self.descriptor).map(std::mem::take).unwrap_or_default()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watched = self.kernel.watched();
        watched.changes.remove(&self.descriptor);
        watched.told.remove(&self.descriptor);
        let _ = self.kernel.inotify.rm_watch(self.descriptor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn changes(watches: &Watches, watch: &Watch) -> Changes {
        watches.learn();
        watch.take()
    }

    #[test]
    fn a_watch_tells_what_happened_in_its_directory_and_in_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
        for path in [&one, &two] {
            fs::create_dir(path).unwrap();
        }
        let watches = Watches::new();
        let [first, other] = [&one, &two].map(|path| watches.add(path).unwrap());
        assert!(watches.add(&one).is_none(), "it is watched");
        assert_eq!(changes(&watches, &first), Changes::default());
        for step in ["step_0", "step_1"] {
            fs::create_dir_all(one.join(step).join("user")).unwrap();
        }
        fs::remove_dir_all(one.join("step_0")).unwrap();
        assert_eq!(first.take(), Changes::default(), "nobody has asked the kernel yet");
        let made = |name: &str| Change::Made(name.into());
        let known = vec![made("step_0"), made("step_1"), Change::Removed("step_0".into())];
        assert_eq!(changes(&watches, &first), Changes { known, lost: false });
        assert_eq!(changes(&watches, &first), Changes::default());
        assert_eq!(other.take(), Changes::default());
        drop(first);
        let anew = watches.add(&one).unwrap();
        fs::create_dir(one.join("step_2")).unwrap();
        assert_eq!(changes(&watches, &anew), Changes { known: vec![made("step_2")], lost: false });
        fs::remove_dir_all(&one).unwrap();
        assert!(changes(&watches, &anew).lost, "the watch ended with its directory");
    }

    #[test]
    fn more_changes_than_are_kept_are_known_to_be_lost() {
        let dir = tempfile::tempdir().unwrap();
        let watches = Watches::new();
        let watch = watches.add(dir.path()).unwrap();
        for number in 0..MAX_CHANGES {
            fs::create_dir(dir.path().join(number.to_string())).unwrap();
        }
        assert_eq!(changes(&watches, &watch).known.len(), MAX_CHANGES);
        for number in 0..=MAX_CHANGES {
            fs::create_dir(dir.path().join(format!("x{number}"))).unwrap();
        }
        assert!(changes(&watches, &watch).lost);
        assert_eq!(changes(&watches, &watch), Changes::default());
    }

    #[test]
    fn watches_are_bounded_and_end_with_their_holder() {
        let dir = tempfile::tempdir().unwrap();
        let watches = Watches::new();
        let path = |number: usize| dir.path().join(number.to_string());
        (0..=MAX_WATCHES).for_each(|number| fs::create_dir(path(number)).unwrap());
        let held: Vec<_> = (0..MAX_WATCHES).map(|number| watches.add(&path(number)).unwrap()).collect();
        assert!(watches.add(&path(MAX_WATCHES)).is_none());
        drop(held);
        assert!(watches.add(&path(MAX_WATCHES)).is_some());
        assert!(watches.add(&dir.path().join("missing")).is_none());
        assert!(Watches::default().add(dir.path()).is_none());
    }
}
