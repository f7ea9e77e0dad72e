//! AssumeRole through STS.

use std::sync::Arc;
use std::time::Duration as Wait;

use async_trait::async_trait;
use aws_sdk_sts::operation::assume_role::AssumeRoleOutput;
use aws_sdk_sts::types::Tag;
use credd_protocol::credentials::Credentials;
use credd_protocol::{ProjectId, RoleArn, Secret};
use time::{Duration, OffsetDateTime};
use tokio::time::Instant;

use super::aws::Aws;
use super::failure::{Failure, Kind};
use super::turns::Crowded;
use super::{AssumeRequest, Assumed, Source, SourceError};
use crate::clock::{Clock, SystemClock};

/// How far AWS' clock and ours may differ before an expiry makes no sense.
const SKEW: Duration = Duration::minutes(5);
/// AWS gives nothing shorter, in seconds.
const SHORTEST: u32 = 900;
/// Before the first repetition; twice as long before the next.
const PAUSE: Wait = Wait::from_millis(200);
/// The longest part of a document that is taken: session tokens have some 1,000 characters, 4,096 were announced.
const MAX_PART: usize = 8192;

/// STS.
pub struct StsSource {
    aws: Arc<Aws>,
    clock: Arc<dyn Clock>,
}

impl StsSource {
    /// Over credvend's standing in AWS.
    pub fn new(aws: Arc<Aws>) -> Self {
        Self::with_clock(aws, Arc::new(SystemClock))
    }

    /// With another clock than the system's.
    pub fn with_clock(aws: Arc<Aws>, clock: Arc<dyn Clock>) -> Self {
        StsSource { aws, clock }
    }

    /// Why AWS said no, and what to do.
    async fn explain(&self, request: &AssumeRequest, failure: &Failure) -> SourceError {
        let role = &request.role_arn;
        match failure.kind {
            Kind::Denied => SourceError::Refused(self.denied(role, failure).await),
            Kind::Invalid => SourceError::Refused(invalid(request, failure)),
            Kind::NotFound => SourceError::Refused(format!("{role} does not exist (AWS says: {})", failure.words)),
            Kind::Quota | Kind::Own | Kind::Throttled | Kind::Passing => {
                SourceError::Unavailable(failure.sentence("STS"))
            }
        }
    }

    async fn denied(&self, role: &RoleArn, failure: &Failure) -> String {
        let action = ["sts:TagSession", "sts:SetSourceIdentity"]
            .into_iter()
            .find(|action| failure.words.contains(action))
            .unwrap_or("sts:AssumeRole");
        let opt_in = match action {
            "sts:TagSession" => "; it is needed since session-tags is on for this role in projects.toml",
            "sts:SetSourceIdentity" => "; it is needed since source-identity is on for this role in projects.toml",
            _ => "",
        };
        let (who, elsewhere) = match self.aws.identity().await {
            Ok(identity) => (identity.principal(), identity.account != role.account_id()),
            Err(_) => ("credvend's own identity, which AWS does not tell right now".to_owned(), false),
        };
        let own = if elsewhere {
            format!("; the role is in another AWS account, so credvend's own policy must allow {action} on it too")
        } else {
            String::new()
        };
        format!(
            "the trust policy of {role} must allow {action} to {who}{opt_in}{own}; or there is no such role, or a policy of credvend's own lacks or forbids it (AWS says: {})",
            failure.words
        )
    }
}

/// A request that AWS finds invalid: in practice a duration.
fn invalid(request: &AssumeRequest, failure: &Failure) -> String {
    let AssumeRequest { role_arn: role, duration_seconds: duration, .. } = request;
    let words = failure.words.to_lowercase();
    let remedy = if words.contains("role chaining") {
        "credvend's own credentials are those of a role, and AWS lets a role give at most 3600 seconds of another; set duration = \"1h\" or less for it in projects.toml, or run credvend as an IAM user or with Roles Anywhere or web identity as its only role"
    } else if words.contains("maxsessionduration") || words.contains("durationseconds") {
        "set a shorter duration for it in projects.toml, or raise the role's maximum session duration in IAM"
    } else if words.contains("packed") {
        "its session tags are too long together; shorten the names in them, or switch session-tags off for it"
    } else if words.contains("regiondisabled") {
        "STS is not activated in credvend's region for that account; activate it, or set another region"
    } else {
        "look at its entry in projects.toml"
    };
    format!(
        "AWS does not accept the request for {role} with {duration} seconds: {remedy} (AWS says: {})",
        failure.words
    )
}

impl StsSource {
    /// One attempt.
    async fn attempt(&self, request: &AssumeRequest, tags: Option<Vec<Tag>>) -> Result<Assumed, Failure> {
        let issued = self.clock.now();
        let call = self
            .aws
            .sts_once()
            .assume_role()
            .role_arn(request.role_arn.as_str())
            .role_session_name(&request.session_name)
            .duration_seconds(i32::try_from(request.duration_seconds).unwrap_or(i32::MAX))
            .set_source_identity(request.source_identity.clone())
            .set_tags(tags);
        match self.aws.within(call.send()).await {
            Some(Ok(answer)) => read(request, issued, answer).map_err(|why| Failure {
                kind: Kind::Passing,
                words: format!("its answer for {} cannot be used: {why}", request.role_arn),
            }),
            Some(Err(error)) => Err(self.aws.failure(&error)),
            None => Err(self.aws.late_failure("STS")),
        }
    }

