//! One and two credvends over one pretend DynamoDB. The pretence is a single thread of Python and takes a processor for
//! itself, so the rates say how the parts share this machine, not what DynamoDB gives; its calls for each operation, which
//! do not depend on the machine, are counted and held by a test (`store::dynamo::tests::what_each_intent_costs`).

use std::net::TcpStream;

use anyhow::{Context, Result, ensure};

use crate::figure::Figure;
use crate::sample::Sample;
use crate::scratch::{self, Cpu, Process, command, free_port};
use crate::vending_speed::{Service, start_with};

const CALLERS: usize = 16;
const ROUNDS: usize = 3;
/// As long as sessions are opened for it: an AssumeRole costs more calls than an opening, so the list does not end.
const ASKING: u32 = 4;

/// Measures both.
pub fn measure() -> Result<Vec<Figure>> {
    let dir = scratch::dir("ministack")?;
    let port = free_port()?;
    let log = dir.join("log");
    let mut aws = command(&testbed::software::python_environment()?.join("bin/ministack"), Cpu::Any, None);
    aws.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", &dir).env("BIND_HOST", "127.0.0.1");
    aws.env("GATEWAY_PORT", port.to_string()).current_dir(&dir);
    let mut aws = Process::start(&mut aws, &log)?;
    aws.wait_ready(&log, || TcpStream::connect(("127.0.0.1", port)).is_ok())?;
    let store = format!("kind = \"dynamodb\"\nendpoint = \"http://127.0.0.1:{port}\"\n");
    let (first, second) = (start_with("replica-1", &store)?, start_with("replica-2", &store)?);
    let mut figures = vec![];
    for replicas in [vec![&first], vec![&first, &second]] {
        let count = replicas.len();
        let (mut pairs, mut gets) = (Sample::default(), Sample::default());
        for round in 0..ROUNDS {
            let callers = CALLERS / count;
            pairs.push(together(&replicas, |at, replica| {
                Ok(replica.pairs(callers, &format!("r{count}-{round}-{at}-"))?.per_second / 2.0)
            })?);
            gets.push(together(&replicas, |at, replica| {
                let list = replica.open_many(&format!("g{count}-{round}-{at}-"))?;
                Ok(replica.gets_for(ASKING, callers, &list)?.per_second)
            })?);
        }
        let name = format!("{count} replica{}, {CALLERS} callers", if count > 1 { "s" } else { "" });
        let detail = "the pretend DynamoDB is the bottleneck: one thread of Python";
        figures.push(Figure::new(format!("open+close pairs, {name}"), pairs.median(), "/s").detail(detail));
        figures.push(Figure::new(format!("GETs with an AssumeRole each, {name}"), gets.median(), "/s").detail(detail));
    }
    Ok(figures)
}

/// The sum of what all replicas do at the same time.
fn together(replicas: &[&Service], load: impl Fn(usize, &Service) -> Result<f64> + Sync) -> Result<f64> {
    let load = &load;
    let rates: Vec<Result<f64>> = std::thread::scope(|scope| {
        let running: Vec<_> =
            replicas.iter().enumerate().map(|(at, replica)| scope.spawn(move || load(at, replica))).collect();
        running.into_iter().map(|one| one.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a load died")))).collect()
    });
    ensure!(!rates.is_empty(), "nothing to measure");
    rates.into_iter().sum::<Result<f64>>().context("one of the replicas")
}
