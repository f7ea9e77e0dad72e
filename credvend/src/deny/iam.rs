//! Inline policies through IAM, by the revoker role of the role's account and by nobody else.
//!
//! A denied session loses everything its role allows, within the seconds to minutes that IAM takes to spread a change.
//! What it assumed from that role before, in chaining, is another role's session and is not reached.

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_iam::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::config::http::HttpResponse;
use credd_protocol::RoleArn;

use super::policy::{self, Composed};
use super::revoker::Revoker;
use super::{Denier, DenyError};
use crate::source::aws::Aws;
use crate::source::failure::{Failure, Kind};
use crate::store::Revocation;

/// The inline policy's name on every role. credvend owns it: what others write there is overwritten.
pub const POLICY_NAME: &str = "credd-revocations";

/// The fewest characters that a policy with one statement needs; below, halving the size helps no more.
const MIN_CHARS: usize = 320;

/// How often IAM is asked whether it shows what was written, and the pause between: it may answer from a copy that is a
/// little behind.
const LOOKS: usize = 8;
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(250);

/// The most other inline policies that are looked at for their size.
const MAX_OTHERS: usize = 50;

/// IAM.
pub struct IamDenier {
    aws: Arc<Aws>,
    revokers: Vec<Revoker>,
}

impl IamDenier {
    /// By these revoker roles, which credvend assumes.
    pub fn new(aws: Arc<Aws>, revokers: Vec<RoleArn>) -> Self {
        let revokers = revokers.into_iter().map(|arn| Revoker::new(arn, aws.clone())).collect();
        IamDenier { aws, revokers }
    }

    /// IAM's calls take a role's bare name, in the caller's own account: a role of another account must not hit its
    /// namesake here.
    fn revoker(&self, role: &RoleArn) -> Option<&Revoker> {
        self.revokers.iter().find(|revoker| {
            (revoker.arn.partition(), revoker.arn.account_id()) == (role.partition(), role.account_id())
        })
    }

    async fn call<T, E>(&self, call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>) -> Result<T, Failure>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        match self.aws.within(call).await {
            Some(answer) => answer.map_err(|error| self.aws.failure(&error)),
            None => Err(self.aws.late_failure("IAM")),
        }
    }

    /// A document as it is in force, or that there is none. Reading needs a permission that denying does without: any other
    /// failure is just "unknown".
    async fn read(&self, iam: &aws_sdk_iam::Client, role: &RoleArn, policy: &str) -> Option<Option<String>> {
        let call = iam.get_role_policy().role_name(role.role_name()).policy_name(policy).send();
        match self.call(call).await {
            Ok(answer) => Some(Some(percent_decoded(&answer.policy_document))),
            Err(failure) if failure.kind == Kind::NotFound => Some(None),
            Err(_) => None,
        }
    }

    /// How many characters the role's other inline policies take, as far as they can be read.
    async fn others(&self, iam: &aws_sdk_iam::Client, role: &RoleArn) -> usize {
        let call = iam.list_role_policies().role_name(role.role_name()).send();
        let Ok(listed) = self.call(call).await else { return 0 };
        let mut taken = 0;
        for name in listed.policy_names.iter().filter(|name| *name != POLICY_NAME).take(MAX_OTHERS) {
            if let Some(Some(document)) = self.read(iam, role, name).await {
                taken += policy::counted(&document);
            }
        }
        taken
    }

    /// Waits until IAM shows what was written. Another one's write is put right by whoever notices, here or in the next
    /// look at the roles.
    async fn shown(&self, iam: &aws_sdk_iam::Client, role: &RoleArn, wanted: Option<&str>) -> Result<(), DenyError> {
        for look in 0..LOOKS {
            match self.read(iam, role, POLICY_NAME).await {
                // Without the permission to read, IAM's word that it took the policy must do.
                None => return Ok(()),
                Some(found) if found.as_deref() == wanted => return Ok(()),
                Some(_) if look + 1 < LOOKS => tokio::time::sleep(LOOK_AGAIN).await,
                Some(_) => {}
            }
        }
        Err(DenyError::Unavailable(format!(
            "IAM took the Deny for {role} and does not show it yet; it is looked at again"
        )))
    }

    async fn delete(&self, iam: &aws_sdk_iam::Client, by: &Revoker, role: &RoleArn) -> Result<(), DenyError> {
        let delete = iam.delete_role_policy().role_name(role.role_name()).policy_name(POLICY_NAME);
        match self.call(delete.send()).await {
            Ok(_) => self.shown(iam, role, None).await,
            Err(failure) if failure.kind == Kind::NotFound => Ok(()),
            Err(failure) => Err(explain(by, role, "DeleteRolePolicy", failure)),
        }
    }

    async fn write(&self, by: &Revoker, role: &RoleArn, entries: &[Revocation]) -> Result<(), DenyError> {
        let iam = by.iam().await?;
        if entries.is_empty() {
            return self.delete(&iam, by, role).await;
        }
        let mut max_chars = policy::MAX_CHARS;
        let mut composed = policy::compose(entries, max_chars);
        let mut in_force = self.read(&iam, role, POLICY_NAME).await.flatten();
        if in_force.is_none() || in_force != composed.document {
            // Only where something is to be written is the room for it looked at.
            max_chars = max_chars.saturating_sub(self.others(&iam, role).await);
            composed = policy::compose(entries, max_chars);
        }
        loop {
            let Composed { document, fits, left_out } = composed;
            let Some(document) = document else {
                let why = format!(
                    "none of {} revoked names of {role} fits its inline policies, of which AWS allows {} characters in all; what was issued to them lives until it expires; move the role's other inline policies to managed ones, or revoke with --wide, which denies the role as a whole",
                    left_out.len(),
                    policy::MAX_CHARS
                );
                return Err(DenyError::TooLarge { why, left_out });
            };
            if in_force.as_deref() != Some(document.as_str()) {
                let put = iam.put_role_policy().role_name(role.role_name()).policy_name(POLICY_NAME);
                match self.call(put.policy_document(&document).send()).await {
                    Ok(_) => self.shown(&iam, role, Some(&document)).await?,
                    // The role's other inline policies share the room, and not all of them could be read.
                    Err(failure) if failure.kind == Kind::Quota && max_chars / 2 >= MIN_CHARS => {
                        (max_chars, in_force) = (max_chars / 2, None);
                        composed = policy::compose(entries, max_chars);
                        continue;
                    }
                    Err(failure) => return Err(explain(by, role, "PutRolePolicy", failure)),
                }
            }
            if left_out.is_empty() {
                return Ok(());
            }
            let of_orders = left_out.iter().filter(|w| entries.iter().any(|e| e.ordered && e.whose == **w)).count();
            let which = match of_orders {
                0 => "all of them of jobs that ended (revoke-on-end)".to_owned(),
                _ => format!("{of_orders} of them ordered, those longest ago"),
            };
            let why = format!(
                "only {fits} of {} revoked names of {role} fit its inline policies, of which AWS allows {} characters in all; the other {}, {which}, are not denied and live until they expire; revoke with --wide, which denies the role as a whole, or move the role's other inline policies to managed ones",
                fits + left_out.len(),
                policy::MAX_CHARS,
                left_out.len()
            );
            return Err(DenyError::TooLarge { why, left_out });
        }
    }
}

