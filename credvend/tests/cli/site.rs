//! A credvend of one cluster in a directory of its own, and its command line.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub const DEADLINE: Duration = Duration::from_secs(20);
pub const SECRET: &str = "head-secret-0123456789";
pub const ARN: &str = "arn:aws:iam::123456789012:role/genomics";

pub struct Site {
    pub dir: tempfile::TempDir,
    pub serve: Option<Child>,
    pub port: u16,
}

pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Site {
    pub fn new() -> Self {
        // Another program may take the port before credvend does; loopback has enough of them.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let site = Site { dir: tempfile::tempdir().unwrap(), serve: None, port };
        site.write("secret", &format!("{SECRET}\n"));
        site.write("projects.toml", &format!("[projects.genomics]\nrole-arn = \"{ARN}\"\n"));
        let at = |name: &str| site.path(name).display().to_string();
        site.write(
            "credvend.toml",
            &format!(
                "listen = \"127.0.0.1:{port}\"\nstate-dir = \"{}\"\nadmin-socket = \"{}\"\nprojects = \"{}\"\n\
                 [aws]\nregion = \"us-east-1\"\nsts-endpoint = \"http://127.0.0.1:1\"\niam-endpoint = \"http://127.0.0.1:1\"\n\
                 [[cluster]]\nname = \"lab\"\nattest = \"head\"\nhead-secret-file = \"{}\"\n",
                at("state"),
                at("run/admin.sock"),
                at("projects.toml"),
                at("secret"),
            ),
        );
        site
    }

    pub fn serving() -> Self {
        let mut site = Site::new();
        site.serve();
        site
    }

    pub fn serve(&mut self) {
        let site = self;
        let log = std::fs::File::create(site.path("log")).unwrap();
        let child = site.command(&["serve"]).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        site.serve = Some(child);
        site.until("ready", |site| site.log().contains(" ready "));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_credvend"));
        command.args(args).stdin(Stdio::null()).env_clear().env("CREDVEND_CONFIG", self.path("credvend.toml"));
        command.env("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE").env("AWS_SECRET_ACCESS_KEY", "not-a-real-key");
        command
    }

    pub fn run(&self, args: &[&str]) -> Said {
        self.run_with(args, &[])
    }

    pub fn run_with(&self, args: &[&str], environment: &[(&str, &str)]) -> Said {
        let output = self.command(args).envs(environment.iter().copied()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Said { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }

    pub fn done(&self, args: &[&str]) -> String {
        let said = self.run(args);
        assert_eq!(said.code, 0, "{args:?}: {}{}", said.out, said.err);
        said.out
    }

    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.done(args)).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        let id = self.serve.as_ref().unwrap().id();
        kill(Pid::from_raw(id.try_into().unwrap()), signal).unwrap();
    }

    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.serve.take().unwrap().wait().unwrap()
    }

    pub fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
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
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(child) = &mut self.serve {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
