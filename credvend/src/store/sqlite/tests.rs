use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use tempfile::TempDir;
use time::Duration;

use super::*;
use crate::store::conformance::{self, T0, issued_for, of_job};

fn at(dir: &TempDir) -> PathBuf {
    dir.path().join("credvend.db")
}

fn refusal(path: &Path) -> String {
    SqliteStore::open(path).map(|_| ()).expect_err("must be refused").to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_every_promise() {
    let dirs = std::sync::Mutex::new(vec![]);
    conformance::all(|| async {
        let dir = TempDir::new().unwrap();
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&at(&dir)).unwrap());
        dirs.lock().unwrap().push(dir);
        store
    })
    .await;
}

#[tokio::test]
async fn what_was_returned_is_there_after_reopening() {
    let dir = TempDir::new().unwrap();
    let session = of_job(7, 0);
    {
        let store = SqliteStore::open(&at(&dir)).unwrap();
        store.open(session.clone()).await.unwrap();
        store.record_issuance(issued_for(&session, "ASIA1", T0)).await.unwrap();
        store.remember_nonce("n", T0).await.unwrap();
        // As after kill -9: a second opening beside the first, which never closed its file.
        let other = SqliteStore::open(&at(&dir)).unwrap();
        assert_eq!(other.get(session.id).await.unwrap(), Some(session.clone()));
    }
    let store = SqliteStore::open(&at(&dir)).unwrap();
    assert_eq!(store.get(session.id).await.unwrap(), Some(session.clone()));
    assert!(!store.remember_nonce("n", T0).await.unwrap());
    assert_eq!(store.list_issuances(&IssuedTo::Session(session.id), T0, None).await.unwrap().items.len(), 1);
}

/// Where the child of the next test writes.
const CHILD: &str = "CREDVEND_TEST_KILLED_STORE";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process that what_was_acknowledged_survives_a_kill starts and kills"]
async fn killed_child() {
    use std::io::Write;
    let path = PathBuf::from(std::env::var_os(CHILD).expect("started by its test only"));
    let store = Arc::new(SqliteStore::open(&path).unwrap());
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..16u32 {
        let store = store.clone();
        callers.spawn(async move {
            for i in 0.. {
                let job = 1 + caller + 16 * i;
                store.open(of_job(job, 0)).await.unwrap();
                writeln!(std::io::stderr(), "acknowledged {job}").unwrap();
            }
        });
    }
    callers.join_all().await;
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    use std::io::{BufRead, BufReader};
    let dir = TempDir::new().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "store::sqlite::tests::killed_child"])
        .env(CHILD, at(&dir))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut jobs = vec![];
    let job = |line: String| line.strip_prefix("acknowledged ").and_then(|n| n.parse::<u32>().ok());
    while jobs.len() < 300 {
        jobs.extend(job(lines.next().expect("the child writes until it is killed")));
    }
    child.kill().unwrap();
    jobs.extend(lines.filter_map(job));
    child.wait().unwrap();
    let store = SqliteStore::open(&at(&dir)).unwrap();
    for job in jobs {
        let found = store.find_run(&"lab".parse().unwrap(), &conformance::run(job, 0)).await.unwrap();
        assert!(found.is_some(), "job {job} was acknowledged");
    }
}

#[tokio::test]
async fn commits_are_synchronous_and_files_are_private() {
    let dir = TempDir::new().unwrap();
    let store = SqliteStore::open(&at(&dir)).unwrap();
    let (sync, mode) = store
        .writer
        .write(|db| {
            let sync: i64 = db.pragma_query_value(None, "synchronous", |r| r.get(0))?;
            let mode: String = db.pragma_query_value(None, "journal_mode", |r| r.get(0))?;
            Ok((sync, mode))
        })
        .await
        .unwrap();
    assert_eq!((sync, mode.as_str()), (2, "wal"));
    store.open(of_job(1, 0)).await.unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.file_name());
    }
}

#[tokio::test]
async fn no_secret_and_no_token_is_in_the_file() {
    let dir = TempDir::new().unwrap();
    let store = SqliteStore::open(&at(&dir)).unwrap();
    let token = credd_protocol::JobToken::mint().unwrap();
    let mut session = conformance::of_head("5", "2026-01-01");
    session.origin =
        super::super::Origin::Head { head_session: "5".into(), submitted: "2026-01-01".into(), token: token.hash() };
    store.open(session).await.unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let needle = &token.expose().as_bytes()[8..40];
        assert!(!bytes.windows(needle.len()).any(|w| w == needle));
    }
}

