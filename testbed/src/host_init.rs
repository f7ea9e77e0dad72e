//! Process 1 of a test host. It makes the host's private view of the file system, keeps the host's daemons and the
//! listening sockets that outlive them, and dies with its parent; the kernel then ends all that ran in the host.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::init_protocol::{Listener, Reply, Request, Service};

/// What a host needs to become one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostSpec {
    /// Its host name.
    pub name: String,
    /// Where its init listens.
    pub socket: PathBuf,
    /// Files and directories to show in place of others: (what, where).
    pub binds: Vec<(PathBuf, PathBuf)>,
}

/// Runs as process 1 of new namespaces until standard input ends.
pub fn run(spec: &HostSpec) -> Result<()> {
    // SIGKILL of the parent must not leave a host behind; end of input says the same more politely.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    make_private_view(spec)?;
    let _ = fs::remove_file(&spec.socket);
    let control = UnixListener::bind(&spec.socket).with_context(|| spec.socket.display().to_string())?;
    fs::set_permissions(&spec.socket, fs::Permissions::from_mode(0o600))?;
    println!("ready");
    std::io::stdout().flush()?;
    Init::default().serve(&control)
}

fn make_private_view(spec: &HostSpec) -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("private mounts")?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).context("/proc")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=755"))
        .context("/run")?;
    for (what, place) in &spec.binds {
        mount(Some(what), place, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("show {} in place of {}, which must exist", what.display(), place.display()))?;
    }
    nix::unistd::sethostname(&spec.name).context("host name")?;
    Ok(())
}

#[derive(Default)]
struct Init {
    listeners: HashMap<String, OwnedFd>,
    running: HashMap<String, Pid>,
    ended: HashMap<String, i32>,
}

impl Init {
    fn serve(mut self, control: &UnixListener) -> Result<()> {
        let parent = std::io::stdin();
        loop {
            let (wants_us, parent_gone) = {
                use std::os::fd::AsFd;
                let mut fds =
                    [PollFd::new(control.as_fd(), PollFlags::POLLIN), PollFd::new(parent.as_fd(), PollFlags::POLLIN)];
                // The short timeout is for the children of the dead, who are ours to bury.
                poll(&mut fds, PollTimeout::from(200u16))?;
                let said = |n: usize| fds[n].revents().is_some_and(|r| !r.is_empty());
                (said(0), said(1))
            };
            if parent_gone {
                return Ok(());
            }
            self.bury();
            if wants_us {
                let (stream, _) = control.accept()?;
                // A client that hangs up half-way is its own loss.
                let _ = self.answer(stream);
            }
        }
    }

    fn answer(&mut self, stream: UnixStream) -> Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        let reply = serde_json::from_str(&line)
            .map_err(anyhow::Error::from)
            .and_then(|request| self.act(request))
            .unwrap_or_else(|e| Reply { error: Some(format!("{e:#}")), ..Reply::default() });
        (&stream).write_all((serde_json::to_string(&reply)? + "\n").as_bytes())?;
        Ok(())
    }

    fn act(&mut self, request: Request) -> Result<Reply> {
        match request {
            Request::Listen(name, listener) => {
                let fd = bind(&listener)?;
                self.listeners.insert(name, fd);
                Ok(Reply::default())
            }
            Request::Close(name) => {
                self.listeners.remove(&name);
                Ok(Reply::default())
            }
            Request::Start(service) => {
                if self.running.contains_key(&service.name) {
                    return Err(anyhow!("{} already runs", service.name));
                }
                let pid = self.start(&service)?;
                self.ended.remove(&service.name);
                self.running.insert(service.name.clone(), pid);
                Ok(Reply { pid: Some(pid.as_raw()), ..Reply::default() })
            }
            Request::Signal(name, number) => {
                let pid = *self.running.get(&name).ok_or_else(|| anyhow!("{name} does not run"))?;
                kill(pid, Signal::try_from(number)?)?;
                Ok(Reply { pid: Some(pid.as_raw()), ..Reply::default() })
            }
            Request::Status(name) => Ok(Reply {
                error: None,
                pid: self.running.get(&name).map(|p| p.as_raw()),
                ended: self.ended.get(&name).copied(),
            }),
        }
    }

    fn start(&self, service: &Service) -> Result<Pid> {
        let log = OpenOptions::new().create(true).append(true).open(&service.log)?;
        let mut command = if service.listeners.is_empty() {
            let mut command = Command::new(&service.argv[0]);
            command.args(&service.argv[1..]);
            command
        } else {
            self.with_listeners(service)?
        };
        let child = command
            .env_clear()
            .envs(service.env.iter().cloned())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn();
        for name in &service.listeners {
            self.inherited(name, false)?;
        }
        let child = child.with_context(|| format!("start {:?}", service.argv[0]))?;
        Ok(Pid::from_raw(i32::try_from(child.id())?))
    }

    /// Listeners become descriptors 3, 4, … by way of a shell, which also knows the process id that `LISTEN_PID` must
    /// name: it becomes the program.
    fn with_listeners(&self, service: &Service) -> Result<Command> {
        let mut script = String::from("exec");
        let mut close = String::new();
        for (nth, name) in service.listeners.iter().enumerate() {
            let fd = self.inherited(name, true)?;
            script.push_str(&format!(" {}<&{fd}", nth + 3));
            close.push_str(&format!(" {fd}<&-"));
        }
        script.push_str(&format!(
            "{close}\nexport LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES={}\nexec \"$@\"",
            service.listeners.len(),
            service.listeners.join(":"),
        ));
        let mut command = Command::new("/bin/bash");
        command.args(["-c", &script, "bash"]).args(&service.argv);
        Ok(command)
    }

    /// Lets the next child inherit a listener, or no longer. Nothing else is started in between: this is the only
    /// thread.
    fn inherited(&self, name: &str, yes: bool) -> Result<i32> {
        let fd = self.listeners.get(name).ok_or_else(|| anyhow!("no listener {name:?} is held"))?;
        fcntl(fd, FcntlArg::F_SETFD(if yes { FdFlag::empty() } else { FdFlag::FD_CLOEXEC }))?;
        Ok(fd.as_raw_fd())
    }

    fn bury(&mut self) {
        loop {
            let (pid, how) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, status)) => (pid, status),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, -(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            if let Some(name) = self.running.iter().find(|(_, p)| **p == pid).map(|(name, _)| name.clone()) {
                self.running.remove(&name);
                self.ended.insert(name, how);
            }
        }
    }
}

/// Binds a listener, on a descriptor above those that services get theirs at.
fn bind(listener: &Listener) -> Result<OwnedFd> {
    let fd: OwnedFd = match listener {
        Listener::Tcp(address) => TcpListener::bind(address).with_context(|| format!("listen on {address}"))?.into(),
        Listener::Unix { path, mode, owner } => {
            let _ = fs::remove_file(path);
            make_parent(path)?;
            let socket = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
            fs::set_permissions(path, fs::Permissions::from_mode(*mode))?;
            std::os::unix::fs::chown(path, Some(owner.0), Some(owner.1))?;
            socket.into()
        }
    };
    above_those_passed_on(fd)
}

/// Duplicates a descriptor until its number is clear of 3, 4, 5…, where services get theirs.
fn above_those_passed_on(fd: OwnedFd) -> Result<OwnedFd> {
    let mut kept = vec![fd];
    loop {
        let next = kept[kept.len() - 1].try_clone()?;
        if next.as_raw_fd() >= 10 {
            return Ok(next);
        }
        kept.push(next);
    }
}

fn make_parent(path: &Path) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    Ok(())
}
