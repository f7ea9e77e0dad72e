//! Another credvend as the upstream, with real S3 calls.

use crate::pretend_aws::{PretendAws, ServiceUser};
use crate::service::{CENTRAL_SECRET, LOCAL_SECRET, Service, Setup, before};

struct Site {
    pretend: PretendAws,
    role: String,
    central: Service,
    cluster: Service,
}

const BUCKET: &str = "genomics-data";

async fn central(pretend: &PretendAws, service: &ServiceUser, role: &str) -> Service {
    Service::start(Setup { secret: CENTRAL_SECRET, tls: true, ..before_aws(pretend, service, role) }).await
}

fn aws(pretend: &PretendAws) -> String {
    format!(
        "[aws]\nregion = \"us-east-1\"\nsts-endpoint = \"{0}\"\niam-endpoint = \"{0}\"\nrevoker-roles = [\"{1}\"]\n",
        pretend.endpoint(),
        PretendAws::revoker()
    )
}

/// A cluster's credvend that asks AWS itself.
fn before_aws(pretend: &PretendAws, service: &ServiceUser, role: &str) -> Setup {
    let keys = service.keys.provider();
    Setup {
        toml: aws(pretend),
        projects: format!("[projects.genomics]\nrole-arn = \"{role}\"\n"),
        secret: LOCAL_SECRET,
        tls: false,
        environment: vec![
            ("AWS_ACCESS_KEY_ID", keys.access_key_id().to_owned()),
            ("AWS_SECRET_ACCESS_KEY", keys.secret_access_key().to_owned()),
        ],
    }
}

impl Site {
    async fn new() -> Self {
        let pretend = PretendAws::start().await;
        let service = pretend.create_service_user().await;
        let role = pretend.create_role("genomics", &service.arn, Some(BUCKET)).await;
        let central = central(&pretend, &service, &role).await;
        let pin = central.pin().await;
        let url = format!("https://127.0.0.1:{}", central.port);
        let cluster = Service::start(before(&url, &format!("pin = \"{pin}\"\n"))).await;
        Site { pretend, role, central, cluster }
    }
}

/// (head's session, status) with the job's number cut from what follows it.
fn of<'a>(sessions: &'a [(String, String)], job: &str) -> Vec<&'a str> {
    sessions.iter().filter(|(id, _)| id.split('-').next() == Some(job)).map(|(_, status)| status.as_str()).collect()
}

#[tokio::test]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn a_session_here_is_a_session_there_until_it_ends() {
    let Site { pretend, role, mut central, mut cluster } = Site::new().await;
    let (good, said) = cluster.run(&["check-config", "--online"]).await;
    assert!(good && said.contains("the head of cluster lab at https://127.0.0.1"), "{said}");

    // Opened here, it is not yet open there.
    let token = cluster.open("7", "alice").await;
    assert!(central.sessions().await.is_empty());
    let seen = cluster.credentials("7", &token).await;
    assert_eq!((seen.status, seen.body["RoleArn"].as_str()), (200, Some(role.as_str())), "{seen:?}");
    assert_eq!(pretend.get_object(&seen.keys(), BUCKET).await.as_deref(), Ok("data of genomics-data"));
    assert_eq!(of(&central.sessions().await, "7"), ["ACTIVE"]);
    // Whoever asks again gets the same from here.
    assert_eq!(cluster.credentials("7", &token).await.body, seen.body);

    // A credvend that died has the session still, and asks for another token there: the same session.
    cluster.kill();
    cluster.up().await;
    let again = cluster.credentials("7", &token).await;
    assert_eq!(again.status, 200, "{again:?}");
    assert_eq!(of(&central.sessions().await, "7"), ["ACTIVE"]);

    // Two ends that nobody hears are told when there is somebody, whoever was killed meanwhile.
    let eight = cluster.open("8", "alice").await;
    cluster.credentials_soon("8", &eight).await;
    central.kill();
    cluster.complete("7").await;
    cluster.complete("8").await;
    let nine = cluster.open("9", "alice").await;
    let refused = cluster.credentials("9", &nine).await;
    assert!(refused.status == 503 && refused.message().contains("cannot be reached"), "{refused:?}");
    cluster.kill();
    cluster.up().await;
    central.up().await;
    central
        .until_sessions("the ends", |sessions| of(sessions, "7") == ["COMPLETED"] && of(sessions, "8") == ["COMPLETED"])
        .await;
    cluster.credentials_soon("9", &nine).await;
    assert_eq!(of(&central.sessions().await, "9"), ["ACTIVE"]);

    for (log, secret) in
        [(cluster.log(), CENTRAL_SECRET), (cluster.log(), LOCAL_SECRET), (central.log(), CENTRAL_SECRET)]
    {
        assert!(!log.contains(secret));
    }
}

