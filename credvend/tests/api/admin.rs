//! The administrators' verbs.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Method;
use time::OffsetDateTime;

use super::world::{SECRET, World, opening, request};

/// For what the server does in its own time, on a machine that does much else.
const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn sessions_are_listed_shown_and_closed_without_their_tokens() {
    let world = World::start().await;
    let token = world.open_for_head("5", "2023-01-01").await;
    world.open_for_head("6", "2023-01-01").await;
    let get = |path: &str| request(Method::GET, path, None, "");
    assert_eq!(
        world
            .call(None, request(Method::GET, "/sessions/5/cluster/lab/project/genomics", Some(&token), ""))
            .await
            .status,
        200
    );
    let seen = world.call_admin(get("/admin/v1/sessions?user=alice&status=active&project=genomics&cluster=lab")).await;
    assert_eq!(seen.status, 200, "{}", seen.text);
    let sessions = seen.json()["sessions"].as_array().unwrap().clone();
    assert_eq!(sessions.len(), 2, "{}", seen.text);
    assert!(!seen.text.contains("token"), "{}", seen.text);
    assert_eq!(
        world.call_admin(get("/admin/v1/sessions?user=bob")).await.json()["sessions"].as_array().unwrap().len(),
        0
    );
    assert_eq!(world.call_admin(get("/admin/v1/sessions?from=junk")).await.status, 400);

    let five = sessions.iter().find(|s| s["head-session"] == "5").unwrap()["session"].as_str().unwrap().to_owned();
    let shown = world.call_admin(get(&format!("/admin/v1/sessions/{five}"))).await;
    let issued = shown.json()["issued"].clone();
    assert_eq!((issued.as_array().unwrap().len(), &issued[0]["key-id"]), (1, &"ASIAEXAMPLE".into()), "{}", shown.text);
    assert!(!shown.text.contains("wire-secret") && !shown.text.contains("wire-token"));

    let close = || request(Method::POST, &format!("/admin/v1/sessions/{five}/close"), None, "");
    assert_eq!(world.call_admin(close()).await.status, 200);
    let shown = world.call_admin(get(&format!("/admin/v1/sessions/{five}"))).await.json();
    assert_eq!(shown["session"]["status"], "INVALIDATED");
    let unknown = get("/admin/v1/sessions/00000000-0000-4000-8000-000000000000");
    assert_eq!(world.call_admin(unknown).await.refusal(), (404, "UnknownSession".into()));
}

#[tokio::test]
async fn status_projects_reload_and_health() {
    let world = World::start().await;
    let get = |path: &str| request(Method::GET, path, None, "");
    let status = world.call_admin(get("/admin/v1/status")).await.json();
    assert_eq!((&status["store"], &status["projects"]), (&"ok".into(), &2.into()), "{status}");
    let projects = world.call_admin(get("/admin/v1/projects")).await.json();
    assert_eq!(projects[0]["role-arn"], "arn:aws:iam::123456789012:role/genomics");
    let reload = || request(Method::POST, "/admin/v1/reload", None, "");
    assert_eq!(world.call_admin(reload()).await.status, 200);
    *world.reload.lock().unwrap() = Err(vec!["line 3: no".into()]);
    let seen = world.call_admin(reload()).await;
    assert_eq!((seen.status, &seen.json()["problems"][0]), (409, &"line 3: no".into()));
    for path in ["/health", "/ready"] {
        assert_eq!(world.call(None, get(path)).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_browser_with_an_administrators_certificate_is_of_no_use_to_a_page() {
    let world = World::start().await;
    let carol = world.certificate("credd:admin:carol");
    let status = |name: &str, value: &str| {
        let mut request = request(Method::GET, "/admin/v1/status", None, "");
        request.headers_mut().append(hyper::header::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        request
    };
    for (name, value) in [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("referer", "https://evil.example/"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-mode", "navigate"),
        // A second Host: who is meant?
        ("host", "localhost"),
    ] {
        let seen = world.call(Some(&carol), status(name, value)).await;
        assert_eq!(seen.refusal(), (403, "BrowserRequest".into()), "{name}: {value}");
    }
    assert_eq!(world.call_admin(status("origin", "null")).await.status, 403, "nor at the socket");
    for (host, good) in [
        ("localhost:8443", true),
        ("127.0.0.1", true),
        ("[::1]:8443", true),
        ("CREDVEND.example.org:8443", true),
        ("evil.example:8443", false),
        ("localhost.evil.example", false),
        ("", false),
    ] {
        let mut request = request(Method::GET, "/admin/v1/status", None, "");
        request.headers_mut().insert("host", host.parse().unwrap());
        let seen = world.call(Some(&carol), request).await;
        assert_eq!(seen.status, if good { 200 } else { 403 }, "{host:?}: {}", seen.text);
    }
    // What a page may send to another site without asking there first.
    for simple in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""] {
        let body = r#"{"subject":{"user":"alice"},"dry-run":true}"#;
        let mut request = request(Method::POST, "/admin/v1/revocations", None, body);
        request.headers_mut().insert("content-type", simple.parse().unwrap());
        let seen = world.call(Some(&carol), request).await;
        assert_eq!(seen.refusal(), (403, "BrowserRequest".into()), "{simple}");
    }
    let reload = request(Method::POST, "/admin/v1/reload", None, "");
    assert_eq!(world.call(Some(&carol), reload).await.status, 200);
    // A secret in a header is nothing that a page could add.
    let mut head = request(Method::POST, "/sessions", Some(SECRET), &opening("5", "1"));
    head.headers_mut().insert("origin", "https://portal.example.org".parse().unwrap());
    assert_eq!(world.call(None, head).await.status, 200);
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_at_once_and_a_list_that_ended_lets_nobody_in() {
    let world = World::start().await;
    let (good, stolen) = (world.certificate("credd:node:lab:n1"), world.certificate("credd:node:lab:n2"));
    let stream = || request(Method::GET, "/node/v1/stream", None, "");
    let ask = || request(Method::GET, "/admin/v1/status", None, "");
    let mut streams = Vec::new();
    for identity in [&good, &stolen] {
        let mut body = world.open(Some(identity), stream()).await.unwrap().into_body();
        assert!(body.frame().await.unwrap().is_ok(), "the stream says hello");
        streams.push(body);
    }
    let soon = OffsetDateTime::now_utc() + Duration::from_secs(3600);
    world.revoke(&[&stolen], soon);
    assert!(world.try_call(Some(&stolen), ask()).await.is_err(), "no new connection");
    let cut = async { while let Some(Ok(_)) = streams[1].frame().await {} };
    tokio::time::timeout(LONG, cut).await.expect("nor the one that it has");
    assert_eq!(world.call(Some(&good), ask()).await.status, 403, "others go on");
    world.revoke(&[], OffsetDateTime::now_utc() - Duration::from_secs(60));
    assert!(world.try_call(Some(&good), ask()).await.is_err(), "a list that is not renewed says nothing of anybody");
    let cut = async { while let Some(Ok(_)) = streams[0].frame().await {} };
    tokio::time::timeout(LONG, cut).await.expect("nor the one that it has");
    assert_eq!(world.call(None, request(Method::GET, "/health", None, "")).await.status, 200);
    world.revoke(&[], soon);
    assert_eq!(world.call(Some(&good), ask()).await.status, 403);
    std::fs::write(world.dir.path().join("crl.pem"), "nonsense").unwrap();
    assert!(world.reload_certificates().is_err(), "and what was in force stays");
    assert_eq!(world.call(Some(&good), ask()).await.status, 403);
}
