//! The text of a role's Deny policy, from the store's revocations. No network here.
//!
//! One statement per time, exact user ids only: `bob` never hits `bobby`, and what is issued after the time lives.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use credd_protocol::credentials::rfc3339_z;
use serde::Serialize;
use time::{Duration, OffsetDateTime};

use crate::store::{Denied, Revocation};

/// The most characters, white space not counted, that all inline policies of one role have together (IAM quotas,
/// "Role inline policies"). Ours has no white space.
pub const MAX_CHARS: usize = 10_240;

/// A policy, and what did not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Composed {
    /// The document; `None` if nothing is to be denied.
    pub document: Option<String>,
    /// How many role sessions it denies.
    pub fits: usize,
    /// How many it should and does not: those revoked longest ago, which expire first.
    pub left_out: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Document<'a> {
    version: &'static str,
    statement: Vec<Statement<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Statement<'a> {
    effect: &'static str,
    action: &'static str,
    resource: &'static str,
    condition: Condition<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Condition<'a> {
    string_equals: UserIds<'a>,
    date_less_than: IssueTime,
}

#[derive(Serialize)]
struct UserIds<'a> {
    #[serde(rename = "aws:userid")]
    userids: Vec<&'a str>,
}

#[derive(Serialize)]
struct IssueTime {
    #[serde(rename = "aws:TokenIssueTime")]
    before: String,
}

/// Composes the policy, of at most `max_chars`. Each user id appears once, with its latest time; the document depends on
/// the set of entries alone, not on their order.
pub fn compose(entries: &[Revocation], max_chars: usize) -> Composed {
    let mut latest: BTreeMap<String, OffsetDateTime> = BTreeMap::new();
    for entry in entries {
        let before = up_to_second(entry.issued_before);
        let Denied::UserId(userid) = &entry.whose else { continue };
        let kept = latest.entry(literal(userid)).or_insert(before);
        *kept = before.max(*kept);
    }
    let mut newest_first: Vec<(&str, OffsetDateTime)> = latest.iter().map(|(id, at)| (id.as_str(), *at)).collect();
    newest_first.sort_by_key(|(id, at)| (Reverse(*at), *id));
    let (mut groups, mut chars, mut fits) = (Vec::<(OffsetDateTime, Vec<&str>)>::new(), length(&[]), 0);
    for (id, at) in &newest_first {
        let same = groups.last().is_some_and(|(time, _)| time == at);
        // Measured, not counted: one more id in a list, or one more statement in the document.
        let more = if same { json_chars(id) + 1 } else { length(&[(*at, vec![id])]) - length(&[]) + 1 };
        if chars + more > max_chars {
            break;
        }
        match groups.last_mut() {
            Some((_, ids)) if same => ids.push(id),
            _ => groups.push((*at, vec![id])),
        }
        chars += more;
        fits += 1;
    }
    Composed { document: (fits > 0).then(|| render(&groups)), fits, left_out: newest_first.len() - fits }
}

/// `TokenIssueTime` has whole seconds: a token of the second in which it was revoked is denied.
fn up_to_second(at: OffsetDateTime) -> OffsetDateTime {
    match at.nanosecond() {
        0 => at,
        _ => at.replace_nanosecond(0).unwrap_or(at).saturating_add(Duration::SECOND),
    }
}

/// The text for `StringEquals`, which takes `*` and `?` as they are but replaces policy variables: `${$}` is a dollar
/// sign (IAM user guide, "Policy variables", special characters).
fn literal(userid: &str) -> String {
    userid.replace("${", "${$}{")
}

fn render(groups: &[(OffsetDateTime, Vec<&str>)]) -> String {
    let statement = groups
        .iter()
        .map(|(at, ids)| Statement {
            effect: "Deny",
            action: "*",
            resource: "*",
            condition: Condition {
                string_equals: UserIds { userids: ids.clone() },
                date_less_than: IssueTime { before: rfc3339_z::format(*at) },
            },
        })
        .collect();
    serde_json::to_string(&Document { version: "2012-10-17", statement }).expect("strings in lists")
}

fn length(groups: &[(OffsetDateTime, Vec<&str>)]) -> usize {
    render(groups).chars().count()
}

