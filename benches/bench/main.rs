//! `make bench`: speed and size against the project's bounds, side by side in one run.
//!
//! A measurement, not a test: a missed target is printed as one and changes no exit status. The exit status is 1 only
//! if something could not be measured. See `docs/performance.md` for how each figure is made.
#![forbid(unsafe_code)]

mod bare;
mod caller;
mod endpoint_speed;
mod figure;
mod job_start;
mod loopback;
mod machine;
mod memory;
mod node;
mod plugin_object;
mod replicas;
mod revoke;
mod sample;
mod scratch;
mod store;
mod sts;
mod sweep;
mod vending_api;
mod vending_speed;
mod wrk;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};

use figure::{Figure, Topic};

type Measure = fn() -> Result<Vec<Figure>>;

const TOPICS: [(&str, &str, Measure); 10] = [
    ("plugin", "The plugin's shared object", plugin_object::measure),
    ("endpoint", "credd's endpoint", endpoint_speed::measure),
    ("caller", "The job of a connection without its token, by cgroup v2", caller::measure),
    ("memory", "credd's memory, 1,000 live sessions and their documents cached", memory::measure),
    ("credvend", "credvend, over TLS on kept connections", vending_speed::measure),
    ("store", "credvend among 100,000 open sessions in SQLite", store::measure),
    ("sweep", "credvend among 100,000 jobs of Slurm", sweep::measure),
    ("revoke", "Revocation, credvend and 1,000 nodes on this machine", revoke::measure),
    ("replicas", "credvends over one pretend DynamoDB", replicas::measure),
    ("start", "The start of a job on a real cluster, one node", job_start::measure),
];

const USAGE: &str = "usage: cargo bench -p credd-cluster-tests -- [--json] [TOPIC…]
topics: plugin endpoint caller memory credvend store sweep revoke replicas start";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        [bare::WORD, port, file] => bare::main(port, file).map(|()| true),
        [bare::ASK, port, path, token] => bare::ask(port, path, token).map(|()| true),
        _ => run(&words),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all could be measured.
fn run(words: &[&str]) -> Result<bool> {
    let (mut json, mut wanted) = (false, Vec::new());
    for word in words {
        match *word {
            "--json" => json = true,
            // Cargo's own.
            "--bench" => {}
            topic if TOPICS.iter().any(|(name, ..)| *name == topic) => wanted.push(topic),
            other => anyhow::bail!("{other:?} is unknown\n{USAGE}"),
        }
    }
    ensure!(nix::unistd::geteuid().is_root(), "run it as root: it needs job users, mounts and network namespaces");
    let machine = machine::describe();
    scratch::prepare()?;
    let mut topics = Vec::new();
    for (name, title, measure) in TOPICS {
        if !wanted.is_empty() && !wanted.contains(&name) {
            continue;
        }
        let start = Instant::now();
        eprintln!("bench: {name} …");
        let outcome = measure().map_err(|error| format!("{error:#}"));
        eprintln!("bench: {name} took {:.0} s", start.elapsed().as_secs_f64());
        topics.push(Topic { name, title, outcome });
    }
    scratch::remove();
    if json {
        println!("{:#}", figure::document(&machine, &topics));
    } else {
        println!("{}", figure::table(&machine, &topics));
    }
    Ok(topics.iter().all(|topic| topic.outcome.is_ok()))
}
