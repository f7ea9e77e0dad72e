//! The IAM Credentials API (v1), on the wire.

use std::sync::atomic::Ordering;

use credvend::server::head_secrets::HeadSecrets;
use hyper::Method;
use time::OffsetDateTime;

use super::world::{SECRET, World, opening, request};

const PATH: &str = "/sessions/1300/cluster/lab/project/genomics?roleSessionName=lab-root-n9";

#[tokio::test]
async fn a_session_from_post_to_completed() {
    let world = World::start().await;
    let seen = world
        .call(None, request(Method::POST, "/sessions", Some(SECRET), &opening("1300", "2023-08-15T00:00:00")))
        .await;
    assert_eq!(seen.status, 200, "{}", seen.text);
    let answer = seen.json();
    let path = "sessions/1300/cluster/lab/project/genomics";
    assert_eq!(answer["APIGATEWAY_AWS_CONTAINER_CREDENTIALS_FULL_URI"], format!("https://credvend.example.org/{path}"));
    assert_eq!(answer["LOCALHOST_AWS_CONTAINER_CREDENTIALS_FULL_URI"], format!("http://127.0.0.1:9999/{path}"));
    let token = answer["AWS_CONTAINER_AUTHORIZATION_TOKEN"].as_str().unwrap();
    assert_eq!(answer.as_object().unwrap().len(), 3, "{answer}");

    let seen = world.call(None, request(Method::GET, PATH, Some(token), "")).await;
    assert_eq!((seen.status, &seen.headers["content-type"]), (200, &"application/json".parse().unwrap()));
    assert_eq!(seen.headers["cache-control"], "no-store");
    let document = seen.json();
    for field in ["AccessKeyId", "SecretAccessKey", "Token", "Expiration", "RoleArn"] {
        assert!(document[field].is_string(), "{field} in {document}");
    }
    assert!(document["Expiration"].as_str().unwrap().ends_with('Z') && document.get("Code").is_none());
    let nodes_proxy = "import datetime, sys; print(datetime.datetime.fromisoformat(sys.argv[1][:-6]))";
    let read = |text: &str| {
        let python = std::process::Command::new("python3").args(["-c", nodes_proxy, text]).output().unwrap();
        assert!(python.status.success(), "{text}: {}", String::from_utf8_lossy(&python.stderr));
        String::from_utf8(python.stdout).unwrap()
    };
    let expiration = document["Expiration"].as_str().unwrap();
    let seconds = expiration[..19].replace('T', " ");
    assert_eq!(read(expiration).trim(), seconds, "as the node proxy of the IAM Credentials API (v1) reads it");
    let at = OffsetDateTime::parse(expiration, &time::format_description::well_known::Rfc3339).unwrap();
    assert!(at > OffsetDateTime::now_utc(), "as SDKs read it: {at}");
    // The caller's roleSessionName said root on n9.
    let name = world.aws.asked.lock().unwrap()[0].session_name.clone();
    assert!(name.contains("alice") && !name.contains("root"), "{name}");

    let put = |path, status: &str| request(Method::PUT, path, Some(SECRET), &format!(r#"{{"status":"{status}"}}"#));
    assert_eq!(world.call(None, put("/sessions/1300", "ACTIVE")).await.status, 200);
    assert_eq!(world.call(None, put("/sessions/1300/cluster/lab", "COMPLETED")).await.status, 200);
    assert_eq!(world.call(None, put("/sessions/1300", "COMPLETED")).await.status, 200, "told twice");
    let seen = world.call(None, request(Method::GET, PATH, Some(token), "")).await;
    assert_eq!(seen.refusal(), (403, "SessionEnded".into()));
    let error = seen.json();
    assert_eq!((&error["Code"], &error["Message"]), (&error["code"], &error["message"]));
    assert_eq!(world.call(None, put("/sessions/9", "COMPLETED")).await.refusal(), (404, "UnknownSession".into()));
    assert_eq!(world.call(None, put("/sessions/1300", "PAUSED")).await.status, 400);
}

/// The admin guide's table of what a head of the original IAM Credentials API meets here: what it says of a session's end.
#[tokio::test]
async fn both_ends_of_a_session_are_final_and_the_answer_to_put_has_two_fields() {
    let world = World::start().await;
    let put = async |session: &str, status: &str| {
        let body = format!(r#"{{"status":"{status}"}}"#);
        world.call(None, request(Method::PUT, &format!("/sessions/{session}"), Some(SECRET), &body)).await
    };
    for (session, end, other) in [("1", "COMPLETED", "INVALIDATED"), ("2", "INVALIDATED", "COMPLETED")] {
        let token = world.open_for_head(session, "2023-08-15T00:00:00").await;
        for status in ["ACTIVE", end, end] {
            let seen = put(session, status).await;
            assert_eq!(seen.status, 200, "{}", seen.text);
            assert_eq!(seen.json(), serde_json::json!({ "sessionId": session, "status": status }));
        }
        for refused in ["ACTIVE", other] {
            assert_eq!(put(session, refused).await.refusal(), (403, "SessionEnded".into()), "{refused} after {end}");
        }
        let path = format!("/sessions/{session}/cluster/lab/project/genomics");
        let seen = world.call(None, request(Method::GET, &path, Some(&token), "")).await;
        assert_eq!(seen.refusal(), (403, "SessionEnded".into()));
    }
    assert_eq!(put("3", "ACTIVE").await.refusal(), (404, "UnknownSession".into()));
    assert_eq!(put("1", "PAUSED").await.status, 400);
}

/// What it says of POST: repeated, newer, without a time, for a project without a role.
#[tokio::test]
async fn a_submission_is_told_apart_by_its_time_whatever_form_that_has() {
    let world = World::start().await;
    let post = async |body: &str| world.call(None, request(Method::POST, "/sessions", Some(SECRET), body)).await;
    let first = opening("1", "2023-08-15T00:00:00");
    world.open_for_head("1", "2023-08-15T00:00:00").await;
    assert_eq!(post(&first.replace("alice", "bob")).await.refusal(), (403, "NotAllowed".into()), "repeated for bob");
    let elsewhere = first.replace("genomics", "climate");
    assert_eq!(post(&elsewhere).await.refusal(), (403, "NotAllowed".into()), "repeated for another project");
    let no_role = first.replace("genomics", "unmapped");
    assert_eq!(post(&no_role).await.refusal(), (403, "UnknownProject".into()), "at POST already");

    let token = world.open_for_head("1", "2023-08-15T00:00:01").await;
    let list = request(Method::GET, "/admin/v1/sessions", None, "");
    let listed = world.call_admin(list).await.json()["sessions"].clone();
    let statuses: Vec<_> = listed.as_array().unwrap().iter().map(|s| s["status"].clone()).collect();
    assert_eq!(statuses, ["ACTIVE", "COMPLETED"], "the newest counts: {listed}");
    let get = request(Method::GET, "/sessions/1/cluster/lab/project/genomics", Some(&token), "");
    assert_eq!(world.call(None, get).await.status, 200);
    let complete = request(Method::PUT, "/sessions/1", Some(SECRET), r#"{"status":"COMPLETED"}"#);
    assert_eq!(world.call(None, complete).await.status, 200);
    let again = opening("1", "2023-08-15T00:00:01");
    assert_eq!(post(&again).await.refusal(), (403, "SessionEnded".into()), "the same submission after its end");

    for taken in ["yesterday", "2023-08-15 00:00:00+02:00", "1692057600"] {
        assert_eq!(post(&opening("2", taken)).await.status, 200, "{taken}");
    }
    for refused in ["", "15/08/2023", "x\ty", &"1".repeat(65)] {
        assert_eq!(post(&opening("2", refused)).await.refusal(), (400, "BadRequest".into()), "{refused:?}");
    }
}

/// What it says of 401 and 403, of every verb.
#[tokio::test]
async fn a_proof_that_is_not_known_is_401_and_one_of_the_wrong_kind_403() {
    let world = World::start().await;
    let token = world.open_for_head("1", "2023-08-15T00:00:00").await;
    let replaced = world.open_for_head("2", "2023-08-15T00:00:00").await;
    world.open_for_head("2", "2023-08-15T00:00:00").await;
    let own = "/sessions/1/cluster/lab/project/genomics";
    let completed = r#"{"status":"COMPLETED"}"#;
    let opening = opening("1", "2023-08-15T00:00:00");
    let heads = [
        (Method::POST, "/sessions", opening.as_str()),
        (Method::PUT, "/sessions/1", completed),
        (Method::PUT, "/sessions/1/cluster/lab", completed),
        (Method::DELETE, "/sessions/users/alice", ""),
    ];
    let ask = async |method: &Method, path: &str, proof: Option<&str>, body: &str| {
        world.call(None, request(method.clone(), path, proof, body)).await.refusal()
    };
    let (unknown, wrong_kind) = ((401, "Unauthenticated".to_owned()), (403, "NotAllowed".to_owned()));
    for (method, path, body) in &heads {
        for proof in [None, Some("not-the-secret-0123456789"), Some(token.as_str())] {
            assert_eq!(ask(method, path, proof, body).await, unknown, "{method} {path} with {proof:?}");
        }
    }
    let get = Method::GET;
    for (path, proof) in [
        (own, None),
        (own, Some("not-a-token")),
        (own, Some(replaced.as_str())),
        ("/sessions/2/cluster/lab/project/genomics", Some(token.as_str())),
        ("/sessions/2/cluster/lab/project/genomics", Some(replaced.as_str())),
        ("/sessions/9/cluster/lab/project/genomics", Some(token.as_str())),
        ("/sessions/1/cluster/hpc/project/genomics", Some(token.as_str())),
    ] {
        assert_eq!(ask(&get, path, proof, "").await, unknown, "{path} with {proof:?}");
    }
    assert_eq!(ask(&get, own, Some(SECRET), "").await, wrong_kind, "the head's secret is no session token");
    let project = "/sessions/1/cluster/lab/project/climate";
    assert_eq!(ask(&get, project, Some(&token), "").await, wrong_kind, "its own session, another project");
    // The head of lab speaks for lab alone.
    let hpc = opening.replace("\"lab\"", "\"hpc\"");
    assert_eq!(ask(&Method::POST, "/sessions", Some(SECRET), &hpc).await, wrong_kind);
    assert_eq!(ask(&Method::PUT, "/sessions/1/cluster/hpc", Some(SECRET), completed).await, wrong_kind);
    // None of them did anything; and a token needs no roleSessionName.
    assert_eq!(world.call(None, request(get, own, Some(&token), "")).await.status, 200);
}

#[test]
fn one_secret_for_two_clusters_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, secret: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("{secret}\n")).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        (name.parse().unwrap(), path)
    };
    let problems = HeadSecrets::open(vec![file("lab", SECRET), file("hpc", SECRET)]).err().unwrap();
    assert!(problems.iter().any(|why| why.contains("lab") || why.contains("hpc")), "{problems:?}");
    assert!(!problems.concat().contains(SECRET));
    assert!(HeadSecrets::open(vec![file("lab", SECRET), file("hpc", "another-secret-0123456789")]).is_ok());
}

#[tokio::test]
async fn a_post_whose_answer_was_lost_is_repeated() {
    let world = World::start().await;
    let mut tokens = vec![];
    for _ in 0..2 {
        let post = request(Method::POST, "/sessions", Some(SECRET), &opening("1300", "2023-08-15T00:00:00"));
        let seen = world.call(None, post).await;
        assert_eq!(seen.status, 200, "{}", seen.text);
        tokens.push(seen.json()["AWS_CONTAINER_AUTHORIZATION_TOKEN"].as_str().unwrap().to_owned());
    }
    let old = world.call(None, request(Method::GET, PATH, Some(&tokens[0]), "")).await;
    assert_eq!(old.refusal(), (401, "Unauthenticated".into()));
    assert_eq!(world.call(None, request(Method::GET, PATH, Some(&tokens[1]), "")).await.status, 200);
}

#[tokio::test]
async fn every_path_works_behind_a_stage() {
    let world = World::start().await;
    let seen =
        world.call(None, request(Method::POST, "/prod/sessions", Some(SECRET), &opening("5", "2023-01-01"))).await;
    let answer = seen.json();
    let uri = answer["LOCALHOST_AWS_CONTAINER_CREDENTIALS_FULL_URI"].as_str().unwrap();
    let path = uri.strip_prefix("http://127.0.0.1:9999").unwrap();
    assert_eq!(path, "/prod/sessions/5/cluster/lab/project/genomics");
    let token = answer["AWS_CONTAINER_AUTHORIZATION_TOKEN"].as_str().unwrap();
    assert_eq!(world.call(None, request(Method::GET, path, Some(token), "")).await.status, 200);
    for target in ["/prod/sessions/5", "/x/sessions/5/cluster/lab"] {
        let seen = world.call(None, request(Method::PUT, target, Some(SECRET), r#"{"status":"ACTIVE"}"#)).await;
        assert_eq!(seen.status, 200, "{target}");
    }
    let seen = world.call(None, request(Method::DELETE, "/prod/sessions/users/alice", Some(SECRET), "")).await;
    assert_eq!(seen.status, 200, "{}", seen.text);
    let seen = world.call(None, request(Method::GET, path, Some(token), "")).await;
    assert_eq!(seen.refusal(), (403, "SessionEnded".into()));
}

#[tokio::test]
async fn delete_ends_exactly_that_user_and_says_what_aws_did_not_do() {
    let world = World::start().await;
    let token = world.open_for_head("5", "2023-01-01").await;
    let path = "/sessions/5/cluster/lab/project/genomics";
    assert_eq!(world.call(None, request(Method::GET, path, Some(&token), "")).await.status, 200);
    let delete = |user: &str| request(Method::DELETE, &format!("/sessions/users/{user}"), Some(SECRET), "");
    let seen = world.call(None, delete("alic")).await;
    assert_eq!((seen.status, seen.json()["sessions"].as_array().unwrap().len()), (200, 0));
    world.aws.iam_down.store(true, Ordering::SeqCst);
    let seen = world.call(None, delete("alice")).await;
    let report = seen.json();
    assert_eq!((seen.status, report["sessions"].as_array().unwrap().len()), (202, 1), "{report}");
    assert_eq!(report["not-denied"].as_array().unwrap().len(), 1, "{report}");
    world.aws.iam_down.store(false, Ordering::SeqCst);
    let seen = world.call(None, delete("alice")).await;
    assert_eq!(seen.status, 200, "{}", seen.text);
    assert_eq!(world.aws.denied.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_wrong_secret_a_wrong_token_and_another_cluster_get_nothing() {
    let world = World::start().await;
    let token = world.open_for_head("5", "2023-01-01").await;
    let post = |secret, body: &str| request(Method::POST, "/sessions", Some(secret), body);
    assert_eq!(world.call(None, post("head-secret-012345678X", &opening("6", "1"))).await.status, 401);
    assert_eq!(world.call(None, post(&token, &opening("6", "1"))).await.status, 401);
    let other = opening("6", "1").replace("lab", "hpc");
    assert_eq!(world.call(None, post(SECRET, &other)).await.refusal(), (403, "NotAllowed".into()));
    let get = |path, token| request(Method::GET, path, Some(token), "");
    let right = "/sessions/5/cluster/lab/project/genomics";
    assert_eq!(world.call(None, get(right, "credd1-0000")).await.status, 401);
    assert_eq!(world.call(None, get(right, SECRET)).await.status, 403, "the head's secret is no session token");
    let project = "/sessions/5/cluster/lab/project/climate";
    assert_eq!(world.call(None, get(project, &token)).await.refusal(), (403, "NotAllowed".into()));
    let cluster = "/sessions/5/cluster/hpc/project/genomics";
    assert_eq!(world.call(None, get(cluster, &token)).await.refusal(), (401, "Unauthenticated".into()));
    assert_eq!(world.call(None, get(right, &token)).await.status, 200);
}

#[tokio::test]
async fn a_secret_is_rotated_without_a_restart() {
    let world = World::start().await;
    let (old, new) = (SECRET, "another-secret-0123456789");
    let try_with = async |secret| world.call(None, request(Method::POST, "/sessions", Some(secret), "{}")).await.status;
    assert_eq!((try_with(old).await, try_with(new).await), (400, 401));
    world.replace_secrets(&format!("{old}\n{new}\n"));
    assert_eq!((try_with(old).await, try_with(new).await), (400, 400));
    world.replace_secrets(&format!("{new}\n"));
    assert_eq!((try_with(old).await, try_with(new).await), (401, 400));
}

#[tokio::test]
async fn a_token_that_is_not_the_sessions_learns_nothing_and_costs_little() {
    let world = World::start().await;
    let node = world.certificate("credd:node:lab:n1");
    let job_seven = r#"{"job":7,"restart":0,"uid":1001,"account":"genomics"}"#;
    let opened = world.call(Some(&node), request(Method::POST, "/node/v1/sessions", None, job_seven)).await;
    assert_eq!(opened.status, 200, "{}", opened.text);
    world.open_for_head("5", "2023-01-01").await;
    // It notes of which clusters there are sessions with tokens.
    world.vending.sweep().await.unwrap();
    let asked = |operation: &str| -> u64 {
        let begin = format!("credvend_store_duration_seconds_count{{operation=\"{operation}\"}} ");
        let text = world.metrics.text();
        text.lines().find_map(|line| line.strip_prefix(begin.as_str())?.parse().ok()).unwrap_or(0)
    };
    let before = (asked("find_head"), asked("list"));
    let mut answers = std::collections::BTreeSet::new();
    // A head's session, a job that a node opened, nothing; a cluster without a head, and one that is not there.
    for (cluster, session) in [("lab", "5"), ("lab", "7"), ("lab", "9"), ("hpc", "7"), ("mars", "7")] {
        let path = format!("/sessions/{session}/cluster/{cluster}/project/genomics");
        let seen = world.call(None, request(Method::GET, &path, Some("credd1-of-somebody-else"), "")).await;
        answers.insert((seen.status, seen.text.replace(&format!("\\\"{session}\\\""), "ID")));
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers.first().unwrap().0, 401);
    let after = (asked("find_head"), asked("list"));
    assert_eq!(
        (after.0 - before.0, after.1 - before.1),
        (3, 0),
        "one question, and only where a head can open sessions"
    );
    // `hpc` has no secret. Its head proves itself by a certificate, for the first time.
    let head = world.certificate("credd:head:hpc");
    let opening = opening("7", "2023-01-01").replace("lab", "hpc");
    let opened = world.call(Some(&head), request(Method::POST, "/sessions", None, &opening)).await;
    let token = opened.json()["AWS_CONTAINER_AUTHORIZATION_TOKEN"].as_str().unwrap().to_owned();
    let path = "/sessions/7/cluster/hpc/project/genomics";
    assert_eq!(world.call(None, request(Method::GET, path, Some(&token), "")).await.status, 200);
    assert_eq!(world.call(None, request(Method::GET, path, Some("credd1-other"), "")).await.status, 401);
}

#[tokio::test]
async fn what_does_not_parse_is_said_as_its_reader_reads_it() {
    let world = World::start().await;
    let bad = format!("{PATH}%zz");
    let seen = world.call(None, request(Method::GET, &bad, Some("a-token"), "")).await;
    let error = seen.json();
    assert_eq!((seen.refusal(), &error["Code"]), ((400, "BadRequest".into()), &"BadRequest".into()), "{error}");
    assert_eq!(error["Message"], error["message"], "an SDK reads one of the two");
    let seen = world.call(None, request(Method::POST, "/sessions/1300", Some(SECRET), "")).await;
    assert_eq!((seen.status, &seen.headers["allow"]), (405, &"PUT".parse().unwrap()));
    for (id, submitted) in [(".", "1"), ("..", "1"), ("a:b", "1"), ("", "1"), ("5", ""), ("5", "1;2")] {
        let post = request(Method::POST, "/sessions", Some(SECRET), &opening(id, submitted));
        assert_eq!(world.call(None, post).await.refusal(), (400, "BadRequest".into()), "{id:?} {submitted:?}");
    }
    let in_order = r#"["5","genomics","lab","alice","2023-01-01"]"#;
    let post = request(Method::POST, "/sessions", Some(SECRET), in_order);
    assert_eq!(world.call(None, post).await.refusal(), (400, "BadRequest".into()), "a body is an object");
}
