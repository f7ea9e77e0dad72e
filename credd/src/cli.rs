//! The command line.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use credd_protocol::local::{Request, Response};
use credd_protocol::record::{RUN_DIR, RunDir};

use crate::config::{self, Config, EXIT_BAD_CONFIG, LoadError};
use crate::keeper::{self, StartError, process};
use crate::{handover, logging, query, server};

/// The node daemon that serves Slurm jobs their AWS credentials.
#[derive(Debug, Parser)]
#[command(name = "credd", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon (as root; it serves jobs through a process without powers)
    Run(ConfigPath),
    /// Check the configuration and list everything that is wrong with it
    CheckConfig(ConfigPath),
    /// Have the running credd read its configuration again; exits with 1 if the new one is not in force
    Reload(RunDirectory),
    /// Show the jobs on this node: all to root, one's own to others
    Status(Ask),
    /// Show whether credd serves jobs and reaches credvend; exits with 0 if so, else with 1
    Health(Ask),
    /// Print the node's metrics for Prometheus, as node_exporter's textfile collector takes them
    Metrics(RunDirectory),
    /// The server process; started by `credd run`
    #[command(hide = true)]
    Server,
}

#[derive(Debug, Args)]
struct ConfigPath {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct Ask {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The daemon's run directory
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    run_dir: PathBuf,
}

#[derive(Debug, Args)]
struct RunDirectory {
    /// The daemon's run directory
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    run_dir: PathBuf,
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(ConfigPath { config }) => return run(&config),
        Command::CheckConfig(ConfigPath { config }) => return check_config(&config),
        Command::Reload(RunDirectory { run_dir }) => reload(&run_dir),
        Command::Status(ask) => status(&ask),
        Command::Health(ask) => health(&ask),
        Command::Metrics(RunDirectory { run_dir }) => metrics(&run_dir),
        Command::Server => serve(),
    };
    outcome.unwrap_or_else(|error| {
        daemon_log::complain(&format!("credd: {error:#}"));
        ExitCode::FAILURE
    })
}

fn load(path: &std::path::Path) -> Result<Config, ExitCode> {
    config::load(path).map_err(|error: LoadError| {
        daemon_log::complain(&format!("credd: {error}"));
        ExitCode::from(EXIT_BAD_CONFIG)
    })
}

fn run(path: &std::path::Path) -> ExitCode {
    let config = match load(path) {
        Ok(config) => config,
        Err(code) => {
            keeper::withdraw_endpoint(&RunDir::new(config::run_dir_of(path)));
            return code;
        }
    };
    logging::apply(&config.log);
    let run_dir = config.run_dir();
    match keeper::run(path, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "credd cannot start");
            keeper::withdraw_endpoint(&run_dir);
            ExitCode::from(if matches!(error, StartError::Config(_)) { EXIT_BAD_CONFIG } else { 1 })
        }
    }
}

fn check_config(path: &std::path::Path) -> ExitCode {
    let config = match load(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
    println!("{} is in order", path.display());
    let problems = keeper::check(&config);
    for problem in &problems {
        eprintln!("credd: on this machine: {problem}");
    }
    if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn status(ask: &Ask) -> anyhow::Result<ExitCode> {
    match query::ask(&RunDir::new(&ask.run_dir), &Request::Status)? {
        Response::Status(jobs) if ask.json => println!("{}", serde_json::to_string_pretty(&jobs)?),
        Response::Status(jobs) => {
            print!("{}", query::table(&jobs));
            // An answer has a bound; root is told what is missing, users have few jobs on a node.
            if let Response::Health(health) = query::ask(&RunDir::new(&ask.run_dir), &Request::Health)?
                && nix::unistd::geteuid().is_root()
                && health.jobs + health.undelivered_ends > jobs.len()
            {
                println!("… and {} more", health.jobs + health.undelivered_ends - jobs.len());
            }
        }
        Response::Error(reason) => anyhow::bail!(reason),
        _ => anyhow::bail!("credd answered something else than what was asked"),
    }
    Ok(ExitCode::SUCCESS)
}

fn health(ask: &Ask) -> anyhow::Result<ExitCode> {
    match query::ask(&RunDir::new(&ask.run_dir), &Request::Health)? {
        Response::Health(health) => {
            if ask.json {
                println!("{}", serde_json::to_string_pretty(&health)?);
            } else {
                print!("{}", query::sentences(&health));
            }
            Ok(if query::is_well(&health) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Response::Error(reason) => anyhow::bail!(reason),
        _ => anyhow::bail!("credd answered something else than what was asked"),
    }
}

fn reload(run_dir: &std::path::Path) -> anyhow::Result<ExitCode> {
    match query::reload(&RunDir::new(run_dir))? {
        Response::Reloaded { note } => {
            println!("a new configuration is in force");
            if let Some(note) = note {
                println!("{note}");
            }
        }
        Response::Error(reason) => anyhow::bail!("the configuration in force stays: {reason}"),
        _ => anyhow::bail!("credd answered something else than what was asked"),
    }
    Ok(ExitCode::SUCCESS)
}

fn metrics(run_dir: &std::path::Path) -> anyhow::Result<ExitCode> {
    match query::ask_server(&RunDir::new(run_dir), &Request::Metrics)? {
        Response::Metrics(text) => print!("{text}"),
        Response::Error(reason) => anyhow::bail!(reason),
        _ => anyhow::bail!("credd answered something else than what was asked"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The server process: its standard input is the control socket.
fn serve() -> anyhow::Result<ExitCode> {
    process::harden().context("cannot harden this process")?;
    process::set_name().context("cannot name this process")?;
    process::die_with_keeper().context("cannot bind this process to its keeper")?;
    anyhow::ensure!(!nix::unistd::geteuid().is_root(), "the server process must not be root");
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let null = std::fs::File::open("/dev/null").context("cannot open /dev/null")?;
    nix::unistd::dup2_stdin(null).context("cannot let go of the standard input")?;
    let (listeners, config) = handover::take(&control).context("cannot take over from the keeper")?;
    logging::apply(&config.log);
    // The keeper kills a process that has let go of its control socket: not before it has said why it ends.
    let _control = control.try_clone().context("cannot keep the control socket")?;
    server::run(control, listeners, config).inspect_err(|error| {
        tracing::error!(error = format!("{error:#}"), "the server process ends");
    })?;
    Ok(ExitCode::SUCCESS)
}
