//! The original deployment of the IAM Credentials API (v1) as the upstream: what it answers, quirks and all, written down
//! from its behaviour.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::server::{Answer, Asked, json as answer, serve};
use crate::service::{CENTRAL_SECRET, DEADLINE, LOCAL_SECRET, Service, before};

const ROLE: &str = "arn:aws:iam::123456789012:role/genomics";

#[derive(Debug, Clone)]
struct Row {
    session: String,
    user: String,
    token: String,
    submitted: i64,
    status: String,
}

#[derive(Default)]
struct Deployment {
    rows: Vec<Row>,
    /// How many tokens its authorizer does not find in time, and so denies for minutes.
    late: usize,
    late_tokens: HashSet<String>,
    /// It has the text's PUT, not the later one.
    short_put: bool,
    /// Its authorizer lets the head revoke.
    revokes: bool,
    /// API Gateway answers, and nothing behind it.
    down: bool,
    /// The same of revocations alone.
    revoking_is_down: bool,
    /// The roles whose policy it has written, by the user in it.
    denied: Vec<String>,
    /// What was asked: method, and path without the stage.
    asked: Vec<String>,
    names: Vec<String>,
}

type Shared = Arc<Mutex<Deployment>>;

async fn start(deployment: Deployment) -> (Shared, String) {
    let shared = Arc::new(Mutex::new(deployment));
    let state = shared.clone();
    let url = serve(move |asked| state.lock().unwrap().respond(&asked)).await;
    (shared, format!("{url}/prod"))
}

fn message(status: u16, text: &str) -> Answer {
    answer(status, json!({ "message": text }))
}

fn denied() -> Answer {
    answer(403, json!({ "Message": "User is not authorized to access this resource with an explicit deny" }))
}

fn no_route() -> Answer {
    message(403, "Missing Authentication Token")
}

impl Deployment {
    fn respond(&mut self, asked: &Asked) -> Answer {
        let Some(path) = asked.path.strip_prefix("/prod/") else { return message(403, "Forbidden") };
        if self.down {
            return message(503, "Service Unavailable");
        }
        self.asked.push(format!("{} {path}", asked.method));
        let parts: Vec<&str> = path.split('/').collect();
        let head = asked.authorization == CENTRAL_SECRET;
        match (asked.method.as_str(), &parts[..]) {
            ("POST", ["sessions"]) if head => self.create(&asked.body),
            ("PUT", ["sessions", session]) if head && self.short_put => self.update(session, &asked.body),
            ("PUT", ["sessions", session, "cluster", "lab"]) if head && !self.short_put => {
                self.update(session, &asked.body)
            }
            ("DELETE", ["sessions", "users", _]) if self.revoking_is_down => message(503, "Service Unavailable"),
            ("DELETE", ["sessions", "users", user]) if head && self.revokes => self.revoke(user),
            ("GET", ["sessions", session, "cluster", "lab", "project", "genomics"]) => self.vend(session, asked),
            ("POST", ["sessions"]) | ("DELETE", ["sessions", "users", _]) => denied(),
            _ => no_route(),
        }
    }

