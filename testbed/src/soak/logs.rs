//! The daemons' logs, looked through at the end.

use std::collections::{BTreeSet, HashSet};
use std::fs;

use super::invariants::{Violation, daemons};
use crate::cluster::Cluster;

/// So much of a secret is looked for first, at every place at once.
const PIECE: usize = 16;

/// What must not stand in any log, secrets and words.
pub fn check(cluster: &Cluster, secrets: &BTreeSet<String>) -> Vec<Violation> {
    let mut found = Vec::new();
    let logs = fs::read_dir(cluster.run_dir().join("log")).into_iter().flatten().flatten().map(|log| log.path());
    for log in logs.chain([cluster.run_dir().join("credvend/audit.jsonl")]) {
        let name = log.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
        found.extend(daemons::log(&name, &text, in_text(secrets, &text).into_iter()));
    }
    found
}

/// The secrets that a text holds. One pass over it, however many there are.
fn in_text<'a>(secrets: &'a BTreeSet<String>, text: &str) -> Vec<&'a String> {
    let long = || secrets.iter().filter(|secret| secret.len() >= PIECE);
    let pieces: HashSet<&[u8]> = long().map(|secret| &secret.as_bytes()[..PIECE]).collect();
    let seen: HashSet<&[u8]> = text.as_bytes().windows(PIECE).filter(|window| pieces.contains(window)).collect();
    if seen.is_empty() {
        return Vec::new();
    }
    long().filter(|secret| seen.contains(&secret.as_bytes()[..PIECE]) && text.contains(*secret)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_secrets_are_found_and_pieces_are_none() {
        let secrets: BTreeSet<String> =
            ["0123456789abcdefXYZ", "short", "ffffffffffffffffffff"].map(str::to_owned).into();
        assert_eq!(in_text(&secrets, "a line\n=0123456789abcdefXYZ\n"), ["0123456789abcdefXYZ"]);
        assert!(in_text(&secrets, "0123456789abcdefX short").is_empty());
    }
}
