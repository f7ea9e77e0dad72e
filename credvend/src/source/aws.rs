//! credvend's own standing in AWS: region, endpoints, its own credentials, one HTTP client for STS and IAM.

use std::sync::Arc;
use std::time::Duration;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::identity::IdentityCache;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_config::{AppName, BehaviorVersion, SdkConfig};
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_sts::config::http::HttpResponse;
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::tls;
use credd_protocol::Region;
use tokio::sync::{Mutex, Semaphore};

use super::SourceError;
use super::failure::{Failure, Kind};
use super::own::{self, Own};
use super::turns::{Rate, Turns};

/// How long calls to AWS may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AwsTimeouts {
    /// To open a connection.
    pub connect: Duration,
    /// For one attempt, connection included.
    pub attempt: Duration,
    /// For everything: waiting for a free place, credvend's own credentials, all attempts and the pauses between them.
    pub total: Duration,
}

impl Default for AwsTimeouts {
    fn default() -> Self {
        AwsTimeouts {
            connect: Duration::from_millis(1500),
            attempt: Duration::from_millis(2500),
            total: Duration::from_secs(5),
        }
    }
}

/// How to reach AWS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsOptions {
    /// The region whose STS is asked; it also tells the AWS partition.
    pub region: Region,
    /// Instead of the region's own STS endpoint.
    pub sts_endpoint: Option<String>,
    /// Instead of the partition's IAM endpoint.
    pub iam_endpoint: Option<String>,
    /// Take credvend's own credentials from a metadata service (EC2's, or a container's) if nothing else gives any.
    /// Every local user can read EC2's unless the administrators prevent it, and then be credvend.
    pub allow_instance_metadata: bool,
    /// Deadlines.
    pub timeouts: AwsTimeouts,
    /// Attempts at most for one call, the first included.
    pub attempts: u32,
    /// Calls at the same time; others wait within their deadline.
    pub concurrency: usize,
    /// AssumeRole calls in a second.
    pub rate: Rate,
}

impl AwsOptions {
    /// This region with everything else as usual.
    pub fn new(region: Region) -> Self {
        AwsOptions {
            region,
            sts_endpoint: None,
            iam_endpoint: None,
            allow_instance_metadata: false,
            timeouts: AwsTimeouts::default(),
            attempts: 3,
            // What the usual rate needs while AWS takes a second to answer.
            concurrency: 256,
            rate: Rate::default(),
        }
    }
}

/// Who credvend is in AWS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// As GetCallerIdentity says: a user, or an assumed role's session.
    pub arn: String,
    /// The twelve digits of its account.
    pub account: String,
}

impl Identity {
    /// What a trust policy names: of an assumed role's session the role itself. The session's ARN does not show the
    /// role's path, so a role with one must be named with it.
    pub fn principal(&self) -> String {
        let mut parts = self.arn.splitn(6, ':');
        let (Some("arn"), Some(partition), Some("sts"), _, Some(account), Some(resource)) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return self.arn.clone();
        };
        match resource.strip_prefix("assumed-role/").and_then(|r| r.split('/').next()) {
            Some(role) => format!("arn:{partition}:iam::{account}:role/{role} (with its path, if it has one)"),
            None => self.arn.clone(),
        }
    }
}

/// One per process: STS and IAM share its connections, its credentials and its limit.
pub struct Aws {
    options: AwsOptions,
    config: SdkConfig,
    sts: aws_sdk_sts::Client,
    sts_once: aws_sdk_sts::Client,
    turns: Turns,
    places: Semaphore,
    identity: Mutex<Option<Identity>>,
    own: Own,
}

/// A fetch of credvend's own credentials that takes this long is what a call has waited for.
const SLOW: Duration = Duration::from_secs(1);

impl Aws {
    /// Reads the SDK's environment variables and profile files. No network: AWS may be reachable later.
    pub async fn load(options: AwsOptions) -> Arc<Self> {
        Self::build(options, None).await
    }

    /// With these credentials of its own, whatever the environment has.
    pub async fn with_credentials(options: AwsOptions, own: impl ProvideCredentials + 'static) -> Arc<Self> {
        Self::build(options, Some(SharedCredentialsProvider::new(own))).await
    }

