//! `credvend project list|set|remove`.

use credd_protocol::{ProjectId, RoleArn, RoleName};
use hyper::Method;

use super::{call, table};
use crate::config::Config;
use crate::server::admin::RoleView;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List the projects in force
    List {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Give a project a role, or change it, in projects.toml
    Set(SetArgs),
    /// Take a project's role away, or the whole project, in projects.toml
    Remove {
        /// The project
        project: ProjectId,
        /// Only this role
        #[arg(long)]
        role: Option<RoleName>,
    },
}

#[derive(Debug, clap::Args)]
pub struct SetArgs {
    /// The project: a Slurm account, or what the head node states
    project: ProjectId,
    /// arn:aws:iam::123456789012:role/NAME
    #[arg(long)]
    role_arn: RoleArn,
    /// The role's name within the project
    #[arg(long, default_value = "default")]
    role: RoleName,
    /// How long its credentials live, in seconds
    #[arg(long, value_parser = clap::value_parser!(u32).range(900..=43_200))]
    duration: Option<u32>,
}

pub fn run(config: &Config, command: Command) -> anyhow::Result<()> {
    match command {
        Command::List { json } => {
            let roles: Vec<RoleView> = call::admin(config, Method::GET, "/admin/v1/projects")?;
            if json {
                return super::print_json(&roles);
            }
            table::print(
                ["PROJECT", "ROLE", "ARN", "SECONDS", "SENDS"],
                roles.into_iter().map(|r| {
                    let sends = [(r.source_identity, "source-identity"), (r.session_tags, "session-tags")];
                    let sends: Vec<_> = sends.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
                    let seconds = r.duration_seconds.to_string();
                    [r.project.to_string(), r.role, r.role_arn, seconds, sends.join(" ")]
                }),
            );
            Ok(())
        }
        Command::Set(_) | Command::Remove { .. } => anyhow::bail!("not built yet: edit projects.toml"),
    }
}
