//! A sweep over 100,000 sessions that Slurm vouched for: its time and memory. All jobs run, so nothing is closed; the
//! sessions lie in the store before credvend starts, and the pretend squeue prints a line for each job. And what it costs
//! to close one of them.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::{JobId, SessionId, Uid};
use credvend::attest::squeue::made_up as squeue;
use credvend::store::sqlite::SqliteStore;
use credvend::store::{Opened, Origin, Run, Session, Store};
use time::OffsetDateTime;
use tokio::task::JoinSet;

use crate::figure::Figure;
use crate::memory::memory;
use crate::sample::Sample;
use crate::scratch::{self, Cpu, Process, command, free_port};

const JOBS: u32 = 100_000;
/// Nodes of each job.
const NODES: u32 = 4;
/// Megabytes.
const MEMORY: f64 = 300.0;
const SWEEPS: u32 = 5;
/// How many are closed.
const CLOSED: usize = 500;
const CLUSTER: &str = "bench";
const PATIENCE: Duration = Duration::from_secs(180);

/// Measures it.
pub fn measure() -> Result<Vec<Figure>> {
    let dir = scratch::dir("sweep")?;
    let (state, bin) = (dir.join("state"), dir.join("bin"));
    for made in [&state, &bin] {
        fs::create_dir_all(made)?;
        fs::set_permissions(made, fs::Permissions::from_mode(0o700))?;
    }
    let ids = fill(&state.join("credvend.sqlite"))?;
    let mut queue = squeue::header();
    for job in 1..=JOBS {
        queue.push_str(&squeue::running(
            job,
            uid(job),
            &user(job),
            "genomics",
            &format!("n[{job}-{}]", job + NODES - 1),
        ));
    }
    fs::write(dir.join("queue"), queue)?;
    let squeue = bin.join("squeue");
    fs::write(&squeue, format!("#!/bin/sh\nexec cat {}\n", dir.join("queue").display()))?;
    fs::set_permissions(&squeue, fs::Permissions::from_mode(0o755))?;

    let (metrics, admin) = (free_port()?, dir.join("admin.sock"));
    let projects = dir.join("projects.toml");
    fs::write(&projects, "[projects.genomics]\nrole-arn = \"arn:aws:iam::123456789012:role/projects/genomics\"\n")?;
    fs::set_permissions(&projects, fs::Permissions::from_mode(0o600))?;
    let config = dir.join("credvend.toml");
    fs::write(
        &config,
        format!(
            "listen = [\"127.0.0.1:{port}\"]\nstate-dir = {state:?}\nadmin-socket = {admin:?}\nprojects = {projects:?}\n\
             [tls]\nnames = [\"localhost\"]\n[metrics]\nlisten = \"127.0.0.1:{metrics}\"\n\
             [aws]\nregion = \"us-east-1\"\nsts-endpoint = \"http://127.0.0.1:9\"\niam-endpoint = \"http://127.0.0.1:9\"\n\
             [[cluster]]\nname = {CLUSTER:?}\nattest = \"slurm\"\nslurm-bin = {bin:?}\nnode-address-check = \"off\"\n\
             trust-unenforced-accounts = true\n[log]\nfilter = \"warn\"\n",
            port = free_port()?,
        ),
    )?;
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600))?;
    let log = dir.join("credvend.log");
    let mut credvend = command(&testbed::software::program("credvend")?, Cpu::Any, None);
    // The pretend squeue's times have no zone.
    credvend.arg("--config").arg(&config).arg("serve").env("TZ", "UTC0");
    credvend.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").env("HOME", &state);
    let mut process = Process::start(&mut credvend, &log)?;
    process.wait_ready(&log, || UnixStream::connect(&admin).is_ok())?;

    let swept = swept(metrics, SWEEPS)?;
    let after = memory(process.pid())?;
    let mut times = Sample::default();
    for id in ids.iter().take(CLOSED) {
        let begun = Instant::now();
        let answer = ask(UnixStream::connect(&admin)?, &format!("POST /admin/v1/sessions/{id}/close"))?;
        ensure!(answer.starts_with("HTTP/1.1 2"), "{answer}");
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(vec![
        Figure::new("a sweep: squeue's 100,000 lines against as many sessions", swept, "s")
            .detail(format!("mean of {SWEEPS}; one in 5 s or so, beside everything else")),
        Figure::new("VmRSS after the sweeps", after.rss, "MB")
            .at_most(MEMORY)
            .detail(format!("of it {:.1} MB its own", after.anonymous)),
        Figure::new("closing one of them, told to the nodes, one caller", times.median(), "ms")
            .detail(format!("median of {CLOSED}")),
    ])
}

fn uid(job: u32) -> u32 {
    61_000 + job % 1000
}

fn user(job: u32) -> String {
    format!("user{}", job % 1000)
}

/// The sessions, as nodes would have opened them.
fn fill(path: &Path) -> Result<Vec<SessionId>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let store = Arc::new(SqliteStore::open(path)?);
        let (mut writes, mut ids) = (JoinSet::new(), vec![]);
        for job in 1..=JOBS {
            let session = session(job)?;
            ids.push(session.id);
            let store = store.clone();
            writes.spawn(async move { store.open(session).await });
            // They share commits.
            while writes.len() >= 512 || (job == JOBS && !writes.is_empty()) {
                let opened = writes.join_next().await.context("a write")???;
                ensure!(matches!(opened, Opened::New(_)), "{opened:?}");
            }
        }
        Ok(ids)
    })
}

fn session(job: u32) -> Result<Session> {
    Ok(Session {
        id: SessionId::random(),
        cluster: CLUSTER.parse()?,
        user: user(job).parse()?,
        uid: Some(Uid(uid(job))),
        project: "genomics".parse()?,
        partition: Some("batch".parse()?),
        nodes: (job..job + NODES).map(|n| format!("n{n}").parse()).collect::<Result<_, _>>()?,
        origin: Origin::Slurm(Run { job: JobId::try_from(job)?, restart: 0, submitted: squeue::SUBMITTED_AT }),
        opened: OffsetDateTime::now_utc(),
        ended: None,
        status: SessionStatus::Active,
        why: None,
    })
}

/// Waits for so many sweeps; their mean, in seconds.
fn swept(port: u16, sweeps: u32) -> Result<f64> {
    let begun = Instant::now();
    loop {
        let page =
            TcpStream::connect(("127.0.0.1", port)).map_or(Ok(String::new()), |stream| ask(stream, "GET /metrics"))?;
        let value = |name: &str| {
            let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse::<f64>().ok())
        };
        if let (Some(count), Some(sum)) =
            (value("credvend_sweep_duration_seconds_count"), value("credvend_sweep_duration_seconds_sum"))
            && count >= f64::from(sweeps)
        {
            let open = value("credvend_sessions_open{cluster=\"bench\"}");
            ensure!(open == Some(f64::from(JOBS)), "{open:?} sessions are open after the sweeps");
            return Ok(sum / count);
        }
        ensure!(begun.elapsed() < PATIENCE, "no {sweeps} sweeps in {PATIENCE:?}: {page}");
        #[expect(
            clippy::disallowed_methods,
            reason = "a page tells nobody that it has changed; polled with a deadline"
        )]
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn ask(mut stream: impl Read + Write, request: &str) -> Result<String> {
    write!(stream, "{request} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
