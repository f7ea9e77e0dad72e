//! The project map: which project has which roles, as `projects.toml` declares it.
//!
//! ```toml
//! [projects.genomics]
//! role-arn = "arn:aws:iam::123456789012:role/genomics"   # the role named "default": the RoleArn of the IAM Credentials
//! API (v1) duration = "1h"                                        # 15m to 12h, 1h if absent clusters = ["lab"]
//! # whose jobs may be of it; needed where there are several
//!
//! [projects.genomics.roles.train]
//! role-arn = "arn:aws:iam::123456789012:role/team/train"
//! source-identity = true                                 # the role must trust sts:SetSourceIdentity
//! session-tags = true                                    # the role must trust sts:TagSession
//! revoke-on-end = true                                   # what a job got dies in AWS when the job ends
//! session-name = "{cluster}-{user}-{job}"                # instead of credvend.toml's
//!
//! [projects.Climate]
//! account = "climate"                                    # Slurm writes accounts in lower case
//! role-arn = "arn:aws:iam::210987654321:role/climate"
//! ```
//!
//! A project id is a Slurm account, or what a head states as `projectId`; case matters there. Slurm does not keep it, so
//! an id with capitals names its `account` itself.
//!
//! Where an upstream is asked instead of AWS (`[upstream]` in credvend.toml), it alone decides which role a project has, and
//! how its credentials are made. A project's table then may be empty; a `role-arn` in it is what the upstream must give, and
//! anything else is refused.
//!
//! credvend has one identity, and an identity is of one AWS partition: where its region is known, a role of another
//! partition is refused, for AWS would refuse it to every job.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

pub mod edit;
mod parse;
pub mod policies;

pub use parse::{Problem, parse, parse_in, parse_upstream};

use credd_protocol::{ClusterName, ProjectId, Region, RoleArn, RoleName};

use crate::session_name::Template;

/// One role of a project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Which role.
    pub arn: RoleArn,
    /// How long credentials live, in seconds: 900 to 43,200.
    pub duration_seconds: u32,
    /// Send `SourceIdentity` = the user's name. The role must trust `sts:SetSourceIdentity`.
    pub source_identity: bool,
    /// Send session tags (cluster, user, project, job). The role must trust `sts:TagSession`.
    pub session_tags: bool,
    /// Deny in AWS what a session got when the session ends.
    pub revoke_on_end: bool,
    /// The role's own `session-name`; `None`: credvend.toml's.
    pub session_name: Option<Template>,
}

/// Stands for the role that an upstream has for a project, where projects.toml does not say which that must be. AWS gives
/// nobody the account 000000000000.
pub fn upstreams_role(project: &ProjectId) -> RoleArn {
    const NOBODYS: &str = "arn:aws:iam::000000000000:role";
    let named = format!("{NOBODYS}/{}/from-upstream", project.as_str()).parse();
    named.or_else(|_| format!("{NOBODYS}/from-upstream").parse()).expect("a valid ARN")
}

/// Whether this stands for whatever role the upstream has.
pub fn is_upstreams(role: &RoleArn) -> bool {
    role.account_id() == "000000000000" && role.role_name() == "from-upstream"
}

/// A project's roles, `default` among them.
pub type Roles = BTreeMap<RoleName, Role>;

/// All projects, as one version of the file has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProjectMap {
    /// By project id; case matters.
    pub projects: BTreeMap<ProjectId, Roles>,
    /// Which Slurm account (lower case, as Slurm writes it) is which project: one entry for each project.
    pub accounts: BTreeMap<ProjectId, ProjectId>,
    /// The clusters of a project that names them.
    pub clusters: BTreeMap<ProjectId, BTreeSet<ClusterName>>,
    /// Where a project is served that names none. Not the file's to say: see `any-cluster` of credvend.toml.
    pub unassigned: Unassigned,
}

/// Where a project is served that names no clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unassigned {
    /// Everywhere: there is one cluster, or an administrator wants it so.
    #[default]
    Everywhere,
    /// Everywhere in this release, and nowhere from [`ASSIGNED_FROM`] on.
    EverywhereStill,
    /// Nowhere: the head of one cluster, or an account of the same name there, must not open another one's project.
    Nowhere,
}

/// The first release that serves a project without clusters nowhere, where several clusters are configured.
pub const ASSIGNED_FROM: &str = "0.2";

/// The AWS partition of a region: `aws-cn` of `cn-…`, `aws-us-gov` of `us-gov-…`, `aws` of nearly all others.
/// Identities, roles and endpoints of one partition mean nothing in another.
pub fn partition_of(region: &Region) -> &'static str {
    // The SDKs' partitions.json has them by these first parts.
    let known = [
        ("cn-", "aws-cn"),
        ("us-gov-", "aws-us-gov"),
        ("us-iso-", "aws-iso"),
        ("us-isob-", "aws-iso-b"),
        ("eu-isoe-", "aws-iso-e"),
        ("us-isof-", "aws-iso-f"),
        ("eusc-", "aws-eusc"),
    ];
    known.iter().find(|(first, _)| region.as_str().starts_with(first)).map_or("aws", |(_, partition)| partition)
}

