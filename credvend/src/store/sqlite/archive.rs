//! What a copy reads and writes besides the intents.

use async_trait::async_trait;
use credd_protocol::ClusterName;
use rusqlite::params;

use super::orders::written;
use super::rows::{ISSUANCE, from_micros, micros, placed_issuance, text};
use super::{SqliteStore, Store};
use crate::store::archive::{Archive, Batch, Record};
use crate::store::{NumberedNews, PAGE, StoreError};

/// Rows after a row number, in its order.
fn batch(rows: Vec<(i64, Record)>) -> Batch {
    let next = rows.last().filter(|_| rows.len() == PAGE).map(|(seq, _)| seq.to_string());
    (rows.into_iter().map(|(_, record)| record).collect(), next)
}

fn after(from: Option<&str>) -> Result<i64, StoreError> {
    from.map_or(Ok(0), |text| text.parse().map_err(|_| StoreError::BadCursor))
}

#[async_trait]
impl Archive for SqliteStore {
    async fn every_issuance(&self, from: Option<&str>) -> Result<Batch, StoreError> {
        let after = after(from)?;
        let read = move |db: &rusqlite::Connection| {
            db.prepare_cached(&format!("SELECT {ISSUANCE} FROM issuances WHERE seq > ?1 ORDER BY seq LIMIT ?2"))?
                .query_map(params![after, PAGE as i64], |row| {
                    let (place, issuance) = placed_issuance(row)?;
                    Ok((place.seq, Record::Issuance(Box::new(issuance))))
                })?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        Ok(batch(self.readers.read(read).await?))
    }

    async fn every_nonce(&self, from: Option<&str>) -> Result<Batch, StoreError> {
        let after = from.unwrap_or_default().to_owned();
        let read = move |db: &rusqlite::Connection| {
            db.prepare_cached("SELECT nonce, expires FROM nonces WHERE nonce > ?1 ORDER BY nonce LIMIT ?2")?
                .query_map(params![after, PAGE as i64], |row| {
                    Ok(Record::Nonce { nonce: row.get(0)?, expires: from_micros(row.get(1)?) })
                })?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        let records = self.readers.read(read).await?;
        let next = match records.last() {
            Some(Record::Nonce { nonce, .. }) if records.len() == PAGE => Some(nonce.clone()),
            _ => None,
        };
        Ok((records, next))
    }

    async fn every_note(&self, from: Option<&str>) -> Result<Batch, StoreError> {
        let after = after(from)?;
        let read = move |db: &rusqlite::Connection| {
            db.prepare_cached("SELECT seq, kind, key, text FROM notes WHERE seq > ?1 ORDER BY seq LIMIT ?2")?
                .query_map(params![after, PAGE as i64], |row| {
                    Ok((row.get(0)?, Record::Note { kind: row.get(1)?, key: row.get(2)?, text: row.get(3)? }))
                })?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        Ok(batch(self.readers.read(read).await?))
    }

    async fn newest_of_all(&self) -> Result<Vec<(ClusterName, u64)>, StoreError> {
        let read = |db: &rusqlite::Connection| {
            db.prepare_cached("SELECT cluster, number FROM newest_news ORDER BY cluster")?
                .query_map([], |row| Ok((text(row, 0)?, row.get::<_, i64>(1)?.unsigned_abs())))?
                .collect()
        };
        self.readers.read(read).await
    }

    async fn put_news(&self, cluster: &ClusterName, news: NumberedNews) -> Result<(), StoreError> {
        let cluster = cluster.clone();
        let insert = move |db: &rusqlite::Connection| {
            db.prepare_cached("INSERT OR REPLACE INTO news (cluster, number, at, body) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![cluster.as_str(), news.seq as i64, micros(news.at), written(&news.news)?])
        };
        self.writer.write(insert).await.map(|_| ())
    }

    async fn put_newest(&self, cluster: &ClusterName, number: u64) -> Result<(), StoreError> {
        let cluster = cluster.clone();
        let insert = move |db: &rusqlite::Connection| {
            db.prepare_cached("INSERT OR REPLACE INTO newest_news (cluster, number) VALUES (?1, ?2)")?
                .execute(params![cluster.as_str(), number as i64])
        };
        self.writer.write(insert).await.map(|_| ())
    }

    async fn draw_epoch(&self) -> Result<(), StoreError> {
        let draw = |db: &rusqlite::Connection| {
            db.prepare_cached("UPDATE identity SET epoch = lower(hex(randomblob(16)))")?.execute([])
        };
        self.writer.write(draw).await?;
        self.check().await
    }
}