#[tokio::test]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn a_stranger_under_the_upstreams_address_gets_no_secret() {
    let Site { mut central, cluster, .. } = Site::new().await;
    let token = cluster.open("1", "alice").await;
    central.kill();
    // Another certificate at the same place.
    for file in ["server.crt", "server.key"] {
        std::fs::remove_file(central.path("state").join(file)).unwrap();
    }
    central.up().await;
    let refused = cluster.credentials("1", &token).await;
    assert!(refused.status == 503 && refused.message().contains("certificate"), "{refused:?}");
    assert!(central.sessions().await.is_empty());
    let (good, said) = cluster.run(&["check-config", "--online"]).await;
    assert!(!good && said.contains("certificate"), "{said}");

    // The right one, and a secret that it does not know.
    let pin = central.pin().await;
    let text = std::fs::read_to_string(cluster.path("credvend.toml")).unwrap();
    let start = text.find("pin = ").unwrap();
    let old = text[start..].lines().next().unwrap().to_owned();
    cluster.write("credvend.toml", &text.replace(&old, &format!("pin = \"{pin}\"")));
    cluster.write("upstream-secret", "not-the-right-secret-0123456789\n");
    let (good, said) = cluster.run(&["check-config", "--online"]).await;
    assert!(!good && said.contains("does not take the head secret in") && said.contains("upstream-secret"), "{said}");
    assert!(!said.contains("not-the-right-secret"), "{said}");
}

#[tokio::test]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn a_session_that_is_ended_there_ends_here() {
    let Site { pretend: _pretend, central, mut cluster, .. } = Site::new().await;
    let token = cluster.open("2", "bobby").await;
    let seen = cluster.credentials("2", &token).await;
    assert_eq!(seen.status, 200, "{seen:?}: {}", central.log());
    let (good, list) = central.run(&["session", "list", "--user", "bobby", "--json"]).await;
    assert!(good, "{list}");
    let id = serde_json::from_str::<serde_json::Value>(&list).unwrap()[0]["session"].as_str().unwrap().to_owned();
    let (good, said) = central.run(&["session", "close", &id]).await;
    assert!(good, "{said}");
    // Nothing is kept here any more, so it asks.
    cluster.kill();
    cluster.up().await;
    let seen = cluster.credentials("2", &token).await;
    assert!(seen.status == 403 && seen.message().contains("the upstream"), "{seen:?}");
    assert_eq!(of(&central.sessions().await, "2"), ["INVALIDATED"]);
    assert_eq!(cluster.sessions().await, [("2".to_owned(), "INVALIDATED".to_owned())]);
}