/// Why AWS would never give credentials of this role to an identity of that region.
pub fn foreign_role(arn: &RoleArn, region: &Region) -> Option<String> {
    let partition = partition_of(region);
    (arn.partition() != partition).then(|| {
        format!(
            "role {} is of the AWS partition {}, but credvend's region {region} is of {partition}; an identity of one \
             partition cannot assume a role of another: correct the ARN or [aws] region, or run another credvend there",
            arn.as_str(),
            arn.partition()
        )
    })
}

impl ProjectMap {
    /// Reads a file. With credvend's region, all roles must be of its AWS partition.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub fn load(path: &Path, region: Option<&Region>) -> Result<Self, Vec<Problem>> {
        parse_in(&edit::read(path)?, region)
    }

    /// Reads a file whose roles an upstream has.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub fn load_upstream(path: &Path) -> Result<Self, Vec<Problem>> {
        parse_upstream(&edit::read(path)?)
    }

    /// What is new, gone or different, in words; empty if nothing is.
    pub fn changes_since(&self, before: &ProjectMap) -> String {
        let roles = |map: &ProjectMap| -> BTreeMap<(ProjectId, RoleName), Role> {
            let of = |(project, roles): (&ProjectId, &Roles)| -> Vec<_> {
                roles.iter().map(|(name, role)| ((project.clone(), name.clone()), role.clone())).collect()
            };
            map.projects.iter().flat_map(of).collect()
        };
        let (old, new) = (roles(before), roles(self));
        let arn = |role: &Role| role.arn.as_str().to_owned();
        let mut changes: Vec<String> = vec![];
        for ((project, name), role) in &new {
            match old.get(&(project.clone(), name.clone())) {
                None => changes.push(format!("+ {project} {name} {}", arn(role))),
                Some(was) if was.arn != role.arn => {
                    changes.push(format!("~ {project} {name} {} (was {})", arn(role), arn(was)));
                }
                Some(was) if was != role => changes.push(format!("~ {project} {name} {}", arn(role))),
                Some(_) => {}
            }
        }
        let gone = old.iter().filter(|(key, _)| !new.contains_key(*key));
        changes.extend(gone.map(|((project, name), role)| format!("- {project} {name} {}", arn(role))));
        let accounts =
            self.accounts.iter().filter(|(account, project)| before.accounts.get(*account) != Some(*project));
        changes.extend(accounts.map(|(account, project)| format!("account {account} = {project}")));
        let clusters = self.projects.keys().filter(|project| {
            before.projects.contains_key(*project) && self.clusters.get(*project) != before.clusters.get(*project)
        });
        changes.extend(clusters.map(|project| match self.clusters.get(project) {
            Some(own) => format!("~ {project} on {}", listed(own)),
            None => format!("~ {project} names no clusters"),
        }));
        changes.join("; ")
    }

    /// The project that a head names. Case matters.
    pub fn by_id(&self, project: &ProjectId) -> Option<&Roles> {
        self.projects.get(project)
    }

    /// Why a project is not served on a cluster; `None` if it is.
    pub fn why_not_on(&self, project: &ProjectId, cluster: &ClusterName) -> Option<String> {
        match self.clusters.get(project) {
            Some(own) if own.contains(cluster) => None,
            Some(own) => Some(format!("it is of {}", listed(own))),
            None if self.unassigned == Unassigned::Nowhere => {
                Some("it names no clusters, and there are several: add clusters = [...] to it".into())
            }
            None => None,
        }
    }

    /// The projects that name no clusters.
    pub fn without_clusters(&self) -> impl Iterator<Item = &ProjectId> {
        self.projects.keys().filter(|project| !self.clusters.contains_key(*project))
    }

    /// The project of a Slurm account.
    pub fn by_account(&self, account: &ProjectId) -> Option<(&ProjectId, &Roles)> {
        let project = self.accounts.get(account)?;
        self.projects.get_key_value(project)
    }
}

/// Clusters in a sentence.
fn listed(clusters: &BTreeSet<ClusterName>) -> String {
    let names: Vec<&str> = clusters.iter().map(ClusterName::as_str).collect();
    format!("cluster{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
}

/// The map in force. A reload replaces it as a whole or not at all.
#[derive(Default)]
pub struct Projects(RwLock<Arc<ProjectMap>>);

impl Projects {
    /// Starts with this map.
    pub fn new(map: ProjectMap) -> Self {
        Projects(RwLock::new(Arc::new(map)))
    }

    /// The map in force.
    pub fn current(&self) -> Arc<ProjectMap> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another map in force.
    pub fn replace(&self, map: ProjectMap) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(map);
    }
}

#[cfg(test)]
mod tests;