#[test]
fn a_bad_place_is_refused_in_words() {
    let dir = TempDir::new().unwrap();
    assert!(refusal(Path::new("credvend.db")).contains("absolute"));
    assert!(refusal(&dir.path().join("no/such/credvend.db")).contains("cannot be made"));
    let open = dir.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(refusal(&open.join("credvend.db")).contains("chmod go-w"));
    std::fs::write(at(&dir), "").unwrap();
    std::fs::set_permissions(at(&dir), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refusal(&at(&dir)).contains("chmod 600"));
    std::os::unix::fs::symlink(at(&dir), dir.path().join("link")).unwrap();
    assert!(refusal(&dir.path().join("link")).contains("cannot be opened"));
    // A missing last part is made, for credvend alone.
    let made = dir.path().join("made/credvend.db");
    SqliteStore::open(&made).unwrap();
    assert_eq!(made.parent().unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

fn private(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn another_file_is_refused_in_words() {
    let dir = TempDir::new().unwrap();
    private(&at(&dir), &b"this is no database ".repeat(300));
    assert!(refusal(&at(&dir)).contains("not an SQLite database"));
    std::fs::remove_file(at(&dir)).unwrap();
    private(&at(&dir), b"");
    rusqlite::Connection::open(at(&dir)).unwrap().execute_batch("CREATE TABLE sessions (x)").unwrap();
    assert!(refusal(&at(&dir)).contains("another program's database"));
}

#[tokio::test]
async fn a_file_of_the_first_schema_is_brought_up_to_date() {
    let dir = TempDir::new().unwrap();
    private(&at(&dir), b"");
    let db = rusqlite::Connection::open(at(&dir)).unwrap();
    db.execute_batch(include_str!("migrations/001-first.sql")).unwrap();
    db.pragma_update(None, "user_version", 1).unwrap();
    db.pragma_update(None, "application_id", 0x6372_6464).unwrap();
    let (job, head) = (of_job(7, 0), conformance::of_head("5", "2026-03-01"));
    let old =
        "INSERT INTO sessions (id, cluster, user, uid, project, nodes, job, restart, head_session, submitted, token,
        opened, status) VALUES (?1, 'lab', 'bob', ?2, 'genomics', 'n1', ?3, ?4, ?5, ?6, ?7, ?8, 0)";
    let hash = credd_protocol::TokenHash::of("t").to_hex();
    let opened = micros(T0);
    db.execute(old, params![job.id.0.as_bytes(), 1002, 7, 0, None::<String>, None::<String>, None::<String>, opened])
        .unwrap();
    db.execute(
        old,
        params![head.id.0.as_bytes(), None::<u32>, None::<u32>, None::<u32>, "5", "2026-03-01", hash, opened],
    )
    .unwrap();
    let denied = "INSERT INTO revocations (role_arn, userid, issued_before, until) VALUES (?1, 'AROA:x', ?2, ?2)";
    let role = "arn:aws:iam::123456789012:role/genomics";
    db.execute(denied, params![role, opened]).unwrap();
    drop(db);
    let store = SqliteStore::open(&at(&dir)).unwrap();
    let found = store.revocations_of(&role.parse().unwrap(), &[Denied::UserId("AROA:x".into())]).await.unwrap();
    assert!(found[0].ordered && found[0].issued_before == T0, "of an old one nobody knows that it was not ordered");
    // A job that runs on keeps its session; nobody knows any more when it was submitted.
    let found = store.find_run(&job.cluster, &conformance::run(7, 0)).await.unwrap().unwrap();
    assert_eq!(found.id, job.id);
    assert_eq!(store.list_runs(&job.cluster, None).await.unwrap().items[0].run.submitted, Run::UNRECORDED);
    assert_eq!(store.get(head.id).await.unwrap().unwrap().project, head.project);
}

#[test]
fn a_newer_schema_is_refused_in_words() {
    let dir = TempDir::new().unwrap();
    drop(SqliteStore::open(&at(&dir)).unwrap());
    let db = rusqlite::Connection::open(at(&dir)).unwrap();
    db.pragma_update(None, "user_version", SCHEMA as i64 + 1).unwrap();
    drop(db);
    assert!(refusal(&at(&dir)).contains("newer credvend"));
    assert!(SqliteStore::look(&at(&dir)).unwrap_err().to_string().contains("newer credvend"));
}

#[tokio::test]
async fn a_corrupt_file_is_refused_in_words() {
    let dir = TempDir::new().unwrap();
    {
        let store = SqliteStore::open(&at(&dir)).unwrap();
        for job in 1..=300 {
            store.open(of_job(job, 0)).await.unwrap();
        }
        store
            .writer
            .write(|db| db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).or(Ok(())))
            .await
            .unwrap();
    }
    // The WAL goes when the last connection closes, in the writer's thread: what is left in it is dropped here.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while dir.path().join("credvend.db-wal").exists() && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    let mut bytes = std::fs::read(at(&dir)).unwrap();
    assert!(bytes.len() > 60_000, "{}", bytes.len());
    for byte in &mut bytes[20_000..60_000] {
        *byte ^= 0x5a;
    }
    private(&at(&dir), &bytes);
    assert!(refusal(&at(&dir)).contains("is corrupt"));
}

#[tokio::test]
async fn a_full_database_refuses_in_words_and_keeps_what_it_has() {
    let dir = TempDir::new().unwrap();
    let store = SqliteStore::open(&at(&dir)).unwrap();
    store.open(of_job(1, 0)).await.unwrap();
    // SQLite's own limit gives the same error as a full disk.
    store
        .writer
        .write(|db| {
            let pages: i64 = db.pragma_query_value(None, "page_count", |r| r.get(0))?;
            db.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
        })
        .await
        .unwrap();
    let (mut stored, mut error) = (vec![], None);
    for job in 2..2000 {
        let session = of_job(job, 0);
        match store.open(session.clone()).await {
            Ok(_) => stored.push(session),
            Err(e) => {
                error = Some(e);
                break;
            }
        }
    }
    let error = error.expect("it must fill up");
    assert!(matches!(error, StoreError::Broken(_)) && error.to_string().contains("no space"), "{error}");
    for session in stored {
        assert_eq!(store.get(session.id).await.unwrap(), Some(session));
    }
    store.writer.write(|db| db.query_row("PRAGMA max_page_count = 1000000", [], |_| Ok(()))).await.unwrap();
    store.open(of_job(3000, 0)).await.expect("it goes on when there is space again");
}

#[tokio::test]
async fn a_locked_and_a_read_only_database_refuse_in_words() {
    let dir = TempDir::new().unwrap();
    let store = SqliteStore::open(&at(&dir)).unwrap();
    store.writer.write(|db| db.busy_timeout(std::time::Duration::from_millis(1))).await.unwrap();
    let other = rusqlite::Connection::open(at(&dir)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = store.open(of_job(1, 0)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)) && error.to_string().contains("locked"), "{error}");
    assert_eq!(store.get(of_job(1, 0).id).await.unwrap(), None, "reading goes on");
    other.execute_batch("ROLLBACK").unwrap();
    store.open(of_job(1, 0)).await.unwrap();

    store.writer.write(|db| db.pragma_update(None, "query_only", true)).await.unwrap();
    let error = store.check().await.unwrap_err();
    assert!(matches!(error, StoreError::Broken(_)) && error.to_string().contains("cannot be written"), "{error}");
}

