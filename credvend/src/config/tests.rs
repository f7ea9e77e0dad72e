//! What the file may say, and that every problem is told at once.

use pinned_tls::Fingerprint;

use super::*;
use crate::audit::{Fsync, OnFailure};
use crate::vending::AddressCheck;
use proptest::prelude::*;

const SMALL: &str = "[[cluster]]\nname = \"lab\"\n";

#[test]
fn a_cluster_alone_is_enough() {
    let config = Config::parse(SMALL).unwrap();
    assert_eq!(config.listen, ["0.0.0.0:8443".parse().unwrap()]);
    assert_eq!(config.store.path, Path::new("/var/lib/credvend/credvend.sqlite"));
    assert_eq!((config.store.kind, config.projects_from), (StoreKind::Sqlite, ProjectsFrom::File));
    assert_eq!(config.localhost_port, 9999);
    assert_eq!(config.audit.path, Path::new("/var/lib/credvend/audit.jsonl"));
    assert_eq!((config.audit.fsync, config.audit.on_failure), (Fsync::Interval, OnFailure::Continue));
    assert_eq!(config.clusters[0].attest, Attest::Slurm);
    assert!(!config.aws.allow_instance_metadata && config.session_tokens && !config.loopback_only());
}

#[test]
fn a_configuration_that_everybody_can_change_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("credvend.toml");
    std::fs::write(&path, SMALL).unwrap();
    for (mode, good) in [(0o600, true), (0o664, true), (0o646, false), (0o666, false)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let read = Config::read(&path);
        assert_eq!(read.is_ok(), good, "{mode:o}");
        assert!(good || read.unwrap_err().to_string().contains("chmod o-w"));
    }
}

#[test]
fn the_shipped_example_is_valid() {
    let config = Config::parse(include_str!("../../../packaging/credvend.toml")).unwrap();
    assert_eq!(config.clusters.len(), 1);
    let projects = include_str!("../../../packaging/projects.toml");
    crate::projects::parse(projects).unwrap();
    // What its commented part shows is good in the example's region.
    let shown: String = projects
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c != ' ')).unwrap_or(line))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(crate::projects::parse_in(&shown, config.aws.region.as_ref()).unwrap().projects.len(), 2);
}

#[test]
fn the_examples_commented_options_exist_and_show_the_defaults() {
    let text = include_str!("../../../packaging/credvend.toml");
    let shown: String = text
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|rest| rest.split(' ').nth(1) == Some("=")).unwrap_or(line))
        .map(|line| format!("{line}\n"))
        .collect();
    let (config, short) = (Config::parse(&shown).unwrap(), Config::parse(SMALL).unwrap());
    assert_eq!((&config.listen, &config.state_dir), (&short.listen, &short.state_dir));
    let store = |config: &Config| (config.store.kind, config.store.path.clone(), config.store.table_prefix.clone());
    assert_eq!(store(&config), store(&short));
    assert!(config.store.region.is_some() && config.store.endpoint.is_some());
    assert_eq!(config.projects_from, short.projects_from);
    assert_eq!((&config.limits, &config.log, config.localhost_port), (&short.limits, &short.log, short.localhost_port));
    assert_eq!((&config.names, config.sts), (&short.names, short.sts));
    assert_eq!((config.plain_http, config.session_tokens), (short.plain_http, short.session_tokens));
    assert_eq!(config.audit, short.audit);
    assert_eq!((&config.projects, &config.admin_socket), (&short.projects, &short.admin_socket));
    assert!(config.tls.client_ca.is_some() && config.aws.sts_endpoint.is_some() && config.admin_group.is_some());
    let (one, other) = (&config.clusters[0], &short.clusters[0]);
    assert_eq!(one.attest, other.attest);
    // A new site requires it; one whose file does not say is warned for a release.
    assert_eq!((one.node_address_check, other.node_address_check), (Some(AddressCheck::Require), None));
    assert_eq!(one.node_addresses[&"n2".parse().unwrap()].len(), 2);
    assert_eq!((config.any_cluster, short.any_cluster), (Some(false), None));
    assert_eq!((one.head_session_max_days, other.head_session_max_days), (30, 30));
}

