use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::super::conformance;
use super::{DynamoStore, Store, Tables};
use crate::source::aws::{Aws, AwsOptions};

#[path = "../../../tests/pretend_aws/mod.rs"]
#[allow(dead_code)]
mod pretend_aws;

use pretend_aws::{Keys, PretendAws};

static NUMBER: AtomicU32 = AtomicU32::new(0);

async fn store(endpoint: &str) -> Arc<DynamoStore> {
    let options = AwsOptions::new("us-east-1".parse().unwrap());
    let aws = Aws::with_credentials(options, Keys::new("test", "test", None).provider()).await;
    let prefix = format!("t{}-", NUMBER.fetch_add(1, Ordering::Relaxed));
    let store =
        // Thousands of callers at once wait for one another at a pretend AWS.
        DynamoStore::with_patience(aws.dynamodb(Some(endpoint)), Tables::new(&prefix), Duration::from_secs(120));
    store.init(false).await.unwrap();
    Arc::new(store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn it_keeps_the_stores_promises() {
    let pretend = PretendAws::start().await;
    let endpoint = pretend.endpoint();
    conformance::all(|| async { store(endpoint).await as Arc<dyn Store> }).await;
}
