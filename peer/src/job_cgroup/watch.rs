//! Which jobs' directories got or lost a step, as the kernel reports it (inotify): a job in which nothing happened costs no
//! system call.
//!
//! The kernel reports the first change of a watched directory and forgets the watch (`IN_ONESHOT`), so what it holds for
//! this process is bounded by the number of watches, however many steps begin before anybody asks. A change is reported
//! before mkdir(2) or rmdir(2) returns, so no process is in a new step's cgroup before it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

/// Watches at a time, of all users.
const MAX_WATCHES: usize = 512;

/// What the kernel watches for this process.
#[derive(Debug, Clone, Default)]
pub(super) struct Watches(Option<Arc<Kernel>>);

/// A directory that is watched until it changes or this is dropped.
#[derive(Debug, Clone)]
pub(super) struct Watch(Arc<State>);

#[derive(Debug)]
struct Kernel {
    inotify: Inotify,
    states: Mutex<HashMap<WatchDescriptor, Weak<State>>>,
}

#[derive(Debug)]
struct State {
    descriptor: WatchDescriptor,
    changed: AtomicBool,
    kernel: Arc<Kernel>,
}

impl Watches {
    /// Where the kernel lets this process watch; otherwise nothing is watched.
    pub fn new() -> Self {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        Watches(inotify.map(|inotify| Arc::new(Kernel { inotify, states: Mutex::default() })))
    }

    /// Watches a directory from now on; `None` where that is not possible, or there are too many watches.
    pub fn add(&self, directory: &Path) -> Option<Watch> {
        let kernel = self.0.as_ref()?;
        let mut states = kernel.states();
        if states.len() >= MAX_WATCHES {
            return None;
        }
        let events = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE;
        let how = AddWatchFlags::IN_ONESHOT | AddWatchFlags::IN_ONLYDIR | AddWatchFlags::IN_DONT_FOLLOW;
        let descriptor = kernel.inotify.add_watch(directory, events | how).ok()?;
        // The kernel has one watch for a directory, however many ask for it.
        if let Some(state) = states.get(&descriptor).and_then(Weak::upgrade) {
            return Some(Watch(state));
        }
        let state = Arc::new(State { descriptor, changed: AtomicBool::new(false), kernel: kernel.clone() });
        states.insert(descriptor, Arc::downgrade(&state));
        Some(Watch(state))
    }

    /// Learns what has changed: [`Watch::has_changed`] says it afterwards.
    pub fn learn(&self) {
        let Some(kernel) = &self.0 else { return };
        while let Ok(events) = kernel.inotify.read_events() {
            let states = kernel.states();
            for event in events {
                // More than the kernel keeps cannot come of so few watches. If it does, nobody knows what has changed.
                let all = event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                let concerned = states.iter().filter(|(descriptor, _)| all || **descriptor == event.wd);
                for state in concerned.filter_map(|(_, state)| state.upgrade()) {
                    state.changed.store(true, Ordering::Relaxed);
                }
            }
        }
    }
}

impl Kernel {
    fn states(&self) -> MutexGuard<'_, HashMap<WatchDescriptor, Weak<State>>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// Whether the directory has other entries than when it was watched first, as far as [`Watches::learn`] has learnt.
    pub fn has_changed(&self) -> bool {
        self.0.changed.load(Ordering::Relaxed)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let mut states = self.kernel.states();
        // Another one may have taken the kernel's watch over.
        if states.get(&self.descriptor).is_some_and(|state| state.strong_count() == 0) {
            states.remove(&self.descriptor);
            let _ = self.kernel.inotify.rm_watch(self.descriptor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_watch_tells_of_the_first_change_and_of_no_other_directory() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
        for path in [&one, &two] {
            fs::create_dir(path).unwrap();
        }
        let watches = Watches::new();
        let [first, again, other] = [&one, &one, &two].map(|path| watches.add(path).unwrap());
        watches.learn();
        assert!(![&first, &again, &other].iter().any(|watch| watch.has_changed()));
        for step in ["step_0", "step_1"] {
            fs::create_dir(one.join(step)).unwrap();
        }
        assert!(!first.has_changed(), "nobody has asked the kernel yet");
        watches.learn();
        assert!(first.has_changed() && again.has_changed() && !other.has_changed());
        fs::remove_dir(one.join("step_0")).unwrap();
        let anew = watches.add(&one).unwrap();
        drop((first, again));
        watches.learn();
        assert!(!anew.has_changed());
        fs::remove_dir(one.join("step_1")).unwrap();
        watches.learn();
        assert!(anew.has_changed() && !other.has_changed());
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