#[tokio::test]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn a_revocation_here_kills_what_was_issued() {
    let Site { pretend, central, cluster, .. } = Site::new().await;
    let (bob, bobby) = (cluster.open("1", "bob").await, cluster.open("2", "bobby").await);
    let bobs = cluster.credentials("1", &bob).await.keys();
    let bobbys = cluster.credentials("2", &bobby).await.keys();
    assert!(pretend.get_object(&bobs, BUCKET).await.is_ok() && pretend.get_object(&bobbys, BUCKET).await.is_ok());

    let seen = cluster.call("DELETE", "/sessions/users/bob", LOCAL_SECRET, None).await;
    assert_eq!(seen.status, 200, "{seen:?}");
    assert_eq!(pretend.get_object(&bobs, BUCKET).await, Err(403));
    assert!(pretend.get_object(&bobbys, BUCKET).await.is_ok());
    assert_eq!(of(&central.sessions().await, "1"), ["INVALIDATED"]);
    assert_eq!(cluster.credentials("1", &bob).await.status, 403);
    // His next job is served, once AWS' clock is past the Deny.
    let next = cluster.open("3", "bob").await;
    let seen = cluster.credentials_soon("3", &next).await;
    assert!(pretend.get_object(&seen.keys(), BUCKET).await.is_ok());
}

/// What its old roles deny is not its to write any more: it says so once, and counts it as no failure.
#[tokio::test]
#[cfg_attr(not(has_ministack), ignore = "PyPI ministack was not found when this test was built: set CREDD_MINISTACK")]
async fn what_was_revoked_before_a_store_moved_from_aws_to_an_upstream_is_reported_once() {
    let pretend = PretendAws::start().await;
    let service = pretend.create_service_user().await;
    let role = pretend.create_role("genomics", &service.arn, Some(BUCKET)).await;
    let old_role = pretend.create_role("genomics-of-before", &service.arn, Some(BUCKET)).await;
    let central = central(&pretend, &service, &role).await;
    let mut cluster = Service::start(before_aws(&pretend, &service, &old_role)).await;
    let token = cluster.open("1", "bob").await;
    let keys = cluster.credentials("1", &token).await.keys();
    assert!(pretend.get_object(&keys, BUCKET).await.is_ok());
    let (good, said) = cluster.run(&["revoke", "--user", "bob"]).await;
    assert!(good, "{said}");
    assert!(pretend.get_object(&keys, BUCKET).await.is_err());

    cluster.kill();
    let metrics = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let upstream = before(
        &format!("https://127.0.0.1:{}", central.port),
        &format!("pin = \"{}\"\n[metrics]\nlisten = \"{metrics}\"\n", central.pin().await),
    );
    let toml = upstream.toml.replace("UPSTREAM-SECRET", &cluster.path("upstream-secret").display().to_string());
    let text = std::fs::read_to_string(cluster.path("credvend.toml")).unwrap();
    assert!(text.contains(&aws(&pretend)));
    cluster.write("credvend.toml", &text.replace(&aws(&pretend), &toml));
    cluster.write("projects.toml", &upstream.projects);
    cluster.up().await;

    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let end = std::time::Instant::now() + 4 * crate::service::DEADLINE;
    let page = loop {
        let text = http.get(format!("http://{metrics}/metrics")).send().await.unwrap().text().await.unwrap();
        let sweeps = text.lines().find_map(|line| line.strip_prefix("credvend_sweep_duration_seconds_count "));
        // The pause after a first failure is as long as that between two sweeps.
        if sweeps.is_some_and(|count| count.parse::<u32>().unwrap() >= 4) {
            break text;
        }
        assert!(std::time::Instant::now() < end, "it does not sweep: {text}");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    };
    let log = cluster.log();
    assert_eq!(log.matches("is not denied from here any more").count(), 1, "{log}");
    assert!(log.contains(&old_role) && !log.contains("Deny is not in line"), "{log}");
    assert!(page.contains("\ncredvend_deny_policies_behind 0\n"), "{page}");
    // The old Deny stays, and the upstream gives what it has.
    assert!(pretend.get_object(&keys, BUCKET).await.is_err());
    let token = cluster.open("2", "alice").await;
    let seen = cluster.credentials_soon("2", &token).await;
    assert_eq!(seen.body["RoleArn"].as_str(), Some(role.as_str()), "{seen:?}");
}
