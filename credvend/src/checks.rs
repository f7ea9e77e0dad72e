//! Causes for which credvend refuses every job of a cluster although its configuration is valid. They are found by asking
//! Slurm, munged and the resolver. `check-config --online` and the running service use the same checks, so that both report
//! the same problems.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use credd_protocol::{ClusterName, NodeName};
use munge::{EncodeOptions, Munge};
use tokio::task::JoinSet;

use crate::attest::Attestor;
use crate::refusal::Refusal;
use crate::vending::{AddressCheck, Cluster};

/// Maximum number of node names that one check resolves.
const MAX_RESOLVED: usize = 2000;
/// Maximum number of names that are resolved at the same time.
const AT_ONCE: usize = 32;
/// Timeout for resolving one name.
const RESOLVE: Duration = Duration::from_secs(2);
/// Timeout for munged's answer.
const MUNGED: Duration = Duration::from_secs(10);

/// Maximum number of nodes that a finding lists by name.
const NAMED: usize = 10;

/// A problem that an administrator must fix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A sentence with the cluster's name, the problem and the remedy.
    pub text: String,
    /// Whether jobs are refused because of it now. Otherwise it is a warning.
    pub refuses: bool,
}

/// The result of checking a cluster's Slurm settings.
#[derive(Debug, Default)]
pub struct SlurmSettings {
    /// The settings for which its jobs are refused.
    pub findings: Vec<Finding>,
    /// Why Slurm does not enforce accounts, if it does not; also where `trust-unenforced-accounts` accepts that.
    pub unenforced: Option<String>,
}

/// Checks the settings of the cluster's Slurm.
pub async fn of_slurm(name: &ClusterName, cluster: &Cluster) -> SlurmSettings {
    let Some(attestor) = &cluster.attestor else { return SlurmSettings::default() };
    let site = match attestor.site().await {
        Ok(site) => site,
        Err(error) => {
            let findings = vec![Finding { text: error.to_string(), refuses: true }];
            return SlurmSettings { findings, unenforced: None };
        }
    };
    let (mut findings, unenforced) = (vec![], site.accounts_not_enforced.clone());
    let mut found = |text: Option<String>| findings.extend(text.map(|text| Finding { text, refuses: true }));
    found(site.wrong_cluster(name).map(|why| format!("cluster {name}: {why}")));
    found(site.accounts_not_enforced.filter(|_| !cluster.trust_unenforced_accounts).map(|why| {
        let cluster = name.clone();
        Refusal::AccountsNotEnforced { cluster, why }.to_string()
    }));
    found(site.jobs_hidden.map(|why| format!("cluster {name}: {why}")));
    SlurmSettings { findings, unenforced }
}

/// Checks that Slurm answers a query for all jobs. It may answer the query for its settings and not this one.
pub async fn of_jobs(cluster: &Cluster) -> Option<Finding> {
    let attestor = cluster.attestor.as_ref()?;
    let error = attestor.all_jobs().await.err()?;
    Some(Finding { text: error.to_string(), refuses: true })
}

/// Finds nodes whose address in Slurm cannot be compared with a peer's: a loopback address, or a name that does not resolve.
pub async fn of_addresses(name: &ClusterName, cluster: &Cluster) -> Option<Finding> {
    let attestor = cluster.attestor.as_ref().filter(|_| cluster.addresses.check != AddressCheck::Off)?;
    let refuses = cluster.addresses.check == AddressCheck::Require;
    let bad = match unreachable(attestor, cluster).await {
        Ok(bad) if bad.is_empty() => return None,
        Ok(bad) => bad,
        Err(text) => return Some(Finding { text, refuses }),
    };
    let listed: Vec<String> =
        bad.iter().take(NAMED).map(|(node, address, why)| format!("{node} ({address}: {why})")).collect();
    let text = format!(
        "cluster {name}: Slurm has no address of {} node{} that could be compared, and node-address-check = \"require\" \
         refuses them: {}{}; correct NodeAddr or the names that credvend's host resolves, or write their addresses into \
         node-addresses",
        bad.len(),
        if bad.len() == 1 { "" } else { "s" },
        listed.join(", "),
        if bad.len() > NAMED { ", …" } else { "" },
    );
    Some(Finding { text, refuses })
}

type Unreachable = (NodeName, String, &'static str);

async fn unreachable(attestor: &Arc<dyn Attestor>, cluster: &Cluster) -> Result<BTreeSet<Unreachable>, String> {
    let all = attestor.node_addresses().await.map_err(|error| error.to_string())?;
    let mut waiting = all.into_iter().filter(|(node, _)| !cluster.addresses.more.contains_key(node)).take(MAX_RESOLVED);
    let (mut bad, mut looking) = (BTreeSet::new(), JoinSet::new());
    loop {
        for (node, address) in waiting.by_ref().take(AT_ONCE - looking.len()) {
            looking.spawn(async move {
                let why = why_no_peer(&address).await?;
                Some((node, address, why))
            });
        }
        match looking.join_next().await {
            Some(Ok(found)) => bad.extend(found),
            Some(Err(error)) => return Err(error.to_string()),
            None => return Ok(bad),
        }
    }
}

async fn why_no_peer(address: &str) -> Option<&'static str> {
    let ips: Vec<IpAddr> = match address.parse() {
        Ok(ip) => vec![ip],
        Err(_) => match tokio::time::timeout(RESOLVE, tokio::net::lookup_host((address, 0))).await {
            Ok(Ok(found)) => found.map(|found| found.ip()).collect(),
            Ok(Err(_)) | Err(_) => return Some("it does not resolve"),
        },
    };
    let real = ips.iter().any(|ip| !ip.to_canonical().is_loopback() && !ip.is_unspecified());
    (!real).then_some("a loopback address here")
}

/// Checks that the cluster's munged answers: encodes a credential and decodes it again.
pub async fn of_munge(name: &ClusterName, socket: Option<PathBuf>) -> Option<Finding> {
    let asked = tokio::task::spawn_blocking(move || {
        let munge = Munge::new(socket.as_deref())?;
        let credential = munge.encode(b"credvend", EncodeOptions { ttl: None, only_uid: None })?;
        munge.decode(&credential).map(drop)
    });
    let why = match tokio::time::timeout(MUNGED, asked).await {
        Ok(Ok(Ok(()))) => return None,
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("it does not answer within {} s", MUNGED.as_secs()),
    };
    let text = format!(
        "cluster {name}: no node can prove itself by MUNGE here: {why}; start munged with that cluster's key, or correct \
         munge-socket"
    );
    Some(Finding { text, refuses: true })
}