    fn create(&mut self, body: &str) -> Answer {
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let text = |key: &str| body[key].as_str().unwrap().to_owned();
        let strict = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]");
        let Ok(submitted) = time::PrimitiveDateTime::parse(&text("submittedTime"), &strict) else {
            return message(400, "submittedTime not in ISO 8601 format");
        };
        let (session, submitted) = (text("sessionId"), submitted.assume_utc().unix_timestamp());
        if self.rows.iter().any(|row| row.session == session && row.submitted == submitted) {
            return message(400, "Cluster Name, Session ID, and Submitted Time already exist.");
        }
        let token = uuid::Uuid::new_v4().to_string();
        if self.late > 0 {
            self.late -= 1;
            self.late_tokens.insert(token.clone());
        }
        let uri = format!("example.execute-api.us-east-1.amazonaws.com/prod/sessions/{session}/cluster/lab/project/x");
        let opened = answer(
            200,
            json!({
                "APIGATEWAY_AWS_CONTAINER_CREDENTIALS_FULL_URI": format!("https://{uri}"),
                "LOCALHOST_AWS_CONTAINER_CREDENTIALS_FULL_URI": format!("http://localhost:9999/{uri}"),
                "AWS_CONTAINER_AUTHORIZATION_TOKEN": token,
            }),
        );
        self.rows.push(Row { session, user: text("clusterUser"), token, submitted, status: "ACTIVE".into() });
        opened
    }

    fn newest(&mut self, session: &str) -> Option<&mut Row> {
        self.rows.iter_mut().filter(|row| row.session == session).max_by_key(|row| row.submitted)
    }

    fn update(&mut self, session: &str, body: &str) -> Answer {
        let Some(row) = self.newest(session) else {
            return message(404, "clusterName and sessionId combination invalid");
        };
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        row.status = body["status"].as_str().unwrap().to_owned();
        answer(200, json!({ "SessionId": session, "Status": row.status }))
    }

    /// Only what is ACTIVE counts.
    fn revoke(&mut self, user: &str) -> Answer {
        let mut hit = false;
        for row in self.rows.iter_mut().filter(|row| row.user == user && row.status == "ACTIVE") {
            row.status = "INVALIDATED".into();
            hit = true;
        }
        if hit {
            self.denied.push(user.to_owned());
        }
        answer(200, "{}")
    }

    fn vend(&mut self, session: &str, asked: &Asked) -> Answer {
        let token = &asked.authorization;
        if self.late_tokens.contains(token) || !self.rows.iter().any(|row| row.token == *token) {
            return denied();
        }
        let Some(row) = self.newest(session) else {
            return message(404, "clusterId and sessionId provided do not exist");
        };
        if row.token != *token {
            return message(403, "Session token provided does not match active clusterId and sessionId");
        }
        if row.status != "ACTIVE" {
            return message(403, "session is not ACTIVE");
        }
        let Some(name) = asked.query.strip_prefix("roleSessionName=") else {
            return message(400, "Missing roleSessionName queryParameter");
        };
        let name = name.to_owned();
        self.names.push(name);
        let python = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]+00:00");
        let expiration = (OffsetDateTime::now_utc() + time::Duration::HOUR).format(&python).unwrap();
        answer(
            200,
            json!({
                "AccessKeyId": format!("ASIA{}", self.names.len()), "Expiration": expiration, "RoleArn": ROLE,
                "SecretAccessKey": "secret", "Token": "token",
            }),
        )
    }
}

fn statuses(deployment: &Shared) -> Vec<String> {
    deployment.lock().unwrap().rows.iter().map(|row| row.status.clone()).collect()
}

#[tokio::test]
async fn a_session_lives_and_ends_there_across_a_restart() {
    let (deployment, url) = start(Deployment::default()).await;
    let mut cluster = Service::start(before(&url, "")).await;
    let (good, said) = cluster.run(&["check-config", "--online"]).await;
    assert!(good && said.contains("the head of cluster lab at http://127.0.0.1"), "{said}");

    let token = cluster.open("7", "alice").await;
    let seen = cluster.credentials("7", &token).await;
    assert_eq!((seen.status, seen.body["AccessKeyId"].as_str()), (200, Some("ASIA1")), "{seen:?}");
    // As every SDK reads it.
    assert!(seen.body["Expiration"].as_str().is_some_and(|at| at.ends_with('Z') && at.contains('T')), "{seen:?}");
    // The name is credvend's, whatever the caller said.
    assert_eq!(deployment.lock().unwrap().names, ["lab-alice-7"]);
    let id = deployment.lock().unwrap().rows[0].session.clone();
    assert!(id.starts_with("7-"), "{id}");

    // It gives no token twice: a newer submission of the same session counts.
    cluster.kill();
    cluster.up().await;
    let seen = cluster.credentials("7", &token).await;
    assert_eq!((seen.status, seen.body["AccessKeyId"].as_str()), (200, Some("ASIA2")), "{seen:?}");
    {
        let deployment = deployment.lock().unwrap();
        let [first, second] = &deployment.rows[..] else { panic!("{:?}", deployment.rows) };
        assert!(first.session == second.session && first.submitted < second.submitted, "{:?}", deployment.rows);
    }
    cluster.complete("7").await;
    cluster.until("the end", || statuses(&deployment).last().is_some_and(|status| status == "COMPLETED")).await;
    assert!(!cluster.log().contains(&token) && !cluster.log().contains(CENTRAL_SECRET));
    for row in &deployment.lock().unwrap().rows {
        assert!(!cluster.log().contains(&row.token), "an upstream's token is in no log");
    }
}