    async fn build(options: AwsOptions, own: Option<SharedCredentialsProvider>) -> Arc<Self> {
        let tls = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
        let http = aws_smithy_http_client::Builder::new().tls_provider(tls).build_https();
        let region = aws_config::Region::new(options.region.as_str().to_owned());
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(options.timeouts.connect)
            .operation_attempt_timeout(options.timeouts.attempt)
            .build();
        // The SDK starts with up to 1 s between attempts, which would leave no time for a third.
        let retry = RetryConfig::standard()
            .with_max_attempts(options.attempts.max(1))
            .with_initial_backoff(Duration::from_millis(200))
            .with_max_backoff(Duration::from_secs(1));
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(region.clone())
            .http_client(http.clone())
            .timeout_config(timeouts)
            .retry_config(retry);
        if let Ok(name) = AppName::new("credvend") {
            loader = loader.app_name(name);
        }
        let provider = ProviderConfig::without_region().with_region(Some(region)).with_http_client(http);
        let own = Own::new(match own {
            Some(own) => own,
            None if options.allow_instance_metadata => {
                SharedCredentialsProvider::new(DefaultCredentialsChain::builder().configure(provider).build().await)
            }
            None => SharedCredentialsProvider::new(without_metadata(&provider)),
        });
        // Whoever waits has a deadline of its own, and says what it waited for.
        let cache = IdentityCache::lazy().load_timeout(own::PATIENCE + Duration::from_secs(5)).build();
        loader = loader.credentials_provider(own.clone()).identity_cache(cache);
        let config = loader.load().await;
        let mut sts = aws_sdk_sts::config::Builder::from(&config);
        if let Some(endpoint) = &options.sts_endpoint {
            sts = sts.endpoint_url(endpoint);
        }
        let once = sts.clone().retry_config(RetryConfig::disabled());
        Arc::new(Aws {
            sts: aws_sdk_sts::Client::from_conf(sts.build()),
            sts_once: aws_sdk_sts::Client::from_conf(once.build()),
            turns: Turns::new(options.rate),
            places: Semaphore::new(options.concurrency.max(1)),
            identity: Mutex::default(),
            own,
            options,
            config,
        })
    }

    /// The options it was made with.
    pub fn options(&self) -> &AwsOptions {
        &self.options
    }

    pub(crate) fn sts(&self) -> &aws_sdk_sts::Client {
        &self.sts
    }

    /// A client that tries once: whoever uses it takes a turn for each attempt.
    pub(crate) fn sts_once(&self) -> &aws_sdk_sts::Client {
        &self.sts_once
    }

    pub(crate) fn turns(&self) -> &Turns {
        &self.turns
    }

    /// IAM with other credentials than credvend's own, which have no business there.
    pub(crate) fn iam_as(&self, who: SharedCredentialsProvider) -> aws_sdk_iam::Client {
        let mut iam = aws_sdk_iam::config::Builder::from(&self.config).credentials_provider(who);
        if let Some(endpoint) = &self.options.iam_endpoint {
            iam = iam.endpoint_url(endpoint);
        }
        aws_sdk_iam::Client::from_conf(iam.build())
    }

    /// A client of the region's DynamoDB, or of another endpoint. It makes one attempt: the store has retries of its own.
    pub(crate) fn dynamodb(&self, endpoint: Option<&str>) -> aws_sdk_dynamodb::Client {
        let dynamodb = aws_sdk_dynamodb::config::Builder::from(&self.config).retry_config(RetryConfig::disabled());
        let dynamodb = match endpoint {
            Some(endpoint) => dynamodb.endpoint_url(endpoint),
            None => dynamodb,
        };
        aws_sdk_dynamodb::Client::from_conf(dynamodb.build())
    }

    /// Runs calls to AWS in one of the places, within the total deadline; `None` if it passes.
    pub(crate) async fn within<T>(&self, calls: impl Future<Output = T>) -> Option<T> {
        let run = async {
            // Never closed; without a place the deadline ends the wait.
            let _place = self.places.acquire().await;
            calls.await
        };
        tokio::time::timeout(self.options.timeouts.total, run).await.ok()
    }

    /// Who credvend is, by GetCallerIdentity, which needs no permission. Remembered once known: an identity does not
    /// change under a running process, unless its configuration does.
    ///
    /// # Errors
    /// No credentials of its own, or none that AWS takes, or AWS out of reach: always passing, since it is an
    /// administrator's to mend and no job's fault.
    pub async fn identity(&self) -> Result<Identity, SourceError> {
        // The wait for another caller's question counts too: a queue of them must not add up its deadlines.
        let asked = self.within(async {
            let mut known = self.identity.lock().await;
            if known.is_none() {
                *known = Some(self.ask_identity().await?);
            }
            Ok(known.clone())
        });
        match asked.await {
            Some(Ok(Some(identity))) => Ok(identity),
            Some(Err(error)) => Err(error),
            Some(Ok(None)) | None => Err(SourceError::Unavailable(self.late("STS"))),
        }
    }

    async fn ask_identity(&self) -> Result<Identity, SourceError> {
        let answer = self.sts.get_caller_identity().send().await;
        let answer = answer.map_err(|error| SourceError::Unavailable(self.failure(&error).sentence("STS")))?;
        match (answer.arn, answer.account) {
            (Some(arn), Some(account)) if !arn.is_empty() && account.len() == 12 => Ok(Identity { arn, account }),
            _ => Err(SourceError::Unavailable("STS does not say who credvend is".into())),
        }
    }

