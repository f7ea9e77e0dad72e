//! The embedded store: one SQLite file, one writing thread, a few reading connections.
//!
//! | file | what |
//! |---|---|
//! | `file` | finds, checks and opens the database file; migrations |
//! | `writer` | the thread that gathers concurrent writes into one commit |
//! | `readers` | the reading connections |
//! | `sessions`, `issuances`, `rows` | the statements, and rows to and from types |
//! | `cursor` | opaque, checked page cursors |
//!
//! WAL with `synchronous=FULL`: what a call returned survives a power cut. A commit costs one fsync(2) whoever shares
//! it, so callers at the same time cost about as much as one.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use credd_protocol::seed_api::SessionStatus;
use credd_protocol::{ClusterName, SessionId, TokenHash};
use rusqlite::{OptionalExtension, params};
use time::OffsetDateTime;

use super::{
    Cursor, Ended, Issuance, IssuedTo, OpenRun, Opened, PAGE, Page, RUNS_PAGE, Revocation, Run, Session, SessionFilter,
    Store, StoreError,
};

mod cursor;
mod errors;
mod file;
mod issuances;
mod readers;
mod rows;
mod sessions;
mod writer;

use readers::Readers;
use rows::{from_micros, micros};
use writer::Writer;

/// The newest schema that this program knows.
pub const SCHEMA: usize = file::SCHEMA;

/// How many rows one write deletes: keeps the writer free for others in between.
const PRUNE_CHUNK: u32 = 1000;

/// A nonce may be forgotten this long after its expiry: far more than two replicas' clocks differ.
const NONCE_SLACK_MICROS: i64 = 3600 * 1_000_000;

/// The SQLite store.
pub struct SqliteStore {
    writer: Writer,
    readers: Readers,
    path: PathBuf,
}

impl SqliteStore {
    /// Opens the database, makes it if there is none, and brings its schema up to date. Blocks; for program start.
    ///
    /// # Errors
    /// A directory or file that others can write, a file that is not credvend's database, is corrupt or was written by a
    /// newer credvend, no space, no permission: each in words, naming the path and the remedy.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = file::open(path)?;
        let readers = Readers::open(path)?;
        Ok(SqliteStore { writer: Writer::start(connection, path)?, readers, path: path.to_owned() })
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn open(&self, session: Session) -> Result<Opened, StoreError> {
        self.writer.write(move |db| sessions::open(db, session)).await
    }

    async fn get(&self, id: SessionId) -> Result<Option<Session>, StoreError> {
        self.readers.read(move |db| sessions::get(db, id)).await
    }

    async fn find_run(&self, cluster: &ClusterName, run: &Run) -> Result<Option<Session>, StoreError> {
        let (cluster, run) = (cluster.clone(), *run);
        self.readers.read(move |db| sessions::find_run(db, &cluster, &run)).await
    }

    async fn list_runs(&self, cluster: &ClusterName, from: Option<&Cursor>) -> Result<Page<OpenRun>, StoreError> {
        let scope = cursor::scope("runs", cluster)?;
        let from = from.map(|c| cursor::read(&scope, c)).transpose()?;
        let cluster = cluster.clone();
        let rows = self.readers.read(move |db| sessions::list_runs(db, &cluster, from)).await?;
        Ok(cursor::page(&scope, rows, RUNS_PAGE))
    }

    async fn replace_token(&self, id: SessionId, token: TokenHash) -> Result<Option<Session>, StoreError> {
        self.writer.write(move |db| sessions::replace_token(db, id, &token)).await
    }

    async fn find_head(&self, clusters: &[ClusterName], head_session: &str) -> Result<Option<Session>, StoreError> {
        let (clusters, head_session) = (clusters.to_vec(), head_session.to_owned());
        self.readers.read(move |db| sessions::find_head(db, &clusters, &head_session)).await
    }

    async fn end(
        &self,
        id: SessionId,
        status: SessionStatus,
        at: OffsetDateTime,
        why: &str,
    ) -> Result<Ended, StoreError> {
        if status == SessionStatus::Active {
            return Err(StoreError::Broken(format!("session {id} cannot be ended as ACTIVE (a defect of credvend)")));
        }
        let why = why.to_owned();
        self.writer.write(move |db| sessions::end(db, id, status, at, &why)).await
    }

    async fn list(&self, filter: &SessionFilter, from: Option<&Cursor>) -> Result<Page<Session>, StoreError> {
        let scope = cursor::scope("sessions", filter)?;
        let from = from.map(|c| cursor::read(&scope, c)).transpose()?;
        let filter = filter.clone();
        let rows = self.readers.read(move |db| sessions::list(db, &filter, from)).await?;
        Ok(cursor::page(&scope, rows, PAGE))
    }

