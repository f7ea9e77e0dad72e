//! What every store must do, one function for each promise of [`Store`]. A backend's tests call [`all`] with a function
//! that makes an empty store.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;

use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::{JobId, SessionId, TokenHash, Uid, UserName};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

use super::*;

mod notes;
mod orders;

/// The time at which these tests play.
pub const T0: OffsetDateTime = datetime!(2026-03-01 12:00:00.123456 UTC);

/// The run of a job that was submitted an hour before [`T0`].
pub fn run(job: u32, restart: u32) -> Run {
    Run { job: JobId::try_from(job).unwrap(), restart, submitted: T0 - Duration::HOUR }
}

/// A session of a job, opened at [`T0`].
pub fn of_job(job: u32, restart: u32) -> Session {
    Session {
        id: SessionId::random(),
        cluster: "lab".parse().unwrap(),
        user: "bob".parse().unwrap(),
        uid: Some(Uid(1002)),
        project: "genomics".parse().unwrap(),
        partition: Some("batch".parse().unwrap()),
        nodes: vec!["n1".parse().unwrap(), "n2".parse().unwrap()],
        origin: Origin::Slurm(run(job, restart)),
        opened: T0,
        ended: None,
        status: SessionStatus::Active,
        why: None,
    }
}

/// A session of a head.
pub fn of_head(head_session: &str, submitted: &str) -> Session {
    Session {
        uid: None,
        partition: None,
        nodes: vec![],
        origin: Origin::Head {
            head_session: head_session.into(),
            submitted: submitted.into(),
            token: TokenHash::of(submitted),
        },
        ..of_job(1, 0)
    }
}

/// What was issued for a session; lives an hour.
pub fn issued_for(session: &Session, key: &str, issued: OffsetDateTime) -> Issuance {
    Issuance {
        session: session.id,
        user: session.user.clone(),
        cluster: session.cluster.clone(),
        project: session.project.clone(),
        role: "default".parse().unwrap(),
        role_arn: "arn:aws:iam::123456789012:role/genomics".parse().unwrap(),
        role_id: "AROAEXAMPLE".into(),
        session_name: "lab-bob-n1".into(),
        source_identity: Some("bob".into()),
        key_id: key.into(),
        node: Some("n1".parse().unwrap()),
        issued,
        expires: issued + Duration::HOUR,
    }
}

async fn every_session(store: &dyn Store, filter: &SessionFilter) -> Vec<Session> {
    let (mut all, mut from) = (vec![], None);
    loop {
        let page = store.list(filter, from.as_ref()).await.unwrap();
        assert!(page.items.len() <= PAGE && !(page.items.is_empty() && page.next.is_some()));
        all.extend(page.items);
        match page.next {
            Some(next) => from = Some(next),
            None => return all,
        }
    }
}

async fn every_issuance(store: &dyn Store, of: &IssuedTo, alive_at: OffsetDateTime) -> Vec<Issuance> {
    let (mut all, mut from) = (vec![], None);
    loop {
        let page = store.list_issuances(of, alive_at, from.as_ref()).await.unwrap();
        all.extend(page.items);
        match page.next {
            Some(next) => from = Some(next),
            None => return all,
        }
    }
}

/// Opens them all, many at the same time: alone each would wait for its own fsync(2).
async fn open_all(store: &Arc<dyn Store>, sessions: impl IntoIterator<Item = Session>) {
    let mut callers = tokio::task::JoinSet::new();
    for session in sessions {
        let store = store.clone();
        callers.spawn(async move { store.open(session).await.unwrap() });
    }
    while let Some(opened) = callers.join_next().await {
        opened.unwrap();
    }
}

