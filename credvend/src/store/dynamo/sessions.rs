//! Sessions. A session is one item; beside it stand, written in one transaction with it, what makes its opening
//! idempotent (a job's run, a head's submission) and its places in the listings. Those never change, but for the list of
//! ACTIVE sessions, from which the transaction that ends it takes it out.

use std::collections::HashSet;
use std::sync::Arc;

use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{
    AttributeValue, Delete, Put, ReturnValue, ReturnValuesOnConditionCheckFailure, TransactWriteItem, Update,
};
use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::{ClusterName, JobId, NodeName, SessionId, TokenHash, Uid};
use time::OffsetDateTime;

use super::cursor;
use super::db::{Cancelled, Db, Refused, defect, failed};
use super::item::{ALONE, Item, PK, Row, SK, from_micros, key, micros, number, put, put_text, text};
use super::long_text::{self, Found};
use super::orders::bare;
use super::weeks::Weeks;
use super::{keys, nodes_text, walk::Walk};
use crate::store::{
    Cursor, Ended, OpenRun, Opened, Origin, PAGE, Page, RUNS_PAGE, Run, Session, SessionFilter, StoreError,
};

const CLUSTER: &str = "ClusterName";
const USER: &str = "UserName";
const UID: &str = "Uid";
const PROJECT: &str = "ProjectId";
const PARTITION: &str = "PartitionName";
const NODES: &str = "Nodes";
const ADDED_NODES: &str = "AddedNodes";
const JOB: &str = "JobId";
const RESTART: &str = "JobRestart";
const SUBMITTED: &str = "JobSubmitted";
const HEAD_SESSION: &str = "HeadSession";
const HEAD_SUBMITTED: &str = "HeadSubmitted";
const TOKEN: &str = "TokenHash";
const OPENED: &str = "OpenedAt";
const ENDED: &str = "EndedAt";
const STATUS: &str = "SessionStatus";
const WHY: &str = "EndReason";
/// Counts what was changed, so that an end returns what it ended.
const CHANGES: &str = "Changes";
const SESSION: &str = "SessionId";

const ACTIVE: &str = "ACTIVE";

fn status_word(status: SessionStatus) -> &'static str {
    match status {
        SessionStatus::Active => ACTIVE,
        SessionStatus::Invalidated => "INVALIDATED",
        SessionStatus::Completed => "COMPLETED",
    }
}

/// What a listing's entry says.
fn entry(session: &Session, pk: String, sk: String) -> Item {
    let mut item = key(pk, sk);
    put(&mut item, SESSION, text(session.id.to_string()));
    put(&mut item, CLUSTER, text(session.cluster.as_str()));
    put(&mut item, USER, text(session.user.as_str()));
    put(&mut item, PROJECT, text(session.project.as_str()));
    put(&mut item, OPENED, number(micros(session.opened)));
    if let Some(uid) = session.uid {
        put(&mut item, UID, number(uid.0));
    }
    if let Origin::Slurm(run) = &session.origin {
        put(&mut item, JOB, number(run.job));
        put(&mut item, RESTART, number(run.restart));
        put(&mut item, SUBMITTED, number(micros(run.submitted)));
    }
    item
}

async fn item(db: &Db, session: &Session) -> Result<Item, StoreError> {
    let mut item = entry(session, keys::session(session.id), ALONE.into());
    put_text(&mut item, PARTITION, session.partition.as_ref().map(|p| p.as_str()));
    put(&mut item, STATUS, text(status_word(session.status)));
    put(&mut item, CHANGES, number(0));
    put_text(&mut item, WHY, session.why.as_deref());
    if let Some(ended) = session.ended {
        put(&mut item, ENDED, number(micros(ended)));
    }
    if let Origin::Head { head_session, submitted, token } = &session.origin {
        put(&mut item, HEAD_SESSION, text(head_session));
        put(&mut item, HEAD_SUBMITTED, text(submitted));
        put(&mut item, TOKEN, text(token.to_hex()));
    }
    long_text::write(db, &mut item, NODES, &nodes_text::written(&session.nodes), long_text::LITTLE).await?;
    Ok(item)
}

