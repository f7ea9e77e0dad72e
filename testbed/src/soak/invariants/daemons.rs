//! Our daemons: what they use, and what they write.

use super::Violation;
use crate::soak::history::{History, Uses};

/// What a daemon may use at the end more than when the load had begun: caches and allocators, not a leak.
const MORE_KIB: u64 = 40 * 1024;
/// At no time more descriptors than this under a load of some hundred connections.
const MOST_FDS: u64 = 600;
/// When all is quiet, so many more than early on.
const MORE_FDS: u64 = 24;

/// Memory and descriptors do not grow without bound.
pub fn grown(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    for (daemon, Uses { early, most, last }) in &history.uses {
        let mut grown = |what: String| {
            let what = format!("{daemon} {what}");
            found.push(Violation::new("nothing grows without bound", what.clone(), what));
        };
        if last.rss > early.rss + MORE_KIB {
            grown(format!("had {} KiB early and {} KiB at the end", early.rss, last.rss));
        }
        if most.fds > MOST_FDS {
            grown(format!("had {} open descriptors", most.fds));
        }
        if last.fds > early.fds + MORE_FDS {
            grown(format!("had {} open descriptors early and {} at the end", early.fds, last.fds));
        }
    }
    found
}

/// What our programs and what Slurm calls of ours must not say: a defect that nothing else shows.
const FORBIDDEN: [&str; 5] = [
    "panicked at",
    "spank/prolog returned status",
    "spank/epilog returned status",
    "ended abnormally",
    "speaks another language",
];

/// Looks through one log: secrets by their pieces, and words that tell a defect. `name` is the log's.
pub fn log(name: &str, text: &str, secrets: impl Iterator<Item = impl AsRef<str>>) -> Vec<Violation> {
    let mut found = Vec::new();
    let leaked = secrets.filter(|secret| text.contains(secret.as_ref())).count();
    if leaked > 0 {
        let what = format!("{name} holds {leaked} of the tokens and keys that jobs were given");
        found.push(Violation::new("no secret is in a log", name, what));
    }
    for words in FORBIDDEN {
        if let Some(line) = text.lines().find(|line| line.contains(words)) {
            found.push(Violation::new("no log tells a defect", format!("{name} {words}"), format!("{name}: {line}")));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::fixture::history;
    use super::*;
    use crate::soak::history::Use;

    #[test]
    fn growth_is_caught_and_a_working_set_is_not() {
        let mut history = history();
        let of = |rss, fds| Use { rss, fds };
        let mut judge = |last, most| {
            let uses = Uses { early: of(20_000, 30), most, last };
            history.uses.insert("n1 credd".into(), uses);
            grown(&history).len()
        };
        assert_eq!(judge(of(50_000, 50), of(90_000, 400)), 0);
        assert_eq!(judge(of(70_000, 50), of(90_000, 400)), 1);
        assert_eq!(judge(of(50_000, 60), of(90_000, 400)), 1);
        assert_eq!(judge(of(50_000, 50), of(90_000, 700)), 1);
    }

    #[test]
    fn secrets_and_panics_in_logs_are_caught() {
        let secrets = ["0123456789abcdef".to_owned()];
        assert_eq!(log("head.credvend.log", "all is well\n", secrets.iter()), []);
        assert_eq!(log("head.credvend.log", "token 0123456789abcdef\n", secrets.iter()).len(), 1);
        assert_eq!(log("l", "thread 'main' panicked at src/x.rs:1:1\n", secrets.iter()).len(), 1);
        assert_eq!(log("l", "error: spank/prolog returned status 0x0100\n", secrets.iter()).len(), 1);
    }
}
