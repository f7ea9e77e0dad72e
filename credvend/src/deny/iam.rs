//! Inline policies through IAM.
//!
//! A denied session loses everything its role allows, within the seconds to minutes that IAM takes to spread a change.
//! What it assumed from that role before, in chaining, is another role's session and is not reached.

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_iam::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::config::http::HttpResponse;
use credd_protocol::RoleArn;

use super::policy::{self, Composed};
use super::{Denier, DenyError};
use crate::source::SourceError;
use crate::source::aws::Aws;
use crate::source::failure::{Failure, Kind};
use crate::store::Revocation;

/// The inline policy's name on every role. credvend owns it: what others write there is overwritten.
pub const POLICY_NAME: &str = "credd-revocations";

/// The fewest characters that a policy with one statement needs; below, halving the size helps no more.
const MIN_CHARS: usize = 320;

/// IAM.
pub struct IamDenier {
    aws: Arc<Aws>,
    iam: aws_sdk_iam::Client,
}

impl IamDenier {
    /// Over credvend's standing in AWS.
    pub fn new(aws: Arc<Aws>) -> Self {
        IamDenier { iam: aws.iam(), aws }
    }

    /// IAM's calls take a role's bare name, in the caller's own account: a role of another account must not hit its
    /// namesake here.
    async fn check_account(&self, role: &RoleArn) -> Result<(), DenyError> {
        let identity = self.aws.identity().await.map_err(|error| match error {
            SourceError::Refused(why) | SourceError::Unavailable(why) | SourceError::Ended(why) => {
                DenyError::Unavailable(why)
            }
        })?;
        if identity.account == role.account_id() {
            return Ok(());
        }
        Err(DenyError::Refused(format!(
            "{role} belongs to another AWS account than credvend ({}), and IAM changes roles of its own account only: what was issued lives until it expires; deny it there by hand, or run a credvend in that account",
            identity.arn
        )))
    }

    async fn call<T, E>(&self, call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>) -> Result<T, Failure>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        match self.aws.within(call).await {
            Some(answer) => answer.map_err(|error| Failure::of(&error)),
            None => Err(Failure { kind: Kind::Passing, words: self.aws.late("IAM") }),
        }
    }

    /// The document in force. Reading needs a permission that denying does without: any failure is just "unknown".
    async fn in_force(&self, role: &RoleArn) -> Option<String> {
        let call = self.iam.get_role_policy().role_name(role.role_name()).policy_name(POLICY_NAME).send();
        Some(percent_decoded(&self.call(call).await.ok()?.policy_document))
    }

    async fn put(&self, role: &RoleArn, document: &str) -> Result<(), Failure> {
        let put = self.iam.put_role_policy().role_name(role.role_name()).policy_name(POLICY_NAME);
        self.call(put.policy_document(document).send()).await.map(drop)
    }

    async fn delete(&self, role: &RoleArn) -> Result<(), DenyError> {
        let delete = self.iam.delete_role_policy().role_name(role.role_name()).policy_name(POLICY_NAME);
        match self.call(delete.send()).await {
            Err(failure) if failure.kind != Kind::NotFound => {
                Err(self.explain(role, "DeleteRolePolicy", failure).await)
            }
            _ => Ok(()),
        }
    }

    async fn explain(&self, role: &RoleArn, action: &str, failure: Failure) -> DenyError {
        match failure.kind {
            Kind::Denied => {
                let who = match self.aws.identity().await {
                    Ok(identity) => identity.principal(),
                    Err(_) => "credvend's own identity".into(),
                };
                DenyError::Refused(format!(
                    "{who} needs the permission iam:{action} on {role} to revoke what was issued for it; until then it lives until it expires (AWS says: {})",
                    failure.words
                ))
            }
            Kind::NotFound => DenyError::Refused(format!(
                "{role} does not exist any more, so there is nothing to put a Deny on; credentials of a deleted role are dead (AWS says: {})",
                failure.words
            )),
            Kind::Invalid => DenyError::Refused(format!("IAM does not take the Deny for {role}: {}", failure.words)),
            Kind::Quota => DenyError::TooLarge(format!(
                "the inline policies of {role} are full: all of them together have at most {} characters; move others to managed policies (AWS says: {})",
                policy::MAX_CHARS,
                failure.words
            )),
            Kind::Own | Kind::Throttled | Kind::Passing => DenyError::Unavailable(failure.sentence("IAM")),
        }
    }
}

#[async_trait]
impl Denier for IamDenier {
    /// Where not all entries fit, the newest that do are denied before the error is returned.
    async fn project(&self, role: &RoleArn, entries: &[Revocation]) -> Result<(), DenyError> {
        self.check_account(role).await?;
        if entries.is_empty() {
            return self.delete(role).await;
        }
        let mut max_chars = policy::MAX_CHARS;
        loop {
            let Composed { document, fits, left_out } = policy::compose(entries, max_chars);
            let Some(document) = document else {
                return Err(DenyError::TooLarge(format!(
                    "not one of {left_out} revoked role sessions of {role} fits its inline policies; what was issued for them lives until it expires; move the role's other inline policies to managed ones"
                )));
            };
            if self.in_force(role).await.as_deref() != Some(document.as_str()) {
                match self.put(role, &document).await {
                    Ok(()) => {}
                    // The role's other inline policies share the room, and only IAM knows how much they take.
                    Err(failure) if failure.kind == Kind::Quota && max_chars / 2 >= MIN_CHARS => {
                        max_chars /= 2;
                        continue;
                    }
                    Err(failure) => return Err(self.explain(role, "PutRolePolicy", failure).await),
                }
            }
            return match left_out {
                0 => Ok(()),
                _ => Err(DenyError::TooLarge(format!(
                    "only {fits} of {} revoked role sessions of {role} fit its inline policies; {left_out}, revoked longest ago, are not denied and live until they expire; move the role's other inline policies to managed ones, or deny the role as a whole by hand",
                    fits + left_out
                ))),
            };
        }
    }
}

/// IAM returns documents percent-encoded (RFC 3986). What is not valid is left as it is: it then differs.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::percent_decoded;

    #[test]
    fn documents_come_back_as_they_went() {
        assert_eq!(percent_decoded("%7B%22a%22%3A%22%C3%A9+b%22%7D"), "{\"a\":\"é+b\"}");
        assert_eq!(percent_decoded("100%"), "100%");
        assert_eq!(percent_decoded("%zz%4"), "%zz%4");
        assert_eq!(percent_decoded("%ff"), "%ff");
    }
}
