//! Compares the source address of a node's request with the node's address in Slurm. With MUNGE, root on any node can use
//! the name of any other node; a source address is harder to forge.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use credd_protocol::{ClusterName, NodeName};
use time::{Duration, OffsetDateTime};

use super::standing::Standing;
use super::{AddressCheck, Cluster, Node, Vending, fresh};
use crate::attest::Attestor;
use crate::refusal::Refusal;

/// How long the resolved addresses of a node are used.
const ADDRESS_FOR: Duration = Duration::seconds(10);

/// Timeout for resolving a name.
const RESOLVE: std::time::Duration = std::time::Duration::from_secs(2);

/// Maximum number of nodes whose addresses are cached. The largest Slurm clusters have fewer.
const MAX_ADDRESSES: usize = 32_768;

/// How long a node is listed after its last request from a different address.
const DIFFERS_FOR: Duration = Duration::DAY;

/// Maximum number of listed nodes: a caller that uses other nodes' names has many to choose from.
const MAX_DIFFERING: usize = 1024;

/// Maximum number of nodes that a warning lists by name.
const NAMED: usize = 10;

/// The first release in which the default is `require`.
pub const REQUIRED_FROM: &str = "0.2";

/// The cached addresses of a cluster's nodes, and the nodes whose addresses differ.
#[derive(Default)]
pub(super) struct Addresses {
    resolved: Mutex<HashMap<NodeName, (OffsetDateTime, Arc<Address>)>>,
    differing: Mutex<BTreeMap<NodeName, Differs>>,
}

/// A node's `NodeAddr`, and what it resolves to.
struct Address {
    /// The address as messages show it.
    shown: String,
    ips: Vec<IpAddr>,
}

/// A request from a different address, which `require` refuses.
struct Differs {
    at: OffsetDateTime,
    peer: String,
    expected: String,
}

impl Addresses {
    fn differing(&self) -> MutexGuard<'_, BTreeMap<NodeName, Differs>> {
        self.differing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a request from a different address. Returns whether this node was not yet listed with these addresses.
    fn differs(&self, node: &NodeName, now: OffsetDateTime, peer: String, expected: String) -> bool {
        let mut differing = self.differing();
        differing.retain(|_, differs| fresh(differs.at, now, DIFFERS_FOR));
        if differing.len() >= MAX_DIFFERING && !differing.contains_key(node) {
            let oldest = differing.iter().min_by_key(|(_, of)| of.at).map(|(node, _)| node.clone());
            oldest.and_then(|node| differing.remove(&node));
        }
        let before =
            differing.insert(node.clone(), Differs { at: now, peer: peer.clone(), expected: expected.clone() });
        before.is_none_or(|before| before.peer != peer || before.expected != expected)
    }

    fn agrees(&self, node: &NodeName) {
        self.differing().remove(node);
    }

    /// How many nodes made requests from a different address lately, and the first of them as a list for a sentence.
    fn listed(&self, now: OffsetDateTime) -> (usize, String) {
        let mut differing = self.differing();
        differing.retain(|_, differs| fresh(differs.at, now, DIFFERS_FOR));
        let shown =
            |(node, of): (&NodeName, &Differs)| format!("{node} (connects from {}; Slurm: {})", of.peer, of.expected);
        let mut list = differing.iter().take(NAMED).map(shown).collect::<Vec<_>>().join(", ");
        if differing.len() > NAMED {
            list.push_str(", …");
        }
        (differing.len(), list)
    }
}

impl Vending {
    /// Compares the caller's address with the node's address in Slurm and with the node's `node-addresses`.
    pub(super) async fn check_address(&self, node: &Node, cluster: &Cluster) -> Result<(), Refusal> {
        let (Some(attestor), Some(standing)) = (&cluster.attestor, self.standing.get(&node.cluster)) else {
            return Ok(());
        };
        let must = match cluster.addresses.check {
            AddressCheck::Off => return Ok(()),
            AddressCheck::Warn => false,
            AddressCheck::Require => true,
        };
        if node.certified {
            return Ok(());
        }
        let peer = node.peer.map(|ip| ip.to_canonical());
        let more = cluster.addresses.more.get(&node.name);
        if peer.is_some_and(|peer| more.is_some_and(|more| more.contains(&peer))) {
            standing.addresses.agrees(&node.name);
            return Ok(());
        }
        let address = match self.address(standing, attestor, &node.name).await {
            Ok(address) => address,
            Err(refusal) if must => return Err(refusal),
            Err(refusal) => {
                tracing::warn!(node = %node.name, cluster = %node.cluster, why = %refusal, "a node's address was not compared");
                return Ok(());
            }
        };
        if peer.is_some_and(|peer| address.ips.contains(&peer)) {
            standing.addresses.agrees(&node.name);
            return Ok(());
        }
        let peer = peer.map_or("an unknown address".into(), |ip| ip.to_string());
        // A name that Slurm does not know has no jobs, so it is not listed: invented names cannot push real nodes off the list or
        // fill the log.
        let new = !address.ips.is_empty()
            && standing.addresses.differs(&node.name, self.now(), peer.clone(), address.shown.clone());
        let refusal = Refusal::WrongAddress { node: node.name.clone(), peer, expected: address.shown.clone() };
        if must {
            return Err(refusal);
        }
        if new {
            tracing::warn!(cluster = %node.cluster, node = %node.name, why = %refusal, "a node's address differs");
        }
        Ok(())
    }

