//! The keeper of a cluster: a process of its own that starts the hosts, and when its standard input ends, however its
//! parent ended, ends them all and removes the run directory.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;

use crate::host_init::HostSpec;

/// Starts every host of `hosts` (a JSON list of [`HostSpec`]), prints `NAME PID` for each once it is ready, and waits.
pub fn keep(run_dir: &Path, hosts: &str) -> Result<()> {
    let result = hold(hosts);
    if std::env::var_os("CREDD_TESTBED_KEEP").is_none() {
        remove(run_dir);
    }
    result
}

fn hold(hosts: &str) -> Result<()> {
    let specs: Vec<HostSpec> = serde_json::from_str(hosts)?;
    let mut children: Vec<Child> = Vec::new();
    for spec in &specs {
        children.push(
            Command::new(std::env::current_exe()?)
                .args(["host", &serde_json::to_string(spec)?])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .process_group(0)
                .spawn()?,
        );
    }
    let mut failed = None;
    for (spec, child) in specs.iter().zip(&mut children) {
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        match line.trim() {
            "" => failed = Some(spec.name.clone()),
            pid => println!("{} {pid}", spec.name),
        }
    }
    if failed.is_none() {
        std::io::stdout().flush()?;
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
    }
    // Each host ends when its input does, once nothing runs in it any more.
    let inputs: Vec<Option<ChildStdin>> = children.iter_mut().map(|c| c.stdin.take()).collect();
    drop(inputs);
    for child in &mut children {
        let _ = child.wait();
    }
    match failed {
        Some(name) => bail!("host {name} did not start; its reason stands above"),
        None => Ok(()),
    }
}

/// A host: new namespaces, and an init in them whose process id (as seen from here) is printed when it is ready.
pub fn host(spec: &str) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // Asked for now: from within other mounts the kernel names it differently.
    let program = std::env::current_exe()?;
    unshare(
        CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWPID,
    )
    .context("new namespaces (this needs root)")?;
    let mut init = Command::new(program)
        .args(["init", spec])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("the host's init")?;
    let mut line = String::new();
    BufReader::new(init.stdout.take().context("piped")?).read_line(&mut line)?;
    if line.trim() == "ready" {
        println!("{}", init.id());
        std::io::stdout().flush()?;
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
    }
    // The kernel ends what runs in the host before this wait returns.
    let _ = init.kill();
    let _ = init.wait();
    Ok(())
}

fn remove(run_dir: &Path) {
    // What was killed a moment ago may still be closing its files.
    for _ in 0..5 {
        match fs::remove_dir_all(run_dir) {
            Ok(()) => return,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
            Err(_) => {}
        }
    }
    eprintln!("testbed: {} could not be removed", run_dir.display());
}
