use std::sync::atomic::Ordering;

use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::node_api::AttestRequest;
use credd_protocol::{SessionId, Uid};
use time::Duration;

use super::world::*;
use crate::attest::JobState;
use crate::vending::Node;

#[tokio::test]
async fn a_job_is_opened_with_slurms_facts_and_joined_by_its_nodes() {
    let w = World::new();
    w.slurm.run(7, "alice", "climate", &["n1", "n2"]);
    let one = w.open(7).await;
    assert_eq!((one.user.as_str(), one.project.as_str()), ("alice", "Climate"));
    assert_eq!(one.roles.iter().map(|r| r.as_str()).collect::<Vec<_>>(), ["default", "train"]);
    assert_eq!(w.try_open("n2", 7).await.unwrap(), one);
    assert_eq!(w.open(7).await, one, "again is the same");
    let session = w.session(one.session).await;
    assert_eq!((session.status, session.nodes.len()), (SessionStatus::Active, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_openers_make_one_session() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (vending, record) = (w.vending.clone(), w.record(7));
        callers.spawn(async move { vending.open_for_node(&node("n1"), &record).await.unwrap().session });
    }
    let mut sessions: Vec<SessionId> = callers.join_all().await;
    sessions.dedup();
    assert_eq!(sessions.len(), 1);
    assert_eq!(w.slurm.asked_accounts.load(Ordering::SeqCst), 1, "one question about accounts");
}

#[tokio::test]
async fn what_slurm_does_not_say_is_refused() {
    let w = World::new();
    assert_eq!(refused(w.try_open("n1", 6).await).0, "JobNotRunning");
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    for state in [JobState::Completing, JobState::Pending, JobState::Over] {
        w.slurm.change(7, |f| f.state = state);
        let (code, retry, why) = refused(w.try_open("n1", 7).await);
        assert_eq!((code, retry), ("JobNotRunning", false), "{why}");
        assert!(why.contains("job 7") && why.contains("lab"), "{why}");
    }
    w.slurm.change(7, |f| f.state = JobState::Running);
    let (code, retry, why) = refused(w.try_open("n2", 7).await);
    assert!(code == "NotOnNode" && !retry && why.contains("job 7") && why.contains("n2"), "{why}");
    w.slurm.silent();
    w.clock.advance(Duration::seconds(6));
    let (code, retry, why) = refused(w.try_open("n1", 7).await);
    assert!(code == "Unavailable" && retry && why.contains("connection refused"), "{why}");
    assert!(w.store.list(&Default::default(), None).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_record_that_contradicts_slurm_is_refused() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    w.slurm.change(7, |f| f.restart = 2);
    let good = w.record(7);
    let mut uid = good.clone();
    uid.uid = Uid(0);
    let mut account = good.clone();
    account.account = Some("climate".parse().unwrap());
    let (mut earlier, mut later) = (good.clone(), good.clone());
    earlier.restart = 1;
    later.restart = 3;
    let mut partition = good.clone();
    partition.partition = Some("train".parse().unwrap());
    let wrong =
        [("uid", uid), ("account", account), ("restart", earlier), ("restart", later), ("partition", partition)];
    for (what, record) in wrong {
        let (code, retry, why) = refused(w.vending.open_for_node(&node("n1"), &record).await);
        assert_eq!((code, retry), ("Contradicted", false));
        assert!(why.contains(what) && why.contains("job 7") && why.contains("n1"), "{why}");
    }
    // An older Slurm leaves an account's case in the job's environment; a record may lack it altogether.
    let (mut upper, mut without) = (good.clone(), good);
    upper.account = Some("Genomics".parse().unwrap());
    (without.account, without.partition) = (None, None);
    assert!(w.vending.open_for_node(&node("n1"), &upper).await.is_ok());
    assert!(w.vending.open_for_node(&node("n1"), &without).await.is_ok());
}

#[tokio::test]
async fn a_node_that_knows_only_the_uid_is_told_what_slurm_says_now_and_nothing_is_opened() {
    let w = World::new();
    let attest = async |name: &str, id: u32, uid: Uid| {
        let request = AttestRequest { job: id.try_into().unwrap(), uid };
        w.vending.attest_for_node(&node(name), &request).await
    };
    let alice = uid_of("alice");
    assert_eq!(attest("n1", 6, alice).await.unwrap_err().code(), "JobNotRunning");
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let facts = attest("n1", 7, alice).await.unwrap();
    assert_eq!((facts.user.as_str(), facts.partition.as_str(), facts.restart), ("alice", "batch", 0));
    assert_eq!((facts.cluster.as_str(), facts.node.as_str()), ("lab", "n1"));
    assert_eq!(facts.account.unwrap().as_str(), "genomics");
    assert_eq!(attest("n1", 7, uid_of("bob")).await.unwrap_err().code(), "Contradicted");
    assert_eq!(attest("n2", 7, alice).await.unwrap_err().code(), "NotOnNode");
    // A moment later it is another run: what was kept of the first one is not told.
    w.slurm.change(7, |f| (f.restart, f.partition) = (1, "train".parse().unwrap()));
    let facts = attest("n1", 7, alice).await.unwrap();
    assert_eq!((facts.partition.as_str(), facts.restart), ("train", 1));
    for state in [JobState::Pending, JobState::Over] {
        w.slurm.change(7, |f| f.state = state);
        assert_eq!(attest("n1", 7, alice).await.unwrap_err().code(), "JobNotRunning");
    }
    w.slurm.change(7, |f| f.state = JobState::Completing);
    assert_eq!(attest("n1", 7, alice).await.unwrap_err().code(), "Unavailable");
    assert!(w.store.list(&Default::default(), None).await.unwrap().items.is_empty());
    w.slurm.silent();
    let refusal = attest("n1", 7, alice).await.unwrap_err();
    assert!(refusal.code() == "Unavailable" && refusal.retry());
}

#[tokio::test]
async fn without_a_project_there_is_no_session() {
    let w = World::new();
    w.slurm.run(7, "alice", "unheard", &["n1"]);
    let (code, retry, why) = refused(w.try_open("n1", 7).await);
    assert!(code == "UnknownProject" && retry && why.contains("unheard"), "an administrator may add it: {why}");
    w.slurm.change(7, |f| f.account = None);
    assert_eq!(refused(w.try_open("n1", 7).await).0, "NoAccount");
    // The id of a project is no account: Slurm writes those in lower case.
    w.slurm.run(8, "alice", "Climate", &["n1"]);
    assert_eq!(refused(w.try_open("n1", 8).await).0, "UnknownProject");
}

#[tokio::test]
async fn accounts_must_be_enforced_or_trusted() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    *w.slurm.unenforced.lock().unwrap() = Some("AccountingStorageEnforce=none".into());
    let (code, retry, why) = refused(w.try_open("n1", 7).await);
    assert!(code == "AccountsNotEnforced" && retry && why.contains("AccountingStorageEnforce=none"), "{why}");
    *w.slurm.unenforced.lock().unwrap() = None;
    assert_eq!(refused(w.try_open("n1", 7).await).0, "AccountsNotEnforced", "remembered");
    w.clock.advance(Duration::seconds(11));
    w.open(7).await;
    let asked = w.slurm.asked_accounts.load(Ordering::SeqCst);
    w.clock.advance(Duration::seconds(50));
    w.open(7).await;
    assert_eq!(w.slurm.asked_accounts.load(Ordering::SeqCst), asked);
    w.clock.advance(Duration::seconds(11));
    w.open(7).await;
    assert_eq!(w.slurm.asked_accounts.load(Ordering::SeqCst), asked + 1);

    let trusting = World::with(|c| c.trust_unenforced_accounts = true);
    *trusting.slurm.unenforced.lock().unwrap() = Some("no slurmdbd".into());
    trusting.slurm.run(7, "alice", "genomics", &["n1"]);
    trusting.open(7).await;
}

#[tokio::test]
async fn other_clusters_nodes_get_nothing() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let session = w.open(7).await.session;
    let stranger = Node { cluster: "nowhere".parse().unwrap(), ..node("n1") };
    assert_eq!(refused(w.vending.open_for_node(&stranger, &w.record(7)).await).0, "UnknownCluster");
    let headed = Node { cluster: "hpc".parse().unwrap(), ..node("n1") };
    assert_eq!(refused(w.vending.open_for_node(&headed, &w.record(7)).await).0, "NotAllowed");
    let request =
        credd_protocol::node_api::CredentialsRequest { role: Default::default(), min_life_seconds: 0, heard: 0 };
    assert_eq!(refused(w.vending.credentials_for_node(&headed, session, &request).await).0, "NotAllowed");
}

