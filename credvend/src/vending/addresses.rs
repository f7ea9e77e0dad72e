//! Whether a node asks from where Slurm has it. MUNGE lets root of any node give itself any node's name; its address does
//! not lie as easily.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use credd_protocol::{ClusterName, NodeName};
use time::{Duration, OffsetDateTime};

use super::standing::Standing;
use super::{AddressCheck, Cluster, Node, Vending, fresh};
use crate::attest::Attestor;
use crate::refusal::Refusal;

/// What an address of Slurm's resolves to holds this long.
const ADDRESS_FOR: Duration = Duration::seconds(10);

/// Names resolve within this or not at all.
const RESOLVE: std::time::Duration = std::time::Duration::from_secs(2);

/// The most nodes whose addresses are remembered; the largest Slurm clusters have fewer.
const MAX_ADDRESSES: usize = 32_768;

/// A node that asked from elsewhere, and not again since, is listed this long.
const DIFFERS_FOR: Duration = Duration::DAY;

/// The most of them that are remembered: who lies about its name has many.
const MAX_DIFFERING: usize = 1024;

/// How many of them a sentence names.
const NAMED: usize = 10;

/// The first release that takes `require` for unset.
pub const REQUIRED_FROM: &str = "0.2";

/// What is known of a cluster's node addresses.
#[derive(Default)]
pub(super) struct Addresses {
    resolved: Mutex<HashMap<NodeName, (OffsetDateTime, Arc<Address>)>>,
    differing: Mutex<BTreeMap<NodeName, Differs>>,
}

/// A node's `NodeAddr`, and what it resolves to.
struct Address {
    /// For messages.
    shown: String,
    ips: Vec<IpAddr>,
}

/// A node that `require` would refuse, or does.
struct Differs {
    at: OffsetDateTime,
    peer: String,
    expected: String,
}

impl Addresses {
    fn differing(&self) -> MutexGuard<'_, BTreeMap<NodeName, Differs>> {
        self.differing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether that is new.
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

    /// The nodes that asked from elsewhere lately, in a list for a sentence; how many there are.
    fn listed(&self, now: OffsetDateTime) -> (usize, String) {
        let mut differing = self.differing();
        differing.retain(|_, differs| fresh(differs.at, now, DIFFERS_FOR));
        let shown =
            |(node, of): (&NodeName, &Differs)| format!("{node} (asks from {}; Slurm: {})", of.peer, of.expected);
        let mut list = differing.iter().take(NAMED).map(shown).collect::<Vec<_>>().join(", ");
        if differing.len() > NAMED {
            list.push_str(", …");
        }
        (differing.len(), list)
    }
}

impl Vending {
    /// Compares the caller's address with the one Slurm has for the node, and with those that the configuration adds.
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
        // A name that Slurm does not know has no jobs: made-up ones push no real node off the list, and fill no log.
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
            // Not remembered: who lies about its name has many.
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

    /// What an administrator should know about where nodes ask from: for as long as a cluster's are not required to agree
    /// with Slurm's, and of those that do not. Says it in the metrics, too.
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
    let whoever = "root of any node can ask in another node's name, for its jobs' credentials";
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
                0 => "no node that asked in the last day would be refused by \"require\"".to_owned(),
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
