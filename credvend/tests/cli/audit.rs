//! `credvend audit`.

use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;

use super::site::{ARN, SECRET, Site};

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
