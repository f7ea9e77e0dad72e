//! What is done to the cluster: to whom, and how it is undone.

use std::fmt;
use std::fs;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde::Serialize;

use crate::cluster::Cluster;
use crate::daemon::Daemon;
use crate::host::Host;

/// Whom a fault befalls.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// A node's credd as a whole: its keeper is killed, and the server goes with it.
    Credd(String),
    /// The server process of a node's credd alone; the keeper starts another.
    CreddServer(String),
    /// The central service.
    Credvend,
    /// Slurm's controller.
    Slurmctld,
    /// A node's slurmd.
    Slurmd(String),
    /// A host's munged.
    Munged(String),
    /// A node's wire.
    Network(String),
    /// The pretend AWS.
    Aws,
}

/// What befalls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// SIGKILL; started again later.
    Kill,
    /// SIGSTOP; SIGCONT later.
    Freeze,
    /// SIGTERM; started again later.
    Restart,
    /// Unplugged; plugged in later.
    Unplug,
}

/// One kind of fault at one place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Fault {
    /// To whom.
    pub target: Target,
    /// What.
    pub how: How,
}

impl Target {
    /// The kind, without the place.
    pub fn kind(&self) -> &'static str {
        match self {
            Target::Credd(_) => "credd",
            Target::CreddServer(_) => "credd's server",
            Target::Credvend => "credvend",
            Target::Slurmctld => "slurmctld",
            Target::Slurmd(_) => "slurmd",
            Target::Munged(_) => "munged",
            Target::Network(_) => "network",
            Target::Aws => "AWS",
        }
    }

    /// The host it is on.
    pub fn host(&self) -> &str {
        match self {
            Target::Credd(host)
            | Target::CreddServer(host)
            | Target::Slurmd(host)
            | Target::Munged(host)
            | Target::Network(host) => host,
            Target::Credvend | Target::Slurmctld => "head",
            Target::Aws => "aws",
        }
    }

    /// Whether Slurm itself may fail jobs for it: a part of Slurm, or what Slurm cannot do without.
    pub fn is_slurms(&self) -> bool {
        matches!(self, Target::Slurmctld | Target::Slurmd(_) | Target::Munged(_) | Target::Network(_))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.how {
            How::Kill => "kill",
            How::Freeze => "freeze",
            How::Restart => "restart",
            How::Unplug => "unplug",
        };
        write!(f, "{verb} {}", self.target.kind())?;
        match &self.target {
            Target::Credvend | Target::Slurmctld | Target::Aws => Ok(()),
            other => write!(f, " on {}", other.host()),
        }
    }
}

/// A fault that is in force, and what undoes it.
#[derive(Debug)]
pub struct Dealt {
    fault: Fault,
    /// The server process that was stopped, in its host's numbers.
    pid: Option<i32>,
}

impl Dealt {
    /// Whether another fault would befall the same daemon or node.
    pub fn is_at(&self, other: &Fault) -> bool {
        let central = |fault: &Fault| fault.target.host() == "head";
        self.fault.target == other.target || (!central(other) && self.fault.target.host() == other.target.host())
    }
}

/// Does it. When this returns, the fault is in force.
pub fn deal(cluster: &Cluster, fault: &Fault) -> Result<Dealt> {
    let dealt = |pid| Ok(Dealt { fault: fault.clone(), pid });
    match (&fault.target, fault.how) {
        (Target::Network(node), _) => cluster.unplug(node)?,
        (Target::CreddServer(node), how) => {
            let host = cluster.node(node);
            let pid = server_of(host)?;
            let signal = if how == How::Freeze { Signal::SIGSTOP } else { Signal::SIGKILL };
            signal_in(host, pid, signal)?;
            return dealt((how == How::Freeze).then_some(pid));
        }
        (target, how) => {
            let daemon = daemon(cluster, target)?;
            match how {
                How::Kill => daemon.kill9()?,
                How::Restart => daemon.stop()?,
                How::Freeze => daemon.freeze()?,
                How::Unplug => bail!("only a wire can be unplugged"),
            }
        }
    }
    dealt(None)
}

/// Undoes it. A daemon is started when this returns, and perhaps not ready.
pub fn heal(cluster: &Cluster, dealt: &Dealt) -> Result<()> {
    let fault = &dealt.fault;
    match (&fault.target, fault.how) {
        (Target::Network(node), _) => cluster.plug_in(node),
        (Target::CreddServer(node), How::Freeze) => match dealt.pid {
            // The keeper may have replaced it meanwhile.
            Some(pid) => signal_in(cluster.node(node), pid, Signal::SIGCONT).or(Ok(())),
            None => Ok(()),
        },
        // The keeper has started another by itself.
        (Target::CreddServer(_), _) => Ok(()),
        (target, How::Freeze) => daemon(cluster, target)?.thaw(),
        (target, _) => daemon(cluster, target)?.start(),
    }
}

fn daemon(cluster: &Cluster, target: &Target) -> Result<Daemon> {
    Ok(match target {
        Target::Credd(node) => cluster.node(node).credd(),
        Target::Credvend => cluster.credvend(),
        Target::Slurmctld => cluster.slurmctld(),
        Target::Slurmd(node) => cluster.node(node).slurmd(),
        Target::Munged(host) => cluster.on(host).munged(),
        Target::Aws => cluster.aws().daemon(),
        Target::CreddServer(_) | Target::Network(_) => bail!("{} is no daemon of its own", target.kind()),
    })
}

/// The server process of a node's credd: the keeper's child.
pub fn server_of(host: &Host) -> Result<i32> {
    let keeper = host.credd().pid().context("credd does not run")?;
    child_of(host, keeper).with_context(|| format!("credd on {} has no server process", host.name()))
}

/// The only child of a process of a host, in the host's numbers.
pub fn child_of(host: &Host, parent: i32) -> Option<i32> {
    for entry in fs::read_dir(host.path("/proc")).ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // "pid (comm) state ppid …", and the comm may hold anything.
        let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
        if after.split(' ').nth(1).and_then(|ppid| ppid.parse::<i32>().ok()) == Some(parent) {
            return Some(pid);
        }
    }
    None
}

fn signal_in(host: &Host, pid: i32, signal: Signal) -> Result<()> {
    let done = host.run_as_root(&format!("kill -{} {pid}", signal as i32));
    if done.ok() { Ok(()) } else { bail!("{done:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_in_words() {
        let fault = |target, how| Fault { target, how }.to_string();
        assert_eq!(fault(Target::CreddServer("n1".into()), How::Kill), "kill credd's server on n1");
        assert_eq!(fault(Target::Credvend, How::Freeze), "freeze credvend");
        assert_eq!(fault(Target::Network("n2".into()), How::Unplug), "unplug network on n2");
    }
}
