//! Runs one of Slurm's own commands: bounded in time, in output and in number, with an environment of three variables.
//!
//! `SQUEUE_*`, `SINFO_*` and `SLURM_*` variables change what the commands print (squeue(1), "ENVIRONMENT VARIABLES"), and
//! `SLURM_TIME_FORMAT` or a locale how; so the environment is cleared.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::Semaphore;

/// Where the commands are looked for when the configuration names no directory: packages, local builds, the usual
/// prefix of cluster images.
const BIN_DIRS: [&str; 4] = ["/usr/bin", "/usr/local/bin", "/opt/slurm/bin", "/usr/local/slurm/bin"];

/// The most that a command may write to its standard error, in bytes.
const STDERR_BYTES: usize = 16 * 1024;

/// What a command said, complete.
#[derive(Debug)]
pub struct Said {
    /// Whether it exited with 0.
    pub success: bool,
    /// Its standard output, whole.
    pub stdout: Vec<u8>,
    /// Its standard error, whole.
    pub stderr: Vec<u8>,
}

impl Said {
    /// Its standard error for a message: one line, escaped, at most 300 characters.
    pub fn complaint(&self) -> String {
        let text = String::from_utf8_lossy(&self.stderr);
        let text = text.trim();
        if text.is_empty() {
            return "it failed and did not say why".into();
        }
        let mut shown: String = text.escape_debug().to_string().replace("\\n", "; ").replace("\\\"", "\"");
        if let Some((at, _)) = shown.char_indices().nth(300) {
            shown.truncate(at);
            shown.push('…');
        }
        shown
    }
}

