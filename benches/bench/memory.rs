//! credd's memory with a thousand live sessions and their documents cached.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use anyhow::{Context, Result, ensure};

use crate::figure::Figure;
use crate::node::{JOB_UID, Node};
use crate::scratch::Cpu;
use crate::wrk::{self, Load};

const SESSIONS: u32 = 1000;
/// Megabytes, of both processes, shared pages divided among those who map them.
const TARGET: f64 = 10.5;

/// Asks in turns for what a file lists: a path and a token a line.
const SCRIPT: &str = r#"
local requests, at = {}, 0
function init(arguments)
  for line in io.lines(arguments[1]) do
    local path, token = line:match("^(%S+) (%S+)$")
    requests[#requests + 1] = wrk.format("GET", path, { ["Authorization"] = token })
  end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
"#;

/// Fills the cache through the endpoint, and looks at the processes.
pub fn measure() -> Result<Vec<Figure>> {
    wrk::program()?;
    let node = Node::up("memory", SESSIONS, Cpu::Any)?;
    let (server, keeper) = (node.server()?, node.keeper());
    let empty = memory(server)?;
    let (script, list) = (node.dir.join("all.lua"), node.dir.join("all"));
    fs::write(&script, SCRIPT)?;
    fs::write(&list, node.jobs.iter().map(|job| format!("{} {}\n", job.path, job.token)).collect::<String>())?;
    fs::set_permissions(&list, fs::Permissions::from_mode(0o400))?;
    chown(&list, Some(JOB_UID), Some(JOB_UID))?;
    let load = Load {
        url: &format!("http://127.0.0.1:{}/", node.port),
        connections: 16,
        seconds: 3,
        headers: &[],
        uid: Some(JOB_UID),
        script: Some((&script, vec![list.display().to_string()])),
        cpu: Cpu::Any,
    };
    let done = wrk::run(&load)?.expect_clean()?;
    ensure!(done.answers >= 2 * u64::from(SESSIONS), "not every session was asked for: {done:?}");
    let (server, keeper) = (memory(server)?, memory(keeper)?);
    let figure = |name: &str, of: Memory| {
        Figure::new(name, of.rss, "MB").detail(format!("of it {:.1} MB its own; PSS {:.1} MB", of.anonymous, of.pss))
    };
    Ok(vec![
        Figure::new("PSS of both processes", server.pss + keeper.pss, "MB").at_most(TARGET).detail(format!(
            "VmRSS of both, in which pages that both map count twice, {:.1} MB",
            server.rss + keeper.rss
        )),
        figure("VmRSS of the server process", server),
        figure("VmRSS of the keeper process (root)", keeper),
        figure("the server before the first request", empty),
        Figure::new("GETs over all sessions, 16 kept connections", done.per_second, "/s"),
    ])
}

#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// All of it.
    pub rss: f64,
    /// What no file backs.
    pub anonymous: f64,
    pss: f64,
}

/// In megabytes of 1,000,000 bytes.
pub fn memory(pid: u32) -> Result<Memory> {
    let field = |file: &str, name: &str| -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| name.to_owned())?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024.0 / 1e6)
    };
    Ok(Memory {
        rss: field("status", "VmRSS:")?,
        anonymous: field("status", "RssAnon:")?,
        pss: field("smaps_rollup", "Pss:")?,
    })
}
