//! What a soak tells: a line now and then, a table at the end, and everything it knows where it failed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};

use super::Outcome;
use super::clock::now;
use super::history::History;

/// One line.
pub fn progress(history: &History, violations: usize) -> String {
    let alive = history.jobs.values().filter(|job| job.over.is_none()).count();
    let open = history.sessions.values().filter(|session| session.ended.is_none()).count();
    let answered: Vec<String> =
        history.counts.answers.iter().map(|(status, n)| format!("{}: {n}", named(*status))).collect();
    format!(
        "{} jobs submitted, {alive} alive, {open} sessions open; answers {}; {} faults, {} revocations; {violations} violations",
        history.counts.submitted,
        answered.join(", "),
        history.faults.len(),
        history.revocations.len(),
    )
}

fn named(status: u16) -> String {
    if status == 0 { "none".to_owned() } else { status.to_string() }
}

/// All counts, for programs.
pub fn json(seed: u64, outcome: &Outcome) -> Value {
    let history = &outcome.history;
    let faults: serde_json::Map<String, Value> = history
        .faults_by_kind()
        .into_iter()
        .map(|((kind, how), n)| (format!("{how:?} {kind}").to_lowercase(), n.into()))
        .collect();
    let ended = |status: &str| history.sessions.values().filter(|session| session.status == status).count();
    json!({
        "seed": seed,
        "seconds": (now() - history.begun) / 1000,
        "faults": faults,
        "faults-in-all": history.faults.len(),
        "revocations": history.revocations.len(),
        "revocations-by-kind": history.revocations.iter().fold(BTreeMap::<_, u64>::new(), |mut counts, revoked| {
            let kind = revoked.whom.to_string();
            *counts.entry(kind.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
            counts
        }),
        "revocations-that-every-node-confirmed": history
            .revocations
            .iter()
            .filter(|revoked| revoked.unheard.as_ref().is_some_and(BTreeSet::is_empty))
            .count(),
        "revocations-done": history.revocations.iter().filter(|revoked| revoked.done.is_some()).count(),
        "jobs": history.jobs.len(),
        "submissions-refused": history.counts.not_submitted,
        "cancelled": history.counts.cancelled,
        "requeued": history.counts.requeued,
        "nodes-drained-by-slurm-itself": history.counts.slurms_own_drains,
        "records-left-by-epilogs-that-slurm-lost": history.counts.lost_epilogs,
        "clients": history.runs.len(),
        "answers": history.counts.answers.iter().map(|(s, n)| (named(*s), *n)).collect::<BTreeMap<_, _>>(),
        "identities-told-by-aws": history.runs.values().flat_map(|run| &run.identities).filter(|arn| arn.starts_with("arn:")).count(),
        "copied-keys-tried-at-the-end": history.counts.tried,
        "sessions": history.sessions.len(),
        "sessions-completed": ended("COMPLETED"),
        "sessions-invalidated": ended("INVALIDATED"),
        "keys-issued": history.issued.len(),
        "runs-that-asked-on-after-a-revocation": outcome.judged.0,
        "of-these-with-the-strict-bound": outcome.judged.1,
        "most-crowded": history.crowds.iter().map(|(_, crowd)| *crowd).fold(0.0, f64::max),
        "memory-and-descriptors": history.uses,
        "violations": outcome.violations,
    })
}

/// The same for people.
pub fn text(seed: u64, outcome: &Outcome) -> String {
    let json = json(seed, outcome);
    let mut text = String::new();
    for (name, value) in json.as_object().into_iter().flatten() {
        let name = name.replace('-', " ");
        match value {
            Value::Object(_) if name.starts_with("memory") => {}
            Value::Object(parts) => {
                let parts: Vec<String> = parts.iter().map(|(part, n)| format!("{part} {n}")).collect();
                let _ = writeln!(text, "{name:38} {}", parts.join(", "));
            }
            Value::Array(_) => {}
            value => {
                let _ = writeln!(text, "{name:38} {value}");
            }
        }
    }
    for (daemon, uses) in &outcome.history.uses {
        let use_of = |u: super::history::Use| format!("{} KiB, {} descriptors", u.rss, u.fds);
        let _ = writeln!(
            text,
            "{daemon:38} early {}; most {}; at the end {}",
            use_of(uses.early),
            use_of(uses.most),
            use_of(uses.last)
        );
    }
    if outcome.violations.is_empty() {
        let _ = writeln!(text, "no violation");
    }
    for violation in &outcome.violations {
        let _ = writeln!(text, "VIOLATION {}: {}", violation.invariant, violation.what);
    }
    text
}

/// The faults and revocations in the order of time, seconds since the begin.
pub fn deeds(history: &History) -> String {
    let since = |at: u64| at.saturating_sub(history.begun) as f64 / 1000.0;
    let mut lines: Vec<(u64, String)> = Vec::new();
    for span in &history.faults {
        let until = span.until.map_or("…".to_owned(), |until| format!("{:.1}", since(until)));
        lines.push((span.from, format!("{:8.1} – {until} {}", since(span.from), span.fault)));
    }
    for revoked in &history.revocations {
        let done = revoked.done.map_or("not confirmed".to_owned(), |done| format!("done at {:.1}", since(done)));
        lines.push((revoked.asked, format!("{:8.1} revoke {} ({done})", since(revoked.asked), revoked.whom)));
    }
    lines.sort();
    lines.into_iter().map(|(_, line)| line + "\n").collect()
}

/// Keeps what is needed to look into a failure: the daemons' logs, the deeds, the history. Says where. Keys and tokens are
/// not among it, unless a log has them.
pub fn keep(run_dir: &Path, seed: u64, outcome: &Outcome) -> Result<PathBuf> {
    let to = std::env::temp_dir().join(format!("credd-soak-{seed}-{}", std::process::id()));
    fs::create_dir_all(&to)?;
    fs::set_permissions(&to, fs::Permissions::from_mode(0o700))?;
    for log in fs::read_dir(run_dir.join("log"))?.flatten() {
        fs::copy(log.path(), to.join(log.file_name()))?;
    }
    let audit = run_dir.join("credvend/audit.jsonl");
    if audit.exists() {
        fs::copy(audit, to.join("audit.jsonl"))?;
    }
    fs::write(to.join("deeds.txt"), deeds(&outcome.history))?;
    fs::write(to.join("report.txt"), text(seed, outcome))?;
    fs::write(to.join("history.json"), serde_json::to_vec(&outcome.history)?)?;
    let jobs: Vec<_> = outcome.history.jobs.iter().collect();
    fs::write(to.join("jobs.json"), serde_json::to_vec(&jobs)?)?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soak::faults::{Fault, How, Target};
    use crate::soak::history::{Revoked, Span, Whom};

    #[test]
    fn the_report_counts_by_kind_and_the_deeds_are_in_order() {
        let mut history = History { begun: 1_000, ..History::default() };
        for (node, from) in [("n2", 9_000), ("n1", 3_000)] {
            let fault = Fault { target: Target::Credd(node.into()), how: How::Kill };
            history.faults.push(Span { fault, from, until: Some(from + 500) });
        }
        history.revocations.push(Revoked { whom: Whom::User("bob".into()), asked: 5_000, ..Revoked::default() });
        history.counts.answers.insert(0, 3);
        let deeds = deeds(&history);
        let lines: Vec<&str> = deeds.lines().map(str::trim).collect();
        assert_eq!(
            lines,
            ["2.0 – 2.5 kill credd on n1", "4.0 revoke user bob (not confirmed)", "8.0 – 8.5 kill credd on n2"]
        );
        let outcome = Outcome { history, violations: vec![], judged: (4, 2) };
        let json = json(7, &outcome);
        assert_eq!(
            (&json["faults"]["kill credd"], &json["answers"]["none"], &json["seed"]),
            (&2.into(), &3.into(), &7.into())
        );
        assert!(text(7, &outcome).ends_with("no violation\n"));
    }
}
