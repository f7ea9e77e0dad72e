//! What a revocation did, for people and programs.

use std::collections::{BTreeMap, BTreeSet};

use credd_protocol::credentials::rfc3339_z;
use credd_protocol::{ClusterName, JobId, NodeName, RoleArn, SessionId, UserName};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::store::{Denied, Order, OrderId, Subject};

/// A stored report has at most 256 KiB: no list in it is longer than this.
pub(super) const MOST_LISTED: usize = 500;

/// A list of names has at most so many bytes: there is one for each cluster.
const MOST_NAMED: usize = 4096;

/// What a revocation did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RevocationReport {
    /// The order's name.
    pub id: OrderId,
    /// About whom.
    pub subject: Subject,
    /// Only on these clusters; `None`: on all.
    pub clusters: Option<Vec<ClusterName>>,
    /// Who ordered it.
    pub by: String,
    /// Why.
    pub why: Option<String>,
    /// When. Sessions opened later are none of its business.
    #[serde(with = "rfc3339_z")]
    pub at: OffsetDateTime,
    /// Nothing was done: this is what would have been.
    pub dry_run: bool,
    /// Whether the subject is kept out from now on.
    pub blocked: bool,
    /// Sessions that were ACTIVE and are INVALIDATED now; the first 500.
    pub sessions: Vec<SessionId>,
    /// How many there were.
    pub sessions_total: usize,
    /// The nodes that may have held credentials of these sessions.
    pub nodes: NodesReport,
    /// The roles of which something that was issued still lives.
    pub roles: Vec<RoleReport>,
    /// How many of the living sets of credentials an upstream gave: it alone can deny them.
    #[serde(default)]
    pub upstream_gave: usize,
    /// Sessions of others that an upstream that is the original deployment has hit too: it denies every role-session name
    /// in which the user's name occurs. They get new credentials. The first 500.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upstream_hit: Vec<Bystander>,
    /// How many.
    #[serde(default)]
    pub upstream_hit_total: usize,
    /// What AWS does not deny, and why; empty when everything that was issued is dead.
    pub not_denied: Vec<String>,
    /// Why not everything was done; credvend goes on by itself.
    pub unfinished: Option<String>,
    /// How long everything took, from the order.
    pub took: Took,
}

/// From the order to each goal, in milliseconds. `None`: not reached, or nothing to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Took {
    /// credvend refuses every one of the sessions.
    pub refuse_ms: Option<u64>,
    /// The last of the nodes that answered has dropped what it held.
    pub drop_ms: Option<u64>,
    /// IAM shows every Deny.
    pub deny_ms: Option<u64>,
}

/// See [`RevocationReport::nodes`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodesReport {
    /// How many.
    pub concerned: usize,
    /// How many said that they dropped them.
    pub dropped: usize,
    /// Which, of each cluster, as Slurm writes lists of nodes; a long one ends in `…`.
    #[serde(default)]
    pub dropped_on: BTreeMap<ClusterName, String>,
    /// Those that were not heard of in time; the first 500.
    pub unheard: Vec<UnheardNode>,
}

/// A node that may still serve what it holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct UnheardNode {
    /// Its cluster.
    pub cluster: ClusterName,
    /// Its name.
    pub node: NodeName,
    /// Until then at the latest, when what it may hold expires; sooner where its `max-unheard` is shorter.
    #[serde(with = "rfc3339_z")]
    pub may_serve_until: OffsetDateTime,
}

/// What is denied of one role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RoleReport {
    /// Which role.
    pub role_arn: RoleArn,
    /// To whom: source identities, exact user ids, or everyone; the first 500.
    pub denied: Vec<Denied>,
    /// How many.
    pub denied_total: usize,
    /// What was issued before this.
    #[serde(with = "rfc3339_z")]
    pub issued_before: OffsetDateTime,
    /// How many sets of living credentials of the subject that kills.
    pub credentials: usize,
    /// Others whose living credentials it kills too; they get new ones. The first 500.
    pub bystanders: Vec<Bystander>,
    /// How many.
    pub bystanders_total: usize,
    /// Whether IAM shows it.
    pub in_force: bool,
    /// Why not, and the remedy.
    pub why_not: Option<String>,
}

/// A session that is not meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Bystander {
    /// Which.
    pub session: SessionId,
    /// Of whom.
    pub user: UserName,
    /// On which cluster.
    pub cluster: ClusterName,
    /// Of which Slurm job.
    pub job: Option<JobId>,
    /// Whether it goes on and gets new credentials; else it has ended, and only leftovers die.
    pub active: bool,
}

impl RevocationReport {
    pub(super) fn of(order: &Order) -> Self {
        RevocationReport {
            id: order.id,
            subject: order.subject.clone(),
            clusters: order.clusters.clone(),
            by: order.by.clone(),
            why: order.why.clone(),
            at: order.at,
            dry_run: false,
            blocked: false,
            sessions: vec![],
            sessions_total: 0,
            nodes: NodesReport::default(),
            roles: vec![],
            upstream_gave: 0,
            upstream_hit: vec![],
            upstream_hit_total: 0,
            not_denied: vec![],
            unfinished: None,
            took: Took::default(),
        }
    }