fn run(row: Row<'_>) -> Result<Option<Run>, StoreError> {
    let Some(job) = row.opt_number::<JobId>(JOB)? else { return Ok(None) };
    Ok(Some(Run { job, restart: row.number(RESTART)?, submitted: row.time(SUBMITTED)? }))
}

pub(super) async fn read(db: &Db, item: &Item) -> Result<Session, StoreError> {
    let mut session = without_nodes(item)?;
    let text = match long_text::find(db, item, NODES).await? {
        Found::Nothing => String::new(),
        Found::Whole(text) => text,
        // They never change, and go only with a session that ended long ago.
        Found::Gone if session.status != SessionStatus::Active => {
            tracing::warn!(session = %session.id, "the session is half pruned: its nodes are gone, and it goes next");
            String::new()
        }
        Found::Gone => return Err(long_text::gone()),
    };
    session.nodes = nodes_text::read(&text)?;
    let row = Row(item);
    for node in row.texts(ADDED_NODES)? {
        session.nodes.push(node.parse().map_err(|e| row.broken(ADDED_NODES, e))?);
    }
    Ok(session)
}

/// What the item itself says: not a large job's nodes.
fn without_nodes(item: &Item) -> Result<Session, StoreError> {
    let row = Row(item);
    let origin = match run(row)? {
        Some(run) => Origin::Slurm(run),
        None => Origin::Head {
            head_session: row.text(HEAD_SESSION)?.to_owned(),
            submitted: row.text(HEAD_SUBMITTED)?.to_owned(),
            token: row.parsed(TOKEN)?,
        },
    };
    Ok(Session {
        id: row.parsed(SESSION)?,
        cluster: row.parsed(CLUSTER)?,
        user: row.parsed(USER)?,
        uid: row.opt_number::<u32>(UID)?.map(Uid),
        project: row.parsed(PROJECT)?,
        partition: row.opt_parsed(PARTITION)?,
        nodes: vec![],
        origin,
        opened: row.time(OPENED)?,
        ended: row.opt_number(ENDED)?.map(from_micros),
        status: status_of(row)?,
        why: row.opt_text(WHY)?.map(str::to_owned),
    })
}

/// Cuts times to what is kept.
fn kept(mut session: Session) -> Session {
    let cut = |at| from_micros(micros(at));
    session.opened = cut(session.opened);
    session.ended = session.ended.map(cut);
    if let Origin::Slurm(run) = &mut session.origin {
        run.submitted = cut(run.submitted);
    }
    session
}

/// Where the item is that makes opening idempotent.
fn first_of(session: &Session) -> (String, String) {
    match &session.origin {
        Origin::Slurm(run) => (keys::runs(&session.cluster, run.job.get()), keys::run(run)),
        Origin::Head { head_session, submitted, .. } => {
            (keys::head(&session.cluster, head_session), keys::bounded(submitted))
        }
    }
}

/// Its immutable places: the log first.
fn places(session: &Session) -> [(String, String); 3] {
    let place = keys::place(session.opened, session.id);
    [
        (keys::log(&session.cluster, session.opened, session.id), place.clone()),
        (keys::user(&session.user), place.clone()),
        (keys::project(&session.project), place),
    ]
}

/// The list of its status, where there is one.
fn by_status(session: &Session) -> Option<String> {
    match session.status {
        SessionStatus::Active => Some(keys::active(&session.cluster, session.id)),
        SessionStatus::Invalidated => Some(keys::invalidated(&session.cluster, session.id)),
        SessionStatus::Completed => None,
    }
}

