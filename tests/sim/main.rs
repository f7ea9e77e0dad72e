//! Small runs of `make sim`: 200 nodes, both templates, with and without prefetch, and an STS that throttles. What must hold of ten thousand nodes must
//! hold of these; the figures themselves are for an idle machine and a release build.
#![forbid(unsafe_code)]

#[path = "../../benches/sim/herd.rs"]
mod herd;
#[path = "../../benches/sim/report.rs"]
mod report;
#[path = "../../benches/sim/run.rs"]
mod run;
#[path = "../../benches/sim/slurm.rs"]
mod slurm;
#[path = "../../benches/sim/sts.rs"]
mod sts;
#[path = "../../benches/sim/world.rs"]
mod world;

use std::time::Duration;

use herd::Outcome;
use run::{BY_JOB, BY_NODE, Plan};

/// How long anybody waits is the machine's matter here: a debug build, beside other tests.
fn small(throttle: u32, rate: u32, spread: u64) -> Plan {
    Plan { spread: Duration::from_secs(spread), waves: 3, throttle, rates: vec![rate], ..Plan::of(200) }
}

fn simulated(plan: &Plan) -> Vec<Outcome> {
    let outcomes = run::run(plan, &|line| println!("{line}")).expect("the simulation runs");
    println!("{}", report::text(plan, &outcomes));
    assert_eq!(report::json(plan, &outcomes)["runs"].as_array().map(Vec::len), Some(2 * plan.templates.len()));
    assert_eq!(report::broken(plan, &outcomes), Vec::<String>::new());
    for outcome in &outcomes {
        assert_eq!(outcome.sts.twice, 0, "{}", outcome.line());
        assert_eq!((outcome.herd.given_up, outcome.beside.given_up), (0, 0), "{}", outcome.line());
    }
    outcomes
}

#[test]
fn a_herd_costs_one_call_and_one_question_and_everybody_is_served() {
    let plan = small(600, 300, 5);
    let small = (plan.beside * plan.waves) as usize;
    for outcome in simulated(&plan) {
        let herd = if outcome.template == BY_JOB { 1 } else { plan.nodes as usize };
        assert_eq!((outcome.sts.calls, outcome.sts.throttled), (herd + small, 0), "{}", outcome.line());
        // Each job is asked about once, together with whichever others wait at that moment.
        assert!(outcome.slurm.jobs <= 1 + small, "{} questions: {}", outcome.slurm.jobs, outcome.line());
        // With the default name no call of any SDK fails.
        let errors = (outcome.herd.errors, outcome.beside.errors);
        assert!(outcome.template != BY_JOB || errors == (0, 0), "{errors:?}: {}", outcome.line());
    }
}

#[test]
fn an_sts_that_throttles_delays_a_herd_and_refuses_nobody() {
    let plan = Plan { templates: vec![BY_NODE], ..small(25, 75, 2) };
    let outcomes = simulated(&plan);
    for outcome in &outcomes {
        // Whoever was throttled was given a turn again: as many calls succeed as there are names.
        let names = (plan.nodes + plan.beside * plan.waves) as usize;
        // At its own rate two of three calls would be.
        assert!(outcome.sts.throttled < names / 2, "credvend does not slow down: {}", outcome.line());
        assert_eq!(outcome.sts.calls - outcome.sts.throttled, names, "{}", outcome.line());
    }
    assert!(outcomes[0].sts.throttled > 0, "{}", outcomes[0].line());
}
