//! One host of the cluster, seen from the test: commands in it, its daemons, its files.

use std::fmt;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::daemon::Daemon;
use crate::init_protocol::{Listener, Reply, Request, Service, ask};
use crate::layout::Layout;

/// How long a captured command may take.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// A host. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Host {
    pub(crate) name: String,
    pub(crate) address: String,
    /// Its init's process id, outside.
    pub(crate) pid: u32,
    pub(crate) layout: Arc<Layout>,
}

/// What a command printed, and how it ended.
#[derive(Clone)]
pub struct Output {
    /// Exit status; 124 if it took too long, 128 + signal as in a shell.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    what: String,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} → {}", self.what, self.status)?;
        write!(f, "--- stdout\n{}\n--- stderr\n{}", self.stdout.trim_end(), self.stderr.trim_end())
    }
}

impl Output {
    /// Whether the status is 0.
    pub fn ok(&self) -> bool {
        self.status == 0
    }

    /// The standard output, trimmed, of a command that must succeed.
    ///
    /// # Panics
    /// With everything it printed, if it failed.
    #[track_caller]
    pub fn expect_ok(&self) -> &str {
        assert!(self.ok(), "failed: {self:?}");
        self.stdout.trim()
    }

    /// Standard error, then standard output, of a command that must fail.
    ///
    /// # Panics
    /// With everything it printed, if it succeeded.
    #[track_caller]
    pub fn expect_failure(&self) -> String {
        assert!(!self.ok(), "should have failed: {self:?}");
        format!("{}\n{}", self.stderr, self.stdout)
    }
}

impl Host {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its IP address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its init's process id as the test sees it; `/proc/PID/root` is the host's file system.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A command in this host, as a user (`root`, `alice`, …) with that user's login environment; nothing is run yet.
    /// Standard streams are as in [`Command::new`].
    pub fn command(&self, user: &str, argv: &[&str]) -> Command {
        self.command_with(user, &[], argv)
    }

