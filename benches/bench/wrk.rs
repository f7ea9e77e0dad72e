//! The load generator: wrk, a program of its own, as the job's user.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::scratch::{Cpu, command};

/// What wrk is to do.
#[derive(Debug, Clone)]
pub struct Load<'a> {
    /// Where.
    pub url: &'a str,
    /// Connections at the same time; one thread drives them.
    pub connections: usize,
    /// For how long.
    pub seconds: u32,
    /// Request headers.
    pub headers: &'a [String],
    /// As whom; absent: as this program's user.
    pub uid: Option<u32>,
    /// A script that makes the requests.
    pub script: Option<(&'a Path, Vec<String>)>,
    /// Where it runs.
    pub cpu: Cpu,
}

/// What wrk says.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    /// Answers a second.
    pub per_second: f64,
    /// Answers in all.
    pub answers: u64,
    /// Of these, other than 2xx and 3xx.
    pub refused: u64,
    /// Connections that failed, reads, writes and time-outs.
    pub broken: u64,
}

/// Where wrk is.
pub fn program() -> Result<PathBuf> {
    ["/usr/bin/wrk", "/usr/local/bin/wrk"]
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .context("no load generator: apt-get install wrk")
}

/// Runs it.
pub fn run(load: &Load<'_>) -> Result<Done> {
    let mut wrk = command(&program()?, load.cpu, load.uid);
    wrk.args(["-t1", &format!("-c{}", load.connections), &format!("-d{}s", load.seconds), "--timeout", "10s"]);
    for header in load.headers {
        wrk.args(["-H", header]);
    }
    if let Some((script, _)) = &load.script {
        wrk.arg("-s").arg(script);
    }
    wrk.arg(load.url);
    if let Some((_, arguments)) = &load.script {
        wrk.arg("--").args(arguments);
    }
    let output = wrk.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("wrk: {} {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let after = |word: &str| text.lines().find_map(|line| line.trim().strip_prefix(word)).map(str::trim);
    let numbers = |text: &str| -> u64 {
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u64>().ok()).sum()
    };
    let answers = text.lines().find_map(|line| line.trim().split_once(" requests in ")).map(|(count, _)| count);
    Ok(Done {
        per_second: after("Requests/sec:")
            .and_then(|n| n.parse().ok())
            .with_context(|| format!("wrk said:\n{text}"))?,
        answers: answers.and_then(|n| n.parse().ok()).unwrap_or(0),
        refused: after("Non-2xx or 3xx responses:").map_or(0, numbers),
        broken: after("Socket errors:").map_or(0, numbers),
    })
}

impl Done {
    /// Fails unless everything was answered as asked.
    pub fn expect_clean(self) -> Result<Self> {
        if self.refused > 0 || self.broken > 0 || self.answers == 0 {
            bail!("the load was not answered as it should be: {self:?}");
        }
        Ok(self)
    }
}
