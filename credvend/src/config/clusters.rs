//! Each `[[cluster]]`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use credd_protocol::{ClusterName, NodeName};
use toml_edit::Table;

use super::fields::Section;
use crate::vending::AddressCheck;

/// Who states the facts about a cluster's jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attest {
    /// The cluster's own slurmctld, asked from here.
    Slurm,
    /// A head that pushes, as in the IAM Credentials API (v1).
    Head,
}

/// `[[cluster]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// `name`: `ClusterName` of its slurm.conf.
    pub name: ClusterName,
    /// `attest`: `slurm` or `head`.
    pub attest: Attest,
    /// `slurm-conf`: `SLURM_CONF` for the questions to slurmctld; unset, Slurm's own default.
    pub slurm_conf: Option<PathBuf>,
    /// `slurm-bin`: the directory of squeue, sinfo and scontrol; unset, the usual ones are looked into. `PATH` does not count.
    pub slurm_bin: Option<PathBuf>,
    /// `sees-private-jobs`: believe that a job is gone although the site has `PrivateData=jobs`: credvend's user is a
    /// Slurm operator there.
    pub sees_private_jobs: bool,
    /// `head-secret-file`: one file or several; every line is a valid secret.
    pub head_secret_files: Vec<PathBuf>,
    /// `trust-unenforced-accounts`.
    pub trust_unenforced_accounts: bool,
    /// `node-address-check`: `off`, `warn` or `require`; unset, `warn` in this release and `require` from the next one on.
    pub node_address_check: Option<AddressCheck>,
    /// `node-addresses`: addresses that nodes have besides Slurm's NodeAddr.
    pub node_addresses: BTreeMap<NodeName, Vec<IpAddr>>,
    /// `head-session-max-days`: a head's session that is older is ended.
    pub head_session_max_days: u32,
    /// `munge-socket`: of the munged that has this cluster's key; unset, libmunge's default.
    pub munge_socket: Option<PathBuf>,
}

pub(super) fn read_clusters<'s>(root: &Section<'s, '_>, empty: &'s Table) -> Vec<Cluster> {
    let sections = root.sections("cluster");
    if sections.is_empty() {
        root.problem("at least one [[cluster]] is needed");
    }
    let (mut names, mut clusters) = (BTreeSet::new(), Vec::new());
    for section in sections {
        let name: Option<ClusterName> = section.parsed("name");
        let attest = section.word("attest", &[("slurm", Attest::Slurm), ("head", Attest::Head)]);
        let check = [("off", AddressCheck::Off), ("warn", AddressCheck::Warn), ("require", AddressCheck::Require)];
        let cluster = |name| Cluster {
            name,
            attest: attest.unwrap_or(Attest::Slurm),
            slurm_conf: section.path("slurm-conf"),
            slurm_bin: section.path("slurm-bin"),
            sees_private_jobs: section.boolean("sees-private-jobs").unwrap_or(false),
            head_secret_files: section.paths("head-secret-file"),
            trust_unenforced_accounts: section.boolean("trust-unenforced-accounts").unwrap_or(false),
            node_address_check: section.word("node-address-check", &check),
            node_addresses: read_node_addresses(section.section("node-addresses", empty)),
            head_session_max_days: section.number("head-session-max-days", 1, 3650).unwrap_or(30),
            munge_socket: section.path("munge-socket"),
        };
        match name {
            Some(name) => {
                if !names.insert(name.clone()) {
                    section.problem_at("name", format!("cluster {name} is there twice"));
                }
                clusters.push(cluster(name));
            }
            None => {
                // The rest is read nevertheless, so that its problems are listed too.
                let unnamed = cluster("unnamed".parse().expect("a valid name"));
                if !section.has("name") {
                    section.problem("needs a name");
                }
                drop(unnamed);
            }
        }
        section.finish();
    }
    clusters
}

/// `{ n1 = "10.0.0.1", n2 = ["10.0.0.2", "fd00::2"] }`.
fn read_node_addresses(section: Section<'_, '_>) -> BTreeMap<NodeName, Vec<IpAddr>> {
    let mut read = BTreeMap::new();
    for (key, texts) in section.all_texts() {
        let node: NodeName = match key.parse() {
            Ok(node) => node,
            Err(error) => {
                section.problem_at(&key, error);
                continue;
            }
        };
        let address = |text: &String| match text.parse::<IpAddr>() {
            Ok(ip) => Some(ip.to_canonical()),
            Err(_) => {
                section.problem_at(&key, format!("{text:?} is no IP address"));
                None
            }
        };
        read.insert(node, texts.iter().filter_map(address).collect());
    }
    read
}
