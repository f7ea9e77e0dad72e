//! A real Prometheus on loopback with the shipped alert rules, for the tests of both daemons. It asks five times a second, and
//! no alert waits before it fires; everything else of the rules is as shipped.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// For anything to become as it should.
const DEADLINE: Duration = Duration::from_secs(90);

pub struct Prometheus {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    /// Asks these (job, port of 127.0.0.1); has asked each of them once when it returns.
    pub fn start(targets: &[(&str, u16)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/prometheus/credd.rules.yml");
        let rules: String = std::fs::read_to_string(shipped)
            .unwrap()
            .lines()
            .filter(|line| !line.trim_start().starts_with("for: "))
            .map(|line| format!("{line}\n"))
            .collect();
        std::fs::write(dir.path().join("rules.yml"), rules).unwrap();
        let mut config = "global: { scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms }\n\
                          rule_files: [rules.yml]\nscrape_configs:\n"
            .to_owned();
        for (job, port) in targets {
            config += &format!("  - job_name: {job}\n    static_configs: [{{ targets: ['127.0.0.1:{port}'] }}]\n");
        }
        std::fs::write(dir.path().join("prometheus.yml"), config).unwrap();
        // Another program may take the port before Prometheus does; loopback has enough of them.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=error")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("prometheus (Debian: prometheus)");
        let started = Prometheus { child, port, _dir: dir };
        started.until("every target was asked", |p| {
            let answer = p.ask("/api/v1/targets");
            let up = answer["data"]["activeTargets"]
                .as_array()
                .map_or(0, |all| all.iter().filter(|target| target["health"] == "up").count());
            up == targets.len()
        });
        started
    }

    /// The alerts that fire now.
    pub fn firing(&self) -> BTreeSet<String> {
        let answer = self.ask("/api/v1/alerts");
        let alerts = answer["data"]["alerts"].as_array().cloned().unwrap_or_default();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        firing.filter_map(|alert| Some(alert["labels"]["alertname"].as_str()?.to_owned())).collect()
    }

    /// Until it holds; it is asked a few times a second.
    pub fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !holds(self) {
            assert!(Instant::now() < end, "never: {what}; firing: {:?}", self.firing());
            #[expect(
                clippy::disallowed_methods,
                reason = "Prometheus tells nobody what it sees; polled with a deadline"
            )]
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn ask(&self, path: &str) -> serde_json::Value {
        let request = format!("GET {path} HTTP/1.0\r\nHost: prometheus\r\n\r\n");
        let mut answer = String::new();
        let asked = TcpStream::connect(("127.0.0.1", self.port)).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(request.as_bytes())?;
            stream.read_to_string(&mut answer)
        });
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        // While it starts there is none.
        asked.ok().and_then(|_| serde_json::from_str(body).ok()).unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
