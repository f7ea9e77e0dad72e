//! The configuration's parts: what `serve` runs on, and what `check-config` looks at.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use credd_protocol::{ClusterName, ProjectId, Region};

use crate::attest::Attestor;
use crate::attest::slurm::{Slurm, SlurmConfig};
use crate::config::{self, Attest, Config, ProjectsFrom, StoreKind};
use crate::deny::Denier;
use crate::deny::iam::IamDenier;
use crate::deny::policy::USUAL_ROOM;
use crate::metrics::Metrics;
use crate::metrics::measured::MeasuredSlurm;
use crate::projects::{ASSIGNED_FROM, Problem, ProjectMap, Unassigned};
use crate::session_name::Part;
use crate::source::Source;
use crate::source::aws::{Aws, AwsOptions};
use crate::source::sts::StsSource;
use crate::source::upstream;
use crate::store::Store;
use crate::store::dynamo::{DynamoStore, ProjectsError, Tables};
use crate::store::sqlite::SqliteStore;
use crate::vending::{AddressCheck, Cluster, NodeAddresses, REQUIRED_FROM};

/// The attestor of a cluster whose jobs Slurm states.
pub fn attestor(cluster: &config::Cluster) -> Option<Arc<dyn Attestor>> {
    if cluster.attest == Attest::Head {
        return None;
    }
    let slurm = SlurmConfig {
        slurm_conf: cluster.slurm_conf.clone(),
        bin_dir: cluster.slurm_bin.clone(),
        sees_private_jobs: cluster.sees_private_jobs,
        ..SlurmConfig::new(cluster.name.clone())
    };
    Some(Arc::new(Slurm::new(slurm)))
}

/// All clusters, for the service.
pub fn clusters(config: &Config, metrics: &Arc<Metrics>) -> HashMap<ClusterName, Cluster> {
    let measured = |cluster: &config::Cluster| -> Option<Arc<dyn Attestor>> {
        let inner = attestor(cluster)?;
        Some(Arc::new(MeasuredSlurm::new(cluster.name.clone(), metrics.clone(), inner)))
    };
    let cluster = |cluster: &config::Cluster| Cluster {
        attestor: measured(cluster),
        trust_unenforced_accounts: cluster.trust_unenforced_accounts,
        addresses: node_addresses(cluster),
        head_session_max: time::Duration::days(cluster.head_session_max_days.into()),
    };
    config.clusters.iter().map(|c| (c.name.clone(), cluster(c))).collect()
}

/// A cluster whose Slurm is asked without counting, for `check-config`.
pub fn cluster(cluster: &config::Cluster) -> Cluster {
    Cluster {
        attestor: attestor(cluster),
        trust_unenforced_accounts: cluster.trust_unenforced_accounts,
        addresses: node_addresses(cluster),
        ..Cluster::default()
    }
}

fn node_addresses(cluster: &config::Cluster) -> NodeAddresses {
    NodeAddresses {
        check: cluster.node_address_check.unwrap_or_default(),
        decided: cluster.node_address_check.is_some(),
        more: cluster.node_addresses.clone(),
    }
}

