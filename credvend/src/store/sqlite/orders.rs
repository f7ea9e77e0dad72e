//! The statements about revocations: orders, blocks, what AWS must deny.

use credd_protocol::{ClusterName, NodeName, RoleArn, SessionId};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;

use super::cursor::Place;
use super::rows::{from_micros, micros, text};
use crate::store::{Block, Denied, Order, OrderId, PAGE, Revocation, Subject};

/// A value as it stands in a `body` column. None of ours can fail to be written.
pub(super) fn written(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}

pub(super) fn parsed<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    serde_json::from_str(row.get_ref(column)?.as_str()?)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

pub(super) fn put(db: &Connection, order: &Order) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO orders (id, at, done, body) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (id) DO UPDATE SET at = excluded.at, done = excluded.done, body = excluded.body",
    )?
    .execute(params![order.id.0.as_bytes(), micros(order.at), order.done.map(micros), written(order)?])?;
    Ok(())
}

pub(super) fn get(db: &Connection, id: OrderId) -> rusqlite::Result<Option<Order>> {
    db.prepare_cached("SELECT body FROM orders WHERE id = ?1")?
        .query_row([id.0.as_bytes()], |row| parsed(row, 0))
        .optional()
}

pub(super) const LIST: &str = "SELECT body, at, seq FROM orders INDEXED BY orders_at
     WHERE (at, seq) < (?1, ?2) ORDER BY at DESC, seq DESC LIMIT ?3";

pub(super) fn list(db: &Connection, from: Option<Place>) -> rusqlite::Result<Vec<(Place, Order)>> {
    let from = from.unwrap_or(Place::NEWEST);
    db.prepare_cached(LIST)?
        .query_map(params![from.at, from.seq, PAGE as i64 + 1], |row| {
            Ok((Place { at: row.get(1)?, seq: row.get(2)? }, parsed(row, 0)?))
        })?
        .collect()
}

pub(super) const SINCE: &str =
    "SELECT body FROM orders INDEXED BY orders_at WHERE at >= ?1 ORDER BY at DESC, seq DESC LIMIT ?2";

pub(super) fn since(db: &Connection, at: OffsetDateTime) -> rusqlite::Result<Vec<Order>> {
    db.prepare_cached(SINCE)?.query_map(params![micros(at), PAGE as i64], |row| parsed(row, 0))?.collect()
}

pub(super) const OPEN: &str = "SELECT body FROM orders INDEXED BY orders_open WHERE done IS NULL ORDER BY at";

pub(super) fn open(db: &Connection) -> rusqlite::Result<Vec<Order>> {
    db.prepare_cached(OPEN)?.query_map([], |row| parsed(row, 0))?.collect()
}

pub(super) fn put_block(db: &Connection, block: &Block) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO blocks (subject, body) VALUES (?1, ?2) ON CONFLICT (subject) DO UPDATE SET body = excluded.body",
    )?
    .execute(params![written(&block.subject)?, written(block)?])?;
    Ok(())
}

pub(super) fn remove_block(db: &Connection, subject: &Subject) -> rusqlite::Result<bool> {
    Ok(db.prepare_cached("DELETE FROM blocks WHERE subject = ?1")?.execute([written(subject)?])? > 0)
}

pub(super) fn blocks(db: &Connection) -> rusqlite::Result<Vec<Block>> {
    db.prepare_cached("SELECT body FROM blocks ORDER BY subject")?.query_map([], |row| parsed(row, 0))?.collect()
}

pub(super) fn note_heard(
    db: &Connection,
    order: OrderId,
    cluster: &ClusterName,
    nodes: &[NodeName],
) -> rusqlite::Result<()> {
    let mut insert =
        db.prepare_cached("INSERT INTO heard (order_id, cluster, node) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING")?;
    for node in nodes {
        insert.execute(params![order.0.as_bytes(), cluster.as_str(), node.as_str()])?;
    }
    Ok(())
}

