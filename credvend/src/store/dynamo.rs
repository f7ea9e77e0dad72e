//! The store of many replicas: tables of DynamoDB.
//!
//! | file | what |
//! |---|---|
//! | `db` | calls, retries, what errors mean |
//! | `tables` | the tables themselves, and the IAM policy for them |
//! | `keys` | which item is where |
//! | `item`, `nodes_text`, `long_text` | items to and from types; what is long |
//! | `walk`, `cursor`, `weeks` | listings over several partitions, and where they end |
//! | `sessions`, `issuances`, `orders`, `news`, `notes` | the intents |
//! | `pruning` | what goes |
//! | `archive` | what a copy to another store needs |
//! | `projects` | which project has which roles, where the site keeps that here |
//!
//! Reads are strongly consistent reads of base tables. Global secondary indexes are eventually consistent, so there are
//! none: each listing is a partition (or a few, where writers would crowd one) of entries that a transaction writes with
//! what they lead to. DynamoDB's TTL deletes late or never; what has expired is filtered here.

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::types::{ReturnValue, ReturnValuesOnConditionCheckFailure};
use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::{ClusterName, NodeName, Region, RoleArn, SessionId, TokenHash};
use time::{Duration, OffsetDateTime};

use crate::projects::{Problem, ProjectMap};

use super::{
    Block, Cursor, Denied, Ended, Issuance, IssuedTo, News, NumberedNews, OpenRun, Opened, Order, OrderId, Page,
    Revocation, Run, Session, SessionFilter, Store, StoreError, Subject,
};

mod archive;
mod cursor;
mod db;
mod issuances;
mod item;
mod keys;
mod long_text;
mod news;
mod nodes_text;
mod notes;
mod orders;
mod projects;
mod pruning;
mod sessions;
mod tables;
mod walk;
mod weeks;

pub use db::Tables;
pub use projects::ProjectsError;
pub use tables::policy;

use db::{Db, Refused};
use item::{ALONE, Item, Row, TTL, key, number, put, text};

/// A nonce may be forgotten this long after its expiry: far more than two replicas' clocks differ.
const NONCE_SLACK: Duration = Duration::hours(1);

/// Until when a nonce counts.
const EXPIRES: &str = "ExpiresAt";
/// Who wrote a nonce.
const WRITER: &str = "WrittenBy";

/// The DynamoDB store.
pub struct DynamoStore {
    db: Arc<Db>,
    weeks: weeks::Weeks,
    /// One publisher of this process at a time: they would only cancel each other.
    publishing: tokio::sync::Mutex<()>,
}

impl DynamoStore {
    /// Tables that are there, or that [`DynamoStore::init`] makes. No call is made yet.
    pub fn new(client: Client, tables: Tables) -> Self {
        Self::with_patience(client, tables, db::PATIENCE, db::AT_ONCE)
    }

    fn with_patience(client: Client, tables: Tables, patience: std::time::Duration, at_once: usize) -> Self {
        let db = Arc::new(Db::new(client, tables, patience, at_once));
        DynamoStore { db, weeks: Default::default(), publishing: Default::default() }
    }

    /// The tables' names.
    pub fn tables(&self) -> &Tables {
        &self.db.tables
    }

    /// Makes the tables that are missing, protects them, and waits for them; with `new_epoch`, says that this is another
    /// store than before (after a restore). Says what was done.
    ///
    /// # Errors
    /// No permission, AWS out of reach, a table of another program.
    pub async fn init(&self, new_epoch: bool) -> Result<Vec<String>, StoreError> {
        let done = tables::init(&self.db).await?;
        news::draw_epoch(&self.db, new_epoch).await?;
        Ok(done)
    }
}

impl DynamoStore {
    /// The projects' table, as the text that projects.toml would have, and the map in it.
    ///
    /// # Errors
    /// The store's, or everything that is wrong with what stands in the table.
    pub async fn projects(&self, region: Option<&Region>) -> Result<(String, ProjectMap), ProjectsError> {
        projects::read(&self.db, region).await
    }

