//! A cached GET, on kept and on new connections, 1 and 16 of them: credd against a bare server.

use anyhow::{Context, Result};

use crate::bare;
use crate::figure::Figure;
use crate::node::{JOB_UID, Node};
use crate::sample::Sample;
use crate::scratch::{Cpu, Process, command, free_port};
use crate::wrk::{self, Load};

/// How much of the bare server's rate credd should reach.
const TARGET: f64 = 0.95;
const ROUNDS: usize = 5;

/// Measures in turns.
pub fn measure() -> Result<Vec<Figure>> {
    wrk::program()?;
    let node = Node::up("endpoint", 1, Cpu::Server)?;
    let job = &node.jobs[0];
    // Fetched through credd once, so cached from here on.
    let answer = node.dir.join("answer");
    let this = node.dir.join("bench");
    std::fs::copy(std::env::current_exe()?, &this)?;
    let bytes = bare::fetch(&this, JOB_UID, node.port, &job.path, &job.token, &answer)
        .context("credd does not serve the job's document")?;

    let port = free_port()?;
    let mut server = command(&this, Cpu::Server, None);
    let log = node.dir.join("bare.log");
    let mut server = Process::start(server.arg(bare::WORD).arg(port.to_string()).arg(&answer), &log)?;
    server.wait_ready(&log, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok())?;
    let processes = [node.server()?, server.pid()];
    let urls = [node.url(job), format!("http://127.0.0.1:{port}{}", job.path)];

    let mut figures = Vec::new();
    for (what, close) in [("kept", false), ("new", true)] {
        for connections in [1, 16] {
            let mut headers = vec![format!("Authorization: {}", job.token)];
            headers.extend(close.then(|| "Connection: close".to_owned()));
            let mut rates = [Sample::default(), Sample::default()];
            let mut costs = [Sample::default(), Sample::default()];
            for round in 0..=ROUNDS {
                for turn in [round % 2, 1 - round % 2] {
                    let url = &urls[turn];
                    let load = Load {
                        url,
                        connections,
                        seconds: 1,
                        headers: &headers,
                        uid: Some(JOB_UID),
                        script: None,
                        cpu: Cpu::Load,
                    };
                    let before = processor_microseconds(processes[turn])?;
                    let done = wrk::run(&load)?.expect_clean()?;
                    // The first round warms up.
                    if round > 0 {
                        rates[turn].push(done.per_second);
                        let used = processor_microseconds(processes[turn])? - before;
                        costs[turn].push(used / done.answers as f64);
                    }
                }
            }
            let [ours, bare] = rates;
            let detail = format!(
                "credd {:.0}/s, bare {:.0}/s; processor time each {:.1} and {:.1} µs",
                ours.median(),
                bare.median(),
                costs[0].median(),
                costs[1].median()
            );
            let name = format!(
                "cached GET ÷ bare hyper, {connections} {what} connection{}",
                if connections > 1 { "s" } else { "" }
            );
            figures.push(Figure::new(name, ours.median() / bare.median(), "").at_least(TARGET).detail(detail));
        }
    }
    figures.push(Figure::new("the answer, headers included", bytes as f64, "bytes"));
    Ok(figures)
}

/// What a process of one thread has used of the processors so far.
fn processor_microseconds(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    let nanoseconds = text.split(' ').next().context("three numbers")?;
    Ok(nanoseconds.parse::<f64>()? / 1000.0)
}
