//! The manual pages of the configuration files.

use std::collections::{BTreeMap, BTreeSet};

use credvend::config::Config;
use credvend::projects::{self, ProjectMap};

use super::man_page;

const CREDVEND_TOML: &str = include_str!("../../../packaging/man/credvend.toml.5");
const PROJECTS_TOML: &str = include_str!("../../../packaging/man/projects.toml.5");
const UNKNOWN: &str = "no-such-option";

/// A credvend.toml with one more line in one of its tables.
fn credvend_with(table: &str, line: &str) -> Result<Config, Vec<String>> {
    let mut tables = BTreeMap::from([
        ("", String::new()),
        ("aws", "region = \"us-east-1\"\n".to_owned()),
        ("cluster", "name = \"lab\"\n".to_owned()),
    ]);
    *tables.entry(table).or_default() += line;
    let text = |(name, lines): (&&str, &String)| match *name {
        "" => format!("{lines}\n"),
        "cluster" => format!("[[cluster]]\n{lines}\n"),
        name => format!("[{name}]\n{lines}\n"),
    };
    Config::parse(&tables.iter().map(text).collect::<String>())
}

/// A projects.toml of one project with a second role, and one more line in one of the two tables.
fn projects_with(table: &str, line: &str) -> Result<ProjectMap, Vec<String>> {
    let arn = "role-arn = \"arn:aws:iam::123456789012:role/genomics\"";
    let of = |name: &str| if table == name { line } else { "" };
    let (project, role) = (of("projects.PROJECT"), of("projects.PROJECT.roles.NAME"));
    let text = format!("[projects.genomics]\n{arn}\n{project}\n[projects.genomics.roles.train]\n{arn}\n{role}\n");
    projects::parse(&text).map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

/// Compares each default that is a value with what the code does without it; returns how many there were.
fn compare_defaults<T: PartialEq>(page: &str, with: impl Fn(&str, &str) -> Result<T, Vec<String>>) -> usize {
    let usual = with("", "").unwrap_or_else(|problems| panic!("{problems:?}"));
    let entries = man_page::entries(page);
    let literals = entries.iter().filter_map(|entry| Some((entry, entry.literal_default()?)));
    let compare = |(entry, default): (&man_page::Entry, &str)| {
        let line = format!("{} = {default}", entry.key);
        let said = with(&entry.table, &line).unwrap_or_else(|problems| panic!("{line}: {problems:?}"));
        assert!(said == usual, "[{}] {line} is not the default", entry.table);
    };
    literals.map(compare).count()
}

#[test]
fn the_page_of_credvend_toml_has_every_option_and_no_other() {
    let entries = man_page::entries(CREDVEND_TOML);
    let mut documented = man_page::by_table(&entries);
    let tables: Vec<String> = documented.keys().filter(|name| !name.is_empty()).cloned().collect();
    documented.entry(String::new()).or_default().extend(tables);
    for (table, keys) in &documented {
        let problems = credvend_with(table, &format!("{UNKNOWN} = 1")).unwrap_err();
        assert_eq!(*keys, man_page::accepted(&problems, UNKNOWN), "[{table}]");
    }
}

#[test]
fn the_page_of_projects_toml_has_every_option_and_no_other() {
    let entries = man_page::entries(PROJECTS_TOML);
    let documented = man_page::by_table(&entries);
    let (project, role) = (&documented["projects.PROJECT"], &documented["projects.PROJECT.roles.NAME"]);
    assert_eq!(documented.len(), 2);
    let accepted = |table: &str| {
        let problems = projects_with(table, &format!("{UNKNOWN} = 1")).unwrap_err();
        man_page::accepted(&problems, UNKNOWN)
    };
    let both: BTreeSet<String> = project.union(role).cloned().collect();
    assert_eq!(both, accepted("projects.PROJECT"));
    assert_eq!(*role, accepted("projects.PROJECT.roles.NAME"));
}

#[test]
fn the_pages_state_the_defaults() {
    let compared = compare_defaults(CREDVEND_TOML, credvend_with);
    assert!(compared >= 25, "only {compared} defaults of credvend.toml were compared");
    let compared = compare_defaults(PROJECTS_TOML, projects_with);
    assert!(compared >= 4, "only {compared} defaults of projects.toml were compared");
    Config::parse(&man_page::example(CREDVEND_TOML)).expect("the example of credvend.toml(5)");
    let example = projects::parse(&man_page::example(PROJECTS_TOML)).expect("the example of projects.toml(5)");
    assert_eq!(example.projects.len(), 2);
}
