//! Every request that credvend answers, in one table. A new one is a row here, its handler, and its description in
//! `docs/openapi.yaml`; a test holds the two against each other.
//!
//! A row's handler takes the kind of caller that the route is for, so no other kind can reach it.

use hyper::Method;

use super::route::Handler::{Admin, Bearer, Everybody, Head, HeadOrAdmin, Node};
use super::route::Route;
use super::{admin, credentials_api_v1 as v1, node, revocations, stream};

const DELETE: Method = Method::DELETE;
const GET: Method = Method::GET;
const POST: Method = Method::POST;
const PUT: Method = Method::PUT;

/// Method, path, name in the audit log and the metrics, who may ask and who answers. Of two rows whose paths fit, the
/// first counts.
#[rustfmt::skip]
pub static ROUTES: &[Route] = &[
    Route::new(GET, "/health", "health", Everybody(admin::health)),
    Route::new(GET, "/ready", "ready", Everybody(admin::ready)),

    // The IAM Credentials API (v1). One segment may precede these paths.
    Route::new(POST, "/sessions", "head-open", Head(v1::open)),
    Route::new(DELETE, "/sessions/users/{userId}", "invalidate-user", HeadOrAdmin(v1::invalidate)).recorded(),
    Route::new(PUT, "/sessions/{sessionId}", "head-set-status", Head(v1::set_status)),
    Route::new(PUT, "/sessions/{sessionId}/cluster/{clusterId}", "head-set-status", Head(v1::set_status)),
    Route::new(GET, "/sessions/{sessionId}/cluster/{clusterId}/project/{projectId}", "session-credentials", Bearer(v1::credentials)),

    Route::new(POST, "/node/v1/jobs", "node-attest", Node(node::attest)),
    Route::new(POST, "/node/v1/sessions", "node-open", Node(node::open)),
    Route::new(POST, "/node/v1/sessions/{session}/credentials", "node-credentials", Node(node::credentials)),
    Route::new(POST, "/node/v1/sessions/{session}/leave", "node-leave", Node(node::leave)),
    Route::new(GET, "/node/v1/stream", "node-stream", Node(stream::open)).recorded(),
    Route::new(POST, "/node/v1/heard", "node-heard", Node(node::heard)),

    Route::new(GET, "/admin/v1/sessions", "admin", Admin(admin::sessions)).recorded(),
    Route::new(GET, "/admin/v1/sessions/{session}", "admin", Admin(admin::session)).recorded(),
    Route::new(POST, "/admin/v1/sessions/{session}/close", "admin", Admin(admin::close)).recorded(),
    Route::new(GET, "/admin/v1/revocations", "admin", Admin(revocations::list)).recorded(),
    Route::new(POST, "/admin/v1/revocations", "admin", Admin(revocations::revoke)).recorded(),
    Route::new(GET, "/admin/v1/revocations/{id}", "admin", Admin(revocations::show)).recorded(),
    Route::new(GET, "/admin/v1/blocks", "admin", Admin(revocations::blocks)).recorded(),
    Route::new(POST, "/admin/v1/unblock", "admin", Admin(revocations::unblock)).recorded(),
    Route::new(GET, "/admin/v1/identity", "admin", Admin(admin::identity)).recorded(),
    Route::new(GET, "/admin/v1/projects", "admin", Admin(admin::projects)).recorded(),
    Route::new(POST, "/admin/v1/reload", "admin", Admin(admin::reload)).recorded(),
    Route::new(GET, "/admin/v1/status", "admin", Admin(admin::status)).recorded(),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::server::route::Callers;

    const DOCUMENT: &str = include_str!("../../../docs/openapi.yaml");

    /// Method, path and callers of each operation in the document, which has one `x-callers` below each method.
    fn described() -> BTreeSet<(String, &'static str, &'static str)> {
        let paths = DOCUMENT.split("\npaths:\n").nth(1).unwrap().split("\ncomponents:\n").next().unwrap();
        let (mut path, mut method, mut found) = ("", String::new(), BTreeSet::new());
        for line in paths.lines() {
            match line.trim_start().split_once(':') {
                Some((key, "")) if line.starts_with("  /") => path = key,
                Some((key, "")) if line.starts_with("    ") && !line.starts_with("     ") => {
                    method = key.to_uppercase()
                }
                Some(("x-callers", callers)) => {
                    assert!(found.insert((method.clone(), path, callers.trim())), "{method} {path} twice");
                }
                _ => {}
            }
        }
        found
    }

    #[test]
    fn the_openapi_document_describes_this_table_and_who_may_ask() {
        let word = |callers| match callers {
            Callers::Everybody => "everybody",
            Callers::Head => "head",
            Callers::HeadOrAdmin => "head-or-admin",
            Callers::Bearer => "bearer",
            Callers::Node => "node",
            Callers::Admin => "admin",
        };
        let here: BTreeSet<_> =
            ROUTES.iter().map(|route| (route.method.to_string(), route.path, word(route.callers()))).collect();
        let described = described();
        let lacking: Vec<_> = here.difference(&described).collect();
        let foreign: Vec<_> = described.difference(&here).collect();
        assert!(lacking.is_empty() && foreign.is_empty(), "not in the document: {lacking:?}; not here: {foreign:?}");
    }
}