/// What is acknowledged after the file went away would be gone with the process.
#[tokio::test]
async fn a_file_that_is_deleted_or_replaced_underneath_refuses_writes_in_words() {
    for (file, replaced) in [("credvend.db", false), ("credvend.db", true), ("credvend.db-wal", false)] {
        let dir = TempDir::new().unwrap();
        let store = SqliteStore::open(&at(&dir)).unwrap();
        store.open(of_job(1, 0)).await.unwrap();
        let (path, aside) = (dir.path().join(file), dir.path().join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        if replaced {
            std::fs::copy(&aside, &path).unwrap();
        }
        let error = store.open(of_job(2, 0)).await.unwrap_err();
        let words = if replaced { "replaced by another file" } else { "was deleted" };
        assert!(matches!(error, StoreError::Broken(_)), "{error}");
        assert!(error.to_string().contains(words) && error.to_string().contains("from a backup"), "{file}: {error}");
        assert!(store.check().await.is_err());
        // Back in its place, it is the same file, and nothing of what was refused is in it.
        std::fs::rename(&aside, &path).unwrap();
        assert_eq!(store.get(of_job(2, 0).id).await.unwrap(), None);
        assert_eq!(store.find_run(&"lab".parse().unwrap(), &conformance::run(2, 0)).await.unwrap(), None);
        store.open(of_job(2, 0)).await.unwrap();
        store.check().await.unwrap();
    }
}

#[tokio::test]
async fn a_broken_write_undoes_itself_alone() {
    let dir = TempDir::new().unwrap();
    let store = SqliteStore::open(&at(&dir)).unwrap();
    let broken = store.writer.write(|db| {
        db.execute("INSERT INTO nonces VALUES ('half', 1)", [])?;
        db.execute("INSERT INTO no_such_table VALUES (1)", [])
    });
    let (broken, whole) = tokio::join!(broken, store.open(of_job(1, 0)));
    assert!(broken.is_err() && matches!(whole, Ok(Opened::New(_))));
    assert!(store.remember_nonce("half", T0).await.unwrap());
}

#[tokio::test]
async fn dead_nonces_go_by_themselves() {
    let dir = TempDir::new().unwrap();
    let store = SqliteStore::open(&at(&dir)).unwrap();
    for i in 0..100 {
        store.remember_nonce(&format!("old{i}"), T0).await.unwrap();
    }
    for i in 0..50 {
        store.remember_nonce(&format!("new{i}"), T0 + Duration::hours(2)).await.unwrap();
    }
    let left: i64 =
        store.readers.read(|db| db.query_row("SELECT count(*) FROM nonces", [], |r| r.get(0))).await.unwrap();
    assert_eq!(left, 50);
}

/// The plans of all listings: each goes through an index that gives the order too. What is issued is sorted among what
/// still lives of one user or session only.
#[tokio::test]
async fn no_listing_scans_or_sorts_the_table() {
    let dir = TempDir::new().unwrap();
    let store = SqliteStore::open(&at(&dir)).unwrap();
    let mut statements = vec![];
    for bits in 0..32u32 {
        for status in [SessionStatus::Active, SessionStatus::Completed, SessionStatus::Invalidated] {
            statements.push(sessions::listing(&SessionFilter {
                status: (bits & 1 != 0).then_some(status),
                cluster: (bits & 2 != 0).then(|| "lab".parse().unwrap()),
                user: (bits & 4 != 0).then(|| "bob".parse().unwrap()),
                project: (bits & 8 != 0).then(|| "genomics".parse().unwrap()),
                job: (bits & 16 != 0).then(|| 1.try_into().unwrap()),
                opened_before: None,
            }));
        }
    }
    for of in [
        IssuedTo::User("bob".parse().unwrap()),
        IssuedTo::Session(SessionId::random()),
        IssuedTo::Project("genomics".parse().unwrap()),
        IssuedTo::Role("arn:aws:iam::123456789012:role/r".parse().unwrap()),
        IssuedTo::Node("lab".parse().unwrap(), "n1".parse().unwrap()),
    ] {
        statements.push(issuances::listing(&of));
    }
    statements
        .extend([orders::LIST, orders::SINCE, news::AFTER, notes::LIST, notes::GET, notes::REMOVE].map(str::to_owned));
    statements.push(sessions::RUNS.to_owned());
    for sql in statements {
        let plan = sql.clone();
        let plan: Vec<String> = store
            .readers
            .read(move |db| {
                let mut statement = db.prepare(&format!("EXPLAIN QUERY PLAN {plan}"))?;
                statement.raw_query().mapped(|row| row.get::<_, String>(3)).collect()
            })
            .await
            .unwrap();
        let sorts = sql.contains("FROM issuances") && plan.iter().any(|p| p.contains("expires>?"));
        let good = |p: &String| {
            let by = match &sql {
                runs if runs == sessions::RUNS => "USING COVERING INDEX",
                after if after == news::AFTER => "USING PRIMARY KEY",
                _ => "USING INDEX",
            };
            p.contains(by) && p.starts_with("SEARCH") || sorts && p.contains("ORDER BY")
        };
        assert!(plan.iter().all(good), "{sql}: {plan:?}");
    }
}

/// Every statement in these files, by its text: whoever writes one that looks at all of a table that grows hears of it.
#[tokio::test]
async fn no_statement_scans_a_table_that_grows() {
    const SOURCES: [&str; 7] = [
        include_str!("../sqlite.rs"),
        include_str!("issuances.rs"),
        include_str!("news.rs"),
        include_str!("notes.rs"),
        include_str!("orders.rs"),
        include_str!("rows.rs"),
        include_str!("sessions.rs"),
    ];
    // A handful of rows each, whatever the site.
    const SMALL: [&str; 5] = ["blocks", "heartbeat", "identity", "leases", "newest_news"];
    let dir = TempDir::new().unwrap();
    let store = SqliteStore::open(&at(&dir)).unwrap();
    let mut seen = 0;
    for text in SOURCES.iter().flat_map(|source| source.split('"').skip(1).step_by(2)) {
        let sql = text.replace("{SESSION}", rows::SESSION);
        let verb = ["SELECT ", "UPDATE ", "DELETE ", "INSERT "].iter().any(|verb| sql.starts_with(verb));
        // What is put together of parts is planned in the test above.
        if !verb || sql.contains('{') || !sql.contains(' ') || sql.ends_with("WHERE (opened, seq) < (:at, :seq)") {
            continue;
        }
        seen += 1;
        let planned = sql.clone();
        let plan: Vec<String> = store
            .readers
            .read(move |db| {
                let mut statement = db.prepare(&format!("EXPLAIN QUERY PLAN {planned}"))?;
                statement.raw_query().mapped(|row| row.get::<_, String>(3)).collect()
            })
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e}"));
        let scans = |step: &String| {
            step.strip_prefix("SCAN ").is_some_and(|what| {
                // The open orders alone, as a rule none.
                !matches!(what, "CONSTANT ROW" | "orders USING INDEX orders_open")
                    && !SMALL.contains(&what.split(' ').next().unwrap_or_default())
            })
        };
        assert!(!plan.iter().any(scans), "{sql}: {plan:?}");
    }
    assert!(seen > 30, "only {seen} statements were found");
}
