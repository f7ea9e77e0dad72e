use credd_protocol::credentials_api_v1::{OpenSession, SessionStatus};
use credd_protocol::{SessionId, TokenHash};
use time::Duration;

use super::world::*;
use crate::refusal::Refusal;
use crate::store::{Origin, Session};
use crate::vending::{Head, HeadOpened, Vending};

fn post(id: &str, submitted: &str) -> OpenSession {
    OpenSession {
        session_id: id.into(),
        project_id: "Climate".parse().unwrap(),
        cluster_name: lab(),
        cluster_user: "user1".parse().unwrap(),
        submitted_time: submitted.into(),
    }
}

async fn open(w: &World, id: &str, submitted: &str) -> HeadOpened {
    w.vending.open_for_head(&head(), &post(id, submitted)).await.unwrap()
}

async fn get(w: &World, token: &str, id: &str, project: &str) -> Result<String, Refusal> {
    let token = TokenHash::of(token);
    let claimed = Some("lab-victim-n9\n");
    let got = w.vending.credentials_for_token(token, id, &lab(), &project.parse().unwrap(), claimed, None).await;
    got.map(|r| r.session_name)
}

#[tokio::test]
async fn a_v1_session_from_open_to_end() {
    let w = World::new();
    let opened = open(&w, "1300", "2026-03-01T00:00:00").await;
    let token = opened.token.expose().to_owned();
    // The claimed name goes nowhere: the last part is the head's own session id.
    assert_eq!(get(&w, &token, "1300", "Climate").await.unwrap(), "lab-user1-1300");
    assert_eq!(refused(get(&w, "wrong", "1300", "Climate").await).0, "Unauthenticated");
    assert_eq!(refused(get(&w, &token, "1301", "Climate").await).0, "Unauthenticated");
    let (code, _, why) = refused(get(&w, &token, "1300", "genomics").await);
    assert!(code == "NotAllowed" && why.contains("Climate"), "{why}");
    let other: credd_protocol::ClusterName = "hpc".parse().unwrap();
    let elsewhere = w
        .vending
        .credentials_for_token(TokenHash::of(&token), "1300", &other, &"Climate".parse().unwrap(), None, None)
        .await;
    assert_eq!(refused(elsewhere).0, "Unauthenticated");
    w.vending.set_status_for_head(&head(), "1300", None, SessionStatus::Completed).await.unwrap();
    assert_eq!(refused(get(&w, &token, "1300", "Climate").await).0, "SessionEnded");
}

#[tokio::test]
async fn a_head_acts_on_its_own_cluster_only() {
    let w = World::new();
    let opened = open(&w, "1300", "2026-03-01T00:00:00").await;
    let other = Head { cluster: "hpc".parse().unwrap(), peer: None };
    assert_eq!(refused(w.vending.open_for_head(&other, &post("1", "2026")).await).0, "NotAllowed");
    let put = async |cluster| w.vending.set_status_for_head(&other, "1300", cluster, SessionStatus::Completed).await;
    let own = lab();
    assert_eq!(refused(put(Some(&own)).await).0, "NotAllowed");
    assert_eq!(refused(put(None).await).0, "UnknownSession");
    assert_eq!(w.session(opened.session).await.status, SessionStatus::Active);
}

#[tokio::test]
async fn statuses_end_once_and_for_all() {
    let mut w = World::new();
    open(&w, "1300", "2026-03-01T00:00:00").await;
    let (cluster, head) = (lab(), head());
    let vending = w.vending.clone();
    let put = async |status| vending.set_status_for_head(&head, "1300", Some(&cluster), status).await;
    put(SessionStatus::Active).await.unwrap();
    put(SessionStatus::Invalidated).await.unwrap();
    assert!(matches!(w.told(), Some(credd_protocol::node_api::Event::Invalidated { .. })));
    put(SessionStatus::Invalidated).await.unwrap();
    for status in [SessionStatus::Active, SessionStatus::Completed] {
        assert_eq!(refused(put(status).await).0, "SessionEnded");
    }
}

