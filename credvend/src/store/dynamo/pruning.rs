//! Deletes what is over. The logs lead to it, week by week; no table is read as a whole.

use std::sync::Arc;

use time::OffsetDateTime;
use tokio::task::JoinSet;

use super::db::Db;
use super::item::ALONE;
use super::weeks::Weeks;
use super::{issuances, keys, news, orders, sessions};
use crate::store::StoreError;

/// Weeks of logs that stay noted though nothing is left in them: a process that noted them may still write there.
const SLACK_WEEKS: i64 = 8;

pub(super) async fn all(db: &Arc<Db>, weeks: &Weeks, before: OffsetDateTime) -> Result<u64, StoreError> {
    let now = keys::week(before);
    let mut gone = 0;
    if let Some((oldest, newest)) = issuances::weeks(db).await? {
        let mut first = None;
        for week in oldest..=newest.min(now) {
            let some = partitions(db, keys::expiring_in(week), before, Log::Issuances).await?;
            gone += some;
            first = first.or((some > 0).then_some(week));
        }
        let forgotten = (now - SLACK_WEEKS).min(first.unwrap_or(now));
        if forgotten > oldest {
            let place = (keys::WEEKS, ALONE);
            weeks.forget(db, &db.tables.issuances, place, (oldest, newest), forgotten).await?;
        }
    }
    for (cluster, oldest, newest) in sessions::clusters(db).await? {
        let mut empty = oldest;
        for week in oldest..=newest.min(now) {
            gone += partitions(db, keys::log_of_week(&cluster, week), before, Log::Sessions).await?;
            if empty == week && week < now - SLACK_WEEKS && nothing_in(db, keys::log_of_week(&cluster, week)).await? {
                empty = week + 1;
            }
        }
        if empty > oldest {
            let name = keys::name(&cluster);
            let place = (keys::CLUSTERS, name.as_str());
            weeks.forget(db, &db.tables.sessions, place, (oldest, newest), empty).await?;
        }
    }
    gone += news::prune(db, before).await?;
    gone += orders::prune(db, before).await?;
    gone += news::prune_leases(db, before).await?;
    Ok(gone)
}

#[derive(Clone, Copy)]
enum Log {
    Issuances,
    Sessions,
}

/// All partitions of a week at the same time.
async fn partitions(db: &Arc<Db>, pks: Vec<String>, before: OffsetDateTime, log: Log) -> Result<u64, StoreError> {
    let mut running = JoinSet::new();
    for pk in pks {
        let db = db.clone();
        running.spawn(async move {
            match log {
                Log::Issuances => issuances::prune_partition(&db, &pk, before).await,
                Log::Sessions => sessions::prune_partition(&db, &pk, before).await,
            }
        });
    }
    let mut gone = 0;
    while let Some(some) = running.join_next().await {
        gone += some.map_err(|e| StoreError::Unavailable(format!("pruning ended abnormally: {e}")))??;
    }
    Ok(gone)
}

async fn nothing_in(db: &Db, pks: Vec<String>) -> Result<bool, StoreError> {
    for pk in pks {
        let bounds = (keys::LOWEST, keys::HIGHEST);
        if !db.query(&db.tables.sessions, &pk, bounds, true, Some(1)).await?.0.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}
