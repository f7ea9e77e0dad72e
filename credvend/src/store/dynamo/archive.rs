//! What a copy reads and writes besides the intents. Nonces and notes are read by a scan: once in a site's life.

use async_trait::async_trait;
use aws_sdk_dynamodb::types::AttributeValue;
use credd_protocol::ClusterName;

use super::item::{Item, PK, Row, SK};
use super::{DynamoStore, EXPIRES, issuances, keys, news, notes, tables};
use crate::store::archive::{Archive, Batch, Record};
use crate::store::{NumberedNews, StoreError};

impl DynamoStore {
    /// One answer of a scan. Its key goes into the place as text; who reads it back compares it with nothing, so only a
    /// key of this table's shape is taken.
    async fn scanned(&self, table: &str, from: Option<&str>) -> Result<(Vec<Item>, Option<String>), StoreError> {
        let from = match from {
            None => None,
            Some(text) => {
                let pairs: Vec<(String, String)> = serde_json::from_str(text).map_err(|_| StoreError::BadCursor)?;
                Some(pairs.into_iter().map(|(name, value)| (name, AttributeValue::S(value))).collect::<Item>())
            }
        };
        let request = self.db.client.scan().table_name(table).consistent_read(true).set_exclusive_start_key(from);
        let answer = self.db.call(|| request.clone().send()).await?;
        let next = match answer.last_evaluated_key.filter(|key| !key.is_empty()) {
            None => None,
            Some(key) => {
                let pairs: Vec<(&String, &String)> =
                    key.iter().filter_map(|(name, value)| Some((name, value.as_s().ok()?))).collect();
                Some(super::orders::body(&pairs)?)
            }
        };
        Ok((answer.items.unwrap_or_default(), next))
    }
}

#[async_trait]
impl Archive for DynamoStore {
    async fn every_issuance(&self, from: Option<&str>) -> Result<Batch, StoreError> {
        let Some((oldest, newest)) = issuances::weeks(&self.db).await? else { return Ok((vec![], None)) };
        let (mut week, mut shard, mut after) = (oldest, 0, String::new());
        if let Some(text) = from {
            let parts: Vec<&str> = text.splitn(3, ' ').collect();
            let [its_week, its_shard, place] = parts[..] else { return Err(StoreError::BadCursor) };
            week = its_week.parse().map_err(|_| StoreError::BadCursor)?;
            shard = its_shard.parse::<usize>().map_err(|_| StoreError::BadCursor)?;
            after = place.to_owned();
        }
        while week <= newest {
            let partitions = keys::expiring_in(week);
            while let Some(pk) = partitions.get(shard) {
                let low = if after.is_empty() { keys::LOWEST.to_owned() } else { format!("{after}\u{1}") };
                let bounds = (low.as_str(), keys::HIGHEST);
                let (items, _) = self.db.query(&self.db.tables.issuances, pk, bounds, true, Some(500)).await?;
                if let Some(last) = items.last() {
                    let next = format!("{week} {shard} {}", Row(last).text(SK)?);
                    let records = items.iter().map(|i| Ok(Record::Issuance(Box::new(issuances::read(i)?))));
                    return Ok((records.collect::<Result<_, StoreError>>()?, Some(next)));
                }
                (shard, after) = (shard + 1, String::new());
            }
            (week, shard) = (week + 1, 0);
        }
        Ok((vec![], None))
    }

    async fn every_nonce(&self, from: Option<&str>) -> Result<Batch, StoreError> {
        let (items, next) = self.scanned(&self.db.tables.nonces, from).await?;
        let mut records = vec![];
        for item in &items {
            let row = Row(item);
            // One that was too long stands as its hash, and cannot be copied; credvend's own are short.
            let Some(nonce) = row.text(tables::NONCE)?.strip_prefix('=') else { continue };
            records.push(Record::Nonce { nonce: nonce.to_owned(), expires: row.time(EXPIRES)? });
        }
        Ok((records, next))
    }

    async fn every_note(&self, from: Option<&str>) -> Result<Batch, StoreError> {
        let (items, next) = self.scanned(&self.db.tables.state, from).await?;
        let mut records = vec![];
        for item in items.iter().filter(|i| Row(i).text(PK).is_ok_and(|pk| pk.starts_with("notes#"))) {
            records.push(notes::record(&self.db, item).await?);
        }
        Ok((records, next))
    }

    async fn newest_of_all(&self) -> Result<Vec<(ClusterName, u64)>, StoreError> {
        news::newest_of_all(&self.db).await
    }

    async fn put_news(&self, cluster: &ClusterName, numbered: NumberedNews) -> Result<(), StoreError> {
        news::put_news(&self.db, cluster, &numbered).await
    }

    async fn put_newest(&self, cluster: &ClusterName, number: u64) -> Result<(), StoreError> {
        news::put_newest(&self.db, cluster, number).await
    }

    async fn draw_epoch(&self) -> Result<(), StoreError> {
        news::draw_epoch(&self.db, true).await
    }
}
