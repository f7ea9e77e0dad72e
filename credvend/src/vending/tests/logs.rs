use std::io;
use std::sync::{Arc, Mutex};

use credd_protocol::TokenHash;
use credd_protocol::credentials_api_v1::OpenSession;

use super::world::*;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Set in the process that runs the body of a test.
const ALONE: &str = "CREDVEND_LOG_TEST";

/// Runs a test's body in a process of its own, with all that is logged there, by whatever thread, up to a level.
///
/// `tracing` caches for the whole process whether a place in the code is of interest. While one subscriber lives that is
/// one thread's default, a place that another test's thread passes first counts as of no interest to anybody, and this
/// test would miss its line. In a process of its own the subscriber is there before any place is passed.
fn alone(test: &str, level: tracing::Level, body: impl AsyncFnOnce(Lines)) {
    if std::env::var_os(ALONE).is_none() {
        let module = module_path!().split_once("::").unwrap().1;
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("{module}::{test}"), "--nocapture"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let said = [run.stdout, run.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(run.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_max_level(level).with_writer(move || writer.clone()).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body(lines));
}

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// The server's log has each of them once, and is bounded.
#[test]
fn refusals_are_left_to_the_servers_log() {
    alone("refusals_are_left_to_the_servers_log", tracing::Level::INFO, refusals_are_left);
}

async fn refusals_are_left(lines: Lines) {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let session = w.open(7).await.session;
    let before = lines.text();
    assert!(before.contains("session opened"));
    w.try_open("n9", 7).await.unwrap_err();
    w.credentials("n9", session).await.unwrap_err();
    let post = OpenSession {
        session_id: "1300".into(),
        project_id: "nothing".parse().unwrap(),
        cluster_name: lab(),
        cluster_user: "bob".parse().unwrap(),
        submitted_time: "2026-03-01".into(),
    };
    w.vending.open_for_head(&head(), &post).await.unwrap_err();
    let project = "Climate".parse().unwrap();
    w.vending.credentials_for_token(TokenHash::of("x"), "1300", &lab(), &project, None, None).await.unwrap_err();
    assert_eq!(lines.text(), before);
}

#[test]
fn everything_is_logged_and_no_secret_is() {
    alone("everything_is_logged_and_no_secret_is", tracing::Level::TRACE, everything);
}

async fn everything(lines: Lines) {
    let w = World::new();
    w.slurm.run(7, "alice", "genomics", &["n1"]);
    let session = w.open(7).await.session;
    let _ = w.try_open("n9", 7).await;
    let _ = w.credentials("n9", session).await;
    w.credentials("n1", session).await.unwrap();
    let post = OpenSession {
        session_id: "1300".into(),
        project_id: "Climate".parse().unwrap(),
        cluster_name: lab(),
        cluster_user: "bob".parse().unwrap(),
        submitted_time: "2026-03-01".into(),
    };
    let opened = w.vending.open_for_head(&head(), &post).await.unwrap();
    let token = opened.token.expose().to_owned();
    // Who asks again and again gets no line for each time.
    for bearer in [&token, "canary-bearer", &token, &token] {
        let (project, claimed) = ("Climate".parse().unwrap(), Some("evil\nname"));
        let _ = w.vending.credentials_for_token(TokenHash::of(bearer), "1300", &lab(), &project, claimed, None).await;
    }
    w.vending.invalidate_user("root", None, &"alice".parse().unwrap()).await.unwrap();
    w.slurm.gone(7);
    w.vending.sweep().await.unwrap();

    let log = lines.text();
    for said in [
        "session opened",
        "job=7 restart=0",
        "head_session=\"1300\"",
        "subject=\"user alice\"",
        "user=alice",
        "node=n1",
        "NotOnNode",
        "role_arn=arn:aws:iam::123456789012:role/genomics",
        "key_id=\"ASIA1\"",
        "Unauthenticated",
        "session ended",
        "revocation ordered",
        "revocation carried out",
    ] {
        assert!(log.contains(said), "{said:?} is not in {log}");
    }
    // A log is read by people: no names of types.
    for debug in ["Some(", "None", "JobId", "Run {", "Slurm(", "Head {", "User("] {
        assert!(!log.contains(debug), "{debug:?} is in {log}");
    }
    // What a caller claims to be called is audited beside what it was really called: as it is, on one line.
    let claims: Vec<&str> = log.lines().filter(|line| line.contains(r#"claimed="evil\nname""#)).collect();
    let served = claims.iter().filter(|line| line.contains("session_name=\"lab-bob-1300\"")).count();
    assert_eq!((served, claims.len()), (1, 2), "one served, one refused: {claims:#?}");
    for secret in ["canary", token.as_str(), &TokenHash::of(&token).to_hex(), "evil\nname"] {
        assert!(!log.contains(secret), "{secret:?} is in {log}");
    }
}