#[tokio::test]
async fn a_node_of_a_cluster_with_the_very_same_job_does_not_get_anothers_session() {
    let w = World::with_both(|lab, hpc| hpc.attestor = lab.attestor.clone());
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let session = w.open(7).await.session;
    let there = Node { cluster: "hpc".parse().unwrap(), ..node("n1") };
    let request =
        credd_protocol::node_api::CredentialsRequest { role: Default::default(), min_life_seconds: 0, heard: 0 };
    assert_eq!(refused(w.vending.credentials_for_node(&there, session, &request).await).0, "UnknownSession");
    w.slurm.gone(7);
    w.vending.leave(&there, session).await.unwrap();
    assert_eq!(w.session(session).await.status, SessionStatus::Active);
}

#[tokio::test]
async fn a_node_that_was_told_to_renew_by_one_replica_gets_nothing_older_from_another() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let session = w.open(7).await.session;
    let elsewhere = w.replica();
    let ask = async |heard| {
        let request =
            credd_protocol::node_api::CredentialsRequest { role: Default::default(), min_life_seconds: 0, heard };
        w.vending.credentials_for_node(&node("n1"), session, &request).await.unwrap().credentials.access_key_id
    };
    let first = ask(0).await;
    assert_eq!(ask(0).await, first, "kept");
    let news = crate::store::News {
        kind: crate::store::NewsKind::Renew,
        sessions: vec![session],
        reason: "dead in AWS".into(),
        order: None,
        nodes: vec![],
        completed: vec![],
    };
    let seq = elsewhere.events().publish(&lab(), news).await.unwrap();
    assert_eq!(ask(seq - 1).await, first, "that node has not heard it, and this replica has not looked");
    let second = ask(seq).await;
    assert_ne!(second, first);
    assert_eq!(ask(seq).await, second, "kept");
}

