//! Which fault when, to whom, for how long; and who is revoked when: all from the seed.

use std::time::Duration;

use super::clock::Ms;
use super::dice::Dice;
use super::faults::{Fault, How, Target};

/// Whose credentials are revoked now and then. Never bobby's: he is the bystander whose name begins like bob's.
pub const REVOKED: [&str; 2] = ["alice", "bob"];

/// Faults that follow each other with short pauses; then it is quiet.
const ROUND: u64 = 5;

/// A revocation in a quiet time comes so long before its end.
const WATCHED: Ms = 4_000;

/// How long nothing is done after a round but to revoke: longer than nodes wait before they try credvend again after the
/// faults of these lengths (`invariants::reconnected`), so that the strict bound holds for that revocation.
fn quiet(length: Length) -> Ms {
    super::invariants::reconnected(longest(length)) + WATCHED + 500
}

/// The longest of the usual faults.
fn longest(length: Length) -> Ms {
    match length {
        Length::Short => 3_000,
        Length::Long => 6_000,
    }
}

/// One thing that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// A fault, and for how long it lasts.
    Fault(Fault, Ms),
    /// Credentials are revoked.
    Revoke(Wanted),
}

/// Whose credentials are to be revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// This user's.
    User(&'static str),
    /// This project's.
    Project(&'static str),
    /// Some job's: of those that run then, in the order of their ids, the one that this number falls on.
    Job(u64),
    /// Of every job that has this node.
    Node(&'static str),
}

/// Mostly a user, each in turn; now and then something else. A node and `shared` would end a survivor, so not in a short run.
fn whom(dice: &mut Dice, nth: &mut usize, length: Length) -> Wanted {
    *nth += 1;
    match dice.between(0, 10) {
        0 | 1 => Wanted::Job(dice.between(0, 1_000)),
        2 => Wanted::Project(dice.one::<&str>(&["climate", "shared"][..if length == Length::Long { 2 } else { 1 }])),
        3 if length == Length::Long => Wanted::Node("n1"),
        _ => Wanted::User(REVOKED[*nth % 2]),
    }
}

/// When, since the begin.
pub type Planned = (Ms, Deed);

/// How hard it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// Faults of a few seconds: a run of a minute.
    Short,
    /// Now and then also one that lasts until Slurm gives the node up.
    Long,
}

/// The whole schedule, in the order of time. Faults of one target never overlap, and at most two are in force at a time.
pub fn schedule(seed: u64, lasts: Duration, nodes: &[String], length: Length) -> Vec<Planned> {
    let mut dice = Dice::new(seed, "faults");
    let end = Ms::try_from(lasts.as_millis()).unwrap_or(Ms::MAX);
    let mut plan: Vec<Planned> = Vec::new();
    let mut deck = Vec::new();
    let (mut at, mut nth) = (2_000, 0);
    // A revocation in the midst of things now and then, and one in every quiet time: the strict bound holds there.
    let mut revoke_next = 0;
    while at < end {
        let fault = draw(&mut deck, &mut dice, nodes);
        let lasts = duration(&mut dice, &fault, length);
        plan.push((at, Deed::Fault(fault.clone(), lasts)));
        nth += 1;
        if dice.once_in(3) {
            let when = at + dice.between(0, lasts + 1000);
            plan.push((when, Deed::Revoke(whom(&mut dice, &mut revoke_next, length))));
        }
        let mut over = at + lasts;
        if dice.once_in(2) {
            let other = draw(&mut deck, &mut dice, nodes);
            if other.target != fault.target && !together_nothing_goes(&fault, &other) {
                let begin = at + dice.between(0, lasts.max(2));
                let lasts = duration(&mut dice, &other, length);
                over = over.max(begin + lasts);
                plan.push((begin, Deed::Fault(other, lasts)));
            } else {
                deck.push(other);
            }
        }
        at = over + dice.between(500, if length == Length::Long { 4_000 } else { 1_500 });
        if nth % ROUND == 0 {
            // By whom the standing jobs are, so that there is somebody to judge it by.
            revoke_next += 1;
            plan.push((at + quiet(length) - WATCHED, Deed::Revoke(Wanted::User(REVOKED[revoke_next % 2]))));
            at += quiet(length);
        }
    }
    plan.retain(|(at, deed)| match deed {
        Deed::Fault(_, lasts) => at + lasts <= end,
        Deed::Revoke(_) => *at <= end,
    });
    plan.sort_by_key(|(at, _)| *at);
    plan
}

/// Faults come like cards: every kind once before any comes again.
fn draw(deck: &mut Vec<Fault>, dice: &mut Dice, nodes: &[String]) -> Fault {
    if deck.is_empty() {
        *deck = all(nodes);
        for left in (1..deck.len()).rev() {
            let other = usize::try_from(dice.between(0, left as u64 + 1)).unwrap_or_default();
            deck.swap(left, other);
        }
    }
    deck.pop().unwrap_or(Fault { target: Target::Credvend, how: How::Kill })
}

/// A deck: each kind of fault, at a place or two. The last node's credd is never killed: its memory is watched over the
/// whole run.
fn all(nodes: &[String]) -> Vec<Fault> {
    use How::{Freeze, Kill, Restart, Unplug};
    let (witness, others) = nodes.split_last().expect("a cluster has nodes");
    let mut faults = Vec::new();
    let mut add = |target: Target, hows: &[How]| {
        faults.extend(hows.iter().map(|&how| Fault { target: target.clone(), how }));
    };
    for node in others {
        add(Target::Credd(node.clone()), &[Kill, Freeze, Restart]);
        add(Target::CreddServer(node.clone()), &[Kill, Freeze]);
    }
    add(Target::Credd(witness.clone()), &[Freeze]);
    for node in nodes {
        add(Target::Network(node.clone()), &[Unplug]);
    }
    add(Target::Slurmd(nodes[0].clone()), &[Kill, Freeze]);
    add(Target::Slurmd(witness.clone()), &[Restart]);
    add(Target::Munged(nodes[0].clone()), &[Kill, Freeze]);
    add(Target::Munged("head".into()), &[Restart]);
    for _ in 0..2 {
        add(Target::Credvend, &[Kill, Freeze, Restart]);
    }
    add(Target::Slurmctld, &[Kill, Freeze, Restart]);
    add(Target::Aws, &[Freeze]);
    faults
}

/// Whether the two together only make everything stand still, which shows nothing.
fn together_nothing_goes(one: &Fault, other: &Fault) -> bool {
    let central = |fault: &Fault| fault.target.host() == "head";
    (central(one) && central(other)) || one.target.host() == other.target.host()
}

fn duration(dice: &mut Dice, fault: &Fault, length: Length) -> Ms {
    let (low, high) = match (&fault.target, fault.how) {
        (Target::CreddServer(_), How::Kill) => (300, 1_500),
        (_, How::Restart) => (100, 1_500),
        (Target::Slurmd(_) | Target::Munged(_) | Target::Slurmctld, _) => (1_000, 5_000),
        _ => (800, 6_000),
    };
    let high = high.min(longest(length));
    let usual = dice.between(low, high);
    let longer = dice.once_in(10) && fault.how != How::Restart;
    // Beyond SlurmdTimeout, so that Slurm gives up a node that it does not reach.
    if longer && length == Length::Long { usual + dice.between(20_000, 40_000) } else { usual }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn nodes() -> Vec<String> {
        ["n1", "n2", "n3"].map(str::to_owned).to_vec()
    }

    fn spans(plan: &[Planned]) -> Vec<(Ms, Ms, &Fault)> {
        plan.iter()
            .filter_map(|(at, deed)| match deed {
                Deed::Fault(fault, lasts) => Some((*at, at + lasts, fault)),
                Deed::Revoke(_) => None,
            })
            .collect()
    }

    #[test]
    fn a_seed_is_a_schedule() {
        let of = |seed| schedule(seed, Duration::from_secs(300), &nodes(), Length::Long);
        assert_eq!(of(3), of(3));
        assert_ne!(of(3), of(4));
    }

    #[test]
    fn faults_leave_something_going_end_in_time_and_leave_quiet_times() {
        for seed in 0..50 {
            let plan = schedule(seed, Duration::from_secs(600), &nodes(), Length::Long);
            let spans = spans(&plan);
            for (n, (from, until, fault)) in spans.iter().enumerate() {
                assert!(*until <= 600_000);
                let meanwhile: Vec<_> =
                    spans.iter().enumerate().filter(|(m, s)| *m != n && s.0 < *until && *from < s.1).collect();
                assert!(meanwhile.len() <= 1, "seed {seed}: {fault} and {meanwhile:?}");
                for (_, (.., other)) in meanwhile {
                    assert!(!together_nothing_goes(fault, other), "seed {seed}: {fault} with {other}");
                }
                assert!(!(matches!(&fault.target, Target::Credd(node) if node == "n3") && fault.how != How::Freeze));
            }
            let mut ends: Vec<Ms> = vec![0];
            let mut times = 0;
            for (from, until, _) in &spans {
                times += u32::from(from.saturating_sub(*ends.iter().max().unwrap()) >= quiet(Length::Long));
                ends.push(*until);
            }
            assert!(times >= 3, "seed {seed}: {times} quiet times");
        }
    }

    #[test]
    fn in_ten_minutes_every_kind_comes_and_both_users_are_revoked() {
        let plan = schedule(1, Duration::from_secs(600), &nodes(), Length::Short);
        let kinds: BTreeSet<_> = spans(&plan).iter().map(|(_, _, f)| (f.target.kind(), f.how)).collect();
        let possible: BTreeSet<_> = all(&nodes()).iter().map(|f| (f.target.kind(), f.how)).collect();
        assert_eq!(kinds, possible);
        for user in REVOKED {
            assert!(plan.iter().any(|(_, deed)| *deed == Deed::Revoke(Wanted::User(user))));
        }
    }
}
