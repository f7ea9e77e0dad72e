//! credvend with 100,000 sessions open at the same time: its memory, and what listing and closing cost among them.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::figure::Figure;
use crate::memory::memory;
use crate::sample::Sample;
use crate::vending_speed::{self, PAIRS, Service};
use crate::wrk;

const OPEN: usize = 100_000;
/// Megabytes.
const MEMORY: f64 = 300.0;
const ROUNDS: usize = 3;
/// How often one page is asked for.
const LISTINGS: usize = 20;

/// Opens them, and looks.
pub fn measure() -> Result<Vec<Figure>> {
    wrk::program()?;
    let service = vending_speed::start("store")?;
    let socket = service.dir.join("admin.sock");
    let empty = memory(service.process.pid())?;
    let few = pairs(&service, "few")?;
    let (mut open, begun) = (0, Instant::now());
    while open < OPEN {
        let list = service.open_many(&format!("o{open}-"))?;
        open += fs::read_to_string(&list)?.lines().count();
        fs::remove_file(list)?;
        ensure!(begun.elapsed() < Duration::from_secs(300), "only {open} sessions were opened in five minutes");
    }
    let opening = open as f64 / begun.elapsed().as_secs_f64();
    let full = memory(service.process.pid())?;
    let many = pairs(&service, "many")?;
    let mut figures = vec![
        Figure::new(format!("VmRSS with {open} open sessions"), full.rss, "MB").at_most(MEMORY).detail(format!(
            "of it {:.1} MB its own; with none open {:.1} MB ({:.1} its own)",
            full.anonymous, empty.rss, empty.anonymous
        )),
        Figure::new("opening them, 64 callers", opening, "/s")
            .detail("the load generator writes each one's token down"),
        Figure::new("open+close pairs among them, 16 callers", many, "/s")
            .at_least(PAIRS)
            .detail(format!("among none {few:.0}/s in the same run")),
    ];
    for (what, filter, least) in [
        ("first page of the open ones", "status=ACTIVE", 500),
        ("first page of a cluster's open ones", "status=ACTIVE&cluster=bench", 500),
        ("a user's open ones", "status=ACTIVE&user=u7", 1),
        ("first page of a project's", "project=genomics", 500),
    ] {
        let mut times = Sample::default();
        let mut rows = 0;
        for _ in 0..LISTINGS {
            let begun = Instant::now();
            rows = page(&socket, filter, None)?.0;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        ensure!(rows >= least, "{what}: {rows} rows");
        figures.push(Figure::new(format!("listing {what}"), times.median(), "ms").detail(format!("{rows} rows")));
    }
    let (begun, mut rows, mut from) = (Instant::now(), 0, None);
    loop {
        let (some, next) = page(&socket, "status=ACTIVE", from.as_deref())?;
        rows += some;
        from = next;
        if from.is_none() {
            break;
        }
    }
    ensure!(rows >= OPEN, "{rows} were listed");
    figures.push(
        Figure::new("listing all open ones, page by page", begun.elapsed().as_secs_f64() * 1e3, "ms")
            .detail(format!("{rows} rows")),
    );
    let after = memory(service.process.pid())?;
    figures.push(
        Figure::new("VmRSS after all that", after.rss, "MB")
            .at_most(MEMORY)
            .detail(format!("of it {:.1} MB its own", after.anonymous)),
    );
    Ok(figures)
}

fn pairs(service: &Service, name: &str) -> Result<f64> {
    let mut rates = Sample::default();
    for round in 0..ROUNDS {
        // Two requests are a pair.
        rates.push(service.pairs(16, &format!("{name}{round}-"))?.per_second / 2.0);
    }
    Ok(rates.median())
}

/// One page as `credvend session list` asks for it: how many rows, and where the next one begins.
fn page(socket: &Path, filter: &str, from: Option<&str>) -> Result<(usize, Option<String>)> {
    let from = from.map(|from| format!("&from={from}")).unwrap_or_default();
    let mut stream = UnixStream::connect(socket).context("the admin socket")?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET /admin/v1/sessions?{filter}{from} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    let page: Value = serde_json::from_str(body)?;
    let rows = page["sessions"].as_array().context("no sessions")?.len();
    Ok((rows, page["next"].as_str().map(str::to_owned)))
}
