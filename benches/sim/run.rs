//! What is simulated: for each rate and template a credvend and its nodes; on them one job after the other.

use std::time::Duration;

use anyhow::Result;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::task::LocalSet;

use crate::herd::{self, Outcome};
use crate::world::World;

/// The name that jobs above `node-names-up-to` have by default.
pub const BY_JOB: &str = "{cluster}-{user}-{job}";
/// The name that all jobs would have without that bound.
pub const BY_NODE: &str = "{cluster}-{user}-{node}";

/// Descriptors for everything but the nodes' connections.
const OTHERS: u64 = 600;

/// What to simulate.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Nodes of the large job.
    pub nodes: u32,
    /// Its processes ask first within this time.
    pub spread: Duration,
    /// Calls a second that the STS bears.
    pub throttle: u32,
    /// credvend's own rates, one after the other. With one above what the STS bears it is throttled.
    pub rates: Vec<u32>,
    /// Projects with small jobs beside it.
    pub beside: u32,
    /// Of each of them, jobs of one node, one after the other while the large job starts.
    pub waves: u32,
    /// [`BY_JOB`], [`BY_NODE`].
    pub templates: Vec<&'static str>,
}

impl Plan {
    /// The usual one. The processes of 500 nodes start in a second: as fast as two processors do both sides of their TLS.
    pub fn of(nodes: u32) -> Self {
        Plan {
            nodes,
            spread: Duration::from_secs(u64::from(nodes.div_ceil(500))),
            throttle: 600,
            rates: vec![300, 900],
            beside: 8,
            waves: 10,
            templates: vec![BY_JOB, BY_NODE],
        }
    }

    /// How many of the nodes can have their standing stream too: this process and credvend each hold one descriptor for a
    /// node's requests, and one for its stream.
    pub fn streams(&self) -> u32 {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        u32::try_from(limit.saturating_sub(OTHERS + u64::from(self.nodes))).unwrap_or(u32::MAX).min(self.nodes)
    }
}

/// Runs it all.
///
/// # Errors
/// What made it impossible. What goes wrong for the job is in the outcomes.
pub fn run(plan: &Plan, tell: &dyn Fn(&str)) -> Result<Vec<Outcome>> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    anyhow::ensure!(
        hard > OTHERS + u64::from(plan.nodes),
        "{} nodes need more than {} open files, and this process may have {hard}",
        plan.nodes,
        OTHERS + u64::from(plan.nodes)
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        tokio::select! {
            outcomes = all(plan, tell) => outcomes,
            // What was started and written goes with the future.
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    })
}

async fn all(plan: &Plan, tell: &dyn Fn(&str)) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for rate in &plan.rates {
        for template in &plan.templates {
            tell(&format!("{template}, {rate} calls a second: credvend and {} nodes start", plan.nodes));
            let world = World::start(plan, template, *rate).await?;
            for prefetch in [false, true] {
                let outcome = herd::run(plan, &world, template, *rate, prefetch).await?;
                tell(&outcome.line());
                outcomes.push(outcome);
            }
        }
    }
    Ok(outcomes)
}
