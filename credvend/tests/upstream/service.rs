//! A real `credvend serve` on loopback, and a head that speaks to it.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::pretend_aws::Keys;

pub const DEADLINE: Duration = Duration::from_secs(30);

/// What heads prove themselves by, at the cluster's credvend and at the central one.
pub const LOCAL_SECRET: &str = "local-head-secret-0123456789";
pub const CENTRAL_SECRET: &str = "central-head-secret-0123456789";

/// Where a service's credentials come from, and where it listens.
pub struct Setup {
    pub toml: String,
    pub projects: String,
    pub secret: &'static str,
    /// TLS, or plain HTTP.
    pub tls: bool,
    pub environment: Vec<(&'static str, String)>,
}

pub struct Service {
    pub dir: tempfile::TempDir,
    pub port: u16,
    setup: Setup,
    child: Option<Child>,
    http: reqwest::Client,
}

/// An answer.
#[derive(Debug)]
pub struct Seen {
    pub status: u16,
    pub body: Value,
}

impl Seen {
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    /// The document's keys.
    pub fn keys(&self) -> Keys {
        let text = |key: &str| self.body[key].as_str().unwrap_or_else(|| panic!("{self:?}"));
        Keys::new(text("AccessKeyId"), text("SecretAccessKey"), Some(text("Token")))
    }
}

impl Service {
    pub async fn start(setup: Setup) -> Self {
        // Another program may take the port before credvend does; loopback has enough of them.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut service = Service { dir, port, setup, child: None, http };
        let at = |name: &str| service.path(name).display().to_string();
        service.write("head-secret", &format!("{}\n", service.setup.secret));
        service.write("upstream-secret", &format!("an-older-one-0123456789\n{CENTRAL_SECRET}\n"));
        service.write("projects.toml", &service.setup.projects);
        let listening = if service.setup.tls { "" } else { "plain-http = true\n" };
        let text = format!(
            "listen = \"127.0.0.1:{port}\"\n{listening}state-dir = {:?}\nadmin-socket = {:?}\nprojects = {:?}\n{}\n\
             [[cluster]]\nname = \"lab\"\nattest = \"head\"\nhead-secret-file = {:?}\n",
            at("state"),
            at("run/admin.sock"),
            at("projects.toml"),
            service.setup.toml.replace("UPSTREAM-SECRET", &at("upstream-secret")),
            at("head-secret"),
        );
        service.write("credvend.toml", &text);
        service.up().await;
        service
    }

    pub async fn up(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let before = self.log().matches(" ready ").count();
        let child = self.command(&["serve"]).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.child = Some(child);
        self.until("ready", || self.log().matches(" ready ").count() > before).await;
    }

    /// As a power cut would.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_credvend"));
        command.args(args).stdin(Stdio::null()).env_clear().env("CREDVEND_CONFIG", self.path("credvend.toml"));
        command.envs(self.setup.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The command line's output.
    pub async fn run(&self, args: &[&str]) -> (bool, String) {
        let mut command = self.command(args);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    /// Its sessions as an administrator lists them: the head's id, and the status.
    pub async fn sessions(&self) -> Vec<(String, String)> {
        let (good, text) = self.run(&["session", "list", "--json"]).await;
        assert!(good, "{text}");
        let list: Value = serde_json::from_str(&text).unwrap();
        let sessions = list.as_array().unwrap_or_else(|| panic!("{text}")).iter();
        let field = |session: &Value, key: &str| session[key].as_str().unwrap_or_default().to_owned();
        sessions.map(|s| (field(s, "head-session"), field(s, "status"))).collect()
    }

    pub async fn pin(&self) -> String {
        let (good, text) = self.run(&["pin", "--json"]).await;
        assert!(good, "{text}");
        serde_json::from_str::<Value>(&text).unwrap()["pin"].as_str().unwrap().to_owned()
    }

    /// A request over plain HTTP.
    pub async fn call(&self, method: &str, path: &str, authorization: &str, body: Option<Value>) -> Seen {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let mut request = self.http.request(method.parse().unwrap(), url).header("authorization", authorization);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.timeout(DEADLINE).send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        Seen { status, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
    }

    /// A head opens a session; its token.
    pub async fn open(&self, session: &str, user: &str) -> String {
        let body = json!({
            "sessionId": session, "projectId": "genomics", "clusterName": "lab", "clusterUser": user,
            "submittedTime": "2026-03-01T00:00:00",
        });
        let seen = self.call("POST", "/sessions", LOCAL_SECRET, Some(body)).await;
        assert_eq!(seen.status, 200, "{seen:?}");
        seen.body["AWS_CONTAINER_AUTHORIZATION_TOKEN"].as_str().unwrap().to_owned()
    }

    pub async fn credentials(&self, session: &str, token: &str) -> Seen {
        let path = format!("/sessions/{session}/cluster/lab/project/genomics?roleSessionName=mine");
        self.call("GET", &path, token, None).await
    }

    /// The same until it is there.
    pub async fn credentials_soon(&self, session: &str, token: &str) -> Seen {
        let end = Instant::now() + DEADLINE;
        loop {
            let seen = self.credentials(session, token).await;
            if seen.status == 200 {
                return seen;
            }
            assert!(seen.status == 503 && Instant::now() < end, "{seen:?}: {}", self.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub async fn complete(&self, session: &str) {
        let body = Some(json!({ "status": "COMPLETED" }));
        let seen = self.call("PUT", &format!("/sessions/{session}"), LOCAL_SECRET, body).await;
        assert_eq!(seen.status, 200, "{seen:?}");
    }

    pub async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let end = Instant::now() + DEADLINE;
        while !condition() {
            assert!(Instant::now() < end, "{what} did not come: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Polls the list of sessions.
    pub async fn until_sessions(&self, what: &str, condition: impl Fn(&[(String, String)]) -> bool) {
        let end = Instant::now() + DEADLINE;
        loop {
            let sessions = self.sessions().await;
            if condition(&sessions) {
                return;
            }
            assert!(Instant::now() < end, "{what} did not come: {sessions:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A cluster's credvend before this URL.
pub fn before(url: &str, more: &str) -> Setup {
    Setup {
        toml: format!("[upstream]\nurl = \"{url}\"\nhead-secret-file = \"UPSTREAM-SECRET\"\n{more}"),
        projects: "[projects.genomics]\n".into(),
        secret: LOCAL_SECRET,
        tls: false,
        environment: vec![],
    }
}
