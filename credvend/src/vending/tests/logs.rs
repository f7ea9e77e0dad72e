use std::io;
use std::sync::{Arc, Mutex};

use credd_protocol::TokenHash;
use credd_protocol::seed_api::OpenSession;

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

/// What is logged by this thread up to a level, for as long as the guard lives.
fn logged(level: tracing::Level) -> (Lines, tracing::subscriber::DefaultGuard) {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_max_level(level).with_writer(move || writer.clone()).finish();
    (lines, tracing::subscriber::set_default(subscriber))
}

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// The server's log has each of them once, and is bounded.
#[tokio::test]
async fn refusals_are_left_to_the_servers_log() {
    let (lines, _guard) = logged(tracing::Level::INFO);
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
    w.vending.credentials_for_token(TokenHash::of("x"), "1300", &lab(), &project, None).await.unwrap_err();
    assert_eq!(lines.text(), before);
}

#[tokio::test]
async fn everything_is_logged_and_no_secret_is() {
    let (lines, _guard) = logged(tracing::Level::TRACE);
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
    for bearer in [token.as_str(), "canary-bearer"] {
        let (project, claimed) = ("Climate".parse().unwrap(), Some("evil\nname"));
        let _ = w.vending.credentials_for_token(TokenHash::of(bearer), "1300", &lab(), &project, claimed).await;
    }
    w.vending.invalidate_user("root", None, &"alice".parse().unwrap()).await.unwrap();
    w.slurm.gone(7);
    w.vending.sweep().await.unwrap();

    let log = lines.text();
    for said in [
        "session opened",
        "job=7",
        "user=alice",
        "node=n1",
        "NotOnNode",
        "role_arn=arn:aws:iam::123456789012:role/genomics",
        "key_id=\"ASIA1\"",
        "Unauthenticated",
        "session ended",
        "user revoked",
    ] {
        assert!(log.contains(said), "{said:?} is not in {log}");
    }
    for secret in ["canary", token.as_str(), &TokenHash::of(&token).to_hex(), "evil\nname"] {
        assert!(!log.contains(secret), "{secret:?} is in {log}");
    }
}
