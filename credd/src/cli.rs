//! The command line.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use credd_protocol::JobId;
use credd_protocol::local::{Request, Response};
use credd_protocol::record::{RUN_DIR, RunDir};
use zeroize::Zeroizing;

use crate::config::{self, Config, EXIT_BAD_CONFIG, LoadError};
use crate::keeper::{self, StartError, process};
use crate::own::{self, NoAnswer};
use crate::{handover, logging, query, server};

/// Of sysexits.h: not now.
const EX_TEMPFAIL: u8 = 75;

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
    /// Print the AWS credentials of one's own job on this node as JSON for credential_process
    ///
    /// For processes that do not have the job's environment: `env -i`, tmux, ssh, editors. In ~/.aws/config:
    /// `[profile job]` and `credential_process = /usr/sbin/credd credentials`. It needs no token: the kernel shows whose
    /// process this is, and on nodes with cgroup v2 of which job. Exits with 1 if there are no credentials, with 75 if
    /// they are not available yet.
    Credentials(Own),
    /// Print shell commands that set the AWS credentials of one's own job on this node as environment variables
    ///
    /// Use it as `eval "$(credd env)"`. The keys expire after about an hour; with --endpoint, SDKs get credentials and renew
    /// them themselves. Exits with 1 if there are no credentials, with 75 if they are not available yet.
    Env(Env),
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
struct Own {
    /// The job, by its raw id (squeue -O JobID); needed outside of a job if several jobs of the user run on this node
    #[arg(long, value_name = "ID")]
    job: Option<JobId>,
    /// The daemon's run directory
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    run_dir: PathBuf,
}

#[derive(Debug, Args)]
struct Env {
    #[command(flatten)]
    own: Own,
    /// Print AWS_CONTAINER_CREDENTIALS_FULL_URI and a new token instead of keys: they serve until the job ends here
    #[arg(long)]
    endpoint: bool,
    /// Print a JSON object of the variables, with null for one to unset
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RunDirectory {
    /// The daemon's run directory
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    run_dir: PathBuf,
}

/// The command line's definition, from which the shells' completions are generated.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(ConfigPath { config }) => return run(&config),
        Command::CheckConfig(ConfigPath { config }) => return check_config(&config),
        Command::Reload(RunDirectory { run_dir }) => reload(&run_dir),
        Command::Credentials(own) => return print(credentials(&own)),
        Command::Env(env) => return print(env_of(&env)),
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

fn credentials(own: &Own) -> Result<Zeroizing<Vec<u8>>, NoAnswer> {
    process::harden().context("cannot harden this process")?;
    own::credentials(&RunDir::new(&own.run_dir), own.job, &getenv)
}

fn env_of(env: &Env) -> Result<Zeroizing<Vec<u8>>, NoAnswer> {
    process::harden().context("cannot harden this process")?;
    let kind = if env.endpoint { own::Kind::Endpoint } else { own::Kind::Keys };
    let variables = own::variables(&RunDir::new(&env.own.run_dir), env.own.job, kind, &getenv)?;
    Ok(if env.json { variables.json() } else { variables.shell() })
}

fn getenv(name: &str) -> Option<Vec<u8>> {
    std::env::var_os(name).map(OsString::into_vec)
}

fn print(text: Result<Zeroizing<Vec<u8>>, NoAnswer>) -> ExitCode {
    let (error, code) = match text {
        Ok(text) => match io::stdout().write_all(&text) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => (error.to_string(), ExitCode::FAILURE),
        },
        Err(NoAnswer::NotNow(reason)) => (reason, ExitCode::from(EX_TEMPFAIL)),
        Err(NoAnswer::No(reason)) => (reason, ExitCode::FAILURE),
    };
    eprintln!("credd: {error}");
    code
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