/// Why a command gave no complete answer.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is not installed where we look.
    #[error("{name} is not in {looked}; install Slurm's client commands here, or set slurm-bin")]
    Missing {
        /// The command.
        name: &'static str,
        /// The directories.
        looked: String,
    },
    /// fork(2) or exec(2) failed.
    #[error("{name} cannot be run: {source}")]
    Spawn {
        /// The command.
        name: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It took too long and was killed.
    #[error("{name} did not answer within {limit:?}")]
    Deadline {
        /// The command.
        name: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// It wrote more than we take, and was killed.
    #[error("{name} wrote more than {limit} bytes")]
    TooMuch {
        /// The command.
        name: &'static str,
        /// How much it had.
        limit: usize,
    },
}

/// Runs commands, at most so many at a time.
#[derive(Debug, Clone)]
pub struct Commands {
    dirs: Vec<PathBuf>,
    slurm_conf: Option<PathBuf>,
    running: Arc<Semaphore>,
}

impl Commands {
    /// `bin_dir` replaces the usual directories; without `slurm_conf` Slurm finds its own configuration.
    pub fn new(bin_dir: Option<PathBuf>, slurm_conf: Option<PathBuf>, at_most: usize) -> Self {
        let dirs = match bin_dir {
            Some(dir) => vec![dir],
            None => BIN_DIRS.iter().map(PathBuf::from).collect(),
        };
        Commands { dirs, slurm_conf, running: Arc::new(Semaphore::new(at_most.max(1))) }
    }

    fn find(&self, name: &'static str) -> Result<PathBuf, CommandError> {
        let found = self.dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_absolute() && path.is_file());
        found.ok_or_else(|| CommandError::Missing {
            name,
            looked: self.dirs.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Runs one command to its end. It is killed when the deadline passes, when it writes more than `max_stdout` bytes,
    /// and when this future is dropped. The deadline covers the wait for a free place.
    ///
    /// # Errors
    /// Every way not to have its complete output.
    pub async fn run(
        &self,
        name: &'static str,
        args: &[&str],
        limit: Duration,
        max_stdout: usize,
    ) -> Result<Said, CommandError> {
        let path = self.find(name)?;
        tokio::time::timeout(limit, self.run_unlimited(name, &path, args, max_stdout))
            .await
            .unwrap_or(Err(CommandError::Deadline { name, limit }))
    }

    async fn run_unlimited(
        &self,
        name: &'static str,
        path: &Path,
        args: &[&str],
        max_stdout: usize,
    ) -> Result<Said, CommandError> {
        let spawn = |source| CommandError::Spawn { name, source };
        let _place = self.running.acquire().await.map_err(|error| spawn(std::io::Error::other(error)))?;
        let mut command = Command::new(path);
        command.args(args).env_clear().env("LC_ALL", "C").env("TZ", "UTC").current_dir("/");
        if let Some(conf) = &self.slurm_conf {
            command.env("SLURM_CONF", conf);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(spawn)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        // Both at once: a command that fills one pipe while we read the other would never end.
        let (stdout, stderr) =
            tokio::try_join!(read_bounded(name, stdout, max_stdout), read_bounded(name, stderr, STDERR_BYTES))?;
        let status = child.wait().await.map_err(spawn)?;
        Ok(Said { success: status.success(), stdout, stderr })
    }
}

async fn read_bounded(
    name: &'static str,
    pipe: Option<impl AsyncRead + Unpin>,
    limit: usize,
) -> Result<Vec<u8>, CommandError> {
    let mut read = Vec::new();
    if let Some(pipe) = pipe {
        let one_more = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        pipe.take(one_more).read_to_end(&mut read).await.map_err(|source| CommandError::Spawn { name, source })?;
    }
    if read.len() > limit {
        return Err(CommandError::TooMuch { name, limit });
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scripted(body: &str) -> (tempfile::TempDir, Commands) {
        let dir = tempfile::tempdir().unwrap();
        super::super::scripted::write(dir.path(), "squeue", body);
        let commands = Commands::new(Some(dir.path().into()), Some("/x/slurm.conf".into()), 2);
        (dir, commands)
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn the_environment_is_ours_alone() {
        let (_dir, commands) = scripted("/usr/bin/env; /bin/pwd; cat");
        let said = commands.run("squeue", &[], LONG, 4096).await.unwrap();
        let text = String::from_utf8(said.stdout).unwrap();
        // The shell adds PWD, SHLVL, OLDPWD and _ by itself.
        let mut lines: Vec<&str> =
            text.lines().filter(|l| !["PWD=", "SHLVL=", "_=", "OLDPWD="].iter().any(|p| l.starts_with(p))).collect();
        lines.sort_unstable();
        assert_eq!(lines, ["/", "LC_ALL=C", "SLURM_CONF=/x/slurm.conf", "TZ=UTC"]);
    }

    #[tokio::test]
    async fn too_much_output_is_an_error_and_not_a_short_answer() {
        let (_dir, commands) = scripted("while :; do echo xxxxxxxxxxxxxxxx; done");
        assert!(matches!(commands.run("squeue", &[], LONG, 1000).await, Err(CommandError::TooMuch { .. })));
        let (_dir, commands) = scripted("while :; do echo xxxxxxxxxxxxxxxx >&2; done");
        assert!(matches!(commands.run("squeue", &[], LONG, 1000).await, Err(CommandError::TooMuch { .. })));
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_killed() {
        let (dir, commands) = scripted("echo $$ > \"$(dirname $0)/pid\"; exec sleep 600");
        let error = commands.run("squeue", &[], Duration::from_millis(300), 1000).await.unwrap_err();
        assert!(matches!(error, CommandError::Deadline { .. }), "{error}");
        let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        let gone = || std::fs::read_to_string(&stat).map_or(true, |s| s.contains(") Z "));
        let deadline = std::time::Instant::now() + LONG;
        while !gone() {
            assert!(std::time::Instant::now() < deadline, "still there: {stat}");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_missing_command_says_where_it_was_looked_for() {
        let commands = Commands::new(Some("/nonexistent".into()), None, 1);
        let error = commands.run("squeue", &[], LONG, 10).await.unwrap_err().to_string();
        assert!(error.contains("/nonexistent") && error.contains("slurm-bin"), "{error}");
    }

    #[test]
    fn a_complaint_is_one_short_escaped_line() {
        let stderr = format!("squeue: error: a\u{1b}[2J\nb{}", "x".repeat(1000)).into_bytes();
        let said = Said { success: false, stdout: vec![], stderr };
        let shown = said.complaint();
        assert!(shown.starts_with("squeue: error: a\\u{1b}[2J; b"), "{shown}");
        assert!(shown.chars().count() <= 301 && !shown.contains('\n'));
    }
}
