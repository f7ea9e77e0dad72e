//! Slurm's short form of node names: `n[1-3,07-09],m1`, `a[1-2]b[3-4]`.
//!
//! A number is padded with zeros to the digits of its range's first number, as `scontrol show hostnames` does. The text
//! is Slurm's own, but a wrong reading would place a job on a wrong node: everything that is not plainly of this form is
//! refused, and so is more than the caller wants.

use credd_protocol::NodeName;

/// The longest hostlist that is read, in bytes.
pub const MAX_BYTES: usize = 256 * 1024;

/// Why a hostlist was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostlistError {
    /// More than [`MAX_BYTES`].
    #[error("the list of nodes has more than {MAX_BYTES} bytes")]
    TooLong,
    /// More names than asked for.
    #[error("the list of nodes has more than {0} nodes")]
    TooMany(usize),
    /// Not a hostlist.
    #[error("the list of nodes is not valid near {0:?}")]
    Malformed(String),
}

/// One part of an element: text as it stands, or a bracket's ranges.
enum Part<'a> {
    Text(&'a str),
    Ranges(Vec<Range>),
}

struct Range {
    low: u64,
    high: u64,
    width: usize,
}

/// The names in a hostlist, in its order; none for an empty one.
///
/// # Errors
/// More than `max` names, or a text that is no hostlist.
pub fn expand(text: &str, max: usize) -> Result<Vec<NodeName>, HostlistError> {
    if text.len() > MAX_BYTES {
        return Err(HostlistError::TooLong);
    }
    let mut names = Vec::new();
    if text.is_empty() {
        return Ok(names);
    }
    for element in split_elements(text)? {
        expand_element(element, max, &mut names)?;
    }
    Ok(names)
}

fn malformed(near: &str) -> HostlistError {
    HostlistError::Malformed(near.chars().take(40).collect())
}

/// Splits at the commas outside brackets.
fn split_elements(text: &str) -> Result<Vec<&str>, HostlistError> {
    let (mut elements, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'[' if !inside => inside = true,
            b']' if inside => inside = false,
            b'[' | b']' => return Err(malformed(text.get(at..).unwrap_or_default())),
            b',' if !inside => {
                elements.push(text.get(start..at).unwrap_or_default());
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err(malformed(text.get(start..).unwrap_or_default()));
    }
    elements.push(text.get(start..).unwrap_or_default());
    Ok(elements)
}

fn parts(element: &str) -> Result<Vec<Part<'_>>, HostlistError> {
    let (mut parts, mut rest) = (Vec::new(), element);
    while let Some((before, after)) = rest.split_once('[') {
        let (inside, after) = after.split_once(']').ok_or_else(|| malformed(element))?;
        parts.push(Part::Text(before));
        parts.push(Part::Ranges(inside.split(',').map(range).collect::<Result<_, _>>()?));
        rest = after;
    }
    parts.push(Part::Text(rest));
    Ok(parts)
}

fn range(text: &str) -> Result<Range, HostlistError> {
    // Eighteen digits fit 64 bits.
    let number = |digits: &str| match digits.parse() {
        Ok(n) if digits.len() <= 18 && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(n),
        _ => Err(malformed(text)),
    };
    let (low_text, high_text) = text.split_once('-').unwrap_or((text, text));
    let (low, high) = (number(low_text)?, number(high_text)?);
    if low > high {
        return Err(malformed(text));
    }
    Ok(Range { low, high, width: low_text.len() })
}

