//! `credvend project policy`.

use anyhow::{Context, bail};
use hyper::Method;
use serde_json::Value;

use super::{call, parts};
use crate::config::{Config, ConfigError, ProjectsFrom};
use crate::projects::policies::{Policies, policies};
use crate::server::admin::Identity;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Whom the trust policies name: credvend's own IAM user or role; by default who the running service is
    #[arg(long, value_name = "ARN")]
    principal: Option<String>,
    /// What the projects' roles may do at most; may be repeated
    #[arg(long, value_name = "ACTION", default_value = "s3:*")]
    allow: Vec<String>,
    /// For programs
    #[arg(long)]
    json: bool,
}

pub fn run(config: &Config, args: Args) -> anyhow::Result<()> {
    if let Some(upstream) = &config.upstream {
        bail!("{} has the roles, and needs the policies: ask there", upstream.url);
    }
    let map = super::block_on(async {
        let dynamo = match config.projects_from {
            ProjectsFrom::Store => Some(parts::dynamo(config).await?),
            ProjectsFrom::File => None,
        };
        let map = parts::projects_in_force(config, dynamo.as_ref()).await;
        anyhow::Ok(map.map_err(|problems| ConfigError { path: config.projects.display().to_string(), problems })?)
    })??;
    let principal = match args.principal {
        Some(arn) => arn,
        None => {
            let known: Identity = call::admin(config, Method::GET, "/admin/v1/identity")
                .context("who credvend is in AWS is not known; say it with --principal")?;
            of_role(&known.arn)
        }
    };
    let all = policies(&map, &config.aws.revoker_roles, &principal, &args.allow);
    if args.json {
        return super::print_json(&all);
    }
    print!("{}", shown(&all)?);
    Ok(())
}

/// A trust policy names a role, not its sessions.
fn of_role(arn: &str) -> String {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    if let ["arn", partition, "sts", _, account, resource] = parts[..]
        && let Some(role) = resource.strip_prefix("assumed-role/").and_then(|r| r.split('/').next())
    {
        eprintln!("credvend is the role {role}; if it has a path, say its whole ARN with --principal");
        return format!("arn:{partition}:iam::{account}:role/{role}");
    }
    arn.to_owned()
}

fn shown(all: &Policies) -> anyhow::Result<String> {
    use std::fmt::Write;
    let mut text = String::new();
    let mut piece = |heading: String, document: &Value| -> anyhow::Result<()> {
        let pretty = serde_json::to_string_pretty(document)?;
        Ok(writeln!(text, "# {heading}\n{pretty}\n")?)
    };
    for own in &all.own {
        piece(format!("Permissions of credvend's own identity, {}", all.principal), own)?;
    }
    for of in &all.accounts {
        let account = &of.account;
        let (bound, revoker) = (&of.project_boundary, &of.revoker);
        let many = of.roles.len();
        piece(
            format!(
                "Account {account}: managed policy {}, the permissions boundary of its {many} project roles; all that \
                 they may do at most",
                bound.arn
            ),
            &bound.document,
        )?;
        let bound = &of.revoker_boundary;
        piece(
            format!("Account {account}: managed policy {}, the permissions boundary of the revoker", bound.arn),
            &bound.document,
        )?;
        piece(format!("Account {account}: trust policy of the revoker role {revoker}"), &of.revoker_trust)?;
        piece(format!("Account {account}: permissions of the revoker role {revoker}"), &of.revoker_permissions)?;
    }
    for note in &all.notes {
        writeln!(text, "# Note: {note}")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #[test]
    fn trust_policies_name_roles_and_users() {
        let of = super::of_role;
        assert_eq!(
            of("arn:aws:sts::123456789012:assumed-role/credvend/i-0"),
            "arn:aws:iam::123456789012:role/credvend"
        );
        assert_eq!(of("arn:aws:iam::123456789012:user/x/credvend"), "arn:aws:iam::123456789012:user/x/credvend");
    }
}