fn put_new(table: &str, item: Item) -> Result<TransactWriteItem, StoreError> {
    let put = Put::builder()
        .table_name(table)
        .set_item(Some(item))
        .condition_expression(format!("attribute_not_exists({PK})"))
        .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
        .build()
        .map_err(defect)?;
    Ok(TransactWriteItem::builder().put(put).build())
}

fn put_any(table: &str, item: Item) -> Result<TransactWriteItem, StoreError> {
    let put = Put::builder().table_name(table).set_item(Some(item)).build().map_err(defect)?;
    Ok(TransactWriteItem::builder().put(put).build())
}

pub(super) async fn open(db: &Db, weeks: &Weeks, session: Session) -> Result<Opened, StoreError> {
    let session = kept(session);
    let table = &db.tables.sessions;
    weeks.note(db, table, keys::CLUSTERS, &keys::name(&session.cluster), keys::week(session.opened)).await?;
    let own = item(db, &session).await?;
    let (pk, sk) = first_of(&session);
    let mut writes = vec![put_new(table, entry(&session, pk, sk))?, put_new(table, own.clone())?];
    for (pk, sk) in places(&session) {
        writes.push(put_any(table, entry(&session, pk, sk))?);
    }
    if let Some(pk) = by_status(&session) {
        writes.push(put_any(table, entry(&session, pk, keys::place(session.opened, session.id)))?);
    }
    match db.transact(writes).await {
        Ok(()) => return Ok(Opened::New(session)),
        Err(Cancelled::Store(error)) => return Err(error),
        Err(Cancelled::Conditions(reasons)) => {
            let first = reasons.first().filter(|r| failed(r)).and_then(|r| r.item.as_ref());
            long_text::delete(db, &own, NODES).await?;
            let Some(first) = first else {
                return Err(StoreError::Broken(format!("another run has session id {} already", session.id)));
            };
            let existing: SessionId = Row(first).parsed(SESSION)?;
            if let Some(existing) = get(db, existing).await? {
                return Ok(Opened::Existing(existing));
            }
        }
    }
    Err(StoreError::Unavailable("the run's earlier session is being pruned".into()))
}

fn status_of(row: Row<'_>) -> Result<SessionStatus, StoreError> {
    match row.text(STATUS)? {
        ACTIVE => Ok(SessionStatus::Active),
        "INVALIDATED" => Ok(SessionStatus::Invalidated),
        "COMPLETED" => Ok(SessionStatus::Completed),
        _ => Err(row.broken(STATUS, "there is no such status")),
    }
}

fn session_key(id: SessionId) -> Item {
    key(keys::session(id), ALONE)
}

pub(super) async fn get(db: &Db, id: SessionId) -> Result<Option<Session>, StoreError> {
    match db.get(&db.tables.sessions, session_key(id)).await? {
        Some(item) => Ok(Some(read(db, &item).await?)),
        None => Ok(None),
    }
}

/// The item alone: a large job's nodes stand elsewhere.
pub(super) async fn status(db: &Db, id: SessionId) -> Result<Option<(SessionStatus, Option<String>)>, StoreError> {
    let Some(item) = db.get(&db.tables.sessions, session_key(id)).await? else { return Ok(None) };
    Ok(Some((status_of(Row(&item))?, Row(&item).opt_text(WHY)?.map(str::to_owned))))
}

pub(super) async fn find_run(db: &Db, cluster: &ClusterName, run: &Run) -> Result<Option<Session>, StoreError> {
    let own = keys::run(&Run { submitted: from_micros(micros(run.submitted)), ..*run });
    let unrecorded = keys::run(&Run { submitted: Run::UNRECORDED, ..*run });
    let pk = keys::runs(cluster, run.job.get());
    let prefix = keys::restart(run.restart);
    let entries = db.partition(&db.tables.sessions, &pk, (&prefix, &format!("{prefix}{}", keys::HIGHEST))).await?;
    for (wanted, whatever_status) in [(own, true), (unrecorded, false)] {
        let Some(entry) = entries.iter().find(|e| Row(e).text(SK).is_ok_and(|sk| sk == wanted)) else { continue };
        let found = get(db, Row(entry).parsed(SESSION)?).await?;
        if let Some(session) = found.filter(|s| whatever_status || s.status == SessionStatus::Active) {
            return Ok(Some(session));
        }
    }
    Ok(None)
}

