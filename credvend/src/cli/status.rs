//! `credvend status`.

use hyper::Method;

use super::call;
use crate::config::Config;
use crate::server::admin::Status;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// For programs
    #[arg(long)]
    json: bool,
}

pub fn run(config: &Config, args: Args) -> anyhow::Result<()> {
    let status: Status = call::admin(config, Method::GET, "/admin/v1/status")?;
    if args.json {
        return super::print_json(&status);
    }
    let started = credd_protocol::credentials::rfc3339_z::format(status.started);
    println!("credvend {}, up since {started}; store {}; {} projects", status.version, status.store, status.projects);
    let clusters = status.clusters.into_iter();
    super::table::print(
        ["CLUSTER", "ATTESTS", "NODES CONNECTED"],
        clusters.map(|c| [c.name.to_string(), c.attest, c.nodes_connected.to_string()]),
    );
    for warning in status.warnings {
        println!("warning: {warning}");
    }
    Ok(())
}
