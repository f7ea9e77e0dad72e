use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::edit::{RoleChange, remove, set};
use super::*;

const GOOD: &str = r#"# who may be whom
[projects.genomics]
role-arn = "arn:aws:iam::123456789012:role/genomics" # the v1 role
duration = "1h30m"

[projects.genomics.roles.train]
role-arn = "arn:aws:iam::123456789012:role/team/x/train"
source-identity = true
session-tags = true

[projects.Climate]   # capitals
account = "climate"
role-arn = "arn:aws-us-gov:iam::123456789012:role/climate"

[projects]
"dotted.name" = { role-arn = "arn:aws-cn:iam::123456789012:role/d", duration = "15m" }
"#;

fn id(text: &str) -> ProjectId {
    text.parse().unwrap()
}

fn problems(text: &str) -> Vec<String> {
    parse(text).expect_err(text).iter().map(ToString::to_string).collect()
}

#[test]
fn a_file_is_read_as_written() {
    let map = parse(GOOD).unwrap();
    let genomics = map.by_id(&id("genomics")).unwrap();
    let (default, train) = (&genomics[&RoleName::default()], &genomics[&"train".parse().unwrap()]);
    assert_eq!((default.duration_seconds, default.source_identity, default.session_tags), (5400, false, false));
    assert_eq!((train.duration_seconds, train.source_identity, train.session_tags), (3600, true, true));
    assert_eq!(train.arn.role_name(), "train");
    assert_eq!(map.by_account(&id("climate")).unwrap().0.as_str(), "Climate");
    assert!(map.by_id(&id("climate")).is_none() && map.by_account(&id("Climate")).is_none(), "case matters");
    assert_eq!(map.by_account(&id("dotted.name")).unwrap().1[&RoleName::default()].duration_seconds, 900);
    assert_eq!(parse("").unwrap(), ProjectMap::default());
}

#[test]
fn every_problem_is_told_with_its_line() {
    let text = r#"colour = 1
[projects.a]
role-arn = "arn:aws:iam::1:role/a"
durration = "1h"
[projects.b]
duration = "5m"
[projects.Big]
role-arn = "arn:aws:iam::123456789012:role/a"
[projects.c]
role-arn = 7
account = "Cee"
[projects.c.roles.default]
role-arn = "arn:aws:iam::123456789012:role/a"
[projects.c.roles."no/name"]
source-identity = "yes"
[projects."bad\u0007id"]
role-arn = "arn:aws:iam::123456789012:role/a"
"#;
    let told = problems(text);
    for (line, words) in [
        (1, "\"colour\" is not known"),
        (3, "twelve digits"),
        (4, "\"durration\" is not known"),
        (5, "project b has no role-arn"),
        (6, "15m to 12h"),
        (7, "account = \"big\""),
        (10, "role-arn must be a text"),
        (11, "\"Cee\" has capitals"),
        (12, "the role named default"),
        (14, "role name"),
        (14, "role no/name of project c has no role-arn"),
        (15, "true or false"),
        (16, "project id"),
    ] {
        let start = format!("line {line}: ");
        assert!(told.iter().any(|p| p.starts_with(&start) && p.contains(words)), "{line} {words}: {told:#?}");
    }
    assert_eq!(told.len(), 13, "{told:#?}");
    assert!(problems("[projects.a]\nrole-arn = \n")[0].starts_with("line 2: this is not TOML"));
    assert_eq!(problems("projects = 1"), ["line 1: projects must be a table: [projects.NAME]"]);
}

#[test]
fn one_account_is_one_project() {
    let arn = "role-arn = \"arn:aws:iam::123456789012:role/a\"";
    let told = problems(&format!("[projects.a]\n{arn}\n[projects.B]\naccount = \"a\"\n{arn}\n"));
    assert_eq!(told, ["line 3: projects a and B both are Slurm's account a; only one can be"]);
    // Renamed, its own name is no account any more.
    let map = parse(&format!("[projects.a]\naccount = \"b\"\n{arn}\n[projects.c]\naccount = \"a\"\n{arn}\n")).unwrap();
    assert_eq!(map.by_account(&id("a")).unwrap().0.as_str(), "c");
}

#[test]
fn a_role_may_have_a_name_of_its_own_in_aws() {
    let text =
        |name: &str| format!("[projects.a]\nrole-arn = \"arn:aws:iam::123456789012:role/a\"\nsession-name = {name}\n");
    let map = parse(&text("\"{user}@{job}\"")).unwrap();
    let role = &map.by_id(&id("a")).unwrap()[&RoleName::default()];
    assert_eq!(role.session_name.as_ref().unwrap().to_string(), "{user}@{job}");
    assert!(problems(&text("\"{nobody}\""))[0].starts_with("line 3: session-name \"{nobody}\": there is no part"));
    assert!(problems(&text("5"))[0].contains("must be a text"));
}

