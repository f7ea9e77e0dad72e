//! What AWS issued: a copy in the partition of each question (user, session, project, role, node), and an entry in the log
//! by which it is pruned. The writes need no transaction: they are idempotent, and the credentials are served only when
//! all are done.
//!
//! A role's partition takes as many writes as STS gives the role credentials: STS' own limit, about 600 a second for a
//! whole account, is below what DynamoDB takes for one partition key.

use std::sync::Arc;

use time::{Duration, OffsetDateTime};

use super::cursor;
use super::db::Db;
use super::item::{Item, Row, SK, TTL, key, micros, number, put, put_text, text};
use super::walk::Walk;
use super::weeks::Weeks;
use super::{item, keys};
use crate::store::{Cursor, Issuance, IssuedTo, PAGE, Page, StoreError};

/// AWS lets no credentials live longer: what lives now was issued since then.
const LONGEST_LIFE: Duration = Duration::hours(36);

/// DynamoDB itself deletes what nobody pruned, this long after its expiry.
const FORGOTTEN_AFTER: Duration = Duration::days(400);

const SESSION: &str = "SessionId";
const USER: &str = "UserName";
const CLUSTER: &str = "ClusterName";
const PROJECT: &str = "ProjectId";
const ROLE: &str = "RoleName";
const ROLE_ARN: &str = "RoleArn";
const ROLE_ID: &str = "RoleId";
const SESSION_NAME: &str = "RoleSessionName";
const SOURCE_IDENTITY: &str = "SourceIdentity";
const KEY_ID: &str = "AccessKeyId";
const NODE: &str = "NodeName";
const ISSUED: &str = "IssuedAt";
const EXPIRES: &str = "ExpiresAt";

fn place(issuance: &Issuance) -> String {
    keys::place(issuance.issued, format_args!("{}#{}", issuance.session, keys::bounded(&issuance.key_id)))
}

fn copies(issuance: &Issuance) -> Vec<IssuedTo> {
    let mut of = vec![
        IssuedTo::Session(issuance.session),
        IssuedTo::User(issuance.user.clone()),
        IssuedTo::Project(issuance.project.clone()),
        IssuedTo::Role(issuance.role_arn.clone()),
    ];
    of.extend(issuance.node.clone().map(|node| IssuedTo::Node(issuance.cluster.clone(), node)));
    of
}

fn log_place(issuance: &Issuance) -> (String, String) {
    let pk = keys::expiring(keys::week(issuance.expires), issuance.session);
    (pk, format!("{}#{}", keys::sortable(micros(issuance.expires)), place(issuance)))
}

fn written(issuance: &Issuance, (pk, sk): (String, String)) -> Item {
    let mut item = key(pk, sk);
    put(&mut item, SESSION, text(issuance.session.to_string()));
    put(&mut item, USER, text(issuance.user.as_str()));
    put(&mut item, CLUSTER, text(issuance.cluster.as_str()));
    put(&mut item, PROJECT, text(issuance.project.as_str()));
    put(&mut item, ROLE, text(issuance.role.as_str()));
    put(&mut item, ROLE_ARN, text(issuance.role_arn.as_str()));
    put(&mut item, ROLE_ID, text(&issuance.role_id));
    put(&mut item, SESSION_NAME, text(&issuance.session_name));
    put_text(&mut item, SOURCE_IDENTITY, issuance.source_identity.as_deref());
    put(&mut item, KEY_ID, text(&issuance.key_id));
    put_text(&mut item, NODE, issuance.node.as_ref().map(|n| n.as_str()));
    put(&mut item, ISSUED, number(micros(issuance.issued)));
    put(&mut item, EXPIRES, number(micros(issuance.expires)));
    put(&mut item, TTL, item::forgotten(issuance.expires, FORGOTTEN_AFTER));
    item
}

