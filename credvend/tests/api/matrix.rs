//! Who may ask for what: every principal with every verb.

use std::collections::BTreeSet;

use credvend::server::route::{Callers, find};
use credvend::server::routes::ROUTES;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Request};

use super::munged::Munged;
use super::world::{Identity, SECRET, Seen, World, request, stranger};

/// Each verb once; the body makes an allowed caller's request fail later than at the door, or succeed.
fn verbs(session: &str) -> Vec<(&'static str, Method, String, &'static str)> {
    let uuid = "00000000-0000-4000-8000-000000000000";
    let verb = |name, method, path: &str| (name, method, path.to_owned(), "[]");
    vec![
        verb("head open", Method::POST, "/sessions"),
        verb("head status", Method::PUT, "/sessions/99"),
        verb("head status long", Method::PUT, "/sessions/99/cluster/lab"),
        verb("token", Method::GET, &format!("/sessions/{session}/cluster/lab/project/genomics")),
        verb("user", Method::DELETE, "/sessions/users/zed"),
        verb("node open", Method::POST, "/node/v1/sessions"),
        verb("node attest", Method::POST, "/node/v1/jobs"),
        verb("node credentials", Method::POST, &format!("/node/v1/sessions/{uuid}/credentials")),
        verb("node leave", Method::POST, &format!("/node/v1/sessions/{uuid}/leave")),
        verb("node stream", Method::GET, "/node/v1/stream"),
        verb("node heard", Method::POST, "/node/v1/heard"),
        verb("admin list", Method::GET, "/admin/v1/sessions"),
        verb("admin show", Method::GET, &format!("/admin/v1/sessions/{uuid}")),
        verb("admin close", Method::POST, &format!("/admin/v1/sessions/{uuid}/close")),
        verb("admin projects", Method::GET, "/admin/v1/projects"),
        verb("admin reload", Method::POST, "/admin/v1/reload"),
        verb("admin status", Method::GET, "/admin/v1/status"),
        verb("admin revoke", Method::POST, "/admin/v1/revocations"),
        verb("admin revocations", Method::GET, "/admin/v1/revocations"),
        verb("admin revocation", Method::GET, &format!("/admin/v1/revocations/{uuid}")),
        verb("admin blocks", Method::GET, "/admin/v1/blocks"),
        verb("admin unblock", Method::POST, "/admin/v1/unblock"),
        verb("admin identity", Method::GET, "/admin/v1/identity"),
    ]
}

const HEAD: [&str; 4] = ["head open", "head status", "head status long", "user"];
const NODE: [&str; 6] = ["node open", "node attest", "node credentials", "node leave", "node stream", "node heard"];
const ADMIN: [&str; 13] = [
    "user",
    "admin list",
    "admin show",
    "admin close",
    "admin projects",
    "admin reload",
    "admin status",
    "admin revoke",
    "admin revocations",
    "admin revocation",
    "admin blocks",
    "admin unblock",
    "admin identity",
];

/// The status alone: a stream's body does not end.
async fn status(world: &World, who: Option<&Identity>, request: Request<Full<Bytes>>) -> u16 {
    world.open(who, request).await.unwrap().status().as_u16()
}

fn check(who: &str, verb: &str, allowed: &[&str], refused: u16, status: u16) {
    if allowed.contains(&verb) {
        assert!(!matches!(status, 401 | 403) && status < 500, "{who} may {verb}, but got {status}");
    } else {
        assert_eq!(status, refused, "{who} may not {verb}");
    }
}

#[test]
fn no_route_is_left_out() {
    let tried: BTreeSet<_> = verbs("5")
        .iter()
        .map(|(_, method, path, _)| find(method, path).ok().unwrap().route)
        .map(|route| (route.method.as_str(), route.path))
        .collect();
    let closed = ROUTES.iter().filter(|route| route.callers() != Callers::Everybody);
    let untried: Vec<_> =
        closed.map(|route| (route.method.as_str(), route.path)).filter(|route| !tried.contains(route)).collect();
    assert!(untried.is_empty(), "who may ask for them is not tried: {untried:?}");
}

#[tokio::test]
async fn every_principal_with_every_verb() {
    let world = World::start().await;
    let token = world.open_for_head("5", "2023-01-01").await;
    let node = world.certificate("credd:node:lab:n1");
    let head = world.certificate("credd:head:lab");
    let admin = world.certificate("credd:admin:carol");
    for (verb, method, path, body) in verbs("5") {
        let ask = |authorization| request(method.clone(), &path, authorization, body);
        check("nobody", verb, &[], 401, status(&world, None, ask(None)).await);
        check("a stranger", verb, &[], 401, status(&world, None, ask(Some("some-unknown-secret-1234"))).await);
        check("a head", verb, &HEAD, 403, status(&world, None, ask(Some(SECRET))).await);
        check("a token", verb, &["token"], 401, status(&world, None, ask(Some(&token))).await);
        check("a node certificate", verb, &NODE, 403, status(&world, Some(&node), ask(None)).await);
        check("a head certificate", verb, &HEAD, 403, status(&world, Some(&head), ask(None)).await);
        check("an admin certificate", verb, &ADMIN, 403, status(&world, Some(&admin), ask(None)).await);
        check("the admin socket", verb, &ADMIN, 403, world.call_admin(ask(None)).await.status);
        check("plain http's nobody", verb, &[], 401, world.call_plain(ask(None)).await.status);
    }
}

#[tokio::test]
#[cfg_attr(not(munge_as_root), ignore = "needs root, munged and munge")]
async fn munge_speaks_for_a_node_and_for_nothing_else() {
    let munged = Munged::start();
    let world = World::with(Some(munged.socket()), 64).await;
    world.open_for_head("5", "2023-01-01").await;
    for (verb, method, path, body) in verbs("5") {
        let signed = munged.signed(&world, method, &path, body);
        check("a node", verb, &NODE, 403, status(&world, None, signed).await);
    }
}

#[tokio::test]
async fn certificates_count_only_from_the_authority_and_with_an_exact_name() {
    let world = World::start().await;
    let ask = || request(Method::GET, "/admin/v1/status", None, "");
    let error = world.try_call(Some(&stranger("credd:admin:carol")), ask()).await;
    assert!(error.is_err(), "an unknown authority's certificate is refused in the handshake: {error:?}");
    for uri in ["credd:admin:", "credd:admin:a:b", "credd:root:a", "https://credd:admin:a/", "credd:node:lab:n 1"] {
        let seen = world.call(Some(&world.certificate(uri)), ask()).await;
        assert_eq!(seen.refusal(), (401, "Unauthenticated".into()), "{uri}");
        // Nor does another proof help while such a certificate is shown.
        let with_secret = request(Method::POST, "/sessions", Some(SECRET), "{}");
        assert_eq!(world.call(Some(&world.certificate(uri)), with_secret).await.status, 401, "{uri}");
    }
    let foreign = world.certificate("credd:node:elsewhere:n1");
    let open = request(Method::POST, "/node/v1/sessions", None, "{}");
    assert_eq!(world.call(Some(&foreign), open).await.refusal(), (403, "UnknownCluster".into()));
    let seen: Seen = world.call(Some(&world.certificate("credd:admin:carol")), ask()).await;
    assert_eq!(seen.status, 200);
}