#[test]
fn durations_have_bounds_and_one_form() {
    for (text, seconds) in [("15m", 900), ("12h", 43_200), ("3600s", 3600), ("1h30m", 5400), ("11h59m60s", 43_200)] {
        let toml = format!("[projects.a]\nrole-arn=\"arn:aws:iam::123456789012:role/a\"\nduration={text:?}");
        assert_eq!(parse(&toml).unwrap().by_id(&id("a")).unwrap()[&RoleName::default()].duration_seconds, seconds);
    }
    for text in ["", "h", "1", "1d", "-1h", "1h1h", "1 h", "14m59s", "12h1s", "999999h", "9999999s", "1.5h"] {
        let toml = format!("[projects.a]\nrole-arn=\"arn:aws:iam::123456789012:role/a\"\nduration={text:?}");
        assert!(problems(&toml)[0].starts_with("line 3: duration"), "{text}");
    }
}

fn change(arn: &str) -> RoleChange {
    RoleChange {
        arn: arn.parse().unwrap(),
        duration: None,
        source_identity: None,
        session_tags: None,
        revoke_on_end: None,
        session_name: None,
        account: None,
        clusters: vec![],
    }
}

#[test]
fn a_project_is_of_the_clusters_that_it_names() {
    let text = format!(
        "{GOOD}[projects.shared]\nrole-arn = \"{}\"\nclusters = [\"Lab\", \"hpc\"]\n",
        "arn:aws:iam::123456789012:role/s"
    );
    let mut map = parse(&text).unwrap();
    let on = |map: &ProjectMap, project: &str, cluster: &str| map.why_not_on(&id(project), &cluster.parse().unwrap());
    assert_eq!(on(&map, "shared", "lab"), None, "compared as Slurm does");
    assert!(on(&map, "shared", "other").unwrap().contains("hpc, Lab"));
    for unassigned in [Unassigned::Everywhere, Unassigned::EverywhereStill] {
        map.unassigned = unassigned;
        assert_eq!(on(&map, "genomics", "other"), None);
    }
    map.unassigned = Unassigned::Nowhere;
    assert!(on(&map, "genomics", "lab").unwrap().contains("names no clusters"));
    assert_eq!(on(&map, "shared", "lab"), None);
    assert_eq!(map.without_clusters().count(), 3);
    for (bad, line) in [("\"lab\"", "array"), ("[]", "nowhere"), ("[7]", "array"), ("[\"a \"]", "cluster name")] {
        let text = format!("[projects.a]\nrole-arn = \"arn:aws:iam::123456789012:role/a\"\nclusters = {bad}\n");
        assert!(problems(&text)[0].starts_with("line 3: ") && problems(&text)[0].contains(line), "{bad}");
    }
    let set_to = RoleChange { clusters: vec!["new".parse().unwrap()], ..change("arn:aws:iam::123456789012:role/s") };
    let text = set(&text, &id("shared"), &RoleName::default(), &set_to).unwrap();
    assert!(text.contains("clusters = [\"new\"]"), "{text}");
    let changes = parse(&text).unwrap().changes_since(&map);
    assert!(changes.contains("~ shared on cluster new"), "{changes}");
}

#[test]
fn edits_leave_the_rest_as_it_was() {
    let (role, train) = (RoleName::default(), "train".parse().unwrap());
    let other = change("arn:aws:iam::999999999999:role/other");
    let text = set(GOOD, &id("genomics"), &role, &other).unwrap();
    assert_eq!(text, GOOD.replacen("arn:aws:iam::123456789012:role/genomics", other.arn.as_str(), 1));
    let text = set(GOOD, &id("genomics"), &train, &RoleChange { session_tags: Some(false), ..other.clone() }).unwrap();
    assert!(
        text.contains("# who may be whom") && text.contains("session-tags = false") && text.contains("# the v1 role")
    );

    let new = RoleChange { account: Some(id("new")), duration: Some("2h".into()), ..other.clone() };
    let text = set(GOOD, &id("New"), &train, &new);
    assert!(text.unwrap_err()[0].text.contains("project New has no role-arn"), "a project needs its default role");
    let text = set(GOOD, &id("New"), &role, &new).unwrap();
    let text = set(&text, &id("New"), &train, &other).unwrap();
    let map = parse(&text).unwrap();
    assert_eq!(map.by_account(&id("new")).unwrap().1.len(), 2);
    assert!(text.starts_with(GOOD.split("[projects]").next().unwrap()));

    let text = remove(&text, &id("New"), Some(&train)).unwrap();
    let text = remove(&text, &id("New"), None).unwrap();
    assert_eq!(parse(&text).unwrap(), parse(GOOD).unwrap());
    assert!(text.contains("# capitals"));
    for (project, role) in [("none", None), ("genomics", Some("none")), ("genomics", Some("default"))] {
        let role: Option<RoleName> = role.map(|r: &str| r.parse().unwrap());
        assert!(remove(GOOD, &id(project), role.as_ref()).is_err());
    }
    assert!(set("nonsense = [", &id("a"), &role, &other).is_err());
    // From nothing, and with a name that TOML must quote.
    let text = set("", &id("a.b"), &role, &other).unwrap();
    assert_eq!(text, "[projects.\"a.b\"]\nrole-arn = \"arn:aws:iam::999999999999:role/other\"\n");
    // An inline project stays inline.
    let text = set(GOOD, &id("dotted.name"), &role, &other).unwrap();
    assert_eq!(parse(&text).unwrap().by_id(&id("dotted.name")).unwrap()[&role].arn, other.arn);
}

