//! What nodes are told, in numbers without gaps; leases; and who this store is.

use aws_sdk_dynamodb::operation::delete_item::DeleteItemError;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::types::{Put, ReturnValuesOnConditionCheckFailure, TransactWriteItem};
use credd_protocol::ClusterName;
use time::OffsetDateTime;

use super::db::{Cancelled, Db, Refused, defect, failed};
use super::item::{ALONE, Item, PK, Row, SK, TTL, forgotten, key, micros, number, put, text};
use super::orders::{bare, body, parsed};
use super::sessions::cluster_of;
use super::{keys, long_text};
use crate::store::{NEWS_PAGE, News, NumberedNews, StoreError};

const NUMBER: &str = "NewsNumber";
const AT: &str = "PublishedAt";
const BODY: &str = "Body";
const HOLDER: &str = "HeldBy";
const UNTIL: &str = "HeldUntil";
const EPOCH: &str = "Epoch";
const SCHEMA: &str = "SchemaVersion";

/// The way the tables are used; a store with a newer one is refused.
pub(super) const SCHEMA_VERSION: u32 = 1;

fn condition(
    table: &str,
    item: Item,
    condition: String,
    values: Vec<(&str, u64)>,
) -> Result<TransactWriteItem, StoreError> {
    let mut put = Put::builder()
        .table_name(table)
        .set_item(Some(item))
        .condition_expression(condition)
        .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
    for (name, value) in values {
        put = put.expression_attribute_values(name, number(value));
    }
    Ok(TransactWriteItem::builder().put(put.build().map_err(defect)?).build())
}

/// The newest number goes from n to n+1 in the transaction that writes news n+1: who sees a number finds the news, and no
/// number is left out, whoever dies.
pub(super) async fn publish(
    db: &Db,
    cluster: &ClusterName,
    news: &News,
    at: OffsetDateTime,
) -> Result<u64, StoreError> {
    let table = &db.tables.state;
    let mut written = Item::new();
    put(&mut written, AT, number(micros(at)));
    long_text::write(db, &mut written, BODY, &body(news)?, long_text::MUCH).await?;
    let mut newest = newest(db, cluster).await?;
    // Every failure is another's success: so many publish at the same time never.
    for _ in 0..1000 {
        let next = newest + 1;
        let mut counter = key(keys::NEWEST_NEWS, keys::name(cluster));
        put(&mut counter, NUMBER, number(next));
        let counter = match newest {
            0 => condition(table, counter, format!("attribute_not_exists({PK})"), vec![])?,
            _ => condition(table, counter, format!("{NUMBER} = :newest"), vec![(":newest", newest)])?,
        };
        let mut item = key(keys::news(cluster), keys::news_number(next));
        item.extend(written.clone());
        let item = condition(table, item, format!("attribute_not_exists({PK})"), vec![])?;
        match db.transact(vec![counter, item]).await {
            Ok(()) => return Ok(next),
            Err(Cancelled::Store(error)) => {
                return Err(error);
            }
            Err(Cancelled::Conditions(reasons)) => {
                let now = reasons.first().filter(|r| failed(r)).and_then(|r| r.item.as_ref());
                newest = match now {
                    Some(item) => Row(item).number(NUMBER)?,
                    None => return Err(StoreError::Broken(format!("the news of {cluster} have lost their numbering"))),
                };
            }
        }
    }
    Err(StoreError::Unavailable(format!("too many publish news of {cluster} at the same time")))
}

pub(super) async fn newest(db: &Db, cluster: &ClusterName) -> Result<u64, StoreError> {
    let item = db.get(&db.tables.state, key(keys::NEWEST_NEWS, keys::name(cluster))).await?;
    Ok(item.as_ref().map(|item| Row(item).number(NUMBER)).transpose()?.unwrap_or(0))
}

pub(super) async fn after(db: &Db, cluster: &ClusterName, number: u64) -> Result<Vec<NumberedNews>, StoreError> {
    let table = &db.tables.state;
    let pk = keys::news(cluster);
    let mut low = keys::news_number(number.saturating_add(1));
    let mut news = vec![];
    while news.len() < NEWS_PAGE {
        let limit = Some((NEWS_PAGE - news.len()) as i32);
        let (items, more) = db.query(table, &pk, (&low, keys::HIGHEST), true, limit).await?;
        for item in &items {
            news.push(read(db, item).await?);
        }
        match items.last() {
            Some(last) if more => low = format!("{}\u{1}", Row(last).text(SK)?),
            _ => break,
        }
    }
    Ok(news)
}

async fn read(db: &Db, item: &Item) -> Result<NumberedNews, StoreError> {
    let row = Row(item);
    let text = long_text::read(db, item, BODY).await?.ok_or_else(|| row.broken(BODY, "it is missing"))?;
    let seq = row.text(SK)?.parse().map_err(|e| row.broken(SK, e))?;
    Ok(NumberedNews { seq, at: row.time(AT)?, news: parsed(row, BODY, &text)? })
}

/// Where each cluster's numbering stands.
pub(super) async fn newest_of_all(db: &Db) -> Result<Vec<(ClusterName, u64)>, StoreError> {
    let items = db.partition(&db.tables.state, keys::NEWEST_NEWS, (" ", keys::HIGHEST)).await?;
    items.iter().map(|item| Ok((cluster_of(item)?, Row(item).number(NUMBER)?))).collect()
}