fn explain(by: &Revoker, role: &RoleArn, action: &str, failure: Failure) -> DenyError {
    let revoker = &by.arn;
    match failure.kind {
        Kind::Denied => DenyError::Refused(format!(
            "the revoker role {revoker} lacks the permission iam:{action} on {role}, or that role lacks the permissions boundary on which it depends; `credvend project policy` prints what is needed; until then what was issued lives until it expires (AWS says: {})",
            failure.words
        )),
        Kind::NotFound => DenyError::Refused(format!(
            "{role} does not exist any more, so there is nothing to put a Deny on; credentials of a deleted role are dead (AWS says: {})",
            failure.words
        )),
        Kind::Invalid => DenyError::Refused(format!("IAM does not take the Deny for {role}: {}", failure.words)),
        Kind::Quota => DenyError::TooLarge {
            why: format!(
                "the inline policies of {role} are full: all of them together have at most {} characters; move others to managed policies (AWS says: {})",
                policy::MAX_CHARS,
                failure.words
            ),
            left_out: vec![],
        },
        Kind::Own | Kind::Throttled | Kind::Passing => DenyError::Unavailable(failure.sentence("IAM")),
    }
}

#[async_trait]
impl Denier for IamDenier {
    async fn project(&self, role: &RoleArn, entries: &[Revocation]) -> Result<(), DenyError> {
        let Some(revoker) = self.revoker(role) else {
            // Nothing was ever written there.
            if entries.is_empty() {
                return Ok(());
            }
            return Err(DenyError::Refused(self.lacks(role).unwrap_or_default()));
        };
        let result = self.write(revoker, role, entries).await;
        if matches!(result, Err(DenyError::Refused(_) | DenyError::Unavailable(_))) {
            // It may be its credentials: a revoker that was made anew has another identity.
            revoker.forget().await;
        }
        result
    }

    fn lacks(&self, role: &RoleArn) -> Option<String> {
        if self.revoker(role).is_some() {
            return None;
        }
        Some(format!(
            "no revoker role of AWS account {} is configured, so nothing that was issued for {role} can be denied there; it lives until it expires. Make one as `credvend project policy` prints it, and name it in [aws] revoker-roles",
            role.account_id()
        ))
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