#[tokio::test]
async fn credentials_carry_the_v1_name_and_nothing_else() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let session = w.open(7).await.session;
    let got = w.credentials("n1", session).await.unwrap();
    assert_eq!((got.session_name.as_str(), got.credentials.role_arn.role_name()), ("lab-alice-n1", "genomics"));
    let request = w.sts.requests.lock().unwrap()[0].clone();
    assert_eq!((request.session_name.as_str(), request.duration_seconds), ("lab-alice-n1", 3600));
    assert_eq!((request.source_identity, request.tags), (None, vec![]));
    // The role that opts in gets both.
    w.role("n1", session, "train", 0).await.unwrap();
    let request = w.sts.requests.lock().unwrap()[1].clone();
    assert_eq!(request.source_identity.as_deref(), Some("alice"));
    assert_eq!(request.tags.len(), 4);
    assert!(request.tags.contains(&("job".into(), "7".into())), "{:?}", request.tags);
    // Everything issued is on record.
    let of = crate::store::IssuedTo::Session(session);
    let issued = w.store.list_issuances(&of, crate::store::conformance::T0, None).await.unwrap().items;
    assert_eq!(issued.iter().map(|i| i.key_id.as_str()).collect::<Vec<_>>(), ["ASIA2", "ASIA1"]);
    let (code, _, why) = refused(w.role("n1", session, "admin", 0).await);
    assert!(code == "UnknownRole" && why.contains("default, train"), "{why}");
    assert_eq!(refused(w.credentials("n1", SessionId::random()).await).0, "UnknownSession");
}

#[tokio::test]
async fn only_the_jobs_nodes_get_credentials_and_a_node_that_left_loses_them() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1", "n2"]);
    let session = w.open(7).await.session;
    assert_eq!(refused(w.credentials("n3", session).await).0, "NotOnNode");
    let asked = w.slurm.asked_job.load(Ordering::SeqCst);
    w.credentials("n1", session).await.unwrap();
    assert_eq!(w.slurm.asked_job.load(Ordering::SeqCst), asked, "the opening attested n1 a moment ago");
    w.credentials("n2", session).await.unwrap();
    assert_eq!(w.slurm.asked_job.load(Ordering::SeqCst), asked, "n3's question named n1 and n2");

    w.slurm.change(7, |f| f.nodes = vec!["n1".parse().unwrap()]);
    w.clock.advance(Duration::seconds(61));
    w.credentials("n1", session).await.unwrap();
    assert_eq!(refused(w.credentials("n2", session).await).0, "NotOnNode");
    // Another run of the job under its number: not this session.
    w.clock.advance(Duration::seconds(61));
    w.slurm.change(7, |f| f.restart = 1);
    let (code, _, why) = refused(w.credentials("n1", session).await);
    assert!(code == "JobNotRunning" && why.contains("restart"), "{why}");
    w.slurm.change(7, |f| {
        f.restart = 0;
        f.uid = Uid(1);
    });
    assert_eq!(refused(w.credentials("n1", session).await).0, "Contradicted");
}

