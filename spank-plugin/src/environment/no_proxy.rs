//! Keeps the job's token away from a web proxy.
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

use slurm_spank::Error;

use super::additions::Additions;

/// The list's two spellings. A client that knows both reads them in either order.
pub(super) const NAMES: [&str; 2] = [UPPER, LOWER];

const UPPER: &str = "NO_PROXY";
const LOWER: &str = "no_proxy";
const LOOPBACK: &[u8] = b"127.0.0.1";
const COMMA_LOOPBACK: &[u8] = b",127.0.0.1";

/// Makes every client ask 127.0.0.1 itself.
pub(super) fn bypass(additions: &mut Additions<'_>) -> Result<(), Error> {
    let set = |name| additions.env().get(name).filter(|value| !value.is_empty());
    let (upper, lower) = (set(UPPER), set(LOWER));
    // What a client reads that knows one spelling only, or this one first.
    let lists =
        [(UPPER, &upper, upper.as_ref().or(lower.as_ref())), (LOWER, &lower, lower.as_ref().or(upper.as_ref()))];
    for (name, own, list) in lists {
        match list {
            None => additions.set(name, LOOPBACK)?,
            // Rust falls back to it where NO_PROXY is no text.
            Some(list) if list == b"*" && name == LOWER && upper.as_ref().is_none_or(|other| is_text(other)) => {
                additions.set(name, b"*")?;
            }
            Some(list) if !names_loopback(list) => additions.append(name, list, COMMA_LOOPBACK)?,
            Some(_) if own.is_some() => {}
            Some(list) => additions.append(name, list, b"")?,
        }
    }
    Ok(())
}

fn is_text(value: &[u8]) -> bool {
    std::str::from_utf8(value).is_ok()
}

fn names_loopback(list: &[u8]) -> bool {
    list.split(|byte| *byte == b',').any(|item| item.trim_ascii() == LOOPBACK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn after(before: &[(&str, &str)]) -> [String; 2] {
        let mut env: BTreeMap<String, Vec<u8>> =
            before.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect();
        bypass(&mut Additions::to(&mut env)).unwrap();
        NAMES.map(|name| String::from_utf8(env[name].clone()).unwrap())
    }

    #[test]
    fn both_spellings_name_loopback() {
        for (before, upper, lower) in [
            (vec![], "127.0.0.1", "127.0.0.1"),
            (vec![("http_proxy", "p")], "127.0.0.1", "127.0.0.1"),
            (vec![("NO_PROXY", "")], "127.0.0.1", "127.0.0.1"),
            (vec![("no_proxy", "a")], "a,127.0.0.1", "a,127.0.0.1"),
            (vec![("NO_PROXY", "a"), ("no_proxy", "b, *")], "a,127.0.0.1", "b, *,127.0.0.1"),
            (vec![("NO_PROXY", "127.0.0.1")], "127.0.0.1", "127.0.0.1"),
            (vec![("NO_PROXY", "a , 127.0.0.1")], "a , 127.0.0.1", "a , 127.0.0.1"),
            (vec![("no_proxy", "localhost,.site")], "localhost,.site,127.0.0.1", "localhost,.site,127.0.0.1"),
        ] {
            assert_eq!(after(&before), [upper, lower], "{before:?}");
        }
    }

    #[test]
    fn nothing_else_is_trusted_to_cover_loopback() {
        for list in
            ["127.0.0.0/8", "127.0.0.1:9999", "a 127.0.0.1", "127.0.0.1.nip.io", "127.*", "*,a", " *", "0.0.0.0/0"]
        {
            let both = format!("{list},127.0.0.1");
            assert_eq!(after(&[("NO_PROXY", list)]), [both.clone(), both], "{list}");
        }
    }

    /// Python and curl know a `*` only where it stands alone, and Rust's clients do not count addresses as matched by it.
    #[test]
    fn a_star_alone_keeps_its_meaning_for_each_client() {
        for before in [vec![("NO_PROXY", "*")], vec![("no_proxy", "*")], vec![("NO_PROXY", "*"), ("no_proxy", "*")]] {
            assert_eq!(after(&before), ["*,127.0.0.1", "*"], "{before:?}");
        }
        assert_eq!(after(&[("NO_PROXY", "a"), ("no_proxy", "*")]), ["a,127.0.0.1", "*"]);
        assert_eq!(after(&[("NO_PROXY", "*"), ("no_proxy", "a")]), ["*,127.0.0.1", "a,127.0.0.1"]);
        let mut env: BTreeMap<String, Vec<u8>> = [(UPPER.into(), vec![0xff]), (LOWER.into(), b"*".to_vec())].into();
        bypass(&mut Additions::to(&mut env)).unwrap();
        assert_eq!(env[LOWER], b"*,127.0.0.1");
    }

    proptest! {
        #[test]
        fn once_is_enough(upper in "[a*., 127]{0,12}", lower in "[a*., 127]{0,12}") {
            let once = after(&[("NO_PROXY", &upper), ("no_proxy", &lower)]);
            let again = after(&[("NO_PROXY", &once[0]), ("no_proxy", &once[1])]);
            prop_assert_eq!(&again, &once);
            prop_assert!(names_loopback(once[0].as_bytes()));
            prop_assert!(once[1] == "*" || names_loopback(once[1].as_bytes()));
        }
    }
}