    async fn record_issuance(&self, issuance: Issuance) -> Result<(), StoreError> {
        self.writer.write(move |db| issuances::record(db, &issuance)).await
    }

    async fn list_issuances(
        &self,
        of: &IssuedTo,
        alive_at: OffsetDateTime,
        from: Option<&Cursor>,
    ) -> Result<Page<Issuance>, StoreError> {
        let scope = match of {
            IssuedTo::User(user) => cursor::scope("issuances-of-user", user)?,
            IssuedTo::Session(session) => cursor::scope("issuances-of-session", session)?,
        };
        let from = from.map(|c| cursor::read(&scope, c)).transpose()?;
        let of = of.clone();
        let rows = self.readers.read(move |db| issuances::list(db, &of, alive_at, from)).await?;
        Ok(cursor::page(&scope, rows, PAGE))
    }

    async fn remember_nonce(&self, nonce: &str, expires: OffsetDateTime) -> Result<bool, StoreError> {
        let nonce = nonce.to_owned();
        self.writer
            .write(move |db| {
                let new = db
                    .prepare_cached("INSERT INTO nonces (nonce, expires) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
                    .execute(params![nonce, micros(expires)])?;
                // Each new nonce sweeps a few dead ones away, so that their number stays bounded by the traffic.
                db.prepare_cached(
                    "DELETE FROM nonces WHERE nonce IN (SELECT nonce FROM nonces WHERE expires < ?1 LIMIT 4)",
                )?
                .execute([micros(expires).saturating_sub(NONCE_SLACK_MICROS)])?;
                Ok(new == 1)
            })
            .await
    }

    async fn record_revocation(&self, revocation: Revocation) -> Result<(), StoreError> {
        self.writer
            .write(move |db| {
                db.prepare_cached(
                    "INSERT INTO revocations (role_arn, userid, issued_before, until) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (role_arn, userid) DO UPDATE SET
                         issued_before = max(issued_before, excluded.issued_before), until = max(until, excluded.until)",
                )?
                .execute(params![
                    revocation.role_arn.as_str(),
                    revocation.userid,
                    micros(revocation.issued_before),
                    micros(revocation.until)
                ])?;
                Ok(())
            })
            .await
    }

    async fn list_revocations(&self, alive_at: OffsetDateTime) -> Result<Vec<Revocation>, StoreError> {
        self.readers
            .read(move |db| {
                let mut statement = db.prepare_cached(
                    "SELECT role_arn, userid, issued_before, until FROM revocations WHERE until > ?1
                     ORDER BY role_arn, userid",
                )?;
                let rows = statement.query_map([micros(alive_at)], |row| {
                    Ok(Revocation {
                        role_arn: rows::text(row, 0)?,
                        userid: row.get(1)?,
                        issued_before: from_micros(row.get(2)?),
                        until: from_micros(row.get(3)?),
                    })
                })?;
                rows.collect()
            })
            .await
    }

    async fn prune(&self, before: OffsetDateTime) -> Result<u64, StoreError> {
        const TABLES: [&str; 4] = [
            "DELETE FROM issuances WHERE seq IN (SELECT seq FROM issuances WHERE expires < ?1 LIMIT ?2)",
            "DELETE FROM sessions WHERE seq IN
                (SELECT seq FROM sessions INDEXED BY sessions_ended WHERE ended < ?1 LIMIT ?2)",
            "DELETE FROM nonces WHERE nonce IN (SELECT nonce FROM nonces WHERE expires < ?1 LIMIT ?2)",
            "DELETE FROM revocations WHERE (role_arn, userid) IN
                (SELECT role_arn, userid FROM revocations WHERE until < ?1 LIMIT ?2)",
        ];
        let mut gone = 0;
        for sql in TABLES {
            loop {
                let n = self
                    .writer
                    .write(move |db| db.prepare_cached(sql)?.execute(params![micros(before), PRUNE_CHUNK]))
                    .await?;
                gone += n as u64;
                if n < PRUNE_CHUNK as usize {
                    break;
                }
            }
        }
        Ok(gone)
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.writer
            .write(|db| {
                db.prepare_cached(
                    "INSERT INTO heartbeat (one, at) VALUES (1, 1) ON CONFLICT DO UPDATE SET at = at + 1",
                )?
                .execute([])
            })
            .await?;
        let one: Option<i64> = self
            .readers
            .read(|db| db.prepare_cached("SELECT at FROM heartbeat")?.query_row([], |r| r.get(0)).optional())
            .await?;
        match one {
            Some(_) => Ok(()),
            None => Err(StoreError::Broken("what was just written cannot be read back".into())),
        }
    }
}

#[cfg(test)]
mod tests;
