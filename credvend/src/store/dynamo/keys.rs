//! Which item is where. Every listing that must be complete at once is a partition of a base table: indexes of DynamoDB's
//! own are eventually consistent and carry none of the store's promises.
//!
//! `#` stands between the parts, and a cluster's name is written without it, so that no two places have one key. Any other
//! name, and what is free text, stands last; the latter is hashed where it is long.

use credd_protocol::{ClusterName, NodeName, ProjectId, RoleArn, SessionId, UserName, hex};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::item::micros;
use crate::store::{IssuedTo, Run};

/// Partitions of a listing that everything of a cluster goes through: DynamoDB takes about 1,000 units of writing a second
/// for one partition key, and a transaction's write counts twice.
pub(super) const SHARDS: u8 = 4;

/// Microseconds in a week: the log's partitions.
const WEEK: i64 = 7 * 86_400 * 1_000_000;

/// The longest free text that stands in a key as it is.
const LONGEST: usize = 200;

/// A time as text that sorts as the time does.
pub(super) fn sortable(micros: i64) -> String {
    format!("{:020}", i128::from(micros) - i128::from(i64::MIN))
}

/// Before everything, and after everything, that begins with a digit.
pub(super) const LOWEST: &str = "0";
pub(super) const HIGHEST: &str = "~";

/// The place of a session in every listing: newest first means downwards, among equals by id.
pub(super) fn place(at: OffsetDateTime, id: impl std::fmt::Display) -> String {
    format!("{}#{id}", sortable(micros(at)))
}

/// The week of a time.
pub(super) fn week(at: OffsetDateTime) -> i64 {
    micros(at).div_euclid(WEEK)
}

/// The week of a place, as far as it shows one.
pub(super) fn week_of_place(place: &str) -> Option<i64> {
    let sortable: i128 = place.get(..20)?.parse().ok()?;
    i64::try_from(sortable + i128::from(i64::MIN)).ok().map(|micros| micros.div_euclid(WEEK))
}

/// A cluster's name as a part of a key, and as a key between `" "` and [`HIGHEST`].
pub(super) fn name(cluster: &ClusterName) -> String {
    let mut key = String::with_capacity(cluster.as_str().len());
    for byte in cluster.as_str().bytes() {
        if matches!(byte, b'#' | b'%' | b'~') || !(b' '..=b'~').contains(&byte) {
            key.push_str(&format!("%{byte:02X}"));
        } else {
            key.push(byte.into());
        }
    }
    key
}

/// The cluster of such a key.
pub(super) fn cluster(key: &str) -> Option<ClusterName> {
    let mut parts = key.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(part.get(2..)?.as_bytes());
    }
    String::from_utf8(bytes).ok()?.parse().ok()
}

pub(super) fn bounded(text: &str) -> String {
    if text.len() <= LONGEST {
        return format!("={text}");
    }
    format!("sha256:{}", hex::encode(&Sha256::digest(text.as_bytes())))
}

fn shard(id: SessionId) -> u8 {
    id.0.as_bytes()[0] % SHARDS
}

// The sessions' table.

pub(super) fn session(id: SessionId) -> String {
    format!("session#{id}")
}

/// All runs of one job id.
pub(super) fn runs(cluster: &ClusterName, job: u32) -> String {
    format!("run#{}#{job}", name(cluster))
}

/// One of them; those of one restart count have one beginning.
pub(super) fn run(run: &Run) -> String {
    format!("{}{}", restart(run.restart), sortable(micros(run.submitted)))
}

pub(super) fn restart(restart: u32) -> String {
    format!("{restart:010}#")
}

/// All sessions of one id of a head's.
pub(super) fn head(cluster: &ClusterName, head_session: &str) -> String {
    format!("head#{}#{}", name(cluster), bounded(head_session))
}

pub(super) fn active(cluster: &ClusterName, id: SessionId) -> String {
    format!("active#{}#{}", name(cluster), shard(id))
}

pub(super) fn all_active(cluster: &ClusterName) -> Vec<String> {
    (0..SHARDS).map(|shard| format!("active#{}#{shard}", name(cluster))).collect()
}

/// Few sessions end so, and every replica that starts looks at them.
pub(super) fn invalidated(cluster: &ClusterName, id: SessionId) -> String {
    format!("invalidated#{}#{}", name(cluster), shard(id))
}

