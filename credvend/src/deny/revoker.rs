//! The revoker roles: the only identity with which IAM is called. One for each AWS account, assumed when it is needed and
//! used for nothing else.

use std::sync::Arc;

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use credd_protocol::RoleArn;
use time::{Duration, OffsetDateTime};
use tokio::sync::Mutex;

use super::DenyError;
use crate::source::aws::Aws;
use crate::source::failure::{Failure, Kind};

/// The role-session name under which CloudTrail has what is done by it.
const SESSION_NAME: &str = "credvend-revoker";

/// What AWS allows chained roles, and the usual `MaxSessionDuration`.
const LIFE_SECONDS: i32 = 3600;

/// Credentials with less life than this are renewed first.
const LEAST_LEFT: Duration = Duration::minutes(5);

/// One account's revoker.
pub(super) struct Revoker {
    pub(super) arn: RoleArn,
    aws: Arc<Aws>,
    /// With credentials that live until then. Held while they are fetched: once for all who wait.
    client: Mutex<Option<(OffsetDateTime, aws_sdk_iam::Client)>>,
}

impl Revoker {
    pub(super) fn new(arn: RoleArn, aws: Arc<Aws>) -> Self {
        Revoker { arn, aws, client: Mutex::default() }
    }

    /// IAM as this role.
    pub(super) async fn iam(&self) -> Result<aws_sdk_iam::Client, DenyError> {
        let mut client = self.client.lock().await;
        if let Some((until, client)) = &*client
            && *until - OffsetDateTime::now_utc() > LEAST_LEFT
        {
            return Ok(client.clone());
        }
        let (until, own) = self.assume().await?;
        let fresh = self.aws.iam_as(SharedCredentialsProvider::new(own));
        *client = Some((until, fresh.clone()));
        Ok(fresh)
    }

    /// Its credentials may be worth nothing any more: the next call fetches others.
    pub(super) async fn forget(&self) {
        *self.client.lock().await = None;
    }

    async fn assume(&self) -> Result<(OffsetDateTime, Credentials), DenyError> {
        let sts = self.aws.sts();
        let ask = sts.assume_role().role_arn(self.arn.as_str()).role_session_name(SESSION_NAME);
        let answer = match self.aws.within(ask.duration_seconds(LIFE_SECONDS).send()).await {
            Some(Ok(answer)) => answer,
            Some(Err(error)) => return Err(self.explain(self.aws.failure(&error)).await),
            None => return Err(DenyError::Unavailable(self.aws.late("STS"))),
        };
        let given = answer.credentials.filter(|c| !c.access_key_id.is_empty() && !c.secret_access_key.is_empty());
        let nonsense = || DenyError::Unavailable(format!("STS gave no usable credentials of {}", self.arn));
        let given = given.ok_or_else(nonsense)?;
        let until = OffsetDateTime::from_unix_timestamp(given.expiration.secs()).map_err(|_| nonsense())?;
        let (id, secret, token) = (given.access_key_id, given.secret_access_key, given.session_token);
        Ok((until, Credentials::new(id, secret, Some(token), Some(until.into()), "revoker")))
    }

    async fn explain(&self, failure: Failure) -> DenyError {
        match failure.kind {
            Kind::Denied | Kind::NotFound | Kind::Invalid => {
                let who = match self.aws.identity().await {
                    Ok(identity) => identity.principal(),
                    Err(_) => "credvend's own identity".into(),
                };
                DenyError::Refused(format!(
                    "the revoker role {} cannot be assumed: it must exist, its trust policy must allow sts:AssumeRole to {who}, and that identity's own policy must allow it too; `credvend project policy` prints all of them (AWS says: {})",
                    self.arn, failure.words
                ))
            }
            _ => DenyError::Unavailable(failure.sentence("STS")),
        }
    }
}