    /// Changes the projects' table as `change` changes that text.
    ///
    /// # Errors
    /// The store's, what `change` refuses, or that somebody else changes the same project.
    pub async fn change_projects(
        &self,
        change: impl FnOnce(&str) -> Result<String, Vec<Problem>>,
    ) -> Result<(), ProjectsError> {
        projects::change(&self.db, change).await
    }
}

#[async_trait]
impl Store for DynamoStore {
    async fn open(&self, session: Session) -> Result<Opened, StoreError> {
        sessions::open(&self.db, &self.weeks, session).await
    }

    async fn get(&self, id: SessionId) -> Result<Option<Session>, StoreError> {
        sessions::get(&self.db, id).await
    }

    async fn status(&self, id: SessionId) -> Result<Option<(SessionStatus, Option<String>)>, StoreError> {
        sessions::status(&self.db, id).await
    }

    async fn find_run(&self, cluster: &ClusterName, run: &Run) -> Result<Option<Session>, StoreError> {
        sessions::find_run(&self.db, cluster, run).await
    }

    async fn list_runs(&self, cluster: &ClusterName, from: Option<&Cursor>) -> Result<Page<OpenRun>, StoreError> {
        sessions::list_runs(&self.db, cluster, from).await
    }

    async fn replace_token(&self, id: SessionId, token: TokenHash) -> Result<Option<Session>, StoreError> {
        sessions::replace_token(&self.db, id, &token).await
    }

    async fn find_head(&self, clusters: &[ClusterName], head_session: &str) -> Result<Option<Session>, StoreError> {
        sessions::find_head(&self.db, clusters, head_session).await
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
        sessions::end(&self.db, id, status, at, why).await
    }

    async fn list(&self, filter: &SessionFilter, from: Option<&Cursor>) -> Result<Page<Session>, StoreError> {
        sessions::list(&self.db, filter, from).await
    }

    async fn record_issuance(&self, issuance: Issuance) -> Result<(), StoreError> {
        issuances::record(&self.db, &self.weeks, &issuance).await
    }

    async fn list_issuances(
        &self,
        of: &IssuedTo,
        alive_at: OffsetDateTime,
        from: Option<&Cursor>,
    ) -> Result<Page<Issuance>, StoreError> {
        issuances::list(&self.db, of, alive_at, from).await
    }

    async fn remember_nonce(&self, nonce: &str, expires: OffsetDateTime) -> Result<bool, StoreError> {
        // A second attempt after a lost answer finds what the first one wrote.
        let writer = uuid::Uuid::new_v4().to_string();
        let mut item = Item::new();
        put(&mut item, tables::NONCE, text(keys::bounded(nonce)));
        put(&mut item, TTL, item::forgotten(expires, NONCE_SLACK));
        put(&mut item, EXPIRES, number(item::micros(expires)));
        put(&mut item, WRITER, text(&writer));
        let request = self
            .db
            .client
            .put_item()
            .table_name(&self.db.tables.nonces)
            .set_item(Some(item))
            .condition_expression(format!("attribute_not_exists({})", tables::NONCE))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        match self.db.call(|| request.clone().send()).await {
            Ok(_) => Ok(true),
            Err(Refused::Service(PutItemError::ConditionalCheckFailedException(failed), _)) => {
                Ok(failed.item.is_some_and(|old| Row(&old).text(WRITER).is_ok_and(|by| by == writer)))
            }
            Err(other) => Err(other.into()),
        }
    }

    async fn record_revocation(&self, revocation: Revocation) -> Result<(), StoreError> {
        orders::deny(&self.db, &revocation).await
    }

    async fn list_revocations(&self, alive_at: OffsetDateTime) -> Result<Vec<Revocation>, StoreError> {
        orders::denials(&self.db, alive_at).await
    }

    async fn revocations_of(&self, role: &RoleArn, whose: &[Denied]) -> Result<Vec<Revocation>, StoreError> {
        orders::denials_of(&self.db, role, whose).await
    }

    async fn prune_revocations(&self, before: OffsetDateTime) -> Result<u64, StoreError> {
        orders::prune_denials(&self.db, before).await
    }

    async fn put_order(&self, order: Order) -> Result<(), StoreError> {
        orders::put_order(&self.db, &order).await
    }

