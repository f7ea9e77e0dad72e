//! What an upstream's answers mean: its documents, checked, and its refusals, sorted by what is to be done about them.
//!
//! An upstream is another credvend, whose errors carry a code, or the original deployment of the IAM Credentials API
//! (v1), whose errors are a `message` behind API Gateway. Nothing in an answer is believed further than it must be: no
//! URL of it is followed, and what it says is cut and escaped before anybody reads it.

use credd_protocol::credentials::Credentials;
use credd_protocol::credentials_api_v1::SessionOpened;
use credd_protocol::{RoleArn, Secret};
use serde::Deserialize;
use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Duration, OffsetDateTime};

use crate::source::failure::shown;

/// The longest part of a document that is taken.
const MAX_PART: usize = 8192;
/// The longest session token of an upstream.
const MAX_TOKEN: usize = 4096;
/// AWS gives no longer life; its clock may be that far from ours.
const LONGEST: Duration = Duration::hours(12);
const SKEW: Duration = Duration::minutes(5);

/// Which of the API's verbs was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// POST /sessions.
    Open,
    /// GET …/project/….
    Credentials,
    /// PUT /sessions/….
    Status,
    /// DELETE /sessions/users/….
    RevokeUser,
}

/// Why the upstream did not do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It does not take the head's secret, or the session's token.
    NotAccepted(String),
    /// The session is over there.
    Ended(String),
    /// It knows no such session.
    Unknown(String),
    /// It has had this very submission already, and does not give its token twice.
    Exists(String),
    /// It has no such path or method.
    NoRoute(String),
    /// It will not, however often it is asked.
    Refused(String),
    /// It cannot now.
    Passing(String),
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Complaint {
    code: Option<String>,
    message: Option<String>,
    #[serde(rename = "Message")]
    message_upper: Option<String>,
}

/// Sorts a refusal.
pub(super) fn trouble(verb: Verb, status: u16, body: &[u8]) -> Trouble {
    let complaint: Complaint = serde_json::from_slice(body).unwrap_or_default();
    let code = complaint.code.as_deref().unwrap_or_default();
    let message = complaint.message.or(complaint.message_upper).unwrap_or_default();
    let has = |words: &str| message.contains(words);
    let said = match message.trim() {
        "" => format!("it answered {status} without a word"),
        text => format!("it answered {status}: {}", shown(text)),
    };
    match (status, code) {
        (_, "SessionEnded") => Trouble::Ended(said),
        (_, "UnknownSession") => Trouble::Unknown(said),
        (401, _) | (_, "Unauthenticated") => Trouble::NotAccepted(said),
        (403, "") if has("not ACTIVE") => Trouble::Ended(said),
        // API Gateway's words for a path or method that it does not have.
        (403, "") if has("Missing Authentication Token") => Trouble::NoRoute(said),
        // What the original deployment says of another session's token, and API Gateway of one that it cannot find (yet).
        (403, "") if has("token") || has("not authorized") || has("Forbidden") || message.is_empty() => {
            Trouble::NotAccepted(said)
        }
        (404, "") if verb != Verb::Open && has("sessionId") => Trouble::Unknown(said),
        (404, "") if has("role mapping") => Trouble::Refused(said),
        (404 | 405, _) => Trouble::NoRoute(said),
        (400, "") if verb == Verb::Open && has("already exist") => Trouble::Exists(said),
        (300..=399, _) => Trouble::Refused(format!("it sends elsewhere ({status}), and no secret is sent after that")),
        (408 | 425 | 429 | 500.., _) => Trouble::Passing(said),
        _ => Trouble::Refused(said),
    }
}

/// A session's token out of the answer to POST /sessions. Its URLs are not looked at.
pub(super) fn token(body: &[u8]) -> Result<Secret, String> {
    let opened: SessionOpened =
        serde_json::from_slice(body).map_err(|_| "its answer to POST /sessions is not understood".to_owned())?;
    let token = opened.token.expose();
    if token.is_empty() || token.len() > MAX_TOKEN || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("its session token is empty, too long or not visible ASCII".into());
    }
    Ok(opened.token)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    #[serde(default)]
    access_key_id: String,
    #[serde(default = "empty")]
    secret_access_key: Secret,
    #[serde(default = "empty")]
    token: Secret,
    #[serde(default)]
    expiration: String,
    #[serde(default)]
    role_arn: String,
    account_id: Option<String>,
}

fn empty() -> Secret {
    Secret::new(String::new())
}

