//! The statements about what AWS issued.

use rusqlite::{Connection, named_params};
use time::OffsetDateTime;

use super::cursor::Place;
use super::rows::{ISSUANCE, micros, placed_issuance};
use crate::store::{Issuance, IssuedTo, PAGE};

pub(super) fn record(db: &Connection, issuance: &Issuance) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO issuances (session, user, cluster, project, role, role_arn, role_id, session_name, key_id, node,
             issued, expires)
         VALUES (:session, :user, :cluster, :project, :role, :role_arn, :role_id, :session_name, :key_id, :node,
             :issued, :expires)
         ON CONFLICT (session, key_id) DO NOTHING",
    )?
    .execute(named_params! {
        ":session": issuance.session.0.as_bytes(),
        ":user": issuance.user.as_str(),
        ":cluster": issuance.cluster.as_str(),
        ":project": issuance.project.as_str(),
        ":role": issuance.role.as_str(),
        ":role_arn": issuance.role_arn.as_str(),
        ":role_id": issuance.role_id,
        ":session_name": issuance.session_name,
        ":key_id": issuance.key_id,
        ":node": issuance.node.as_ref().map(|n| n.as_str()),
        ":issued": micros(issuance.issued),
        ":expires": micros(issuance.expires),
    })?;
    Ok(())
}

/// The index leads to what still lives of one user or session; only that is sorted.
pub(super) fn listing(of: &IssuedTo) -> String {
    let (index, column) = match of {
        IssuedTo::User(_) => ("issuances_user", "user"),
        IssuedTo::Session(_) => ("issuances_session", "session"),
    };
    format!(
        "SELECT {ISSUANCE} FROM issuances INDEXED BY {index}
         WHERE {column} = :of AND expires > :alive AND (issued, seq) < (:at, :seq)
         ORDER BY issued DESC, seq DESC LIMIT :limit"
    )
}

pub(super) fn list(
    db: &Connection,
    of: &IssuedTo,
    alive_at: OffsetDateTime,
    from: Option<Place>,
) -> rusqlite::Result<Vec<(Place, Issuance)>> {
    let from = from.unwrap_or(Place { at: i64::MAX, seq: i64::MAX });
    let limit = PAGE as i64 + 1;
    let id;
    let key: &dyn rusqlite::ToSql = match of {
        IssuedTo::User(user) => &user.as_str(),
        IssuedTo::Session(session) => {
            id = *session.0.as_bytes();
            &id
        }
    };
    let bound = named_params! {
        ":of": key, ":alive": micros(alive_at), ":at": from.at, ":seq": from.seq, ":limit": limit,
    };
    db.prepare_cached(&listing(of))?.query_map(bound, placed_issuance)?.collect()
}
