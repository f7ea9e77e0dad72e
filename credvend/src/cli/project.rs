//! `credvend project list|set|remove|policy`.

use credd_protocol::{ClusterName, ProjectId, RoleArn, RoleName};
use hyper::Method;

use super::{call, parts, table};
use crate::config::{Config, ConfigError, ProjectsFrom};
use crate::projects::{Problem, edit, foreign_role, is_upstreams};
use crate::server::admin::{Reloaded, RoleView};
use crate::store::dynamo::ProjectsError;

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
    /// Print the AWS policies that credvend, its revoker roles and the projects' roles need
    Policy(super::policy::Args),
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
    /// How long its credentials live: 15m to 12h
    #[arg(long)]
    duration: Option<String>,
    /// The Slurm account, where it is not the project's name in lower case
    #[arg(long)]
    account: Option<ProjectId>,
    /// A cluster whose jobs may be of the project; may be repeated. Replaces those that it has
    #[arg(long)]
    cluster: Vec<ClusterName>,
    /// Send SourceIdentity; the role must trust sts:SetSourceIdentity
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    source_identity: Option<bool>,
    /// Send session tags; the role must trust sts:TagSession
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    session_tags: Option<bool>,
    /// The role-session name in AWS, such as {cluster}-{user}-{job}
    #[arg(long, value_name = "TEMPLATE")]
    session_name: Option<String>,
    /// Deny in AWS what a job got when it ends
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    revoke_on_end: Option<bool>,
}

pub fn run(config: &Config, command: Command) -> anyhow::Result<()> {
    if let Some(upstream) = &config.upstream
        && !matches!(command, Command::List { .. })
    {
        anyhow::bail!(
            "the upstream {} has the projects' roles and the policies they need; which projects there are here stands in {}, to be edited by hand",
            upstream.url,
            config.projects.display()
        );
    }
    match command {
        Command::List { json } => {
            let roles: Vec<RoleView> = call::admin(config, Method::GET, "/admin/v1/projects")?;
            if json {
                return super::print_json(&roles);
            }
            table::print(
                ["PROJECT", "ROLE", "ARN", "SECONDS", "CLUSTERS", "OPTIONS"],
                roles.into_iter().map(|r| {
                    let sends = [
                        (r.source_identity, "source-identity"),
                        (r.session_tags, "session-tags"),
                        (r.revoke_on_end, "revoke-on-end"),
                    ];
                    let sends: Vec<_> = sends.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
                    let seconds = r.duration_seconds.to_string();
                    let clusters = r.clusters.map_or_else(|| "-".to_owned(), |names| names.join(","));
                    match config.upstream {
                        // Which role, if the file does not say, and how long, nobody knows before it is asked for.
                        Some(_) => {
                            let unsaid = r.role_arn.parse().is_ok_and(|arn| is_upstreams(&arn));
                            let arn = if unsaid { "from the upstream".into() } else { r.role_arn };
                            [r.project.to_string(), r.role, arn, String::new(), clusters, String::new()]
                        }
                        None => [r.project.to_string(), r.role, r.role_arn, seconds, clusters, sends.join(" ")],
                    }
                }),
            );
            Ok(())
        }
        Command::Policy(args) => super::policy::run(config, args),
        Command::Set(args) => {
            let change = edit::RoleChange {
                arn: args.role_arn,
                duration: args.duration,
                source_identity: args.source_identity,
                session_tags: args.session_tags,
                revoke_on_end: args.revoke_on_end,
                session_name: args.session_name,
                account: args.account,
                clusters: args.cluster,
            };
            change_file(config, |text| {
                // The others in the file may be of another partition still: one is put right after the other.
                match config.aws.region.as_ref().and_then(|region| foreign_role(&change.arn, region)) {
                    Some(text) => Err(vec![Problem { line: 0, text }]),
                    None => edit::set(text, &args.project, &args.role, &change),
                }
            })
        }
        Command::Remove { project, role } => change_file(config, |text| edit::remove(text, &project, role.as_ref())),
    }
}

/// Changes projects.toml, then has a running service read it.
fn change_file(config: &Config, change: impl FnOnce(&str) -> Result<String, Vec<Problem>>) -> anyhow::Result<()> {
    if config.projects_from == ProjectsFrom::Store {
        return change_table(config, change);
    }
    edit::file(&config.projects, change).map_err(|problems| ConfigError {
        path: config.projects.display().to_string(),
        problems: problems.iter().map(ToString::to_string).collect(),
    })?;
    println!("{} is changed", config.projects.display());
    if std::os::unix::net::UnixStream::connect(&config.admin_socket).is_err() {
        println!("credvend does not run here (or not for this user); it reads the file when it starts, or on SIGHUP");
        return Ok(());
    }
    let reloaded: Reloaded = call::admin(config, Method::POST, "/admin/v1/reload")?;
    if reloaded.problems.is_empty() {
        println!("credvend uses it now");
        return Ok(());
    }
    anyhow::bail!("credvend did not take everything in:\n{}", reloaded.problems.join("\n"))
}

/// Changes the store's table of projects; every replica looks at it by itself.
fn change_table(config: &Config, change: impl FnOnce(&str) -> Result<String, Vec<Problem>>) -> anyhow::Result<()> {
    let dynamo = super::block_on(parts::dynamo(config))??;
    let table = dynamo.tables().projects.clone();
    match super::block_on(dynamo.change_projects(change))? {
        Ok(()) => {
            println!("DynamoDB table {table} is changed; every credvend uses it within seconds");
            Ok(())
        }
        Err(ProjectsError::Invalid(problems)) => Err(ConfigError {
            path: format!("DynamoDB table {table}"),
            problems: problems.iter().map(ToString::to_string).collect(),
        }
        .into()),
        Err(other) => Err(other.into()),
    }
}
