//! What a running credvend says and keeps when its database's disk is full, its file locked, corrupt, read-only or gone:
//! refused with words, nothing half-written, and nothing lost that was acknowledged.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(30);
const SECRET: &str = "head-secret-0123456789";

/// A file system of a few megabytes in a mount namespace of its own, as long as this lives.
struct SmallDisk {
    holder: Child,
    dir: PathBuf,
}

impl SmallDisk {
    fn mount(dir: &Path, size: &str) -> Self {
        let script = "mount -t tmpfs -o size=\"$2\",mode=0700 credd \"$1\" && echo mounted && read -r _";
        let mut holder = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .args([dir.as_os_str(), size.as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "mounted\n");
        SmallDisk { holder, dir: dir.to_owned() }
    }

    /// Runs a program where the file system is.
    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &self.holder.id().to_string(), program]);
        command
    }

    /// A file of it as everybody else reaches it.
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", self.holder.id(), self.dir.display())).join(name)
    }

    fn fill(&self) {
        let mut filler = std::fs::File::create(self.path("filler")).unwrap();
        let error = loop {
            if let Err(error) = filler.write_all(&[0; 4096]) {
                break error;
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

struct Site {
    dir: tempfile::TempDir,
    disk: Option<SmallDisk>,
    port: u16,
    serve: Option<Child>,
    /// What was acknowledged: the status of each session.
    acknowledged: BTreeMap<String, &'static str>,
}

#[derive(Debug)]
struct Seen {
    status: u16,
    body: Value,
}

impl Seen {
    /// A refusal that says these, and whether to ask again.
    #[track_caller]
    fn says(&self, status: u16, retry: bool, words: &[&str]) {
        let message = self.body["message"].as_str().unwrap_or_default();
        assert!(self.status == status && self.body["retry"] == retry, "{self:?}");
        assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {self:?}");
    }
}

impl Site {
    fn new(disk: Option<&str>) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("store")).unwrap();
        std::fs::set_permissions(dir.path().join("store"), std::fs::Permissions::from_mode(0o700)).unwrap();
        let disk = disk.map(|size| SmallDisk::mount(&dir.path().join("store"), size));
        let site = Site { dir, disk, port, serve: None, acknowledged: BTreeMap::new() };
        let write = |name: &str, text: &str| {
            std::fs::write(site.path(name), text).unwrap();
            std::fs::set_permissions(site.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
        };
        write("secret", SECRET);
        write("projects.toml", "[projects.genomics]\nrole-arn = \"arn:aws:iam::123456789012:role/genomics\"\n");
        let at = |name: &str| site.path(name).display().to_string();
        write(
            "credvend.toml",
            &format!(
                "listen = \"127.0.0.1:{port}\"\nplain-http = true\nstate-dir = {:?}\nadmin-socket = {:?}\n\
                 projects = {:?}\n[store]\npath = {:?}\n[aws]\nregion = \"us-east-1\"\nsts-endpoint = \"http://127.0.0.1:1\"\n\
                 iam-endpoint = \"http://127.0.0.1:1\"\n[[cluster]]\nname = \"lab\"\nattest = \"head\"\n\
                 head-secret-file = {:?}\n",
                at("state"),
                at("run/admin.sock"),
                at("projects.toml"),
                at("store/credvend.sqlite"),
                at("secret"),
            ),
        );
        site
    }

    fn serving(disk: Option<&str>) -> Self {
        let mut site = Site::new(disk);
        site.up();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The database file as this process reaches it.
    fn database(&self) -> PathBuf {
        self.disk.as_ref().map_or_else(|| self.path("store/credvend.sqlite"), |disk| disk.path("credvend.sqlite"))
    }

    fn command(&self, args: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_credvend");
        let mut command = self.disk.as_ref().map_or_else(|| Command::new(program), |disk| disk.inside(program));
        command.args(args).stdin(Stdio::null()).env_clear().env("CREDVEND_CONFIG", self.path("credvend.toml"));
        command.env("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE").env("AWS_SECRET_ACCESS_KEY", "not-a-real-key");
        command.env("PATH", "/usr/bin:/bin");
        command
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn up(&mut self) {
        let log = std::fs::File::create(self.path("log")).unwrap();
        self.serve = Some(self.command(&["serve"]).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        self.until("ready", |site| site.log().contains(" ready "));
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.serve.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it where it cannot start; what it says.
    fn refused(&self) -> String {
        let output = self.command(&["serve"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    }

    fn status(&self) -> String {
        let output = self.command(&["status"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// What `check-config` prints, which must find something wrong with the files.
    fn check(&self) -> String {
        let output = self.command(&["check-config"]).output().unwrap();
        assert!(!output.status.success());
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat()
    }

    fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !condition(self) {
            assert!(Instant::now() < end, "{what} did not come: {}", self.log());
            #[expect(
                clippy::disallowed_methods,
                reason = "a log file tells nobody that it has grown; polled with a deadline"
            )]
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Seen {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: {SECRET}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Seen { status, body: serde_json::from_str(body).unwrap_or(Value::Null) }
    }

    fn open(&mut self, session: &str) -> Seen {
        let body = json!({
            "sessionId": session, "projectId": "genomics", "clusterName": "lab", "clusterUser": "alice",
            "submittedTime": "2026-03-01T00:00:00",
        });
        let seen = self.call("POST", "/sessions", &body);
        if seen.status == 200 {
            self.acknowledged.insert(session.to_owned(), "ACTIVE");
        }
        seen
    }

    fn complete(&mut self, session: &str) -> Seen {
        let seen = self.call("PUT", &format!("/sessions/{session}"), &json!({ "status": "COMPLETED" }));
        if seen.status == 200 {
            self.acknowledged.insert(session.to_owned(), "COMPLETED");
        }
        seen
    }

    fn open_many(&mut self, prefix: &str, count: usize) {
        for i in 0..count {
            let seen = self.open(&format!("{prefix}{i}"));
            assert_eq!(seen.status, 200, "{seen:?}");
        }
    }

    /// After a power cut, the store has exactly what was acknowledged, and is whole.
    fn check_after_a_crash(&mut self) {
        self.kill();
        self.up();
        let output = self.command(&["session", "list", "--json", "--limit", "100000"]).output().unwrap();
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        let text = |session: &Value, key: &str| session[key].as_str().unwrap().to_owned();
        let found: BTreeMap<String, String> =
            list.as_array().unwrap().iter().map(|s| (text(s, "head-session"), text(s, "status"))).collect();
        for (session, status) in &self.acknowledged {
            assert_eq!(found.get(session).map(String::as_str), Some(*status), "{session} was acknowledged");
        }
        assert_eq!(found.len(), self.acknowledged.len(), "what was refused is not there");
        let db = rusqlite::Connection::open(self.database()).unwrap();
        let verdict: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(verdict, "ok");
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
#[cfg_attr(
    not(own_mounts),
    ignore = "needs root, unshare(1), nsenter(1) and mount(8), for a small file system of its own"
)]
fn a_full_disk_refuses_writes_and_keeps_what_it_has() {
    let mut site = Site::serving(Some("4m"));
    site.open_many("a", 30);
    site.disk.as_ref().unwrap().fill();
    let refused = (0..200).map(|i| site.open(&format!("b{i}"))).find(|seen| seen.status != 200).expect("it is full");
    refused.says(500, true, &["no space is left for", "store/credvend.sqlite", "free some"]);
    site.complete("a0").says(500, true, &["no space is left for"]);
    let status = site.status();
    assert!(
        status.contains("no space is left for") && site.call("GET", "/ready", &Value::Null).status == 503,
        "{status}"
    );
    let check = site.check();
    assert!(check.contains("store/credvend.sqlite cannot be written: no space is left"), "{check}");
    // Reading goes on.
    let list = site.command(&["session", "list", "--json"]).output().unwrap();
    assert!(list.status.success());
    std::fs::remove_file(site.disk.as_ref().unwrap().path("filler")).unwrap();
    assert_eq!(site.complete("a0").status, 200, "it goes on as soon as there is space");
    site.open_many("c", 5);
    site.check_after_a_crash();

    // Killed while it is full, and started while it is.
    site.disk.as_ref().unwrap().fill();
    let _ = (0..200).map(|i| site.open(&format!("d{i}"))).find(|seen| seen.status != 200).expect("it is full");
    site.kill();
    let said = site.refused();
    assert!(said.contains("no space is left for") || said.contains("cannot be"), "{said}");
    std::fs::remove_file(site.disk.as_ref().unwrap().path("filler")).unwrap();
    site.up();
    site.check_after_a_crash();
}

#[test]
fn a_database_that_another_process_has_locked_is_told_and_waited_for() {
    let mut site = Site::serving(None);
    site.open_many("a", 3);
    let other = rusqlite::Connection::open(site.database()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let begun = Instant::now();
    site.open("b").says(503, true, &["another process holds", "store/credvend.sqlite", "locked", ".backup"]);
    assert!(begun.elapsed() > Duration::from_secs(4), "a short lock, as of a backup, is waited out");
    let list = site.command(&["session", "list", "--json"]).output().unwrap();
    assert!(list.status.success(), "reading goes on");
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(site.open("b").status, 200);
    drop(other);
    site.check_after_a_crash();
}

/// Everything but the first page, where the file says what it is.
fn scribble(database: &Path) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(database).unwrap();
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap() - 4096];
    file.read_exact_at(&mut bytes, 4096).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
    file.write_all_at(&bytes, 4096).unwrap();
}

#[test]
fn a_corrupt_database_is_told_whether_it_was_so_or_becomes_so() {
    let mut site = Site::serving(None);
    site.open_many("a", 60);
    // What is in the log goes into the file, and what credvend has read is read again.
    let other = rusqlite::Connection::open(site.database()).unwrap();
    other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let copy = site.path("copy");
    std::fs::copy(site.database(), &copy).unwrap();
    scribble(&site.database());
    other.pragma_update(None, "user_version", 1_000_000).ok();
    drop(other);
    site.open("b").says(500, true, &["store/credvend.sqlite", "is corrupt", "restore a backup"]);
    let status = site.status();
    assert!(status.contains("is corrupt"), "{status}");
    site.kill();
    // What the log would repair at the next start is not what this is about.
    for file in ["credvend.sqlite-wal", "credvend.sqlite-shm"] {
        let _ = std::fs::remove_file(site.path("store").join(file));
    }
    let before = std::fs::read(site.database()).unwrap();
    let said = site.refused();
    assert!(said.contains("is corrupt") && said.contains("keep the file"), "{said}");
    assert!(site.check().contains("is corrupt"), "{}", site.check());
    assert!(std::fs::read(site.database()).unwrap() == before, "what is left of it is not touched");
    // The backup.
    std::fs::copy(&copy, site.database()).unwrap();
    site.up();
    site.check_after_a_crash();
}

#[test]
#[cfg_attr(
    not(own_mounts),
    ignore = "needs root, unshare(1), nsenter(1) and mount(8), for a small file system of its own"
)]
fn a_read_only_file_system_is_told_at_start() {
    let mut site = Site::serving(Some("4m"));
    site.open_many("a", 3);
    site.kill();
    let dir = site.path("store");
    let remount = |how: &str| {
        let done = site.disk.as_ref().unwrap().inside("mount").args(["-o", how]).arg(&dir).status().unwrap();
        assert!(done.success());
    };
    remount("remount,ro");
    let said = site.refused();
    for said in [said, site.check()] {
        assert!(
            said.contains("store/credvend.sqlite cannot be opened for writing") && said.contains("ead-only"),
            "{said}"
        );
    }
    remount("remount,rw");
    site.up();
    site.check_after_a_crash();
}

#[test]
fn a_database_that_is_deleted_underneath_takes_no_write_and_can_be_put_back() {
    let mut site = Site::serving(None);
    site.open_many("a", 10);
    // What credvend has open is all that is left of it.
    let aside: Vec<(PathBuf, PathBuf)> = ["credvend.sqlite", "credvend.sqlite-wal", "credvend.sqlite-shm"]
        .map(|file| (site.path("store").join(file), site.path(file)))
        .into();
    for (file, aside) in &aside {
        std::fs::rename(file, aside).unwrap();
    }
    site.open("b").says(500, true, &["store/credvend.sqlite was deleted", "from a backup", "/fd"]);
    site.complete("a1").says(500, true, &["was deleted"]);
    assert!(site.status().contains("was deleted"));
    for (file, aside) in &aside {
        std::fs::rename(aside, file).unwrap();
    }
    assert_eq!(site.complete("a1").status, 200);
    site.check_after_a_crash();
}

#[test]
#[cfg_attr(
    not(own_mounts),
    ignore = "needs root, unshare(1), nsenter(1) and mount(8), for a small file system of its own"
)]
fn an_audit_log_that_cannot_be_written_is_told_where_nothing_is_vended_without() {
    let mut site = Site::new(Some("1m"));
    let text = std::fs::read_to_string(site.path("credvend.toml")).unwrap();
    let text = text.replace("store/credvend.sqlite", "state/credvend.sqlite");
    let audit = format!("[audit]\npath = {:?}\non-failure = \"refuse\"\n", site.path("store/audit.jsonl"));
    std::fs::write(site.path("credvend.toml"), format!("{text}{audit}")).unwrap();
    site.up();
    site.open_many("a", 3);
    let healthy = site.command(&["check-config"]).output().unwrap();
    assert!(healthy.status.success() && !site.status().contains("audit log"), "{healthy:?}");
    site.disk.as_ref().unwrap().fill();
    // What is in the last block has room yet.
    let refused = (0..200).map(|i| site.open(&format!("b{i}"))).find(|seen| seen.status != 200).expect("it is full");
    refused.says(503, true, &["audit"]);
    assert!(site.status().contains("the audit log cannot be written"), "{}", site.status());
    let check = site.check();
    assert!(check.contains("[audit] path") && check.contains("no space is left"), "{check}");
    std::fs::remove_file(site.disk.as_ref().unwrap().path("filler")).unwrap();
    assert_eq!(site.complete("a0").status, 200);
    assert!(!site.status().contains("audit log"), "{}", site.status());
}
