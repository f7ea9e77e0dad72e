//! A small run of `make sim`: 200 nodes, both templates, with and without prefetch. What must hold of ten thousand nodes must
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

use run::{BY_JOB, Plan};

#[test]
fn a_herd_costs_one_call_and_one_question_and_everybody_is_served() {
    let mut plan = Plan::of(200);
    // How long anybody waits is the machine's matter here: a debug build, beside other tests.
    plan.spread = Duration::from_secs(5);
    plan.waves = 3;
    let outcomes = run::run(&plan, &|line| println!("{line}")).expect("the simulation runs");
    println!("{}", report::text(&plan, &outcomes));
    println!("{:?}", report::broken(&outcomes));
    assert_eq!(report::json(&plan, &outcomes)["runs"].as_array().map(Vec::len), Some(4));
    let small = (plan.beside * plan.waves) as usize;
    for outcome in &outcomes {
        let herd = if outcome.template == BY_JOB { 1 } else { plan.nodes as usize };
        assert_eq!(outcome.sts.calls, herd + small, "{}", outcome.line());
        assert_eq!((outcome.sts.throttled, outcome.sts.twice), (0, 0), "{}", outcome.line());
        assert_eq!((outcome.herd.given_up, outcome.beside.given_up), (0, 0), "{}", outcome.line());
        // Each job is asked about once, together with whichever others wait at that moment.
        assert!(outcome.slurm.jobs <= 1 + small, "{} questions: {}", outcome.slurm.jobs, outcome.line());
    }
}
