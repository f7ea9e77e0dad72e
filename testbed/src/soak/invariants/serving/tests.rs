use super::super::fixture::{ask, fault, history};
use super::*;
use crate::soak::history::{Issued, Job, Revoked, Whom};

fn revoke(history: &mut History, asked: Ms, done: Option<Ms>) {
    history.revocations.push(Revoked {
        whom: Whom::User("alice".into()),
        users: ["alice".to_owned()].into(),
        asked,
        done,
        ..Revoked::default()
    });
}

fn runs(history: &mut History, seen: Ms, alive: Ms, over: Option<Ms>) {
    history.jobs.insert((7, 5), Job { seen, alive, over, ..Job::default() });
}

#[test]
fn service_after_a_revocation_is_caught_also_without_the_store() {
    let mut history = history();
    ask(&mut history, 20_000, 200);
    ask(&mut history, 31_900, 200);
    revoke(&mut history, 29_900, Some(30_000));
    assert_eq!(after_the_revocation(&history), [], "within the bound");
    ask(&mut history, 32_100, 200);
    history.sessions.clear();
    assert_eq!(after_the_revocation(&history).len(), 1);
    assert_eq!(judged(&history), (1, 1));
}

#[test]
fn a_node_that_said_that_it_follows_has_no_more_time() {
    let mut history = history();
    ask(&mut history, 20_000, 200);
    ask(&mut history, 30_100, 200);
    revoke(&mut history, 29_900, Some(30_000));
    fault(&mut history, Target::Credvend, 29_000, 29_500);
    assert_eq!(after_the_revocation(&history), []);
    history.revocations[0].unheard = Some(["n1".to_owned()].into());
    assert_eq!(after_the_revocation(&history), []);
    history.revocations[0].unheard = Some(["n2".to_owned()].into());
    assert_eq!(after_the_revocation(&history).len(), 1);
}

#[test]
fn a_session_that_was_over_long_before_is_judged_by_its_end() {
    let mut history = history();
    ask(&mut history, 20_000, 200);
    ask(&mut history, 990_000, 200);
    revoke(&mut history, 899_900, Some(900_000));
    let session = history.sessions.get_mut("s").unwrap();
    (session.status, session.ended) = ("COMPLETED".into(), Some(59_000));
    assert_eq!((after_the_revocation(&history).len(), after_the_sessions_end(&history).len()), (0, 1));
    for lately in [60_000, 899_000, 901_000] {
        history.sessions.get_mut("s").unwrap().ended = Some(lately);
        assert_eq!(after_the_revocation(&history).len(), 1, "its nodes are told");
    }
}

#[test]
fn projects_jobs_and_nodes_are_revoked_too() {
    let mut history = history();
    ask(&mut history, 20_000, 200);
    ask(&mut history, 90_000, 200);
    revoke(&mut history, 29_900, Some(30_000));
    let mut found = |whom| {
        history.revocations[0].whom = whom;
        after_the_revocation(&history).len()
    };
    assert_eq!([Whom::Project("genomics".into()), Whom::Job(7), Whom::Node("n1".into())].map(&mut found), [1; 3]);
    assert_eq!([Whom::Project("climate".into()), Whom::Job(8), Whom::Node("n2".into())].map(&mut found), [0; 3]);
}

/// As job 236 of seed 777: its first run was on n1, it was requeued onto n3, and then n1 was revoked.
#[test]
fn a_node_is_revoked_for_the_run_that_has_it_and_not_for_an_earlier_one() {
    let mut history = history();
    let on = |seen, over, nodes: &[&str]| {
        let nodes = nodes.iter().map(|&node| node.to_owned()).collect();
        Job { seen, over, nodes, ..Job::default() }
    };
    history.jobs.insert((7, 5), on(1_000, Some(9_500), &["n3", "n2"]));
    history.jobs.insert((7, 6), on(9_800, None, &["n1"]));
    history.runs.get_mut("r").unwrap().begin.restart = 1;
    ask(&mut history, 20_000, 200);
    ask(&mut history, 90_000, 200);
    revoke(&mut history, 29_900, Some(30_000));
    history.revocations[0].whom = Whom::Node("n3".into());
    assert_eq!(after_the_revocation(&history), []);
    // Its first run's record outlived that run's end in our eyes: still another node's.
    history.jobs.insert((7, 5), on(1_000, Some(11_000), &["n3", "n2"]));
    assert_eq!(after_the_revocation(&history), []);
    // The other node of the same run counts.
    history.jobs.insert((7, 6), on(9_800, None, &["n1", "n3"]));
    assert_eq!(after_the_revocation(&history).len(), 1);
    // Both runs were on this node; a look came late.
    history.jobs.insert((7, 5), on(1_000, Some(11_000), &["n1", "n3"]));
    history.jobs.insert((7, 6), on(11_000, None, &["n1"]));
    assert_eq!(after_the_revocation(&history), []);
    history.runs.get_mut("r").unwrap().begin.restart = 0;
    assert_eq!(after_the_revocation(&history).len(), 1);
}

