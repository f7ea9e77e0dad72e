//! Writes `packaging/THIRD-PARTY-NOTICES`: which crates are in the shipped programs, and the licence texts that they come
//! with. `make notices` runs it; a test of this program fails while the file and `Cargo.lock` differ.
//!
//! The crates are those that cargo itself names (`cargo tree`), without build scripts and procedural macros, which run at
//! build time and are no part of a program. The texts are the files of each crate as it was downloaded.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// The written file, from the project's root.
const FILE: &str = "packaging/THIRD-PARTY-NOTICES";
/// The shipped programs: the package, and the name of the program.
const PROGRAMS: [(&str, &str); 3] = [("spank-plugin", "spank_credd.so"), ("credd", "credd"), ("credvend", "credvend")];
/// The platforms of `deny.toml`.
const PLATFORMS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];
/// How the names of files with licence texts begin, in lower case.
const LICENCE_FILES: [&str; 6] = ["licen", "copying", "copyright", "notice", "unlicense", "patents"];
/// The Apache licence ends here; an appendix on how to use it may follow.
const END_OF_APACHE: &str = "END OF TERMS AND CONDITIONS";

/// What `cargo metadata` says.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// One crate.
#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    /// Absent for the workspace's own crates.
    source: Option<String>,
    license: Option<String>,
    repository: Option<String>,
    manifest_path: PathBuf,
}

impl Package {
    /// As `cargo tree` prints it.
    fn title(&self) -> String {
        format!("{} {}", self.name, self.version)
    }
}

/// A licence text and the crates that come with it.
type Texts = BTreeMap<String, BTreeSet<String>>;

fn main() -> Result<()> {
    let root = root()?;
    fs::write(root.join(FILE), notices(&root)?).context(FILE)?;
    println!("{FILE} is written");
    Ok(())
}

fn root() -> Result<PathBuf> {
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?)
}

/// The whole file.
fn notices(root: &Path) -> Result<String> {
    let programs = crates_of_programs(root)?;
    let licence = fs::read_to_string(root.join("LICENSE"))?;
    let apache = terms(&licence).context("LICENSE is not the Apache licence")?.to_owned();
    let (mut list, mut texts, mut without) = (String::new(), Texts::new(), Vec::new());
    let (mut apaches, mut listed) = (BTreeSet::new(), 0);
    for package in packages(root)? {
        let title = package.title();
        let Some(programs) = programs.get(&title).filter(|_| package.source.is_some()) else { continue };
        let expression = package.license.as_deref().with_context(|| format!("{title} states no licence"))?;
        let programs: Vec<&str> = programs.iter().copied().collect();
        writeln!(list, "{title}\n    {expression}; in {}", programs.join(", "))?;
        listed += 1;
        let files = licence_files(&package)?;
        if files.is_empty() {
            without
                .push(format!("{title} ({expression}; {})", package.repository.as_deref().unwrap_or("no repository")));
        }
        for text in files {
            match terms(&text).filter(|terms| *terms == apache) {
                Some(_) => {
                    apaches.insert(title.clone());
                    // The appendix's own example is "Copyright [yyyy] [name]", which names nobody.
                    let owners = copyright_lines(&text);
                    if !owners.is_empty() {
                        texts.entry(owners).or_default().insert(title.clone());
                    }
                }
                None => {
                    texts.entry(text).or_default().insert(title.clone());
                }
            }
        }
    }
    ensure!(listed > 50, "only {listed} crates are in the programs: cargo's output was not understood");
    let mut file = format!("{HEAD}\n{listed} CRATES\n\n{list}");
    if !without.is_empty() {
        write!(file, "\nThese come without a file that has their licence's text:\n\n    {}\n", without.join("\n    "))?;
    }
    section(&mut file, apaches.iter(), &format!("{APACHE}\n\n{licence}"))?;
    for (text, crates) in texts {
        section(&mut file, crates.iter(), &text)?;
    }
    Ok(file)
}

const HEAD: &str = "\
THIRD-PARTY NOTICES OF CREDD

credd, credvend and spank_credd.so contain the crates listed below, whose source is at https://crates.io. Each is under the licence
that is named with it; where several are named with OR, whoever redistributes it chooses. The texts follow. The programs also
contain Rust's standard library (MIT OR Apache-2.0, https://github.com/rust-lang/rust), and credvend the SQLite library, which
is in the public domain (https://sqlite.org/copyright.html). Generated by `make notices`.
";

const APACHE: &str = "The Apache License, Version 2.0. It is also credd's own licence.";

fn section<'c>(file: &mut String, crates: impl Iterator<Item = &'c String>, text: &str) -> Result<()> {
    let crates: Vec<&str> = crates.map(String::as_str).collect();
    let rule = "-".repeat(80);
    write!(file, "\n{rule}\n{}\n{rule}\n\n{}\n", crates.join(", "), text.trim_end())?;
    Ok(())
}