/// The promises that a few items show.
pub async fn small<F: Future<Output = Arc<dyn Store>>>(empty: impl Fn() -> F) {
    a_session_comes_back_as_it_was_opened(&*empty().await).await;
    opening_a_run_again_returns_the_first(&*empty().await).await;
    of_many_concurrent_openers_one_is_first(empty().await).await;
    a_heads_session_is_keyed_by_its_submission(&*empty().await).await;
    a_session_without_submit_time_is_its_runs_while_it_is_open(&*empty().await).await;
    a_heads_token_is_replaced_while_its_session_is_open(&*empty().await).await;
    the_newest_of_a_heads_sessions_is_found(&*empty().await).await;
    ends_are_final(&*empty().await).await;
    of_many_concurrent_enders_one_ends(empty().await).await;
    listings_filter_exactly(&*empty().await).await;
    issuances_are_listed_while_they_live(&*empty().await).await;
    issuances_page(empty().await).await;
    a_nonce_is_new_once(empty().await).await;
    revocations_merge_and_expire(&*empty().await).await;
    notes::a_note_stays_until_it_is_removed(&*empty().await).await;
    notes::notes_page(empty().await).await;
    orders::an_order_is_open_until_it_is_done(&*empty().await).await;
    orders::orders_page(empty().await).await;
    orders::a_subject_is_blocked_until_it_is_let_in(&*empty().await).await;
    orders::news_is_numbered_without_gaps(empty().await).await;
    orders::news_pages(&*empty().await).await;
    orders::a_store_keeps_its_epoch(&*empty().await, &*empty().await).await;
    orders::answers_of_all_replicas_add_up(&*empty().await).await;
    orders::a_node_that_joined_is_remembered(&*empty().await).await;
    orders::a_lease_has_one_holder(empty().await).await;
    orders::denials_of_different_kinds_are_kept_apart(&*empty().await).await;
    orders::an_order_is_not_forgotten_in_what_a_job_leaves(&*empty().await).await;
    orders::denials_of_a_name_are_read_by_it_and_pruned_by_themselves(&*empty().await).await;
    orders::what_lives_is_found_by_project_role_and_node(&*empty().await).await;
    empty().await.check().await.unwrap();
}

/// The promises that need thousands of items.
pub async fn large<F: Future<Output = Arc<dyn Store>>>(empty: impl Fn() -> F) {
    the_open_runs_of_a_cluster_are_listed(empty().await).await;
    listings_page_through_everything_newest_first(empty().await).await;
    cursors_are_checked(empty().await).await;
    pruning_takes_what_is_over_only(empty().await).await;
}

/// All promises.
pub async fn all<F: Future<Output = Arc<dyn Store>>>(empty: impl Fn() -> F) {
    small(&empty).await;
    large(&empty).await;
}

async fn a_session_comes_back_as_it_was_opened(store: &dyn Store) {
    for session in [of_job(7, 1), of_head("4711", "2026-03-01T00:00:00")] {
        assert_eq!(store.get(session.id).await.unwrap(), None);
        assert_eq!(store.status(session.id).await.unwrap(), None);
        assert_eq!(store.open(session.clone()).await.unwrap(), Opened::New(session.clone()));
        assert_eq!(store.status(session.id).await.unwrap(), Some((session.status, session.why.clone())));
        assert_eq!(store.get(session.id).await.unwrap(), Some(session));
    }
    let found = store.find_run(&"lab".parse().unwrap(), &run(7, 1)).await.unwrap();
    assert_eq!(found.unwrap().origin, of_job(7, 1).origin);
    assert_eq!(store.find_run(&"lab".parse().unwrap(), &run(7, 0)).await.unwrap(), None);
    assert_eq!(store.find_run(&"Lab".parse().unwrap(), &run(7, 1)).await.unwrap(), None);
    let again = Run { submitted: T0, ..run(7, 1) };
    assert_eq!(store.find_run(&"lab".parse().unwrap(), &again).await.unwrap(), None);
}

