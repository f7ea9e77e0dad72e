//! Slurm as credvend sees it: squeue, sinfo and scontrol, scripts that print a file and keep count.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use credvend::attest::squeue::made_up as squeue;

const SETTINGS: &str = "Configuration data as of 2026-01-31T12:00:00\n\
    AccountingStorageEnforce = associations,limits\n\
    AccountingStorageType   = accounting_storage/slurmdbd\n\
    ClusterName             = sim\n\
    PrivateData             = none\n\
    SlurmUser               = slurm(64030)\n\n\
    Slurmctld(primary) at sim is UP\n";

/// A job that runs.
#[derive(Debug, Clone)]
pub struct Job {
    pub id: u32,
    pub uid: u32,
    pub user: String,
    pub account: String,
    /// As a hostlist.
    pub nodes: String,
}

/// The commands' directory.
pub struct Slurm(PathBuf);

/// How often Slurm was asked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Questions {
    /// About single jobs.
    pub jobs: usize,
    /// For all jobs.
    pub listings: usize,
    /// For all nodes' addresses.
    pub nodes: usize,
}

impl Slurm {
    /// Puts the commands into `dir`.
    pub fn new(dir: &Path, jobs: &[Job], nodes: &[String]) -> Result<Self> {
        let slurm = Slurm(dir.to_owned());
        let mut queue = squeue::header();
        queue.extend(jobs.iter().map(|j| squeue::running(j.id, j.uid, &j.user, &j.account, &j.nodes)));
        let mut addresses = format!("{:129}NODE_ADDR\n", "NODELIST");
        nodes.iter().for_each(|node| addresses.push_str(&format!("{node:129}127.0.0.1\n")));
        for (name, text) in [("squeue", &*queue), ("sinfo", &*addresses), ("scontrol", SETTINGS)] {
            let (command, answer) = (dir.join(name), dir.join(format!("{name}.answer")));
            fs::write(&answer, text)?;
            let asked = slurm.asked();
            fs::write(
                &command,
                format!("#!/bin/sh\necho {name} \"$*\" >>{}\nexec cat {}\n", asked.display(), answer.display()),
            )?;
            fs::set_permissions(&command, fs::Permissions::from_mode(0o755))?;
        }
        Ok(slurm)
    }

    fn asked(&self) -> PathBuf {
        self.0.join("asked")
    }

    /// So far.
    pub fn questions(&self) -> Questions {
        let text = fs::read_to_string(self.asked()).unwrap_or_default();
        let count = |holds: &dyn Fn(&str) -> bool| text.lines().filter(|line| holds(line)).count();
        Questions {
            jobs: count(&|line| line.starts_with("squeue") && line.contains("--jobs=")),
            listings: count(&|line| line.starts_with("squeue") && !line.contains("--jobs=")),
            nodes: count(&|line| line.starts_with("sinfo")),
        }
    }
}

impl std::ops::Sub for Questions {
    type Output = Questions;

    fn sub(self, before: Questions) -> Questions {
        Questions {
            jobs: self.jobs - before.jobs,
            listings: self.listings - before.listings,
            nodes: self.nodes - before.nodes,
        }
    }
}