#[tokio::test]
async fn a_silent_slurm_costs_attested_nodes_nothing_for_a_while() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1", "n2"]);
    let session = w.open(7).await.session;
    w.slurm.silent();
    w.clock.advance(Duration::minutes(14));
    w.credentials("n1", session).await.unwrap();
    w.credentials("n2", session).await.unwrap();
    let (code, retry, _) = refused(w.credentials("n3", session).await);
    assert_eq!((code, retry), ("Unavailable", true), "n3 was not named");
    let (code, retry, _) = refused(w.try_open("n2", 7).await);
    assert_eq!((code, retry), ("Unavailable", true), "nothing is opened or joined on an old word");
    w.clock.advance(Duration::minutes(2));
    assert_eq!(refused(w.credentials("n1", session).await).0, "Unavailable");
    w.slurm.back();
    w.credentials("n1", session).await.unwrap();
}

#[tokio::test]
async fn another_users_job_under_the_same_number_gets_nothing_of_the_old_one() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    w.open(7).await;
    w.slurm.run(7, "bob", "genomics", &["n1"]);
    assert_eq!(refused(w.try_open("n1", 7).await).0, "Contradicted");
}

#[tokio::test]
async fn a_job_whose_account_was_changed_gets_neither_projects_credentials() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1", "n2"]);
    let (record, session) = (w.record(7), w.open(7).await.session);
    let get = async || {
        w.clock.advance(Duration::seconds(61));
        w.credentials("n1", session).await
    };
    for (account, now) in [
        (Some("climate"), "account climate, which is of project Climate"),
        (Some("elsewhere"), "account elsewhere, which is of no project"),
        (None, "no account"),
    ] {
        w.slurm.change(7, |f| f.account = account.map(|a| a.parse().unwrap()));
        // The node that has the session, and one that joins and knows the new account.
        for refusal in [refused(get().await), refused(w.try_open("n2", 7).await)] {
            let (code, retry, why) = refusal;
            assert!(code == "AccountChanged" && retry, "{code} {why}");
            assert!(why.contains("job 7 was started in project genomics") && why.contains(now), "{why}");
            assert!(why.contains("requeue"), "{why}");
        }
    }
    // One that joins with the account of the job's start is told what is wrong, too.
    w.slurm.change(7, |f| f.account = Some("climate".parse().unwrap()));
    let (code, _, why) = refused(w.vending.open_for_node(&node("n2"), &record).await);
    assert!(code == "Contradicted" && why.contains("changed after the job's start"), "{why}");
    // Undone, it goes on.
    w.slurm.change(7, |f| f.account = Some("genomics".parse().unwrap()));
    get().await.unwrap();
    assert_eq!(w.session(session).await.status, SessionStatus::Active);
}

#[tokio::test]
async fn a_job_that_is_ended_may_still_save_what_it_has() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1", "n2"]);
    let session = w.open(7).await.session;
    w.clock.advance(Duration::seconds(61));
    // Between SIGTERM and SIGKILL; n1 asks again, n2 for the first time.
    w.slurm.change(7, |f| f.state = JobState::Completing);
    w.credentials("n1", session).await.unwrap();
    assert_eq!(w.try_open("n2", 7).await.unwrap().session, session);
    w.credentials("n2", session).await.unwrap();
    // A node whose epilog is done is not one of the job's any more.
    w.slurm.change(7, |f| f.nodes = vec!["n2".parse().unwrap()]);
    w.clock.advance(Duration::seconds(61));
    assert_eq!(refused(w.credentials("n1", session).await).0, "NotOnNode");
    w.credentials("n2", session).await.unwrap();
}

#[tokio::test]
async fn a_user_who_is_renamed_or_has_no_name_any_more_is_the_same_to_a_running_job() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1", "n2"]);
    let session = w.open(7).await.session;
    let unknown = || Err("uid 1001 of job 7 has no name on the machine where credvend runs".to_owned());
    for name in [Ok("alicia".parse().unwrap()), unknown()] {
        w.slurm.change(7, |f| f.user = name);
        w.clock.advance(Duration::seconds(61));
        let vended = w.credentials("n1", session).await.unwrap();
        assert_eq!(vended.session_name, "lab-alice-n1", "the name that it was opened with");
        assert_eq!(w.try_open("n2", 7).await.unwrap().session, session);
        assert_eq!(w.vending.sweep().await.unwrap(), 0);
    }
    // No session begins without a name; it is asked for again.
    w.slurm.run(8, "alice", "genomics", &["n1"]);
    w.slurm.change(8, |f| f.user = unknown());
    let (code, retry, why) = refused(w.try_open("n1", 8).await);
    assert!(code == "Unavailable" && retry && why.contains("no name"), "{why}");
}