#[tokio::test]
async fn a_token_that_its_authorizer_did_not_find_in_time_is_replaced() {
    let (deployment, url) = start(Deployment { late: 1, ..Default::default() }).await;
    let cluster = Service::start(before(&url, "")).await;
    let token = cluster.open("7", "alice").await;
    let seen = cluster.credentials("7", &token).await;
    assert_eq!(seen.status, 200, "{seen:?}");
    assert_eq!(deployment.lock().unwrap().rows.len(), 2);
}

#[tokio::test]
async fn the_short_put_is_used_where_there_is_no_other() {
    let (deployment, url) = start(Deployment { short_put: true, ..Default::default() }).await;
    let cluster = Service::start(before(&url, "")).await;
    let token = cluster.open("7", "alice").await;
    assert_eq!(cluster.credentials("7", &token).await.status, 200);
    cluster.complete("7").await;
    cluster.until("the end", || statuses(&deployment) == ["COMPLETED"]).await;
}

#[tokio::test]
async fn a_user_is_revoked_there_while_the_sessions_are_active() {
    let (deployment, url) = start(Deployment { revokes: true, ..Default::default() }).await;
    let cluster = Service::start(before(&url, "")).await;
    let mut bobbys = None;
    for (session, user) in [("1", "bob"), ("2", "bob"), ("4", "alice"), ("3", "bobby")] {
        let token = cluster.open(session, user).await;
        let seen = cluster.credentials(session, &token).await;
        assert_eq!(seen.status, 200);
        bobbys = Some((token, seen.body["AccessKeyId"].clone()));
    }
    let (token, before) = bobbys.unwrap();
    let seen = cluster.call("DELETE", "/sessions/users/bob", LOCAL_SECRET, None).await;
    assert_eq!(seen.status, 200, "{seen:?}");
    // It denies only what ACTIVE sessions have: an end that came first would have left nothing to deny.
    assert_eq!(deployment.lock().unwrap().denied, ["bob"]);
    assert_eq!(statuses(&deployment), ["INVALIDATED", "INVALIDATED", "ACTIVE", "ACTIVE"]);
    // Its Deny is on names with "bob" in them: bobby's keys are dead, and bobby is given new ones.
    let hit = &seen.body["upstream-hit"];
    assert!(hit[0]["user"] == "bobby" && hit[0]["active"] == true && hit.as_array().unwrap().len() == 1, "{seen:?}");
    let deletes = deployment.lock().unwrap().asked.iter().filter(|asked| asked.starts_with("DELETE")).count();
    assert_eq!(deletes, 1);
    let seen = cluster.credentials("3", &token).await;
    assert!(seen.status == 200 && seen.body["AccessKeyId"] != before, "{before} is dead: {seen:?}");
}

#[tokio::test]
async fn what_ended_sessions_hold_is_not_called_denied() {
    let (deployment, url) = start(Deployment { revokes: true, ..Default::default() }).await;
    let cluster = Service::start(before(&url, "")).await;
    let (good, said) = cluster.run(&["revoke", "--user", "bob"]).await;
    assert!(!good && said.contains("nothing that was issued lives"), "{said}");
    for session in ["1", "2"] {
        let token = cluster.open(session, "bob").await;
        assert_eq!(cluster.credentials(session, &token).await.status, 200);
    }
    let (good, said) = cluster.run(&["revoke", "--user", "bob", "--dry-run"]).await;
    assert!(good && said.contains("2 sets of credentials are from it, and its to deny"), "{said}");
    cluster.complete("1").await;
    cluster.until("the end", || statuses(&deployment) == ["COMPLETED", "ACTIVE"]).await;
    let (good, said) = cluster.run(&["revoke", "--user", "bob"]).await;
    assert!(
        !good && said.contains("1 sets of credentials that the upstream gave to sessions which had ended"),
        "{said}"
    );
    assert!(!said.contains("nothing that was issued lives"), "{said}");
    assert_eq!(deployment.lock().unwrap().denied, ["bob"], "what was ACTIVE is denied");
}