    async fn address(
        &self,
        standing: &Standing,
        attestor: &Arc<dyn Attestor>,
        node: &NodeName,
    ) -> Result<Arc<Address>, Refusal> {
        let now = self.now();
        let resolved = || standing.addresses.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        let known = resolved().get(node).cloned();
        if let Some((at, address)) = known
            && fresh(at, now, ADDRESS_FOR)
        {
            return Ok(address);
        }
        let Some(text) = standing.listed(attestor, node, now).await? else {
            // Not cached: a caller can invent any number of names.
            return Ok(Arc::new(Address { shown: "no address: it knows no such node".into(), ips: vec![] }));
        };
        let address = Arc::new(resolve(&text).await?);
        let mut addresses = resolved();
        if addresses.len() >= MAX_ADDRESSES {
            addresses.retain(|_, (at, _)| fresh(*at, now, ADDRESS_FOR));
        }
        if addresses.len() < MAX_ADDRESSES {
            addresses.insert(node.clone(), (now, address.clone()));
        }
        Ok(address)
    }

    /// The warnings for `status`: clusters whose `node-address-check` is not `require`, and nodes whose addresses differ. Also
    /// sets the metrics.
    pub(super) fn address_warnings(&self) -> Vec<String> {
        let mut warnings = vec![];
        for (name, cluster) in &self.parts.clusters {
            let Some(standing) = self.standing.get(name).filter(|_| cluster.attestor.is_some()) else { continue };
            let (count, list) = standing.addresses.listed(self.now());
            let check = cluster.addresses.check;
            self.parts.metrics.node_addresses(name, check != AddressCheck::Require, count);
            warnings.extend(sentence(name, cluster, count, &list));
        }
        warnings.sort();
        warnings
    }
}

fn sentence(name: &ClusterName, cluster: &Cluster, count: usize, list: &str) -> Option<String> {
    let whoever = "root on any node can use another node's name and fetch its jobs' credentials";
    let theirs = "correct NodeAddr in slurm.conf, or write their addresses into node-addresses";
    let nodes = if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
    match (cluster.addresses.check, cluster.addresses.decided) {
        (AddressCheck::Require, _) if count == 0 => None,
        (AddressCheck::Require, _) => {
            Some(format!("cluster {name}: node-address-check refuses {nodes}: {list}; {theirs}"))
        }
        (AddressCheck::Off, _) => Some(format!("cluster {name}: node-address-check is \"off\": {whoever}")),
        (AddressCheck::Warn, decided) => {
            let word = if decided { "\"warn\"" } else { "unset, which is \"warn\" in this release" };
            let next = if decided { String::new() } else { format!("; release {REQUIRED_FROM} requires it") };
            let would = match count {
                0 => "\"require\" would refuse no node that made a request in the last day".to_owned(),
                _ => format!("\"require\" would refuse {nodes}: {list}; {theirs}"),
            };
            Some(format!("cluster {name}: node-address-check is {word}: {whoever}{next}; {would}"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_many_nodes_elsewhere_the_oldest_makes_room_for_the_next() {
        let addresses = Addresses::default();
        let (start, node) = (OffsetDateTime::UNIX_EPOCH, |n: usize| format!("n{n}").parse::<NodeName>().unwrap());
        let differs = |n: usize, second: i64| {
            addresses.differs(&node(n), start + Duration::seconds(second), "::1".into(), "::2".into())
        };
        assert!((0..MAX_DIFFERING).all(|n| differs(n, 0)));
        assert!((1..MAX_DIFFERING).all(|n| !differs(n, 1)));
        assert!(differs(MAX_DIFFERING, 2), "one more is new");
        assert!(!differs(MAX_DIFFERING, 3) && !differs(1, 3));
        assert_eq!(addresses.listed(start + Duration::seconds(9)).0, MAX_DIFFERING);
        assert!(differs(0, 4), "it was the oldest");
    }
}
