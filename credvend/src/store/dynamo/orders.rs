//! Revocation orders, who answered them, blocks, and what AWS must deny.

use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::types::{Delete, Put, ReturnValuesOnConditionCheckFailure, TransactWriteItem};
use credd_protocol::{ClusterName, NodeName, RoleArn};
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;

use super::db::{Db, Refused, defect};
use super::item::{ALONE, Item, PK, Row, SK, TTL, forgotten, from_micros, key, micros, number, put, text};
use super::{cursor, keys, long_text, nodes_text};
use crate::store::{Block, Cursor, Denied, Order, OrderId, PAGE, Page, Revocation, StoreError, Subject};

const BODY: &str = "Body";
const AT: &str = "OrderedAt";
const DONE: &str = "DoneAt";
const ORDER: &str = "OrderId";
const CLUSTER: &str = "ClusterName";
const NODES: &str = "Nodes";
const ROLE_ARN: &str = "RoleArn";
const DENIED: &str = "Denied";
const ISSUED_BEFORE: &str = "IssuedBefore";
const UNTIL: &str = "DeniedUntil";
const ORDERED: &str = "Ordered";

/// Nodes that one item of answers holds.
const HEARD_AT_ONCE: usize = 2000;

pub(super) fn body(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|e| StoreError::Broken(format!("a record cannot be written: {e}")))
}

pub(super) fn parsed<T: DeserializeOwned>(row: Row<'_>, name: &str, body: &str) -> Result<T, StoreError> {
    serde_json::from_str(body).map_err(|e| row.broken(name, e))
}

fn order_key(id: OrderId) -> Item {
    key(keys::order(id), ALONE)
}

async fn read(db: &Db, item: &Item) -> Result<Order, StoreError> {
    let body = long_text::read(db, item, BODY).await?;
    parsed(Row(item), BODY, &body.ok_or_else(|| Row(item).broken(BODY, "it is missing"))?)
}

fn put_item(table: &str, item: Item) -> Result<TransactWriteItem, StoreError> {
    let put = Put::builder().table_name(table).set_item(Some(item)).build().map_err(defect)?;
    Ok(TransactWriteItem::builder().put(put).build())
}

fn delete_item(table: &str, key: Item) -> Result<TransactWriteItem, StoreError> {
    let delete = Delete::builder().table_name(table).set_key(Some(key)).build().map_err(defect)?;
    Ok(TransactWriteItem::builder().delete(delete).build())
}

pub(super) async fn put_order(db: &Db, order: &Order) -> Result<(), StoreError> {
    let table = &db.tables.state;
    let old = db.get(table, order_key(order.id)).await?;
    let place = keys::place(order.at, order.id.0);
    let mut own = order_key(order.id);
    put(&mut own, AT, number(micros(order.at)));
    long_text::write(db, &mut own, BODY, &body(order)?, long_text::MUCH).await?;
    let mut entry = key(keys::ORDERS, &place);
    put(&mut entry, ORDER, text(order.id.to_string()));
    if let Some(done) = order.done {
        put(&mut entry, DONE, number(micros(done)));
    }
    let mut writes = vec![put_item(table, own)?, put_item(table, entry)?];
    let mut open = key(keys::OPEN_ORDERS, &place);
    writes.push(if order.done.is_some() {
        delete_item(table, open)?
    } else {
        put(&mut open, ORDER, text(order.id.to_string()));
        put_item(table, open)?
    });
    if let Some(old) = &old {
        let before = keys::place(Row(old).time(AT)?, order.id.0);
        if before != place {
            writes.push(delete_item(table, key(keys::ORDERS, &before))?);
            writes.push(delete_item(table, key(keys::OPEN_ORDERS, &before))?);
        }
    }
    db.transact(writes).await?;
    match &old {
        Some(old) => long_text::delete(db, old, BODY).await,
        None => Ok(()),
    }
}

pub(super) async fn get_order(db: &Db, id: OrderId) -> Result<Option<Order>, StoreError> {
    // A report that is replaced while it is read is read again.
    for _ in 0..4 {
        let Some(item) = db.get(&db.tables.state, order_key(id)).await? else { return Ok(None) };
        match read(db, &item).await {
            Err(StoreError::Unavailable(_)) => {}
            other => return other.map(Some),
        }
    }
    Err(StoreError::Unavailable(format!("order {id} changes all the time")))
}

/// The orders of these entries, in their order.
async fn of_entries(db: &Db, entries: Vec<Item>) -> Result<Vec<(String, Order)>, StoreError> {
    let mut orders = vec![];
    for entry in &entries {
        let id = Row(entry).parsed(ORDER).map(OrderId)?;
        // One by one: they may be long, and there are few.
        if let Some(order) = get_order(db, id).await? {
            orders.push((Row(entry).text(SK)?.to_owned(), order));
        }
    }
    Ok(orders)
}