    fn busy(&self, crowded: Crowded) -> SourceError {
        SourceError::Busy {
            why: format!(
                "{} requests for credentials wait for AWS STS, which credvend asks {:.0} times a second at most; ask again in {} s",
                self.aws.turns().waiting(),
                self.aws.turns().rate(),
                crowded.again_in.as_secs()
            ),
            again_in: crowded.again_in,
        }
    }
}

#[async_trait]
impl Source for StsSource {
    async fn turn(&self, project: &ProjectId) -> Result<(), SourceError> {
        self.aws.turns().turn(project).await.map_err(|crowded| self.busy(crowded))
    }

    fn delay(&self, project: &ProjectId) -> Wait {
        self.aws.turns().delay(project)
    }

    /// What may pass is tried again, a few times and within the deadline, each time with a turn of its own: what AWS is
    /// asked in a second does not grow when it fails. An answer that is no answer counts as a failure that may pass.
    async fn assume(&self, request: &AssumeRequest) -> Result<Assumed, SourceError> {
        let tags: Result<Vec<Tag>, _> =
            request.tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
        let tags =
            tags.map_err(|error| SourceError::Refused(format!("session tags of {}: {error}", request.role_arn)))?;
        let tags = (!tags.is_empty()).then_some(tags);
        let options = self.aws.options();
        let (total, deadline) = (options.timeouts.total, Instant::now() + options.timeouts.total);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let attempted = tokio::time::timeout_at(deadline, self.attempt(request, tags.clone())).await;
            let failure = match attempted.unwrap_or_else(|_| Err(self.aws.late_failure("STS"))) {
                Ok(assumed) => return Ok(assumed),
                Err(failure) => failure,
            };
            if failure.kind == Kind::Throttled {
                self.aws.turns().throttled();
            }
            let pause = PAUSE.min(total / 8) * 2u32.pow(attempt.min(4) - 1);
            if !failure.kind.may_pass() || attempt >= options.attempts.max(1) || Instant::now() + pause >= deadline {
                return Err(self.explain(request, &failure).await);
            }
            tracing::debug!(session = %request.session, role = %request.role_arn, why = failure.words, "STS is asked again");
            let again = async {
                tokio::time::sleep(pause.mul_f64(1.0 + jitter())).await;
                self.aws.turns().again(&request.project).await
            };
            if !matches!(tokio::time::timeout_at(deadline, again).await, Ok(Ok(()))) {
                return Err(self.explain(request, &failure).await);
            }
        }
    }

    async fn identity(&self) -> Result<String, SourceError> {
        Ok(self.aws.identity().await?.arn)
    }
}

/// Up to one half. It spreads load; nothing hangs on it.
fn jitter() -> f64 {
    let mut byte = [0u8; 1];
    // Without it all wait alike.
    let _ = getrandom::fill(&mut byte);
    f64::from(byte[0]) / 512.0
}

/// Takes an answer only if it is whole and about what was asked: never an empty document, never somebody else's.
fn read(request: &AssumeRequest, issued: OffsetDateTime, answer: AssumeRoleOutput) -> Result<Assumed, String> {
    let given = answer.credentials.ok_or("it has no credentials")?;
    let part = |what: &str, text: &str| {
        let good = !text.is_empty() && text.len() <= MAX_PART && text.bytes().all(|b| b.is_ascii_graphic());
        if good { Ok(()) } else { Err(format!("its {what} is empty, too long or not visible ASCII")) }
    };
    part("AccessKeyId", &given.access_key_id)?;
    part("SecretAccessKey", &given.secret_access_key)?;
    part("SessionToken", &given.session_token)?;
    let expiration =
        OffsetDateTime::from_unix_timestamp(given.expiration.secs()).map_err(|_| "its Expiration is no time")?;
    let least = issued + Duration::seconds(i64::from(request.duration_seconds.min(SHORTEST))) - SKEW;
    if expiration <= issued {
        return Err(format!("it expired at {expiration}, and here it is {issued}: is credvend's clock right?"));
    }
    if expiration < least {
        return Err(format!(
            "it lives until {expiration} only, and here it is {issued}, although {} s were asked for: is credvend's clock right?",
            request.duration_seconds
        ));
    }
    let latest = issued + Duration::seconds(i64::from(request.duration_seconds)) + SKEW;
    if expiration > latest {
        return Err(format!(
            "it lives until {expiration}, longer than asked for: is credvend's clock ({issued}) right?"
        ));
    }
    let user = answer.assumed_role_user.ok_or("it does not say whose they are")?;
    let (role_id, name) = user.assumed_role_id.split_once(':').ok_or("its AssumedRoleId has no session name")?;
    part("AssumedRoleId", role_id)?;
    if name != request.session_name {
        return Err("its session name is not the one that was asked for".into());
    }
    let role = &request.role_arn;
    let arn = format!("arn:{}:sts::{}:assumed-role/{}/{name}", role.partition(), role.account_id(), role.role_name());
    if user.arn != arn {
        return Err("its ARN is not that of the role that was asked for".into());
    }
    Ok(Assumed {
        role_id: role_id.to_owned(),
        issued,
        credentials: Credentials {
            access_key_id: given.access_key_id,
            secret_access_key: Secret::new(given.secret_access_key),
            token: Secret::new(given.session_token),
            expiration,
            role_arn: role.clone(),
            account_id: Some(role.account_id().to_owned()),
        },
    })
}

#[cfg(test)]
#[path = "sts_tests.rs"]
mod tests;
