//! The embedded store: one SQLite file, one writing thread, a few reading connections.
//!
//! | file | what |
//! |---|---|
//! | `file` | finds, checks and opens the database file; migrations |
//! | `place` | whether the file is still where it was opened |
//! | `writer` | the thread that gathers concurrent writes into one commit |
//! | `readers` | the reading connections |
//! | `sessions`, `issuances`, `orders`, `news`, `notes`, `rows` | the statements, and rows to and from types |
//! | `cursor` | opaque, checked page cursors |
//! | `archive` | what a copy to another store needs |
//!
//! WAL with `synchronous=FULL`: what a call returned survives a power cut. A commit costs one fsync(2) whoever shares
//! it, so callers at the same time cost about as much as one.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::{ClusterName, NodeName, RoleArn, SessionId, TokenHash};
use rusqlite::{Connection, OptionalExtension, params};
use time::OffsetDateTime;

use super::{
    Block, Cursor, Denied, Ended, Issuance, IssuedTo, News, NumberedNews, OpenRun, Opened, Order, OrderId, PAGE, Page,
    RUNS_PAGE, Revocation, Run, Session, SessionFilter, Store, StoreError, Subject,
};

mod archive;
mod cursor;
mod errors;
mod file;
mod issuances;
mod news;
mod notes;
mod orders;
mod place;
mod readers;
mod rows;
mod sessions;
mod writer;

