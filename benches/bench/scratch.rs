//! A directory of this run and the processes in it. Nothing of them is left, also after ^C.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

static ROOT: OnceLock<PathBuf> = OnceLock::new();

/// Makes the run's directory, and has it removed when the program is interrupted. Called once, before other threads
/// exist; every child is started from the same thread.
pub fn prepare() -> Result<()> {
    let base = std::env::var_os("CREDD_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let root = base.join(format!("credd-bench-{}", std::process::id()));
    fs::create_dir_all(&root).with_context(|| root.display().to_string())?;
    // The load generator runs as a job's user.
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;
    ROOT.set(root).map_err(|_| anyhow::anyhow!("prepared twice"))?;
    // Mounts of this run are seen by nobody else, and end with it.
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace of its own")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    std::thread::spawn(move || {
        let _ = signals.wait();
        // Children follow by their parent-death signal, clusters by the end of their keeper's input.
        remove();
        std::process::exit(130);
    });
    Ok(())
}

/// Removes the run's directory.
pub fn remove() {
    let _ = ROOT.get().map(fs::remove_dir_all);
}

/// A directory of its own for one topic, readable by everybody.
pub fn dir(name: &str) -> Result<PathBuf> {
    let dir = ROOT.get().context("not prepared")?.join(name);
    fs::create_dir_all(&dir)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    Ok(dir)
}

/// A port on loopback that nobody has. Another program may take it before it is used; then the run fails and says so.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// On which of two processors something runs, so that server and load generator do not push each other around.
#[derive(Debug, Clone, Copy)]
pub enum Cpu {
    /// The first.
    Server,
    /// The second, if there is one.
    Load,
    /// Anywhere.
    Any,
}

/// A command that ends with this program, pinned and as a user.
pub fn command(program: &Path, cpu: Cpu, uid: Option<u32>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]);
    if let Some(uid) = uid {
        command.args([format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".to_owned()]);
    }
    let several = std::thread::available_parallelism().is_ok_and(|count| count.get() > 1);
    match cpu {
        Cpu::Server if several => drop(command.args(["taskset", "-c", "0"])),
        Cpu::Load if several => drop(command.args(["taskset", "-c", "1"])),
        _ => {}
    }
    command.arg(program).stdin(Stdio::null());
    command
}

/// A process that is ended when this is dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts it; what it says goes to `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = fs::File::create(log)?;
        let child = command.stdout(file.try_clone()?).stderr(file).spawn();
        Ok(Process(child.with_context(|| format!("{:?}", command.get_program()))?))
    }

    /// Its process id; `setpriv` and `taskset` become the program.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits until `ready` holds; if the process ends first, or it takes too long, fails with the end of its log.
    pub fn wait_ready(&mut self, log: &Path, mut ready: impl FnMut() -> bool) -> Result<()> {
        let mut ended = None;
        let waited = testbed::wait_for(&log.display().to_string(), Duration::from_secs(30), || {
            ended = self.0.try_wait().ok().flatten();
            (ready() || ended.is_some()).then_some(())
        });
        if waited.is_err() || ended.is_some() {
            let text = fs::read_to_string(log).unwrap_or_default();
            let tail = &text[text.floor_char_boundary(text.len().saturating_sub(2000))..];
            bail!("{}: {}\n{tail}", log.display(), ended.map_or("not ready".to_owned(), |status| status.to_string()));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.0.id().cast_signed());
        let _ = kill(pid, Signal::SIGTERM);
        let ended = || matches!(self.0.try_wait(), Ok(Some(_)) | Err(_)).then_some(());
        if testbed::wait_for("a process to end", Duration::from_secs(6), ended).is_err() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// The processes that have this one as their parent.
pub fn children_of(pid: u32) -> Vec<u32> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}