async fn opening_a_run_again_returns_the_first(store: &dyn Store) {
    let first = of_job(7, 0);
    store.open(first.clone()).await.unwrap();
    let mut again = of_job(7, 0);
    again.user = "mallory".parse().unwrap();
    assert_eq!(store.open(again.clone()).await.unwrap(), Opened::Existing(first.clone()));
    assert_eq!(store.get(again.id).await.unwrap(), None);
    // Whatever its status.
    store.end(first.id, SessionStatus::Invalidated, T0 + Duration::SECOND, "revoked").await.unwrap();
    let Opened::Existing(ended) = store.open(of_job(7, 0)).await.unwrap() else {
        panic!("a dead run was opened again")
    };
    assert_eq!((ended.id, ended.status), (first.id, SessionStatus::Invalidated));
    // Another run, another cluster: other sessions.
    assert!(matches!(store.open(of_job(7, 1)).await.unwrap(), Opened::New(_)));
    let renumbered = Session { origin: Origin::Slurm(Run { submitted: T0, ..run(7, 0) }), ..of_job(7, 0) };
    assert_eq!(store.open(renumbered.clone()).await.unwrap(), Opened::New(renumbered), "Slurm gave the id again");
    let elsewhere = Session { cluster: "other".parse().unwrap(), ..of_job(7, 0) };
    assert!(matches!(store.open(elsewhere).await.unwrap(), Opened::New(_)));
}

async fn of_many_concurrent_openers_one_is_first(store: Arc<dyn Store>) {
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let store = store.clone();
        callers.spawn(async move { store.open(of_job(7, 0)).await.unwrap() });
    }
    let (mut new, mut ids) = (0, HashSet::new());
    while let Some(opened) = callers.join_next().await {
        match opened.unwrap() {
            Opened::New(session) => {
                new += 1;
                ids.insert(session.id);
            }
            Opened::Existing(session) => {
                ids.insert(session.id);
            }
        }
    }
    assert_eq!((new, ids.len()), (1, 1));
}

async fn a_heads_session_is_keyed_by_its_submission(store: &dyn Store) {
    let first = of_head("5", "2026-03-01T00:00:00");
    store.open(first.clone()).await.unwrap();
    let again = Session {
        origin: Origin::Head {
            head_session: "5".into(),
            submitted: "2026-03-01T00:00:00".into(),
            token: TokenHash::of("another"),
        },
        ..of_head("5", "2026-03-01T00:00:00")
    };
    assert_eq!(store.open(again).await.unwrap(), Opened::Existing(first), "the old token stays");
    assert!(matches!(store.open(of_head("5", "2026-03-02T00:00:00")).await.unwrap(), Opened::New(_)));
}

async fn a_session_without_submit_time_is_its_runs_while_it_is_open(store: &dyn Store) {
    let old = Session { origin: Origin::Slurm(Run { submitted: Run::UNRECORDED, ..run(7, 0) }), ..of_job(7, 0) };
    store.open(old.clone()).await.unwrap();
    let find = async || store.find_run(&"lab".parse().unwrap(), &run(7, 0)).await.unwrap();
    assert_eq!(find().await, Some(old.clone()));
    store.end(old.id, SessionStatus::Completed, T0, "over").await.unwrap();
    assert_eq!(find().await, None);
    let own = of_job(7, 0);
    store.open(own.clone()).await.unwrap();
    assert_eq!(find().await, Some(own));
}

async fn a_heads_token_is_replaced_while_its_session_is_open(store: &dyn Store) {
    let session = of_head("5", "2026-03-01T00:00:00");
    store.open(session.clone()).await.unwrap();
    let origin = Origin::Head {
        head_session: "5".into(),
        submitted: "2026-03-01T00:00:00".into(),
        token: TokenHash::of("another"),
    };
    let renewed = Session { origin, ..session.clone() };
    for _ in 0..2 {
        assert_eq!(
            store.replace_token(session.id, TokenHash::of("another")).await.unwrap(),
            Some(renewed.clone()),
            "again is the same"
        );
    }
    assert_eq!(store.find_head(&["lab".parse().unwrap()], "5").await.unwrap(), Some(renewed));
    store.end(session.id, SessionStatus::Completed, T0, "over").await.unwrap();
    let ended = store.get(session.id).await.unwrap();
    assert_eq!(store.replace_token(session.id, TokenHash::of("third")).await.unwrap(), None);
    let status = ended.as_ref().map(|session| (session.status, session.why.clone()));
    assert!(status.is_some() && store.status(session.id).await.unwrap() == status);
    assert_eq!(store.get(session.id).await.unwrap(), ended, "an ended session is not touched");
    let job = of_job(5, 0);
    store.open(job.clone()).await.unwrap();
    assert_eq!(store.replace_token(job.id, TokenHash::of("x")).await.unwrap(), None, "a job's session has no token");
    assert_eq!(store.get(job.id).await.unwrap(), Some(job));
    assert_eq!(store.replace_token(SessionId::random(), TokenHash::of("x")).await.unwrap(), None);
}