    /// What a call has failed of.
    pub(crate) fn failure<E>(&self, error: &SdkError<E, HttpResponse>) -> Failure
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let failure = Failure::of(error);
        match self.own.waited().filter(|waited| failure.kind == Kind::Passing && *waited >= SLOW) {
            Some(waited) => slow(waited),
            None => failure,
        }
    }

    /// Of a call whose deadline has passed.
    pub(crate) fn late_failure(&self, service: &str) -> Failure {
        let total = self.options.timeouts.total;
        match self.own.waited().filter(|waited| *waited >= SLOW.min(total / 2)) {
            Some(waited) => slow(waited),
            None => {
                let words = format!("AWS {service} did not answer within {total:?}; it is asked again");
                Failure { kind: Kind::Passing, words }
            }
        }
    }

    /// The same in a sentence.
    pub(crate) fn late(&self, service: &str) -> String {
        let failure = self.late_failure(service);
        if failure.kind == Kind::Own { failure.sentence(service) } else { failure.words }
    }
}

/// credvend's own credentials are not there.
fn slow(waited: Duration) -> Failure {
    let words = format!(
        "they have not come after {:.1} s: the credential_process of its profile, or what else gives them, is slow or hangs; \
         it is waited for up to {} s",
        waited.as_secs_f64(),
        own::PATIENCE.as_secs()
    );
    Failure { kind: Kind::Own, words }
}

/// The SDK's default chain without its last two links, the container's and the instance's metadata service, also where
/// a profile names them.
fn without_metadata(config: &ProviderConfig) -> CredentialsProviderChain {
    let profile = ProfileFileCredentialsProvider::builder()
        .configure(config)
        .with_custom_provider("Ec2InstanceMetadata", Refuse)
        .with_custom_provider("EcsContainer", Refuse)
        .build();
    CredentialsProviderChain::first_try("Environment", EnvironmentVariableCredentialsProvider::new())
        .or_else("Profile", profile)
        .or_else("WebIdentityToken", WebIdentityTokenCredentialsProvider::builder().configure(config).build())
        .or_else("MetadataServices", Refuse)
}

/// Stands where a metadata service would be asked.
#[derive(Debug)]
struct Refuse;

/// What to do about it.
pub(crate) const NO_METADATA: &str = "there are none in its environment, profile or web identity, and metadata services are not asked, since other users of the machine may read them too; give credvend a profile of its own, or set allow-instance-metadata = true";

impl ProvideCredentials for Refuse {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(Err(CredentialsError::invalid_configuration(NO_METADATA)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_credentials_of_its_own_credvend_says_where_they_may_come_from() {
        let mut options = AwsOptions::new("us-east-1".parse().unwrap());
        options.sts_endpoint = Some("http://127.0.0.1:9".into());
        let aws = Aws::with_credentials(options, CredentialsProviderChain::first_try("MetadataServices", Refuse)).await;
        let Err(SourceError::Unavailable(why)) = aws.identity().await else { panic!("there is no identity") };
        assert!(why.contains("credvend's own credentials") && why.contains("allow-instance-metadata"), "{why}");
    }

    /// Takes its time.
    #[derive(Debug)]
    struct Slow(Duration);

    impl ProvideCredentials for Slow {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            future::ProvideCredentials::new(async {
                tokio::time::sleep(self.0).await;
                Ok(aws_credential_types::Credentials::for_tests())
            })
        }
    }

    #[tokio::test]
    async fn slow_credentials_of_its_own_are_named_as_the_cause_and_come_in_the_end() {
        let mut options = AwsOptions::new("us-east-1".parse().unwrap());
        options.sts_endpoint = Some("http://127.0.0.1:9".into());
        (options.timeouts.total, options.timeouts.attempt) = (Duration::from_millis(400), Duration::from_millis(300));
        let aws = Aws::with_credentials(options, Slow(Duration::from_secs(3))).await;
        let begun = std::time::Instant::now();
        let Err(SourceError::Unavailable(why)) = aws.identity().await else { panic!("there is no identity") };
        assert!(why.contains("credvend's own credentials") && why.contains("credential_process"), "{why}");
        assert!(!why.contains("did not answer"), "{why}");
        // Each call is cut off long before; the fetch is one and goes on.
        loop {
            let Err(SourceError::Unavailable(why)) = aws.identity().await else { panic!("nobody listens there") };
            if !why.contains("own credentials") {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "they never come: {why}");
        }
    }

    #[test]
    fn a_trust_policy_names_the_role_and_not_its_session() {
        let principal = |arn: &str| Identity { arn: arn.into(), account: "123456789012".into() }.principal();
        assert_eq!(
            principal("arn:aws-cn:sts::123456789012:assumed-role/credvend/i-0abc"),
            "arn:aws-cn:iam::123456789012:role/credvend (with its path, if it has one)"
        );
        assert_eq!(principal("arn:aws:iam::123456789012:user/x/credvend"), "arn:aws:iam::123456789012:user/x/credvend");
        assert_eq!(principal("nonsense"), "nonsense");
    }
}
