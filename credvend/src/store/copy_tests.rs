use std::sync::atomic::{AtomicBool, Ordering};

use credd_protocol::TokenHash;
use time::Duration;

use super::*;
use crate::store::Subject;
use crate::store::conformance::{T0, of_head, of_job};
use crate::store::sqlite::SqliteStore;

fn store(dir: &tempfile::TempDir, name: &str) -> Arc<dyn Archive> {
    Arc::new(SqliteStore::open(&dir.path().join(name)).unwrap())
}

/// Copies until the first record of this part is there.
async fn cut_at(part: Part, from: &Arc<dyn Archive>, to: &Arc<dyn Archive>) {
    let reached = Arc::new(AtomicBool::new(false));
    let copying = {
        let (from, to, reached) = (from.clone(), to.clone(), reached.clone());
        tokio::spawn(async move {
            let mut told = |now, _| reached.store(reached.load(Ordering::SeqCst) || now >= part, Ordering::SeqCst);
            copy(from.as_ref(), &to, &mut told).await.map(|_| ())
        })
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !reached.load(Ordering::SeqCst) {
        assert!(std::time::Instant::now() < deadline, "the copy does not come to {part:?}");
        tokio::task::yield_now().await;
    }
    copying.abort();
    // It may have been done: then it is cut off as if the last step had been lacking.
    let _ = copying.await;
    to.put_note(NOTES, UNFINISHED, "").await.unwrap();
}

#[tokio::test]
async fn a_resumed_copy_takes_over_what_the_source_did_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (store(&dir, "source"), store(&dir, "target"));
    let (revoked, grown, told) = (of_job(1, 0), of_job(2, 0), of_head("h", "s"));
    for session in [&revoked, &grown, &told] {
        source.open(session.clone()).await.unwrap();
    }
    let subject = |name: &str| Subject::User(name.parse().unwrap());
    let block = |name: &str| Block { subject: subject(name), by: "root".into(), why: None, at: T0 };
    source.put_block(block("bob")).await.unwrap();
    source.put_note("upstream-session", "x", "open").await.unwrap();
    cut_at(Part::Notes, &source, &target).await;
    assert_eq!(target.get(revoked.id).await.unwrap().unwrap().status, SessionStatus::Active);

    // The source serves for a while.
    source.end(revoked.id, SessionStatus::Invalidated, T0 + Duration::HOUR, "revoked").await.unwrap();
    source.add_node(grown.id, &"joined".parse().unwrap()).await.unwrap();
    source.replace_token(told.id, TokenHash::of("another")).await.unwrap();
    source.open(of_job(3, 0)).await.unwrap();
    source.remove_block(&subject("bob")).await.unwrap();
    source.put_block(block("eve")).await.unwrap();
    source.remove_note("upstream-session", "x").await.unwrap();

    let counts = copy(source.as_ref(), &target, |_, _| {}).await.unwrap();
    assert_eq!((counts[&Part::Sessions], counts[&Part::Blocks], counts[&Part::Notes]), (4, 1, 0));
    for id in [revoked.id, grown.id, told.id] {
        assert_eq!(target.get(id).await.unwrap(), source.get(id).await.unwrap());
    }
    assert_eq!(target.list_blocks().await.unwrap(), source.list_blocks().await.unwrap());
    assert_eq!(target.get_note(NOTES, UNFINISHED).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_differs_is_mended_by_copying_again() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (store(&dir, "source"), store(&dir, "target"));
    source.open(of_job(1, 0)).await.unwrap();
    // Somebody opens a session when the sessions have been copied.
    let first = copy(source.as_ref(), &target, |part, _| {
        if part == Part::Sessions {
            let opening = source.open(of_job(2, 0));
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(opening)).unwrap();
        }
    });
    let first = first.await;
    assert!(matches!(first, Err(CopyError::Differs { part: Part::Sessions, from: 2, to: 1 })), "{first:?}");
    assert_eq!(copy(source.as_ref(), &target, |_, _| {}).await.unwrap()[&Part::Sessions], 2);
}
