//! What the server process may still ask of the kernel once it has its sockets and its configuration.
//!
//! It reads what jobs write and what comes over the network. Should somebody take it over there, they find a process that
//! can start no program and no process, can open no file for writing, can send no descriptor to anybody (the listener is
//! the one that matters), and can undo none of that. Its parent can therefore end it, and then nobody holds the listener
//! but the parent.
//!
//! Two layers. **seccomp** ([`syscalls`]) is on every kernel that Slurm runs on: it decides by number and by the
//! arguments that are plain numbers. **Landlock**, from Linux 5.13 on, decides by path: what name resolution and the
//! system's certificates need may be read, nothing else. Both are inherited by all threads that follow, so [`enter`] is
//! called before there are any.

mod syscalls;

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
    path_beneath_rules,
};

/// Where the resolver's configuration and modules are, and the system's certificates: read-only. `/run` holds what
/// `resolv.conf` is a link to, and is made anew at each boot, so that its directories cannot be named one by one.
const READABLE: [&str; 6] = ["/etc", "/usr", "/lib", "/lib64", "/lib32", "/run"];

/// The newest rights that are asked for; an older kernel grants what it knows.
const NEWEST: ABI = ABI::V6;

/// What is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// Landlock restricts every right that was asked for.
    Restricted,
    /// The kernel knows some of them only.
    Partly,
    /// The kernel has no Landlock, or it is switched off.
    Unrestricted,
}

/// Why the process is not confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Landlock's.
    #[error("Landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// seccomp's.
    #[error("seccomp: {0}")]
    Seccomp(#[from] seccompiler::Error),
}

/// Confines this process and all threads that it makes from here on, for ever. The directories below `cgroups` can still be
/// listed.
///
/// # Errors
/// [`SandboxError`]; what is in force by then stays so.
pub fn enter(cgroups: Option<&Path>) -> Result<Files, SandboxError> {
    let files = restrict_files(cgroups)?;
    // Last: after it, no more can be asked for.
    for program in syscalls::programs()? {
        seccompiler::apply_filter(&program)?;
    }
    Ok(files)
}

fn restrict_files(cgroups: Option<&Path>) -> Result<Files, SandboxError> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rules(path_beneath_rules(READABLE, AccessFs::ReadFile | AccessFs::ReadDir))?
        .add_rules(path_beneath_rules(cgroups, AccessFs::ReadDir))?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Files::Restricted,
        RulesetStatus::PartiallyEnforced => Files::Partly,
        RulesetStatus::NotEnforced => Files::Unrestricted,
    })
}
