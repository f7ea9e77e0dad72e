//! The command line. `serve` runs the service; the other commands ask a running one over the administrators' socket,
//! or work on its files.
//!
//! Exit codes: 0 done; 1 not done, with the reason; 2 wrong usage; 3 a revocation that lacks something; 78 (EX_CONFIG) a
//! bad configuration.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::config::{Config, ConfigError, DEFAULT_PATH};

mod audit;
mod call;
mod check_config;
mod hook;
mod parts;
mod pin;
mod policy;
mod project;
mod reload;
mod revocation;
mod revoke;
mod serve;
mod session;
mod status;
mod store;
mod table;

/// `EX_CONFIG` of sysexits.h.
const EX_CONFIG: u8 = 78;

/// Of a revocation that lacks something.
const LACKING: u8 = 3;

/// credvend gives the jobs of Slurm clusters the AWS credentials of their projects.
#[derive(Debug, Parser)]
#[command(name = "credvend", version, max_term_width = 100)]
struct Cli {
    /// The configuration; also CREDVEND_CONFIG [default: /etc/credvend/credvend.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service
    Serve,
    /// Check the configuration and projects.toml, and tell every problem at once
    CheckConfig(check_config::Args),
    /// Print the pin of the server's certificate, and the line for the nodes' credd.toml
    Pin(pin::Args),
    /// Have the running service read projects, head secrets and certificate again; exits with 1 if something is wrong
    Reload,
    /// Tell how the running service does
    Status(status::Args),
    /// Look at sessions, or end one
    #[command(subcommand)]
    Session(session::Command),
    /// See or change which project has which roles
    #[command(subcommand)]
    Project(project::Command),
    /// End sessions, have the nodes drop what they hold, and deny in AWS what was issued
    Revoke(revoke::Args),
    /// Let in again who was kept out with `revoke --block`
    Unblock(revoke::UnblockArgs),
    /// See what was revoked
    #[command(subcommand)]
    Revocation(revocation::Command),
    /// See who is kept out
    #[command(subcommand)]
    Block(revocation::BlockCommand),
    /// Tell from the audit log who got which role, when, on which node and under which key id
    Audit(audit::Args),
    /// Make the store's tables, and say what they need
    #[command(subcommand)]
    Store(store::Command),
    /// For PrologSlurmctld and EpilogSlurmctld of a head that pushes its jobs; always exits 0
    Hook(hook::Args),
}

/// The command line's definition, from which the shells' completions are generated.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program.
pub fn main() -> ExitCode {
    // A hook that fails would requeue or hold jobs: whatever its arguments are, slurmctld gets a 0.
    if is_hook(std::env::args_os().skip(1)) {
        return hook::main();
    }
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(error) = error.downcast_ref::<ConfigError>() {
                for problem in &error.problems {
                    daemon_log::complain(&format!("{}: {problem}", error.path));
                }
                return ExitCode::from(EX_CONFIG);
            }
            daemon_log::complain(&format!("credvend: {error:#}"));
            if error.is::<revoke::Lacking>() { ExitCode::from(LACKING) } else { ExitCode::FAILURE }
        }
    }
}

/// Whether the command is `hook`, whatever else may be wrong with the arguments. Before a command stands `--config` alone.
fn is_hook(mut args: impl Iterator<Item = OsString>) -> bool {
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--config") => drop(args.next()),
            Some(given) if given.starts_with("--config=") => {}
            other => return other == Some("hook"),
        }
    }
    false
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let path = config_path(cli.config);
    let config = || Config::read(&path);
    match cli.command {
        Command::Serve => serve::run(Config::load(&path)?),
        Command::CheckConfig(args) => check_config::run(&path, args),
        Command::Pin(args) => pin::run(&config()?, args),
        Command::Reload => reload::run(&config()?),
        Command::Status(args) => status::run(&config()?, args),
        Command::Session(command) => session::run(&config()?, command),
        Command::Project(command) => project::run(&config()?, command),
        Command::Revoke(args) => revoke::run(&config()?, args),
        Command::Unblock(args) => revoke::unblock(&config()?, args),
        Command::Revocation(command) => revocation::run(&config()?, command),
        Command::Block(command) => revocation::blocks(&config()?, command),
        Command::Audit(args) => audit::run(&config()?, &args),
        Command::Store(command) => store::run(&config()?, command),
        Command::Hook(_) => Ok(()),
    }
}

fn config_path(given: Option<PathBuf>) -> PathBuf {
    given.or_else(|| std::env::var_os("CREDVEND_CONFIG").map(PathBuf::from)).unwrap_or_else(|| DEFAULT_PATH.into())
}

/// A runtime for one command.
fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}

/// Answers for programs.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_hook_is_one_wherever_it_stands() {
        let is = |line: &str| is_hook(line.split(' ').map(OsString::from));
        for hook in ["hook", "hook nonsense", "--config x hook prolog", "--config=x hook --what", "--config hook hook"]
        {
            assert!(is(hook), "{hook}");
        }
        for other in
            ["", "status", "session list --user hook", "--config hook", "--config hook status", "--version hook"]
        {
            assert!(!is(other), "{other}");
        }
    }
}
