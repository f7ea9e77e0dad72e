//! What is shipped about credd's configuration and command line agrees with the code.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use credd::config::{Config, parse};

#[path = "../../tests/shipped/completions.rs"]
mod completions;
#[path = "../../tests/shipped/man_page.rs"]
mod man_page;

const PAGE: &str = include_str!("../../packaging/man/credd.toml.5");
const UNKNOWN: &str = "no-such-option";

/// A configuration with one more line in one of its tables.
fn with(table: &str, line: &str) -> Result<Config, Vec<String>> {
    let mut tables = BTreeMap::from([("", String::new()), ("credvend", "url = \"http://127.0.0.1:1\"\n".to_owned())]);
    *tables.entry(table).or_default() += line;
    let text = |(name, lines): (&&str, &String)| match *name {
        "" => format!("{lines}\n"),
        name => format!("[{name}]\n{lines}\n"),
    };
    let problems =
        |problems: Vec<_>| problems.iter().map(|problem: &credd::config::Problem| problem.to_string()).collect();
    parse(&tables.iter().map(text).collect::<String>()).map_err(problems)
}

#[test]
fn the_manual_page_has_every_option_and_no_other() {
    let entries = man_page::entries(PAGE);
    let mut documented = man_page::by_table(&entries);
    let tables: Vec<String> = documented.keys().filter(|name| !name.is_empty()).cloned().collect();
    documented.entry(String::new()).or_default().extend(tables);
    for (table, keys) in &documented {
        let problems = with(table, &format!("{UNKNOWN} = 1")).unwrap_err();
        assert_eq!(*keys, man_page::accepted(&problems, UNKNOWN), "[{table}]");
    }
}

#[test]
fn the_manual_page_states_the_defaults() {
    let json = |config: &Config| serde_json::to_string(config).unwrap();
    let usual = json(&with("", "").unwrap());
    let mut compared = 0;
    for entry in man_page::entries(PAGE) {
        let Some(default) = entry.literal_default() else { continue };
        let line = format!("{} = {default}", entry.key);
        let said = with(&entry.table, &line).unwrap_or_else(|problems| panic!("{line}: {problems:?}"));
        assert_eq!(json(&said), usual, "[{}] {line} is not the default", entry.table);
        compared += 1;
    }
    assert!(compared >= 14, "only {compared} defaults were compared");
    parse(&man_page::example(PAGE)).expect("the example of the page");
}

#[test]
fn completions_are_in_step_and_bash_takes_them() {
    completions::are_in_step("credd", &credd::cli::command());
    assert_eq!(completions::bash_offers("credd", &["st"]), ["status"]);
    assert_eq!(completions::bash_offers("credd", &["env", "--e"]), ["--endpoint"]);
    assert!(completions::bash_offers("credd", &["s"]) == ["status"], "the server process is not for people");
}