/// Credentials out of an answer: whole, alive, and of the role that was asked for, if one was.
pub(super) fn credentials(body: &[u8], wanted: Option<&RoleArn>, now: OffsetDateTime) -> Result<Credentials, String> {
    let given: Document = serde_json::from_slice(body).map_err(|_| "it is no credentials document".to_owned())?;
    let part = |what: &str, text: &str| {
        let good = !text.is_empty() && text.len() <= MAX_PART && text.bytes().all(|b| b.is_ascii_graphic());
        if good { Ok(()) } else { Err(format!("its {what} is empty, too long or not visible ASCII")) }
    };
    part("AccessKeyId", &given.access_key_id)?;
    part("SecretAccessKey", given.secret_access_key.expose())?;
    part("Token", given.token.expose())?;
    let role_arn: RoleArn = given.role_arn.parse().map_err(|e| format!("its RoleArn is none: {e}"))?;
    if wanted.is_some_and(|wanted| *wanted != role_arn) {
        return Err(format!("it is of {role_arn}, which is not the role-arn of projects.toml"));
    }
    let expiration = expiration(&given.expiration)?;
    if expiration <= now {
        return Err(format!("it expired at {expiration}, and here it is {now}: is credvend's clock right?"));
    }
    if expiration > now + LONGEST + SKEW {
        return Err(format!("it lives until {expiration}, longer than AWS allows: is credvend's clock ({now}) right?"));
    }
    let account_id = given.account_id.filter(|id| id.len() == 12 && id.bytes().all(|b| b.is_ascii_digit()));
    Ok(Credentials {
        access_key_id: given.access_key_id,
        secret_access_key: given.secret_access_key,
        token: given.token,
        expiration,
        account_id: Some(account_id.unwrap_or_else(|| role_arn.account_id().to_owned())),
        role_arn,
    })
}