#[test]
fn a_revocation_that_credvend_did_not_confirm_and_later_jobs_prove_nothing() {
    let mut history = history();
    revoke(&mut history, 15_000, Some(15_100));
    ask(&mut history, 30_000, 200);
    assert_eq!(after_the_revocation(&history), [], "its session was opened after the revocation");
    revoke(&mut history, 40_000, None);
    ask(&mut history, 90_000, 200);
    assert_eq!(after_the_revocation(&history), []);
}

#[test]
fn a_node_that_could_not_hear_has_its_own_bound_and_not_more() {
    let mut history = history();
    ask(&mut history, 20_000, 200);
    revoke(&mut history, 29_900, Some(30_000));
    fault(&mut history, Target::Network("n1".into()), 28_000, 36_000);
    ask(&mut history, 50_000, 200);
    assert_eq!(after_the_revocation(&history), [], "36 s, 16 + 2 + 3 s to connect, 2 s");
    assert_eq!(judged(&history), (1, 0));
    ask(&mut history, 60_000, 200);
    assert_eq!(after_the_revocation(&history).len(), 1);
    history.faults[0].fault.target = Target::Network("n2".into());
    assert_eq!(judged(&history), (1, 1), "another node's wire excuses nothing");
    history.faults[0].fault.target = Target::Network("n1".into());
    history.faults[0].until = None;
    assert_eq!(after_the_revocation(&history), [], "it is still unplugged");
}

#[test]
fn where_the_partition_says_so_an_unplugged_node_stops_by_itself() {
    let mut history = history();
    ask(&mut history, 20_000, 200);
    revoke(&mut history, 29_900, Some(30_000));
    fault(&mut history, Target::Network("n1".into()), 28_000, 90_000);
    ask(&mut history, 63_000, 200);
    assert_eq!(after_the_revocation(&history), []);
    history.runs.get_mut("r").unwrap().begin.partition = CAUTIOUS.into();
    assert_eq!(after_the_revocation(&history).len(), 1);
}

#[test]
fn service_after_the_sessions_end_is_caught() {
    let mut history = history();
    ask(&mut history, 20_000, 200);
    ask(&mut history, 40_000, 200);
    let end = |history: &mut History, status: &str, at| {
        let session = history.sessions.get_mut("s").unwrap();
        (session.status, session.ended) = (status.into(), Some(at));
    };
    end(&mut history, "INVALIDATED", 39_000);
    assert_eq!(after_the_sessions_end(&history), []);
    end(&mut history, "INVALIDATED", 37_000);
    assert_eq!(after_the_sessions_end(&history).len(), 1);
    end(&mut history, "COMPLETED", 37_000);
    assert_eq!(after_the_sessions_end(&history), []);
    end(&mut history, "COMPLETED", 30_000);
    assert_eq!(after_the_sessions_end(&history).len(), 1);
    fault(&mut history, Target::Slurmd("n1".into()), 25_000, 27_000);
    assert_eq!(after_the_sessions_end(&history), [], "slurmd may not have been told to end it");
}

#[test]
fn a_final_no_needs_a_cause() {
    let mut history = history();
    ask(&mut history, 20_000, 200);
    ask(&mut history, 30_000, 403);
    runs(&mut history, 9_000, 33_000, None);
    assert_eq!(refused_without_cause(&history), [], "it may be about to end");
    runs(&mut history, 9_000, 60_000, None);
    assert_eq!(refused_without_cause(&history).len(), 1);
    runs(&mut history, 9_000, 30_500, Some(31_000));
    assert_eq!(refused_without_cause(&history), []);
    runs(&mut history, 9_000, 60_000, None);
    revoke(&mut history, 29_000, Some(29_100));
    assert_eq!(refused_without_cause(&history), []);
    history.revocations[0].whom = Whom::User("alicette".into());
    assert_eq!(refused_without_cause(&history).len(), 1);
}

#[test]
fn a_keeper_that_hangs_is_no_cause_to_refuse() {
    let mut history = history();
    ask(&mut history, 30_000, 403);
    runs(&mut history, 9_000, 60_000, None);
    history.runs.get_mut("r").unwrap().refusals[0].1 = "UnknownToken".into();
    fault(&mut history, Target::CreddServer("n1".into()), 29_000, 31_000);
    fault(&mut history, Target::Credd("n1".into()), 29_000, 31_000);
    assert_eq!(refused_without_cause(&history).len(), 1);
}

#[test]
fn a_job_without_its_environment_is_caught() {
    let mut history = history();
    assert_eq!(unequipped(&history), []);
    history.runs.get_mut("r").unwrap().begin.equipped = false;
    fault(&mut history, Target::Credd("n1".into()), 9_000, 11_000);
    assert_eq!(unequipped(&history).len(), 1);
    fault(&mut history, Target::Slurmctld, 2_000, 3_000);
    assert_eq!(unequipped(&history).len(), 1, "also where slurmd ran no prolog");
    revoke(&mut history, 10_500, Some(11_500));
    assert_eq!(unequipped(&history).len(), 1, "revoked after it had begun");
    revoke(&mut history, 8_000, Some(9_000));
    assert_eq!(unequipped(&history), [], "revoked before it began");
}