pub(super) async fn find_head(
    db: &Db,
    clusters: &[ClusterName],
    head_session: &str,
) -> Result<Option<Session>, StoreError> {
    let mut newest: Option<(String, SessionId)> = None;
    for cluster in clusters {
        let pk = keys::head(cluster, head_session);
        for entry in db.partition(&db.tables.sessions, &pk, (" ", keys::HIGHEST)).await? {
            let id: SessionId = Row(&entry).parsed(SESSION)?;
            let place = keys::place(Row(&entry).time(OPENED)?, id);
            if newest.as_ref().is_none_or(|(best, _)| *best < place) {
                newest = Some((place, id));
            }
        }
    }
    match newest {
        Some((_, id)) => get(db, id).await,
        None => Ok(None),
    }
}

pub(super) async fn list_runs(
    db: &Arc<Db>,
    cluster: &ClusterName,
    from: Option<&Cursor>,
) -> Result<Page<OpenRun>, StoreError> {
    let scope = cursor::scope("runs", cluster)?;
    let from = from.map(|c| cursor::read(&scope, c)).transpose()?.unwrap_or(keys::HIGHEST.into());
    let bounds = (keys::LOWEST, from.as_str());
    let mut walk = Walk::new(db, &db.tables.sessions, [keys::all_active(cluster)], bounds, None);
    let mut runs = vec![];
    while runs.len() <= RUNS_PAGE {
        let Some(item) = walk.next().await? else { break };
        let row = Row(&item);
        let Some(run) = run(row)? else { continue };
        let uid = row.opt_number::<u32>(UID)?.map(Uid);
        runs.push((row.text(SK)?.to_owned(), OpenRun { id: row.parsed(SESSION)?, run, uid }));
    }
    Ok(cursor::page(&scope, runs, RUNS_PAGE))
}

fn update(id: SessionId) -> aws_sdk_dynamodb::types::builders::UpdateBuilder {
    Update::builder().set_key(Some(session_key(id)))
}

