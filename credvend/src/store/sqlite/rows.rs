//! Rows to and from types. A row that does not read is an error of the database, never a default.

use std::str::FromStr;

use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::{JobId, NodeName, SessionId, Uid};
use rusqlite::Row;
use rusqlite::types::Type;
use time::OffsetDateTime;

use super::cursor::Place;
use crate::store::{Issuance, OpenRun, Origin, Run, Session};

/// Microseconds since 1970, rounded down.
pub(super) fn micros(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos().div_euclid(1000)).unwrap_or(i64::MAX)
}

/// The time of a row. Out of what the type holds is cut to its ends.
pub(super) fn from_micros(micros: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).unwrap_or(if micros < 0 {
        time::PrimitiveDateTime::MIN.assume_utc()
    } else {
        time::PrimitiveDateTime::MAX.assume_utc()
    })
}

/// A column as one of the validated text types.
pub(super) fn text<T: FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text = row.get_ref(column)?.as_str()?;
    text.parse().map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

fn optional_text<T: FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    if row.get_ref(column)? == rusqlite::types::ValueRef::Null { Ok(None) } else { text(row, column).map(Some) }
}

pub(super) fn status_number(status: SessionStatus) -> i64 {
    match status {
        SessionStatus::Active => 0,
        SessionStatus::Invalidated => 1,
        SessionStatus::Completed => 2,
    }
}

pub(super) fn status(row: &Row<'_>, column: usize) -> rusqlite::Result<SessionStatus> {
    match row.get(column)? {
        0i64 => Ok(SessionStatus::Active),
        1 => Ok(SessionStatus::Invalidated),
        2 => Ok(SessionStatus::Completed),
        _ => Err(bad(column, "no such status")),
    }
}

fn bad(column: usize, what: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Null, what.to_owned().into())
}

/// The columns that [`session`] reads, in its order.
pub(super) const SESSION: &str = "id, cluster, user, uid, project, partition, nodes, job, restart, head_session, submitted, \
                                  token, opened, ended, status, why, seq, job_submitted";

pub(super) fn session(row: &Row<'_>) -> rusqlite::Result<Session> {
    let job: Option<u32> = row.get(7)?;
    let head: Option<String> = row.get(9)?;
    let origin = match (job, head) {
        (Some(_), None) => Origin::Slurm(run(row, [7, 8, 17])?),
        (None, Some(head_session)) => Origin::Head { head_session, submitted: row.get(10)?, token: text(row, 11)? },
        _ => return Err(bad(7, "a session is of a job or of a head")),
    };
    let nodes = row.get_ref(6)?.as_str()?;
    Ok(Session {
        id: session_id(row, 0)?,
        cluster: text(row, 1)?,
        user: text(row, 2)?,
        uid: row.get::<_, Option<u32>>(3)?.map(Uid),
        project: text(row, 4)?,
        partition: optional_text(row, 5)?,
        nodes: nodes
            .split_ascii_whitespace()
            .map(str::parse::<NodeName>)
            .collect::<Result<_, _>>()
            .map_err(|e| rusqlite::Error::FromSqlConversionFailure(6, Type::Text, Box::new(e)))?,
        origin,
        opened: from_micros(row.get(12)?),
        ended: row.get::<_, Option<i64>>(13)?.map(from_micros),
        status: status(row, 14)?,
        why: row.get(15)?,
    })
}

fn run(row: &Row<'_>, [job, restart, submitted]: [usize; 3]) -> rusqlite::Result<Run> {
    Ok(Run {
        job: JobId::try_from(row.get::<_, u32>(job)?)
            .map_err(|e| rusqlite::Error::FromSqlConversionFailure(job, Type::Integer, Box::new(e)))?,
        restart: row.get(restart)?,
        submitted: from_micros(row.get(submitted)?),
    })
}

/// A row of [`super::sessions::RUNS`].
pub(super) fn placed_run(row: &Row<'_>) -> rusqlite::Result<(Place, OpenRun)> {
    let open =
        OpenRun { id: session_id(row, 0)?, run: run(row, [1, 2, 3])?, uid: row.get::<_, Option<u32>>(4)?.map(Uid) };
    Ok((Place { at: row.get(5)?, seq: row.get(6)? }, open))
}

/// A session and its place in the listing.
pub(super) fn placed_session(row: &Row<'_>) -> rusqlite::Result<(Place, Session)> {
    Ok((Place { at: row.get(12)?, seq: row.get(16)? }, session(row)?))
}

fn session_id(row: &Row<'_>, column: usize) -> rusqlite::Result<SessionId> {
    let bytes: [u8; 16] = row.get(column)?;
    Ok(SessionId(uuid::Uuid::from_bytes(bytes)))
}

/// The columns that [`placed_issuance`] reads, in its order.
pub(super) const ISSUANCE: &str = "session, user, cluster, project, role, role_arn, role_id, session_name, key_id, node, issued, expires, seq, \
     source_identity";

pub(super) fn placed_issuance(row: &Row<'_>) -> rusqlite::Result<(Place, Issuance)> {
    let issuance = Issuance {
        session: session_id(row, 0)?,
        user: text(row, 1)?,
        cluster: text(row, 2)?,
        project: text(row, 3)?,
        role: text(row, 4)?,
        role_arn: text(row, 5)?,
        role_id: row.get(6)?,
        session_name: row.get(7)?,
        key_id: row.get(8)?,
        source_identity: row.get(13)?,
        node: optional_text(row, 9)?,
        issued: from_micros(row.get(10)?),
        expires: from_micros(row.get(11)?),
    };
    Ok((Place { at: row.get(10)?, seq: row.get(12)? }, issuance))
}
