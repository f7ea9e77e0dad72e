//! The statements about sessions.

use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::{ClusterName, JobId, SessionId, TokenHash};
use rusqlite::{Connection, OptionalExtension, ToSql, named_params, params};
use time::OffsetDateTime;

use super::cursor::Place;
use super::rows::{self, SESSION, from_micros, micros, status_number};
use crate::store::{Ended, OpenRun, Opened, Origin, PAGE, RUNS_PAGE, Run, Session, SessionFilter};

pub(super) fn open(db: &Connection, mut session: Session) -> rusqlite::Result<Opened> {
    session.opened = from_micros(micros(session.opened));
    session.ended = session.ended.map(|at| from_micros(micros(at)));
    let nodes = session.nodes.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(" ");
    if let Origin::Slurm(run) = &mut session.origin {
        run.submitted = from_micros(micros(run.submitted));
    }
    let (run, head, submitted, token) = match &session.origin {
        Origin::Slurm(run) => (Some(run), None, None, None),
        Origin::Head { head_session, submitted, token } => {
            (None, Some(head_session.as_str()), Some(submitted.as_str()), Some(token.to_hex()))
        }
    };
    let new = db
        .prepare_cached(
            "INSERT INTO sessions (id, cluster, user, uid, project, partition, nodes, job, restart, job_submitted,
                 head_session, submitted, token, opened, ended, status, why)
             VALUES (:id, :cluster, :user, :uid, :project, :partition, :nodes, :job, :restart, :job_submitted,
                 :head, :submitted, :token, :opened, :ended, :status, :why)
             ON CONFLICT DO NOTHING",
        )?
        .execute(named_params! {
            ":id": session.id.0.as_bytes(),
            ":cluster": session.cluster.as_str(),
            ":user": session.user.as_str(),
            ":uid": session.uid.map(|u| u.0),
            ":project": session.project.as_str(),
            ":partition": session.partition.as_ref().map(|p| p.as_str()),
            ":nodes": nodes,
            ":job": run.map(|r| r.job.get()),
            ":restart": run.map(|r| r.restart),
            ":job_submitted": run.map(|r| micros(r.submitted)),
            ":head": head,
            ":submitted": submitted,
            ":token": token,
            ":opened": micros(session.opened),
            ":ended": session.ended.map(micros),
            ":status": status_number(session.status),
            ":why": session.why,
        })?;
    if new == 1 {
        return Ok(Opened::New(session));
    }
    let existing = match &session.origin {
        Origin::Slurm(run) => find_run(db, &session.cluster, run)?,
        Origin::Head { head_session, submitted, .. } => db
            .prepare_cached(&format!(
                "SELECT {SESSION} FROM sessions INDEXED BY sessions_head
                 WHERE cluster = ?1 AND head_session = ?2 AND submitted = ?3"
            ))?
            .query_row(params![session.cluster.as_str(), head_session, submitted], rows::session)
            .optional()?,
    };
    // No such key, and yet a conflict: another run has this UUID.
    existing.map(Opened::Existing).ok_or(rusqlite::Error::QueryReturnedNoRows)
}

pub(super) fn get(db: &Connection, id: SessionId) -> rusqlite::Result<Option<Session>> {
    db.prepare_cached(&format!("SELECT {SESSION} FROM sessions WHERE id = ?1"))?
        .query_row([id.0.as_bytes()], rows::session)
        .optional()
}

pub(super) fn status(db: &Connection, id: SessionId) -> rusqlite::Result<Option<(SessionStatus, Option<String>)>> {
    db.prepare_cached("SELECT status, why FROM sessions WHERE id = ?1")?
        .query_row([id.0.as_bytes()], |row| Ok((rows::status(row, 0)?, row.get(1)?)))
        .optional()
}

pub(super) fn find_run(db: &Connection, cluster: &ClusterName, run: &Run) -> rusqlite::Result<Option<Session>> {
    db.prepare_cached(&format!(
        "SELECT {SESSION} FROM sessions INDEXED BY sessions_run
         WHERE cluster = ?1 AND job = ?2 AND restart = ?3
             AND (job_submitted = ?4 OR (job_submitted = ?5 AND status = 0))
         ORDER BY job_submitted DESC LIMIT 1"
    ))?
    .query_row(
        params![cluster.as_str(), run.job.get(), run.restart, micros(run.submitted), micros(Run::UNRECORDED)],
        rows::session,
    )
    .optional()
}

/// Answered from the index alone.
pub(super) const RUNS: &str = "SELECT id, job, restart, job_submitted, uid, opened, seq
    FROM sessions INDEXED BY active_cluster
    WHERE cluster = ?1 AND status = 0 AND job IS NOT NULL AND (opened, seq) < (?2, ?3)
    ORDER BY opened DESC, seq DESC LIMIT ?4";

pub(super) fn list_runs(
    db: &Connection,
    cluster: &ClusterName,
    from: Option<Place>,
) -> rusqlite::Result<Vec<(Place, OpenRun)>> {
    let from = from.unwrap_or(Place::NEWEST);
    let limit = RUNS_PAGE as i64 + 1;
    db.prepare_cached(RUNS)?.query_map(params![cluster.as_str(), from.at, from.seq, limit], rows::placed_run)?.collect()
}

