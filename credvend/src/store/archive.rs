//! Moving a site from one store to another: what the intents do not show, and how it is put in place as it was.
//!
//! A copy is made of sessions of every status, issuances, nonces, denials, orders with their answers, blocks, news with
//! their numbers, and notes. Leases are not copied: they last seconds. The target is another store, so it says another
//! epoch, and every node asks anew.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::{ClusterName, NodeName};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::task::JoinSet;

use super::{
    Block, Cursor, Ended, Issuance, NumberedNews, Opened, Order, OrderId, Origin, Revocation, Session, SessionFilter,
    Store, StoreError,
};

/// Under this kind, the target of a copy notes that it is one.
pub const NOTES: &str = "store-copy";
/// There while a copy into this store is not finished: nobody may serve from it.
pub const UNFINISHED: &str = "unfinished";

/// Writes at the same time: on SQLite they share commits, on DynamoDB they share the wait.
const AT_ONCE: usize = 64;

/// One kind of record, in the order in which they are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Sessions, newest first.
    Sessions,
    /// What AWS issued.
    Issuances,
    /// Nonces that may still count.
    Nonces,
    /// What AWS must deny.
    Denials,
    /// Orders, newest first.
    Orders,
    /// Who has answered them.
    Heard,
    /// Who is kept out.
    Blocks,
    /// What nodes were told, with its numbers.
    News,
    /// Where the numbering stands.
    NewestNews,
    /// Notes.
    Notes,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 10] = [
        Part::Sessions,
        Part::Issuances,
        Part::Nonces,
        Part::Denials,
        Part::Orders,
        Part::Heard,
        Part::Blocks,
        Part::News,
        Part::NewestNews,
        Part::Notes,
    ];
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Sessions => "sessions",
            Part::Issuances => "issuances",
            Part::Nonces => "nonces",
            Part::Denials => "denials",
            Part::Orders => "orders",
            Part::Heard => "answers",
            Part::Blocks => "blocks",
            Part::News => "news",
            Part::NewestNews => "news-numbers",
            Part::Notes => "notes",
        })
    }
}

/// One record of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Record {
    Session(Box<Session>),
    Issuance(Box<Issuance>),
    Nonce { nonce: String, expires: OffsetDateTime },
    Denial(Revocation),
    Order(Box<Order>),
    Heard { order: OrderId, cluster: ClusterName, nodes: Vec<NodeName> },
    Block(Block),
    News { cluster: ClusterName, news: Box<NumberedNews> },
    NewestNews { cluster: ClusterName, number: u64 },
    Note { kind: String, key: String, text: String },
}

/// Some records, and where the next ones begin.
pub type Batch = (Vec<Record>, Option<String>);

/// What a store shows and takes besides its intents, for a copy.
#[async_trait]
pub trait Archive: Store {
    /// Issuances, all of them.
    async fn every_issuance(&self, from: Option<&str>) -> Result<Batch, StoreError>;

    /// Nonces that have not been forgotten.
    async fn every_nonce(&self, from: Option<&str>) -> Result<Batch, StoreError>;

    /// Notes of every kind.
    async fn every_note(&self, from: Option<&str>) -> Result<Batch, StoreError>;

    /// Where each cluster's numbering of news stands.
    async fn newest_of_all(&self) -> Result<Vec<(ClusterName, u64)>, StoreError>;

    /// Puts a piece of news under its number. The numbering stays where it is.
    async fn put_news(&self, cluster: &ClusterName, news: NumberedNews) -> Result<(), StoreError>;

    /// Sets where a cluster's numbering stands.
    async fn put_newest(&self, cluster: &ClusterName, number: u64) -> Result<(), StoreError>;

    /// Becomes another store: draws another epoch.
    async fn draw_epoch(&self) -> Result<(), StoreError>;
}

