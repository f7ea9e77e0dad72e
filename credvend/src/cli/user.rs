//! `credvend user invalidate`.

use credd_protocol::UserName;
use hyper::Method;

use super::call;
use crate::config::Config;
use crate::server::route::encode_segment;
use crate::vending::RevocationReport;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// End all sessions of exactly this user, and deny in AWS what was issued to them
    Invalidate {
        /// The login name
        user: UserName,
        /// For programs
        #[arg(long)]
        json: bool,
    },
}

pub fn run(config: &Config, command: Command) -> anyhow::Result<()> {
    let Command::Invalidate { user, json } = command;
    let path = format!("/admin/v1/users/{}/invalidate", encode_segment(user.as_str()));
    let report: RevocationReport = call::admin(config, Method::POST, &path)?;
    if json {
        super::print_json(&report)?;
    } else {
        println!("{} sessions of {user} ended; {} role sessions denied", report.sessions.len(), report.denied.len());
        for denied in &report.denied {
            println!("  denied {denied:?}");
        }
    }
    if !report.not_denied.is_empty() {
        let lacking = report.not_denied.join("\n  ");
        anyhow::bail!(
            "AWS still accepts credentials of these roles until they expire; credvend tries again:\n  {lacking}"
        );
    }
    Ok(())
}