pub(super) async fn list(db: &Db, from: Option<&Cursor>) -> Result<Page<Order>, StoreError> {
    let scope = "orders";
    let from = from.map(|c| cursor::read(scope, c)).transpose()?.unwrap_or(keys::HIGHEST.into());
    let (mut entries, mut high) = (vec![], from.clone());
    while entries.len() <= PAGE {
        let limit = Some(PAGE as i32 + 2);
        let (items, more) = db.query(&db.tables.state, keys::ORDERS, (keys::LOWEST, &high), false, limit).await?;
        if let Some(last) = items.last() {
            high = Row(last).text(SK)?.to_owned();
        }
        let known = entries.last().map(|e: &Item| e[SK].clone());
        let new =
            items.into_iter().filter(|i| Row(i).text(SK).is_ok_and(|sk| sk != from) && Some(&i[SK]) != known.as_ref());
        entries.extend(new);
        if !more {
            break;
        }
    }
    entries.truncate(PAGE + 1);
    Ok(cursor::page(scope, of_entries(db, entries).await?, PAGE))
}

/// The entries are small, and only those of the time are read.
pub(super) async fn since(db: &Db, at: OffsetDateTime) -> Result<Vec<Order>, StoreError> {
    let range = (keys::sortable(micros(at)), keys::HIGHEST);
    let (entries, _) = db.query(&db.tables.state, keys::ORDERS, (&range.0, range.1), false, Some(PAGE as i32)).await?;
    Ok(of_entries(db, entries).await?.into_iter().map(|(_, order)| order).collect())
}

pub(super) async fn open(db: &Db) -> Result<Vec<Order>, StoreError> {
    let entries = db.partition(&db.tables.state, keys::OPEN_ORDERS, (keys::LOWEST, keys::HIGHEST)).await?;
    Ok(of_entries(db, entries).await?.into_iter().map(|(_, order)| order).collect())
}

/// Deletes the orders that were done before a time, and their answers; how many orders.
pub(super) async fn prune(db: &Db, before: OffsetDateTime) -> Result<u64, StoreError> {
    let table = &db.tables.state;
    let mut gone = 0;
    for entry in db.partition(table, keys::ORDERS, (keys::LOWEST, keys::HIGHEST)).await? {
        let row = Row(&entry);
        if row.opt_number::<i64>(DONE)?.is_none_or(|done| done >= micros(before)) {
            continue;
        }
        let id = row.parsed(ORDER).map(OrderId)?;
        let answers = db.partition(table, &keys::heard(id), (" ", keys::HIGHEST)).await?;
        let mut deletes: Vec<Item> = answers.into_iter().map(bare).collect();
        if let Some(own) = db.get(table, order_key(id)).await? {
            long_text::delete(db, &own, BODY).await?;
            deletes.push(order_key(id));
        }
        db.write_all(table, vec![], deletes).await?;
        db.write_all(table, vec![], vec![bare(entry)]).await?;
        gone += 1;
    }
    Ok(gone)
}

/// An item's key alone.
pub(super) fn bare(mut item: Item) -> Item {
    item.retain(|name, _| name == PK || name == SK);
    item
}

/// One item for each report, with all its nodes: ten thousand answers are a handful of writes.
pub(super) async fn note_heard(
    db: &Db,
    order: OrderId,
    replica: &str,
    cluster: &ClusterName,
    nodes: &[NodeName],
) -> Result<(), StoreError> {
    let mut items = vec![];
    for some in nodes.chunks(HEARD_AT_ONCE) {
        let sk = format!("{}#{}", keys::bounded(replica), uuid::Uuid::new_v4());
        let mut item = key(keys::heard(order), sk);
        put(&mut item, CLUSTER, text(cluster.as_str()));
        put(&mut item, NODES, text(nodes_text::written(some)));
        items.push(item);
    }
    db.write_all(&db.tables.state, items, vec![]).await
}

pub(super) async fn heard(db: &Db, order: OrderId) -> Result<Vec<(ClusterName, NodeName)>, StoreError> {
    let mut all = std::collections::BTreeSet::new();
    for item in db.partition(&db.tables.state, &keys::heard(order), (" ", keys::HIGHEST)).await? {
        let cluster: ClusterName = Row(&item).parsed(CLUSTER)?;
        all.extend(nodes_text::read(Row(&item).text(NODES)?)?.into_iter().map(|node| (cluster.clone(), node)));
    }
    Ok(all.into_iter().collect())
}

fn block_key(subject: &Subject) -> Result<Item, StoreError> {
    Ok(key(keys::BLOCKS, keys::bounded(&body(subject)?)))
}

pub(super) async fn put_block(db: &Db, block: &Block) -> Result<(), StoreError> {
    let mut item = block_key(&block.subject)?;
    put(&mut item, BODY, text(body(block)?));
    db.write_all(&db.tables.state, vec![item], vec![]).await
}

/// Looked at first: a deletion that is made again after a lost answer could not say any more what it found.
pub(super) async fn remove_block(db: &Db, subject: &Subject) -> Result<bool, StoreError> {
    let key = block_key(subject)?;
    if db.get(&db.tables.state, key.clone()).await?.is_none() {
        return Ok(false);
    }
    db.write_all(&db.tables.state, vec![], vec![key]).await?;
    Ok(true)
}

