//! How many durable open+close pairs per second the SQLite store does, and what listing and closing cost among many open
//! sessions. `cargo run --release -p credvend --example store_bench -- [pairs] [callers] [open sessions] [directory]`
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::{JobId, SessionId, Uid};
use credvend::store::sqlite::SqliteStore;
use credvend::store::{Origin, Run, Session, SessionFilter, Store};
use time::OffsetDateTime;
use tokio::task::JoinSet;

fn session(job: u32) -> anyhow::Result<Session> {
    Ok(Session {
        id: SessionId::random(),
        cluster: "lab".parse()?,
        user: format!("user{}", job % 500).parse()?,
        uid: Some(Uid(1000 + job % 500)),
        project: format!("project{}", job % 50).parse()?,
        partition: Some("batch".parse()?),
        nodes: (0..4).map(|n| format!("node{n:04}").parse()).collect::<Result<_, _>>()?,
        origin: Origin::Slurm(Run { job: JobId::try_from(job)?, restart: 0, submitted: OffsetDateTime::UNIX_EPOCH }),
        opened: OffsetDateTime::now_utc(),
        ended: None,
        status: SessionStatus::Active,
        why: None,
    })
}

/// Runs `work` for `0..count` by that many callers at the same time.
async fn spread<F>(
    count: u32,
    callers: u32,
    work: impl Fn(u32) -> F + Send + Sync + 'static,
) -> anyhow::Result<Duration>
where
    F: Future<Output = anyhow::Result<()>> + Send,
{
    let (began, work, mut set) = (Instant::now(), Arc::new(work), JoinSet::new());
    for caller in 0..callers {
        let work = work.clone();
        set.spawn(async move {
            for i in (caller..count).step_by(callers as usize) {
                work(i).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = set.join_next().await {
        done??;
    }
    Ok(began.elapsed())
}

fn resident_mb() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse::<u64>()? / 1024)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let mut number = |default: u32| args.next().map_or(Ok(default), |a| a.parse());
    let (pairs, callers, open) = (number(20_000)?, number(256)?, number(100_000)?);
    let base = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = base.join(format!("store-bench-{}", std::process::id()));
    let store = Arc::new(SqliteStore::open(&dir.join("db"))?);

    let pair = |store: &Arc<SqliteStore>, from: u32| {
        let store = store.clone();
        move |i| {
            let store = store.clone();
            async move {
                let session = session(from + i)?;
                let id = session.id;
                store.open(session).await?;
                store.end(id, SessionStatus::Completed, OffsetDateTime::now_utc(), "bench").await?;
                Ok(())
            }
        }
    };
    let rate = |n: u32, took: Duration| f64::from(n) / took.as_secs_f64();
    let took = spread(pairs, callers, pair(&store, 1)).await?;
    println!("{pairs} open+close pairs, {callers} callers: {:.0} pairs/s", rate(pairs, took));
    let alone = (pairs / 100).max(1);
    let took = spread(alone, 1, pair(&store, 20_000_000)).await?;
    println!("{alone} open+close pairs, 1 caller: {:.0} pairs/s", rate(alone, took));

    let filling = store.clone();
    let took = spread(open, callers, move |i| {
        let store = filling.clone();
        async move {
            store.open(session(30_000_000 + i)?).await?;
            Ok(())
        }
    })
    .await?;
    println!("{open} sessions opened: {:.0}/s; VmRSS {} MB", rate(open, took), resident_mb()?);
    let took = spread(pairs, callers, pair(&store, 10_000_000)).await?;
    println!("{pairs} pairs among {open} open sessions: {:.0} pairs/s", rate(pairs, took));

    let active = SessionFilter { status: Some(SessionStatus::Active), ..Default::default() };
    for (what, filter) in [
        ("first page of all open", active.clone()),
        ("first page of a cluster's open", SessionFilter { cluster: Some("lab".parse()?), ..active.clone() }),
        ("a user's open", SessionFilter { user: Some("user7".parse()?), ..active.clone() }),
        ("a project's open", SessionFilter { project: Some("project7".parse()?), ..active.clone() }),
        ("one job", SessionFilter { job: Some(JobId::try_from(30_000_007)?), ..Default::default() }),
    ] {
        let began = Instant::now();
        let rows = store.list(&filter, None).await?.items.len();
        println!("{what}: {rows} rows in {:.2} ms", began.elapsed().as_secs_f64() * 1e3);
    }
    let (began, mut rows, mut from) = (Instant::now(), 0, None);
    loop {
        let page = store.list(&active, from.as_ref()).await?;
        rows += page.items.len();
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    println!(
        "all open, page by page: {rows} rows in {:.0} ms; VmRSS {} MB",
        began.elapsed().as_secs_f64() * 1e3,
        resident_mb()?
    );
    let (began, lab) = (Instant::now(), "lab".parse()?);
    let (mut rows, mut from) = (0, None);
    loop {
        let page = store.list_runs(&lab, from.as_ref()).await?;
        rows += page.items.len();
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    println!(
        "all open as the sweep reads them: {rows} rows in {:.0} ms; VmRSS {} MB",
        began.elapsed().as_secs_f64() * 1e3,
        resident_mb()?
    );
    drop(store);
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
