//! The text of a role's Deny policy, from the store's revocations. No network here.
//!
//! One statement for each kind of name and time; exact names only: `bob` never hits `bobby`, and what is issued after the
//! time lives.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use credd_protocol::credentials::rfc3339_z;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::store::{Denied, Revocation};

/// The most characters, white space not counted, that all inline policies of one role have together (IAM quotas,
/// "Role inline policies").
pub const MAX_CHARS: usize = 10_240;

/// So many names of one moment fit a policy at least, if they are not longer than usual (60 characters with the role's id)
/// and the role has no other inline policies.
pub const USUAL_ROOM: u32 = 150;

/// A policy, and what did not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Composed {
    /// The document; `None` if nothing is to be denied.
    pub document: Option<String>,
    /// How many entries it has.
    pub fits: usize,
    /// What it should deny and does not: what jobs left at their ends, and then what was ordered longest ago.
    pub left_out: Vec<Denied>,
}

/// The size of a policy as IAM counts it.
pub fn counted(document: &str) -> usize {
    document.chars().filter(|c| !c.is_whitespace()).count()
}

/// Names of one kind that one statement denies up to one time.
struct Group<'a> {
    kind: &'static str,
    before: OffsetDateTime,
    names: Vec<&'a str>,
}

/// Composes the policy, of at most `max_chars`. Each name appears once, with its latest time; the document depends on the
/// set of entries alone, not on their order.
///
/// An entry for everyone makes every older one superfluous: it stands alone for them.
pub fn compose(entries: &[Revocation], max_chars: usize) -> Composed {
    let mut latest: BTreeMap<&Denied, (OffsetDateTime, bool)> = BTreeMap::new();
    for entry in entries {
        let before = up_to_second(entry.issued_before);
        let (kept, ordered) = latest.entry(&entry.whose).or_insert((before, false));
        *kept = before.max(*kept);
        *ordered |= entry.ordered;
    }
    if let Some((everyone, _)) = latest.get(&Denied::Everyone).copied() {
        latest.retain(|whose, (before, _)| **whose == Denied::Everyone || *before > everyone);
    }
    let mut by_rank: Vec<(&Denied, OffsetDateTime, bool)> =
        latest.into_iter().map(|(whose, (before, ordered))| (whose, before, ordered)).collect();
    // Whatever a user's jobs leave at their ends, it pushes out nothing that was ordered. What denies most comes first among
    // equals: it must not be what is left out.
    by_rank.sort_by_key(|(whose, at, ordered)| (!ordered, Reverse(*at), reach(whose), *whose));
    let names: Vec<String> = by_rank.iter().map(|(whose, ..)| literal(name(whose))).collect();
    let (mut groups, mut chars, mut fits) = (Vec::<Group<'_>>::new(), length(&[]), 0);
    let mut left_out = vec![];
    for ((whose, before, _), name) in by_rank.into_iter().zip(&names) {
        let kind = kind(whose);
        let group = groups.iter_mut().find(|g| g.kind == kind && g.before == before && *whose != Denied::Everyone);
        // Measured, not counted: one more name in a list, or one more statement in the document.
        let more = match &group {
            Some(_) => json_chars(name) + 1,
            None => length(&[Group { kind, before, names: vec![name] }]) - length(&[]) + 1,
        };
        if chars + more > max_chars || !left_out.is_empty() {
            left_out.push(whose.clone());
            continue;
        }
        match group {
            Some(group) => group.names.push(name),
            None => groups.push(Group { kind, before, names: vec![name] }),
        }
        chars += more;
        fits += 1;
    }
    Composed { document: (fits > 0).then(|| render(&groups)), fits, left_out }
}

/// The condition key that tells whose a token is; none for everyone.
fn kind(whose: &Denied) -> &'static str {
    match whose {
        Denied::SourceIdentity(_) => "aws:SourceIdentity",
        Denied::UserId(_) => "aws:userid",
        Denied::Everyone => "everyone",
    }
}

/// The widest first.
fn reach(whose: &Denied) -> u8 {
    match whose {
        Denied::Everyone => 0,
        Denied::SourceIdentity(_) => 1,
        Denied::UserId(_) => 2,
    }
}

fn name(whose: &Denied) -> &str {
    match whose {
        Denied::SourceIdentity(name) | Denied::UserId(name) => name,
        Denied::Everyone => "",
    }
}

