//! What Slurm says about a whole cluster and about its nodes: asked once, remembered shortly.

use std::collections::HashMap;
use std::sync::Arc;

use credd_protocol::NodeName;
use time::{Duration, OffsetDateTime};

use super::addresses::Addresses;
use super::{Cluster, Node, Vending, fresh};
use crate::attest::{AttestError, Attestor};
use crate::refusal::Refusal;

/// A good answer about accounts holds this long; a bad one shorter, so that a mended slurm.conf is seen soon.
const ENFORCED_FOR: Duration = Duration::minutes(1);
const UNENFORCED_FOR: Duration = Duration::seconds(10);

/// What Slurm said about addresses holds this long, and what they resolve to as long as [`super::addresses`] says:
/// `scontrol update NodeAddr` follows at most so late as both together.
const LISTED_FOR: Duration = Duration::seconds(20);

/// A name that is not among Slurm's nodes has them asked for again after this: it may be new, or a lie. So does a failure.
const UNKNOWN_FOR: Duration = Duration::seconds(2);

/// What is remembered of one cluster.
#[derive(Default)]
pub(super) struct Standing {
    /// When accounts were asked about, and why they cannot be believed, if so. Held while asking: one question for all.
    accounts: tokio::sync::Mutex<Option<(OffsetDateTime, Option<String>)>>,
    pub(super) addresses: Addresses,
    /// What Slurm said about all nodes. Held while asking: one question for all.
    listed: tokio::sync::Mutex<Option<(OffsetDateTime, Listing)>>,
}

/// Every node's `NodeAddr`, or why Slurm gave no listing.
type Listing = Result<HashMap<NodeName, String>, AttestError>;

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
            *known = Some((now, attestor.site().await?.accounts_not_enforced));
        }
        match &*known {
            Some((_, Some(why))) => {
                Err(Refusal::AccountsNotEnforced { cluster: node.cluster.clone(), why: why.clone() })
            }
            _ => Ok(()),
        }
    }
}

impl Standing {
    /// A node's address as Slurm says it.
    pub(super) async fn listed(
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
