//! What both processes ask of the kernel for themselves.

use std::io;

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};

/// No core dump, no debugger of the same uid, no new privileges, files for nobody else by default.
///
/// # Errors
/// The kernel refuses; then no secret must be read.
pub fn harden() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)?;
    prctl::set_no_new_privs()?;
    umask(Mode::from_bits_truncate(0o077));
    Ok(())
}

/// The server process is called after what it does, not after the file that it was started from (`/proc/self/exe`): in
/// ps(1) and in the journal.
///
/// # Errors
/// The kernel refuses.
pub fn set_name() -> io::Result<()> {
    Ok(prctl::set_name(c"credd-server")?)
}

/// As many descriptors as the hard limit allows: each connection of a job needs one.
pub fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// The server process does not outlive its keeper. (A keeper that is gone already shows as the end of the control
/// socket.)
///
/// # Errors
/// The kernel refuses.
pub fn die_with_keeper() -> io::Result<()> {
    Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)
}
