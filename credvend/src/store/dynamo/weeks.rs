//! From which week to which there is a log. Kept in the table, so that a listing knows where it ends; written before the
//! first item of a week, and remembered by every process that wrote or saw it.

use std::collections::HashMap;

use aws_sdk_dynamodb::operation::put_item::PutItemError;

use super::db::{Db, Refused};
use super::item::{Item, PK, Row, SK, key, number, put};
use crate::store::StoreError;

const OLDEST: &str = "OldestWeek";
const NEWEST: &str = "NewestWeek";

/// What this process knows to be in the table.
#[derive(Default)]
pub(super) struct Weeks(tokio::sync::Mutex<HashMap<(String, String), (i64, i64)>>);

impl Weeks {
    /// The weeks of an item.
    pub(super) fn of(item: &Item) -> Result<(i64, i64), StoreError> {
        Ok((Row(item).number(OLDEST)?, Row(item).number(NEWEST)?))
    }

    /// Sees to it that the table says that there is something in this week.
    pub(super) async fn note(&self, db: &Db, table: &str, pk: &str, sk: &str, week: i64) -> Result<(), StoreError> {
        let place = (format!("{table} {pk}"), sk.to_owned());
        let mut known = self.0.lock().await;
        if known.get(&place).is_some_and(|(oldest, newest)| (*oldest..=*newest).contains(&week)) {
            return Ok(());
        }
        for _ in 0..32 {
            let old = db.get(table, key(pk, sk)).await?;
            let had = old.as_ref().map(Weeks::of).transpose()?;
            let now = had.map_or((week, week), |(oldest, newest)| (oldest.min(week), newest.max(week)));
            if Some(now) == had || replace(db, table, (pk, sk), had, now).await? {
                known.insert(place, now);
                return Ok(());
            }
        }
        Err(StoreError::Unavailable("DynamoDB's list of weeks changes all the time".into()))
    }

    /// Forgets weeks in which nothing is left. Nothing is ever opened or issued in the past, so nobody writes there.
    pub(super) async fn forget(
        &self,
        db: &Db,
        table: &str,
        (pk, sk): (&str, &str),
        had: (i64, i64),
        oldest: i64,
    ) -> Result<(), StoreError> {
        let mut known = self.0.lock().await;
        known.remove(&(format!("{table} {pk}"), sk.to_owned()));
        replace(db, table, (pk, sk), Some(had), (oldest.min(had.1), had.1)).await.map(|_| ())
    }
}

async fn replace(
    db: &Db,
    table: &str,
    (pk, sk): (&str, &str),
    had: Option<(i64, i64)>,
    now: (i64, i64),
) -> Result<bool, StoreError> {
    let mut item = key(pk, sk);
    put(&mut item, OLDEST, number(now.0));
    put(&mut item, NEWEST, number(now.1));
    let request = db.client.put_item().table_name(table).set_item(Some(item));
    let request = match had {
        None => request.condition_expression(format!("attribute_not_exists({PK}) AND attribute_not_exists({SK})")),
        Some((oldest, newest)) => request
            .condition_expression(format!("{OLDEST} = :oldest AND {NEWEST} = :newest"))
            .expression_attribute_values(":oldest", number(oldest))
            .expression_attribute_values(":newest", number(newest)),
    };
    match db.call(|| request.clone().send()).await {
        Ok(_) => Ok(true),
        Err(Refused::Service(PutItemError::ConditionalCheckFailedException(_), _)) => Ok(false),
        Err(other) => Err(other.into()),
    }
}