pub(super) fn all_invalidated(cluster: &ClusterName) -> Vec<String> {
    (0..SHARDS).map(|shard| format!("invalidated#{}#{shard}", name(cluster))).collect()
}

pub(super) fn user(user: &UserName) -> String {
    format!("user#{user}")
}

pub(super) fn project(project: &ProjectId) -> String {
    format!("project#{project}")
}

/// The log of what was opened in one week.
pub(super) fn log(cluster: &ClusterName, opened: OffsetDateTime, id: SessionId) -> String {
    format!("log#{}#{}#{}", name(cluster), week(opened), shard(id))
}

pub(super) fn log_of_week(cluster: &ClusterName, week: i64) -> Vec<String> {
    (0..SHARDS).map(|shard| format!("log#{}#{week}#{shard}", name(cluster))).collect()
}

/// Which clusters there are, and since when.
pub(super) const CLUSTERS: &str = "clusters";

// The issuances' table.

pub(super) fn issued_to(of: &IssuedTo) -> String {
    match of {
        IssuedTo::User(user) => self::user(user),
        IssuedTo::Session(id) => session(*id),
        IssuedTo::Project(project) => self::project(project),
        IssuedTo::Role(role) => role_of(role),
        IssuedTo::Node(cluster, node) => node_of(cluster, node),
    }
}

fn role_of(role: &RoleArn) -> String {
    format!("role#{}", bounded(role.as_str()))
}

fn node_of(cluster: &ClusterName, node: &NodeName) -> String {
    format!("node#{}#{node}", name(cluster))
}

/// The log of what expires in one week.
pub(super) fn expiring(week: i64, id: SessionId) -> String {
    format!("expires#{week}#{}", shard(id))
}

pub(super) fn expiring_in(week: i64) -> Vec<String> {
    (0..SHARDS).map(|shard| format!("expires#{week}#{shard}")).collect()
}

/// Since when there are issuances.
pub(super) const WEEKS: &str = "weeks";

// The state's table.

pub(super) const IDENTITY: &str = "identity";
pub(super) const ORDERS: &str = "orders";
pub(super) const OPEN_ORDERS: &str = "open-orders";
pub(super) const BLOCKS: &str = "blocks";
pub(super) const DENIALS: &str = "denials";
pub(super) const NEWEST_NEWS: &str = "newest-news";
pub(super) const LEASES: &str = "leases";
pub(super) const HEARTBEAT: &str = "heartbeat";

pub(super) fn order(id: crate::store::OrderId) -> String {
    format!("order#{id}")
}

pub(super) fn heard(id: crate::store::OrderId) -> String {
    format!("heard#{id}")
}

pub(super) fn news(cluster: &ClusterName) -> String {
    format!("news#{}", name(cluster))
}

pub(super) fn news_number(number: u64) -> String {
    format!("{number:020}")
}

/// Pieces of what is too long for one item.
pub(super) fn pieces(of: &str) -> String {
    format!("pieces#{of}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named(text: &str) -> ClusterName {
        text.parse().unwrap()
    }

    #[test]
    fn ordinary_clusters_keep_the_keys_they_had() {
        assert_eq!(name(&named("My-lab_2.x")), "My-lab_2.x");
        assert_eq!(runs(&named("lab"), 7), "run#lab#7");
        assert_ne!(node_of(&named("a"), &"b#n".parse().unwrap()), node_of(&named("a#b"), &"n".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn a_clusters_key_is_its_own_and_is_listed(a in "[!-~é漢]{1,16}") {
            let key = name(&named(&a));
            prop_assert!(!key.contains('#') && key.as_str() >= " " && key.as_str() < HIGHEST);
            prop_assert_eq!(cluster(&key).unwrap(), named(&a));
        }

        #[test]
        fn times_sort_as_text(a: i64, b: i64) {
            prop_assert_eq!(sortable(a).cmp(&sortable(b)), a.cmp(&b));
            prop_assert!(sortable(a).as_str() >= LOWEST && sortable(a).as_str() < HIGHEST);
            prop_assert_eq!(week_of_place(&sortable(a)), Some(a.div_euclid(WEEK)));
        }

        #[test]
        fn free_text_makes_no_two_keys_one(a in ".{0,300}", b in ".{0,300}") {
            prop_assert_eq!(bounded(&a) == bounded(&b), a == b);
            prop_assert!(bounded(&a).len() <= LONGEST + 1);
        }
    }
}
