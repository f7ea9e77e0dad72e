//! `testbed soak`, behind `make soak`.

use std::io::Write;
use std::time::Instant;

use anyhow::{Result, bail};

use super::{Options, Soak, plan, report, sabotage};
use crate::cluster::Cluster;

/// How it is run.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// For how many minutes faults are dealt
    #[arg(long, default_value_t = 20.0)]
    minutes: f64,
    /// Where the randomness comes from; without it, another one each time
    #[arg(long)]
    seed: Option<u64>,
    /// The short run that `make test` has: a fixed length, and the sabotages afterwards
    #[arg(long)]
    short: bool,
    /// Also breaks things behind the harness's back at the end, each of which it must notice
    #[arg(long)]
    sabotage: bool,
    /// The report as JSON, alone on standard output
    #[arg(long)]
    json: bool,
}

/// Runs it.
///
/// # Errors
/// A violation, told with its seed; or the harness could not go on.
pub fn run(arguments: &Arguments) -> Result<()> {
    let seed = arguments.seed.unwrap_or_else(|| std::process::id().into());
    let options = if arguments.short { Options::short(seed) } else { Options::long(seed, arguments.minutes) };
    let begun = Instant::now();
    let tell = move |line: &str| {
        let mut error = std::io::stderr().lock();
        let _ = writeln!(error, "{:7.1} s  {line}", begun.elapsed().as_secs_f32());
    };
    tell(&format!("seed {seed}"));
    let cluster = Cluster::up(plan())?;
    tell("the cluster is up");
    let soak = Soak::new(&cluster)?;
    let outcome = soak.run(&options, &tell)?;
    let text = if arguments.json {
        serde_json::to_string_pretty(&report::json(seed, &outcome))? + "\n"
    } else {
        report::text(seed, &outcome)
    };
    std::io::stdout().write_all(text.as_bytes())?;
    if !outcome.violations.is_empty() {
        let kept = report::keep(cluster.run_dir(), seed, &outcome)?;
        eprint!("{}", report::deeds(&outcome.history));
        bail!("{} violations; seed {seed}; logs and history are in {}", outcome.violations.len(), kept.display());
    }
    if arguments.sabotage || arguments.short {
        *super::locked(&soak.history) = outcome.history;
        sabotage::all(&soak, &tell)?;
    }
    Ok(())
}