/// Which programs contain which crate, by [`Package::title`].
fn crates_of_programs(root: &Path) -> Result<BTreeMap<String, BTreeSet<&'static str>>> {
    let mut programs: BTreeMap<String, BTreeSet<&'static str>> = BTreeMap::new();
    for (package, program) in PROGRAMS {
        let mut tree = cargo(root);
        tree.args(["tree", "--locked", "--package", package, "--edges", "normal,no-proc-macro"]);
        tree.args(["--prefix", "none", "--no-dedupe"])
            .args(PLATFORMS.iter().flat_map(|platform| ["--target", platform]));
        for line in output(&mut tree)?.lines() {
            // `name v1.2.3`, and behind it the path of a crate of this workspace.
            let mut words = line.split_whitespace();
            let (Some(name), Some(version)) = (words.next(), words.next().and_then(|word| word.strip_prefix('v')))
            else {
                continue;
            };
            programs.entry(format!("{name} {version}")).or_default().insert(program);
        }
    }
    Ok(programs)
}

/// Every crate that the workspace may use, sorted by name.
fn packages(root: &Path) -> Result<Vec<Package>> {
    let mut metadata = cargo(root);
    metadata.args(["metadata", "--locked", "--format-version", "1"]);
    metadata.args(PLATFORMS.iter().flat_map(|platform| ["--filter-platform", platform]));
    let mut packages = serde_json::from_str::<Metadata>(&output(&mut metadata)?)?.packages;
    packages.sort_by_key(Package::title);
    Ok(packages)
}

fn cargo(root: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).env("CARGO_TERM_COLOR", "never");
    cargo
}

fn output(command: &mut Command) -> Result<String> {
    let done = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout)?)
}

/// The texts of a crate's licence files, in the order of their names.
fn licence_files(package: &Package) -> Result<Vec<String>> {
    let directory = package.manifest_path.parent().context("a manifest is in a directory")?;
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if path.is_file() && LICENCE_FILES.iter().any(|begin| name.starts_with(begin)) {
            paths.push(path);
        }
    }
    paths.sort();
    let text = |path: &PathBuf| -> Result<String> {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        Ok(plain(&String::from_utf8_lossy(&bytes)))
    };
    paths.iter().map(text).collect()
}

/// The text without differences that nobody sees: line ends, blanks behind lines, tabs, empty lines around it.
fn plain(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| line.trim_end().replace('\t', "    ")).collect();
    lines.join("\n").trim_matches('\n').to_owned()
}

/// The terms of the Apache licence without their layout, if that is what the text begins with.
fn terms(text: &str) -> Option<String> {
    let (terms, _) = text.split_once(END_OF_APACHE)?;
    let words: Vec<&str> = terms.split_whitespace().collect();
    let dense = words.join(" ").replace("https://", "http://");
    dense.starts_with("Apache License Version 2.0").then_some(dense)
}

/// Who holds the copyright, as the text after the Apache licence's terms says.
fn copyright_lines(text: &str) -> String {
    let appendix = text.split_once(END_OF_APACHE).map_or("", |(_, appendix)| appendix);
    let names_somebody = |line: &&str| line.starts_with("Copyright") && line.contains(|c: char| c.is_ascii_digit());
    let lines: Vec<&str> = appendix.lines().map(str::trim).filter(names_somebody).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notices_are_in_step_with_the_locked_dependencies() {
        let root = root().unwrap();
        let written = fs::read_to_string(root.join(FILE)).unwrap();
        let right = notices(&root).unwrap();
        let lines = |text: &str| -> BTreeSet<String> { text.lines().map(str::to_owned).collect() };
        let (written_lines, right_lines) = (lines(&written), lines(&right));
        let missing: Vec<&String> = right_lines.difference(&written_lines).take(5).collect();
        let stale: Vec<&String> = written_lines.difference(&right_lines).take(5).collect();
        assert!(written == right, "{FILE} is out of date, run `make notices`; lacks {missing:?}, has {stale:?}");
    }

    #[test]
    fn every_program_and_every_crate_is_named() {
        let root = root().unwrap();
        let notices = notices(&root).unwrap();
        for (package, program) in PROGRAMS {
            let manifest = fs::read_to_string(root.join(package).join("Cargo.toml")).unwrap();
            let manifest: toml::Table = toml::from_str(&manifest).unwrap();
            assert!(
                notices.contains(&format!("in {program}")) || notices.contains(&format!(", {program}")),
                "{program}"
            );
            let workspace: toml::Table = toml::from_str(&fs::read_to_string(root.join("Cargo.toml")).unwrap()).unwrap();
            let ours = workspace["workspace"]["dependencies"].as_table().unwrap();
            for name in manifest["dependencies"].as_table().unwrap().keys() {
                let own = ours.get(name).is_some_and(|value| value.get("path").is_some());
                // Only macros: no code of it is in the program.
                let macros = name == "async-trait";
                assert!(
                    own || macros || notices.contains(&format!("\n{name} ")),
                    "{program} has {name}, which is not named"
                );
            }
        }
    }

    #[test]
    fn the_apache_licence_is_known_in_every_layout() {
        let licence = fs::read_to_string(root().unwrap().join("LICENSE")).unwrap();
        let apache = terms(&licence).unwrap();
        let indented = licence.replace('\n', "\r\n  ").replace("http://", "https://");
        assert_eq!(terms(&plain(&indented)), Some(apache.clone()));
        assert_ne!(terms(&licence.replace("Contributor", "Licensor")), Some(apache), "other terms are another text");
        assert_eq!(terms("MIT License"), None);
        let appendix =
            format!("x {END_OF_APACHE}\n  Copyright [yyyy] [name]\n   Copyright 2014 A. Person\nLicensed under\n");
        assert_eq!(copyright_lines(&appendix), "Copyright 2014 A. Person");
    }
}
