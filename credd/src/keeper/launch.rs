//! Starting the server process: as its own user, with nothing but its sockets.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::unistd::{User, geteuid};

/// Makes server processes. A trait, so that tests can be the server.
pub trait Launch: Send {
    /// Starts one; returns the keeper's end of its control socket, and the process if there is one to reap.
    ///
    /// # Errors
    /// It cannot be started.
    fn launch(&self) -> io::Result<(UnixStream, Option<Child>)>;
}

/// This very program, run as somebody without powers.
#[derive(Debug, Clone, Copy)]
pub struct ServerProgram {
    uid: u32,
    gid: u32,
}

impl ServerProgram {
    /// To run as `user`, by name.
    ///
    /// # Errors
    /// A sentence: there is no such user, or it is root.
    pub fn new(user: &str) -> Result<Self, String> {
        let found = User::from_name(user).map_err(|error| format!("cannot look up the user {user:?}: {error}"))?;
        let Some(found) = found else {
            return Err(format!("there is no user {user:?}: make it (systemd-sysusers) or set `user` in credd.toml"));
        };
        if found.uid.is_root() || found.gid.as_raw() == 0 {
            return Err(format!("`user` is {user:?}, which is root: the server process must have no powers"));
        }
        if !geteuid().is_root() && geteuid() != found.uid {
            return Err("credd must be started as root".to_owned());
        }
        Ok(ServerProgram { uid: found.uid.as_raw(), gid: found.gid.as_raw() })
    }
}

impl Launch for ServerProgram {
    fn launch(&self) -> io::Result<(UnixStream, Option<Child>)> {
        let (ours, theirs) = UnixStream::pair()?;
        // The running program itself, also if its file has been replaced by an upgrade: both processes speak one version.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("credd").arg("server").env_clear().current_dir("/").process_group(0);
        // glibc's: one heap for the few threads, and what a burst of requests took goes back to the kernel.
        command.env("MALLOC_ARENA_MAX", "1").env("MALLOC_TRIM_THRESHOLD_", "65536");
        // glibc's: a lookup sends its two questions one by one. Together they would take sendmmsg, which can pass descriptors
        // on and which this process is therefore not allowed.
        command.env("RES_OPTIONS", "single-request");
        if let Some(journal) = std::env::var_os("JOURNAL_STREAM") {
            command.env("JOURNAL_STREAM", journal);
        }
        if geteuid().is_root() {
            // Command also drops the supplementary groups.
            command.uid(self.uid).gid(self.gid);
        }
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::inherit());
        Ok((ours, Some(command.spawn()?)))
    }
}
