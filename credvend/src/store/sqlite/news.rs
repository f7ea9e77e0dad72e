//! The statements about what nodes are told, and about leases.

use credd_protocol::ClusterName;
use rusqlite::{Connection, OptionalExtension, params};
use time::OffsetDateTime;

use super::orders::{parsed, written};
use super::rows::{from_micros, micros};
use crate::store::{NEWS_PAGE, News, NumberedNews};

pub(super) fn publish(
    db: &Connection,
    cluster: &ClusterName,
    news: &News,
    at: OffsetDateTime,
) -> rusqlite::Result<u64> {
    let number: i64 = db
        .prepare_cached(
            "INSERT INTO newest_news (cluster, number) VALUES (?1, 1)
             ON CONFLICT (cluster) DO UPDATE SET number = number + 1 RETURNING number",
        )?
        .query_row([cluster.as_str()], |row| row.get(0))?;
    db.prepare_cached("INSERT INTO news (cluster, number, at, body) VALUES (?1, ?2, ?3, ?4)")?.execute(params![
        cluster.as_str(),
        number,
        micros(at),
        written(news)?
    ])?;
    Ok(number.unsigned_abs())
}

pub(super) const AFTER: &str =
    "SELECT number, at, body FROM news WHERE cluster = ?1 AND number > ?2 ORDER BY number LIMIT ?3";

pub(super) fn after(db: &Connection, cluster: &ClusterName, number: u64) -> rusqlite::Result<Vec<NumberedNews>> {
    let number = i64::try_from(number).unwrap_or(i64::MAX);
    db.prepare_cached(AFTER)?
        .query_map(params![cluster.as_str(), number, NEWS_PAGE as i64], |row| {
            Ok(NumberedNews {
                seq: row.get::<_, i64>(0)?.unsigned_abs(),
                at: from_micros(row.get(1)?),
                news: parsed(row, 2)?,
            })
        })?
        .collect()
}

pub(super) fn newest(db: &Connection, cluster: &ClusterName) -> rusqlite::Result<u64> {
    let number: Option<i64> = db
        .prepare_cached("SELECT number FROM newest_news WHERE cluster = ?1")?
        .query_row([cluster.as_str()], |row| row.get(0))
        .optional()?;
    Ok(number.unwrap_or(0).unsigned_abs())
}

pub(super) fn lease(
    db: &Connection,
    name: &str,
    holder: &str,
    now: OffsetDateTime,
    until: OffsetDateTime,
) -> rusqlite::Result<bool> {
    let taken = db
        .prepare_cached(
            "INSERT INTO leases (name, holder, until) VALUES (?1, ?2, ?4)
             ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
             WHERE holder = excluded.holder OR leases.until <= ?3",
        )?
        .execute(params![name, holder, micros(now), micros(until)])?;
    Ok(taken == 1)
}

pub(super) fn release(db: &Connection, name: &str, holder: &str) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM leases WHERE name = ?1 AND holder = ?2")?.execute([name, holder])?;
    Ok(())
}
