//! The figures, for people and for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::herd::{Outcome, Waits};
use crate::run::{BY_JOB, Plan};

/// As a table.
pub fn text(plan: &Plan, outcomes: &[Outcome]) -> String {
    let mut text = format!(
        "A job on {} nodes, one process on each, which all ask within {} s; beside it {} projects with {} jobs of one node each.\n\
         The STS bears {} calls a second; `rate` is credvend's [sts] rate. {} nodes have their standing stream.\n\n",
        plan.nodes,
        plan.spread.as_secs(),
        plan.beside,
        plan.waves,
        plan.throttle,
        plan.streams(),
    );
    let _ = writeln!(
        text,
        "{:24} {:>4} {:8} | {:>9} {:>9} {:>8} | {:>5} | {:>8} {:>8} {:>8} {:>7} | {:>9} {:>8} {:>7}",
        "name in AWS",
        "rate",
        "prefetch",
        "STS calls",
        "throttled",
        "most/s",
        "Slurm",
        "wait p50",
        "p99",
        "longest",
        "errors",
        "beside p99",
        "longest",
        "errors"
    );
    for outcome in outcomes {
        let (herd, beside) = (&outcome.herd, &outcome.beside);
        let _ = writeln!(
            text,
            "{:24} {:>4} {:8} | {:>9} {:>9} {:>8} | {:>5} | {:>7.2}s {:>7.2}s {:>7.2}s {:>7} | {:>9.2}s {:>7.2}s {:>7}",
            outcome.template,
            outcome.rate,
            if outcome.prefetch { "yes" } else { "no" },
            outcome.sts.calls,
            outcome.sts.throttled,
            outcome.sts.busiest,
            outcome.slurm.jobs,
            herd.p50.as_secs_f64(),
            herd.p99.as_secs_f64(),
            herd.max.as_secs_f64(),
            herd.errors,
            beside.p99.as_secs_f64(),
            beside.max.as_secs_f64(),
            beside.errors,
        );
    }
    text.push_str(
        "\nSTS: counted there. Slurm: questions about single jobs. Waits: from a process' first request to its credentials.\n\
         Errors: calls of an SDK that asks three times, as botocore does, and got nothing. Beside: the other projects' jobs.\n",
    );
    text
}

/// As JSON.
pub fn json(plan: &Plan, outcomes: &[Outcome]) -> Value {
    let waits = |w: &Waits| {
        json!({
            "p50-seconds": w.p50.as_secs_f64(), "p99-seconds": w.p99.as_secs_f64(), "max-seconds": w.max.as_secs_f64(),
            "errors": w.errors, "processes-with-errors": w.processes, "given-up": w.given_up, "said": w.said,
        })
    };
    let one = |o: &Outcome| {
        json!({
            "template": o.template, "rate": o.rate, "prefetch": o.prefetch, "seconds": o.took.as_secs_f64(),
            "sts": {
                "calls": o.sts.calls, "throttled": o.sts.throttled, "busiest-second": o.sts.busiest,
                "names-given-twice": o.sts.twice,
            },
            "slurm": { "jobs": o.slurm.jobs, "listings": o.slurm.listings, "nodes": o.slurm.nodes },
            "herd": waits(&o.herd), "beside": waits(&o.beside), "worst-beside": o.worst,
        })
    };
    json!({
        "nodes": plan.nodes, "spread-seconds": plan.spread.as_secs_f64(), "sts-bears": plan.throttle,
        "streams": plan.streams(), "projects-beside": plan.beside, "jobs-of-each": plan.waves,
        "runs": outcomes.iter().map(one).collect::<Vec<_>>(),
    })
}

/// What must not be.
pub fn broken(plan: &Plan, outcomes: &[Outcome]) -> Vec<String> {
    let mut broken = Vec::new();
    for outcome in outcomes {
        let what =
            format!("{}, {}/s{}", outcome.template, outcome.rate, if outcome.prefetch { " with prefetch" } else { "" });
        if outcome.template == BY_JOB && outcome.herd.errors + outcome.beside.errors > 0 {
            let said = outcome.herd.said.as_deref().or(outcome.beside.said.as_deref()).unwrap_or_default();
            broken.push(format!(
                "{what}: {} errors in the job and {} beside it, where there should be none; one said: {said}",
                outcome.herd.errors, outcome.beside.errors
            ));
        }
        if outcome.herd.given_up + outcome.beside.given_up > 0 {
            broken.push(format!("{what}: {} processes got nothing", outcome.herd.given_up + outcome.beside.given_up));
        }
        // A name for each node is more than such an STS bears; with prefetch, or as one name, it may just be enough.
        let too_fast = outcome.rate > plan.throttle;
        // No faster than the processes start can calls come.
        let comes = f64::from(plan.nodes) > f64::from(plan.throttle) * plan.spread.as_secs_f64();
        if too_fast && comes && outcome.template != BY_JOB && !outcome.prefetch && outcome.sts.throttled == 0 {
            broken.push(format!("{what}: the STS did not throttle, so this shows nothing"));
        }
        if !too_fast && outcome.sts.throttled > 0 {
            broken.push(format!("{what}: the STS had to throttle {} calls", outcome.sts.throttled));
        }
        if outcome.sts.twice > 0 {
            broken.push(format!("{what}: {} names were given credentials twice", outcome.sts.twice));
        }
    }
    broken
}
