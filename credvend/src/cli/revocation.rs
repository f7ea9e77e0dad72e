//! `credvend revocation list|show` and `credvend block list`.

use credd_protocol::credentials::rfc3339_z;
use hyper::Method;
use uuid::Uuid;

use super::revoke::{shown, subject_shown};
use super::{call, table};
use crate::config::Config;
use crate::server::revocations::{Blocks, RevocationLine, RevocationPage};
use crate::vending::revoking::RevocationReport;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List revocations, newest first, and who is kept out
    List {
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// For programs: the revocations alone
        #[arg(long)]
        json: bool,
    },
    /// Show one revocation's report, as far as it is known by now
    Show {
        /// Its UUID
        id: Uuid,
        /// For programs
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Subcommand)]
pub enum BlockCommand {
    /// List who is kept out
    List {
        /// For programs
        #[arg(long)]
        json: bool,
    },
}

pub fn run(config: &Config, command: Command) -> anyhow::Result<()> {
    match command {
        Command::List { limit, json } => list(config, limit, json),
        Command::Show { id, json } => {
            let path = format!("/admin/v1/revocations/{id}");
            let report: RevocationReport = call::admin(config, Method::GET, &path)?;
            if json {
                return super::print_json(&report);
            }
            print!("{}", shown(&report));
            for lacking in report.not_denied.iter().chain(&report.unfinished) {
                println!("lacking    {lacking}");
            }
            Ok(())
        }
    }
}

fn list(config: &Config, limit: usize, json: bool) -> anyhow::Result<()> {
    let (mut lines, mut from) = (Vec::<RevocationLine>::new(), None);
    loop {
        let query =
            from.map_or_else(String::new, |cursor: String| format!("?from={}", super::session::encode_query(&cursor)));
        let page: RevocationPage = call::admin(config, Method::GET, &format!("/admin/v1/revocations{query}"))?;
        lines.extend(page.revocations);
        match page.next {
            Some(next) if lines.len() < limit => from = Some(next.0),
            _ => break,
        }
    }
    lines.truncate(limit);
    if json {
        return super::print_json(&lines);
    }
    table::print(
        ["REVOCATION", "AT", "OF", "BY", "SESSIONS", "NODES", "UNHEARD", "LACKING", "WHY"],
        lines.into_iter().map(|line| {
            [
                line.id.to_string(),
                rfc3339_z::format(line.at),
                subject_shown(&line.subject),
                line.by,
                line.sessions.to_string(),
                line.nodes.to_string(),
                line.unheard.to_string(),
                line.lacking.len().to_string(),
                line.why.unwrap_or_default(),
            ]
        }),
    );
    let kept_out: Blocks = call::admin(config, Method::GET, "/admin/v1/blocks")?;
    if !kept_out.blocks.is_empty() {
        println!();
        print_blocks(kept_out);
    }
    Ok(())
}

pub fn blocks(config: &Config, command: BlockCommand) -> anyhow::Result<()> {
    let BlockCommand::List { json } = command;
    let blocks: Blocks = call::admin(config, Method::GET, "/admin/v1/blocks")?;
    if json {
        return super::print_json(&blocks.blocks);
    }
    print_blocks(blocks);
    Ok(())
}

fn print_blocks(all: Blocks) {
    table::print(
        ["BLOCKED", "SINCE", "BY", "WHY"],
        all.blocks.into_iter().map(|block| {
            [subject_shown(&block.subject), rfc3339_z::format(block.at), block.by, block.why.unwrap_or_default()]
        }),
    );
}