pub(super) async fn replace_token(db: &Db, id: SessionId, token: &TokenHash) -> Result<Option<Session>, StoreError> {
    let request = db
        .client
        .update_item()
        .table_name(&db.tables.sessions)
        .set_key(Some(session_key(id)))
        .update_expression(format!("SET {TOKEN} = :token ADD {CHANGES} :one"))
        .condition_expression(format!("{STATUS} = :active AND attribute_exists({TOKEN})"))
        .expression_attribute_values(":token", text(token.to_hex()))
        .expression_attribute_values(":active", text(ACTIVE))
        .expression_attribute_values(":one", number(1))
        .return_values(ReturnValue::AllNew);
    match db.call(|| request.clone().send()).await {
        Ok(answer) => Ok(Some(read(db, &answer.attributes.unwrap_or_default()).await?)),
        Err(Refused::Service(UpdateItemError::ConditionalCheckFailedException(_), _)) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

pub(super) async fn add_node(db: &Db, id: SessionId, node: &NodeName) -> Result<(), StoreError> {
    let Some(session) = get(db, id).await? else { return Ok(()) };
    if session.status != SessionStatus::Active || session.nodes.contains(node) {
        return Ok(());
    }
    let request = db
        .client
        .update_item()
        .table_name(&db.tables.sessions)
        .set_key(Some(session_key(id)))
        .update_expression(format!(
            "SET {ADDED_NODES} = list_append(if_not_exists({ADDED_NODES}, :none), :nodes) ADD {CHANGES} :one"
        ))
        .condition_expression(format!("{STATUS} = :active AND NOT contains({ADDED_NODES}, :node)"))
        .expression_attribute_values(":node", text(node.as_str()))
        .expression_attribute_values(":nodes", AttributeValue::L(vec![text(node.as_str())]))
        .expression_attribute_values(":none", AttributeValue::L(vec![]))
        .expression_attribute_values(":active", text(ACTIVE))
        .expression_attribute_values(":one", number(1));
    match db.call(|| request.clone().send()).await {
        Ok(_) | Err(Refused::Service(UpdateItemError::ConditionalCheckFailedException(_), _)) => Ok(()),
        Err(other) => Err(other.into()),
    }
}

pub(super) async fn end(
    db: &Db,
    id: SessionId,
    status: SessionStatus,
    at: OffsetDateTime,
    why: &str,
) -> Result<Ended, StoreError> {
    // A change between reading and ending makes it read again; a session does not change more often than a few times.
    for _ in 0..16 {
        let Some(item) = db.get(&db.tables.sessions, session_key(id)).await? else { return Ok(Ended::Unknown) };
        let mut session = read(db, &item).await?;
        if session.status != SessionStatus::Active {
            return Ok(Ended::Before(session));
        }
        let update = update(id)
            .table_name(&db.tables.sessions)
            .update_expression(format!("SET {STATUS} = :status, {ENDED} = :at, {WHY} = :why ADD {CHANGES} :one"))
            .condition_expression(format!("{STATUS} = :active AND {CHANGES} = :changes"))
            .expression_attribute_values(":status", text(status_word(status)))
            .expression_attribute_values(":at", number(micros(at)))
            .expression_attribute_values(":why", text(why))
            .expression_attribute_values(":active", text(ACTIVE))
            .expression_attribute_values(":changes", number(Row(&item).number::<i64>(CHANGES)?))
            .expression_attribute_values(":one", number(1))
            .build()
            .map_err(defect)?;
        let place = key(keys::active(&session.cluster, id), keys::place(session.opened, id));
        let delete = Delete::builder().table_name(&db.tables.sessions).set_key(Some(place)).build().map_err(defect)?;
        let mut writes = vec![
            TransactWriteItem::builder().update(update).build(),
            TransactWriteItem::builder().delete(delete).build(),
        ];
        session.status = status;
        session.ended = Some(from_micros(micros(at)));
        session.why = Some(why.to_owned());
        if let Some(pk) = by_status(&session) {
            let entry = entry(&session, pk, keys::place(session.opened, id));
            writes.push(put_any(&db.tables.sessions, entry)?);
        }
        match db.transact(writes).await {
            Ok(()) => return Ok(Ended::Now(session)),
            Err(Cancelled::Conditions(_)) => {}
            Err(Cancelled::Store(error)) => return Err(error),
        }
    }
    Err(StoreError::Unavailable(format!("session {id} changes all the time")))
}

/// Whether an entry may be of a session that the filter wants. The session itself decides.
fn may_match(filter: &SessionFilter, row: Row<'_>) -> Result<bool, StoreError> {
    let is = |name, wanted: Option<&str>| wanted.is_none_or(|wanted| row.text(name).is_ok_and(|v| v == wanted));
    let job = match filter.job {
        Some(job) => row.opt_number::<JobId>(JOB)? == Some(job),
        None => true,
    };
    Ok(job
        && is(CLUSTER, filter.cluster.as_ref().map(|v| v.as_str()))
        && is(USER, filter.user.as_ref().map(|v| v.as_str()))
        && is(PROJECT, filter.project.as_ref().map(|v| v.as_str())))
}

fn matches(filter: &SessionFilter, session: &Session) -> bool {
    filter.status.is_none_or(|v| v == session.status)
        && filter.cluster.as_ref().is_none_or(|v| *v == session.cluster)
        && filter.user.as_ref().is_none_or(|v| *v == session.user)
        && filter.project.as_ref().is_none_or(|v| *v == session.project)
        && filter.job.is_none_or(|v| matches!(session.origin, Origin::Slurm(run) if run.job == v))
        && filter.opened_before.is_none_or(|v| session.opened < v)
}

/// The cluster by whose name an item is listed.
pub(super) fn cluster_of(item: &Item) -> Result<ClusterName, StoreError> {
    keys::cluster(Row(item).text(SK)?).ok_or_else(|| Row(item).broken(SK, "it is no cluster"))
}

/// The clusters that ever had a session here, and the weeks of their logs.
pub(super) async fn clusters(db: &Db) -> Result<Vec<(ClusterName, i64, i64)>, StoreError> {
    let items = db.partition(&db.tables.sessions, keys::CLUSTERS, (" ", keys::HIGHEST)).await?;
    items
        .iter()
        .map(|item| {
            let (oldest, newest) = Weeks::of(item)?;
            Ok((cluster_of(item)?, oldest, newest))
        })
        .collect()
}

/// The partitions to read, newest first.
async fn sources(db: &Db, filter: &SessionFilter, from: &str) -> Result<Vec<Vec<String>>, StoreError> {
    let of_status: Option<fn(&ClusterName) -> Vec<String>> = match filter.status {
        Some(SessionStatus::Active) => Some(keys::all_active),
        Some(SessionStatus::Invalidated) => Some(keys::all_invalidated),
        _ => None,
    };
    match (of_status, filter) {
        (Some(of_status), SessionFilter { cluster: Some(cluster), .. }) => return Ok(vec![of_status(cluster)]),
        (None, SessionFilter { user: Some(user), .. }) => return Ok(vec![vec![keys::user(user)]]),
        (None, SessionFilter { project: Some(project), .. }) => return Ok(vec![vec![keys::project(project)]]),
        _ => {}
    }
    let mut clusters = clusters(db).await?;
    clusters.retain(|(name, ..)| filter.cluster.as_ref().is_none_or(|wanted| wanted == name));
    if let Some(of_status) = of_status {
        return Ok(vec![clusters.iter().flat_map(|(name, ..)| of_status(name)).collect()]);
    }
    let Some(oldest) = clusters.iter().map(|(_, oldest, _)| *oldest).min() else { return Ok(vec![]) };
    let newest = clusters.iter().map(|(.., newest)| *newest).max().unwrap_or(oldest);
    let newest = keys::week_of_place(from).map_or(newest, |week| week.min(newest));
    let of_week = |week: i64| -> Vec<String> {
        let there = clusters.iter().filter(|(_, oldest, newest)| (*oldest..=*newest).contains(&week));
        there.flat_map(|(name, ..)| keys::log_of_week(name, week)).collect()
    };
    Ok((oldest..=newest).rev().map(of_week).collect())
}

/// One job's entries: its runs have another order than listings.
async fn of_job(db: &Db, filter: &SessionFilter, job: JobId, from: &str) -> Result<Vec<(String, Item)>, StoreError> {
    let clusters = match &filter.cluster {
        Some(cluster) => vec![cluster.clone()],
        None => clusters(db).await?.into_iter().map(|(name, ..)| name).collect(),
    };
    let mut all = vec![];
    for cluster in clusters {
        let pk = keys::runs(&cluster, job.get());
        for item in db.partition(&db.tables.sessions, &pk, (keys::LOWEST, keys::HIGHEST)).await? {
            let place = keys::place(Row(&item).time(OPENED)?, Row(&item).parsed::<SessionId>(SESSION)?);
            if place.as_str() < from {
                all.push((place, item));
            }
        }
    }
    all.sort_by(|a, b| b.0.cmp(&a.0));
    Ok(all)
}

/// Reads entries as they come, then their sessions, until a page is full.
pub(super) async fn list(
    db: &Arc<Db>,
    filter: &SessionFilter,
    from: Option<&Cursor>,
) -> Result<Page<Session>, StoreError> {
    const AT_ONCE: usize = 200;
    let scope = cursor::scope("sessions", filter)?;
    let from = match from {
        Some(cursor) => cursor::read(&scope, cursor)?,
        None => filter.opened_before.map_or(keys::HIGHEST.into(), |at| keys::sortable(micros(at))),
    };
    let mut of_job = match filter.job {
        Some(job) => Some(of_job(db, filter, job, &from).await?.into_iter()),
        None => None,
    };
    let groups = if of_job.is_some() { vec![] } else { sources(db, filter, &from).await? };
    let mut walk = Walk::new(db, &db.tables.sessions, groups, (keys::LOWEST, &from), Some(AT_ONCE as i32));
    let mut found = vec![];
    while found.len() <= PAGE {
        let mut some: Vec<(String, SessionId)> = vec![];
        while some.len() < AT_ONCE {
            let next = match &mut of_job {
                Some(entries) => entries.next(),
                None => match walk.next().await? {
                    Some(item) => Some((Row(&item).text(SK)?.to_owned(), item)),
                    None => None,
                },
            };
            let Some((place, item)) = next else { break };
            if may_match(filter, Row(&item))? {
                some.push((place, Row(&item).parsed(SESSION)?));
            }
        }
        if some.is_empty() {
            break;
        }
        let items = db.get_all(&db.tables.sessions, some.iter().map(|(_, id)| session_key(*id)).collect()).await?;
        let mut sessions = std::collections::HashMap::new();
        for item in &items {
            let session = read(db, item).await?;
            sessions.insert(session.id, session);
        }
        found.extend(some.into_iter().filter_map(|(place, id)| {
            let session = sessions.remove(&id)?;
            matches(filter, &session).then_some((place, session))
        }));
    }
    Ok(cursor::page(&scope, found, PAGE))
}

/// Deletes what of a week's log ended before a time; how many sessions. Cut off anywhere, it goes on the next time: what
/// leads to something goes after it, and the log, which leads to all, last.
pub(super) async fn prune_partition(db: &Db, pk: &str, before: OffsetDateTime) -> Result<u64, StoreError> {
    let table = &db.tables.sessions;
    let (mut gone, mut low) = (0, keys::LOWEST.to_owned());
    loop {
        // What ended before was opened before.
        let high = keys::sortable(micros(before));
        let (entries, more) = db.query(table, pk, (&low, &high), true, Some(500)).await?;
        let Some(last) = entries.last() else { return Ok(gone) };
        low = format!("{}\u{1}", Row(last).text(SK)?);
        let ids: Vec<SessionId> = entries.iter().map(|e| Row(e).parsed(SESSION)).collect::<Result<_, _>>()?;
        let items = db.get_all(table, ids.iter().map(|id| session_key(*id)).collect()).await?;
        let (mut listed, mut pieces, mut own, mut stays) = (vec![], vec![], vec![], HashSet::new());
        for item in &items {
            let session = without_nodes(item)?;
            if session.ended.is_none_or(|ended| ended >= before) {
                stays.insert(session.id);
                continue;
            }
            let [_, places @ ..] = places(&session);
            listed.extend(places.into_iter().chain([first_of(&session)]).map(|(pk, sk)| key(pk, sk)));
            listed.extend(by_status(&session).map(|pk| key(pk, keys::place(session.opened, session.id))));
            pieces.extend(long_text::pieces(item, NODES)?);
            own.push(session_key(session.id));
        }
        // Also entries whose session has gone already: a session is opened in one transaction with them.
        let logged: Vec<Item> =
            entries.iter().zip(&ids).filter(|(_, id)| !stays.contains(id)).map(|(e, _)| bare(e.clone())).collect();
        gone += logged.len() as u64;
        db.write_all(table, vec![], listed).await?;
        db.write_all(&db.tables.state, vec![], pieces).await?;
        db.write_all(table, vec![], own).await?;
        db.write_all(table, vec![], logged).await?;
        if !more {
            return Ok(gone);
        }
    }
}