#[tokio::test]
async fn a_node_that_joins_a_running_job_is_remembered_among_its_nodes() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let session = w.open(7).await.session;
    assert_eq!(refused(w.try_open("n2", 7).await).0, "NotOnNode");
    w.slurm.change(7, |f| f.nodes.push("n2".parse().unwrap()));
    assert_eq!(w.try_open("n2", 7).await.unwrap().session, session);
    w.credentials("n2", session).await.unwrap();
    let nodes = w.session(session).await.nodes;
    assert_eq!(nodes.iter().map(|n| n.as_str()).collect::<Vec<_>>(), ["n1", "n2"]);
}

#[tokio::test]
async fn leaving_ends_a_session_only_if_slurm_agrees() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1", "n2"]);
    let session = w.open(7).await.session;
    let status = async || w.session(session).await.status;
    w.vending.leave(&node("n1"), session).await.unwrap();
    assert_eq!(status().await, SessionStatus::Active, "it runs on n2");
    w.slurm.change(7, |f| f.state = JobState::Completing);
    w.vending.leave(&node("n1"), session).await.unwrap();
    assert_eq!(status().await, SessionStatus::Active, "Slurm is not done with it");
    w.slurm.silent();
    w.clock.advance(Duration::seconds(3));
    let (code, retry, _) = refused(w.vending.leave(&node("n1"), session).await);
    assert_eq!((code, retry, status().await), ("Unavailable", true, SessionStatus::Active));
    w.slurm.back();
    // A node of another cluster, or about nothing: no error, no effect.
    w.slurm.gone(7);
    w.vending.leave(&node("n1"), SessionId::random()).await.unwrap();
    assert_eq!(status().await, SessionStatus::Active);
    w.vending.leave(&node("n2"), session).await.unwrap();
    assert_eq!(status().await, SessionStatus::Completed);
    w.vending.leave(&node("n2"), session).await.unwrap();
    let (code, retry, why) = refused(w.credentials("n1", session).await);
    assert!(code == "SessionEnded" && !retry && why.contains("COMPLETED"), "{why}");
}

#[tokio::test]
async fn a_requeued_job_is_a_new_session_and_a_late_leave_of_the_old_one_touches_nothing() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let old = w.open(7).await.session;
    w.slurm.change(7, |f| f.restart = 1);
    let new = w.open(7).await.session;
    assert_ne!(old, new);
    assert_eq!(w.session(old).await.status, SessionStatus::Completed);
    assert!(w.session(old).await.why.unwrap().contains("requeued"));
    w.credentials("n1", new).await.unwrap();
    // Only now comes the node's leave of the old run, and once more: the new one is active, and stays so.
    let before = w.session(new).await;
    assert_eq!(before.status, SessionStatus::Active);
    for _ in 0..2 {
        w.vending.leave(&node("n1"), old).await.unwrap();
        assert_eq!(w.session(new).await, before);
    }
    w.clock.advance(time::Duration::minutes(2));
    w.credentials("n1", new).await.unwrap();
    // Nobody has opened the next run yet: this one's session gets nothing more all the same.
    w.slurm.change(7, |f| f.restart = 2);
    w.clock.advance(time::Duration::minutes(2));
    assert_eq!(refused(w.credentials("n1", new).await).0, "JobNotRunning");
}

/// What nodes have said about their part of a session's end is of use for the news of COMPLETED alone.
#[tokio::test]
async fn the_leaves_of_a_revoked_session_are_forgotten() {
    let w = World::new();
    w.slurm.run(1, "bob", "genomics", &["n1", "n2"]);
    let session = w.open(1).await.session;
    w.vending.leave(&node("n1"), session).await.unwrap();
    assert_eq!(w.vending.events().remembered_leaves(), (1, 1));
    w.vending.invalidate_user("root", None, &"bob".parse().unwrap()).await.unwrap();
    assert_eq!(w.session(session).await.status, SessionStatus::Invalidated);
    assert_eq!(w.vending.events().remembered_leaves(), (0, 0));
}
