//! The statements about what AWS issued.

use rusqlite::{Connection, named_params};
use time::OffsetDateTime;

use super::cursor::Place;
use super::rows::{ISSUANCE, micros, placed_issuance};
use crate::store::{Issuance, IssuedTo, PAGE};

pub(super) fn record(db: &Connection, issuance: &Issuance) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO issuances (session, user, cluster, project, role, role_arn, role_id, session_name, key_id, node,
             issued, expires, source_identity)
         VALUES (:session, :user, :cluster, :project, :role, :role_arn, :role_id, :session_name, :key_id, :node,
             :issued, :expires, :source_identity)
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
        ":source_identity": issuance.source_identity,
    })?;
    Ok(())
}

/// The index leads to what still lives of one user, session, …; only that is sorted.
pub(super) fn listing(of: &IssuedTo) -> String {
    let (index, is) = match of {
        IssuedTo::User(_) => ("issuances_user", "user = :of"),
        IssuedTo::Session(_) => ("issuances_session", "session = :of"),
        IssuedTo::Project(_) => ("issuances_project", "project = :of"),
        IssuedTo::Role(_) => ("issuances_role", "role_arn = :of"),
        IssuedTo::Node(..) => ("issuances_node", "node = :of AND cluster = :cluster"),
    };
    format!(
        "SELECT {ISSUANCE} FROM issuances INDEXED BY {index}
         WHERE {is} AND expires > :alive AND (issued, seq) < (:at, :seq)
         ORDER BY issued DESC, seq DESC LIMIT :limit"
    )
}

pub(super) fn list(
    db: &Connection,
    of: &IssuedTo,
    alive_at: OffsetDateTime,
    from: Option<Place>,
) -> rusqlite::Result<Vec<(Place, Issuance)>> {
    let from = from.unwrap_or(Place::NEWEST);
    let mut statement = db.prepare_cached(&listing(of))?;
    let mut bind = |name: &str, value: &dyn rusqlite::ToSql| -> rusqlite::Result<()> {
        let index = statement.parameter_index(name)?.ok_or(rusqlite::Error::InvalidQuery)?;
        statement.raw_bind_parameter(index, value)
    };
    match of {
        IssuedTo::User(user) => bind(":of", &user.as_str())?,
        IssuedTo::Session(session) => bind(":of", session.0.as_bytes())?,
        IssuedTo::Project(project) => bind(":of", &project.as_str())?,
        IssuedTo::Role(role) => bind(":of", &role.as_str())?,
        IssuedTo::Node(cluster, node) => {
            bind(":of", &node.as_str())?;
            bind(":cluster", &cluster.as_str())?;
        }
    }
    bind(":alive", &micros(alive_at))?;
    bind(":at", &from.at)?;
    bind(":seq", &from.seq)?;
    bind(":limit", &(PAGE as i64 + 1))?;
    statement.raw_query().mapped(placed_issuance).collect()
}
