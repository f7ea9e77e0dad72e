//! The shipped alerts: by promtool on made-up numbers, and by a real Prometheus on a real credvend that loses its disk and
//! then its life.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use prometheus::Prometheus;

#[path = "../../tests/alerts/prometheus.rs"]
mod prometheus;

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
#[cfg_attr(not(has_prometheus), ignore = "promtool and prometheus are missing (Debian: prometheus)")]
fn every_alert_fires_when_it_must_and_only_then() {
    for (what, file) in
        [("check", "packaging/prometheus/credd.rules.yml"), ("test", "tests/alerts/credd.rules.test.yml")]
    {
        let run = Command::new("promtool").args([what, "rules", file]).current_dir(root()).output().unwrap();
        let said = [run.stdout, run.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(run.status.success(), "promtool {what} rules {file}: {said}");
    }
    // None was forgotten.
    let count = |file: &str, word: &str| std::fs::read_to_string(root().join(file)).unwrap().matches(word).count();
    let alerts = count("packaging/prometheus/credd.rules.yml", "- alert: ");
    assert_eq!(count("tests/alerts/credd.rules.test.yml", " fires\n"), alerts);
    assert_eq!(count("tests/alerts/credd.rules.test.yml", " does not\n"), alerts);
}

/// A credvend of one head's cluster, over plain HTTP.
struct Site {
    child: Child,
    port: u16,
    metrics: u16,
    _dir: tempfile::TempDir,
}

const SECRET: &str = "head-secret-0123456789";

impl Site {
    fn serving() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let [port, metrics] = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [port, metrics] = [port, metrics].map(|listener| listener.local_addr().unwrap().port());
        let write = |name: &str, text: String| {
            std::fs::write(at(name), text).unwrap();
            std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(0o600)).unwrap();
        };
        write("secret", format!("{SECRET}\n"));
        write("projects.toml", "[projects.genomics]\nrole-arn = \"arn:aws:iam::123456789012:role/g\"\n".into());
        write(
            "credvend.toml",
            format!(
                "listen = \"127.0.0.1:{port}\"\nplain-http = true\nstate-dir = \"{}\"\nadmin-socket = \"{}\"\n\
                 projects = \"{}\"\n[metrics]\nlisten = \"127.0.0.1:{metrics}\"\n[aws]\nregion = \"us-east-1\"\n\
                 sts-endpoint = \"http://127.0.0.1:1\"\niam-endpoint = \"http://127.0.0.1:1\"\n\
                 [[cluster]]\nname = \"lab\"\nattest = \"head\"\nhead-secret-file = \"{}\"\n",
                at("state"),
                at("run/admin.sock"),
                at("projects.toml"),
                at("secret"),
            ),
        );
        // A signal that is ignored stays so in what is executed: a write beyond the limit fails instead of killing.
        let child = Command::new("sh")
            .args(["-c", "trap '' XFSZ; exec \"$0\" --config \"$1\" serve", env!("CARGO_BIN_EXE_credvend")])
            .arg(at("credvend.toml"))
            .env("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
            .env("AWS_SECRET_ACCESS_KEY", "not-a-real-key")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Site { child, port, metrics, _dir: dir }
    }

    /// No file of the process may grow beyond so many bytes: its disk is full, or has room again.
    fn file_size(&self, limit: &str) {
        let pid = self.child.id().to_string();
        let set = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={limit}:")]).status().unwrap();
        assert!(set.success());
    }

    /// The head states a job; the answer's status line.
    fn open(&self, id: u32) -> String {
        let body = format!(
            "{{\"sessionId\":\"{id}\",\"projectId\":\"genomics\",\"clusterName\":\"lab\",\"clusterUser\":\"bob\",\
             \"submittedTime\":\"2026-03-01\"}}"
        );
        let request = format!(
            "POST /sessions HTTP/1.1\r\nHost: x\r\nAuthorization: {SECRET}\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        );
        let mut answer = String::new();
        let asked = TcpStream::connect(("127.0.0.1", self.port)).and_then(|mut stream| {
            stream.write_all(request.as_bytes())?;
            stream.read_to_string(&mut answer)
        });
        asked.map_or_else(|error| error.to_string(), |_| answer.lines().next().unwrap_or_default().to_owned())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[cfg_attr(not(has_prometheus), ignore = "promtool and prometheus are missing (Debian: prometheus)")]
fn a_real_prometheus_alarms_when_the_disk_is_full_and_when_credvend_is_gone() {
    let mut site = Site::serving();
    let prometheus = Prometheus::start(&[("credvend", site.metrics)]);
    assert_eq!(site.open(1), "HTTP/1.1 200 OK");
    assert!(prometheus.firing().is_empty(), "{:?}", prometheus.firing());

    site.file_size("0");
    let mut id = 2;
    prometheus.until("the alarm about a full disk", |prometheus| {
        let answer = site.open(id);
        assert!(!answer.contains("200"), "nothing half-written is called open: {answer}");
        id += 1;
        let firing = prometheus.firing();
        ["CredvendStoreFailing", "CredvendAuditLogFailing"].iter().all(|alert| firing.contains(*alert))
    });
    assert!(!prometheus.firing().contains("CredvendDown"), "it goes on answering");

    site.file_size("unlimited");
    prometheus.until("the audit log's alarm ends", |prometheus| {
        id += 1;
        site.open(id) == "HTTP/1.1 200 OK" && !prometheus.firing().contains("CredvendAuditLogFailing")
    });

    site.child.kill().unwrap();
    prometheus.until("the alarm that credvend is gone", |prometheus| prometheus.firing().contains("CredvendDown"));
}