use readers::Readers;
use rows::micros;
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

    /// Which schema the database has, at most [`SCHEMA`]; changes nothing of it. Blocks.
    ///
    /// # Errors
    /// As [`SqliteStore::open`], for a file that is there.
    pub fn look(path: &Path) -> Result<usize, StoreError> {
        file::look(path)
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

const DENIALS_BEFORE: &str = "DELETE FROM denials WHERE (role_arn, kind, name) IN
    (SELECT role_arn, kind, name FROM denials INDEXED BY denials_until WHERE until < ?1 LIMIT ?2)";

impl SqliteStore {
    /// Runs a deletion, which takes a time and how many rows at most, until it finds no more.
    async fn prune_by(&self, sql: &'static str, before: OffsetDateTime) -> Result<u64, StoreError> {
        let mut gone = 0;
        loop {
            let n = self
                .writer
                .write(move |db| db.prepare_cached(sql)?.execute(params![micros(before), PRUNE_CHUNK]))
                .await?;
            gone += n as u64;
            if n < PRUNE_CHUNK as usize {
                return Ok(gone);
            }
        }
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

    async fn status(&self, id: SessionId) -> Result<Option<(SessionStatus, Option<String>)>, StoreError> {
        self.readers.read(move |db| sessions::status(db, id)).await
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
        let scope = cursor::scope("issuances", of)?;
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
        self.writer.write(move |db| orders::deny(db, &revocation)).await
    }

    async fn list_revocations(&self, alive_at: OffsetDateTime) -> Result<Vec<Revocation>, StoreError> {
        self.readers.read(move |db| orders::denials(db, alive_at)).await
    }

    async fn revocations_of(&self, role: &RoleArn, whose: &[Denied]) -> Result<Vec<Revocation>, StoreError> {
        let (role, whose) = (role.clone(), whose.to_vec());
        self.readers.read(move |db| orders::denials_of(db, &role, &whose)).await
    }

    async fn prune_revocations(&self, before: OffsetDateTime) -> Result<u64, StoreError> {
        self.prune_by(DENIALS_BEFORE, before).await
    }

    async fn put_order(&self, order: Order) -> Result<(), StoreError> {
        self.writer.write(move |db| orders::put(db, &order)).await
    }

    async fn get_order(&self, id: OrderId) -> Result<Option<Order>, StoreError> {
        self.readers.read(move |db| orders::get(db, id)).await
    }

    async fn list_orders(&self, from: Option<&Cursor>) -> Result<Page<Order>, StoreError> {
        let scope = "orders";
        let from = from.map(|c| cursor::read(scope, c)).transpose()?;
        Ok(cursor::page(scope, self.readers.read(move |db| orders::list(db, from)).await?, PAGE))
    }

    async fn orders_since(&self, at: OffsetDateTime) -> Result<Vec<Order>, StoreError> {
        self.readers.read(move |db| orders::since(db, at)).await
    }

    async fn open_orders(&self) -> Result<Vec<Order>, StoreError> {
        self.readers.read(orders::open).await
    }

    async fn put_block(&self, block: Block) -> Result<(), StoreError> {
        self.writer.write(move |db| orders::put_block(db, &block)).await
    }

    async fn remove_block(&self, subject: &Subject) -> Result<bool, StoreError> {
        let subject = subject.clone();
        self.writer.write(move |db| orders::remove_block(db, &subject)).await
    }

    async fn list_blocks(&self) -> Result<Vec<Block>, StoreError> {
        self.readers.read(orders::blocks).await
    }

    async fn epoch(&self) -> Result<String, StoreError> {
        let read = |db: &Connection| db.prepare_cached("SELECT epoch FROM identity")?.query_row([], |row| row.get(0));
        self.readers.read(read).await
    }

    async fn publish(&self, cluster: &ClusterName, news: News, at: OffsetDateTime) -> Result<u64, StoreError> {
        let cluster = cluster.clone();
        self.writer.write(move |db| news::publish(db, &cluster, &news, at)).await
    }

    async fn news(&self, cluster: &ClusterName, after: u64) -> Result<Vec<NumberedNews>, StoreError> {
        let cluster = cluster.clone();
        self.readers.read(move |db| news::after(db, &cluster, after)).await
    }

    async fn newest_news(&self, cluster: &ClusterName) -> Result<u64, StoreError> {
        let cluster = cluster.clone();
        self.readers.read(move |db| news::newest(db, &cluster)).await
    }

    async fn note_heard(
        &self,
        order: OrderId,
        _replica: &str,
        cluster: &ClusterName,
        nodes: &[NodeName],
    ) -> Result<(), StoreError> {
        let (cluster, nodes) = (cluster.clone(), nodes.to_vec());
        self.writer.write(move |db| orders::note_heard(db, order, &cluster, &nodes)).await
    }

    async fn heard(&self, order: OrderId) -> Result<Vec<(ClusterName, NodeName)>, StoreError> {
        self.readers.read(move |db| orders::heard(db, order)).await
    }

    async fn add_node(&self, id: SessionId, node: &NodeName) -> Result<(), StoreError> {
        let node = node.clone();
        self.writer.write(move |db| orders::add_node(db, id, &node)).await
    }

    async fn lease(
        &self,
        name: &str,
        holder: &str,
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        self.writer.write(move |db| news::lease(db, &name, &holder, now, until)).await
    }

    async fn release(&self, name: &str, holder: &str) -> Result<(), StoreError> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        self.writer.write(move |db| news::release(db, &name, &holder)).await
    }

    async fn put_note(&self, kind: &str, key: &str, text: &str) -> Result<(), StoreError> {
        let (kind, key, text) = (kind.to_owned(), key.to_owned(), text.to_owned());
        self.writer.write(move |db| notes::put(db, &kind, &key, &text)).await
    }

    async fn get_note(&self, kind: &str, key: &str) -> Result<Option<String>, StoreError> {
        let (kind, key) = (kind.to_owned(), key.to_owned());
        self.readers.read(move |db| notes::get(db, &kind, &key)).await
    }

    async fn remove_note(&self, kind: &str, key: &str) -> Result<(), StoreError> {
        let (kind, key) = (kind.to_owned(), key.to_owned());
        self.writer.write(move |db| notes::remove(db, &kind, &key)).await
    }

    async fn list_notes(&self, kind: &str, from: Option<&Cursor>) -> Result<Page<(String, String)>, StoreError> {
        let scope = cursor::scope("notes", &kind)?;
        let from = from.map(|c| cursor::read(&scope, c)).transpose()?;
        let kind = kind.to_owned();
        let rows = self.readers.read(move |db| notes::list(db, &kind, from)).await?;
        Ok(cursor::page(&scope, rows, PAGE))
    }

    async fn prune(&self, before: OffsetDateTime) -> Result<u64, StoreError> {
        const TABLES: [&str; 7] = [
            "DELETE FROM issuances WHERE seq IN (SELECT seq FROM issuances WHERE expires < ?1 LIMIT ?2)",
            "DELETE FROM sessions WHERE seq IN
                (SELECT seq FROM sessions INDEXED BY sessions_ended WHERE ended < ?1 LIMIT ?2)",
            "DELETE FROM nonces WHERE nonce IN (SELECT nonce FROM nonces WHERE expires < ?1 LIMIT ?2)",
            "DELETE FROM news WHERE (cluster, number) IN (SELECT cluster, number FROM news WHERE at < ?1 LIMIT ?2)",
            "DELETE FROM heard WHERE order_id IN (SELECT id FROM orders WHERE done < ?1 LIMIT ?2)",
            "DELETE FROM orders WHERE seq IN (SELECT seq FROM orders WHERE done < ?1 LIMIT ?2)",
            "DELETE FROM leases WHERE name IN (SELECT name FROM leases WHERE until < ?1 LIMIT ?2)",
        ];
        let mut gone = 0;
        for sql in TABLES {
            gone += self.prune_by(sql, before).await?;
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