pub(super) fn read(item: &Item) -> Result<Issuance, StoreError> {
    let row = Row(item);
    Ok(Issuance {
        session: row.parsed(SESSION)?,
        user: row.parsed(USER)?,
        cluster: row.parsed(CLUSTER)?,
        project: row.parsed(PROJECT)?,
        role: row.parsed(ROLE)?,
        role_arn: row.parsed(ROLE_ARN)?,
        role_id: row.text(ROLE_ID)?.to_owned(),
        session_name: row.text(SESSION_NAME)?.to_owned(),
        source_identity: row.opt_text(SOURCE_IDENTITY)?.map(str::to_owned),
        key_id: row.text(KEY_ID)?.to_owned(),
        node: row.opt_parsed(NODE)?,
        issued: row.time(ISSUED)?,
        expires: row.time(EXPIRES)?,
    })
}

pub(super) async fn record(db: &Db, weeks: &Weeks, issuance: &Issuance) -> Result<(), StoreError> {
    if issuance.expires - issuance.issued > LONGEST_LIFE {
        return Err(StoreError::Broken(format!(
            "credentials that live longer than {} hours cannot be recorded: AWS gives none (key {:?} of session {})",
            LONGEST_LIFE.whole_hours(),
            issuance.key_id,
            issuance.session
        )));
    }
    let table = &db.tables.issuances;
    weeks.note(db, table, keys::WEEKS, item::ALONE, keys::week(issuance.expires)).await?;
    let mut puts = vec![written(issuance, log_place(issuance))];
    puts.extend(copies(issuance).iter().map(|of| written(issuance, (keys::issued_to(of), place(issuance)))));
    db.write_all(table, puts, vec![]).await
}

pub(super) async fn list(
    db: &Arc<Db>,
    of: &IssuedTo,
    alive_at: OffsetDateTime,
    from: Option<&Cursor>,
) -> Result<Page<Issuance>, StoreError> {
    let scope = cursor::scope("issuances", of)?;
    let from = from.map(|c| cursor::read(&scope, c)).transpose()?.unwrap_or(keys::HIGHEST.into());
    let low = keys::sortable(micros(alive_at.saturating_sub(LONGEST_LIFE)));
    let groups = [vec![keys::issued_to(of)]];
    let mut walk = Walk::new(db, &db.tables.issuances, groups, (&low, &from), Some(PAGE as i32 + 2));
    let mut found = vec![];
    while found.len() <= PAGE {
        let Some(item) = walk.next().await? else { break };
        let issuance = read(&item)?;
        if issuance.expires > alive_at {
            found.push((Row(&item).text(SK)?.to_owned(), issuance));
        }
    }
    Ok(cursor::page(&scope, found, PAGE))
}

/// From which week to which there are any.
pub(super) async fn weeks(db: &Db) -> Result<Option<(i64, i64)>, StoreError> {
    db.get(&db.tables.issuances, key(keys::WEEKS, item::ALONE)).await?.as_ref().map(Weeks::of).transpose()
}

/// Deletes what of one partition of the log expired before a time; how many.
pub(super) async fn prune_partition(db: &Db, pk: &str, before: OffsetDateTime) -> Result<u64, StoreError> {
    let table = &db.tables.issuances;
    let mut gone = 0;
    loop {
        let high = keys::sortable(micros(before));
        let (entries, more) = db.query(table, pk, (keys::LOWEST, &high), true, Some(200)).await?;
        let (mut copied, mut logged) = (vec![], vec![]);
        for entry in &entries {
            let issuance = read(entry)?;
            copied.extend(copies(&issuance).iter().map(|of| key(keys::issued_to(of), place(&issuance))));
            let (pk, sk) = log_place(&issuance);
            logged.push(key(pk, sk));
        }
        gone += logged.len() as u64;
        // Last what leads here again.
        db.write_all(table, vec![], copied).await?;
        db.write_all(table, vec![], logged).await?;
        if !more {
            return Ok(gone);
        }
    }
}
