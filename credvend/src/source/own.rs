//! credvend's own credentials in AWS, fetched apart from the calls that wait for them.
//!
//! A `credential_process` may take longer than a call to AWS may. If it were cut off with the call, it would be begun anew
//! with the next one and never come to an end, and the call would seem to be AWS' fault.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, SharedCredentialsProvider, future};
use credd_protocol::causes::chain;
use tokio::sync::watch;
use tokio::time::Instant;

/// One fetch takes no longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What nobody has taken for this long is fetched anew: it may have expired.
const KEPT: Duration = Duration::from_secs(120);

type Outcome = Option<Result<Credentials, String>>;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    inner: SharedCredentialsProvider,
    fetch: Arc<Mutex<Option<Fetch>>>,
}

#[derive(Debug, Clone)]
struct Fetch {
    begun: Instant,
    outcome: watch::Receiver<Outcome>,
}

impl Own {
    /// Around what gives them.
    pub(crate) fn new(inner: SharedCredentialsProvider) -> Self {
        Own { inner, fetch: Arc::default() }
    }

    /// For how long they have been fetched, if they are being fetched now.
    pub(crate) fn waited(&self) -> Option<Duration> {
        let fetch = self.fetch.lock().unwrap_or_else(PoisonError::into_inner);
        fetch.as_ref().filter(|fetch| fetch.outcome.borrow().is_none()).map(|fetch| fetch.begun.elapsed())
    }

    /// The fetch under way, or a new one.
    fn current(&self) -> Fetch {
        let mut current = self.fetch.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fetch) = current.as_ref().filter(|fetch| fetch.begun.elapsed() < KEPT) {
            return fetch.clone();
        }
        let (done, outcome) = watch::channel(None);
        let inner = self.inner.clone();
        tokio::spawn(async move {
            let fetched = match tokio::time::timeout(PATIENCE, inner.provide_credentials()).await {
                Ok(Ok(credentials)) => Ok(credentials),
                Ok(Err(error)) => Err(chain(&error)),
                Err(_) => Err(format!("they did not come within {} s", PATIENCE.as_secs())),
            };
            let _ = done.send(Some(fetched));
        });
        let fetch = Fetch { begun: Instant::now(), outcome };
        *current = Some(fetch.clone());
        fetch
    }

    async fn fetched(&self) -> provider::Result {
        let mut outcome = self.current().outcome;
        let fetched = match outcome.wait_for(Option::is_some).await {
            Ok(fetched) => fetched.clone(),
            Err(_) => None,
        };
        // Taken: the SDK keeps them until they are to be renewed.
        *self.fetch.lock().unwrap_or_else(PoisonError::into_inner) = None;
        match fetched {
            Some(Ok(credentials)) => Ok(credentials),
            Some(Err(why)) => Err(CredentialsError::provider_error(why)),
            None => Err(CredentialsError::provider_error("fetching them was cut short")),
        }
    }
}

impl ProvideCredentials for Own {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.fetched())
    }
}