/// The store's answer to the first attempt was lost, and with it what follows an end.
#[tokio::test]
async fn an_end_that_is_said_again_is_told_again() {
    let mut w = World::new();
    let opened = open(&w, "1300", "2026-03-01T00:00:00").await;
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let job = w.open(7).await.session;
    for id in [opened.session, job] {
        w.store.end(id, SessionStatus::Invalidated, w.now(), "closed").await.unwrap();
    }
    w.vending.set_status_for_head(&head(), "1300", None, SessionStatus::Invalidated).await.unwrap();
    w.vending.close("root", job).await.unwrap();
    for id in [opened.session, job] {
        let told = w.told();
        let Some(credd_protocol::node_api::Event::Invalidated { sessions, .. }) = told else { panic!("{told:?}") };
        assert_eq!(sessions, [id]);
    }
    // What completed is nothing that a node must be told.
    let completed = open(&w, "1301", "2026").await.session;
    w.vending.set_status_for_head(&head(), "1301", None, SessionStatus::Completed).await.unwrap();
    w.vending.close("root", completed).await.unwrap();
    assert!(w.told().is_none());
}

#[tokio::test]
async fn an_opening_that_is_cut_off_leaves_no_earlier_session_open() {
    let w = World::new();
    let old = open(&w, "1300", "2026-03-01T00:00:00").await;
    w.clock.advance(time::Duration::SECOND);
    let next = post("1300", "2026-03-02T00:00:00");
    // Whichever comes first of the old one's end and the new one's beginning, the second fails.
    for (event, row) in [("UPDATE", "OLD.status = 0 AND NEW.status <> 0"), ("INSERT", "1")] {
        w.sql(&format!(
            "CREATE TRIGGER broken BEFORE {event} ON sessions WHEN {row} BEGIN SELECT RAISE(ABORT, 'broken'); END"
        ));
        assert!(w.vending.open_for_head(&head(), &next).await.is_err());
        w.sql("DROP TRIGGER broken");
    }
    let new = w.vending.open_for_head(&head(), &next).await.unwrap();
    assert_ne!(new.session, old.session);
    assert_eq!(w.session(old.session).await.status, SessionStatus::Completed);
    // An earlier submission that comes late ends nothing.
    assert_eq!(refused(w.vending.open_for_head(&head(), &post("1300", "2026-03-01T00:00:00")).await).0, "SessionEnded");
    assert_eq!(w.session(new.session).await.status, SessionStatus::Active);
}

#[tokio::test]
async fn the_newest_session_of_an_id_counts() {
    let w = World::new();
    let old = open(&w, "1300", "2026-03-01T00:00:00").await;
    w.clock.advance(time::Duration::SECOND);
    let new = open(&w, "1300", "2026-03-02T00:00:00").await;
    assert_eq!(refused(get(&w, old.token.expose(), "1300", "Climate").await).0, "Unauthenticated");
    get(&w, new.token.expose(), "1300", "Climate").await.unwrap();
    assert_eq!(w.session(old.session).await.status, SessionStatus::Completed);
}

#[tokio::test]
async fn a_head_that_repeats_itself_gets_the_session_with_a_new_token() {
    let w = World::new();
    let first = open(&w, "1300", "2026-03-01T00:00:00").await;
    let again = open(&w, "1300", "2026-03-01T00:00:00").await;
    assert_eq!(first.session, again.session);
    assert_eq!(refused(get(&w, first.token.expose(), "1300", "Climate").await).0, "Unauthenticated");
    get(&w, again.token.expose(), "1300", "Climate").await.unwrap();
    // What is not the same is told so, and changes nothing.
    let post = post("1300", "2026-03-01T00:00:00");
    for other in [
        OpenSession { cluster_user: "user2".parse().unwrap(), ..post.clone() },
        OpenSession { project_id: "genomics".parse().unwrap(), ..post.clone() },
    ] {
        let (code, _, why) = refused(w.vending.open_for_head(&head(), &other).await);
        assert!(code == "NotAllowed" && why.contains("user1 in project Climate"), "{why}");
        assert!(why.contains("newer submittedTime"), "{why}");
    }
    get(&w, again.token.expose(), "1300", "Climate").await.unwrap();
    // An ended one is not revived.
    w.vending.set_status_for_head(&head(), "1300", None, SessionStatus::Completed).await.unwrap();
    assert_eq!(refused(w.vending.open_for_head(&head(), &post).await).0, "SessionEnded");
    assert_eq!(refused(get(&w, again.token.expose(), "1300", "Climate").await).0, "SessionEnded");
}

