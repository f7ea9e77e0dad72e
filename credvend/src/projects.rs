//! The project map: which project has which roles, as `projects.toml` declares it.
//!
//! ```toml
//! [projects.genomics]
//! role-arn = "arn:aws:iam::123456789012:role/genomics"   # the role named "default": the seed's RoleArn
//! duration = "1h"                                        # 15m to 12h, 1h if absent
//!
//! [projects.genomics.roles.train]
//! role-arn = "arn:aws:iam::123456789012:role/team/train"
//! source-identity = true                                 # the role must trust sts:SetSourceIdentity
//! session-tags = true                                    # the role must trust sts:TagSession
//!
//! [projects.Climate]
//! account = "climate"                                    # Slurm writes accounts in lower case
//! role-arn = "arn:aws-us-gov:iam::123456789012:role/climate"
//! ```
//!
//! A project id is a Slurm account, or what a head states as `projectId`; case matters there. Slurm does not keep it, so
//! an id with capitals names its `account` itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

pub mod edit;
mod parse;

pub use parse::{Problem, parse};

use credd_protocol::{ProjectId, RoleArn, RoleName};

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
}

impl ProjectMap {
    /// Reads a file.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub fn load(path: &Path) -> Result<Self, Vec<Problem>> {
        parse(&edit::read(path)?)
    }

    /// The project that a head names. Case matters.
    pub fn by_id(&self, project: &ProjectId) -> Option<&Roles> {
        self.projects.get(project)
    }

    /// The project of a Slurm account.
    pub fn by_account(&self, account: &ProjectId) -> Option<(&ProjectId, &Roles)> {
        let project = self.accounts.get(account)?;
        self.projects.get_key_value(project)
    }
}

/// The map in force. A reload replaces it as a whole or not at all.
#[derive(Default)]
pub struct Projects(RwLock<Arc<ProjectMap>>);

impl Projects {
    /// Starts with this map.
    pub fn new(map: ProjectMap) -> Self {
        Projects(RwLock::new(Arc::new(map)))
    }

    /// Starts with a file's map.
    ///
    /// # Errors
    /// Everything that is wrong with the file, at once.
    pub fn load(path: &Path) -> Result<Self, Vec<Problem>> {
        ProjectMap::load(path).map(Projects::new)
    }

    /// Puts the file's map in force, as it is now.
    ///
    /// # Errors
    /// Everything that is wrong with the file; the map in force stays.
    pub fn reload(&self, path: &Path) -> Result<(), Vec<Problem>> {
        self.replace(ProjectMap::load(path)?);
        Ok(())
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