/// The time as the policy has it: `TokenIssueTime` has whole seconds, and a token of the second in which it was revoked is
/// denied.
pub fn up_to_second(at: OffsetDateTime) -> OffsetDateTime {
    match at.nanosecond() {
        0 => at,
        _ => at.replace_nanosecond(0).unwrap_or(at).saturating_add(Duration::SECOND),
    }
}

/// The text for `StringEquals`, which takes `*` and `?` as they are but replaces policy variables: `${$}` is a dollar
/// sign (IAM user guide, "Policy variables", special characters).
fn literal(name: &str) -> String {
    name.replace("${", "${$}{")
}

fn render(groups: &[Group<'_>]) -> String {
    let statement: Vec<Value> = groups
        .iter()
        .map(|group| {
            let mut condition = json!({ "DateLessThan": { "aws:TokenIssueTime": rfc3339_z::format(group.before) } });
            if group.kind != kind(&Denied::Everyone) {
                condition["StringEquals"] = json!({ group.kind: group.names });
            }
            json!({ "Effect": "Deny", "Action": "*", "Resource": "*", "Condition": condition })
        })
        .collect();
    json!({ "Version": "2012-10-17", "Statement": statement }).to_string()
}

fn length(groups: &[Group<'_>]) -> usize {
    counted(&render(groups))
}

fn json_chars(text: &str) -> usize {
    serde_json::to_string(text).expect("a string").chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use time::macros::datetime;

    fn of(whose: Denied, issued_before: OffsetDateTime) -> Revocation {
        let until = issued_before + Duration::HOUR;
        Revocation {
            role_arn: "arn:aws:iam::123456789012:role/r".parse().unwrap(),
            whose,
            issued_before,
            until,
            ordered: true,
        }
    }

    fn entry(userid: &str, issued_before: OffsetDateTime) -> Revocation {
        of(Denied::UserId(userid.into()), issued_before)
    }

    fn statements(entries: &[Revocation]) -> Vec<Value> {
        let document = compose(entries, MAX_CHARS).document.unwrap();
        serde_json::from_str::<Value>(&document).unwrap()["Statement"].as_array().unwrap().clone()
    }

    #[test]
    fn entries_of_one_second_share_a_statement_and_the_latest_time_of_a_name_counts() {
        let at = datetime!(2026-01-31 12:00:00.2 UTC);
        let entries = [
            entry("AROAX:lab-bob-n1", at),
            entry("AROAX:lab-bob-n1", at - Duration::HOUR),
            entry("AROAX:lab-eve-n1", at + Duration::milliseconds(700)),
            entry("AROAX:lab-old-n1", at - Duration::HOUR),
        ];
        let composed = compose(&entries, MAX_CHARS);
        let expected = |names: Value, before: &str| {
            let condition = json!({
                "StringEquals": { "aws:userid": names }, "DateLessThan": { "aws:TokenIssueTime": before }
            });
            json!({ "Effect": "Deny", "Action": "*", "Resource": "*", "Condition": condition })
        };
        assert_eq!(
            statements(&entries),
            [
                expected(json!(["AROAX:lab-bob-n1", "AROAX:lab-eve-n1"]), "2026-01-31T12:00:01Z"),
                expected(json!(["AROAX:lab-old-n1"]), "2026-01-31T11:00:01Z"),
            ]
        );
        assert_eq!((composed.fits, composed.left_out.len()), (3, 0));
    }

    #[test]
    fn each_kind_of_name_has_a_statement_of_its_own() {
        let at = datetime!(2026-01-31 12:00 UTC);
        let entries = [
            of(Denied::SourceIdentity("bob".into()), at),
            entry("AROAX:lab-bob-n1", at),
            of(Denied::Everyone, at - Duration::HOUR),
            entry("AROAX:lab-eve-n1", at - Duration::hours(2)),
        ];
        let seen = statements(&entries);
        let conditions: Vec<&Value> = seen.iter().map(|s| &s["Condition"]["StringEquals"]).collect();
        assert_eq!(seen.len(), 3, "eve is one of everyone: {seen:?}");
        assert!(conditions.contains(&&json!({ "aws:SourceIdentity": ["bob"] })), "{seen:?}");
        assert!(conditions.contains(&&json!({ "aws:userid": ["AROAX:lab-bob-n1"] })), "{seen:?}");
        let everyone = seen.iter().find(|s| s["Condition"].get("StringEquals").is_none()).unwrap();
        assert_eq!(everyone["Condition"], json!({ "DateLessThan": { "aws:TokenIssueTime": "2026-01-31T11:00:00Z" } }));
    }

    #[test]
    fn nothing_to_deny_is_no_policy() {
        assert_eq!(compose(&[], MAX_CHARS), Composed { document: None, fits: 0, left_out: vec![] });
    }

    #[test]
    fn what_looks_like_a_variable_or_a_pattern_is_taken_literally() {
        let at = datetime!(2026-01-31 12:00 UTC);
        let document = compose(&[entry("AROAX:${aws:username}*?", at)], MAX_CHARS).document.unwrap();
        // StringEquals has no patterns, so these stay; a variable's beginning must not.
        assert!(document.contains(r#"["AROAX:${$}{aws:username}*?"]"#), "{document}");
    }

    #[test]
    fn white_space_does_not_count() {
        assert_eq!(counted("{ \"a\":\n\t\"é\" }"), 9);
    }

    #[test]
    fn the_newest_stay_when_not_all_fit() {
        let start = datetime!(2026-01-31 12:00 UTC);
        let entries: Vec<Revocation> = (0..300)
            .map(|i| entry(&format!("AROAXXXXXXXXXXXXXXXXX:lab-user{i:03}-node"), start + Duration::seconds(i)))
            .collect();
        let composed = compose(&entries, MAX_CHARS);
        let document = composed.document.unwrap();
        assert_eq!(composed.fits + composed.left_out.len(), 300);
        assert!(composed.fits > 40 && document.len() <= MAX_CHARS, "{} in {}", composed.fits, document.len());
        assert!(document.contains("user299") && !document.contains("user000"));
        assert!(composed.left_out.contains(&entries[0].whose));
        // All at one time: one statement, many more of them.
        let same: Vec<Revocation> =
            (0..300).map(|i| entry(&format!("AROAXXXXXXXXXXXXXXXXX:lab-user{i:03}-node"), start)).collect();
        assert!(compose(&same, MAX_CHARS).fits > 200);
        let long: Vec<Revocation> = (0..300).map(|i| entry(&format!("{i:060}"), start)).collect();
        assert!(compose(&long, MAX_CHARS).fits >= USUAL_ROOM as usize);
    }

    #[test]
    fn what_jobs_leave_at_their_ends_displaces_no_order() {
        let start = datetime!(2026-01-31 12:00 UTC);
        let left = |i: i64, at: i64| Revocation {
            ordered: false,
            ..entry(&format!("AROAXXXXXXXXXXXXXXXXX:lab-aaron-{i:04}"), start + Duration::seconds(at))
        };
        let eve = entry("AROAXXXXXXXXXXXXXXXXX:lab-eve-n1", start);
        for at in [(|_| 1) as fn(i64) -> i64, |i| i] {
            let mut entries: Vec<Revocation> = (0..300).map(|i| left(i, at(i))).collect();
            entries.push(eve.clone());
            let composed = compose(&entries, MAX_CHARS);
            assert!(composed.fits > 40 && !composed.left_out.is_empty() && !composed.left_out.contains(&eve.whose));
            assert!(composed.document.unwrap().contains("lab-eve-n1"));
        }
        // A name that was ordered once, and whose job ends then, is an ordered one.
        let mut entries: Vec<Revocation> = (0..300).map(|i| left(i, 1)).collect();
        entries.push(Revocation { ordered: false, ..eve.clone() });
        assert!(compose(&entries, MAX_CHARS).left_out.contains(&eve.whose));
        entries.push(Revocation { issued_before: start - Duration::HOUR, ..eve.clone() });
        assert!(!compose(&entries, MAX_CHARS).left_out.contains(&eve.whose));
    }

    proptest! {
        #[test]
        fn a_policy_keeps_its_bound_and_its_order(
            ids in prop::collection::vec((0u8..3, "[A-Z]{4}:[\\w+=,.@-]{2,64}", 0i64..5), 0..60),
            max in 0usize..4000,
        ) {
            let start = datetime!(2026-01-31 12:00 UTC);
            let whose = |kind: u8, name: &str| match kind {
                0 => Denied::SourceIdentity(name.into()),
                1 => Denied::UserId(name.into()),
                _ => Denied::Everyone,
            };
            let mut entries: Vec<Revocation> =
                ids.iter().map(|(kind, id, s)| of(whose(*kind, id), start + Duration::seconds(*s))).collect();
            let composed = compose(&entries, max);
            if let Some(document) = &composed.document {
                prop_assert!(counted(document) <= max);
                prop_assert!(serde_json::from_str::<Value>(document).is_ok());
            }
            entries.reverse();
            prop_assert_eq!(composed, compose(&entries, max));
        }
    }
}