#[test]
fn what_a_store_of_tables_needs_is_checked() {
    let problems = |store: &str| Config::parse(&format!("{store}\n{SMALL}")).unwrap_err().join("\n");
    assert!(problems("projects-from = \"store\"").contains("kind = \"dynamodb\""));
    assert!(problems("[store]\nkind = \"mysql\"").contains("sqlite, dynamodb"));
    assert!(problems("[store]\ntable-prefix = \"a b\"").contains("table-prefix"));
    assert!(problems("[store]\nendpoint = \"dynamo\"").contains("http"));
    let text = format!("projects-from = \"store\"\n[store]\nkind = \"dynamodb\"\n{SMALL}");
    let config = Config::parse(&text).unwrap();
    assert_eq!((config.store.kind, config.projects_from), (StoreKind::Dynamodb, ProjectsFrom::Store));
}

#[test]
fn every_problem_is_listed_with_its_line() {
    let text = r#"listen = ["127.0.0.1:1", "nowhere"]
plain-http = "yes"
state-dir = "relative"
surprise = 1
[tls]
certificate = "/c"
[aws]
allow-instance-metadata = 5
region = "US EAST"
sts-endpoint = "ftp://x"
[[cluster]]
name = "a\u0007b"
attest = "magic"
[[cluster]]
name = "lab"
node_address_check = "warn"
[[cluster]]
name = "LAB"
head-session-max-days = 0
node-addresses = { n1 = "nowhere", "a,b" = "10.0.0.1" }
[log]
format = "xml"
"#;
    let problems = Config::parse(text).unwrap_err();
    let lines: Vec<&str> = problems.iter().map(|p| p.split(':').next().unwrap()).collect();
    let expected = [1, 2, 3, 4, 6, 8, 9, 10, 12, 13, 16, 18, 19, 20, 20, 22].map(|n| format!("line {n}"));
    assert_eq!(lines, expected, "{problems:#?}");
}

#[test]
fn the_rate_towards_sts_is_validated() {
    let parse = |text: &str| Config::parse(&format!("[sts]\n{text}\n{SMALL}"));
    let rate = parse("rate = 20\nburst = 5").unwrap().sts;
    assert_eq!((rate.per_second, rate.burst), (20, 5));
    assert_eq!((parse("").unwrap().sts.per_second, parse("").unwrap().sts.burst), (300, 100));
    for text in ["rate = 0", "burst = 0", "rate = 10001", "rate = \"fast\"", "rates = 1"] {
        assert!(parse(text).unwrap_err()[0].starts_with("line 2: sts.rate") || text.starts_with('b'), "{text}");
    }
}

#[test]
fn names_in_aws_are_validated() {
    let parse = |text: &str| Config::parse(&format!("{text}\n{SMALL}"));
    let names = parse("session-name = \"{user}@{job}\"\nnode-names-up-to = 0").unwrap().names;
    assert_eq!((names.template.to_string().as_str(), names.node_names_up_to), ("{user}@{job}", 0));
    assert_eq!(parse("").unwrap().names.node_names_up_to, 256);
    for (text, part) in [
        ("session-name = \"{node}\"", "line 1: session-name: session-name \"{node}\": it has neither"),
        ("node-names-up-to = 100001", "0 to 100000"),
        ("node-names-up-to = -1", "0 to 100000"),
    ] {
        assert!(parse(text).unwrap_err()[0].contains(part), "{text}");
    }
    let both = "session-name = \"{user}\"\n[[cluster]]\nname = \"a\"\n[[cluster]]\nname = \"b\"\n";
    assert!(Config::parse(both).unwrap_err()[0].contains("it needs {cluster}"));
}