#[tokio::test]
async fn what_a_head_forgets_is_ended() {
    let w = World::new();
    let (old, open_job) = (open(&w, "1300", "2026").await, {
        w.slurm.run(7, "alice", "genomics", &["n1"]);
        w.open(7).await
    });
    w.clock.advance(time::Duration::days(30));
    let new = open(&w, "1301", "2026").await;
    assert_eq!(w.vending.sweep().await.unwrap(), 0);
    w.clock.advance(time::Duration::SECOND);
    assert_eq!(w.vending.sweep().await.unwrap(), 1);
    let ended = w.session(old.session).await;
    assert_eq!(ended.status, SessionStatus::Completed);
    assert!(ended.why.unwrap().contains("30 days"));
    for id in [new.session, open_job.session] {
        assert_eq!(w.session(id).await.status, SessionStatus::Active);
    }
}

#[tokio::test]
async fn hostile_texts_and_unknown_projects_are_refused() {
    let w = World::new();
    for id in ["", "a/b", "a b", "1\n", &"9".repeat(129), "a?b", "..%2f"] {
        assert_eq!(refused(w.vending.open_for_head(&head(), &post(id, "2026")).await).0, "BadRequest", "{id:?}");
    }
    for submitted in ["", "2026\u{7f}", &"9".repeat(65)] {
        assert_eq!(refused(w.vending.open_for_head(&head(), &post("1", submitted)).await).0, "BadRequest");
    }
    let unknown = OpenSession { project_id: "climate".parse().unwrap(), ..post("1", "2026") };
    assert_eq!(refused(w.vending.open_for_head(&head(), &unknown).await).0, "UnknownProject", "case matters");
}

#[tokio::test]
async fn a_node_opened_session_has_no_token() {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    w.open(7).await;
    let (code, _, why) = refused(get(&w, "any", "7", "genomics").await);
    // Nor does it say that there is one.
    assert_eq!(code, "Unauthenticated", "{why}");
    assert_eq!(why, refused(get(&w, "any", "8", "genomics").await).2.replace('8', "7"));
    // And a head cannot end it by its job id.
    let put = w.vending.set_status_for_head(&head(), "7", None, SessionStatus::Completed).await;
    assert_eq!(refused(put).0, "UnknownSession");
    // Nor does a node get what a head opened.
    let opened = open(&w, "1300", "2026-03-01T00:00:00").await;
    assert_eq!(refused(w.credentials("n1", opened.session).await).0, "NotAllowed");
    w.vending.leave(&node("n1"), opened.session).await.unwrap();
    assert_eq!(w.session(opened.session).await.status, SessionStatus::Active);
}

#[tokio::test]
async fn a_head_opens_nothing_of_another_clusters_project() {
    let w = World::new();
    let opened = open(&w, "1300", "2026-03-01T00:00:00").await;
    let mut map = map();
    map.clusters.insert("Climate".parse().unwrap(), [("hpc".parse().unwrap())].into());
    w.projects.replace(map);
    assert_eq!(refused(w.vending.open_for_head(&head(), &post("1", "2026")).await).0, "ProjectElsewhere");
    assert_eq!(refused(get(&w, opened.token.expose(), "1300", "Climate").await).0, "ProjectElsewhere");
    let own = Head { cluster: "hpc".parse().unwrap(), peer: None };
    let there = OpenSession { cluster_name: "HPC".parse().unwrap(), ..post("1", "2026") };
    w.vending.open_for_head(&own, &there).await.unwrap();
}

