//! A job on ten thousand nodes, simulated: every node is credd's own server code (jobs, cache, backoff, refresh, the standing
//! stream, HTTPS with its own certificate), credvend is the real program with its real store, AWS is an STS that throttles,
//! Slurm is a few scripts that say what runs. What is counted is counted at the STS, by the scripts, and by what an SDK
//! in the job would see. `make sim` builds and runs it; `docs/performance.md` explains the figures.
#![forbid(unsafe_code)]

mod herd;
mod report;
mod run;
mod slurm;
mod sts;
mod world;

use std::process::ExitCode;
use std::time::Duration;

use run::Plan;

const USAGE: &str = "usage: make sim [SIMFLAGS=\"…\"]
  --nodes N      nodes of the job (10000)
  --spread S     its processes ask first within so many seconds (a second for 500 nodes)
  --throttle N   calls a second that the STS bears (600)
  --rate N       credvend's [sts] rate (300, then 900: more than the STS bears)
  --template T   one of: job, node (both)
  --json         the figures as JSON on standard output; progress is on standard error";

fn main() -> ExitCode {
    let (plan, json) = match arguments() {
        Ok(read) => read,
        Err(why) => {
            eprintln!("sim: {why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run::run(&plan, &|line| eprintln!("sim: {line}")) {
        Ok(outcomes) => {
            if json {
                println!("{}", report::json(&plan, &outcomes));
            } else {
                print!("{}", report::text(&plan, &outcomes));
            }
            let broken = report::broken(&plan, &outcomes);
            broken.iter().for_each(|line| eprintln!("sim: {line}"));
            if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Result<(Plan, bool), String> {
    let (mut plan, mut json, mut spread) = (Plan::of(10_000), false, None);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = |least: u32, most: u32| {
            let text = words.next().ok_or(format!("{word} needs a number"))?;
            let number = text.parse().ok().filter(|n| (least..=most).contains(n));
            number.ok_or(format!("{word} {text:?}: a number from {least} to {most}"))
        };
        match word.as_str() {
            // Cargo's own.
            "--bench" => {}
            "--json" => json = true,
            "--nodes" => {
                plan = Plan {
                    rates: plan.rates,
                    throttle: plan.throttle,
                    templates: plan.templates,
                    ..Plan::of(number(10, 10_000)?)
                }
            }
            "--spread" => spread = Some(Duration::from_secs(number(0, 600)?.into())),
            "--throttle" => plan.throttle = number(1, 100_000)?,
            "--rate" => plan.rates = vec![number(1, 10_000)?],
            "--template" => match words.next().as_deref() {
                Some("job") => plan.templates.retain(|t| *t == run::BY_JOB),
                Some("node") => plan.templates.retain(|t| *t == run::BY_NODE),
                other => return Err(format!("--template {other:?}: job or node")),
            },
            other => return Err(format!("{other:?} is not known")),
        }
    }
    plan.spread = spread.unwrap_or(plan.spread);
    Ok((plan, json))
}
