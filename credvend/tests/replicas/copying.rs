//! `credvend store copy`: a site goes from one store to the other and back, and nobody serves from half a copy.

use std::sync::Arc;

use credvend::store::archive::{self, Archive, Part};
use credvend::store::dynamo::{DynamoStore, Tables};
use credvend::store::sqlite::SqliteStore;
use serde_json::{Value, json};

use super::site::{self, Site};
use super::{credentials_of, opening};

/// What an administrator sees of it.
fn seen(site: &Site, replica: usize) -> Vec<Value> {
    let mut all: Vec<Value> =
        [&["session", "list", "--json"][..], &["revocation", "list", "--json"], &["block", "list", "--json"]]
            .into_iter()
            .map(|args| site.json(replica, args))
            .collect();
    for session in all[0].as_array().unwrap().clone() {
        all.push(site.json(replica, &["session", "show", session["session"].as_str().unwrap(), "--json"]));
    }
    all
}

fn refused(site: &Site, args: &[&str], why: &str) {
    let said = site.run(0, args);
    assert_eq!(said.code, 1, "{args:?}: {}{}", said.out, said.err);
    assert!(said.err.contains(why), "{args:?}: {}", said.err);
}

const TO_SQLITE: [&str; 6] = ["store", "copy", "--from", "dynamodb", "--to", "sqlite"];
const TO_DYNAMODB: [&str; 6] = ["store", "copy", "--from", "sqlite", "--to", "dynamodb"];
const DYNAMODB: &str = "kind = \"dynamodb\"\n";
const SQLITE: &str = "kind = \"sqlite\"\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn a_site_is_copied_to_sqlite_and_back_and_half_a_copy_serves_nobody() {
    let mut site = Site::start(1, None).await;
    let url = site.url(0);
    let head = Some(site::SECRET);
    let mut tokens = vec![];
    for user in ["alice", "bob", "carol"] {
        let place = format!("{url}/sessions");
        let (status, opened) = site.call("POST", &place, head, Some(&opening(user, user, "s1"))).await;
        assert_eq!(status, 200, "{opened}");
        let token = opened["AWS_CONTAINER_AUTHORIZATION_TOKEN"].as_str().unwrap().to_owned();
        let (status, document) = site.call("GET", &format!("{url}{}", credentials_of(user)), Some(&token), None).await;
        assert_eq!(status, 200, "{document}");
        tokens.push((user, token, document));
    }
    let done = json!({ "status": "COMPLETED" });
    let (status, said) = site.call("PUT", &format!("{url}/sessions/bob/cluster/hpc"), head, Some(&done)).await;
    assert_eq!(status, 200, "{said}");
    site.done(0, &["revoke", "--user", "carol", "--block", "--why", "has left"]);
    let before = seen(&site, 0);
    assert_eq!(before[0].as_array().unwrap().len(), 3);

    refused(&site, &TO_SQLITE, "a credvend runs here");
    site.stop(0).await;
    refused(&site, &["store", "copy", "--from", "sqlite", "--to", "sqlite"], "the same store");
    refused(&site, &TO_DYNAMODB, "there is no ");
    refused(&site, &[&TO_SQLITE[..], &["--resume"]].concat(), "no copy into the target was cut off");
    let said = site.done(0, &TO_SQLITE);
    assert!(said.contains("sessions: 3, as in the source") && said.contains("everything is copied"), "{said}");
    refused(&site, &TO_SQLITE, "the target is not empty");
    refused(&site, &TO_DYNAMODB, "the target is not empty");

    // The same site on the other store: its tokens count, its revocation stands, and it lives on.
    site.reconfigure(0, DYNAMODB, SQLITE);
    site.spawn(0).await;
    assert_eq!(seen(&site, 0), before);
    for (user, token, document) in &tokens {
        let (status, said) = site.call("GET", &format!("{url}{}", credentials_of(user)), Some(token), None).await;
        assert_eq!(status == 200, *user == "alice", "{user}: {said}");
        assert_eq!(site.reads(document).await == 200, *user != "carol", "{user}");
    }
    let kept_out = opening("later", "carol", "s2");
    let (status, said) = site.call("POST", &format!("{url}/sessions"), head, Some(&kept_out)).await;
    assert!((400..500).contains(&status), "{status} {said}");
    let (status, said) = site.call("POST", &format!("{url}/sessions"), head, Some(&opening("new", "dave", "s2"))).await;
    assert_eq!(status, 200, "{said}");
    let before = seen(&site, 0);
    site.stop(0).await;

    // Back, to new tables; the first attempt dies on the way.
    site.reconfigure(0, SQLITE, "kind = \"dynamodb\"\ntable-prefix = \"back-\"\n");
    site.make_tables(0).await;
    cut_off(&site).await;
    refused(&site, &TO_DYNAMODB, "copy again with --resume");
    let said = site.refuses_to_serve(0).await;
    assert!(said.contains("a copy into this store was not finished"), "{said}");
    site.reconfigure(0, "site.sqlite", "other.sqlite");
    refused(&site, &TO_SQLITE, "a copy into the source was not finished");
    site.reconfigure(0, "other.sqlite", "site.sqlite");
    let said = site.done(0, &[&TO_DYNAMODB[..], &["--resume"]].concat());
    assert!(said.contains("sessions: 4, as in the source"), "{said}");
    site.spawn(0).await;
    assert_eq!(seen(&site, 0), before);
    let (_, token, _) = &tokens[0];
    let (status, said) = site.call("GET", &format!("{url}{}", credentials_of("alice")), Some(token), None).await;
    assert_eq!(status, 200, "{said}");
}

/// A copy that dies when the sessions are there, and nothing else is.
async fn cut_off(site: &Site) {
    let source: Arc<dyn Archive> = Arc::new(SqliteStore::open(&site.path("site.sqlite")).unwrap());
    let target: Arc<dyn Archive> = Arc::new(DynamoStore::new(site.aws.dynamodb(), Tables::new("back-")));
    let copying = tokio::spawn(async move {
        let dies_later = |part, _| {
            if part != Part::Sessions {
                std::panic::resume_unwind(Box::new("it dies here"));
            }
        };
        archive::copy(source.as_ref(), &target, dies_later).await
    });
    assert!(copying.await.unwrap_err().is_panic());
}
