//! Slurm's node lists (`n[1-3,5],m2`), as far as the plugin needs them.

/// The first node of a list, or `None` if the text is no list.
///
/// Slurm pads: `n[01-03]` begins with `n01`. Several brackets are several dimensions: `r[1-2]n[0-3]` begins with
/// `r1n0`.
pub fn first(list: &str) -> Option<String> {
    let mut name = String::new();
    let mut rest = list;
    loop {
        let end = rest.find(['[', ']', ',']).unwrap_or(rest.len());
        name.push_str(&rest[..end]);
        match rest[end..].chars().next() {
            None | Some(',') => break,
            Some('[') => {
                let ranges = &rest[end + 1..];
                let close = ranges.find(']')?;
                let number = ranges[..close].split([',', '-']).next()?;
                if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
                    return None;
                }
                name.push_str(number);
                rest = &ranges[close + 1..];
            }
            Some(_) => return None,
        }
    }
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn first_nodes() {
        for (list, node) in [
            ("n1", "n1"),
            ("n1,m2", "n1"),
            ("n[1-3,5],m2", "n1"),
            ("n[01-03]", "n01"),
            ("n[007]", "n007"),
            ("r[1-2]n[0-3]", "r1n0"),
            ("gpu-a[10,12]-ib,x", "gpu-a10-ib"),
            ("host-1.site", "host-1.site"),
        ] {
            assert_eq!(first(list).as_deref(), Some(node), "{list}");
        }
        for bad in ["", ",n1", "n[", "n[]", "n[a-b]", "n]1", "n[-3]"] {
            assert_eq!(first(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(list in ".{0,60}") {
            if let Some(node) = first(&list) {
                prop_assert!(!node.contains([',', '[', ']']));
            }
        }

        #[test]
        fn a_range_begins_with_its_first_number(prefix in "[a-z]{1,8}", from in 0u32..5000, more in 1u32..99) {
            let list = format!("{prefix}[{from:04}-{:04}],other", from + more);
            prop_assert_eq!(first(&list).unwrap(), format!("{prefix}{from:04}"));
        }
    }
}
