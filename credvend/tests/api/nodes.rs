//! What nodes do, and every way a MUNGE credential may be wrong.

use std::sync::Arc;

use credd_protocol::claim::{Claim, MAX_SKEW_SECONDS};
use credd_protocol::node_api::{
    CredentialsResponse, Event, HEARD, OPEN, OpenResponse, STREAM, credentials_path, leave_path,
};
use credvend::server::munge_claim::{Expected, MungeVerifier};
use credvend::store::sqlite::SqliteStore;
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;

use super::munged::{Munged, claim};
use super::world::{DEADLINE, World, request};

const JOB_SEVEN: &str = r#"{"job":7,"restart":0,"uid":1001,"account":"genomics"}"#;

#[tokio::test]
#[cfg_attr(not(munge_as_root), ignore = "needs root, munged and munge")]
async fn munge_opens_joins_vends_and_leaves() {
    let munged = Munged::start();
    let world = World::with(Some(munged.socket()), 64).await;
    let seen = world.call(None, munged.signed(&world, Method::POST, OPEN, JOB_SEVEN)).await;
    assert_eq!(seen.status, 200, "{}", seen.text);
    let opened: OpenResponse = serde_json::from_str(&seen.text).unwrap();
    assert_eq!((opened.user.as_str(), opened.project.as_str(), opened.uid.0), ("alice", "genomics", 1001));
    let again = world.call(None, munged.signed(&world, Method::POST, OPEN, JOB_SEVEN)).await;
    assert_eq!(serde_json::from_str::<OpenResponse>(&again.text).unwrap().session, opened.session);

    let path = credentials_path(opened.session);
    let seen = world.call(None, munged.signed(&world, Method::POST, &path, r#"{"role":"default"}"#)).await;
    assert_eq!(seen.status, 200, "{}", seen.text);
    let vended: CredentialsResponse = serde_json::from_str(&seen.text).unwrap();
    assert_eq!(vended.credentials.secret_access_key.expose(), "wire-secret");
    assert_eq!(vended.session_name, "lab-alice-n1");

    let seen = world.call(None, munged.signed(&world, Method::POST, &leave_path(opened.session), "{}")).await;
    assert_eq!(seen.status, 200, "{}", seen.text);
    let foreign = r#"{"job":8,"restart":0,"uid":1001}"#;
    let seen = world.call(None, munged.signed(&world, Method::POST, OPEN, foreign)).await;
    assert_eq!(seen.refusal(), (403, "JobNotRunning".into()));
    let unknown_field = r#"{"job":7,"restart":0,"uid":1001,"user":"root"}"#;
    let seen = world.call(None, munged.signed(&world, Method::POST, OPEN, unknown_field)).await;
    assert_eq!(seen.refusal(), (400, "BadRequest".into()));
}

#[tokio::test]
#[cfg_attr(not(munge_as_root), ignore = "needs root, munged and munge")]
async fn munge_credentials_are_for_one_request_to_one_server_once() {
    let (munged, other) = (Munged::start(), Munged::start());
    let world = World::with(Some(munged.socket()), 64).await;
    let ask = |target: &str, credential: &str, body: &str| {
        request(Method::POST, target, Some(&format!("Munge {credential}")), body)
    };
    let right = || claim(&world, &Method::POST, OPEN, JOB_SEVEN);
    let refused = async |what: &str, credential: &str, target: &str, body: &str| {
        let seen = world.call(None, ask(target, credential, body)).await;
        assert_eq!(seen.refusal(), (401, "Unauthenticated".into()), "{what}: {}", seen.text);
        seen.json()["message"].as_str().unwrap().to_owned()
    };

    let credential = munged.encode(&right());
    assert_eq!(world.call(None, ask(OPEN, &credential, JOB_SEVEN)).await.status, 200);
    let why = refused("the same again", &credential, OPEN, JOB_SEVEN).await;
    assert!(why.contains("replay"), "{why}");
    // Another munged of the same key would decode it again: the nonce is remembered here too.
    let once = right();
    assert_eq!(world.call(None, ask(OPEN, &munged.encode(&once), JOB_SEVEN)).await.status, 200);
    let why = refused("the same nonce", &munged.encode(&once), OPEN, JOB_SEVEN).await;
    assert!(why.contains("nonce"), "{why}");

    refused("an altered body", &munged.encode(&right()), OPEN, &JOB_SEVEN.replace('7', "8")).await;
    refused("an altered path", &munged.encode(&right()), &format!("{OPEN}?partition=other"), JOB_SEVEN).await;
    let id = credd_protocol::SessionId::random();
    refused("another path", &munged.encode(&right()), &leave_path(id), JOB_SEVEN).await;
    type Change = fn(&mut Claim);
    let changes: [(&str, Change); 7] = [
        ("another server", |c| c.server = "0".repeat(64)),
        ("no server", |c| c.server = String::new()),
        ("stale", |c| c.time -= MAX_SKEW_SECONDS + 5),
        ("from the future", |c| c.time += MAX_SKEW_SECONDS + 5),
        ("another method", |c| c.method = "PUT".into()),
        ("another version", |c| c.version = 2),
        ("no nonce", |c| c.nonce = String::new()),
    ];
    for (what, change) in changes {
        let mut claim = right();
        change(&mut claim);
        refused(what, &munged.encode(&claim), OPEN, JOB_SEVEN).await;
    }
    let why = refused("a user's", &munged.encode_as(65_534, &right()), OPEN, JOB_SEVEN).await;
    assert!(why.contains("65534") && why.contains("root"), "{why}");
    refused("another key's", &other.encode(&right()), OPEN, JOB_SEVEN).await;
    refused("nonsense", "MUNGE:AAAA:", OPEN, JOB_SEVEN).await;
    let mut elsewhere = right();
    elsewhere.cluster = "mars".parse().unwrap();
    let seen = world.call(None, ask(OPEN, &munged.encode(&elsewhere), JOB_SEVEN)).await;
    assert_eq!(seen.refusal(), (403, "UnknownCluster".into()));
    // hpc is configured, but nobody there attests by MUNGE.
    elsewhere.cluster = "hpc".parse().unwrap();
    elsewhere.nonce = "f".repeat(32);
    let seen = world.call(None, ask(OPEN, &munged.encode(&elsewhere), JOB_SEVEN)).await;
    assert_eq!(seen.refusal(), (403, "UnknownCluster".into()));
    assert!(seen.text.contains("its head states its jobs"), "{}", seen.text);

    // Plain loopback HTTP has no certificate, and a claim for it none either.
    let mut plain = right();
    plain.server = String::new();
    assert_eq!(world.call_plain(ask(OPEN, &munged.encode(&plain), JOB_SEVEN)).await.status, 200);
    let seen = world.call_plain(ask(OPEN, &munged.encode(&right()), JOB_SEVEN)).await;
    assert_eq!(seen.status, 401);
}

#[tokio::test]
async fn without_munged_the_answer_is_to_ask_later() {
    let world = World::start().await;
    let asked = request(Method::POST, OPEN, Some("Munge MUNGE:AAAA:"), JOB_SEVEN);
    let seen = world.call(None, asked).await;
    assert_eq!(seen.refusal(), (503, "Unavailable".into()), "{}", seen.text);
    assert_eq!(seen.json()["retry"], true);
}

async fn line(body: &mut Incoming) -> Option<Event> {
    loop {
        let frame = tokio::time::timeout(DEADLINE, body.frame()).await.unwrap()?.ok()?;
        if let Ok(data) = frame.into_data() {
            return Some(serde_json::from_slice(&data).unwrap());
        }
    }
}

#[tokio::test]
async fn a_stream_tells_of_the_end_of_sessions_until_the_service_stops() {
    let mut world = World::start().await;
    let node = world.certificate("credd:node:lab:n1");
    let seen = world.call(Some(&node), request(Method::POST, OPEN, None, JOB_SEVEN)).await;
    let opened: OpenResponse = serde_json::from_str(&seen.text).unwrap();
    let response = world.open(Some(&node), request(Method::GET, STREAM, None, "")).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (200, &"application/x-ndjson".parse().unwrap())
    );
    let mut body = response.into_body();
    let Some(Event::Hello { epoch, seq: 0 }) = line(&mut body).await else { panic!("no hello") };
    let path = format!("/admin/v1/sessions/{}/close", opened.session);
    assert_eq!(world.call_admin(request(Method::POST, &path, None, "")).await.status, 200);
    assert!(
        matches!(line(&mut body).await, Some(Event::Invalidated { sessions, seq: 1, .. }) if sessions == [opened.session])
    );
    // A node that was away is told what it missed; its answer is taken.
    let path = credd_protocol::node_api::stream_path(Some((&epoch, 0)));
    let mut back = world.open(Some(&node), request(Method::GET, &path, None, "")).await.unwrap().into_body();
    assert_eq!(line(&mut back).await, Some(Event::Hello { epoch: epoch.clone(), seq: 0 }));
    assert!(matches!(line(&mut back).await, Some(Event::Invalidated { seq: 1, .. })));
    drop(back);
    let heard = format!(r#"{{"epoch":"{epoch}","seqs":[1]}}"#);
    assert_eq!(world.call(Some(&node), request(Method::POST, HEARD, None, &heard)).await.status, 200);
    let many = format!(r#"{{"epoch":"{epoch}","seqs":[1{}]}}"#, ",1".repeat(256));
    assert_eq!(world.call(Some(&node), request(Method::POST, HEARD, None, &many)).await.status, 400);
    assert_eq!(world.call(None, request(Method::POST, HEARD, None, &heard)).await.status, 401);
    // A third stream of one node ends the first.
    let mut more = Vec::new();
    for _ in 0..2 {
        let mut next = world.open(Some(&node), request(Method::GET, STREAM, None, "")).await.unwrap().into_body();
        assert!(matches!(line(&mut next).await, Some(Event::Hello { seq: 1, .. })));
        more.push(next);
    }
    assert_eq!(line(&mut body).await, None);
    assert!(world.stop().await, "connections end with the service");
    for mut body in more {
        assert_eq!(line(&mut body).await, None);
    }
}

#[tokio::test]
#[cfg_attr(not(munge_as_root), ignore = "needs root, munged and munge")]
async fn munge_of_one_cluster_does_not_speak_for_another() {
    let (lab, hpc) = (Munged::start(), Munged::start());
    let world = World::start().await;
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(&dir.path().join("db")).unwrap());
    let realms = [("lab", &lab), ("hpc", &hpc)].map(|(name, m)| (name.parse().unwrap(), Some(m.socket())));
    let verifier = MungeVerifier::new(realms.into(), store).unwrap();
    let expected = |claim: &Claim| Expected {
        method: "POST",
        target: OPEN,
        body: claim.body.clone(),
        server: "",
        now: time::OffsetDateTime::from_unix_timestamp(claim.time).unwrap(),
    };
    for (munged, cluster, good) in
        [(&lab, "lab", true), (&hpc, "hpc", true), (&hpc, "lab", false), (&lab, "hpc", false)]
    {
        let mut made = claim(&world, &Method::POST, OPEN, "");
        (made.server, made.cluster) = (String::new(), cluster.parse().unwrap());
        let seen = verifier.verify(munged.encode(&made), &expected(&made)).await;
        assert_eq!(seen.is_ok(), good, "{cluster}: {seen:?}");
        if let Err(refusal) = seen {
            assert!(refusal.status() == 401 && refusal.to_string().contains("another cluster's"), "{refusal}");
        }
    }
}

/// Slurm writes a cluster's name in lower case, and the configuration need not.
#[tokio::test]
#[cfg_attr(not(munge_as_root), ignore = "needs root, munged and munge")]
async fn a_clusters_name_is_compared_as_slurm_compares_it() {
    let munged = Munged::start();
    let world = World::with(Some(munged.socket()), 64).await;
    let body = r#"{"job":7,"restart":0,"uid":1001,"account":"genomics"}"#;
    let signed = Claim { cluster: "Lab".parse().unwrap(), ..claim(&world, &Method::POST, OPEN, body) };
    let credential = format!("Munge {}", munged.encode(&signed));
    let first = world.call(None, request(Method::POST, OPEN, Some(&credential), body)).await;
    assert_eq!(first.status, 200, "{first:?}");
    let certified = world.certificate("credd:node:LAB:n1");
    let second = world.call(Some(&certified), request(Method::POST, OPEN, None, body)).await;
    assert_eq!((second.status, second.json()["session"].clone()), (200, first.json()["session"].clone()), "{second:?}");
    assert_eq!(second.json()["cluster"], "lab", "the store has one spelling");
    let listed = world.call_admin(request(Method::GET, "/admin/v1/sessions?cluster=lAB", None, "")).await;
    assert_eq!(listed.json()["sessions"].as_array().unwrap().len(), 1, "{listed:?}");
}