#[test]
fn to_be_left_without_credentials_needs_a_fault() {
    let mut history = history();
    ask(&mut history, 30_000, 200);
    for at in (40_000..=49_000).step_by(1_000) {
        ask(&mut history, at, 503);
    }
    assert_eq!(left_without(&history), []);
    ask(&mut history, 51_000, 0);
    assert_eq!(left_without(&history).len(), 1);
    fault(&mut history, Target::Slurmd("n1".into()), 39_000, 45_000);
    assert_eq!(left_without(&history).len(), 1, "slurmd has no part in it");
    fault(&mut history, Target::Credvend, 39_000, 41_000);
    assert_eq!(left_without(&history), []);
    // The outage is long over, and it goes on.
    for at in (52_000..=90_000).step_by(1_000) {
        ask(&mut history, at, 503);
    }
    assert_eq!(left_without(&history).len(), 1);
}

#[test]
fn a_success_in_between_ends_the_streak() {
    let mut history = history();
    for at in (30_000..90_000).step_by(8_000) {
        ask(&mut history, at, 503);
        ask(&mut history, at + 4_000, 200);
    }
    assert_eq!(left_without(&history), []);
}

#[test]
fn a_strangers_key_is_caught() {
    let mut history = history();
    ask(&mut history, 20_000, 200);
    assert_eq!(another_identity(&history), []);
    let sound = history.issued["K"].clone();
    for issued in [
        Issued { user: "bob".into(), ..sound.clone() },
        Issued { project: "climate".into(), ..sound.clone() },
        Issued { node: Some("n2".into()), ..sound.clone() },
    ] {
        history.issued.insert("K".into(), issued);
        assert_eq!(another_identity(&history).len(), 1);
    }
    history.issued.insert("K".into(), Issued { node: None, ..sound });
    assert_eq!(another_identity(&history), [], "one AssumeRole may serve all nodes of a job");
    history.sessions.get_mut("s").unwrap().restart = 1;
    assert_eq!(another_identity(&history).len(), 1);
}

#[test]
fn a_job_whose_number_was_given_again_may_get_the_earlier_ones_until_the_node_is_told() {
    let given_again = || {
        let mut history = history();
        ask(&mut history, 20_000, 200);
        history.runs.get_mut("r").unwrap().begin.account = "climate".into();
        let session = history.sessions.get_mut("s").unwrap();
        session.nodes = ["n1".to_owned()].into();
        session.ended = Some(19_500);
        history.jobs.insert((7, 9), Job::default());
        fault(&mut history, Target::Slurmctld, 9_000, 9_500);
        history.faults.last_mut().unwrap().fault.how = How::Kill;
        history
    };
    assert_eq!(another_identity(&given_again()), []);
    let caught = |spoil: fn(&mut History)| {
        let mut history = given_again();
        spoil(&mut history);
        !another_identity(&history).is_empty()
    };
    assert!(caught(|history| history.faults.clear()), "slurmctld lost nothing");
    assert!(caught(|history| history.jobs.clear()), "there was one job only");
    assert!(
        caught(|history| history.sessions.get_mut("s").unwrap().ended = Some(10_000)),
        "the node was told long ago"
    );
    assert!(caught(|history| history.sessions.get_mut("s").unwrap().user = "bob".into()), "another user's");
    assert!(caught(|history| history.sessions.get_mut("s").unwrap().nodes.clear()), "it was elsewhere");
}

#[test]
fn what_aws_says_counts_and_bob_is_not_bobby() {
    let mut history = history();
    let mut says = |user: &str, arn: &str| {
        let run = history.runs.get_mut("r").unwrap();
        run.begin.user = user.into();
        run.identities = vec![arn.into()];
        another_identity(&history).len()
    };
    assert_eq!(says("bob", "arn:aws:sts::1:assumed-role/genomics/lab-bob-n1"), 0);
    assert_eq!(says("bob", "arn:aws:sts::1:assumed-role/genomics/lab-bobby-n1"), 1);
    assert_eq!(says("bob", "arn:aws:sts::1:assumed-role/climate/lab-bob-n1"), 1);
    assert_eq!(says("bob", "Unable to locate credentials"), 0, "an outage, which others judge");
}

#[test]
fn a_key_that_the_store_does_not_know_is_caught_when_all_are_read() {
    let mut history = history();
    ask(&mut history, 20_000, 200);
    history.issued.clear();
    assert_eq!(unknown_keys(&history), []);
    history.all_issued = true;
    assert_eq!(unknown_keys(&history).len(), 1);
}

#[test]
fn other_statuses_are_wrong() {
    let mut history = history();
    ask(&mut history, 20_000, 429);
    ask(&mut history, 21_000, 500);
    assert_eq!(wrong_answers(&history).len(), 2);
}
