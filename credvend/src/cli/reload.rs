//! `credvend reload`: what `systemctl reload credvend` runs. It waits for the outcome, and its exit code tells it.

use hyper::Method;

use super::call;
use crate::config::Config;
use crate::server::admin::Reloaded;

pub fn run(config: &Config) -> anyhow::Result<()> {
    let reloaded: Reloaded = call::admin(config, Method::POST, "/admin/v1/reload")?;
    if reloaded.problems.is_empty() {
        println!("credvend has read projects, head secrets and certificate again");
        return Ok(());
    }
    anyhow::bail!("credvend did not take everything, and keeps what it has:\n{}", reloaded.problems.join("\n"))
}
