//! A session's nodes as one text: names that count up stand as a range, in the order they have. Ten thousand nodes of a
//! rack's numbering are a few dozen bytes; an item of DynamoDB holds 400 KB, and each 4 KB of it cost when it is read.

use credd_protocol::NodeName;

use crate::store::StoreError;

/// `n01`, `n02`, `n03` → `n01*3`. No node's name has a space; one with a `*` always has its count.
pub(super) fn written(nodes: &[NodeName]) -> String {
    let mut text = String::new();
    let mut rest = nodes;
    while let Some(first) = rest.first() {
        let mut count = 1;
        while rest.get(count).is_some_and(|next| Some(next.as_str()) == nth(first.as_str(), count).as_deref()) {
            count += 1;
        }
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(first.as_str());
        if count > 1 || first.as_str().contains('*') {
            text.push_str(&format!("*{count}"));
        }
        rest = &rest[count..];
    }
    text
}

/// The name so many after this one: its last digits counted up, as wide as they are.
fn nth(name: &str, count: usize) -> Option<String> {
    let letters = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &name[letters.len()..];
    let width = digits.len();
    let number: u64 = digits.parse().ok()?;
    let next = format!("{:0width$}", number.checked_add(count as u64)?);
    (next.len() == width).then(|| format!("{letters}{next}"))
}

/// The nodes again.
///
/// # Errors
/// What [`written`] did not write.
pub(super) fn read(text: &str) -> Result<Vec<NodeName>, StoreError> {
    let broken = |part: &str| StoreError::Broken(format!("a list of nodes in DynamoDB does not read near {part:?}"));
    let mut nodes = vec![];
    for part in text.split_ascii_whitespace() {
        let (first, count) = match part.rsplit_once('*') {
            None => (part, 1),
            Some((first, count)) => (first, count.parse().ok().filter(|n| *n <= 1 << 20).ok_or_else(|| broken(part))?),
        };
        nodes.push(first.parse().map_err(|_| broken(part))?);
        for i in 1..count {
            let name = nth(first, i).ok_or_else(|| broken(part))?;
            nodes.push(name.parse().map_err(|_| broken(part))?);
        }
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(list: &[&str]) -> Vec<NodeName> {
        list.iter().map(|n| n.parse().unwrap()).collect()
    }

    #[test]
    fn ranges_are_short_and_keep_the_order() {
        let rack: Vec<NodeName> = (1..=10_000).map(|i| format!("cn{i:05}").parse().unwrap()).collect();
        assert_eq!(written(&rack), "cn00001*10000");
        assert_eq!(read("cn00001*10000").unwrap(), rack);
        let odd = names(&["n9", "n10", "n11", "m", "n08", "n09", "n1", "n1", "7", "99999999999999999999"]);
        assert_eq!(written(&odd), "n9 n10*2 m n08*2 n1 n1 7 99999999999999999999");
        assert_eq!(read(&written(&odd)).unwrap(), odd);
        assert_eq!(read("").unwrap(), []);
        for bad in ["n*3", "n1*x", "n1*9999999999", "n9*2", "a,b"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_list_comes_back(list in proptest::collection::vec("[a-z*+]{0,2}[0-9]{1,2}", 0..40)) {
            let list: Vec<NodeName> = list.iter().map(|n| n.parse().unwrap()).collect();
            prop_assert_eq!(read(&written(&list)).unwrap(), list);
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "[a-z0-9* .]{0,30}") {
            let _ = read(&text);
        }
    }
}