/// Some records of a part, from a place on that an earlier call gave.
///
/// # Errors
/// The store's.
pub async fn export(store: &dyn Archive, part: Part, from: Option<&str>) -> Result<Batch, StoreError> {
    let cursor = from.map(|text| Cursor(text.to_owned()));
    let whole = |records: Vec<Record>| Ok((records, None));
    match part {
        Part::Sessions => {
            let page = store.list(&SessionFilter::default(), cursor.as_ref()).await?;
            let records = page.items.into_iter().map(|s| Record::Session(Box::new(s))).collect();
            Ok((records, page.next.map(|c| c.0)))
        }
        Part::Issuances => store.every_issuance(from).await,
        Part::Nonces => store.every_nonce(from).await,
        Part::Denials => {
            let all = store.list_revocations(OffsetDateTime::UNIX_EPOCH).await?;
            whole(all.into_iter().map(Record::Denial).collect())
        }
        Part::Orders => {
            let page = store.list_orders(cursor.as_ref()).await?;
            let records = page.items.into_iter().map(|o| Record::Order(Box::new(o))).collect();
            Ok((records, page.next.map(|c| c.0)))
        }
        Part::Heard => {
            let page = store.list_orders(cursor.as_ref()).await?;
            let mut records = vec![];
            for order in page.items {
                let mut of_clusters: BTreeMap<ClusterName, Vec<NodeName>> = BTreeMap::new();
                for (cluster, node) in store.heard(order.id).await? {
                    of_clusters.entry(cluster).or_default().push(node);
                }
                let record = |(cluster, mut nodes): (_, Vec<NodeName>)| {
                    nodes.sort();
                    Record::Heard { order: order.id, cluster, nodes }
                };
                records.extend(of_clusters.into_iter().map(record));
            }
            Ok((records, page.next.map(|c| c.0)))
        }
        Part::Blocks => whole(store.list_blocks().await?.into_iter().map(Record::Block).collect()),
        Part::News => {
            let clusters = store.newest_of_all().await?;
            let place = from.and_then(|text| text.rsplit_once(' '));
            let at = |name: &ClusterName| {
                place.map_or(0, |(c, n)| if c == name.as_str() { n.parse().unwrap_or(0) } else { 0 })
            };
            let todo = clusters.iter().skip_while(|(name, _)| place.is_some_and(|(c, _)| c != name.as_str()));
            for (cluster, _) in todo {
                let news = store.news(cluster, at(cluster)).await?;
                if let Some(last) = news.last() {
                    let next = Some(format!("{cluster} {}", last.seq));
                    let record = |news| Record::News { cluster: cluster.clone(), news: Box::new(news) };
                    return Ok((news.into_iter().map(record).collect(), next));
                }
            }
            whole(vec![])
        }
        Part::NewestNews => {
            let all = store.newest_of_all().await?.into_iter();
            whole(all.map(|(cluster, number)| Record::NewestNews { cluster, number }).collect())
        }
        Part::Notes => {
            let (mut records, next) = store.every_note(from).await?;
            records.retain(|r| !matches!(r, Record::Note { kind, .. } if kind == NOTES));
            Ok((records, next))
        }
    }
}

/// Puts a record in its place. Again changes nothing; what has changed since in the source is changed here too.
async fn import(store: &dyn Archive, record: Record) -> Result<(), StoreError> {
    match record {
        Record::Session(session) => {
            let Opened::Existing(there) = store.open((*session).clone()).await? else { return Ok(()) };
            if there.id != session.id {
                return Err(StoreError::Broken(format!(
                    "the target has session {} where the source has {}: it is no copy of it",
                    there.id, session.id
                )));
            }
            // Copied before, and changed since.
            for node in session.nodes.iter().filter(|node| !there.nodes.contains(node)) {
                store.add_node(session.id, node).await?;
            }
            if let (Origin::Head { token, .. }, true) = (&session.origin, session.origin != there.origin) {
                store.replace_token(session.id, *token).await?;
            }
            if let (SessionStatus::Active, Some(at)) = (there.status, session.ended) {
                let why = session.why.as_deref().unwrap_or_default();
                let _: Ended = store.end(session.id, session.status, at, why).await?;
            }
            Ok(())
        }
        Record::Issuance(issuance) => store.record_issuance(*issuance).await,
        Record::Nonce { nonce, expires } => store.remember_nonce(&nonce, expires).await.map(|_| ()),
        Record::Denial(denial) => store.record_revocation(denial).await,
        Record::Order(order) => store.put_order(*order).await,
        Record::Heard { order, cluster, nodes } => store.note_heard(order, "copy", &cluster, &nodes).await,
        Record::Block(block) => store.put_block(block).await,
        Record::News { cluster, news } => store.put_news(&cluster, *news).await,
        Record::NewestNews { cluster, number } => store.put_newest(&cluster, number).await,
        Record::Note { kind, key, text } => store.put_note(&kind, &key, &text).await,
    }
}

