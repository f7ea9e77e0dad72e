//! An upstream that answers nonsense, or not at all: refused with words, never believed, never sent a secret it should not
//! have.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use credd_protocol::SessionId;
use credd_protocol::credentials_api_v1::SessionStatus;
use credvend::clock::{Clock, SystemClock};
use credvend::metrics::Metrics;
use credvend::source::upstream::{Known, Options, Timeouts, Upstream};
use credvend::source::{AssumeRequest, Assumed, Source, SourceError};
use credvend::store::sqlite::SqliteStore;
use credvend::store::{Origin, Run, Session, Store};
use time::OffsetDateTime;

use crate::server::{Answer, Asked, json, serve};

const SECRET: &str = "central-head-secret-0123456789";
const ROLE: &str = "arn:aws:iam::123456789012:role/genomics";

struct World {
    upstream: Arc<Upstream>,
    store: Arc<dyn Store>,
    session: SessionId,
    _dir: tempfile::TempDir,
}

async fn before(url: &str) -> World {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, SECRET).unwrap();
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&dir.path().join("db")).unwrap());
    let session = Session {
        id: SessionId::random(),
        cluster: "lab".parse().unwrap(),
        user: "alice".parse().unwrap(),
        uid: None,
        project: "genomics".parse().unwrap(),
        partition: None,
        nodes: vec![],
        origin: Origin::Slurm(Run { job: 7.try_into().unwrap(), restart: 0, submitted: OffsetDateTime::now_utc() }),
        opened: OffsetDateTime::now_utc(),
        ended: None,
        status: SessionStatus::Active,
        why: None,
    };
    store.open(session.clone()).await.unwrap();
    let options = Options {
        url: url.into(),
        known: Known::System,
        head_secret_file: secret,
        cluster: None,
        clusters: vec!["lab".parse().unwrap()],
        timeouts: Timeouts {
            connect: Duration::from_millis(500),
            attempt: Duration::from_millis(700),
            total: Duration::from_secs(5),
        },
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let upstream = Upstream::new(options, store.clone(), clock).unwrap();
    World { upstream, store, session: session.id, _dir: dir }
}

impl World {
    async fn ask(&self) -> Result<Assumed, SourceError> {
        let request = AssumeRequest {
            project: "genomics".parse().unwrap(),
            session: self.session,
            role_arn: ROLE.parse().unwrap(),
            session_name: "lab-alice-n1".into(),
            duration_seconds: 3600,
            source_identity: None,
            tags: vec![],
        };
        self.upstream.assume(&request).await
    }

    /// The job is over.
    async fn end(&self) {
        let ended =
            self.store.end(self.session, SessionStatus::Completed, OffsetDateTime::now_utc(), "over").await.unwrap();
        let credvend::store::Ended::Now(session) = ended else { panic!("{ended:?}") };
        self.upstream.ended(&session);
    }
}

fn in_an_hour() -> String {
    (OffsetDateTime::now_utc() + time::Duration::HOUR).format(&time::format_description::well_known::Rfc3339).unwrap()
}

fn opened() -> Answer {
    json(
        200,
        r#"{"APIGATEWAY_AWS_CONTAINER_CREDENTIALS_FULL_URI":"","LOCALHOST_AWS_CONTAINER_CREDENTIALS_FULL_URI":"","AWS_CONTAINER_AUTHORIZATION_TOKEN":"canary-token"}"#,
    )
}

fn document(expiration: &str, role: &str) -> String {
    format!(
        r#"{{"AccessKeyId":"ASIA1","SecretAccessKey":"canary-secret","Token":"canary","Expiration":"{expiration}","RoleArn":"{role}"}}"#
    )
}

/// The error for an answer to the GET.
async fn refusal(answer: impl Fn() -> Answer + Send + Sync + 'static) -> SourceError {
    let url = serve(move |asked: Asked| if asked.method == "POST" { opened() } else { answer() }).await;
    let error = before(&url).await.ask().await.expect_err("must be refused");
    let text = error.to_string();
    assert!(
        text.contains("the upstream http://127.0.0.1") && !text.contains("canary") && !text.contains(SECRET),
        "{text}"
    );
    error
}

