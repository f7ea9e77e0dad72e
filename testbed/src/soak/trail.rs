//! credvend's audit log after all the kills: whatever a job was served is on it, and no line is missing.

use std::collections::{HashMap, HashSet};
use std::fs;

use serde_json::Value;

use super::clock::Ms;
use super::faults::{How, Target};
use super::history::History;
use super::invariants::Violation;
use crate::cluster::Cluster;

/// What has happened already is written right after it: for so long before a kill a line may be missing.
const RIGHT_AFTER: Ms = 1_500;

/// What the log says.
#[derive(Debug, Default)]
pub struct Trail {
    delivered: HashSet<(String, String)>,
    issued: HashSet<String>,
    opened: HashSet<String>,
    ended: HashMap<String, String>,
    /// The highest number of each life of credvend, and how many lines it has.
    lives: HashMap<String, (u64, u64)>,
    /// Lines that were cut.
    torn: usize,
    /// Lines that credvend gave up.
    lost: bool,
}

impl Trail {
    /// Of a cluster.
    pub fn of(cluster: &Cluster) -> Self {
        Self::read(&fs::read_to_string(cluster.run_dir().join("credvend/audit.jsonl")).unwrap_or_default())
    }

    fn read(text: &str) -> Self {
        let mut trail = Trail::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let Ok(line) = serde_json::from_str::<Value>(line) else {
                trail.torn += 1;
                continue;
            };
            let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            let life = trail.lives.entry(text("run")).or_default();
            *life = (life.0.max(line["seq"].as_u64().unwrap_or_default()), life.1 + 1);
            match line["event"].as_str().unwrap_or_default() {
                "session-opened" => drop(trail.opened.insert(text("session"))),
                "session-ended" => drop(trail.ended.insert(text("session"), text("status"))),
                "credentials-issued" => drop(trail.issued.insert(text("key-id"))),
                "credentials-delivered" => drop(trail.delivered.insert((text("key-id"), text("node")))),
                "lines-lost" => trail.lost = true,
                _ => {}
            }
        }
        trail
    }

    /// What the log lacks.
    pub fn check(&self, history: &History) -> Vec<Violation> {
        let mut found = Vec::new();
        let mut lacks = |subject: &str, what: String| {
            let invariant = "the audit log is complete";
            found.push(Violation { invariant, subject: subject.to_owned(), what });
        };
        let kills = history.faults.iter().filter(|s| s.fault.target == Target::Credvend && s.fault.how == How::Kill);
        let kills: Vec<Ms> = kills.map(|span| span.from).collect();
        let killed = |at: Ms| kills.iter().any(|kill| at <= kill + RIGHT_AFTER && *kill <= at + RIGHT_AFTER);
        for run in history.runs.values() {
            for key in run.keys.keys() {
                let node = &run.begin.node;
                if !self.issued.contains(key) || !self.delivered.contains(&(key.clone(), node.clone())) {
                    lacks(key, format!("job {} was served {key} on {node}; no such line", run.begin.job));
                }
            }
        }
        for session in history.sessions.values() {
            let id = &session.id;
            if !self.opened.contains(id) && !kills.iter().any(|kill| *kill <= session.seen) {
                lacks(id, format!("session {id} was opened; no such line"));
            }
            let Some(ended) = session.ended else { continue };
            if self.ended.get(id) != Some(&session.status) && !killed(ended) {
                lacks(id, format!("session {id} was {}; the log says {:?}", session.status, self.ended.get(id)));
            }
        }
        for (life, (highest, lines)) in self.lives.iter().filter(|(_, (highest, lines))| highest != lines) {
            lacks(life, format!("{lines} lines of a life of credvend that wrote {highest}"));
        }
        if self.torn > kills.len() {
            lacks("torn", format!("{} lines are cut, and credvend was killed {} times", self.torn, kills.len()));
        }
        if self.lost {
            lacks("lost", "credvend says that it could not write".to_owned());
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soak::invariants::fixture::{ask, history};

    const LINES: &str = r#"{"run":"a","seq":1,"event":"session-opened","session":"s"}
{"run":"a","seq":2,"event":"credentials-issued","key-id":"K"}
{"run":"a","seq":3,"event":"credentials-delivered","key-id":"K","node":"n1"}
{"run":"a","seq":4,"event":"session-ended","session":"s","status":"COMPLETED"}
"#;

    #[test]
    fn a_whole_log_lacks_nothing_and_each_missing_line_is_noticed() {
        let mut history = history();
        ask(&mut history, 20_000, 200);
        let session = history.sessions.get_mut("s").unwrap();
        (session.status, session.ended) = ("COMPLETED".into(), Some(30_000));
        assert_eq!(Trail::read(LINES).check(&history), []);
        for line in LINES.lines() {
            assert!(!Trail::read(&LINES.replace(line, "")).check(&history).is_empty(), "without {line}");
        }
        assert!(!Trail::read(&LINES.replace("\"n1\"", "\"n2\"")).check(&history).is_empty());
        assert!(!Trail::read(&(LINES.to_owned() + "{\"run\":\"a\",\"se\n")).check(&history).is_empty());
    }
}