/// Whether anything was ever stored here.
///
/// # Errors
/// The store's.
pub async fn is_empty(store: &dyn Archive) -> Result<bool, StoreError> {
    for part in [Part::Sessions, Part::Issuances, Part::Orders, Part::Blocks, Part::NewestNews, Part::Notes] {
        if !export(store, part, None).await?.0.is_empty() {
            return Ok(false);
        }
    }
    Ok(store.get_note(NOTES, UNFINISHED).await?.is_none())
}

/// Copies everything; `told` hears of the progress. Counts both sides at the end. A copy that was cut off is made again from
/// its beginning: what was copied may have changed since, and a session that was revoked meanwhile must not live here.
///
/// # Errors
/// A store's; or that the sides differ.
pub async fn copy(
    from: &dyn Archive,
    to: &Arc<dyn Archive>,
    mut told: impl FnMut(Part, u64),
) -> Result<BTreeMap<Part, u64>, CopyError> {
    to.put_note(NOTES, UNFINISHED, "").await?;
    forget_removed(from, to.as_ref()).await?;
    for part in Part::ALL {
        let (mut count, mut place) = (0, None);
        loop {
            let (records, next) = export(from, part, place.as_deref()).await?;
            count += records.len() as u64;
            write(to, records).await?;
            told(part, count);
            let Some(next) = next else { break };
            place = Some(next);
        }
    }
    let mut counts = BTreeMap::new();
    for part in Part::ALL {
        let (there, here) = (count(from, part).await?, count(to.as_ref(), part).await?);
        // A nonce is forgotten when its time comes, at each side by itself.
        if there != here && part != Part::Nonces {
            return Err(CopyError::Differs { part, from: there, to: here });
        }
        counts.insert(part, here);
    }
    to.draw_epoch().await?;
    to.remove_note(NOTES, UNFINISHED).await?;
    Ok(counts)
}

/// Removes what an earlier attempt copied and the source has not any more: blocks that were lifted, notes that are settled.
async fn forget_removed(from: &dyn Archive, to: &dyn Archive) -> Result<(), StoreError> {
    let there = from.list_blocks().await?;
    for block in to.list_blocks().await? {
        if !there.iter().any(|kept| kept.subject == block.subject) {
            to.remove_block(&block.subject).await?;
        }
    }
    let mut place = None;
    loop {
        let (records, next) = export(to, Part::Notes, place.as_deref()).await?;
        for record in records {
            if let Record::Note { kind, key, .. } = record
                && from.get_note(&kind, &key).await?.is_none()
            {
                to.remove_note(&kind, &key).await?;
            }
        }
        match next {
            Some(next) => place = Some(next),
            None => return Ok(()),
        }
    }
}

async fn write(to: &Arc<dyn Archive>, records: Vec<Record>) -> Result<(), StoreError> {
    let mut records = records.into_iter();
    let mut running = JoinSet::new();
    loop {
        while running.len() < AT_ONCE
            && let Some(record) = records.next()
        {
            let to = to.clone();
            running.spawn(async move { import(to.as_ref(), record).await });
        }
        match running.join_next().await {
            Some(written) => {
                written.map_err(|e| StoreError::Unavailable(format!("a copy ended abnormally: {e}")))??;
            }
            None => return Ok(()),
        }
    }
}

async fn count(store: &dyn Archive, part: Part) -> Result<u64, StoreError> {
    let (mut count, mut place) = (0, None);
    loop {
        let (records, next) = export(store, part, place.as_deref()).await?;
        count += records.len() as u64;
        match next {
            Some(next) => place = Some(next),
            None => return Ok(count),
        }
    }
}

/// Why a copy is not one.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A store's error; the copy is made again with `--resume`.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something was written to one side meanwhile.
    #[error(
        "the source has {from} {part} and the target {to}: one of them is in use; stop every credvend, and copy again with --resume; if they differ still, the source has forgotten old records since: begin with an empty target"
    )]
    Differs {
        /// Of what.
        part: Part,
        /// There.
        from: u64,
        /// Here.
        to: u64,
    },
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