async fn the_open_runs_of_a_cluster_are_listed(store: Arc<dyn Store>) {
    let count = RUNS_PAGE + 3;
    let at = |i: usize| T0 + Duration::seconds(i as i64 / 4);
    let sessions: Vec<Session> = (0..count).map(|i| Session { opened: at(i), ..of_job(i as u32 + 1, 0) }).collect();
    open_all(&store, sessions.clone()).await;
    let others = [
        of_head("5", "2026"),
        Session { cluster: "other".parse().unwrap(), ..of_job(1, 0) },
        Session { uid: None, ..of_job(1, 1) },
    ];
    open_all(&store, others.clone()).await;
    store.end(sessions[0].id, SessionStatus::Completed, T0, "").await.unwrap();
    let lab: ClusterName = "lab".parse().unwrap();
    let first = store.list_runs(&lab, None).await.unwrap();
    assert_eq!(first.items.len(), RUNS_PAGE);
    let next = first.next.expect("a second page");
    let second = store.list_runs(&lab, Some(&next)).await.unwrap();
    assert_eq!(second.next, None);
    let found: Vec<OpenRun> = first.items.into_iter().chain(second.items).collect();
    let key = |s: &OpenRun| (s.run.job, s.run.restart);
    assert_eq!(
        found.iter().map(key).collect::<HashSet<_>>().len(),
        count,
        "all but the ended, and the one without uid"
    );
    assert!(
        found
            .iter()
            .all(|s| s.run.submitted == T0 - Duration::HOUR && s.uid == (s.run.restart == 0).then_some(Uid(1002)))
    );
    assert!(found.contains(&OpenRun { id: sessions[9].id, run: run(10, 0), uid: Some(Uid(1002)) }));
    assert!(matches!(store.list_runs(&"other".parse().unwrap(), Some(&next)).await, Err(StoreError::BadCursor)));
}

async fn the_newest_of_a_heads_sessions_is_found(store: &dyn Store) {
    let (lab, other) = ("lab".parse().unwrap(), "other".parse().unwrap());
    let old = of_head("5", "2026-03-01");
    let new = Session { opened: T0 + Duration::MINUTE, ..of_head("5", "2026-03-02") };
    let elsewhere = Session { cluster: "other".parse().unwrap(), opened: T0 + Duration::HOUR, ..of_head("5", "2026") };
    for session in [&new, &old, &elsewhere] {
        store.open(session.clone()).await.unwrap();
    }
    let id = |s: Option<Session>| s.map(|s| s.id);
    assert_eq!(id(store.find_head(std::slice::from_ref(&lab), "5").await.unwrap()), Some(new.id));
    assert_eq!(id(store.find_head(&[lab.clone(), other], "5").await.unwrap()), Some(elsewhere.id));
    assert_eq!(id(store.find_head(&[], "5").await.unwrap()), None);
    assert_eq!(id(store.find_head(&[lab], "6").await.unwrap()), None);
}

async fn ends_are_final(store: &dyn Store) {
    let session = of_job(7, 0);
    store.open(session.clone()).await.unwrap();
    let at = T0 + Duration::MINUTE;
    let Ended::Now(ended) = store.end(session.id, SessionStatus::Completed, at, "Slurm: COMPLETED").await.unwrap()
    else {
        panic!("not ended")
    };
    let expected = Session {
        status: SessionStatus::Completed,
        ended: Some(at),
        why: Some("Slurm: COMPLETED".into()),
        ..session.clone()
    };
    assert_eq!(ended, expected);
    let again = store.end(session.id, SessionStatus::Invalidated, at + Duration::MINUTE, "late").await.unwrap();
    assert_eq!(again, Ended::Before(expected.clone()));
    assert_eq!(store.get(session.id).await.unwrap(), Some(expected));
    assert_eq!(store.end(SessionId::random(), SessionStatus::Completed, at, "").await.unwrap(), Ended::Unknown);
    assert!(store.end(session.id, SessionStatus::Active, at, "").await.is_err(), "ACTIVE is no end");
}