#[tokio::test]
async fn nonsense_is_no_document() {
    let hour = in_an_hour();
    let zoneless = hour[..19].to_owned();
    for (body, word) in [
        (String::new(), "no credentials document"),
        ("{}".into(), "AccessKeyId"),
        ("<html>welcome</html>".into(), "no credentials document"),
        (document("", ROLE), "Expiration"),
        (document(&zoneless, ROLE), "zone"),
        (document("2020-01-01T00:00:00Z", ROLE), "expired"),
        (document("2099-01-01T00:00:00Z", ROLE), "longer than AWS allows"),
        (document(&hour, "arn:aws:iam::123456789012:role/climate"), "not the role-arn of projects.toml"),
        (format!("{}{}", " ".repeat(100_000), document(&hour, ROLE)), "more than 65536 bytes"),
    ] {
        let shown: String = body.chars().take(100).collect();
        let error = refusal(move || json(200, &body)).await;
        assert!(matches!(&error, SourceError::Unavailable(why) if why.contains(word)), "{shown}: {error:?}");
    }
    let url =
        serve(move |asked: Asked| if asked.method == "POST" { opened() } else { json(200, document(&hour, ROLE)) })
            .await;
    assert_eq!(before(&url).await.ask().await.unwrap().credentials.access_key_id, "ASIA1");
}

#[tokio::test]
async fn silence_ends_within_the_deadline() {
    let error = refusal(|| None).await;
    assert!(matches!(&error, SourceError::Unavailable(why) if why.contains("did not answer within")), "{error:?}");
}

