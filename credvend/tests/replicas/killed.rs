//! Replicas that are killed while they open, vend, end and revoke.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::balancer::Balancer;
use super::site::{self, DEADLINE, Site, until};
use super::{credentials_of, opening};

/// One worker each. The first revokes their own now and then, and the second is not to notice.
const USERS: [&str; 6] = ["bob", "bobby", "alice", "carol", "dave", "erin"];
const KILLS: u32 = 5;
const PER_KILL: u32 = 30;
/// In so many turns once.
const REVOKES: usize = 10;
/// At least so many revocations are seen to their end.
const REVOCATIONS: u32 = 2;

/// What a worker was told is done.
#[derive(Default)]
struct Acknowledged {
    /// Sessions by the head's name, with the keys they got, and whether they have ended.
    sessions: Vec<(String, Vec<String>, bool)>,
    /// Documents that were issued before their user was revoked.
    revoked: Vec<Value>,
    /// Documents of which nothing was revoked.
    living: Vec<Value>,
    retries: u32,
}

/// Opens, vends and ends until it is stopped.
async fn work(
    worker: usize,
    url: String,
    http: reqwest::Client,
    [done, revocations]: [Arc<AtomicU32>; 2],
    stop: Arc<AtomicBool>,
) -> Acknowledged {
    let (mut it, user) = (Acknowledged::default(), USERS[worker]);
    for i in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let id = format!("{worker}-{i}");
        let place = format!("{url}/sessions");
        let asked = Some(opening(&id, user, "s"));
        let opened = site::retried(&http, &mut it.retries, "POST", &place, site::SECRET, asked).await;
        let mut keys = vec![];
        if i % 3 == 0 {
            let token = opened["AWS_CONTAINER_AUTHORIZATION_TOKEN"].as_str().unwrap();
            let place = format!("{url}{}", credentials_of(&id));
            let got = site::retried(&http, &mut it.retries, "GET", &place, token, None).await;
            keys.push(got["AccessKeyId"].as_str().unwrap().to_owned());
            it.living.push(got);
        }
        let end = i % 2 == 0;
        if end {
            let status = if i % 4 == 0 { "COMPLETED" } else { "INVALIDATED" };
            let place = format!("{url}/sessions/{id}/cluster/hpc");
            let asked = Some(json!({ "status": status }));
            site::retried(&http, &mut it.retries, "PUT", &place, site::SECRET, asked).await;
        }
        it.sessions.push((id, keys, end));
        if worker == 0 && i % REVOKES == REVOKES - 1 {
            let place = format!("{url}/sessions/users/{user}");
            site::retried(&http, &mut it.retries, "DELETE", &place, site::SECRET, None).await;
            it.sessions.iter_mut().for_each(|(_, _, ended)| *ended = true);
            it.revoked.append(&mut it.living);
            revocations.fetch_add(1, Ordering::Relaxed);
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    it
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn replicas_that_are_killed_under_load_lose_nothing() {
    let mut site = Site::start(3, None).await;
    let balancer = Balancer::start(site.ports()).await;
    let (done, revocations, stop) =
        (Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default(), Arc::<AtomicBool>::default());
    let mut workers = JoinSet::new();
    for worker in 0..USERS.len() {
        let counts = [done.clone(), revocations.clone()];
        workers.spawn(work(worker, balancer.url(), site.http(), counts, stop.clone()));
    }
    let mut random = 0x2545_f491u32;
    for kill in 1..=KILLS {
        let progress = || done.load(Ordering::Relaxed) >= kill * PER_KILL;
        until("progress under load", progress).await;
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        site.kill_and_restart((random >> 16) as usize % 3).await;
    }
    until("some revocations", || revocations.load(Ordering::Relaxed) >= REVOCATIONS).await;
    stop.store(true, Ordering::Relaxed);
    let mut all = Acknowledged::default();
    while let Some(worker) = workers.join_next().await {
        let worker = worker.unwrap();
        all.sessions.extend(worker.sessions);
        all.revoked.extend(worker.revoked);
        all.living.extend(worker.living);
        all.retries += worker.retries;
    }
    println!(
        "{} sessions acknowledged over {KILLS} kills and {} revocations; {} answers were asked for again",
        all.sessions.len(),
        revocations.load(Ordering::Relaxed),
        all.retries
    );
    every_session_is_there(&site, &all);
    every_revocation_comes_to_its_end(&site, &mut all, &balancer.url()).await;
}

/// Every acknowledged opening and end, as whichever replica sees it.
fn every_session_is_there(site: &Site, all: &Acknowledged) {
    let listed = site.json(1, &["session", "list", "--limit", "100000", "--json"]);
    assert_eq!(listed, site.json(2, &["session", "list", "--limit", "100000", "--json"]));
    let mut by_head: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for session in listed.as_array().unwrap() {
        by_head.entry(session["head-session"].as_str().unwrap().to_owned()).or_default().push(session.clone());
    }
    for (id, keys, ended) in &all.sessions {
        let [session] = &by_head[id][..] else { panic!("{id} is there {} times", by_head[id].len()) };
        assert_eq!(session["status"] != "ACTIVE", *ended, "{session}");
        if !keys.is_empty() {
            let shown = site.json(0, &["session", "show", session["session"].as_str().unwrap(), "--json"]);
            let issued: Vec<_> = shown["issued"].as_array().unwrap().iter().map(|i| i["key-id"].clone()).collect();
            assert!(keys.iter().all(|key| issued.contains(&json!(key))), "{keys:?} of {issued:?}");
        }
    }
}

/// Also of those that a killed replica had begun.
async fn every_revocation_comes_to_its_end(site: &Site, all: &mut Acknowledged, url: &str) {
    // The leases of the dead end by time, for which this does not wait.
    site.end_all_leases().await;
    let orders = site.json(1, &["revocation", "list", "--json"]);
    println!("{} revocations were begun", orders.as_array().unwrap().len());
    until("the end of every order", || {
        orders.as_array().unwrap().iter().all(|order| {
            let report = site.json(1, &["revocation", "show", order["id"].as_str().unwrap(), "--json"]);
            report["unfinished"].is_null()
        })
    })
    .await;
    // What bob gets now, under the same name as before, is not what was revoked.
    let place = format!("{url}/sessions");
    let asked = Some(opening("later", USERS[0], "s"));
    let opened = site::retried(&site.http(), &mut all.retries, "POST", &place, site::SECRET, asked).await;
    let token = opened["AWS_CONTAINER_AUTHORIZATION_TOKEN"].as_str().unwrap();
    let place = format!("{url}{}", credentials_of("later"));
    all.living.push(site::retried(&site.http(), &mut all.retries, "GET", &place, token, None).await);
    let end = Instant::now() + DEADLINE;
    for document in &all.revoked {
        // Where a replica died at the role's policy, the next sweep makes it.
        while site.reads(document).await != 403 {
            assert!(Instant::now() < end, "{} was revoked and lives", document["AccessKeyId"]);
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }
    for document in &all.living {
        assert_eq!(site.reads(document).await, 200, "{} was not revoked", document["AccessKeyId"]);
    }
}
