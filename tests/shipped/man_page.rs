//! A manual page of a configuration file, read for tests: every option with its table and its default.
//!
//! Such a page has a `.SS` for each table, named as in the file (`[http]`, `[[cluster]]`, or `Top level`), and in it a `.TP`
//! with the option in bold for each option. An entry has `Default: …` or `Required.` in it. What is not in an older release
//! says so (`Not in 0.1.0.`), and stands in CHANGELOG.md.

use std::collections::{BTreeMap, BTreeSet};

/// One option.
pub struct Entry {
    /// The table's name without brackets; empty for the top level.
    pub table: String,
    pub key: String,
    /// What the page says of it, in one line.
    pub text: String,
}

impl Entry {
    /// The default, if it is a value that can be written into the file as it stands.
    pub fn literal_default(&self) -> Option<&str> {
        let (_, rest) = self.text.split_once("Default: ")?;
        let default = rest.split(". ").next()?.trim_end_matches('.');
        format!("x = {default}").parse::<toml::Table>().is_ok().then_some(default)
    }
}

/// The options of a page, in its order.
pub fn entries(page: &str) -> Vec<Entry> {
    let (mut table, mut entries, mut new) = (None, Vec::<Entry>::new(), false);
    for line in page.lines() {
        let plain = plain(line);
        if line.starts_with(".SH ") {
            table = None;
        } else if let Some(name) = line.strip_prefix(".SS ") {
            let name = name.trim_matches(['[', ']']);
            table = Some(if name == "Top level" { String::new() } else { name.to_owned() });
        } else if line == ".TP" {
            new = true;
        } else if let Some(table) = &table {
            match line.strip_prefix(".B ").filter(|_| new) {
                Some(_) => entries.push(Entry { table: table.clone(), key: plain, text: String::new() }),
                None => entries.last_mut().into_iter().for_each(|entry| entry.text += &format!("{plain} ")),
            }
            new = false;
        }
    }
    let changelog = include_str!("../../CHANGELOG.md");
    for entry in &mut entries {
        entry.text = entry.text.trim().replace(" .", ".").replace(" ,", ",");
        // `key` or `table.key`.
        let listed = changelog.contains(&format!("`{}`", entry.key)) || changelog.contains(&format!(".{}`", entry.key));
        let new = entry.text.contains("Not in 0.1.0");
        assert!(!new || listed, "CHANGELOG.md does not have the new option {}", entry.key);
        let said = entry.text.contains("Default: ") || entry.text.contains("Required.");
        assert!(said, "the page has no default of {} {}", entry.table, entry.key);
    }
    entries
}

/// The options by table; the top level has the tables' names too.
pub fn by_table(entries: &[Entry]) -> BTreeMap<String, BTreeSet<String>> {
    let mut tables: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in entries {
        let new = tables.entry(entry.table.clone()).or_default().insert(entry.key.clone());
        assert!(new, "the page has {} {} twice", entry.table, entry.key);
    }
    tables
}

/// The example of a page.
pub fn example(page: &str) -> String {
    let (_, rest) = page.split_once("\n.nf\n").expect("an example");
    let (example, _) = rest.split_once("\n.fi\n").expect("the end of the example");
    example.lines().map(|line| plain(line) + "\n").collect()
}

/// The options that a complaint about an unknown one lists: all that the code accepts at that place.
pub fn accepted(problems: &[String], unknown: &str) -> BTreeSet<String> {
    let complaint = problems.iter().find(|problem| problem.contains(unknown));
    let complaint = complaint.unwrap_or_else(|| panic!("{unknown} was not refused: {problems:?}"));
    let lists = ["known here: ", "there are: ", "there are "];
    let list = lists.iter().find_map(|begin| complaint.split_once(begin)).expect("a list of the options");
    list.1.split(", ").map(str::to_owned).collect()
}

/// A line without roff's requests and escapes.
fn plain(line: &str) -> String {
    let line = line.replace("\\-", "-").replace("\\(dq", "\"").replace("\\fR", "");
    match line.strip_prefix('.').and_then(|request| request.split_once(' ')) {
        // Fonts in turns: the words stand together, unless blanks are quoted.
        Some(("BR" | "BI", words)) => {
            words.replace("\" ", "\0").replace(" \"", "\0").replace(' ', "").replace(['\0', '"'], " ")
        }
        Some(("B" | "I", words)) => words.to_owned(),
        _ => line,
    }
}