pub(super) fn heard(db: &Connection, order: OrderId) -> rusqlite::Result<Vec<(ClusterName, NodeName)>> {
    db.prepare_cached("SELECT cluster, node FROM heard WHERE order_id = ?1")?
        .query_map([order.0.as_bytes()], |row| Ok((text(row, 0)?, text(row, 1)?)))?
        .collect()
}

fn denied(kind: i64, name: String) -> Option<Denied> {
    match kind {
        0 => Some(Denied::SourceIdentity(name)),
        1 => Some(Denied::UserId(name)),
        2 => Some(Denied::Everyone),
        _ => None,
    }
}

fn kind_and_name(whose: &Denied) -> (i64, &str) {
    match whose {
        Denied::SourceIdentity(name) => (0, name),
        Denied::UserId(name) => (1, name),
        Denied::Everyone => (2, ""),
    }
}

pub(super) fn deny(db: &Connection, revocation: &Revocation) -> rusqlite::Result<()> {
    let (kind, name) = kind_and_name(&revocation.whose);
    db.prepare_cached(
        "INSERT INTO denials (role_arn, kind, name, issued_before, until, ordered) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (role_arn, kind, name) DO UPDATE SET
             issued_before = max(issued_before, excluded.issued_before), until = max(until, excluded.until),
             ordered = max(ordered, excluded.ordered)",
    )?
    .execute(params![
        revocation.role_arn.as_str(),
        kind,
        name,
        micros(revocation.issued_before),
        micros(revocation.until),
        revocation.ordered
    ])?;
    Ok(())
}

fn revocation(row: &Row<'_>) -> rusqlite::Result<Revocation> {
    Ok(Revocation {
        role_arn: text(row, 0)?,
        whose: denied(row.get(1)?, row.get(2)?)
            .ok_or_else(|| rusqlite::Error::FromSqlConversionFailure(1, Type::Integer, "no such kind".into()))?,
        issued_before: from_micros(row.get(3)?),
        until: from_micros(row.get(4)?),
        ordered: row.get(5)?,
    })
}

pub(super) fn denials(db: &Connection, alive_at: OffsetDateTime) -> rusqlite::Result<Vec<Revocation>> {
    db.prepare_cached(
        "SELECT role_arn, kind, name, issued_before, until, ordered FROM denials INDEXED BY denials_until
         WHERE until > ?1 ORDER BY role_arn, kind, name",
    )?
    .query_map([micros(alive_at)], revocation)?
    .collect()
}

const DENIAL: &str = "SELECT role_arn, kind, name, issued_before, until, ordered FROM denials
     WHERE role_arn = ?1 AND kind = ?2 AND name = ?3";

pub(super) fn denials_of(db: &Connection, role: &RoleArn, whose: &[Denied]) -> rusqlite::Result<Vec<Revocation>> {
    let mut select = db.prepare_cached(DENIAL)?;
    let mut found = vec![];
    for (kind, name) in whose.iter().map(kind_and_name) {
        found.extend(select.query_row(params![role.as_str(), kind, name], revocation).optional()?);
    }
    Ok(found)
}

/// Remembers a node of an ACTIVE session.
pub(super) fn add_node(db: &Connection, id: SessionId, node: &NodeName) -> rusqlite::Result<()> {
    let bytes = id.0.as_bytes();
    let nodes: Option<String> = db
        .prepare_cached("SELECT nodes FROM sessions WHERE id = ?1 AND status = 0")?
        .query_row([bytes], |row| row.get(0))
        .optional()?;
    let Some(nodes) = nodes.filter(|all| all.split_ascii_whitespace().all(|one| one != node.as_str())) else {
        return Ok(());
    };
    db.prepare_cached("UPDATE sessions SET nodes = ?2 WHERE id = ?1")?
        .execute(params![bytes, format!("{nodes} {node}").trim_start()])?;
    Ok(())
}
