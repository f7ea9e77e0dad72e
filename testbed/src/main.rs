//! `testbed`: the processes that keep a test cluster.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use testbed::{Cluster, Plan};

/// A private Slurm cluster in network namespaces, with a pretend AWS.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Words,
}

#[derive(Subcommand)]
enum Words {
    /// A tour: who jobs are in AWS, what they may read, what is refused.
    Demo,
    /// A cluster and a shell in it.
    Shell {
        /// Slurm alone: no plugin, no credd, no credvend, no AWS.
        #[arg(long)]
        bare: bool,
    },
    /// Brings a cluster up and keeps it until standard input ends.
    Up {
        /// Slurm alone: no plugin, no credd, no credvend, no AWS.
        #[arg(long)]
        bare: bool,
        /// With the pretend AWS also when bare.
        #[arg(long)]
        aws: bool,
    },
    /// A real cluster under load, to which faults are dealt from a seed; what must hold is checked all the while.
    Soak(testbed::soak::command::Arguments),
    /// What the soak's jobs run.
    #[command(hide = true)]
    SoakClient(testbed::soak::asking::Arguments),
    /// The process that ends a cluster when its owner ends (started by the library).
    #[command(hide = true)]
    Keep {
        /// The run directory.
        run_dir: PathBuf,
        /// The hosts, JSON.
        hosts: String,
    },
    /// The process that holds one host's namespaces (started by the keeper).
    #[command(hide = true)]
    Host {
        /// The host, JSON.
        spec: String,
    },
    /// Process 1 of a host (started by its holder).
    #[command(hide = true)]
    Init {
        /// The host, JSON.
        spec: String,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Words::Demo => able().and_then(|()| testbed::demo::run()),
        Words::Shell { bare } => {
            able().and_then(|()| testbed::shell::run(if bare { Plan::bare() } else { Plan::default() }))
        }
        Words::Up { bare, aws } => up(bare, aws),
        Words::Soak(arguments) => able().and_then(|()| testbed::soak::command::run(&arguments)),
        Words::SoakClient(arguments) => testbed::soak::asking::run(&arguments),
        Words::Keep { run_dir, hosts } => testbed::keeper::keep(&run_dir, &hosts),
        Words::Host { spec } => testbed::keeper::host(&spec),
        Words::Init { spec } => {
            serde_json::from_str(&spec).map_err(Into::into).and_then(|spec| testbed::host_init::run(&spec))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("testbed: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says everything that stands in the way at once.
fn able() -> anyhow::Result<()> {
    let missing = testbed::machine::missing();
    anyhow::ensure!(missing.is_empty(), "no cluster can run here:\n  {}", missing.join("\n  "));
    Ok(())
}

fn up(bare: bool, aws: bool) -> anyhow::Result<()> {
    let plan = if bare { Plan { aws, ..Plan::bare() } } else { Plan::default() };
    let cluster = Cluster::up(plan)?;
    println!("{}", cluster.run_dir().display());
    for host in ["head", "n1", "n2"] {
        println!("{host}: {}", cluster.on(host).pid());
    }
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}
