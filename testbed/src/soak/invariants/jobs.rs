//! Slurm's jobs and nodes: nothing of ours hurts them.

use super::Violation;
use crate::soak::clock::Ms;
use crate::soak::history::{History, Job};

/// How long after a fault of Slurm's own a job may still suffer from it: until the node is given up (SlurmdTimeout), or an
/// answer that was lost is missed (MessageTimeout), with time to start again.
const SUFFERS: Ms = 60_000;

/// No job is failed, held or requeued but by a fault of Slurm's own daemons or wires, or by the harness itself.
pub fn hurt(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    for ((id, submitted), job) in &history.jobs {
        for (at, what) in &job.odd {
            if history.ours.contains(id) || slurms_own(history, job, *at) {
                continue;
            }
            let nodes = job.nodes.iter().cloned().collect::<Vec<_>>().join(" ");
            found.push(Violation::new(
                "no job is hurt",
                format!("{id}/{submitted} {what}"),
                format!("job {id} (on {nodes}) was {what} although no part of Slurm was disturbed"),
            ));
        }
    }
    found
}

fn slurms_own(history: &History, job: &Job, at: Ms) -> bool {
    history.faults.iter().any(|span| {
        let target = &span.fault.target;
        let concerns = target.host() == "head" || job.nodes.is_empty() || job.nodes.contains(target.host());
        let until = span.until.unwrap_or(Ms::MAX / 4).saturating_add(SUFFERS);
        target.is_slurms() && concerns && span.from <= at && job.seen <= until
    })
}

/// No node is drained, whoever did it: nothing here is a reason to.
pub fn drained(history: &History) -> Vec<Violation> {
    let drained = history.drained.iter();
    drained
        .map(|(node, reason)| {
            Violation::new("no node is drained", node, format!("{node} was drained; Slurm's reason: {reason:?}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{fault, history};
    use super::*;
    use crate::soak::faults::Target;

    #[test]
    fn a_failed_job_needs_a_fault_of_slurms() {
        let mut history = history();
        let job = Job {
            seen: 100_000,
            nodes: ["n1".to_owned()].into(),
            odd: vec![(110_000, "FAILED".into())],
            ..Job::default()
        };
        history.jobs.insert((7, 5), job);
        assert_eq!(hurt(&history).len(), 1);
        fault(&mut history, Target::Credvend, 100_000, 105_000);
        fault(&mut history, Target::Credd("n1".into()), 100_000, 105_000);
        fault(&mut history, Target::Slurmd("n2".into()), 100_000, 105_000);
        fault(&mut history, Target::Slurmd("n1".into()), 10_000, 15_000);
        fault(&mut history, Target::Slurmd("n1".into()), 111_000, 115_000);
        assert_eq!(hurt(&history).len(), 1, "none of these is a reason");
        fault(&mut history, Target::Munged("n1".into()), 104_000, 105_000);
        assert_eq!(hurt(&history), []);
        history.faults.clear();
        history.ours.insert(7);
        assert_eq!(hurt(&history), [], "the harness asked for it");
    }

    #[test]
    fn a_drained_node_is_caught() {
        let mut history = history();
        assert_eq!(drained(&history), []);
        history.drained.insert("n1".into(), "Prolog error".into());
        assert!(drained(&history)[0].what.contains("Prolog error"));
    }
}