pub(super) fn replace_token(db: &Connection, id: SessionId, token: &TokenHash) -> rusqlite::Result<Option<Session>> {
    db.prepare_cached(&format!(
        "UPDATE sessions SET token = ?2 WHERE id = ?1 AND status = 0 AND head_session IS NOT NULL RETURNING {SESSION}"
    ))?
    .query_row(params![id.0.as_bytes(), token.to_hex()], rows::session)
    .optional()
}

pub(super) fn find_head(
    db: &Connection,
    clusters: &[ClusterName],
    head_session: &str,
) -> rusqlite::Result<Option<Session>> {
    let mut newest: Option<(Place, Session)> = None;
    let mut statement = db.prepare_cached(&format!(
        "SELECT {SESSION} FROM sessions INDEXED BY sessions_head_newest
         WHERE head_session = ?1 AND cluster = ?2 ORDER BY opened DESC, seq DESC LIMIT 1"
    ))?;
    for cluster in clusters {
        let found = statement.query_row(params![head_session, cluster.as_str()], rows::placed_session).optional()?;
        if let Some((place, session)) = found
            && newest.as_ref().is_none_or(|(best, _)| (place.at, place.seq) > (best.at, best.seq))
        {
            newest = Some((place, session));
        }
    }
    Ok(newest.map(|(_, session)| session))
}

pub(super) fn end(
    db: &Connection,
    id: SessionId,
    status: SessionStatus,
    at: OffsetDateTime,
    why: &str,
) -> rusqlite::Result<Ended> {
    let now = db
        .prepare_cached(&format!(
            "UPDATE sessions SET status = ?2, ended = ?3, why = ?4 WHERE id = ?1 AND status = 0 RETURNING {SESSION}"
        ))?
        .query_row(params![id.0.as_bytes(), status_number(status), micros(at), why], rows::session)
        .optional()?;
    Ok(match now {
        Some(session) => Ended::Now(session),
        None => get(db, id)?.map_or(Ended::Unknown, Ended::Before),
    })
}

/// The statement for a filter: the index is named, so that no listing ever falls back to a scan.
pub(super) fn listing(filter: &SessionFilter) -> String {
    let active = filter.status == Some(SessionStatus::Active);
    let index = match filter {
        SessionFilter { job: Some(_), .. } => "sessions_job",
        SessionFilter { user: Some(_), .. } if active => "active_user",
        // Few sessions are INVALIDATED, so that index is short whoever's they are; a user's own has all the COMPLETED ones.
        SessionFilter { user: Some(_), status: Some(SessionStatus::Invalidated), .. } => "sessions_status",
        SessionFilter { user: Some(_), .. } => "sessions_user",
        SessionFilter { project: Some(_), .. } if active => "active_project",
        SessionFilter { project: Some(_), .. } => "sessions_project",
        SessionFilter { cluster: Some(_), .. } if active => "active_cluster",
        // Few sessions are INVALIDATED, so that index is short whatever the cluster.
        SessionFilter { status: Some(SessionStatus::Invalidated), .. } => "sessions_status",
        SessionFilter { cluster: Some(_), .. } => "sessions_cluster",
        SessionFilter { status: Some(_), .. } => "sessions_status",
        _ => "sessions_opened",
    };
    let mut sql = format!("SELECT {SESSION} FROM sessions INDEXED BY {index} WHERE (opened, seq) < (:at, :seq)");
    if let Some(status) = filter.status {
        // As a literal: SQLite uses a partial index only where it sees the condition.
        sql.push_str(&format!(" AND status = {}", status_number(status)));
    }
    for (given, condition) in [
        (filter.cluster.is_some(), " AND cluster = :cluster"),
        (filter.user.is_some(), " AND user = :user"),
        (filter.project.is_some(), " AND project = :project"),
        (filter.job.is_some(), " AND job = :job"),
    ] {
        if given {
            sql.push_str(condition);
        }
    }
    sql.push_str(" ORDER BY opened DESC, seq DESC LIMIT :limit");
    sql
}

pub(super) fn list(
    db: &Connection,
    filter: &SessionFilter,
    from: Option<Place>,
) -> rusqlite::Result<Vec<(Place, Session)>> {
    // Newest first, so that "before" is one more place to begin at.
    let before = filter.opened_before.map_or(Place::NEWEST, |at| Place { at: micros(at), seq: i64::MIN });
    let from = from.unwrap_or(before);
    let limit = PAGE as i64 + 1;
    let (cluster, user) = (filter.cluster.as_ref().map(|v| v.as_str()), filter.user.as_ref().map(|v| v.as_str()));
    let (project, job) = (filter.project.as_ref().map(|v| v.as_str()), filter.job.map(JobId::get));
    let mut bound: Vec<(&str, &dyn ToSql)> = vec![(":at", &from.at), (":seq", &from.seq), (":limit", &limit)];
    if cluster.is_some() {
        bound.push((":cluster", &cluster));
    }
    if user.is_some() {
        bound.push((":user", &user));
    }
    if project.is_some() {
        bound.push((":project", &project));
    }
    if job.is_some() {
        bound.push((":job", &job));
    }
    db.prepare_cached(&listing(filter))?.query_map(&bound[..], rows::placed_session)?.collect()
}
