//! Calls to DynamoDB: deadlines, bounded retries with jitter, and what an error means.
//!
//! The SDK's own retries are off: a transaction that met another one is cancelled, which the SDK does not call passing, and
//! one place should say how long a caller waits. A call whose answer was lost is made again; each caller sees to it that
//! this changes nothing twice (a transaction's token, a condition that knows its own writing).

use std::fmt::Display;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::types::{
    CancellationReason, DeleteRequest, KeysAndAttributes, PutRequest, TransactWriteItem, WriteRequest,
};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::item::{Item, PK, SK, text};
use crate::source::failure::{Failure, Kind};
use crate::store::StoreError;

/// How long one call is tried for, the wait for a place included.
pub(super) const PATIENCE: Duration = Duration::from_secs(6);
/// The pause before the second attempt is random up to this; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(40);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Calls at the same time; others wait within their deadline.
pub(super) const AT_ONCE: usize = 192;
/// DynamoDB's own bounds.
const WRITES_AT_ONCE: usize = 25;
const READS_AT_ONCE: usize = 100;

/// The tables' names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// `ProjectId` → `RoleArn`, as in the IAM Credentials API (v1).
    pub projects: String,
    /// Sessions and their listings.
    pub sessions: String,
    /// What AWS issued.
    pub issuances: String,
    /// Nonces of nodes' claims.
    pub nonces: String,
    /// Everything else: orders, blocks, denials, news, leases, who this store is.
    pub state: String,
}

impl Tables {
    /// With this before each name.
    pub fn new(prefix: &str) -> Self {
        let name = |what: &str| format!("{prefix}{what}");
        Tables {
            projects: name("projects"),
            sessions: name("sessions"),
            issuances: name("issuances"),
            nonces: name("nonces"),
            state: name("state"),
        }
    }

    /// All of them.
    pub fn all(&self) -> [&str; 5] {
        [&self.projects, &self.sessions, &self.issuances, &self.nonces, &self.state]
    }
}

/// The way to DynamoDB.
pub(super) struct Db {
    pub(super) client: Client,
    pub(super) tables: Tables,
    places: Semaphore,
    patience: Duration,
}

/// What DynamoDB said that asking again does not change.
#[derive(Debug)]
pub(super) enum Refused<E> {
    /// A service error, for the caller to look at.
    Service(E, Failure),
    /// Anything else.
    Store(StoreError),
}

impl<E> From<Refused<E>> for StoreError {
    fn from(refused: Refused<E>) -> Self {
        match refused {
            Refused::Store(error) => error,
            Refused::Service(_, failure) => broken(&failure),
        }
    }
}

/// Why a transaction did not happen.
#[derive(Debug)]
pub(super) enum Cancelled {
    /// One reason for each of its items; some condition did not hold.
    Conditions(Vec<CancellationReason>),
    Store(StoreError),
}

impl From<Cancelled> for StoreError {
    fn from(cancelled: Cancelled) -> Self {
        match cancelled {
            Cancelled::Store(error) => error,
            Cancelled::Conditions(_) => StoreError::Unavailable("DynamoDB's items changed under a transaction".into()),
        }
    }
}

fn broken(failure: &Failure) -> StoreError {
    let words = &failure.words;
    StoreError::Broken(match failure.kind {
        Kind::Denied => format!(
            "credvend's identity may not use its DynamoDB tables ({words}); give it the policy that `credvend store policy` prints"
        ),
        _ if words.starts_with("ResourceNotFoundException") => {
            format!(
                "a DynamoDB table is not there ({words}); compare [store] table-prefix and region, or run `credvend store init`"
            )
        }
        _ => format!("DynamoDB refuses: {words}"),
    })
}

fn unavailable(failure: &Failure) -> StoreError {
    StoreError::Unavailable(failure.sentence("DynamoDB"))
}

/// Whether the same call may work soon.
fn passing<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>, failure: &Failure) -> bool {
    let SdkError::ServiceError(context) = error else {
        return failure.kind == Kind::Passing;
    };
    let status = context.raw().status().as_u16();
    status >= 500
        || matches!(failure.kind, Kind::Throttled)
        || matches!(
            context.err().code(),
            Some(
                "ProvisionedThroughputExceededException"
                    | "TransactionConflictException"
                    | "TransactionInProgressException"
                    | "ThrottlingException"
                    | "RequestLimitExceeded"
                    | "LimitExceededException"
                    | "InternalServerError"
                    | "ReplicatedWriteConflictException"
            )
        )
}