pub(super) async fn blocks(db: &Db) -> Result<Vec<Block>, StoreError> {
    let items = db.partition(&db.tables.state, keys::BLOCKS, (" ", keys::HIGHEST)).await?;
    items.iter().map(|item| parsed(Row(item), BODY, Row(item).text(BODY)?)).collect()
}

fn denial_key(role: &RoleArn, whose: &Denied) -> Result<Item, StoreError> {
    Ok(key(keys::DENIALS, keys::bounded(&body(&(role, whose))?)))
}

fn read_denial(item: &Item) -> Result<Revocation, StoreError> {
    let row = Row(item);
    Ok(Revocation {
        role_arn: row.parsed(ROLE_ARN)?,
        whose: parsed(row, DENIED, row.text(DENIED)?)?,
        issued_before: row.time(ISSUED_BEFORE)?,
        until: row.time(UNTIL)?,
        // An older credvend wrote no such attribute, and did not know the difference.
        ordered: row.opt_number::<u8>(ORDERED)?.is_none_or(|ordered| ordered != 0),
    })
}

/// Writes what is not there, or the later of both times over what is, while nobody else does.
pub(super) async fn deny(db: &Db, revocation: &Revocation) -> Result<(), StoreError> {
    let own_key = denial_key(&revocation.role_arn, &revocation.whose)?;
    let mut old: Option<(i64, i64, bool)> = None;
    for _ in 0..64 {
        let mut new = (micros(revocation.issued_before), micros(revocation.until), revocation.ordered);
        if let Some((before, until, ordered)) = old {
            new = (new.0.max(before), new.1.max(until), new.2 || ordered);
            if old == Some(new) {
                return Ok(());
            }
        }
        let (before, until, ordered) = new;
        let mut item = own_key.clone();
        put(&mut item, ROLE_ARN, text(revocation.role_arn.as_str()));
        put(&mut item, DENIED, text(body(&revocation.whose)?));
        put(&mut item, ISSUED_BEFORE, number(before));
        put(&mut item, UNTIL, number(until));
        put(&mut item, ORDERED, number(u8::from(ordered)));
        put(&mut item, TTL, forgotten(from_micros(until), time::Duration::days(400)));
        let request = db
            .client
            .put_item()
            .table_name(&db.tables.state)
            .set_item(Some(item))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let request = match old {
            None => request.condition_expression(format!("attribute_not_exists({PK})")),
            Some((before, until, ordered)) => request
                .condition_expression(format!(
                    "{ISSUED_BEFORE} = :before AND {UNTIL} = :until AND \
                     (attribute_not_exists({ORDERED}) OR {ORDERED} = :ordered)"
                ))
                .expression_attribute_values(":before", number(before))
                .expression_attribute_values(":until", number(until))
                .expression_attribute_values(":ordered", number(u8::from(ordered))),
        };
        match db.call(|| request.clone().send()).await {
            Ok(_) => return Ok(()),
            Err(Refused::Service(PutItemError::ConditionalCheckFailedException(failed), _)) => {
                // Pruned meanwhile: as if it had never been.
                let there = failed.item.as_ref().map(read_denial).transpose()?;
                old = there.map(|d| (micros(d.issued_before), micros(d.until), d.ordered));
            }
            Err(other) => return Err(other.into()),
        }
    }
    Err(StoreError::Unavailable("an entry of what is denied changes all the time".into()))
}

pub(super) async fn denials_of(db: &Db, role: &RoleArn, whose: &[Denied]) -> Result<Vec<Revocation>, StoreError> {
    let keys = whose.iter().map(|whose| denial_key(role, whose)).collect::<Result<_, _>>()?;
    db.get_all(&db.tables.state, keys).await?.iter().map(read_denial).collect()
}

pub(super) async fn denials(db: &Db, alive_at: OffsetDateTime) -> Result<Vec<Revocation>, StoreError> {
    let items = db.partition(&db.tables.state, keys::DENIALS, (" ", keys::HIGHEST)).await?;
    let mut all: Vec<Revocation> = items.iter().map(read_denial).collect::<Result<_, _>>()?;
    all.retain(|d| d.until > alive_at);
    all.sort_by(|a, b| (&a.role_arn, &a.whose).cmp(&(&b.role_arn, &b.whose)));
    Ok(all)
}

/// Deletes the entries that nothing needs any more; how many.
pub(super) async fn prune_denials(db: &Db, before: OffsetDateTime) -> Result<u64, StoreError> {
    let mut gone = vec![];
    for item in db.partition(&db.tables.state, keys::DENIALS, (" ", keys::HIGHEST)).await? {
        if Row(&item).number::<i64>(UNTIL)? < micros(before) {
            gone.push(bare(item));
        }
    }
    let count = gone.len() as u64;
    db.write_all(&db.tables.state, vec![], gone).await?;
    Ok(count)
}