/// RFC 3339, or what the original deployment writes: `2026-03-01 12:00:00+00:00`. A time without its zone is
/// refused: half a day too late is a job that fails.
fn expiration(text: &str) -> Result<OffsetDateTime, String> {
    const PYTHON: &[BorrowedFormatItem<'_>] = format_description!(
        version = 2,
        "[year]-[month]-[day][first [ ] [T]][hour]:[minute]:[second][optional [.[subsecond]]][offset_hour sign:mandatory][optional [:]][offset_minute]"
    );
    if text.len() > 64 {
        return Err("its Expiration is too long".into());
    }
    let said = || format!("its Expiration {:?} is no time with a zone, as 2026-03-01T12:00:00Z", shown(text));
    OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| OffsetDateTime::parse(text, PYTHON))
        .or_else(|_| {
            let bare = text.strip_suffix("UTC").or_else(|| text.strip_suffix('Z')).unwrap_or_default().trim_end();
            OffsetDateTime::parse(&format!("{bare}+00:00"), PYTHON)
        })
        .map_err(|_| said())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2026-03-01 11:00 UTC);

    #[test]
    fn times_with_a_zone_are_read_and_others_are_not() {
        for text in [
            "2026-03-01T12:00:00Z",
            // As credvend itself writes it, for the original API's node proxy.
            "2026-03-01T12:00:00.00000000Z",
            "2026-03-01T14:00:00+02:00",
            "2026-03-01 12:00:00+00:00",
            "2026-03-01 12:00:00.000000+00:00",
            "2026-03-01T12:00:00+0000",
            "2026-03-01 12:00:00Z",
            "2026-03-01 12:00:00 UTC",
        ] {
            assert_eq!(expiration(text), Ok(datetime!(2026-03-01 12:00 UTC)), "{text}");
        }
        for text in ["", "2026-03-01 12:00:00", "2026-03-01T12:00:00", "1772366400", "tomorrow", "UTC", "Z"] {
            assert!(expiration(text).is_err(), "{text}");
        }
    }

    fn document(key: &str, value: serde_json::Value) -> Vec<u8> {
        let mut whole = serde_json::json!({
            "AccessKeyId": "ASIAEXAMPLE", "SecretAccessKey": "canary-secret", "Token": "canary-token",
            "Expiration": "2026-03-01T12:00:00Z", "RoleArn": "arn:aws:iam::123456789012:role/projects/genomics",
        });
        whole[key] = value;
        whole.to_string().into_bytes()
    }

    #[test]
    fn a_document_is_whole_alive_and_of_the_right_role() {
        let good = document("AccountId", "123456789012".into());
        let role: RoleArn = "arn:aws:iam::123456789012:role/projects/genomics".parse().unwrap();
        let read = credentials(&good, Some(&role), NOW).unwrap();
        assert_eq!((read.role_arn.clone(), read.account_id.as_deref()), (role, Some("123456789012")));
        assert!(credentials(&good, None, NOW).is_ok());
        let other: RoleArn = "arn:aws:iam::123456789012:role/climate".parse().unwrap();
        assert!(credentials(&good, Some(&other), NOW).unwrap_err().contains("projects.toml"));
        for (key, value, why) in [
            ("AccessKeyId", "".into(), "AccessKeyId"),
            ("SecretAccessKey", serde_json::Value::Null, "document"),
            ("SecretAccessKey", "".into(), "SecretAccessKey"),
            ("Token", "two\nlines".into(), "Token"),
            ("Token", "x".repeat(9000).into(), "Token"),
            ("Expiration", "2026-03-01T10:00:00Z".into(), "expired"),
            ("Expiration", "2026-03-03T10:00:00Z".into(), "longer than AWS allows"),
            ("Expiration", 1_772_366_400.into(), "document"),
            ("RoleArn", "arn:aws:sts::1:x".into(), "RoleArn"),
        ] {
            let error = credentials(&document(key, value.clone()), None, NOW).unwrap_err();
            assert!(error.contains(why) && !error.contains("canary"), "{key} {value}: {error}");
        }
        for empty in ["", "{}", "null", "[]", "\"x\""] {
            assert!(credentials(empty.as_bytes(), None, NOW).is_err(), "{empty}");
        }
    }

    #[test]
    fn refusals_of_both_kinds_of_upstream_are_told_apart() {
        let of = |verb, status, body: &str| match trouble(verb, status, body.as_bytes()) {
            Trouble::NotAccepted(_) => "not accepted",
            Trouble::Ended(_) => "ended",
            Trouble::Unknown(_) => "unknown",
            Trouble::Exists(_) => "exists",
            Trouble::NoRoute(_) => "no route",
            Trouble::Refused(_) => "refused",
            Trouble::Passing(_) => "passing",
        };
        let (open, get, put) = (Verb::Open, Verb::Credentials, Verb::Status);
        for (verb, status, body, meaning) in [
            // Another credvend.
            (get, 403, r#"{"code":"SessionEnded","message":"session is INVALIDATED"}"#, "ended"),
            (open, 403, r#"{"code":"SessionEnded","message":"session is COMPLETED","retry":false}"#, "ended"),
            (get, 401, r#"{"code":"Unauthenticated","message":"the token is not that of session"}"#, "not accepted"),
            (get, 404, r#"{"code":"UnknownSession","message":"session is not known here"}"#, "unknown"),
            (open, 403, r#"{"code":"UnknownProject","message":"project x has no role","retry":true}"#, "refused"),
            (get, 403, r#"{"code":"RoleRefused","message":"the trust policy","retry":true}"#, "refused"),
            (get, 503, r#"{"code":"Unavailable","message":"AWS STS limits credvend's rate","retry":true}"#, "passing"),
            (get, 404, r#"{"code":"NotFound","message":"no such path"}"#, "no route"),
            // The original deployment of the IAM Credentials API (v1), and API Gateway before it.
            (open, 400, r#"{"message":"Cluster Name, Session ID, and Submitted Time already exist."}"#, "exists"),
            (open, 400, r#"{"message":"submittedTime not in ISO 8601 format"}"#, "refused"),
            (get, 403, r#"{"message":"session is not ACTIVE"}"#, "ended"),
            (
                get,
                403,
                r#"{"message":"Session token provided does not match active clusterId and sessionId"}"#,
                "not accepted",
            ),
            (
                get,
                403,
                r#"{"Message":"User is not authorized to access this resource with an explicit deny"}"#,
                "not accepted",
            ),
            (get, 404, r#"{"message":"clusterId and sessionId provided do not exist"}"#, "unknown"),
            (put, 404, r#"{"message":"clusterName and sessionId combination invalid"}"#, "unknown"),
            (get, 404, r#"{"message":"There is no role mapping for given projectId"}"#, "refused"),
            (put, 403, r#"{"message":"Missing Authentication Token"}"#, "no route"),
            (get, 502, r#"{"message": "Internal server error"}"#, "passing"),
            (get, 429, r#"{"message":"Limit Exceeded"}"#, "passing"),
            // Neither.
            (get, 302, "<html>", "refused"),
            (get, 404, "<html>nginx</html>", "no route"),
            (get, 418, "", "refused"),
        ] {
            assert_eq!(of(verb, status, body), meaning, "{verb:?} {status} {body}");
        }
        let Trouble::Refused(text) = trouble(get, 400, br#"{"message":"\u001b[2J\nx"}"#) else { panic!() };
        assert!(!text.contains('\u{1b}') && !text.contains('\n'), "{text}");
    }

    #[test]
    fn a_token_is_one_line_of_visible_characters() {
        let answer = |token: &str| {
            serde_json::json!({
                "APIGATEWAY_AWS_CONTAINER_CREDENTIALS_FULL_URI": "https://evil.example.org/x",
                "LOCALHOST_AWS_CONTAINER_CREDENTIALS_FULL_URI": "", "AWS_CONTAINER_AUTHORIZATION_TOKEN": token,
            })
            .to_string()
        };
        assert_eq!(token(answer("c8f16d73-7152").as_bytes()).unwrap().expose(), "c8f16d73-7152");
        for bad in [answer(""), answer("a b"), answer("a\r\nX: y"), answer(&"x".repeat(5000)), "{}".into(), "".into()] {
            assert!(token(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(text in ".*", status in 100u16..600) {
            let _ = credentials(text.as_bytes(), None, NOW);
            let _ = token(text.as_bytes());
            let _ = expiration(&text);
            for verb in [Verb::Open, Verb::Credentials, Verb::Status, Verb::RevokeUser] {
                let _ = trouble(verb, status, text.as_bytes());
            }
        }

        #[test]
        fn no_expiration_panics(text in "[0-9TZ:+ .-]{0,40}") {
            let _ = expiration(&text);
        }
    }
}
