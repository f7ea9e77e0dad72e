use std::collections::BTreeSet;

use credd_protocol::{ProjectId, UserName};
use proptest::prelude::*;

use super::*;
use crate::server::credentials_api_v1::CredentialsPath;
use crate::server::target::encode_segment;
use crate::server::{admin, node, stream};
use crate::store::Cursor;

/// The row's name and path, and what the target says.
fn found(method: Method, target: &str) -> (&'static str, &'static str, Target) {
    find(&method, target).unwrap_or_else(|(_, refusal)| panic!("{method} {target}: {refusal}"));
    let (route, target) = find_row(&method, target).unwrap();
    (route.name, route.path, target)
}

#[test]
fn the_v1_paths_with_and_without_a_stage() {
    let expected = CredentialsPath {
        session: "1300".into(),
        cluster: "alpha".parse().unwrap(),
        project: "abc".parse().unwrap(),
        claimed: Some("alpha-user1-n1".into()),
    };
    let path = "/sessions/1300/cluster/alpha/project/abc?roleSessionName=alpha-user1-n1&x=%20";
    for (path, stage) in [(path.to_owned(), None), (format!("/prod{path}"), Some("prod"))] {
        let (name, _, target) = found(Method::GET, &path);
        assert_eq!((name, target.stage.as_deref()), ("session-credentials", stage));
        assert_eq!(CredentialsPath::of(&target).unwrap(), expected);
    }
    for (path, stage) in [("/sessions", None), ("/prod/sessions", Some("prod".to_owned()))] {
        let (name, _, target) = found(Method::POST, path);
        assert_eq!((name, target.stage), ("head-open", stage));
    }
    let (name, _, target) = found(Method::PUT, "/sessions/users");
    assert_eq!((name, target.text("sessionId")), ("head-set-status", "users"));
    assert_eq!(target.value_if_there::<ClusterName>("clusterId").unwrap(), None);
    let (name, _, target) = found(Method::PUT, "/p/sessions/users/cluster/c");
    assert_eq!((name, target.text("sessionId")), ("head-set-status", "users"));
    assert_eq!(target.value_if_there::<ClusterName>("clusterId").unwrap(), Some("c".parse().unwrap()));
    let (name, _, target) = found(Method::DELETE, "/sessions/users/DOM%5Cbob");
    assert_eq!((name, target.value("userId").unwrap()), ("invalidate-user", r"DOM\bob".parse::<UserName>().unwrap()));
}

#[test]
fn what_is_not_there_is_told_apart_from_what_is_wrong() {
    for (method, target, status) in [
        (Method::GET, "/", 404),
        (Method::GET, "//sessions", 404),
        (Method::POST, "/a/b/sessions", 404),
        (Method::POST, "/sessions/", 400),
        (Method::POST, "/p.q/sessions", 404),
        (Method::GET, "/sessions", 405),
        (Method::DELETE, "/sessions/sessions/users/bob", 404),
        (Method::POST, "/node/v1/stream", 405),
        (Method::GET, "/node/v1/heard", 405),
        (Method::GET, "/node/v1/jobs", 405),
        (Method::POST, "/node/v1/sessions?project=a", 400),
        (Method::POST, "/node/v1/sessions?partition=a&partition=a", 400),
        (Method::POST, "/node/v1/sessions?partition=", 400),
        (Method::POST, "/node/v1/sessions?partition=a~2", 400),
        (Method::POST, "/node/v1/sessions?partition=~0a", 400),
        (Method::GET, "/node/v1/stream?epoch=a", 400),
        (Method::GET, "/node/v1/stream?after=7", 400),
        (Method::GET, "/node/v1/stream?epoch=a&after=-7", 400),
        (Method::GET, "/node/v1/stream?epoch=a%20b&after=7", 400),
        (Method::GET, "/node/v1/stream?epoch=a&after=7&x=y", 400),
        (Method::POST, "/prod/node/v1/sessions", 404),
        (Method::POST, "/node/v1/sessions/5/leave", 400),
        (Method::GET, "/sessions/1/cluster/a%E2%80%AEb/project/p", 400),
        (Method::GET, "/sessions/1/cluster/a/project/p%", 400),
        (Method::GET, "/sessions/1/cluster/a/project/%00", 400),
        (Method::GET, "/sessions/1/cluster/a/project/p?roleSessionName=%zz", 400),
        (Method::GET, "/admin/v1/sessions?surprise=1", 400),
        (Method::GET, "/admin/v1/sessions?status=gone", 400),
        (Method::DELETE, "/admin/v1/revocations", 405),
    ] {
        let (_, refusal) = find(&method, target).err().unwrap_or_else(|| panic!("{method} {target}"));
        assert_eq!(refusal.status(), status, "{method} {target}: {refusal}");
    }
    assert_eq!(find(&Method::GET, &format!("/{}", "a".repeat(5000))).err().unwrap().1.status(), 400);
    let (_, refusal) = find(&Method::DELETE, "/admin/v1/revocations").err().unwrap();
    assert!(matches!(&refusal, Refusal::MethodNotAllowed { allow, .. } if allow == "GET, POST"), "{refusal:?}");
}

