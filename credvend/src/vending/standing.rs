//! What Slurm says about a whole cluster and about its nodes: asked once, remembered shortly.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use credd_protocol::NodeName;
use time::{Duration, OffsetDateTime};

use super::{AddressCheck, Cluster, Node, Vending, fresh};
use crate::attest::{AttestError, Attestor};
use crate::refusal::Refusal;

/// A good answer about accounts holds this long; a bad one shorter, so that a mended slurm.conf is seen soon.
const ENFORCED_FOR: Duration = Duration::minutes(1);
const UNENFORCED_FOR: Duration = Duration::seconds(10);

/// What Slurm said about addresses holds this long, and what they resolve to that long: `scontrol update NodeAddr`
/// follows at most so late as both together.
const LISTED_FOR: Duration = Duration::seconds(20);
const ADDRESS_FOR: Duration = Duration::seconds(10);

/// A name that is not among Slurm's nodes has them asked for again after this: it may be new, or a lie. So does a failure.
const UNKNOWN_FOR: Duration = Duration::seconds(2);

/// Names resolve within this or not at all.
const RESOLVE: std::time::Duration = std::time::Duration::from_secs(2);

/// The most nodes whose addresses are remembered; the largest Slurm clusters have fewer.
const MAX_ADDRESSES: usize = 32_768;

/// What is remembered of one cluster.
#[derive(Default)]
pub(super) struct Standing {
    /// When accounts were asked about, and why they cannot be believed, if so. Held while asking: one question for all.
    accounts: tokio::sync::Mutex<Option<(OffsetDateTime, Option<String>)>>,
    addresses: Mutex<HashMap<NodeName, (OffsetDateTime, Arc<Address>)>>,
    /// What Slurm said about all nodes. Held while asking: one question for all.
    listed: tokio::sync::Mutex<Option<(OffsetDateTime, Listing)>>,
}

/// Every node's `NodeAddr`, or why Slurm gave no listing.
type Listing = Result<HashMap<NodeName, String>, AttestError>;

/// A node's `NodeAddr`, and what it resolves to.
struct Address {
    /// For messages.
    shown: String,
    ips: Vec<IpAddr>,
}

impl Vending {
    /// Refuses where accounts rest on the user's word.
    pub(super) async fn require_accounts(&self, node: &Node, cluster: &Cluster) -> Result<(), Refusal> {
        let (Some(attestor), Some(standing)) = (&cluster.attestor, self.standing.get(&node.cluster)) else {
            return Ok(());
        };
        if cluster.trust_unenforced_accounts {
            return Ok(());
        }
        let mut known = standing.accounts.lock().await;
        let now = self.now();
        let believed = match &*known {
            Some((at, None)) => fresh(*at, now, ENFORCED_FOR),
            Some((at, Some(_))) => fresh(*at, now, UNENFORCED_FOR),
            None => false,
        };
        if !believed {
            *known = Some((now, attestor.accounts_enforced().await?));
        }
        match &*known {
            Some((_, Some(why))) => {
                Err(Refusal::AccountsNotEnforced { cluster: node.cluster.clone(), why: why.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Compares the caller's address with the one Slurm has for the node.
    pub(super) async fn check_address(&self, node: &Node, cluster: &Cluster) -> Result<(), Refusal> {
        let (Some(attestor), Some(standing)) = (&cluster.attestor, self.standing.get(&node.cluster)) else {
            return Ok(());
        };
        let must = match cluster.node_address_check {
            AddressCheck::Off => return Ok(()),
            AddressCheck::Warn => false,
            AddressCheck::Require => true,
        };
        let address = match self.address(standing, attestor, &node.name).await {
            Ok(address) => address,
            Err(refusal) if must => return Err(refusal),
            Err(refusal) => {
                tracing::warn!(node = %node.name, cluster = %node.cluster, why = %refusal, "a node's address was not compared");
                return Ok(());
            }
        };
        let peer = node.peer.map(|ip| ip.to_canonical());
        if peer.is_some_and(|peer| address.ips.contains(&peer)) {
            return Ok(());
        }
        let refusal = Refusal::WrongAddress {
            node: node.name.clone(),
            peer: peer.map_or("an unknown address".into(), |ip| ip.to_string()),
            expected: address.shown.clone(),
        };
        if must {
            return Err(refusal);
        }
        tracing::warn!(cluster = %node.cluster, node = %node.name, why = %refusal, "a node's address differs");
        Ok(())
    }

    async fn address(
        &self,
        standing: &Standing,
        attestor: &Arc<dyn Attestor>,
        node: &NodeName,
    ) -> Result<Arc<Address>, Refusal> {
        let now = self.now();
        let known = standing.addresses.lock().unwrap_or_else(PoisonError::into_inner).get(node).cloned();
        if let Some((at, address)) = known
            && fresh(at, now, ADDRESS_FOR)
        {
            return Ok(address);
        }
        let Some(text) = standing.listed(attestor, node, now).await? else {
            // Not remembered: who lies about its name has many.
            return Ok(Arc::new(Address { shown: "no address: it knows no such node".into(), ips: vec![] }));
        };
        let address = Arc::new(resolve(&text).await?);
        let mut addresses = standing.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if addresses.len() >= MAX_ADDRESSES {
            addresses.retain(|_, (at, _)| fresh(*at, now, ADDRESS_FOR));
        }
        if addresses.len() < MAX_ADDRESSES {
            addresses.insert(node.clone(), (now, address.clone()));
        }
        Ok(address)
    }
}

impl Standing {
    /// A node's address as Slurm says it.
    async fn listed(
        &self,
        attestor: &Arc<dyn Attestor>,
        node: &NodeName,
        now: OffsetDateTime,
    ) -> Result<Option<String>, AttestError> {
        let mut listed = self.listed.lock().await;
        let holds = match &*listed {
            Some((at, Ok(all))) => fresh(*at, now, if all.contains_key(node) { LISTED_FOR } else { UNKNOWN_FOR }),
            Some((at, Err(_))) => fresh(*at, now, UNKNOWN_FOR),
            None => false,
        };
        if !holds {
            *listed = Some((now, attestor.node_addresses().await));
        }
        match &*listed {
            Some((_, Ok(all))) => Ok(all.get(node).cloned()),
            Some((_, Err(error))) => Err(error.clone()),
            None => Ok(None),
        }
    }
}

async fn resolve(text: &str) -> Result<Address, Refusal> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(Address { shown: text.to_owned(), ips: vec![ip.to_canonical()] });
    }
    let failed = |why: String| Refusal::Unavailable(format!("Slurm's NodeAddr {text:?} does not resolve: {why}"));
    match tokio::time::timeout(RESOLVE, tokio::net::lookup_host((text, 0))).await {
        Ok(Ok(found)) => {
            let ips: Vec<IpAddr> = found.take(64).map(|a| a.ip().to_canonical()).collect();
            Ok(Address { shown: format!("{text:?} {ips:?}"), ips })
        }
        Ok(Err(e)) => Err(failed(e.to_string())),
        Err(_) => Err(failed(format!("no answer in {} s", RESOLVE.as_secs()))),
    }
}