fn json_chars(text: &str) -> usize {
    serde_json::to_string(text).expect("a string").chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use time::macros::datetime;

    fn entry(userid: &str, issued_before: OffsetDateTime) -> Revocation {
        let until = issued_before + Duration::HOUR;
        Revocation {
            role_arn: "arn:aws:iam::123456789012:role/r".parse().unwrap(),
            whose: Denied::UserId(userid.into()),
            issued_before,
            until,
        }
    }

    #[test]
    fn entries_of_one_second_share_a_statement_and_the_latest_time_of_an_id_counts() {
        let at = datetime!(2026-01-31 12:00:00.2 UTC);
        let entries = [
            entry("AROAX:lab-bob-n1", at),
            entry("AROAX:lab-bob-n1", at - Duration::HOUR),
            entry("AROAX:lab-eve-n1", at + Duration::milliseconds(700)),
            entry("AROAX:lab-old-n1", at - Duration::HOUR),
        ];
        let composed = compose(&entries, MAX_CHARS);
        assert_eq!(
            composed.document.unwrap(),
            r#"{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"StringEquals":{"aws:userid":["AROAX:lab-bob-n1","AROAX:lab-eve-n1"]},"DateLessThan":{"aws:TokenIssueTime":"2026-01-31T12:00:01Z"}}},{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"StringEquals":{"aws:userid":["AROAX:lab-old-n1"]},"DateLessThan":{"aws:TokenIssueTime":"2026-01-31T11:00:01Z"}}}]}"#
        );
        assert_eq!((composed.fits, composed.left_out), (3, 0));
    }

    #[test]
    fn nothing_to_deny_is_no_policy() {
        assert_eq!(compose(&[], MAX_CHARS), Composed { document: None, fits: 0, left_out: 0 });
    }

    #[test]
    fn what_looks_like_a_variable_or_a_pattern_is_taken_literally() {
        let at = datetime!(2026-01-31 12:00 UTC);
        let document = compose(&[entry("AROAX:${aws:username}*", at)], MAX_CHARS).document.unwrap();
        assert!(document.contains(r#"["AROAX:${$}{aws:username}*"]"#), "{document}");
    }

    #[test]
    fn the_newest_stay_when_not_all_fit() {
        let start = datetime!(2026-01-31 12:00 UTC);
        let entries: Vec<Revocation> = (0..300)
            .map(|i| entry(&format!("AROAXXXXXXXXXXXXXXXXX:lab-user{i:03}-node"), start + Duration::seconds(i)))
            .collect();
        let composed = compose(&entries, MAX_CHARS);
        let document = composed.document.unwrap();
        assert_eq!(composed.fits + composed.left_out, 300);
        assert!(composed.fits > 40 && document.len() <= MAX_CHARS, "{} in {}", composed.fits, document.len());
        assert!(document.contains("user299") && !document.contains("user000"));
        // All at one time: one statement, many more of them.
        let same: Vec<Revocation> =
            (0..300).map(|i| entry(&format!("AROAXXXXXXXXXXXXXXXXX:lab-user{i:03}-node"), start)).collect();
        assert!(compose(&same, MAX_CHARS).fits > 200);
    }

    proptest! {
        #[test]
        fn a_policy_keeps_its_bound_and_its_order(
            ids in prop::collection::vec(("[A-Z]{4}:[\\w+=,.@-]{2,64}", 0i64..5), 0..60),
            max in 0usize..4000,
        ) {
            let start = datetime!(2026-01-31 12:00 UTC);
            let mut entries: Vec<Revocation> = ids.iter().map(|(id, s)| entry(id, start + Duration::seconds(*s))).collect();
            let composed = compose(&entries, max);
            if let Some(document) = &composed.document {
                prop_assert!(document.chars().count() <= max);
                prop_assert!(serde_json::from_str::<serde_json::Value>(document).is_ok());
                let ids_in_it = document.matches(':').count();
                prop_assert!(ids_in_it >= composed.fits);
            }
            entries.reverse();
            prop_assert_eq!(composed, compose(&entries, max));
        }
    }
}
