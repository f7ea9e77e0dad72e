//! Revocation, whichever replica is told of it and whichever the nodes hang on.

use std::sync::Arc;

use credd_protocol::node_api::{Event, HEARD, OPEN, OpenResponse, STREAM, credentials_path};
use credvend::deny::iam::POLICY_NAME;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::munged::Munged;
use super::site::{self, Site, Stream};
use super::{credentials_of, opening};

/// What `credvend revoke` ends with where something is lacking.
const LACKING: i32 = 3;

/// A node that drops at once what it is told to, and says so to the replica that it hangs on.
async fn obeys(http: reqwest::Client, munged: Arc<Munged>, url: String, node: &'static str, mut stream: Stream) {
    let Event::Hello { epoch, .. } = stream.next().await else { panic!("no hello") };
    loop {
        if let Event::Invalidated { seq, answer: true, .. } = stream.next().await {
            let heard = json!({ "epoch": epoch, "seqs": [seq] }).to_string();
            let credential = munged.say(node, "POST", HEARD, &heard);
            let (status, said) = site::from_node(&http, &url, "POST", HEARD, &credential, &heard).await;
            assert_eq!(status, 200, "{said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
#[cfg_attr(not(munge_as_root), ignore = "needs root, munged and munge")]
async fn nodes_at_both_replicas_answer_a_revocation_at_one_and_what_they_hold_is_dead() {
    let munged = Arc::new(Munged::start());
    let site = Site::start(2, Some(munged.socket())).await;
    let places = [("n1", site.url(0)), ("n2", site.url(1))];
    let say = async |(node, url): &(&'static str, String), target: &str, body: &Value| {
        let body = body.to_string();
        let credential = munged.say(node, "POST", target, &body);
        site.node(url, "POST", target, &credential, &body).await
    };
    let mut nodes = JoinSet::new();
    for (node, url) in places.clone() {
        let stream = site.stream(&url, &munged, node, STREAM).await;
        nodes.spawn(obeys(site.http(), munged.clone(), url, node, stream));
    }
    // Nodes have two seconds for their answer, of which a busy machine may take all: then it is tried again with the next
    // run of the job.
    for restart in 0.. {
        site.job_seven_runs_again(restart);
        let job = json!({ "job": 7, "restart": restart, "uid": 1001 });
        let (mut session, mut documents) = (None, vec![]);
        for place in &places {
            let (status, said) = say(place, OPEN, &job).await;
            assert_eq!(status, 200, "{said}");
            let opened = serde_json::from_str::<OpenResponse>(&said).unwrap().session;
            assert_eq!(*session.get_or_insert(opened), opened);
            documents.push(
                issued(async || say(place, &credentials_path(opened), &json!({ "role": "default" })).await).await,
            );
        }
        for document in &documents {
            assert_eq!(site.reads(document).await, 200);
        }
        let session = session.unwrap();
        let said = site.run(0, &["revoke", "--user", "alice", "--why", "has left", "--json"]);
        let report: Value = serde_json::from_str(&said.out).unwrap();
        assert_eq!(report["sessions"], json!([session]), "{report}");
        assert_eq!(report["roles"][0]["denied-total"], 2, "{report}");
        assert!(report["roles"][0]["in-force"] == true && report["took"]["deny-ms"].is_u64(), "{report}");
        assert_eq!(report["nodes"]["concerned"], 2, "{report}");
        for document in &documents {
            assert_eq!(site.reads(document).await, 403, "{report}");
        }
        for place in &places {
            let (status, said) = say(place, &credentials_path(session), &json!({ "role": "default" })).await;
            assert!((400..500).contains(&status) && said.contains("has left"), "{status} {said}");
        }
        if report["nodes"]["dropped"] == report["nodes"]["concerned"] {
            assert_eq!(said.code, 0, "{report}");
            assert!(report["took"]["drop-ms"].is_u64(), "{report}");
            break;
        }
        assert_eq!(said.code, LACKING, "{report}");
        assert!(restart < 4, "{report}");
    }
    // The job's next run gets keys that live.
    site.job_seven_runs_again(9);
    let (status, said) = say(&places[1], OPEN, &json!({ "job": 7, "restart": 9, "uid": 1001 })).await;
    assert_eq!(status, 200, "{said}");
    let opened: OpenResponse = serde_json::from_str(&said).unwrap();
    let wish = json!({ "role": "default" });
    let later = issued(async || say(&places[1], &credentials_path(opened.session), &wish).await).await;
    assert_eq!(site.reads(&later).await, 200);
}

/// The document, as a node gets it at last: what is issued within a moment of a revocation of the same name is dead, too.
async fn issued(ask: impl AsyncFn() -> (u16, String)) -> Value {
    let end = std::time::Instant::now() + site::DEADLINE;
    loop {
        match ask().await {
            (200, said) => return serde_json::from_str::<Value>(&said).unwrap()["credentials"].clone(),
            (503, _) if std::time::Instant::now() < end => {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            refused => panic!("{refused:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn revocations_at_both_replicas_at_once_lose_no_entry_of_the_policy() {
    const USERS: usize = 8;
    let site = Arc::new(Site::start(2, None).await);
    let head = Some(site::SECRET);
    let mut documents = vec![];
    // The last one's name is how the others' begin.
    for user in (0..USERS).map(|i| format!("user{i}")).chain(["user".to_owned()]) {
        let url = site.url(documents.len() % 2);
        let place = format!("{url}/sessions");
        let (status, opened) = site.call("POST", &place, head, Some(&opening(&user, &user, "s1"))).await;
        assert_eq!(status, 200, "{opened}");
        let token = opened["AWS_CONTAINER_AUTHORIZATION_TOKEN"].as_str();
        let (status, document) = site.call("GET", &format!("{url}{}", credentials_of(&user)), token, None).await;
        assert_eq!(status, 200, "{document}");
        assert_eq!(site.reads(&document).await, 200);
        documents.push(document);
    }
    let mut revoking = JoinSet::new();
    for i in 0..USERS {
        let (site, place) = (site.clone(), format!("{}/sessions/users/user{i}", site.url(i / 2 % 2)));
        revoking.spawn(async move { site.call("DELETE", &place, head, None).await });
    }
    let mut names = vec![];
    for (status, report) in revoking.join_all().await {
        assert_eq!(status, 200, "{report}");
        names.push(report["roles"][0]["denied"][0]["user-id"].as_str().unwrap().to_owned());
    }
    let bystander = documents.pop().unwrap();
    for document in &documents {
        assert_eq!(site.reads(document).await, 403, "{document}");
    }
    assert_eq!(site.reads(&bystander).await, 200);
    let policy = site.aws.iam().get_role_policy().role_name("genomics").policy_name(POLICY_NAME).send().await.unwrap();
    let policy = policy.policy_document.replace("%3A", ":").replace("%22", "\"");
    for name in &names {
        assert!(policy.contains(&format!("\"{name}\"")), "{name} is not in {policy}");
    }
    assert_eq!(policy.matches(names[0].split(':').next().unwrap()).count(), USERS, "{policy}");
}
