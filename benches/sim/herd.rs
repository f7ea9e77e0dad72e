//! One large job starts on all nodes, and small ones of other projects beside it; what their processes see.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use credd::control::{Job, RunId};
use credd::server::simulated::{JobHere, Node};
use credd_protocol::record::JobOptions;
use credd_protocol::{JobId, JobToken, Uid};
use tokio::task::JoinSet;

use crate::run::Plan;
use crate::slurm::Questions;
use crate::sts::Counts;
use crate::world::{CLUSTER, HERD, World, beside, beside_job, herd_job, name_of, uid_of};

/// With prefetch the processes ask so long after the job's start: what came by then, they find.
const LATER: Duration = Duration::from_secs(5);

/// As botocore does: three attempts, 2 s each, one second apart. A process whose call failed calls again.
const ATTEMPTS: u32 = 3;
const ATTEMPT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_secs(1);

/// Who has nothing after this is given up.
const PATIENCE: Duration = Duration::from_secs(180);

/// What one process saw.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// From its first request to its credentials.
    waited: Duration,
    /// Calls of its SDK that failed.
    errors: usize,
    /// It never got any.
    given_up: bool,
    /// What the last failure said.
    said: Option<String>,
}

/// What some processes saw.
#[derive(Debug, Clone)]
pub struct Waits {
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
    /// Calls of SDKs that failed.
    pub errors: usize,
    /// Processes that had at least one.
    pub processes: usize,
    /// Processes that got nothing within three minutes.
    pub given_up: usize,
    /// What one of the failures said.
    pub said: Option<String>,
}

/// What one job was like.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub template: &'static str,
    /// credvend's own, in calls a second.
    pub rate: u32,
    pub prefetch: bool,
    pub sts: Counts,
    pub slurm: Questions,
    /// Of the large job.
    pub herd: Waits,
    /// Of all the small ones.
    pub beside: Waits,
    /// Which project beside it waited longest.
    pub worst: String,
    /// From the start to the last process' credentials.
    pub took: Duration,
}

impl Outcome {
    /// In a line.
    pub fn line(&self) -> String {
        format!(
            "{}, {}/s{}: {} calls to STS, {} throttled; waits {:.2} s, {:.2} s (p99), {:.2} s (longest); {} errors",
            self.template,
            self.rate,
            if self.prefetch { " with prefetch" } else { "" },
            self.sts.calls,
            self.sts.throttled,
            self.herd.p50.as_secs_f64(),
            self.herd.p99.as_secs_f64(),
            self.herd.max.as_secs_f64(),
            self.herd.errors
        )
    }
}

/// Runs one.
pub async fn run(plan: &Plan, world: &World, template: &'static str, rate: u32, prefetch: bool) -> Result<Outcome> {
    let asked = world.slurm.questions();
    world.sts.take();
    let begun = Instant::now();
    let (mut herd, mut small) = (JoinSet::new(), JoinSet::new());
    for (at, node) in (0..).zip(&world.nodes) {
        let (node, number) = (node.clone(), at + 1);
        let record = record(herd_job(prefetch), HERD, uid_of(0), number, number == 1, prefetch)?;
        // The nodes in no order of their numbers.
        let place = u64::from(at) * 7919 % u64::from(plan.nodes);
        let start = plan.spread.mul_f64(place as f64 / f64::from(plan.nodes));
        herd.spawn_local(process(node, record, start, if prefetch { LATER } else { Duration::ZERO }));
    }
    for project in 1..=plan.beside {
        for wave in 0..plan.waves {
            let node = world.nodes[project as usize - 1].clone();
            let record =
                record(beside_job(project, wave, prefetch), &beside(project), uid_of(project), project, true, false)?;
            let start = plan.spread.mul_f64(f64::from(wave) / f64::from(plan.waves));
            let seen = process(node, record, start, Duration::ZERO);
            small.spawn_local(async move { (project, seen.await) });
        }
    }
    let mut seen = Vec::new();
    while let Some(process) = herd.join_next().await {
        seen.push(process??);
    }
    let took = begun.elapsed();
    let (mut others, mut worst) = (Vec::new(), (Duration::ZERO, 0));
    while let Some(process) = small.join_next().await {
        let (project, process) = process?;
        let process = process?;
        worst = worst.max((process.waited, project));
        others.push(process);
    }
    Ok(Outcome {
        template,
        rate,
        prefetch,
        sts: world.sts.take(),
        slurm: world.slurm.questions() - asked,
        herd: waits(seen),
        beside: waits(others),
        worst: beside(worst.1),
        took,
    })
}

/// The job starts on the node at `start`, and one of its processes asks `later`.
async fn process(node: Rc<Node>, record: Job, start: Duration, later: Duration) -> Result<Seen> {
    tokio::time::sleep(start).await;
    let job = node.job(record)?;
    tokio::time::sleep(later).await;
    let (begun, mut seen) = (Instant::now(), Seen::default());
    while let Err(said) = sdk(&node, &job).await {
        seen.errors += 1;
        seen.said = Some(said);
        if begun.elapsed() > PATIENCE {
            seen.given_up = true;
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    seen.waited = begun.elapsed();
    Ok(seen)
}

/// One call of an SDK.
async fn sdk(node: &Node, job: &JobHere) -> Result<(), String> {
    let mut said = String::new();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        match tokio::time::timeout(ATTEMPT, node.credentials(job)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(why)) => said = why,
            Err(_) => said = "credd did not answer within 2 s".to_owned(),
        }
    }
    Err(said)
}

fn waits(mut seen: Vec<Seen>) -> Waits {
    seen.sort_by_key(|process| process.waited);
    let at = |part: f64| seen.get((seen.len() as f64 * part) as usize).or(seen.last()).map_or(PATIENCE, |s| s.waited);
    Waits {
        p50: at(0.5),
        p99: at(0.99),
        max: at(1.0),
        errors: seen.iter().map(|process| process.errors).sum(),
        processes: seen.iter().filter(|process| process.errors > 0).count(),
        given_up: seen.iter().filter(|process| process.given_up).count(),
        said: seen.iter().rev().find_map(|process| process.said.clone()),
    }
}

fn record(id: u32, user: &str, uid: u32, node: u32, first_node: bool, prefetch: bool) -> Result<Job> {
    let token = JobToken::mint()?;
    Ok(Job {
        run: RunId::of(token.hash()),
        job: JobId::try_from(id)?,
        restart: 0,
        cluster: CLUSTER.parse()?,
        node: name_of(node).parse()?,
        user: user.parse()?,
        uid: Uid(uid),
        account: Some(user.parse()?),
        partition: "batch".parse()?,
        sluid: None,
        het_leader: None,
        first_node,
        token: token.hash(),
        options: JobOptions { prefetch, ..JobOptions::default() },
        session: None,
        refused: None,
        ended: false,
    })
}