#[tokio::test]
async fn a_token_is_good_at_its_cluster_however_the_path_spells_it() {
    let w = World::new();
    let opened = open(&w, "1300", "2026-03-01T00:00:00").await;
    let (token, other) = (TokenHash::of(opened.token.expose()), "LAB".parse().unwrap());
    let project = "Climate".parse().unwrap();
    w.vending.credentials_for_token(token, "1300", &other, &project, None, None).await.unwrap();
}

/// A head's session of `hpc`, as the store of an earlier release has it: without a note.
async fn open_unnoted(w: &World) {
    let session = Session {
        id: SessionId::random(),
        cluster: "hpc".parse().unwrap(),
        user: "user1".parse().unwrap(),
        uid: None,
        project: "Climate".parse().unwrap(),
        partition: None,
        nodes: vec![],
        origin: Origin::Head { head_session: "7".into(), submitted: "2026".into(), token: TokenHash::of("t") },
        opened: w.now(),
        ended: None,
        status: SessionStatus::Active,
        why: None,
    };
    w.store.open(session).await.unwrap();
}

#[tokio::test]
async fn clusters_without_a_heads_session_are_known_to_every_replica() {
    let w = World::new();
    let (lab, hpc, replica) = (lab(), "hpc".parse().unwrap(), w.replica());
    let known = async |vending: &Vending| {
        (vending.may_have_head_sessions(&lab).await, vending.may_have_head_sessions(&hpc).await)
    };
    assert_eq!(known(&w.vending).await, (true, true), "nothing is refused before it is known");
    w.vending.sweep().await.unwrap();
    assert_eq!(known(&w.vending).await, (false, false));
    assert_eq!(known(&replica).await, (false, false));
    assert!(!w.vending.may_have_head_sessions(&"mars".parse().unwrap()).await);
    open(&w, "1300", "2026-03-01T00:00:00").await;
    assert_eq!(known(&w.vending).await, (true, false));
    assert_eq!(known(&replica).await, (false, false), "the note is read once a second");
    w.clock.advance(Duration::seconds(1));
    assert_eq!(known(&replica).await, (true, false));
    w.vending.set_status_for_head(&head(), "1300", None, SessionStatus::Completed).await.unwrap();
    let restarted = w.replica();
    restarted.sweep().await.unwrap();
    assert_eq!(known(&restarted).await, (true, false), "it stays so");
}

#[tokio::test]
async fn a_heads_session_of_an_earlier_release_is_found() {
    let w = World::new();
    open_unnoted(&w).await;
    w.vending.sweep().await.unwrap();
    assert!(w.vending.may_have_head_sessions(&"hpc".parse().unwrap()).await);
    assert!(!w.vending.may_have_head_sessions(&lab()).await);
    // Also where that release was here again after this one had found nothing.
    let w = World::new();
    w.vending.sweep().await.unwrap();
    open_unnoted(&w).await;
    let restarted = w.replica();
    assert!(!restarted.may_have_head_sessions(&"hpc".parse().unwrap()).await);
    restarted.sweep().await.unwrap();
    assert!(restarted.may_have_head_sessions(&"hpc".parse().unwrap()).await);
    // And where it is beside this one, during an upgrade.
    let w = World::new();
    w.vending.sweep().await.unwrap();
    open_unnoted(&w).await;
    w.clock.advance(Duration::minutes(9));
    w.vending.sweep().await.unwrap();
    assert!(!w.vending.may_have_head_sessions(&"hpc".parse().unwrap()).await);
    w.clock.advance(Duration::minutes(1));
    w.vending.sweep().await.unwrap();
    assert!(w.vending.may_have_head_sessions(&"hpc".parse().unwrap()).await);
}
