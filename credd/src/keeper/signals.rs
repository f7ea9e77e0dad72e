//! Signals as events: blocked everywhere, taken by one thread.

use std::io;
use std::sync::mpsc::SyncSender;

use nix::sys::signal::{SigSet, Signal};

use super::Event;

fn ours() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set
}

/// Blocks them in this thread and all it will make. (A child started by `Command` begins with none blocked.)
///
/// # Errors
/// The kernel refuses.
pub fn block() -> io::Result<()> {
    Ok(ours().thread_block()?)
}

/// Sends each to the main loop.
///
/// # Errors
/// No thread can be made.
pub fn listen(events: SyncSender<Event>) -> io::Result<()> {
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        while let Ok(signal) = ours().wait() {
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}