#[tokio::test]
async fn where_it_lets_nobody_revoke_the_report_says_so_and_the_sessions_end() {
    let (deployment, url) = start(Deployment::default()).await;
    let cluster = Service::start(before(&url, "")).await;
    let token = cluster.open("1", "bob").await;
    assert_eq!(cluster.credentials("1", &token).await.status, 200);
    let seen = cluster.call("DELETE", "/sessions/users/bob", LOCAL_SECRET, None).await;
    assert_eq!(seen.status, 202, "{seen:?}");
    assert!(seen.body.to_string().contains("it lets this head revoke nobody"), "{seen:?}");
    assert_eq!(cluster.credentials("1", &token).await.status, 403);
    cluster.until("the end", || statuses(&deployment) == ["INVALIDATED"]).await;
}

#[tokio::test]
async fn what_its_api_cannot_revoke_is_said() {
    let (deployment, url) = start(Deployment { revokes: true, ..Default::default() }).await;
    let cluster = Service::start(before(&url, "")).await;
    let token = cluster.open("1", "bob").await;
    assert_eq!(cluster.credentials("1", &token).await.status, 200);
    let (_, said) = cluster.run(&["revoke", "--project", "genomics", "--json"]).await;
    assert!(said.contains("1 sets of credentials that the upstream gave live until they expire"), "{said}");
    assert_eq!(cluster.credentials("1", &token).await.status, 403);
    cluster.until("the end", || statuses(&deployment) == ["INVALIDATED"]).await;
    assert!(deployment.lock().unwrap().denied.is_empty());
}

/// A revocation that is on its way arrives before the user's next session, which it must not hit.
#[tokio::test]
async fn a_revocation_that_was_not_heard_comes_before_the_users_next_session() {
    let (deployment, url) = start(Deployment { revokes: true, ..Default::default() }).await;
    let mut cluster = Service::start(before(&url, "")).await;
    let token = cluster.open("1", "bob").await;
    assert_eq!(cluster.credentials("1", &token).await.status, 200);
    let bobbys = cluster.open("3", "bobby").await;
    deployment.lock().unwrap().down = true;
    let seen = cluster.call("DELETE", "/sessions/users/bob", LOCAL_SECRET, None).await;
    assert!(seen.status == 202 && seen.body.to_string().contains("it is told as soon as it hears"), "{seen:?}");
    let next = cluster.open("2", "bob").await;
    let refused = cluster.credentials("2", &next).await;
    assert!(refused.status == 503 && refused.message().contains("must revoke bob first"), "{refused:?}");
    // Who is killed meanwhile remembers it.
    cluster.kill();
    {
        let mut deployment = deployment.lock().unwrap();
        (deployment.down, deployment.revoking_is_down) = (false, true);
    }
    cluster.up().await;
    let before = cluster.credentials_soon("3", &bobbys).await;
    assert_eq!(cluster.credentials("3", &bobbys).await.body, before.body, "credvend keeps it");
    deployment.lock().unwrap().revoking_is_down = false;
    cluster.credentials_soon("2", &next).await;
    assert_eq!(deployment.lock().unwrap().denied, ["bob"]);
    assert_eq!(statuses(&deployment), ["INVALIDATED", "ACTIVE", "ACTIVE"]);
    // Its Deny is on names with "bob" in them: bobby is given new keys, although nobody waits for an answer any more.
    let end = Instant::now() + DEADLINE;
    loop {
        let now = cluster.credentials_soon("3", &bobbys).await;
        if now.body["AccessKeyId"] != before.body["AccessKeyId"] {
            break;
        }
        assert!(Instant::now() < end, "{before:?} is dead: {now:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn the_command_line_says_whose_the_roles_are() {
    let (_deployment, url) = start(Deployment::default()).await;
    let cluster = Service::start(before(&url, "")).await;
    let (good, said) = cluster.run(&["project", "list"]).await;
    assert!(good && said.contains("genomics") && said.contains("from the upstream"), "{said}");
    let (good, said) = cluster.run(&["project", "set", "climate", "--role-arn", ROLE]).await;
    assert!(!good && said.contains("to be edited by hand"), "{said}");
}