#[test]
fn files_are_replaced_at_once_with_their_mode() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("projects.toml");
    let (role, other) = (RoleName::default(), change("arn:aws:iam::999999999999:role/other"));
    assert!(ProjectMap::load(&path, None).unwrap_err()[0].text.contains("cannot be read"));
    edit::file(&path, |text| set(text, &id("a"), &role, &other)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    edit::file(&path, |text| set(text, &id("b"), &role, &other)).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(ProjectMap::load(&path, None).unwrap().projects.len(), 2);

    assert!(edit::file(&path, |_| Ok("[projects.x]".into())).is_err());
    assert_eq!(ProjectMap::load(&path, None).unwrap().projects.len(), 2, "a bad change is none");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(ProjectMap::load(&path, None).unwrap_err()[0].text.contains("chmod o-w"));
}

#[test]
fn every_role_is_of_the_regions_partition() {
    let arns = ["aws", "aws-cn", "aws-us-gov"].map(|partition| format!("arn:{partition}:iam::123456789012:role/r"));
    let text: String =
        arns.iter().enumerate().map(|(i, arn)| format!("[projects.p{i}]\nrole-arn = \"{arn}\"\n")).collect();
    for (region, own) in [
        ("us-east-1", 0),
        ("eu-central-1", 0),
        ("us-west-2", 0),
        ("cn-north-1", 1),
        ("cn-northwest-1", 1),
        ("us-gov-west-1", 2),
        ("us-gov-east-1", 2),
    ] {
        let region = region.parse().unwrap();
        let problems = parse_in(&text, Some(&region)).unwrap_err();
        let lines: Vec<usize> = problems.iter().map(|p| p.line).collect();
        let expected: Vec<usize> = (0..3).filter(|i| *i != own).map(|i| 2 * i + 2).collect();
        assert_eq!(lines, expected, "{region}: {problems:?}");
        for problem in &problems {
            assert!(problem.text.contains(region.as_str()) && problem.text.contains("arn:aws"), "{problem}");
        }
        let alone = format!("[projects.p]\nrole-arn = \"{}\"\n", arns[own]);
        assert_eq!(parse_in(&alone, Some(&region)).unwrap().projects.len(), 1);
    }
    // Where the region is the environment's, nothing is known when the file is read.
    assert_eq!(parse(&text).unwrap().projects.len(), 3);
}

#[test]
fn edits_at_the_same_time_lose_nothing() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("projects.toml");
    std::thread::scope(|threads| {
        for i in 0..8 {
            let path = &path;
            threads.spawn(move || {
                let other = change("arn:aws:iam::999999999999:role/other");
                let project = id(&format!("p{i}"));
                edit::file(path, |text| set(text, &project, &RoleName::default(), &other)).unwrap();
            });
        }
    });
    assert_eq!(ProjectMap::load(&path, None).unwrap().projects.len(), 8);
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in ".*", lines in proptest::collection::vec(
        "(\\[projects(\\.[a-zA-Z\"./]{1,6}){0,3}\\]|(role-arn|duration|account|roles|source-identity) = (\"[a-zA-Z0-9:/]{0,12}\"|true|7|\\[\\]|\\{\\}))", 0..12)
    ) {
        let _ = parse(&text);
        let text = lines.join("\n");
        if let Err(problems) = parse(&text) {
            prop_assert!(!problems.is_empty() && problems.iter().all(|p| p.line <= lines.len().max(1)));
        }
        let _ = set(&text, &id("a"), &RoleName::default(), &change("arn:aws:iam::999999999999:role/other"));
    }
}

#[test]
fn an_upstream_decides_the_roles() {
    let text = "[projects.genomics]\n[projects.Climate]\naccount = \"climate\"\nrole-arn = \"arn:aws:iam::123456789012:role/c\"\n";
    let map = parse_upstream(text).unwrap();
    let role = |project: &str| &map.projects[&project.parse::<ProjectId>().unwrap()][&RoleName::default()].arn;
    assert!(is_upstreams(role("genomics")) && !is_upstreams(role("Climate")));
    assert_eq!(map.accounts.len(), 2);
    assert!(parse(text).is_err(), "AWS must be asked for a role");
    for more in ["duration = \"1h\"", "source-identity = true", "session-tags = false", "[projects.genomics.roles.x]"] {
        let problems = parse_upstream(&format!("[projects.genomics]\n{more}\n")).unwrap_err();
        assert!(problems.len() == 1 && problems[0].line == 2 && problems[0].text.contains("upstream"), "{problems:?}");
    }
    // However odd the name, what stands for its role is an ARN.
    for odd in ["a:b", "x".repeat(128).as_str(), "@", "a=b,c+d"] {
        assert!(is_upstreams(&upstreams_role(&odd.parse().unwrap())), "{odd}");
    }
}
