//! A short soak: faults from a fixed seed, what must hold checked all the while, and then things broken behind the
//! harness's back, each of which it must notice. `make soak` is the long one; docs/torture.md explains both.
#![forbid(unsafe_code)]

use testbed::soak::{Options, Soak, locked, plan, report, sabotage};
use testbed::{Cluster, soak};

/// Kills, freezes, restarts and unplugs something of everything within its 50 seconds: see `the_seed_is_a_good_one`.
const SEED: u64 = 7872;

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn what_must_hold_holds_and_what_is_broken_is_noticed() {
    let cluster = Cluster::up(plan()).expect("the cluster comes up");
    let soak = Soak::new(&cluster).expect("the client is there");
    let tell = |line: &str| println!("{line}");
    let outcome = soak.run(&Options::short(SEED), &tell).expect("the harness goes on");
    println!("{}", report::text(SEED, &outcome));
    if !outcome.violations.is_empty() {
        let kept = report::keep(cluster.run_dir(), SEED, &outcome).expect("the logs are kept");
        panic!(
            "{} violations; seed {SEED}; logs and history are in {}\n{}\n{:#?}",
            outcome.violations.len(),
            kept.display(),
            report::deeds(&outcome.history),
            outcome.violations
        );
    }
    // A run in which nothing happened would prove nothing.
    let history = &outcome.history;
    assert!(history.faults.len() >= 8 && history.revocations.len() >= 2, "{}", report::deeds(history));
    assert!(history.runs.len() >= 20 && history.counts.answers.get(&200).is_some_and(|n| *n >= 100));
    assert!(outcome.judged.1 > 0, "no revocation was judged with the strict bound: {:?}", outcome.judged);

    *locked(&soak.history) = outcome.history;
    let caught = sabotage::all(&soak, &tell).expect("every sabotage is noticed");
    assert_eq!(caught.len(), 4);
}

#[test]
fn the_seed_is_a_good_one() {
    let options = Options::short(SEED);
    let nodes = ["n1", "n2", "n3"].map(str::to_owned);
    let plan = soak::schedule::schedule(SEED, options.lasts, &nodes, options.length);
    let (mut kinds, mut hows) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    for (_, deed) in &plan {
        if let soak::schedule::Deed::Fault(fault, _) = deed {
            kinds.insert(fault.target.kind());
            hows.insert(fault.how);
        }
    }
    assert_eq!(hows.len(), 4, "{plan:#?}");
    for kind in ["credd", "credd's server", "credvend", "slurmctld", "slurmd", "network"] {
        assert!(kinds.contains(kind), "no {kind} in {plan:#?}");
    }
}
