//! The administrators' verbs.

use hyper::Method;

use super::world::{World, request};

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
    assert_eq!((&status["store"], &status["projects"]), (&"ok".into(), &1.into()), "{status}");
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
