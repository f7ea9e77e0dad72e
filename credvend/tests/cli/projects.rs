//! `credvend project`, and the reload of projects.toml.

use nix::sys::signal::Signal;

use super::site::{ARN, Site};

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
