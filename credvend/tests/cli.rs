//! The program itself: `serve` with what administrators and slurmctld run beside it.
#![forbid(unsafe_code)]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const DEADLINE: Duration = Duration::from_secs(20);
const SECRET: &str = "head-secret-0123456789";
const ARN: &str = "arn:aws:iam::123456789012:role/genomics";

struct Site {
    dir: tempfile::TempDir,
    serve: Option<Child>,
    port: u16,
}

struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Site {
    fn new() -> Self {
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

    fn serving() -> Self {
        let mut site = Site::new();
        site.serve();
        site
    }

    fn serve(&mut self) {
        let site = self;
        let log = std::fs::File::create(site.path("log")).unwrap();
        let child = site.command(&["serve"]).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        site.serve = Some(child);
        site.until("ready", |site| site.log().contains(" ready "));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_credvend"));
        command.args(args).stdin(Stdio::null()).env_clear().env("CREDVEND_CONFIG", self.path("credvend.toml"));
        command.env("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE").env("AWS_SECRET_ACCESS_KEY", "not-a-real-key");
        command
    }

    fn run(&self, args: &[&str]) -> Said {
        self.run_with(args, &[])
    }

    fn run_with(&self, args: &[&str], environment: &[(&str, &str)]) -> Said {
        let output = self.command(args).envs(environment.iter().copied()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Said { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }

    fn done(&self, args: &[&str]) -> String {
        let said = self.run(args);
        assert_eq!(said.code, 0, "{args:?}: {}{}", said.out, said.err);
        said.out
    }

    fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.done(args)).unwrap()
    }

    fn signal(&self, signal: Signal) {
        let id = self.serve.as_ref().unwrap().id();
        kill(Pid::from_raw(id.try_into().unwrap()), signal).unwrap();
    }

    fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.serve.take().unwrap().wait().unwrap()
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
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(child) = &mut self.serve {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn serve_prints_the_pin_and_stops_when_told() {
    let mut site = Site::serving();
    let pin = site.json(&["pin", "--json"])["pin"].as_str().unwrap().to_owned();
    assert!(pin.len() == 71 && site.log().contains(&format!("pin = \"{pin}\"")), "{}", site.log());
    assert!(site.done(&["status"]).contains("store ok"));
    let again = site.run(&["serve"]);
    assert_eq!(again.code, 1);
    assert!(again.err.contains("another credvend listens there"), "{}", again.err);
    let id = site.serve.as_ref().unwrap().id();
    let limits = std::fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    assert!(site.stop().success());
    assert!(!site.path("run/admin.sock").exists());
    for secret in [SECRET, "not-a-real-key"] {
        assert!(!site.log().contains(secret));
    }
    let said = site.run(&["status"]);
    assert!(said.code == 1 && said.err.contains("is `credvend serve` running?"), "{}", said.err);
}

#[test]
fn the_service_manager_is_told_and_every_line_of_the_log_can_be_json() {
    let mut site = Site::new();
    let text = std::fs::read_to_string(site.path("credvend.toml")).unwrap();
    site.write("credvend.toml", &format!("{text}[log]\nformat = \"json\"\nfilter = \"debug\"\n"));
    let manager = std::os::unix::net::UnixDatagram::bind(site.path("notify")).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let told = || {
        let mut bytes = [0; 256];
        let length = manager.recv(&mut bytes).expect("nothing was told within the deadline");
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    };
    let log = std::fs::File::create(site.path("log")).unwrap();
    let mut serve = site.command(&["serve"]);
    serve.env("NOTIFY_SOCKET", site.path("notify")).stdout(Stdio::null()).stderr(log);
    site.serve = Some(serve.spawn().unwrap());
    assert_eq!(told().trim_end(), "READY=1");
    assert!(site.done(&["status"]).contains("store ok"), "ready means that it answers");
    std::net::TcpStream::connect(("127.0.0.1", site.port)).unwrap();
    site.write("projects.toml", "not = \"a\\nproject\"\n");
    site.signal(Signal::SIGHUP);
    site.until("the complaint", |site| site.log().contains("not reloaded"));
    site.signal(Signal::SIGTERM);
    assert_eq!(told().trim_end(), "STOPPING=1");
    assert!(site.serve.take().unwrap().wait().unwrap().success());
    let log = site.log();
    for line in log.lines() {
        let said: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let texts = [&said["timestamp"], &said["level"], &said["target"], &said["fields"]["message"]];
        assert!(texts.iter().all(|text| text.is_string()), "{line}");
    }
    for message in ["ready", "stopping"] {
        assert!(log.contains(&format!("\"message\":\"{message}\"")), "{message}: {log}");
    }
}

#[test]
fn a_role_of_another_aws_partition_is_refused() {
    let site = Site::new();
    let foreign = ARN.replace("arn:aws:", "arn:aws-us-gov:");
    let said = site.run(&["project", "set", "climate", "--role-arn", &foreign]);
    assert!(said.code == 78 && said.err.contains("aws-us-gov"), "{}", said.err);
    assert!(site.done(&["check-config"]).contains("is valid"), "nothing was changed");
    site.write("projects.toml", &format!("[projects.genomics]\nrole-arn = \"{foreign}\"\n"));
    for command in ["check-config", "serve"] {
        let said = site.run(&[command]);
        assert_eq!(said.code, 78, "{command}: {}", said.err);
        assert!(said.err.contains("line 2") && said.err.contains("us-east-1"), "{command}: {}", said.err);
    }
    let text = std::fs::read_to_string(site.path("credvend.toml")).unwrap();
    site.write("credvend.toml", &text.replace("us-east-1", "us-gov-west-1"));
    assert!(site.done(&["check-config"]).contains("is valid"));
}

#[test]
fn projects_change_while_it_runs_and_a_bad_edit_changes_nothing() {
    let site = Site::serving();
    let arn = "arn:aws:iam::123456789012:role/team/climate";
    let said = site.done(&["project", "set", "climate", "--role-arn", arn, "--duration", "30m", "--session-tags"]);
    assert!(said.contains("uses it now"), "{said}");
    let template = "{cluster}-{user}-{job}";
    site.done(&["project", "set", "climate", "--role-arn", ARN, "--role", "train", "--session-name", template]);
    assert!(std::fs::read_to_string(site.path("projects.toml")).unwrap().contains(template));
    let nameless = ["project", "set", "climate", "--role-arn", ARN, "--role", "train", "--session-name", "{node}"];
    assert_eq!(site.run(&nameless).code, 78, "a template that tells nobody apart");
    let listed = || site.json(&["project", "list", "--json"]).as_array().unwrap().clone();
    assert_eq!(listed().len(), 3);
    let climate = listed().into_iter().find(|r| r["role-arn"] == arn).unwrap();
    assert_eq!((&climate["duration-seconds"], &climate["session-tags"]), (&1800.into(), &true.into()));
    site.done(&["project", "remove", "climate", "--role", "train"]);
    assert_eq!(listed().len(), 2);
    let said = site.run(&["project", "set", "climate", "--role-arn", arn, "--duration", "5s"]);
    assert_eq!(said.code, 78, "{}", said.err);
    assert_eq!(site.run(&["project", "remove", "nothing"]).code, 78);

    let good = std::fs::read_to_string(site.path("projects.toml")).unwrap();
    site.write("projects.toml", "[projects.genomics]\nrole-arn = \"nonsense\"\nsurprise = 1\n");
    site.signal(Signal::SIGHUP);
    site.until("the complaint", |site| site.log().matches("not reloaded").count() >= 2);
    assert_eq!(listed().len(), 2, "what was in force stays");
    assert!(site.done(&["status"]).contains("warning: the last reload left the old in force"), "and status says so");
    let check = site.run(&["check-config"]);
    assert_eq!(check.code, 78, "{}", check.out);
    assert!(check.err.contains("line 2") && check.err.contains("line 3"), "{}", check.err);
    let config = std::fs::read_to_string(site.path("credvend.toml")).unwrap();
    let elsewhere = |path: &std::path::Path| {
        site.write("credvend.toml", &format!("{config}\n[audit]\npath = \"{}\"\n", path.display()));
        site.run(&["check-config"])
    };
    std::os::unix::fs::symlink("/dev/null", site.path("linked.jsonl")).unwrap();
    for (path, why) in [("linked.jsonl", "not a regular file"), ("nowhere/audit.jsonl", "not a directory")] {
        let check = elsewhere(&site.path(path));
        assert_eq!(check.code, 78, "{}", check.out);
        assert!(check.err.contains("[audit] path") && check.err.contains(why), "{}", check.err);
    }
    site.write("credvend.toml", &config);
    site.write("projects.toml", &good.replace("genomics", "genetics"));
    site.signal(Signal::SIGHUP);
    site.until("the reload", |site| site.log().contains("reloaded projects"));
    assert!(listed().iter().any(|r| r["project"] == "genetics"));
    let status = site.done(&["status"]);
    assert!(!status.contains("the last reload") && status.contains("has no revoker role"), "{status}");
    site.done(&["project", "remove", "climate"]);
    site.done(&["project", "set", "other", "--role-arn", &ARN.replace("123456789012", "210987654321")]);
    assert!(site.done(&["status"]).contains("AWS account 210987654321 has no revoker role"), "of the map in force");
    assert!(site.done(&["check-config"]).contains("is valid"));
}

#[test]
fn the_hooks_open_and_complete_a_session() {
    let site = Site::serving();
    let pin = site.json(&["pin", "--json"])["pin"].as_str().unwrap().to_owned();
    let at = |name: &str| site.path(name).display().to_string();
    site.write(
        "hook.toml",
        &format!(
            "url = \"https://localhost:{}\"\npin = \"{pin}\"\nhead-secret-file = \"{}\"\nanswer-dir = \"{}\"\n",
            site.port,
            at("secret"),
            at("answers"),
        ),
    );
    let job = [
        ("SLURM_JOB_ID", "42"),
        ("SLURM_JOB_ACCOUNT", "genomics"),
        ("SLURM_CLUSTER_NAME", "lab"),
        ("SLURM_JOB_USER", "alice"),
    ];
    let config = at("hook.toml");
    let own = at("credvend.toml");
    let hook = |when, environment: &[(&str, &str)]| {
        let said = site.run_with(&["--config", &own, "hook", when, "--hook-config", &config], environment);
        assert_eq!(said.code, 0, "a hook never fails: {}", said.err);
        assert!(!said.err.contains(SECRET) && !said.out.contains("credd1-"), "{}", said.err);
        said.err
    };
    assert_eq!(hook("prolog", &job), "");
    let sessions = site.json(&["session", "list", "--user", "alice", "--json"]);
    assert_eq!((&sessions[0]["head-session"], &sessions[0]["status"]), (&"42".into(), &"ACTIVE".into()));
    let answer = std::fs::read_to_string(site.path("answers/42")).unwrap();
    assert!(answer.contains("AWS_CONTAINER_AUTHORIZATION_TOKEN=credd1-"), "{answer}");
    let mode = |name: &str| std::fs::metadata(site.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("answers"), mode("answers/42")), (0o700, 0o600), "the hook makes the directory");
    let of_job = site.json(&["session", "list", "--job", "42", "--cluster", "lab", "--json"]);
    assert_eq!((of_job.as_array().unwrap().len(), &of_job[0]["head-session"]), (1, &"42".into()));
    for none in [["--user", "bob"], ["--status", "completed"], ["--project", "climate"], ["--cluster", "hpc"]] {
        let listed = site.json(&[&["session", "list", "--job", "42", "--json"], &none[..]].concat());
        assert_eq!(listed.as_array().unwrap().len(), 0, "{none:?}");
    }
    assert_eq!(hook("epilog", &job), "");
    assert!(!site.path("answers/42").exists());
    let id = sessions[0]["session"].as_str().unwrap();
    assert!(site.done(&["session", "show", id]).contains("COMPLETED"));

    assert!(hook("prolog", &job[..1]).contains("no account"));
    assert!(hook("prolog", &[("SLURM_JOB_ACCOUNT", "genomics")]).contains("SLURM_JOB_ID"));
    let other = [("SLURM_JOB_ID", "43"), ("SLURM_JOB_ACCOUNT", "nobody"), job[2], job[3]];
    assert!(hook("prolog", &other).contains("projects.toml"));
    let good = std::fs::read_to_string(site.path("hook.toml")).unwrap();
    site.write("hook.toml", &good.replace(&pin, &format!("sha256:{}", "0".repeat(64))));
    let said = hook("prolog", &job);
    assert!(said.contains("TLS") && said.contains(&pin) && said.contains("`credvend pin`"), "no secret for it: {said}");
    site.write("hook.toml", "url = 5\n");
    assert!(!hook("epilog", &job).is_empty());
    for mistake in
        [&["hook", "nonsense"][..], &["--config", &own, "hook", "nonsense"], &["--config=x", "hook", "--what"]]
    {
        assert_eq!(site.run(mistake).code, 0, "{mistake:?}");
    }
    // Nobody answers: within the deadline.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let text = format!("url = \"{url}\"\nhead-secret-file = \"{}\"\ndeadline-seconds = 1\n", at("secret"));
    site.write("hook.toml", &text);
    let began = Instant::now();
    assert!(hook("prolog", &job).contains("no answer within 1 s"));
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn sessions_are_closed_and_users_invalidated_from_the_command_line() {
    let site = Site::serving();
    let at = |name: &str| site.path(name).display().to_string();
    let pin = site.json(&["pin", "--json"])["pin"].as_str().unwrap().to_owned();
    let text = format!(
        "url = \"https://127.0.0.1:{}\"\npin = \"{pin}\"\nhead-secret-file = \"{}\"\n",
        site.port,
        at("secret")
    );
    site.write("hook.toml", &text);
    for (job, user) in [("1", "bob"), ("2", "bob"), ("3", "bobby")] {
        let environment = [
            ("SLURM_JOB_ID", job),
            ("SLURM_JOB_ACCOUNT", "genomics"),
            ("SLURM_CLUSTER_NAME", "lab"),
            ("SLURM_JOB_USER", user),
        ];
        let said = site.run_with(&["hook", "prolog", "--hook-config", &at("hook.toml")], &environment);
        assert_eq!(said.err, "");
    }
    let list = |args: &[&str]| {
        let all = [&["session", "list", "--json"], args].concat();
        site.json(&all).as_array().unwrap().clone()
    };
    assert_eq!((list(&["--status", "active"]).len(), list(&["--limit", "2"]).len()), (3, 2));
    let first = list(&["--user", "bob"])[0]["session"].as_str().unwrap().to_owned();
    site.done(&["session", "close", &first]);
    assert_eq!(list(&["--status", "ACTIVE"]).len(), 2);
    let rehearsed = site.json(&["revoke", "--user", "bob", "--dry-run", "--json"]);
    assert_eq!((&rehearsed["sessions-total"], &rehearsed["dry-run"]), (&1.into(), &true.into()), "{rehearsed}");
    assert_eq!(list(&["--status", "active"]).len(), 2, "nothing is changed");
    let report = site.json(&["revoke", "--user", "bob", "--why", "a stolen laptop", "--block", "--json"]);
    assert_eq!((&report["sessions-total"], &report["blocked"]), (&1.into(), &true.into()), "{report}");
    let all = site.json(&["revocation", "list", "--json"]);
    assert_eq!((all.as_array().unwrap().len(), &all[0]["why"]), (1, &"a stolen laptop".into()), "{all}");
    let shown = site.done(&["revocation", "show", report["id"].as_str().unwrap()]);
    assert!(shown.contains("user bob") && shown.contains("1 ended"), "{shown}");
    assert!(site.done(&["revocation", "list"]).contains("a stolen laptop"));
    assert_eq!(site.json(&["block", "list", "--json"])[0]["subject"], serde_json::json!({ "user": "bob" }));
    assert!(site.done(&["unblock", "--user", "bob"]).contains("let in again"));
    assert!(site.done(&["unblock", "--user", "bob"]).contains("was not blocked"));
    for bad in [&["revoke"][..], &["revoke", "--user", "a", "--project", "b"], &["revoke", "--job", "lab/7", "--block"]]
    {
        assert_ne!(site.run(bad).code, 0, "{bad:?}");
    }
    assert_eq!(site.run(&["revoke", "--user", "bob", "--cluster", "nowhere"]).code, 1);
    for (unknown, said) in [
        (&["--user", "bbo"][..], "nobody of the name bbo has had a session here"),
        (&["--user", "bbo", "--dry-run"], "check the spelling"),
        (&["--project", "genomcis"], "no project genomcis is known here"),
        (&["--job", "lab/99"], "job 99 of cluster lab has had no session here"),
        (&["--role", "arn:aws:iam::123456789012:role/genomcis"], "no project has the role"),
    ] {
        let revoked = site.run(&[&["revoke"], unknown].concat());
        assert_eq!(revoked.code, 3, "{unknown:?}: {}", revoked.err);
        assert!(revoked.err.contains(said) && revoked.err.contains("check the spelling"), "{}", revoked.err);
    }
    // Who has had no job yet may be kept out.
    let blocked = site.run(&["revoke", "--user", "bbo", "--block"]);
    assert!(blocked.code == 0 && blocked.err.contains("kept out all the same"), "{}", blocked.err);
    // Known, with nothing left to end: done.
    for known in [&["--user", "bob"][..], &["--project", "genomics", "--dry-run"], &["--job", "lab/1"]] {
        site.done(&[&["revoke"], known].concat());
    }
    assert!(site.run(&["unblock", "--job", "lab/1"]).err.contains("never blocked"));
    assert!(site.run(&["revoke", "--job", "lab/3", "--cluster", "hpc"]).err.contains("--cluster says otherwise"));
    let left = list(&["--status", "active"]);
    assert_eq!((left.len(), &left[0]["user"]), (1, &"bobby".into()));
    assert!(site.done(&["session", "list"]).lines().count() == 4);
    assert_eq!(site.run(&["session", "close", "00000000-0000-4000-8000-000000000000"]).code, 1);
    assert_eq!(site.run(&["session", "list", "--user", "a\tb"]).code, 2);
}

#[test]
fn the_audit_log_is_asked_from_the_command_line() {
    let mut site = Site::serving();
    let at = |name: &str| site.path(name).display().to_string();
    let pin = site.json(&["pin", "--json"])["pin"].as_str().unwrap().to_owned();
    let (url, secret) = (format!("https://127.0.0.1:{}", site.port), at("secret"));
    site.write("hook.toml", &format!("url = \"{url}\"\npin = \"{pin}\"\nhead-secret-file = \"{secret}\"\n"));
    let open = |job: &str, user: &str| {
        let environment = [
            ("SLURM_JOB_ID", job),
            ("SLURM_JOB_ACCOUNT", "genomics"),
            ("SLURM_CLUSTER_NAME", "lab"),
            ("SLURM_JOB_USER", user),
        ];
        assert_eq!(site.run_with(&["hook", "prolog", "--hook-config", &at("hook.toml")], &environment).err, "");
    };
    fn ask(site: &Site, args: &[&str]) -> Vec<serde_json::Value> {
        let said = site.done(&[&["audit", "--json"], args].concat());
        said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
    open("1", "bob");
    // Rotated as logrotate does it: moved, and the service told.
    let log = site.path("state/audit.jsonl");
    assert_eq!(std::fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::rename(&log, log.with_extension("jsonl.1")).unwrap();
    site.write(
        "projects.toml",
        &format!("[projects.climate]\nrole-arn = \"{ARN}\"\n[projects.genomics]\nrole-arn = \"{ARN}\"\n"),
    );
    site.signal(Signal::SIGHUP);
    site.until("a new file", |_| log.exists());
    open("2", "bobby");
    let kinds = |events: &[serde_json::Value]| -> Vec<String> {
        events.iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect()
    };
    site.until("the reload is on record", |site| !ask(site, &["--event", "projects-changed"]).is_empty());
    let all = ask(&site, &[]);
    assert_eq!(kinds(&all).iter().filter(|kind| *kind == "session-opened").count(), 2, "{all:?}");
    assert_eq!(kinds(&all)[0], "service-started", "the oldest file first");
    let changed = &ask(&site, &["--event", "projects-changed"])[0];
    assert_eq!(
        (&changed["by"], changed["what"].as_str().unwrap().contains("+ climate default")),
        (&"SIGHUP".into(), true)
    );
    assert_eq!(ask(&site, &["--user", "bob", "--since", "1h"]).len(), 1, "bobby is another");
    assert_eq!(ask(&site, &["--job", "2"])[0]["user"], "bobby", "a head's job is found by its number");
    assert_eq!(ask(&site, &["--user", "bob", "--until", "2020-01-01T00:00:00Z"]).len(), 0);
    // A crash cut a line; another one is no line of ours.
    let mut file = std::fs::OpenOptions::new().append(true).open(log.with_extension("jsonl.1")).unwrap();
    std::io::Write::write_all(&mut file, b"{\"event\":\"session-op").unwrap();
    let said = site.run(&["audit", "--project", "genomics"]);
    assert!(said.code == 0 && said.out.starts_with("TIME") && said.out.lines().count() == 3, "{}", said.out);
    assert!(said.err.contains("audit.jsonl.1, line 3: cut off"), "{}", said.err);
    assert_eq!(site.run(&["audit", "--since", "yesterday"]).code, 1);
    assert_eq!(site.run(&["audit", "--event", "nonsense"]).code, 2);
    let old = log.with_extension("jsonl.1").display().to_string();
    assert_eq!(ask(&site, &["--file", &old, "--event", "session-opened"]).len(), 1);
    assert!(site.stop().success());
    assert_eq!(kinds(&ask(&site, &[])).last().unwrap(), "service-stopped", "and it needs no running service");
    let text = [&log, &log.with_extension("jsonl.1")].map(|path| std::fs::read_to_string(path).unwrap()).concat();
    for secret in [SECRET, "not-a-real-key"] {
        assert!(!text.contains(secret));
    }
}

#[test]
fn checking_the_configuration_leaves_an_older_store_as_it_is() {
    let site = Site::new();
    std::fs::create_dir(site.path("state")).unwrap();
    let path = site.path("state/credvend.sqlite");
    drop(credvend::store::sqlite::SqliteStore::open(&path).unwrap());
    let newest = u32::try_from(credvend::store::sqlite::SCHEMA).unwrap();
    assert!(site.done(&["check-config"]).contains(&format!("is in order, schema {newest}")));
    // As an earlier release left it.
    let version = |set: Option<u32>| -> u32 {
        let db = rusqlite::Connection::open(&path).unwrap();
        if let Some(version) = set {
            db.pragma_update(None, "user_version", version).unwrap();
        }
        db.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
    };
    version(Some(newest - 1));
    let said = site.done(&["check-config"]);
    assert!(said.contains(&format!("schema {} becomes {newest}", newest - 1)), "{said}");
    assert_eq!(version(None), newest - 1, "nothing is migrated");
    let text = std::fs::read_to_string(site.path("credvend.toml")).unwrap();
    site.write("credvend.toml", &format!("admin-group = \"no-such-group-here\"\n{text}"));
    let said = site.run(&["check-config"]);
    assert!(said.code == 78 && said.err.contains("no-such-group-here"), "{}", said.err);
}

#[test]
fn everything_that_a_session_got_is_shown() {
    use credvend::store::sqlite::SqliteStore;
    use credvend::store::{Issuance, Origin, PAGE, Run, Session, Store};
    let mut site = Site::new();
    let at = time::OffsetDateTime::now_utc();
    let session = Session {
        id: credd_protocol::SessionId::random(),
        cluster: "lab".parse().unwrap(),
        user: "alice".parse().unwrap(),
        uid: None,
        project: "genomics".parse().unwrap(),
        partition: None,
        nodes: vec![],
        origin: Origin::Slurm(Run { job: 7.try_into().unwrap(), restart: 0, submitted: at }),
        opened: at,
        ended: None,
        status: credd_protocol::seed_api::SessionStatus::Active,
        why: None,
    };
    let issued = |number: usize| Issuance {
        session: session.id,
        user: session.user.clone(),
        cluster: session.cluster.clone(),
        project: session.project.clone(),
        role: "default".parse().unwrap(),
        role_arn: ARN.parse().unwrap(),
        role_id: "AROAEXAMPLE".into(),
        session_name: "lab-alice-n1".into(),
        source_identity: None,
        key_id: format!("ASIA{number}"),
        node: None,
        issued: at,
        expires: at + time::Duration::HOUR,
    };
    std::fs::create_dir(site.path("state")).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let store = std::sync::Arc::new(SqliteStore::open(&site.path("state/credvend.sqlite")).unwrap());
        store.open(session.clone()).await.unwrap();
        let mut writes = tokio::task::JoinSet::new();
        for number in 0..=PAGE {
            let (store, issued) = (store.clone(), issued(number));
            writes.spawn(async move { store.record_issuance(issued).await.unwrap() });
        }
        writes.join_all().await;
    });
    site.serve();
    let id = session.id.to_string();
    let shown = site.json(&["session", "show", &id, "--json"]);
    let mut keys: Vec<&str> =
        shown["issued"].as_array().unwrap().iter().map(|i| i["key-id"].as_str().unwrap()).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), PAGE + 1);
    assert_eq!(site.done(&["session", "show", &id]).matches(" ASIA").count(), PAGE + 1);
}

#[test]
fn what_dynamodb_needs_is_said_before_a_site_moves_there() {
    let site = Site::new();
    let text = std::fs::read_to_string(site.path("credvend.toml")).unwrap();
    // Nobody listens there.
    site.write("credvend.toml", &format!("{text}[store]\nendpoint = \"http://127.0.0.1:1\"\n"));
    let policy = site.json(&["store", "policy", "--account", "123456789012"]);
    assert!(policy.to_string().contains("arn:aws:dynamodb:us-east-1:123456789012:table/credvend-sessions"), "{policy}");
    let init = site.run(&["store", "init"]);
    assert_eq!((init.code, init.out.as_str()), (1, ""), "it makes tables or says why not: {}", init.err);
}

#[test]
fn a_bad_configuration_is_refused_with_every_problem() {
    let site = Site::new();
    std::fs::set_permissions(site.path("secret"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let said = site.run(&["serve"]);
    assert_eq!(said.code, 78);
    assert!(said.err.contains("everybody may access it"), "{}", said.err);
    let text = std::fs::read_to_string(site.path("credvend.toml")).unwrap();
    site.write("credvend.toml", &text.replace("attest", "atest").replace("us-east-1", "US"));
    for command in ["serve", "check-config", "status"] {
        let said = site.run(&[command]);
        assert_eq!(said.code, 78, "{command}");
        assert!(said.err.contains("atest") && said.err.contains("region"), "{command}: {}", said.err);
    }
    assert_eq!(site.run(&["no-such-command"]).code, 2);
}

#[test]
#[cfg_attr(not(own_mounts), ignore = "needs root")]
fn a_group_that_the_service_cannot_give_its_socket_to_is_refused_with_the_remedy() {
    use std::os::unix::process::CommandExt;
    // Somebody without privileges, and in no group but its own; a group that is there on every machine.
    let (nobody, group) = (65_534, "adm");
    let site = Site::new();
    let text = std::fs::read_to_string(site.path("credvend.toml")).unwrap();
    site.write("credvend.toml", &format!("admin-group = \"{group}\"\n{text}"));
    std::fs::create_dir_all(site.path("state")).unwrap();
    std::fs::create_dir_all(site.path("run")).unwrap();
    let files = ["", "credvend.toml", "projects.toml", "secret", "run"];
    let give = |names: &[&str], to: u32| {
        for path in names.iter().map(|name| site.path(name)) {
            std::os::unix::fs::chown(path, Some(to), Some(to)).unwrap();
        }
    };
    give(&["state"], nobody);
    let remedy = format!("usermod --append --groups {group} nobody");
    let refused = |args: &[&str], uid: u32| {
        let output = site.command(args).uid(uid).gid(uid).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(&remedy), "{args:?} as {uid}: {said}");
    };
    // Root looks on behalf of whoever owns the state.
    refused(&["check-config"], 0);
    give(&files, nobody);
    refused(&["check-config"], nobody);
    refused(&["serve"], nobody);
    let valid = site.command(&["check-config"]).uid(nobody).gid(4).output().unwrap();
    assert!(valid.status.success(), "{}", String::from_utf8_lossy(&valid.stderr));
}