async fn of_many_concurrent_enders_one_ends(store: Arc<dyn Store>) {
    let session = of_job(7, 0);
    store.open(session.clone()).await.unwrap();
    let mut callers = tokio::task::JoinSet::new();
    for i in 0..50 {
        let (store, id) = (store.clone(), session.id);
        let status = if i % 2 == 0 { SessionStatus::Completed } else { SessionStatus::Invalidated };
        callers.spawn(async move { store.end(id, status, T0, &i.to_string()).await.unwrap() });
    }
    let (mut now, mut seen) = (0, HashSet::new());
    while let Some(ended) = callers.join_next().await {
        match ended.unwrap() {
            Ended::Now(s) => {
                now += 1;
                seen.insert(s.why);
            }
            Ended::Before(s) => {
                seen.insert(s.why);
            }
            Ended::Unknown => panic!("the session is there"),
        }
    }
    assert_eq!((now, seen.len()), (1, 1));
}

async fn listings_filter_exactly(store: &dyn Store) {
    let mut job = 0;
    for user in ["bob", "bobby", "Bob"] {
        for project in ["genomics", "climate"] {
            for cluster in ["lab", "lab2"] {
                for ended in [None, Some(SessionStatus::Completed), Some(SessionStatus::Invalidated)] {
                    job += 1;
                    let session = Session {
                        user: user.parse().unwrap(),
                        project: project.parse().unwrap(),
                        cluster: cluster.parse().unwrap(),
                        ..of_job(job, 0)
                    };
                    store.open(session.clone()).await.unwrap();
                    if let Some(status) = ended {
                        store.end(session.id, status, T0, "").await.unwrap();
                    }
                }
            }
        }
    }
    let everything = every_session(store, &SessionFilter::default()).await;
    assert_eq!(everything.len(), 36);
    // Every combination of conditions, against a plain filter.
    for bits in 0..32u32 {
        for status in [SessionStatus::Active, SessionStatus::Completed, SessionStatus::Invalidated] {
            let filter = SessionFilter {
                status: (bits & 1 != 0).then_some(status),
                cluster: (bits & 2 != 0).then(|| "lab".parse().unwrap()),
                user: (bits & 4 != 0).then(|| "bob".parse().unwrap()),
                project: (bits & 8 != 0).then(|| "genomics".parse().unwrap()),
                job: (bits & 16 != 0).then(|| JobId::try_from(1).unwrap()),
                opened_before: None,
            };
            let expected: Vec<&Session> = everything
                .iter()
                .filter(|s| filter.status.is_none_or(|v| v == s.status))
                .filter(|s| filter.cluster.as_ref().is_none_or(|v| *v == s.cluster))
                .filter(|s| filter.user.as_ref().is_none_or(|v| *v == s.user))
                .filter(|s| filter.project.as_ref().is_none_or(|v| *v == s.project))
                .filter(|s| filter.job.is_none_or(|v| matches!(s.origin, Origin::Slurm(run) if run.job == v)))
                .collect();
            let found = every_session(store, &filter).await;
            assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{filter:?}");
        }
    }
}