    async fn get_order(&self, id: OrderId) -> Result<Option<Order>, StoreError> {
        orders::get_order(&self.db, id).await
    }

    async fn list_orders(&self, from: Option<&Cursor>) -> Result<Page<Order>, StoreError> {
        orders::list(&self.db, from).await
    }

    async fn orders_since(&self, at: OffsetDateTime) -> Result<Vec<Order>, StoreError> {
        orders::since(&self.db, at).await
    }

    async fn open_orders(&self) -> Result<Vec<Order>, StoreError> {
        orders::open(&self.db).await
    }

    async fn put_block(&self, block: Block) -> Result<(), StoreError> {
        orders::put_block(&self.db, &block).await
    }

    async fn remove_block(&self, subject: &Subject) -> Result<bool, StoreError> {
        orders::remove_block(&self.db, subject).await
    }

    async fn list_blocks(&self) -> Result<Vec<Block>, StoreError> {
        orders::blocks(&self.db).await
    }

    async fn epoch(&self) -> Result<String, StoreError> {
        news::epoch(&self.db).await
    }

    async fn publish(&self, cluster: &ClusterName, news: News, at: OffsetDateTime) -> Result<u64, StoreError> {
        let _turn = self.publishing.lock().await;
        news::publish(&self.db, cluster, &news, at).await
    }

    async fn news(&self, cluster: &ClusterName, after: u64) -> Result<Vec<NumberedNews>, StoreError> {
        news::after(&self.db, cluster, after).await
    }

    async fn newest_news(&self, cluster: &ClusterName) -> Result<u64, StoreError> {
        news::newest(&self.db, cluster).await
    }

    async fn note_heard(
        &self,
        order: OrderId,
        replica: &str,
        cluster: &ClusterName,
        nodes: &[NodeName],
    ) -> Result<(), StoreError> {
        orders::note_heard(&self.db, order, replica, cluster, nodes).await
    }

    async fn heard(&self, order: OrderId) -> Result<Vec<(ClusterName, NodeName)>, StoreError> {
        orders::heard(&self.db, order).await
    }

    async fn add_node(&self, id: SessionId, node: &NodeName) -> Result<(), StoreError> {
        sessions::add_node(&self.db, id, node).await
    }

    async fn lease(
        &self,
        name: &str,
        holder: &str,
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        news::lease(&self.db, name, holder, now, until).await
    }

    async fn release(&self, name: &str, holder: &str) -> Result<(), StoreError> {
        news::release(&self.db, name, holder).await
    }

    async fn put_note(&self, kind: &str, key: &str, text: &str) -> Result<(), StoreError> {
        notes::put_note(&self.db, kind, key, text).await
    }

    async fn get_note(&self, kind: &str, key: &str) -> Result<Option<String>, StoreError> {
        notes::get(&self.db, kind, key).await
    }

    async fn remove_note(&self, kind: &str, key: &str) -> Result<(), StoreError> {
        notes::remove(&self.db, kind, key).await
    }

    async fn list_notes(&self, kind: &str, from: Option<&Cursor>) -> Result<Page<(String, String)>, StoreError> {
        notes::list(&self.db, kind, from).await
    }

    async fn prune(&self, before: OffsetDateTime) -> Result<u64, StoreError> {
        pruning::all(&self.db, &self.weeks, before).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        let db = &self.db;
        // One of many, so that replicas that check do not meet at one item.
        let place = format!("{:02x}", uuid::Uuid::new_v4().as_bytes()[0]);
        let request = db
            .client
            .update_item()
            .table_name(&db.tables.state)
            .set_key(Some(key(keys::HEARTBEAT, place)))
            .update_expression("ADD Beats :one")
            .expression_attribute_values(":one", number(1))
            .return_values(ReturnValue::UpdatedNew);
        db.call(|| request.clone().send()).await?;
        news::epoch(db).await?;
        for table in [&db.tables.sessions, &db.tables.issuances] {
            db.get(table, key(keys::CLUSTERS, ALONE)).await?;
        }
        for (table, name) in [(&db.tables.projects, tables::PROJECT_ID), (&db.tables.nonces, tables::NONCE)] {
            db.get(table, Item::from([(name.to_owned(), text("-"))])).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