/// The clusters whose nodes may prove themselves by MUNGE, with the socket of its munged.
pub fn munge_sockets(config: &Config) -> Vec<(ClusterName, Option<PathBuf>)> {
    let nodes = config.clusters.iter().filter(|c| c.attest == Attest::Slurm);
    nodes.map(|c| (c.name.clone(), c.munge_socket.clone())).collect()
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
    if config.upstream.is_some() && (config.aws.sts_endpoint.is_some() || config.aws.iam_endpoint.is_some()) {
        warnings
            .push("aws.sts-endpoint and aws.iam-endpoint have no effect: [upstream] is asked instead of AWS".into());
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

/// What an administrator should know about clusters whose nodes' addresses are not required to agree with Slurm's. A running
/// service says it in `status` with the nodes that are concerned.
pub fn address_warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    for cluster in config.clusters.iter().filter(|cluster| cluster.attest == Attest::Slurm) {
        let name = &cluster.name;
        let word = match cluster.node_address_check {
            Some(AddressCheck::Require) => continue,
            Some(AddressCheck::Warn) => "\"warn\"".to_owned(),
            Some(AddressCheck::Off) => "\"off\"".to_owned(),
            None => format!("unset, which is \"warn\" in this release and \"require\" from {REQUIRED_FROM} on"),
        };
        warnings.push(format!(
            "cluster {name}: node-address-check is {word}: root on any node can use another node's name; \
             `credvend status` lists the nodes that \"require\" would refuse"
        ));
    }
    warnings
}

/// What an administrator should know about the map: whose credentials could not be revoked, or only with others'.
pub fn map_warnings(config: &Config, map: &ProjectMap) -> Vec<String> {
    let mut warnings = cluster_warnings(config, map);
    if config.upstream.is_some() {
        return warnings;
    }
    let roles = || map.projects.iter().flat_map(|(project, roles)| roles.iter().map(move |role| (project, role)));
    let accounts: BTreeSet<&str> = roles().map(|(_, (_, role))| role.arn.account_id()).collect();
    let revokers: BTreeSet<&str> = config.aws.revoker_roles.iter().map(|arn| arn.account_id()).collect();
    for account in accounts.difference(&revokers) {
        warnings.push(format!(
            "AWS account {account} has no revoker role in [aws] revoker-roles: a revocation ends sessions there, but what \
             was issued lives until it expires; `credvend project policy` prints what is needed"
        ));
    }
    for (project, (name, role)) in roles().filter(|(_, (_, role))| role.revoke_on_end) {
        let template = role.session_name.as_ref().unwrap_or(&config.names.template);
        if !template.has(Part::Job) {
            warnings.push(format!(
                "role {name} of project {project} has revoke-on-end, and its session-name {template} does not name the \
                 job: when a job ends, the credentials of the same user's other jobs there die too, and programs that \
                 keep credentials fail until they fetch new ones; use a session-name with {{job}}"
            ));
        }
        let hourly = f64::from(USUAL_ROOM) * 3600.0 / f64::from(role.duration_seconds);
        warnings.push(format!(
            "role {name} of project {project} has revoke-on-end: its inline policy has room for some {USUAL_ROOM} names of \
             ended jobs at a time, which is {hourly:.0} an hour with credentials that live {} minutes; where more jobs end, the \
             oldest of these names are not denied and live until they expire (what is revoked by hand comes first); a shorter \
             duration makes room",
            role.duration_seconds / 60
        ));
    }
    warnings
}

/// Which projects are served where, as far as that is no administrator's decision, or helps nobody.
fn cluster_warnings(config: &Config, map: &ProjectMap) -> Vec<String> {
    let mut warnings = Vec::new();
    if map.projects.is_empty() {
        warnings.push("there are no projects: every job is refused (UnknownProject); add them to projects.toml".into());
        return warnings;
    }
    let without: Vec<&str> = map.without_clusters().map(ProjectId::as_str).collect();
    let named =
        || format!("{}{}", without[..without.len().min(10)].join(", "), if without.len() > 10 { ", …" } else { "" });
    let count =
        || if without.len() == 1 { "1 project names".to_owned() } else { format!("{} projects name", without.len()) };
    match map.unassigned {
        Unassigned::EverywhereStill if !without.is_empty() => warnings.push(format!(
            "{} no clusters ({}): the head of any cluster, and any account of that name there, gets the roles. Add \
             clusters = [...] to each, or any-cluster = true to credvend.toml if that is meant; release {ASSIGNED_FROM} \
             serves them nowhere otherwise",
            count(),
            named()
        )),
        Unassigned::Nowhere if !without.is_empty() => warnings.push(format!(
            "{} no clusters ({}) and, with any-cluster = false, {} served nowhere: add clusters = [...]",
            count(),
            named(),
            if without.len() == 1 { "is" } else { "are" },
        )),
        _ => {}
    }
    for cluster in &config.clusters {
        if map.projects.keys().all(|project| map.why_not_on(project, &cluster.name).is_some()) {
            warnings.push(format!("cluster {}: no project is served there: every job is refused", cluster.name));
        }
    }
    let here = |own: &BTreeSet<ClusterName>| config.clusters.iter().any(|cluster| own.contains(&cluster.name));
    for (project, _) in map.clusters.iter().filter(|(_, own)| !here(own)) {
        warnings.push(format!("project {project} names no cluster that credvend.toml has: it is served nowhere here"));
    }
    warnings
}

/// The store, and the same one as what it is where it is DynamoDB.
pub struct OpenStore {
    pub store: Arc<dyn Store>,
    pub dynamo: Option<Arc<DynamoStore>>,
}

/// The configured store. SQLite's file is opened, and made if there is none; of DynamoDB nothing is asked yet.
pub async fn store(config: &Config) -> anyhow::Result<OpenStore> {
    Ok(match config.store.kind {
        StoreKind::Sqlite => OpenStore { store: Arc::new(SqliteStore::open(&config.store.path)?), dynamo: None },
        StoreKind::Dynamodb => {
            let dynamo = Arc::new(dynamo(config).await?);
            OpenStore { store: dynamo.clone(), dynamo: Some(dynamo) }
        }
    })
}

/// The tables of DynamoDB that the configuration names, whatever its kind of store.
pub async fn dynamo(config: &Config) -> anyhow::Result<DynamoStore> {
    let region = match &config.store.region {
        Some(region) => region.clone(),
        None => region(config)?,
    };
    let options = AwsOptions { allow_instance_metadata: config.aws.allow_instance_metadata, ..AwsOptions::new(region) };
    let aws = Aws::load(options).await;
    Ok(DynamoStore::new(aws.dynamodb(config.store.endpoint.as_deref()), Tables::new(&config.store.table_prefix)))
}

/// credvend's region.
pub fn region(config: &Config) -> anyhow::Result<Region> {
    let set = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    match &config.aws.region {
        Some(region) => Ok(region.clone()),
        None => set("AWS_REGION")
            .or_else(|| set("AWS_DEFAULT_REGION"))
            .context("no AWS region: set [aws] region, or AWS_REGION")?
            .parse()
            .context("AWS_REGION"),
    }
}

/// The map of projects: of the file, or of the store's table.
pub async fn projects_in_force(config: &Config, dynamo: Option<&DynamoStore>) -> Result<ProjectMap, Vec<String>> {
    match (config.projects_from, dynamo) {
        (ProjectsFrom::Store, Some(dynamo)) => match dynamo.projects(config.aws.region.as_ref()).await {
            Ok((_, map)) => in_order(config, map),
            Err(ProjectsError::Invalid(problems)) => {
                let table = &dynamo.tables().projects;
                Err(problems.iter().map(|problem| format!("DynamoDB table {table}: {problem}")).collect())
            }
            Err(other) => Err(vec![other.to_string()]),
        },
        _ => projects(config),
    }
}

/// projects.toml, or every problem with it.
pub fn projects(config: &Config) -> Result<ProjectMap, Vec<String>> {
    let map = match &config.upstream {
        Some(_) => ProjectMap::load_upstream(&config.projects),
        None => ProjectMap::load(&config.projects, config.aws.region.as_ref()),
    };
    in_order(config, map.map_err(|problems| told(config, &problems))?)
}

/// What of a map only the rest of the configuration shows.
fn in_order(config: &Config, mut map: ProjectMap) -> Result<ProjectMap, Vec<String>> {
    map.unassigned = match (config.clusters.len(), config.any_cluster) {
        (..=1, _) | (_, Some(true)) => Unassigned::Everywhere,
        (_, Some(false)) => Unassigned::Nowhere,
        (_, None) => Unassigned::EverywhereStill,
    };
    let roles = map.projects.iter().flat_map(|(project, roles)| roles.iter().map(move |role| (project, role)));
    let unclear = roles.filter_map(|(project, (role, configured))| {
        let template = configured.session_name.as_ref().filter(|t| !t.has(Part::Cluster))?;
        let text = format!("session-name {template} of role {role} of project {project}: {}", config::NO_CLUSTER);
        Some(Problem { line: 0, text })
    });
    let problems: Vec<Problem> = unclear.take(if config.clusters.len() > 1 { 100 } else { 0 }).collect();
    if problems.is_empty() { Ok(map) } else { Err(told(config, &problems)) }
}

/// Problems with projects.toml, each with the file's name.
pub fn told(config: &Config, problems: &[Problem]) -> Vec<String> {
    problems.iter().map(|problem| format!("{}: {problem}", config.projects.display())).collect()
}

/// The upstream that is asked instead of AWS, if there is one.
pub fn upstream(config: &Config) -> Option<upstream::Options> {
    let central = config.upstream.as_ref()?;
    let known = match (central.pin, &central.ca_file) {
        (Some(pin), _) => upstream::Known::Pin(pin),
        (None, Some(path)) => upstream::Known::CaFile(path.clone()),
        (None, None) => upstream::Known::System,
    };
    Some(upstream::Options {
        url: central.url.clone(),
        known,
        head_secret_file: central.head_secret_file.clone(),
        cluster: central.cluster.clone(),
        clusters: config.clusters.iter().map(|cluster| cluster.name.clone()).collect(),
        timeouts: upstream::Timeouts::default(),
    })
}

/// Where credentials come from, and what kills them.
pub async fn aws(config: &Config) -> anyhow::Result<(Arc<dyn Source>, Arc<dyn Denier>)> {
    let region = region(config)?;
    let options = AwsOptions {
        sts_endpoint: config.aws.sts_endpoint.clone(),
        iam_endpoint: config.aws.iam_endpoint.clone(),
        allow_instance_metadata: config.aws.allow_instance_metadata,
        rate: config.sts,
        ..AwsOptions::new(region)
    };
    let aws = Aws::load(options).await;
    Ok((Arc::new(StsSource::new(aws.clone())), Arc::new(IamDenier::new(aws, config.aws.revoker_roles.clone()))))
}