fn expand_element(element: &str, max: usize, names: &mut Vec<NodeName>) -> Result<(), HostlistError> {
    let room = max - names.len();
    // Every prefix stands for at least one name, so `room` bounds the work of each step too.
    let mut prefixes = vec![String::new()];
    for part in parts(element)? {
        match part {
            Part::Text(text) => prefixes.iter_mut().for_each(|prefix| prefix.push_str(text)),
            Part::Ranges(ranges) => {
                let mut longer = Vec::new();
                for prefix in &prefixes {
                    for Range { low, high, width } in &ranges {
                        for n in *low..=*high {
                            if longer.len() == room {
                                return Err(HostlistError::TooMany(max));
                            }
                            longer.push(format!("{prefix}{n:0width$}"));
                        }
                    }
                }
                prefixes = longer;
            }
        }
    }
    if prefixes.len() > room {
        return Err(HostlistError::TooMany(max));
    }
    for name in prefixes {
        names.push(name.parse().map_err(|_| malformed(&name))?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(text: &str) -> Vec<String> {
        expand(text, 1000).unwrap().into_iter().map(String::from).collect()
    }

    #[test]
    fn lists_expand_as_scontrol_does() {
        // Each pair was seen from `scontrol show hostnames` of Slurm 22.05.8.
        for (text, want) in [
            ("", ""),
            ("n1", "n1"),
            ("n[1-3,07-09],m1", "n1 n2 n3 n07 n08 n09 m1"),
            ("a[1-2]b[3-4]", "a1b3 a1b4 a2b3 a2b4"),
            ("n[1-2][3-4]", "n13 n14 n23 n24"),
            ("n[08-11]", "n08 n09 n10 n11"),
            ("n[8-011]", "n8 n9 n10 n11"),
            ("n[001-3]", "n001 n002 n003"),
            ("n[1,1]", "n1 n1"),
            ("[1-3]", "1 2 3"),
        ] {
            assert_eq!(names(text).join(" "), want, "{text}");
        }
    }

    #[test]
    fn what_is_no_hostlist_is_refused() {
        for bad in
            ["n[3-1]", "n[]", "n[a-c]", "n[1-2", "n1]", "n[[1]]", "n[-3]", "n[1 - 2]", ",", "n1,", "n 1", "(null)", "é"]
        {
            assert!(matches!(expand(bad, 10), Err(HostlistError::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn a_short_text_cannot_make_a_long_list() {
        assert_eq!(expand("n[0-999999999999999999]", 50), Err(HostlistError::TooMany(50)));
        assert_eq!(expand("n[0-9][0-9][0-9][0-9][0-9][0-9]", 50), Err(HostlistError::TooMany(50)));
        assert_eq!(expand("a,b,c", 2), Err(HostlistError::TooMany(2)));
        assert_eq!(expand(&"n,".repeat(MAX_BYTES), 2), Err(HostlistError::TooLong));
        assert_eq!(expand("n[1-50]", 50).unwrap().len(), 50);
    }

    proptest! {
        #[test]
        fn no_text_panics_or_exceeds_its_bound(text in "[an0-9,\\[\\] -]{0,40}|.{0,40}") {
            if let Ok(names) = expand(&text, 64) {
                prop_assert!(names.len() <= 64);
            }
        }

        #[test]
        fn a_compressed_range_gives_back_its_names(low in 0u64..2000, more in 0u64..40, width in 1usize..6, tail in "[a-z]{0,3}") {
            let want: Vec<String> = (low..=low + more).map(|n| format!("node{n:0width$}{tail}")).collect();
            let text = format!("node[{low:0width$}-{}]{tail}", low + more);
            prop_assert_eq!(names(&text), want);
        }
    }

    #[test]
    #[cfg_attr(not(has_scontrol), ignore = "scontrol(1) was not installed when this test was built")]
    fn scontrol_agrees_on_made_up_lists() {
        use std::fmt::Write as _;
        // `show hostnames` needs no slurmctld, only a readable slurm.conf.
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("slurm.conf");
        std::fs::write(&conf, "ClusterName=t\nSlurmctldHost=t\nNodeName=n1\nPartitionName=p Nodes=n1\n").unwrap();
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = |n: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % n
        };
        for _ in 0..40 {
            let mut text = String::new();
            for element in 0..1 + random(4) {
                let comma = if element > 0 { "," } else { "" };
                let _ = write!(
                    text,
                    "{comma}{}",
                    ["n", "gpu-", "rack1.", "x0y", "a+b", "c#d@", "%=:", "e_"][random(8) as usize]
                );
                for _ in 0..random(3) {
                    let ranges: Vec<String> = (0..1 + random(3))
                        .map(|_| {
                            let (low, width) = (random(120), random(4) as usize);
                            format!("{low:0width$}-{:0width$}", low + random(9))
                        })
                        .collect();
                    let _ = write!(text, "[{}]", ranges.join(","));
                }
            }
            let said = std::process::Command::new("scontrol")
                .args(["show", "hostnames", &text])
                .env("SLURM_CONF", &conf)
                .output()
                .unwrap();
            assert!(said.status.success(), "{text}: {said:?}");
            let theirs = String::from_utf8(said.stdout).unwrap();
            let ours = expand(&text, 100_000).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(
                ours.iter().map(NodeName::as_str).collect::<Vec<_>>(),
                theirs.lines().collect::<Vec<_>>(),
                "{text}"
            );
        }
    }
}
