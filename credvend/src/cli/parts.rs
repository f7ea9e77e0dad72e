//! The configuration's parts: what `serve` runs on, and what `check-config` looks at.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use credd_protocol::ClusterName;

use crate::attest::Attestor;
use crate::attest::slurm::{Slurm, SlurmConfig};
use crate::config::{self, Attest, Config};
use crate::vending::Cluster;

/// The attestor of a cluster whose jobs Slurm states.
pub fn attestor(cluster: &config::Cluster) -> Option<Arc<dyn Attestor>> {
    if cluster.attest == Attest::Head {
        return None;
    }
    let slurm = SlurmConfig {
        slurm_conf: cluster.slurm_conf.clone(),
        bin_dir: cluster.slurm_bin.clone(),
        ..SlurmConfig::new(cluster.name.clone())
    };
    Some(Arc::new(Slurm::new(slurm)))
}

/// All clusters, for the service.
pub fn clusters(config: &Config) -> HashMap<ClusterName, Cluster> {
    let cluster = |cluster: &config::Cluster| Cluster {
        attestor: attestor(cluster),
        trust_unenforced_accounts: cluster.trust_unenforced_accounts,
        node_address_check: cluster.node_address_check,
    };
    config.clusters.iter().map(|c| (c.name.clone(), cluster(c))).collect()
}

/// The head secrets' files with their cluster.
pub fn secret_files(config: &Config) -> Vec<(ClusterName, PathBuf)> {
    let files = |cluster: &config::Cluster| {
        let name = cluster.name.clone();
        cluster.head_secret_files.clone().into_iter().map(move |path| (name.clone(), path))
    };
    config.clusters.iter().flat_map(files).collect()
}

/// What an administrator should know about a configuration that is valid.
pub fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    for cluster in &config.clusters {
        let name = &cluster.name;
        if cluster.trust_unenforced_accounts {
            warnings.push(format!(
                "cluster {name}: trust-unenforced-accounts is on: where Slurm does not enforce accounts, any user can \
                 claim any project"
            ));
        }
        if cluster.attest == Attest::Head && cluster.head_secret_files.is_empty() && config.tls.client_ca.is_none() {
            warnings
                .push(format!("cluster {name}: no head can prove itself: head-secret-file and client-ca are unset"));
        }
    }
    if config.aws.allow_instance_metadata {
        warnings.push(
            "aws.allow-instance-metadata is on: every process on this host that reaches the metadata service has \
             credvend's own authority"
                .into(),
        );
    }
    warnings
}

/// projects.toml.
pub fn projects(_config: &Config) -> Result<crate::projects::ProjectMap, Vec<String>> {
    Ok(Default::default())
}

/// Where credentials come from, and what kills them.
pub async fn aws(_config: &Config) -> anyhow::Result<(Arc<dyn crate::source::Source>, Arc<dyn crate::deny::Denier>)> {
    Ok((Arc::new(Absent), Arc::new(Absent)))
}

struct Absent;

#[async_trait::async_trait]
impl crate::source::Source for Absent {
    async fn assume(
        &self,
        _: &crate::source::AssumeRequest,
    ) -> Result<crate::source::Assumed, crate::source::SourceError> {
        Err(crate::source::SourceError::Unavailable("not built yet".into()))
    }
    async fn identity(&self) -> Result<String, crate::source::SourceError> {
        Err(crate::source::SourceError::Unavailable("not built yet".into()))
    }
}

#[async_trait::async_trait]
impl crate::deny::Denier for Absent {
    async fn project(
        &self,
        _: &credd_protocol::RoleArn,
        _: &[crate::store::Revocation],
    ) -> Result<(), crate::deny::DenyError> {
        Err(crate::deny::DenyError::Unavailable("not built yet".into()))
    }
}