#[test]
fn an_upstream_is_recognized_and_gets_its_secret_over_tls() {
    let upstream = |more: &str| Config::parse(&format!("[upstream]\n{more}\n{SMALL}"));
    let secret = "head-secret-file = \"/s\"";
    let pin = format!("pin = \"sha256:{}\"", "0f".repeat(32));
    let given = format!("url = \"https://x.example.org/prod/\"\n{secret}\n{pin}\ncluster = \"there\"");
    let read = upstream(&given).unwrap().upstream.unwrap();
    assert_eq!((read.url.as_str(), read.pin), ("https://x.example.org/prod", Some(Fingerprint([15; 32]))));
    assert_eq!(read.cluster.unwrap().as_str(), "there");
    for (more, line, why) in [
        (secret.to_owned(), 1, "needs url"),
        ("url = \"https://x\"".into(), 1, "needs head-secret-file"),
        (format!("{secret}\nurl = \"http://10.0.0.1\""), 3, "without TLS"),
        (format!("{secret}\nurl = \"ftp://x\""), 3, "https://"),
        (format!("{secret}\nurl = \"https://x\"\npin = \"12\""), 4, "credvend pin"),
        (format!("{secret}\nurl = \"https://x\"\n{pin}\nca-file = \"/c\""), 5, "keep one"),
        (format!("{secret}\nurl = \"https://x\"\nstage = \"prod\""), 4, "not an option"),
        (format!("{given}\n[[cluster]]\nname = \"two\""), 5, "one name there"),
    ] {
        let problems = upstream(&more).unwrap_err();
        let [problem] = &problems[..] else { panic!("{more}: {problems:?}") };
        assert!(problem.starts_with(&format!("line {line}: ")) && problem.contains(why), "{more}: {problem}");
    }
    assert!(upstream(&format!("{secret}\nurl = \"http://127.0.0.1:1\"")).is_ok());
    assert_eq!(Config::parse(SMALL).unwrap().upstream, None);
}

#[test]
fn plain_http_stays_on_the_host() {
    for (address, good) in [("127.0.0.1:1", true), ("[::1]:1", true), ("0.0.0.0:1", false), ("10.0.0.1:1", false)] {
        let text = format!("listen = \"{address}\"\nplain-http = true\n{SMALL}");
        assert_eq!(Config::parse(&text).is_ok(), good, "{address}");
    }
}

#[test]
fn broken_toml_names_the_line() {
    let problems = Config::parse("listen = \"127.0.0.1:1\"\n= 5\n").unwrap_err();
    assert!(problems[0].starts_with("line 2: "), "{problems:?}");
    assert!(Config::parse("").unwrap_err()[0].contains("[[cluster]]"));
}

proptest! {
    #[test]
    fn no_text_panics(text in ".*") {
        let _ = Config::parse(&text);
    }

    #[test]
    fn no_value_panics(
        key in "(listen|plain-http|public-url|tls|tls\\.key|tls\\.names|cluster|log\\.filter|aws\\.region|limits\\.max-connections)",
        value in "([0-9-]{1,20}|true|\"[ -!#-\\[\\]-~]{0,20}\"|\\[\\]|\\{\\}|\\[1, \"a\"\\]|1979-05-27|\\[\\{\\}\\])",
    ) {
        let _ = Config::parse(&format!("{key} = {value}\n"));
        let _ = Config::parse(&format!("{key} = {value}\n{SMALL}"));
    }
}

#[test]
fn metrics_are_for_this_host_unless_it_is_said_twice() {
    let parse = |text: &str| Config::parse(&format!("{SMALL}[metrics]\n{text}"));
    assert_eq!(parse("").unwrap().metrics, None);
    assert_eq!(parse("listen = \"127.0.0.1:9945\"").unwrap().metrics, Some("127.0.0.1:9945".parse().unwrap()));
    assert!(parse("listen = \"[::1]:9945\"").is_ok() && parse("listen = \"9945\"").is_err());
    for beyond in ["0.0.0.0:9945", "10.0.0.1:9945", "[::]:9945"] {
        let text = format!("listen = \"{beyond}\"");
        assert!(parse(&text).unwrap_err()[0].contains("beyond-loopback = true"), "{beyond}");
        assert!(parse(&format!("{text}\nbeyond-loopback = true")).is_ok(), "{beyond}");
    }
}

#[test]
fn the_audit_logs_policies_are_words() {
    let parse = |text: &str| Config::parse(&format!("{SMALL}[audit]\n{text}"));
    let strict =
        parse("path = \"/var/log/credvend/audit.jsonl\"\nfsync = \"each\"\non-failure = \"refuse\"").unwrap().audit;
    assert_eq!((strict.fsync, strict.on_failure), (Fsync::Each, OnFailure::Refuse));
    for (text, part) in
        [("fsync = \"always\"", "each, interval, never"), ("on-failure = 1", "a string"), ("path = \"x\"", "absolute")]
    {
        assert!(parse(text).unwrap_err()[0].contains(part), "{text}");
    }
}