/// Waits between attempts, within one deadline.
struct Patience {
    until: Instant,
    pause: Duration,
}

impl Patience {
    fn new(whole: Duration) -> Self {
        Patience { until: Instant::now() + whole, pause: FIRST_PAUSE }
    }

    /// `false` if there is no time for another attempt.
    async fn wait(&mut self) -> bool {
        let mut random = [0u8; 2];
        let _ = getrandom::fill(&mut random);
        // "Full jitter": those who were refused together do not come back together.
        let pause = self.pause.mul_f64(f64::from(u16::from_ne_bytes(random)) / f64::from(u16::MAX));
        if Instant::now() + pause >= self.until {
            return false;
        }
        tokio::time::sleep(pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        true
    }
}

impl Db {
    pub(super) fn new(client: Client, tables: Tables, patience: Duration, at_once: usize) -> Self {
        Db { client, tables, places: Semaphore::new(at_once), patience }
    }

    /// Makes a call until it has an answer that asking again would not change, or time is up.
    pub(super) async fn call<T, E, F>(&self, send: impl Fn() -> F) -> Result<T, Refused<E>>
    where
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let mut patience = Patience::new(self.patience);
        loop {
            let sent = async {
                // Never closed; without a place the deadline ends the wait.
                let _place = self.places.acquire().await;
                send().await
            };
            let error = match tokio::time::timeout_at(patience.until, sent).await {
                Err(_) => return Err(Refused::Store(self.late())),
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
            };
            let failure = Failure::of(&error);
            if !passing(&error, &failure) {
                return Err(match (failure.kind, error) {
                    (Kind::Own, _) => Refused::Store(unavailable(&failure)),
                    (_, SdkError::ServiceError(context)) => Refused::Service(context.into_err(), failure),
                    _ => Refused::Store(unavailable(&failure)),
                });
            }
            if !patience.wait().await {
                return Err(Refused::Store(unavailable(&failure)));
            }
        }
    }

    fn late(&self) -> StoreError {
        StoreError::Unavailable(format!("AWS DynamoDB did not answer within {:?}", self.patience))
    }

    /// All of these writes, or none.
    pub(super) async fn transact(&self, writes: Vec<TransactWriteItem>) -> Result<(), Cancelled> {
        let request = self
            .client
            .transact_write_items()
            .set_transact_items(Some(writes))
            // DynamoDB knows it for ten minutes: made again after a lost answer, the transaction succeeds again.
            .client_request_token(uuid::Uuid::new_v4().to_string());
        let mut patience = Patience::new(self.patience);
        loop {
            let refused = match self.call(|| request.clone().send()).await {
                Ok(_) => return Ok(()),
                Err(refused) => refused,
            };
            let (cancelled, failure) = match refused {
                Refused::Service(TransactWriteItemsError::TransactionCanceledException(e), failure) => (e, failure),
                other => return Err(Cancelled::Store(other.into())),
            };
            let reasons = cancelled.cancellation_reasons.unwrap_or_default();
            if reasons.iter().any(failed) {
                return Err(Cancelled::Conditions(reasons));
            }
            let known = ["None", "TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"];
            if reasons.is_empty() || reasons.iter().any(|r| !known.contains(&r.code().unwrap_or("None"))) {
                return Err(Cancelled::Store(broken(&failure)));
            }
            if !patience.wait().await {
                return Err(Cancelled::Store(StoreError::Unavailable(format!(
                    "DynamoDB has other transactions with the same items, or too many: {}",
                    failure.words
                ))));
            }
        }
    }

    /// One item, as everybody left it who was answered before.
    pub(super) async fn get(&self, table: &str, key: Item) -> Result<Option<Item>, StoreError> {
        let request = self.client.get_item().table_name(table).set_key(Some(key)).consistent_read(true);
        Ok(self.call(|| request.clone().send()).await?.item)
    }