    /// Whether everything was reached: refused, dropped everywhere, dead in AWS.
    pub fn complete(&self) -> bool {
        self.not_denied.is_empty() && self.nodes.unheard.is_empty() && self.unfinished.is_none()
    }

    pub(super) fn with_sessions(mut self, sessions: impl ExactSizeIterator<Item = SessionId>) -> Self {
        self.sessions_total = sessions.len();
        self.sessions = sessions.take(MOST_LISTED).collect();
        self
    }

    /// For the store, within its bound.
    pub(super) fn to_stored(&self) -> String {
        let mut bounded = self.clone();
        let mut most = MOST_LISTED;
        loop {
            bounded.sessions.truncate(most);
            bounded.nodes.unheard.truncate(most);
            if most < MOST_LISTED {
                bounded.nodes.dropped_on.clear();
            }
            bounded.roles.truncate(most);
            bounded.not_denied.truncate(most);
            bounded.upstream_hit.truncate(most);
            for role in &mut bounded.roles {
                role.denied.truncate(most);
                role.bystanders.truncate(most);
            }
            let text = serde_json::to_string(&bounded).unwrap_or_default();
            if text.len() <= MOST_STORED || most == 0 {
                return text;
            }
            most /= 2;
        }
    }
}

/// The store's bound on a report, with some room.
const MOST_STORED: usize = 250 * 1024;

impl RoleReport {
    pub(super) fn bounded(mut self) -> Self {
        (self.denied_total, self.bystanders_total) = (self.denied.len(), self.bystanders.len());
        self.denied.truncate(MOST_LISTED);
        self.bystanders.truncate(MOST_LISTED);
        self
    }
}

impl NodesReport {
    pub(super) fn new(dropped: &BTreeSet<(ClusterName, NodeName)>, mut unheard: Vec<UnheardNode>) -> Self {
        unheard.sort();
        let concerned = dropped.len() + unheard.len();
        unheard.truncate(MOST_LISTED);
        let mut by_cluster: BTreeMap<ClusterName, Vec<&NodeName>> = BTreeMap::new();
        for (cluster, node) in dropped {
            by_cluster.entry(cluster.clone()).or_default().push(node);
        }
        let dropped_on = by_cluster.into_iter().map(|(cluster, nodes)| (cluster, folded(&nodes))).collect();
        NodesReport { concerned, dropped: dropped.len(), dropped_on, unheard }
    }
}

/// `n[1-3,7],m1`: names of one beginning whose last digits are as many share their brackets.
fn folded(nodes: &[&NodeName]) -> String {
    let mut groups: BTreeMap<(&str, usize), BTreeSet<u64>> = BTreeMap::new();
    let mut elements: Vec<String> = vec![];
    for node in nodes {
        let letters = node.as_str().trim_end_matches(|c: char| c.is_ascii_digit());
        let digits = &node.as_str()[letters.len()..];
        match digits.parse() {
            Ok(number) => drop(groups.entry((letters, digits.len())).or_default().insert(number)),
            Err(_) => elements.push(node.to_string()),
        }
    }
    for ((letters, width), numbers) in groups {
        let mut ranges: Vec<(u64, u64)> = vec![];
        for number in numbers {
            match ranges.last_mut() {
                Some((_, high)) if *high + 1 == number => *high = number,
                _ => ranges.push((number, number)),
            }
        }
        let shown = |(low, high): &(u64, u64)| match low == high {
            true => format!("{low:0width$}"),
            false => format!("{low:0width$}-{high:0width$}"),
        };
        let all: Vec<String> = ranges.iter().map(shown).collect();
        elements.push(match &ranges[..] {
            [(low, high)] if low == high => format!("{letters}{}", all[0]),
            _ => format!("{letters}[{}]", all.join(",")),
        });
    }
    let mut text = elements.join(",");
    if text.len() > MOST_NAMED {
        text.truncate(MOST_NAMED);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_listed_as_slurm_does_and_not_without_end() {
        let list = |names: &[&str]| {
            let names: Vec<NodeName> = names.iter().map(|name| name.parse().unwrap()).collect();
            folded(&names.iter().collect::<Vec<_>>())
        };
        assert_eq!(list(&[]), "");
        assert_eq!(list(&["n1"]), "n1");
        let text = list(&["n7", "n1", "n2", "n3", "n10", "gpu-a", "r1-08", "r1-09", "r1-11"]);
        assert_eq!(text, "gpu-a,n[1-3,7],n10,r1-[08-09,11]");
        assert_eq!(crate::attest::hostlist::expand(&text, 100).unwrap().len(), 9);
        let odd: Vec<String> = (0..10_000).map(|i| format!("n{}", 10_000 + 2 * i)).collect();
        let text = list(&odd.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(text.len() <= MOST_NAMED + 3 && text.ends_with('…'), "{}", text.len());
    }

    #[test]
    fn a_report_without_the_names_reads_as_well() {
        let report: NodesReport = serde_json::from_str(r#"{"concerned":2,"dropped":2,"unheard":[]}"#).unwrap();
        assert_eq!((report.dropped, report.dropped_on.len()), (2, 0));
    }
}