    /// The same with more environment.
    pub fn command_with(&self, user: &str, env: &[(&str, &str)], argv: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid.to_string(), "-m", "-r", "-u", "-n", "-i", "-p", "--", "setpriv"]);
        command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--init-groups"]);
        command.args(["env", "-i", "-C"]).arg(self.layout.home_of(user));
        for (name, value) in self.layout.login_environment(user) {
            command.arg(format!("{name}={value}"));
        }
        for (name, value) in env {
            command.arg(format!("{name}={value}"));
        }
        command.args(argv);
        command
    }

    /// Runs a command as a user and waits for it, [`COMMAND_LIMIT`] at most. Its standard input is empty.
    ///
    /// # Panics
    /// If the host is gone.
    #[track_caller]
    pub fn run_as(&self, user: &str, argv: &[&str]) -> Output {
        self.run_with(user, &[], argv)
    }

    /// The same with more environment.
    #[track_caller]
    pub fn run_with(&self, user: &str, env: &[(&str, &str)], argv: &[&str]) -> Output {
        let limit = COMMAND_LIMIT.as_secs().to_string();
        let mut limited = vec!["timeout", "-k", "2", &limit];
        limited.extend(argv);
        let done = self
            .command_with(user, env, &limited)
            .stdin(Stdio::null())
            .output()
            .expect("nsenter (util-linux) is there on every Linux");
        use std::os::unix::process::ExitStatusExt;
        Output {
            status: done.status.code().unwrap_or_else(|| 128 + done.status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
            what: format!("{user}@{}: {argv:?}", self.name),
        }
    }

    /// Runs a shell script as root.
    #[track_caller]
    pub fn run_as_root(&self, script: &str) -> Output {
        self.run_as("root", &["bash", "-c", script])
    }

    /// Starts a command as a user without waiting; output piped. Ends with the cluster at the latest.
    pub fn start_as(&self, user: &str, argv: &[&str]) -> Result<Child> {
        let mut command = self.command(user, argv);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().context("nsenter")
    }

    /// What a login here gives a user.
    pub fn login_environment(&self, user: &str) -> Vec<(String, String)> {
        self.layout.login_environment(user)
    }

    /// A path of this host as the test can open it (`/run/…` differs between hosts).
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.pid))
    }

    /// A daemon of this host: `munged`, `slurmd`, `credd`, …
    pub fn daemon(&self, name: &str) -> Daemon {
        Daemon { host: self.clone(), name: name.to_owned() }
    }

    /// Its `credd`.
    pub fn credd(&self) -> Daemon {
        self.daemon("credd")
    }

    /// Its `slurmd`.
    pub fn slurmd(&self) -> Daemon {
        self.daemon("slurmd")
    }

    /// Its `munged`.
    pub fn munged(&self) -> Daemon {
        self.daemon("munged")
    }

    /// The log of one of its daemons, so far.
    pub fn log(&self, daemon: &str) -> String {
        fs::read_to_string(self.log_path(daemon)).unwrap_or_default()
    }

    /// Where one of its daemons logs.
    pub fn log_path(&self, daemon: &str) -> PathBuf {
        self.layout.log(&self.name, daemon)
    }

    /// Has the init hold a listener under a name, for services that name it.
    pub fn listen(&self, name: &str, listener: Listener) -> Result<()> {
        self.ask(&Request::Listen(name.to_owned(), listener)).map(drop)
    }

    /// Lets a listener of the init go.
    pub fn unlisten(&self, name: &str) -> Result<()> {
        self.ask(&Request::Close(name.to_owned())).map(drop)
    }

    /// Starts a daemon that is none of the cluster's own, as root, with listeners that the init holds.
    pub fn start_service(&self, name: &str, argv: &[&str], listeners: &[&str]) -> Result<()> {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let mut service = crate::slurm_daemons::service(self, name, owned(argv));
        service.listeners = owned(listeners);
        self.start(&service)
    }

    /// Writes a file into the run directory, readable by everybody, and gives its path, which is the same on all hosts.
    pub fn layout_file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.layout.run.join("etc").join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    pub(crate) fn start(&self, service: &Service) -> Result<()> {
        fs::write(self.layout.service_file(&self.name, &service.name), serde_json::to_vec(service)?)?;
        self.ask(&Request::Start(service.clone())).map(drop)
    }

    pub(crate) fn ask(&self, request: &Request) -> Result<Reply> {
        ask(&self.layout.init_socket(&self.name), request)
    }

    /// Waits until something accepts on a Unix socket of this host.
    pub fn wait_unix(&self, socket: &str, within: Duration) -> Result<()> {
        let path = self.path(socket);
        self.wait(socket, within, || UnixStream::connect(&path).is_ok())
    }

    /// Waits until something listens on a TCP port of this host.
    pub fn wait_tcp(&self, port: u16, within: Duration) -> Result<()> {
        self.wait(&format!("TCP port {port}"), within, || self.listens(port))
    }

    fn wait(&self, what: &str, within: Duration, mut there: impl FnMut() -> bool) -> Result<()> {
        let what = format!("{what} on {}", self.name);
        crate::deadline::wait_for(&what, within, || there().then_some(()))
    }

    /// Whether something listens on a TCP port of this host.
    pub fn listens(&self, port: u16) -> bool {
        ["tcp", "tcp6"].iter().any(|table| {
            let table = fs::read_to_string(format!("/proc/{}/net/{table}", self.pid)).unwrap_or_default();
            table.lines().skip(1).any(|line| {
                let mut fields = line.split_whitespace();
                let local = fields.nth(1).unwrap_or_default();
                let state = fields.nth(1).unwrap_or_default();
                // 0A is LISTEN.
                state == "0A" && local.ends_with(&format!(":{port:04X}"))
            })
        })
    }

    /// Runs `ip -batch` in this host's network, from outside its file system.
    pub(crate) fn ip_batch(&self, lines: &str) -> Result<()> {
        let file: &Path = &self.layout.run.join(format!("ip-{}", self.name));
        fs::write(file, lines)?;
        let done =
            Command::new("nsenter").args(["-t", &self.pid.to_string(), "-n", "ip", "-batch"]).arg(file).output()?;
        if !done.status.success() {
            bail!("ip -batch on {}: {}", self.name, String::from_utf8_lossy(&done.stderr).trim());
        }
        Ok(())
    }
}