async fn listings_page_through_everything_newest_first(store: Arc<dyn Store>) {
    let count = 2 * PAGE + 3;
    // Four of each time: order must hold among equals too.
    let at = |i: usize| T0 + Duration::seconds(i as i64 / 4);
    open_all(&store, (0..count).map(|i| Session { opened: at(i), ..of_job(i as u32 + 1, 0) })).await;
    let filter = SessionFilter { status: Some(SessionStatus::Active), ..Default::default() };
    let first = store.list(&filter, None).await.unwrap();
    assert_eq!(first.items.len(), PAGE);
    // What is opened meanwhile neither repeats nor hides a row of the next pages.
    store.open(Session { opened: T0 + Duration::DAY, ..of_job(1_000_000, 0) }).await.unwrap();
    let mut all = first.items;
    let mut from = first.next;
    while let Some(cursor) = from {
        let page = store.list(&filter, Some(&cursor)).await.unwrap();
        all.extend(page.items);
        from = page.next;
    }
    assert_eq!(all.len(), count);
    assert!(all.windows(2).all(|w| w[0].opened >= w[1].opened), "newest first");
    assert_eq!(all.iter().map(|s| s.id).collect::<HashSet<_>>().len(), count);
    // Those opened before some moment, which itself does not count; again over pages.
    let before = |i| SessionFilter { opened_before: Some(at(i)), ..filter.clone() };
    assert_eq!(
        every_session(&*store, &before(8)).await.iter().collect::<Vec<_>>(),
        all[count - 8..].iter().collect::<Vec<_>>()
    );
    assert_eq!(every_session(&*store, &before(PAGE + 100)).await.len(), PAGE + 100);
    assert!(every_session(&*store, &before(0)).await.is_empty());
}

async fn cursors_are_checked(store: Arc<dyn Store>) {
    open_all(&store, (1..=(PAGE as u32 + 1)).map(|job| of_job(job, 0))).await;
    let filter = SessionFilter::default();
    let next = store.list(&filter, None).await.unwrap().next.unwrap();
    let user: UserName = "bob".parse().unwrap();
    let other = SessionFilter { user: Some(user.clone()), ..Default::default() };
    let bad = |r: Result<_, StoreError>| matches!(r, Err(StoreError::BadCursor));
    assert!(bad(store.list(&other, Some(&next)).await.map(|_| ())), "a cursor belongs to its filter");
    assert!(bad(store.list_issuances(&IssuedTo::User(user), T0, Some(&next)).await.map(|_| ())));
    let cut = next.0[..next.0.len() - 1].to_owned();
    for text in ["", "x", "s1.1.1", "' OR 1=1", cut.as_str(), &format!("{}0", next.0), &"9".repeat(10_000)] {
        assert!(bad(store.list(&filter, Some(&Cursor(text.into()))).await.map(|_| ())), "{text:.40}");
    }
    assert_eq!(store.list(&filter, Some(&next)).await.unwrap().items.len(), 1);
}

async fn issuances_are_listed_while_they_live(store: &dyn Store) {
    let (bob, bobby) = (of_job(1, 0), Session { user: "bobby".parse().unwrap(), ..of_job(2, 0) });
    store.open(bob.clone()).await.unwrap();
    store.open(bobby.clone()).await.unwrap();
    let old = issued_for(&bob, "ASIA1", T0 - Duration::HOUR);
    let one = issued_for(&bob, "ASIA2", T0);
    let two = Issuance { node: None, ..issued_for(&bob, "ASIA3", T0 + Duration::MINUTE) };
    let other = issued_for(&bobby, "ASIA4", T0);
    for issuance in [&two, &old, &other, &one, &one] {
        store.record_issuance(issuance.clone()).await.unwrap();
    }
    let of_bob = IssuedTo::User("bob".parse().unwrap());
    // What expires at this very moment is dead.
    assert_eq!(every_issuance(store, &of_bob, T0).await, [two.clone(), one.clone()]);
    assert_eq!(every_issuance(store, &of_bob, T0 - Duration::SECOND).await, [two.clone(), one.clone(), old]);
    // That its session ended does not kill it.
    store.end(bob.id, SessionStatus::Completed, T0, "").await.unwrap();
    assert_eq!(every_issuance(store, &IssuedTo::Session(bob.id), T0).await, [two, one]);
    assert_eq!(every_issuance(store, &IssuedTo::User("bobby".parse().unwrap()), T0).await, [other]);
    assert_eq!(every_issuance(store, &IssuedTo::User("Bob".parse().unwrap()), T0).await, []);
}