/// Puts a piece of news under its number, for a copy.
pub(super) async fn put_news(db: &Db, cluster: &ClusterName, numbered: &NumberedNews) -> Result<(), StoreError> {
    let mut item = key(keys::news(cluster), keys::news_number(numbered.seq));
    put(&mut item, AT, number(micros(numbered.at)));
    long_text::write(db, &mut item, BODY, &body(&numbered.news)?, long_text::MUCH).await?;
    db.write_all(&db.tables.state, vec![item], vec![]).await
}

/// Sets where a cluster's numbering stands, for a copy.
pub(super) async fn put_newest(db: &Db, cluster: &ClusterName, newest: u64) -> Result<(), StoreError> {
    let mut item = key(keys::NEWEST_NEWS, keys::name(cluster));
    put(&mut item, NUMBER, number(newest));
    db.write_all(&db.tables.state, vec![item], vec![]).await
}

/// Deletes what was published before a time; how many.
pub(super) async fn prune(db: &Db, before: OffsetDateTime) -> Result<u64, StoreError> {
    let table = &db.tables.state;
    let mut gone = 0;
    for counter in db.partition(table, keys::NEWEST_NEWS, (" ", keys::HIGHEST)).await? {
        let cluster = cluster_of(&counter)?;
        let mut old = vec![];
        for item in db.partition(table, &keys::news(&cluster), (keys::LOWEST, keys::HIGHEST)).await? {
            if Row(&item).number::<i64>(AT)? < micros(before) {
                long_text::delete(db, &item, BODY).await?;
                old.push(bare(item));
            }
        }
        gone += old.len() as u64;
        db.write_all(table, vec![], old).await?;
    }
    Ok(gone)
}

pub(super) async fn lease(
    db: &Db,
    name: &str,
    holder: &str,
    now: OffsetDateTime,
    until: OffsetDateTime,
) -> Result<bool, StoreError> {
    let mut item = key(keys::LEASES, keys::bounded(name));
    put(&mut item, HOLDER, text(holder));
    put(&mut item, UNTIL, number(micros(until)));
    put(&mut item, TTL, forgotten(until, time::Duration::DAY));
    let request = db
        .client
        .put_item()
        .table_name(&db.tables.state)
        .set_item(Some(item))
        .condition_expression(format!("attribute_not_exists({PK}) OR {HOLDER} = :holder OR {UNTIL} <= :now"))
        .expression_attribute_values(":holder", text(holder))
        .expression_attribute_values(":now", number(micros(now)));
    match db.call(|| request.clone().send()).await {
        Ok(_) => Ok(true),
        Err(Refused::Service(PutItemError::ConditionalCheckFailedException(_), _)) => Ok(false),
        Err(other) => Err(other.into()),
    }
}

pub(super) async fn release(db: &Db, name: &str, holder: &str) -> Result<(), StoreError> {
    let request = db
        .client
        .delete_item()
        .table_name(&db.tables.state)
        .set_key(Some(key(keys::LEASES, keys::bounded(name))))
        .condition_expression(format!("{HOLDER} = :holder"))
        .expression_attribute_values(":holder", text(holder));
    match db.call(|| request.clone().send()).await {
        Ok(_) | Err(Refused::Service(DeleteItemError::ConditionalCheckFailedException(_), _)) => Ok(()),
        Err(other) => Err(other.into()),
    }
}

pub(super) async fn prune_leases(db: &Db, before: OffsetDateTime) -> Result<u64, StoreError> {
    let mut gone = vec![];
    for item in db.partition(&db.tables.state, keys::LEASES, (" ", keys::HIGHEST)).await? {
        if Row(&item).number::<i64>(UNTIL)? < micros(before) {
            gone.push(bare(item));
        }
    }
    let count = gone.len() as u64;
    db.write_all(&db.tables.state, vec![], gone).await?;
    Ok(count)
}

/// The epoch, after a look at the schema.
pub(super) async fn epoch(db: &Db) -> Result<String, StoreError> {
    let Some(item) = db.get(&db.tables.state, key(keys::IDENTITY, ALONE)).await? else {
        return Err(StoreError::Broken(format!(
            "the DynamoDB table {} does not say which store it is of: run `credvend store init`",
            db.tables.state
        )));
    };
    let row = Row(&item);
    let schema: u32 = row.number(SCHEMA)?;
    if schema > SCHEMA_VERSION {
        return Err(StoreError::Broken(format!(
            "the DynamoDB tables are used by a newer credvend (schema {schema}, this one knows {SCHEMA_VERSION}): update this one"
        )));
    }
    Ok(row.text(EPOCH)?.to_owned())
}

/// Says which store this is, unless something says so already, or `anew`.
pub(super) async fn draw_epoch(db: &Db, anew: bool) -> Result<(), StoreError> {
    let mut item = key(keys::IDENTITY, ALONE);
    put(&mut item, EPOCH, text(uuid::Uuid::new_v4().simple().to_string()));
    put(&mut item, SCHEMA, number(SCHEMA_VERSION));
    let request = db.client.put_item().table_name(&db.tables.state).set_item(Some(item));
    let request = if anew { request } else { request.condition_expression(format!("attribute_not_exists({PK})")) };
    match db.call(|| request.clone().send()).await {
        Ok(_) | Err(Refused::Service(PutItemError::ConditionalCheckFailedException(_), _)) => Ok(()),
        Err(other) => Err(other.into()),
    }
}