#[tokio::test]
async fn what_passes_is_asked_again_and_what_does_not_is_not() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let error = refusal(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        json(503, r#"{"message":"Service Unavailable"}"#)
    })
    .await;
    assert!(matches!(error, SourceError::Unavailable(_)) && count.load(Ordering::SeqCst) == 3, "{error:?}");
    let (count, error) = (Arc::new(AtomicUsize::new(0)), {
        refusal(|| json(403, r#"{"code":"RoleRefused","message":"the trust policy names nobody","retry":true}"#)).await
    });
    assert!(matches!(&error, SourceError::Refused(why) if why.contains("names nobody")), "{error:?}");
    drop(count);
    let error = refusal(|| json(403, r#"{"code":"SessionEnded","message":"session is INVALIDATED"}"#)).await;
    assert!(matches!(error, SourceError::Ended(_)), "{error:?}");
}

#[tokio::test]
async fn no_secret_follows_a_redirect_or_another_url() {
    let seen: Arc<Mutex<Vec<Asked>>> = Arc::default();
    let thief = seen.clone();
    let elsewhere = serve(move |asked| {
        thief.lock().unwrap().push(asked);
        json(200, "{}")
    })
    .await;
    let target = elsewhere.clone();
    let url = serve(move |_| Some((307, vec![("location", format!("{target}/sessions"))], String::new()))).await;
    let error = before(&url).await.ask().await.unwrap_err();
    assert!(matches!(&error, SourceError::Refused(why) if why.contains("no secret is sent after that")), "{error:?}");
    // The answer's own URLs are not followed either.
    let target = elsewhere.clone();
    let url = serve(move |asked: Asked| match asked.method.as_str() {
        "POST" => {
            opened().map(|(status, headers, body)| (status, headers, body.replace("\"\"", &format!("{target:?}"))))
        }
        _ => json(404, r#"{"message":"nothing here"}"#),
    })
    .await;
    let error = before(&url).await.ask().await.unwrap_err();
    assert!(matches!(&error, SourceError::Refused(why) if why.contains("no such path")), "{error:?}");
    assert!(seen.lock().unwrap().is_empty(), "{:?}", seen.lock().unwrap());
}

#[tokio::test]
async fn many_who_ask_at_once_open_once() {
    let hour = in_an_hour();
    let posts = Arc::new(AtomicUsize::new(0));
    let counted = posts.clone();
    let url = serve(move |asked: Asked| {
        if asked.method == "POST" {
            counted.fetch_add(1, Ordering::SeqCst);
            return opened();
        }
        json(200, document(&hour, ROLE))
    })
    .await;
    let world = Arc::new(before(&url).await);
    let mut askers = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let world = world.clone();
        askers.spawn(async move { world.ask().await.unwrap().credentials.access_key_id });
    }
    assert!(askers.join_all().await.iter().all(|key| key == "ASIA1"));
    assert_eq!(posts.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_end_that_is_not_heard_is_told_again() {
    let puts = Arc::new(AtomicUsize::new(0));
    let counted = puts.clone();
    let hour = in_an_hour();
    let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let url = serve(move |asked: Asked| match asked.method.as_str() {
        "POST" => opened(),
        "GET" => json(200, document(&hour, ROLE)),
        // The first delivery with its repetitions fails, the next is heard.
        _ if counted.fetch_add(1, Ordering::SeqCst) < 3 => json(500, "{}"),
        _ => {
            let _ = told.send(asked);
            json(200, "{}")
        }
    })
    .await;
    let world = before(&url).await;
    let (_stop, stopping) = tokio::sync::watch::channel(false);
    tokio::spawn(world.upstream.clone().deliver(Arc::default(), stopping));
    world.ask().await.unwrap();
    world.end().await;
    let asked = tokio::time::timeout(Duration::from_secs(20), hears.recv()).await.unwrap().unwrap();
    assert_eq!(asked.body, r#"{"status":"COMPLETED"}"#);
    assert_eq!(asked.authorization, SECRET);
    assert!(asked.path.starts_with("/sessions/7-") && asked.path.ends_with("/cluster/lab"), "{asked:?}");
}

/// The job failed at once, and its end was there before its session was.
#[tokio::test]
async fn an_end_that_overtook_the_opening_is_told_again() {
    let puts = Arc::new(AtomicUsize::new(0));
    let counted = puts.clone();
    let hour = in_an_hour();
    let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let url = serve(move |asked: Asked| match asked.method.as_str() {
        "POST" => opened(),
        "GET" => json(200, document(&hour, ROLE)),
        _ if counted.fetch_add(1, Ordering::SeqCst) < 1 => {
            json(404, r#"{"code":"UnknownSession","message":"session is not known here"}"#)
        }
        _ => {
            let _ = told.send(());
            json(200, "{}")
        }
    })
    .await;
    let world = before(&url).await;
    let (_stop, stopping) = tokio::sync::watch::channel(false);
    tokio::spawn(world.upstream.clone().deliver(Arc::default(), stopping));
    world.ask().await.unwrap();
    world.end().await;
    tokio::time::timeout(Duration::from_secs(20), hears.recv()).await.expect("told again").unwrap();
    assert_eq!(puts.load(Ordering::SeqCst), 2);
}

/// An administrator sees that ends wait, until they do not.
#[tokio::test]
async fn ends_that_the_upstream_does_not_hear_are_counted() {
    let deaf = Arc::new(AtomicBool::new(true));
    let state = deaf.clone();
    let hour = in_an_hour();
    let url = serve(move |asked: Asked| match asked.method.as_str() {
        "POST" => opened(),
        "GET" => json(200, document(&hour, ROLE)),
        _ if state.load(Ordering::SeqCst) => json(503, "{}"),
        _ => json(200, "{}"),
    })
    .await;
    let (world, metrics) = (before(&url).await, Arc::<Metrics>::default());
    let (_stop, stopping) = tokio::sync::watch::channel(false);
    tokio::spawn(world.upstream.clone().deliver(metrics.clone(), stopping));
    let until = async |line: &str| {
        let line = format!("\ncredvend_upstream_ends_waiting {line}\n");
        let shown = async {
            while !metrics.text().contains(&line) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), shown).await.unwrap_or_else(|_| panic!("{line}"));
    };
    until("0").await;
    world.ask().await.unwrap();
    world.end().await;
    until("1").await;
    deaf.store(false, Ordering::SeqCst);
    until("0").await;
}

/// The handlers of the original deployment look for `Authorization`, and find no `authorization`.
#[tokio::test]
async fn header_names_are_written_as_programs_of_http_1_1_write_them() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "head-secret-0123456789\n").unwrap();
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let options = Options {
        url: format!("http://{}", listener.local_addr().unwrap()),
        known: Known::System,
        head_secret_file: secret,
        cluster: None,
        clusters: vec!["lab".parse().unwrap()],
        timeouts: Timeouts::default(),
    };
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            assert!(stream.read_buf(&mut head).await.unwrap() > 0);
        }
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await.unwrap();
        String::from_utf8_lossy(&head).into_owned()
    });
    let _ = credvend::source::upstream::identity(&options).await;
    let head = asked.await.unwrap();
    for name in ["Authorization: head-secret", "Content-Type: application/json", "Host: "] {
        assert!(head.contains(&format!("\r\n{name}")), "{name}: {head}");
    }
}
