//! Promises about notes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::store::{PAGE, Store};

async fn all(store: &dyn Store, kind: &str) -> BTreeMap<String, String> {
    let (mut all, mut from) = (BTreeMap::new(), None);
    loop {
        let page = store.list_notes(kind, from.as_ref()).await.unwrap();
        assert!(page.items.len() <= PAGE && !(page.items.is_empty() && page.next.is_some()));
        for (key, text) in page.items {
            assert!(all.insert(key, text).is_none(), "a note is listed once");
        }
        match page.next {
            Some(next) => from = Some(next),
            None => return all,
        }
    }
}

pub(super) async fn a_note_stays_until_it_is_removed(store: &dyn Store) {
    assert_eq!(store.get_note("a", "1").await.unwrap(), None);
    store.put_note("a", "1", "one").await.unwrap();
    store.put_note("a", "2", "two").await.unwrap();
    store.put_note("b", "1", "other").await.unwrap();
    store.put_note("a", "1", "once more").await.unwrap();
    assert_eq!(store.get_note("a", "1").await.unwrap().as_deref(), Some("once more"));
    let expected = BTreeMap::from([("1", "once more"), ("2", "two")].map(|(k, t)| (k.to_owned(), t.to_owned())));
    assert_eq!(all(store, "a").await, expected);
    store.remove_note("a", "1").await.unwrap();
    store.remove_note("a", "1").await.unwrap();
    assert_eq!(store.get_note("a", "1").await.unwrap(), None);
    assert_eq!(all(store, "a").await.len(), 1);
    assert_eq!(store.get_note("b", "1").await.unwrap().as_deref(), Some("other"));
    assert!(all(store, "c").await.is_empty());
}

pub(super) async fn notes_page(store: Arc<dyn Store>) {
    let mut callers = tokio::task::JoinSet::new();
    let many = PAGE + PAGE / 2;
    for i in 0..many {
        let store = store.clone();
        callers.spawn(async move { store.put_note("many", &format!("{i:04}"), &i.to_string()).await.unwrap() });
    }
    callers.join_all().await;
    store.put_note("few", "x", "y").await.unwrap();
    let found = all(&*store, "many").await;
    assert_eq!(found.len(), many);
    assert!(found.iter().all(|(key, text)| key.trim_start_matches('0') == text.trim_start_matches('0')));
    let page = store.list_notes("many", None).await.unwrap();
    assert!(store.list_notes("few", page.next.as_ref()).await.is_err(), "a cursor is of its own listing");
}
