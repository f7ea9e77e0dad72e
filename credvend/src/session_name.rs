//! The names under which AWS sees a job: role-session name, source identity, tag values.
//!
//! All are injective: two different jobs' places never share a name, so that a Deny by name hits nobody else. The seed's
//! `cluster-user-node` is kept wherever it is unambiguous: a `-` in the cluster's or the user's name, and every character
//! that is not a letter, digit, `_` or `.`, is written as `=` and two upper-case hex digits (only the last part keeps its
//! dashes). What exceeds AWS' 64 characters keeps its beginning, followed by `=h` and 128 bits of SHA-256 of the whole;
//! no escape begins with `=h`.

use credd_protocol::{ClusterName, UserName};
use sha2::{Digest, Sha256};

/// AWS' limit for role-session names and source identities; the least is 2.
const MAX: usize = 64;

/// How much of an overlong name stays readable: the rest is the mark and 32 hex digits.
const KEPT: usize = MAX - 2 - 32;

/// The role-session name of a user on a node: `cluster-user-node`. A head's session has no node that could be proven:
/// its last part is the head's session id.
pub fn compose(cluster: &ClusterName, user: &UserName, last: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'.';
    let mut name = String::with_capacity(MAX);
    escape(&mut name, cluster.as_str(), plain);
    name.push('-');
    escape(&mut name, user.as_str(), plain);
    name.push('-');
    escape(&mut name, last, |b| plain(b) || b == b'-');
    shorten(name)
}

/// `SourceIdentity`: the user's name, with what AWS does not take escaped. A name of one letter is escaped too, since AWS
/// wants two characters.
pub fn source_identity(user: &UserName) -> String {
    let single = user.as_str().len() == 1;
    let mut name = String::with_capacity(MAX);
    escape(&mut name, user.as_str(), |b| !single && (b.is_ascii_alphanumeric() || b"_+,.@-".contains(&b)));
    shorten(name)
}

/// A session tag's value: AWS takes letters, digits, spaces and `_.:/=+-@`, 256 at most; our names are shorter than
/// half of that, and three times as long when every character is escaped.
pub fn tag_value(text: &str) -> String {
    let mut value = String::with_capacity(text.len());
    escape(&mut value, text, |b| b.is_ascii_alphanumeric() || b"_.:/+-@".contains(&b));
    if value.len() <= 256 { value } else { hashed(&value, 256 - 34) }
}

fn escape(into: &mut String, text: &str, plain: impl Fn(u8) -> bool) {
    for byte in text.bytes() {
        if plain(byte) {
            into.push(byte.into());
        } else {
            into.push_str(&format!("={byte:02X}"));
        }
    }
}

fn shorten(name: String) -> String {
    if name.len() <= MAX { name } else { hashed(&name, KEPT) }
}

fn hashed(name: &str, kept: usize) -> String {
    let hash = Sha256::digest(name.as_bytes());
    let mut short = name[..kept].to_owned();
    short.push_str("=h");
    hash.iter().take(16).for_each(|b| short.push_str(&format!("{b:02x}")));
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(cluster: &str, user: &str, last: &str) -> String {
        compose(&cluster.parse().unwrap(), &user.parse().unwrap(), last)
    }

    #[test]
    fn the_seeds_form_where_it_is_unambiguous() {
        assert_eq!(name("alpha", "user1", "ip-10-0-0-7"), "alpha-user1-ip-10-0-0-7");
        assert_eq!(name("a.b_c", "x.y", "n1"), "a.b_c-x.y-n1");
    }

    #[test]
    fn what_would_be_ambiguous_is_escaped() {
        assert_eq!(name("a-b", "c", "n"), "a=2Db-c-n");
        assert_eq!(name("a", "b-c", "n"), "a-b=2Dc-n");
        assert_eq!(name("a", r"DOM\u=x", "n"), "a-DOM=5Cu=3Dx-n");
    }

    #[test]
    fn what_is_too_long_keeps_its_beginning() {
        let (one, two) = (name(&"c".repeat(64), "u", "n1"), name(&"c".repeat(64), "u", "n2"));
        assert!(one.len() == 64 && one.starts_with("cccccc") && one.contains("=h") && one != two);
        assert_eq!(name(&"c".repeat(58), "u", "n12"), format!("{}-u-n12", "c".repeat(58)), "64 still fit");
    }

    #[test]
    fn source_identities_have_two_characters() {
        let of = |user: &str| source_identity(&user.parse().unwrap());
        assert_eq!((of("bob"), of("b"), of("a@b,c-d")), ("bob".into(), "=62".into(), "a@b,c-d".into()));
        assert_ne!(of("b"), of("=62"));
    }

    proptest! {
        #[test]
        fn names_are_injective_and_valid(
            a in ("[a-c.=_-]{1,5}", "[ab=+@,$\\\\.-]{1,5}", "[a-c.=h2D_-]{1,5}", 0usize..40),
            b in ("[a-c.=_-]{1,5}", "[ab=+@,$\\\\.-]{1,5}", "[a-c.=h2D_-]{1,5}", 0usize..40),
        ) {
            // '=' is no character of a cluster's name; nodes get some length so that hashing happens.
            let place = |(c, u, n, pad): &(String, String, String, usize)| {
                (c.replace('=', "_"), u.clone(), format!("{n}{}", "x".repeat(*pad)))
            };
            let (a, b) = (place(&a), place(&b));
            let (one, two) = (name(&a.0, &a.1, &a.2), name(&b.0, &b.1, &b.2));
            prop_assert_eq!(a == b, one == two);
            for n in [one, two, source_identity(&a.1.parse().unwrap())] {
                let valid = n.bytes().all(|c| c.is_ascii_alphanumeric() || b"_+=,.@-".contains(&c));
                prop_assert!(valid && (2..=64).contains(&n.len()), "{}", n);
            }
            prop_assert_eq!(a.1 == b.1, source_identity(&a.1.parse().unwrap()) == source_identity(&b.1.parse().unwrap()));
        }

        #[test]
        fn tags_are_valid(text in "[!-~]{1,128}") {
            let value = tag_value(&text);
            let valid = value.bytes().all(|c| c.is_ascii_alphanumeric() || b"_.:/=+-@".contains(&c));
            prop_assert!(value.len() <= 256 && valid);
        }
    }
}