async fn issuances_page(store: Arc<dyn Store>) {
    let session = of_job(1, 0);
    store.open(session.clone()).await.unwrap();
    let count = PAGE + 7;
    let mut callers = tokio::task::JoinSet::new();
    for i in 0..count {
        let issuance = issued_for(&session, &format!("ASIA{i}"), T0 + Duration::seconds(i as i64 / 3));
        let store = store.clone();
        callers.spawn(async move { store.record_issuance(issuance).await.unwrap() });
    }
    while let Some(recorded) = callers.join_next().await {
        recorded.unwrap();
    }
    for of in [IssuedTo::User("bob".parse().unwrap()), IssuedTo::Session(session.id)] {
        let all = every_issuance(&*store, &of, T0).await;
        assert_eq!(all.iter().map(|i| &i.key_id).collect::<HashSet<_>>().len(), count);
        assert!(all.len() == count && all.windows(2).all(|w| w[0].issued >= w[1].issued));
    }
}

async fn a_nonce_is_new_once(store: Arc<dyn Store>) {
    let mut callers = tokio::task::JoinSet::new();
    for i in 0..40 {
        let store = store.clone();
        callers.spawn(async move { store.remember_nonce(&format!("n{}", i % 4), T0).await.unwrap() });
    }
    let mut new = 0;
    while let Some(first) = callers.join_next().await {
        new += u32::from(first.unwrap());
    }
    assert_eq!(new, 4);
    assert!(!store.remember_nonce("n0", T0 + Duration::SECOND).await.unwrap());
}

async fn revocations_merge_and_expire(store: &dyn Store) {
    let revocation = |name: &str, before: i64, until: i64| Revocation {
        role_arn: "arn:aws:iam::123456789012:role/genomics".parse().unwrap(),
        whose: Denied::UserId(format!("AROAEXAMPLE:{name}")),
        issued_before: T0 + Duration::seconds(before),
        until: T0 + Duration::seconds(until),
        ordered: false,
    };
    for entry in [revocation("a", 0, 10), revocation("b", 0, 20), revocation("a", 5, 30), revocation("a", 1, 7)] {
        store.record_revocation(entry).await.unwrap();
    }
    let alive = |mut list: Vec<Revocation>| {
        list.sort_by(|a, b| a.whose.cmp(&b.whose));
        list
    };
    assert_eq!(alive(store.list_revocations(T0).await.unwrap()), [revocation("a", 5, 30), revocation("b", 0, 20)]);
    let later = T0 + Duration::seconds(20);
    assert_eq!(alive(store.list_revocations(later).await.unwrap()), [revocation("a", 5, 30)]);
    assert_eq!(store.list_revocations(T0 + Duration::seconds(30)).await.unwrap(), []);
}

async fn pruning_takes_what_is_over_only(store: Arc<dyn Store>) {
    let sessions: Vec<Session> = (1..=1500).map(|job| of_job(job, 0)).collect();
    open_all(&store, sessions.clone()).await;
    let mut callers = tokio::task::JoinSet::new();
    for id in sessions[..1200].iter().map(|s| s.id) {
        let store = store.clone();
        callers.spawn(async move { store.end(id, SessionStatus::Completed, T0, "").await.unwrap() });
    }
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
    store.end(sessions[1200].id, SessionStatus::Completed, T0 + Duration::DAY, "").await.unwrap();
    store.record_issuance(issued_for(&sessions[0], "ASIA1", T0)).await.unwrap();
    store.record_issuance(issued_for(&sessions[1300], "ASIA2", T0 + Duration::DAY)).await.unwrap();
    assert_eq!(store.prune(T0).await.unwrap(), 0, "what ended at that very moment stays");
    assert_eq!(store.prune(T0 + Duration::hours(2)).await.unwrap(), 1201);
    assert_eq!(store.get(sessions[0].id).await.unwrap(), None);
    assert_eq!(every_session(&*store, &SessionFilter::default()).await.len(), 300);
    assert_eq!(every_issuance(&*store, &IssuedTo::Session(sessions[1300].id), T0).await.len(), 1);
}
