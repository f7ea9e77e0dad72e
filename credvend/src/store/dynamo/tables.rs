//! The tables themselves: made, protected, waited for; and what credvend's identity must be allowed.

use std::time::Duration;

use aws_sdk_dynamodb::operation::create_table::CreateTableError;
use aws_sdk_dynamodb::operation::describe_table::DescribeTableError;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, PointInTimeRecoverySpecification,
    PointInTimeRecoveryStatus, ScalarAttributeType, TableStatus, TimeToLiveSpecification, TimeToLiveStatus,
};
use tokio::time::Instant;

use super::db::{Db, Refused, defect};
use super::item::{PK, SK, TTL};
use crate::store::StoreError;

/// DynamoDB makes a table within seconds.
const MAKING: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(500);

/// The key of the projects' table, as in the IAM Credentials API (v1).
pub(super) const PROJECT_ID: &str = "ProjectId";
/// The key of the nonces' table.
pub(super) const NONCE: &str = "Nonce";

struct Shape<'a> {
    name: &'a str,
    hash: &'static str,
    range: Option<&'static str>,
    ttl: bool,
}

fn shapes(db: &Db) -> [Shape<'_>; 5] {
    let t = &db.tables;
    [
        Shape { name: &t.projects, hash: PROJECT_ID, range: None, ttl: false },
        Shape { name: &t.sessions, hash: PK, range: Some(SK), ttl: false },
        Shape { name: &t.issuances, hash: PK, range: Some(SK), ttl: true },
        Shape { name: &t.nonces, hash: NONCE, range: None, ttl: true },
        Shape { name: &t.state, hash: PK, range: Some(SK), ttl: true },
    ]
}

/// Makes what is missing and sets what is not set; what was done, in words.
pub(super) async fn init(db: &Db) -> Result<Vec<String>, StoreError> {
    let mut done = vec![];
    for shape in shapes(db) {
        if create(db, &shape).await? {
            done.push(format!("table {} is made", shape.name));
        }
    }
    for shape in shapes(db) {
        wait(db, &shape).await?;
        if shape.ttl && expire(db, &shape).await? {
            done.push(format!("table {}: items expire by {TTL}", shape.name));
        }
        // Nonces live for minutes: nothing of them is worth keeping.
        if shape.hash != NONCE && keep_history(db, shape.name).await? {
            done.push(format!("table {}: point-in-time recovery is on", shape.name));
        }
    }
    Ok(done)
}

async fn create(db: &Db, shape: &Shape<'_>) -> Result<bool, StoreError> {
    if describe(db, shape.name).await?.is_some() {
        return Ok(false);
    }
    let mut request = db
        .client
        .create_table()
        .table_name(shape.name)
        .billing_mode(BillingMode::PayPerRequest)
        .deletion_protection_enabled(true);
    for (name, kind) in [(Some(shape.hash), KeyType::Hash), (shape.range, KeyType::Range)] {
        let Some(name) = name else { continue };
        let key = KeySchemaElement::builder().attribute_name(name).key_type(kind).build().map_err(defect)?;
        let attribute = AttributeDefinition::builder().attribute_name(name).attribute_type(ScalarAttributeType::S);
        request = request.key_schema(key).attribute_definitions(attribute.build().map_err(defect)?);
    }
    match db.call(|| request.clone().send()).await {
        Ok(_) => Ok(true),
        // Another makes it at the same time.
        Err(Refused::Service(CreateTableError::ResourceInUseException(_), _)) => Ok(false),
        Err(other) => Err(other.into()),
    }
}

async fn describe(db: &Db, name: &str) -> Result<Option<aws_sdk_dynamodb::types::TableDescription>, StoreError> {
    let request = db.client.describe_table().table_name(name);
    match db.call(|| request.clone().send()).await {
        Ok(answer) => Ok(answer.table),
        Err(Refused::Service(DescribeTableError::ResourceNotFoundException(_), _)) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

async fn wait(db: &Db, shape: &Shape<'_>) -> Result<(), StoreError> {
    let begun = Instant::now();
    loop {
        if let Some(table) = describe(db, shape.name).await?
            && table.table_status() == Some(&TableStatus::Active)
        {
            let has: Vec<_> = table.key_schema().iter().map(|k| k.attribute_name()).collect();
            let wanted: Vec<_> = [Some(shape.hash), shape.range].into_iter().flatten().collect();
            if has != wanted {
                return Err(StoreError::Broken(format!(
                    "the DynamoDB table {} is another program's: its keys are {has:?}, not {wanted:?}; choose another [store] table-prefix",
                    shape.name
                )));
            }
            return Ok(());
        }
        if begun.elapsed() > MAKING {
            return Err(StoreError::Unavailable(format!("the DynamoDB table {} does not become ACTIVE", shape.name)));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn expire(db: &Db, shape: &Shape<'_>) -> Result<bool, StoreError> {
    let request = db.client.describe_time_to_live().table_name(shape.name);
    let now = db.call(|| request.clone().send()).await?.time_to_live_description;
    if now
        .is_some_and(|d| matches!(d.time_to_live_status, Some(TimeToLiveStatus::Enabled | TimeToLiveStatus::Enabling)))
    {
        return Ok(false);
    }
    let ttl = TimeToLiveSpecification::builder().enabled(true).attribute_name(TTL).build().map_err(defect)?;
    let request = db.client.update_time_to_live().table_name(shape.name).time_to_live_specification(ttl);
    db.call(|| request.clone().send()).await?;
    Ok(true)
}

async fn keep_history(db: &Db, name: &str) -> Result<bool, StoreError> {
    let request = db.client.describe_continuous_backups().table_name(name);
    let now = db.call(|| request.clone().send()).await?.continuous_backups_description;
    let now = now.and_then(|d| d.point_in_time_recovery_description?.point_in_time_recovery_status);
    if now == Some(PointInTimeRecoveryStatus::Enabled) {
        return Ok(false);
    }
    let on = PointInTimeRecoverySpecification::builder().point_in_time_recovery_enabled(true).build();
    let on = on.map_err(defect)?;
    let request = db.client.update_continuous_backups().table_name(name).point_in_time_recovery_specification(on);
    db.call(|| request.clone().send()).await?;
    Ok(true)
}

/// The statement of an IAM policy that lets credvend use its tables, and nothing else of DynamoDB.
pub fn policy(tables: &super::Tables, partition: &str, region: &str, account: &str) -> serde_json::Value {
    let arns: Vec<String> =
        tables.all().iter().map(|name| format!("arn:{partition}:dynamodb:{region}:{account}:table/{name}")).collect();
    let actions = ["BatchGetItem", "BatchWriteItem", "DeleteItem", "GetItem", "PutItem", "Query", "Scan", "UpdateItem"];
    serde_json::json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Sid": "CredvendStore",
            "Effect": "Allow",
            "Action": actions.map(|action| format!("dynamodb:{action}")),
            "Resource": arns,
        }],
    })
}
