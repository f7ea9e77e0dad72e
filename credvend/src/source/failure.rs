//! What went wrong with a call to AWS, in the few kinds that make a difference.

use std::error::Error;
use std::fmt::Debug;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sts::config::http::HttpResponse;
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use credd_protocol::causes::chain;
use credd_protocol::printable::escaped;
use time::format_description::well_known::Rfc2822;
use time::{Duration, OffsetDateTime};

/// The kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The caller may not do this.
    Denied,
    /// The request is not valid: a duration, a name, a policy.
    Invalid,
    /// What it is about does not exist.
    NotFound,
    /// A quota of the account.
    Quota,
    /// credvend's own credentials are missing, expired or wrong: no job's fault.
    Own,
    /// Too many calls.
    Throttled,
    /// AWS itself, or the way to it.
    Passing,
}

impl Kind {
    /// Whether the same call may go through a moment later.
    pub fn may_pass(self) -> bool {
        matches!(self, Kind::Throttled | Kind::Passing)
    }
}

/// A clock that is this far from AWS' is named as the cause: AWS takes signatures that are five minutes old.
const SKEW: Duration = Duration::minutes(4);

/// One failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which kind.
    pub kind: Kind,
    /// In AWS' or the SDK's words, escaped, at most 400 characters.
    pub words: String,
}

impl Failure {
    /// Looks through an SDK error.
    pub fn of<E>(error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        if let SdkError::ServiceError(context) = error {
            let (code, message) = (context.err().code().unwrap_or("no code"), context.err().message().unwrap_or(""));
            let status = context.raw().status().as_u16();
            let kind = kind_of(code, status);
            let clock = match kind {
                Kind::Own => clock_differs(context.raw().headers().get("date"), OffsetDateTime::now_utc()),
                _ => None,
            };
            return Failure { kind, words: shown(&format!("{code}: {message}{}", clock.unwrap_or_default())) };
        }
        if let Some(own) = find::<CredentialsError>(error) {
            return Failure { kind: Kind::Own, words: shown(&chain(own)) };
        }
        let what = match error {
            SdkError::TimeoutError(_) => "time-out: ",
            SdkError::ResponseError(_) => "an answer that cannot be read: ",
            _ => "",
        };
        Failure { kind: Kind::Passing, words: shown(&format!("{what}{}", chain(error))) }
    }

    /// A sentence for the kinds that no job can help.
    pub fn sentence(&self, service: &str) -> String {
        match self.kind {
            Kind::Own => format!("AWS {service} cannot be asked with credvend's own credentials: {}", self.words),
            Kind::Throttled => {
                format!("AWS {service} limits credvend's rate for now; it is asked again ({})", self.words)
            }
            Kind::Passing => format!("AWS {service} does not answer as it should; it is asked again ({})", self.words),
            _ => format!("AWS {service} refuses: {}", self.words),
        }
    }
}

/// By AWS' error code first, then by the HTTP status.
fn kind_of(code: &str, status: u16) -> Kind {
    match code {
        "AccessDenied" | "AccessDeniedException" | "UnauthorizedOperation" => Kind::Denied,
        "ValidationError"
        | "ValidationException"
        | "InvalidParameterValue"
        | "MalformedPolicyDocument"
        | "PackedPolicyTooLarge"
        | "InvalidInput"
        | "RegionDisabledException"
        | "UnmodifiableEntity" => Kind::Invalid,
        "NoSuchEntity" => Kind::NotFound,
        "LimitExceeded" => Kind::Quota,
        // SignatureDoesNotMatch is also what a wrong clock gives.
        "ExpiredToken"
        | "ExpiredTokenException"
        | "InvalidClientTokenId"
        | "SignatureDoesNotMatch"
        | "MissingAuthenticationToken"
        | "UnrecognizedClientException"
        | "IncompleteSignature"
        | "InvalidAccessKeyId"
        | "OptInRequired"
        | "RequestExpired"
        | "RequestTimeTooSkewed"
        | "RequestInTheFuture" => Kind::Own,
        "Throttling" | "ThrottlingException" | "RequestLimitExceeded" | "TooManyRequestsException" | "SlowDown" => {
            Kind::Throttled
        }
        _ if status == 429 => Kind::Throttled,
        _ => Kind::Passing,
    }
}

/// Signatures and expiries are times: where AWS' clock and this machine's differ, that is what must be mended.
fn clock_differs(date: Option<&str>, here: OffsetDateTime) -> Option<String> {
    let there = OffsetDateTime::parse(date?, &Rfc2822).ok()?;
    let ahead = here - there;
    (ahead.abs() > SKEW).then(|| {
        let how = if ahead.is_positive() { "ahead of" } else { "behind" };
        format!("; this machine's clock is {} s {how} AWS': set it right (NTP)", ahead.abs().whole_seconds())
    })
}

/// The first error of a type in the chain.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// What somebody else said, in one line and not too long.
pub(crate) fn shown(text: &str) -> String {
    let mut shown = escaped(text.trim().chars().take(400));
    if text.trim().chars().nth(400).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_aws_says_is_shown_without_what_moves_or_hides_text() {
        assert_eq!(shown("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(shown("a\u{1b}[2J\nb"), "a\\u{1b}[2J\\nb");
        assert_eq!(shown(&"é".repeat(500)).chars().count(), 401);
    }

    #[test]
    fn a_clock_that_differs_is_named() {
        let here = time::macros::datetime!(2026-11-22 18:00 UTC);
        assert_eq!(clock_differs(Some("Sun, 22 Nov 2026 17:59:00 GMT"), here), None);
        assert_eq!(clock_differs(Some("yesterday"), here), None);
        assert_eq!(clock_differs(None, here), None);
        let words = clock_differs(Some("Sun, 22 Nov 2026 17:50:00 GMT"), here).unwrap();
        assert!(words.contains("600 s ahead of AWS'"), "{words}");
        let words = clock_differs(Some("Sun, 22 Nov 2026 19:00:00 GMT"), here).unwrap();
        assert!(words.contains("3600 s behind AWS'"), "{words}");
    }

    #[test]
    fn unknown_codes_may_pass() {
        assert_eq!(kind_of("InternalFailure", 500), Kind::Passing);
        assert_eq!(kind_of("Whatever", 429), Kind::Throttled);
        assert_eq!(kind_of("AccessDenied", 403), Kind::Denied);
    }
}
