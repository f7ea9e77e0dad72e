//! Keeps the job's token away from a web proxy: what the lists of exceptions have to say.
//!
//! Clients in Rust (reqwest, hyper-util, and so the AWS SDK for Rust) send requests for the loopback address to the proxy
//! of `http_proxy` too, unless the list of exceptions names that very address. It is always added, also where no proxy is
//! set: a later `module load` may set one. How the list is read:
//!
//! | | reads first | separators | `*` alone | `*` in a list |
//! |---|---|---|---|---|
//! | Rust: reqwest, hyper-util | `NO_PROXY` | comma | every name, no address | every name, no address |
//! | Go | `NO_PROXY` | comma | everything | everything |
//! | Python: urllib, requests, botocore | `no_proxy` | comma | everything | nothing |
//! | curl | `no_proxy` | comma, space | everything | nothing |
//!
//! So a `*` that stands alone cannot simply get a second item: Python and curl would use the proxy that they were told not
//! to use. It stays alone in `no_proxy`, and gets the address in `NO_PROXY`. Another spelling of loopback (a network, a
//! name, a port, a list separated by spaces) is not relied on.

/// The list's two spellings. A client that knows both reads them in either order.
pub const NAMES: [&str; 2] = ["NO_PROXY", "no_proxy"];

const LOOPBACK: &[u8] = b"127.0.0.1";
const COMMA_LOOPBACK: &[u8] = b",127.0.0.1";

/// What becomes of one of the two variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// It stays as it is.
    Keep,
    /// It gets this value.
    Set(&'static [u8]),
    /// It gets a list that the user has set, in either spelling, with a text at its end.
    Extend {
        /// The user's list.
        list: &'a [u8],
        /// The text, empty if the list needs none.
        with: &'static [u8],
    },
}

impl Change<'_> {
    /// The new value; `None` to leave the variable alone.
    pub fn value(&self) -> Option<Vec<u8>> {
        match self {
            Change::Keep => None,
            Change::Set(value) => Some(value.to_vec()),
            Change::Extend { list, with } => Some([*list, *with].concat()),
        }
    }
}

/// What makes every client ask 127.0.0.1 itself, for the values of [`NAMES`] as the environment has them.
pub fn bypass(values: [Option<&[u8]>; 2]) -> [Change<'_>; 2] {
    let [upper, lower] = values.map(|value| value.filter(|value| !value.is_empty()));
    // A client that knows one spelling only, or this one first, reads its own, or else the other one.
    [
        changed(upper, upper.or(lower)),
        if keeps_star(upper, lower) { Change::Set(b"*") } else { changed(lower, lower.or(upper)) },
    ]
}

fn changed<'a>(own: Option<&'a [u8]>, list: Option<&'a [u8]>) -> Change<'a> {
    match list {
        None => Change::Set(LOOPBACK),
        Some(list) if !names_loopback(list) => Change::Extend { list, with: COMMA_LOOPBACK },
        Some(_) if own.is_some() => Change::Keep,
        Some(list) => Change::Extend { list, with: b"" },
    }
}

/// Whether `no_proxy` says `*` alone, or has to. Not where NO_PROXY is no text: there Rust's clients read `no_proxy`.
fn keeps_star(upper: Option<&[u8]>, lower: Option<&[u8]>) -> bool {
    lower.or(upper) == Some(b"*") && upper.is_none_or(|upper| std::str::from_utf8(upper).is_ok())
}

fn names_loopback(list: &[u8]) -> bool {
    list.split(|byte| *byte == b',').any(|item| item.trim_ascii() == LOOPBACK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(upper: Option<&str>, lower: Option<&str>) -> [String; 2] {
        let before = [upper.map(str::as_bytes), lower.map(str::as_bytes)];
        let changes = bypass(before);
        [0, 1].map(|at| String::from_utf8(changes[at].value().unwrap_or_else(|| before[at].unwrap().to_vec())).unwrap())
    }

    #[test]
    fn both_spellings_name_loopback() {
        for (upper, lower, upper_after, lower_after) in [
            (None, None, "127.0.0.1", "127.0.0.1"),
            (Some(""), None, "127.0.0.1", "127.0.0.1"),
            (None, Some("a"), "a,127.0.0.1", "a,127.0.0.1"),
            (Some("a"), Some("b, *"), "a,127.0.0.1", "b, *,127.0.0.1"),
            (Some("127.0.0.1"), None, "127.0.0.1", "127.0.0.1"),
            (Some("a , 127.0.0.1"), None, "a , 127.0.0.1", "a , 127.0.0.1"),
            (None, Some("localhost,.site"), "localhost,.site,127.0.0.1", "localhost,.site,127.0.0.1"),
        ] {
            assert_eq!(after(upper, lower), [upper_after, lower_after], "{upper:?} {lower:?}");
        }
    }

    #[test]
    fn nothing_else_is_trusted_to_cover_loopback() {
        for list in
            ["127.0.0.0/8", "127.0.0.1:9999", "a 127.0.0.1", "127.0.0.1.nip.io", "127.*", "*,a", " *", "0.0.0.0/0"]
        {
            let both = format!("{list},127.0.0.1");
            assert_eq!(after(Some(list), None), [both.clone(), both], "{list}");
        }
    }

    /// Python and curl know a `*` only where it stands alone, and Rust's clients do not count addresses as matched by it.
    #[test]
    fn a_star_alone_keeps_its_meaning_for_each_client() {
        for (upper, lower) in [(Some("*"), None), (None, Some("*")), (Some("*"), Some("*"))] {
            assert_eq!(after(upper, lower), ["*,127.0.0.1", "*"], "{upper:?} {lower:?}");
        }
        assert_eq!(after(Some("a"), Some("*")), ["a,127.0.0.1", "*"]);
        assert_eq!(after(Some("*"), Some("a")), ["*,127.0.0.1", "a,127.0.0.1"]);
        assert_eq!(bypass([Some(b"\xff"), Some(b"*")])[1], Change::Extend { list: b"*", with: COMMA_LOOPBACK });
    }

    #[test]
    fn a_list_that_names_loopback_is_left_alone() {
        let own: Option<&[u8]> = Some(b"a,127.0.0.1");
        assert_eq!(bypass([own, own]), [Change::Keep, Change::Keep]);
        assert_eq!(bypass([own, None])[1], Change::Extend { list: b"a,127.0.0.1", with: b"" });
    }

    proptest! {
        #[test]
        fn once_is_enough(upper in "[a*., 127]{0,12}", lower in "[a*., 127]{0,12}") {
            let once = after(Some(&upper), Some(&lower));
            let again = after(Some(&once[0]), Some(&once[1]));
            prop_assert_eq!(&again, &once);
            prop_assert!(names_loopback(once[0].as_bytes()));
            prop_assert!(once[1] == "*" || names_loopback(once[1].as_bytes()));
        }
    }
}
