//! The documentation's links lead somewhere, and the files that CONTRIBUTING.md names are there.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every page of the project.
fn pages() -> Vec<PathBuf> {
    let folders = [root(), root().join("docs")];
    let files = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
    let mut pages: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "md")).collect();
    pages.sort();
    pages
}

/// The text without fenced code.
fn prose(text: &str) -> String {
    let (mut fenced, mut prose) = (false, String::new());
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    prose
}

/// Where the links of a page lead, those to other sites left out.
fn links(text: &str) -> Vec<String> {
    let text = prose(text);
    let ends = text.match_indices("](").map(|(at, _)| &text[at + 2..]);
    let targets = ends.filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.to_owned());
    targets.filter(|target| !target.contains("://")).collect()
}

/// The anchors of a page's headings, as GitHub and GitLab make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for line in prose(text).lines().filter(|line| line.starts_with('#')) {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let again = (1..).map(|number| format!("{anchor}-{number}")).find(|name| !anchors.contains(name));
        let free = if anchors.contains(&anchor) { again.unwrap_or_default() } else { anchor };
        anchors.insert(free);
    }
    anchors
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let (mut broken, mut seen) = (vec![], 0);
    for page in pages() {
        for link in links(&read(&page)) {
            seen += 1;
            let (file, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(file, anchor)| (file, Some(anchor)));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let found = target.exists() && anchor.is_none_or(|anchor| anchors(&read(&target)).contains(anchor));
            if !found {
                broken.push(format!("{}: {link}", page.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(seen > 100, "only {seen} links were found");
    assert!(broken.is_empty(), "these links lead nowhere:\n{}", broken.join("\n"));
}

#[test]
fn contributing_names_files_that_are_there() {
    let text = read(&root().join("CONTRIBUTING.md"));
    let quoted = text.split('`').skip(1).step_by(2);
    let top: BTreeSet<String> =
        fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    // A path has a top-level folder before its first slash; commands and patterns do not end here.
    let is_path = |word: &&str| {
        let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
        plain && word.split_once('/').is_some_and(|(first, _)| top.contains(first)) && !word.starts_with("target/")
    };
    let paths: BTreeSet<&str> = quoted.filter(is_path).collect();
    assert!(paths.len() > 40, "only {} paths were found", paths.len());
    let missing: Vec<&&str> = paths.iter().filter(|path| !root().join(path).exists()).collect();
    assert!(missing.is_empty(), "CONTRIBUTING.md names what is not there: {missing:?}");
}

#[test]
fn links_and_anchors_are_read_as_a_reader_follows_them() {
    let page = "# The `a.b` page\n\n[x](y.md#z), [site](https://example.org)\n```\n# no heading [no](link)\n```\n## Twice\n## Twice\n";
    assert_eq!(links(page), ["y.md#z"]);
    assert_eq!(anchors(page), ["the-ab-page", "twice", "twice-1"].map(str::to_owned).into());
}