    /// Items of one partition whose sort key is from `low` to `high`, both included: one answer of DynamoDB's, and
    /// whether there may be more.
    pub(super) async fn query(
        &self,
        table: &str,
        pk: &str,
        (low, high): (&str, &str),
        upwards: bool,
        limit: Option<i32>,
    ) -> Result<(Vec<Item>, bool), StoreError> {
        if low > high {
            return Ok((vec![], false));
        }
        let request = self
            .client
            .query()
            .table_name(table)
            .key_condition_expression(format!("{PK} = :pk AND {SK} BETWEEN :low AND :high"))
            .expression_attribute_values(":pk", text(pk))
            .expression_attribute_values(":low", text(low))
            .expression_attribute_values(":high", text(high))
            .consistent_read(true)
            .scan_index_forward(upwards)
            .set_limit(limit);
        let answer = self.call(|| request.clone().send()).await?;
        let more = answer.last_evaluated_key.is_some();
        Ok((answer.items.unwrap_or_default(), more))
    }

    /// A whole partition from `low` to `high`, upwards.
    pub(super) async fn partition(
        &self,
        table: &str,
        pk: &str,
        (low, high): (&str, &str),
    ) -> Result<Vec<Item>, StoreError> {
        let (mut all, mut low) = (vec![], low.to_owned());
        loop {
            let (items, more) = self.query(table, pk, (&low, high), true, None).await?;
            let last = items.last().and_then(|i| i.get(SK)?.as_s().ok().cloned());
            all.extend(items);
            match last {
                // What sorts directly behind it: no sort key of ours has this byte.
                Some(last) if more => low = format!("{last}\u{1}"),
                _ => return Ok(all),
            }
        }
    }

    /// Those of these keys that have an item, in no order.
    pub(super) async fn get_all(&self, table: &str, keys: Vec<Item>) -> Result<Vec<Item>, StoreError> {
        let mut found = vec![];
        for some in keys.chunks(READS_AT_ONCE) {
            let mut left = Some(some.to_vec());
            let mut patience = Patience::new(self.patience);
            while let Some(keys) = left.take().filter(|keys| !keys.is_empty()) {
                let asked = keys.len();
                let keys = KeysAndAttributes::builder().set_keys(Some(keys)).consistent_read(true).build();
                let keys = keys.map_err(defect)?;
                let request = self.client.batch_get_item().request_items(table, keys);
                let answer = self.call(|| request.clone().send()).await?;
                found.extend(answer.responses.unwrap_or_default().into_values().flatten());
                let more = answer.unprocessed_keys.unwrap_or_default();
                left = more.into_values().next().map(|keys| keys.keys);
                // An answer holds 16 MB, so a part may be left for no reason but size: no pause then.
                if left.as_ref().is_some_and(|left| left.len() == asked) && !patience.wait().await {
                    return Err(too_busy());
                }
            }
        }
        Ok(found)
    }

    /// Writes and deletes, in any order, each by itself.
    pub(super) async fn write_all(&self, table: &str, puts: Vec<Item>, deletes: Vec<Item>) -> Result<(), StoreError> {
        let mut requests = vec![];
        for item in puts {
            let put = PutRequest::builder().set_item(Some(item)).build().map_err(defect)?;
            requests.push(WriteRequest::builder().put_request(put).build());
        }
        for key in deletes {
            let delete = DeleteRequest::builder().set_key(Some(key)).build().map_err(defect)?;
            requests.push(WriteRequest::builder().delete_request(delete).build());
        }
        for some in requests.chunks(WRITES_AT_ONCE) {
            let mut left = some.to_vec();
            let mut patience = Patience::new(self.patience);
            loop {
                let request = self.client.batch_write_item().request_items(table, left);
                let answer = self.call(|| request.clone().send()).await?;
                left = answer.unprocessed_items.unwrap_or_default().into_values().next().unwrap_or_default();
                if left.is_empty() {
                    break;
                }
                if !patience.wait().await {
                    return Err(too_busy());
                }
            }
        }
        Ok(())
    }
}

/// Whether this item's condition did not hold.
pub(super) fn failed(reason: &CancellationReason) -> bool {
    reason.code() == Some("ConditionalCheckFailed")
}

/// A request that cannot even be made.
pub(super) fn defect(error: impl Display) -> StoreError {
    StoreError::Broken(format!("a request to DynamoDB cannot be made (a defect of credvend): {error}"))
}

fn too_busy() -> StoreError {
    StoreError::Unavailable("AWS DynamoDB limits credvend's rate for now".into())
}