#[test]
fn a_record_states_its_partition() {
    let job = credd_protocol::JobId::try_from(7).unwrap();
    let mut request = credd_protocol::node_api::OpenRequest {
        job,
        restart: 0,
        uid: credd_protocol::Uid(1),
        account: None,
        partition: None,
    };
    for partition in [None, Some("gpu_1.x-y".parse().unwrap())] {
        request.partition = partition.clone();
        let (name, _, target) = found(Method::POST, &request.path());
        assert_eq!((name, node::partition(&target).unwrap()), ("node-open", partition));
    }
}

#[test]
fn a_stream_begins_where_the_node_left_off() {
    let known = |known| {
        let (name, _, target) = found(Method::GET, &credd_protocol::node_api::stream_path(known));
        assert_eq!(name, "node-stream");
        stream::known(&target).unwrap()
    };
    assert_eq!(known(Some(("a-1", 7))), Some(("a-1".into(), 7)));
    assert_eq!(known(None), None);
}

#[test]
fn a_listing_is_chosen_by_its_query() {
    let (name, path, target) = found(Method::GET, "/admin/v1/sessions?status=active&user=bob&job=5&from=x%3Ay");
    assert_eq!((name, path), ("admin", "/admin/v1/sessions"));
    let (filter, from) = admin::choice(&target).unwrap();
    assert_eq!(filter.user.unwrap().as_str(), "bob");
    assert_eq!((filter.job.unwrap().get(), from), (5, Some(Cursor("x:y".into()))));
}

#[test]
fn no_row_is_hidden_by_another() {
    let mut seen = BTreeSet::new();
    for route in ROUTES {
        let path = route.path.replace(['{', '}'], "");
        let path = path.replace("/session/", "/00000000-0000-4000-8000-000000000000/");
        assert!(seen.insert((route.method.as_str(), route.path)), "{} twice", route.path);
        let segments: Vec<String> = path[1..].split('/').map(str::to_owned).collect();
        let first = ROUTES.iter().find(|of| of.method == route.method && of.values(&segments).is_some()).unwrap();
        assert_eq!(first.path, route.path);
    }
}

proptest! {
    #[test]
    fn no_target_panics(target in ".*", method in "(GET|PUT|POST|DELETE|HEAD|BREW)") {
        let method: Method = method.parse().unwrap();
        let _ = find(&method, &target);
        let _ = find(&method, &format!("/sessions/{target}"));
        let _ = find(&method, &format!("/admin/v1/sessions?{target}"));
    }

    #[test]
    fn every_project_can_be_addressed(project in "[ -~é漢]{1,40}") {
        if let Ok(project) = project.parse::<ProjectId>() {
            let path = format!("/sessions/1/cluster/c/project/{}", encode_segment(project.as_str()));
            let (name, _, target) = found(Method::GET, &path);
            prop_assert_eq!(name, "session-credentials");
            prop_assert_eq!(CredentialsPath::of(&target).unwrap().project, project);
        }
    }
}
