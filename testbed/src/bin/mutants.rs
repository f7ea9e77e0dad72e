//! Do the tests bite? Applies the sabotages of `tests/mutants.toml` one by one to a copy of the tree, runs the test that
//! each names, and says which went unnoticed. `make mutants` runs it; a name as argument runs that one alone.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// The whole list.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

/// One sabotage: a text that stands exactly once in a file, what to put there, and the test that must turn red.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Mutant {
    name: String,
    /// What it lets happen, in words.
    breaks: String,
    file: PathBuf,
    find: String,
    replace: String,
    /// The package whose test notices.
    package: String,
    /// The test's full path within the package.
    test: String,
    /// The integration test that holds it (`tests/NAME.rs`); without it, the package's own unit tests.
    suite: Option<String>,
}

/// For one build and its test, in seconds; a sabotage may make a test wait for ever.
const PATIENCE: &str = "600";
/// How timeout(1) says that it ended the command.
const TIMED_OUT: i32 = 124;

enum Verdict {
    Noticed,
    /// The test stayed green: a hole in the suite.
    Survived,
    /// The sabotage does not build or the test is not there: the list is stale.
    Stale(String),
}

/// The project's tree and its list.
fn read_list() -> Result<(PathBuf, List)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let list = toml::from_str(&fs::read_to_string(root.join("tests/mutants.toml"))?)?;
    Ok((root, list))
}

fn main() -> Result<ExitCode> {
    let (root, list) = read_list()?;
    let only = std::env::args().nth(1);
    let chosen: Vec<&Mutant> = list.mutant.iter().filter(|m| only.as_ref().is_none_or(|o| *o == m.name)).collect();
    ensure!(!chosen.is_empty(), "tests/mutants.toml has no mutant named {only:?}");

    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let tree = target.join("mutants/tree");
    copy_tracked(&root, &tree)?;

    let build = target.join("mutants/build");
    println!("{} sabotages; each must turn its test red\n", chosen.len());
    // All on the sound tree first: from then on each sabotage is one build.
    let green: Vec<String> = chosen.iter().map(|mutant| run_test(mutant, &tree, &build)).collect::<Result<_>>()?;
    let mut bad = 0;
    for (mutant, green) in chosen.into_iter().zip(green) {
        let begun = Instant::now();
        let verdict = try_one(mutant, &green, &tree, &build)?;
        let seconds = begun.elapsed().as_secs();
        match verdict {
            Verdict::Noticed => println!("noticed   {:<28} by {} ({seconds} s)", mutant.name, mutant.test),
            Verdict::Survived => {
                bad += 1;
                println!("SURVIVED  {:<28} {} stays green although {}", mutant.name, mutant.test, mutant.breaks);
            }
            Verdict::Stale(why) => {
                bad += 1;
                println!("STALE     {:<28} {why}", mutant.name);
            }
        }
    }
    println!("\n{}", if bad == 0 { "every sabotage was noticed".to_owned() } else { format!("{bad} not noticed") });
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The file as it is, which has the sabotage's place exactly once.
fn sound(mutant: &Mutant, tree: &Path) -> Result<String, String> {
    let file = mutant.file.display();
    let text = fs::read_to_string(tree.join(&mutant.file)).map_err(|error| format!("{file}: {error}"))?;
    match text.matches(&mutant.find).count() {
        1 => Ok(text),
        places => Err(format!("its text stands {places} times in {file}")),
    }
}

/// Puts the sabotage in place, runs its test, and takes the sabotage out again.
fn try_one(mutant: &Mutant, green: &str, tree: &Path, build: &Path) -> Result<Verdict> {
    let file = tree.join(&mutant.file);
    let sound = match sound(mutant, tree) {
        Ok(sound) => sound,
        Err(why) => return Ok(Verdict::Stale(why)),
    };
    if !green.contains(&format!("test {} ... ok", mutant.test)) {
        return Ok(Verdict::Stale(format!("{} is not green before the sabotage:\n{green}", mutant.test)));
    }
    fs::write(&file, sound.replace(&mutant.find, &mutant.replace))?;
    let red = run_test(mutant, tree, build);
    fs::write(&file, sound)?;
    let red = red?;
    if red.contains(&format!("test {} ... FAILED", mutant.test)) {
        Ok(Verdict::Noticed)
    } else if red.contains(&format!("test {} ... ok", mutant.test)) {
        Ok(Verdict::Survived)
    } else {
        Ok(Verdict::Stale(format!("the sabotaged tree does not build or run:\n{red}")))
    }
}

/// What cargo printed of one test.
fn run_test(mutant: &Mutant, tree: &Path, build: &Path) -> Result<String> {
    let suite: &[&str] = match &mutant.suite {
        Some(name) => &["--test", name],
        None => &["--lib"],
    };
    let output = Command::new("timeout")
        .args([PATIENCE, "cargo", "test", "--quiet", "-p", &mutant.package])
        .args(suite)
        .args(["--", "--exact", "--nocapture", "--format", "pretty"])
        .args(["--test-threads", "1", &mutant.test])
        .current_dir(tree)
        .env("CARGO_TARGET_DIR", build)
        .output()
        .context("cargo did not start")?;
    if output.status.code() == Some(TIMED_OUT) {
        return Ok(format!("test {} ... FAILED (it hangs)", mutant.test));
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    // A failing test's own output can be long; its verdict line and the end suffice.
    let verdicts = lines.iter().filter(|l| l.starts_with("test ") || l.starts_with("error"));
    Ok(verdicts.chain(lines.iter().rev().take(5).rev()).copied().collect::<Vec<_>>().join("\n"))
}

/// A copy of the files that git tracks, unchanged ones left alone so that cargo rebuilds little.
fn copy_tracked(root: &Path, tree: &Path) -> Result<()> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output()?;
    if !listed.status.success() {
        bail!("git ls-files failed: the tree to copy must be a git checkout");
    }
    for name in String::from_utf8(listed.stdout)?.split('\0').filter(|n| !n.is_empty()) {
        let (from, to) = (root.join(name), tree.join(name));
        let Ok(bytes) = fs::read(&from) else { continue };
        if fs::read(&to).is_ok_and(|old| old == bytes) {
            continue;
        }
        fs::create_dir_all(to.parent().context("a tracked file has a folder")?)?;
        fs::write(to, bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A change of the code that a sabotage is for must not make it silently void.
    #[test]
    fn every_sabotage_has_its_place_and_its_test() {
        let (root, list) = read_list().unwrap();
        let workspace: toml::Table = toml::from_str(&fs::read_to_string(root.join("Cargo.toml")).unwrap()).unwrap();
        let mut code = String::new();
        for member in workspace["workspace"]["members"].as_array().unwrap() {
            gather(&root.join(member.as_str().unwrap()), &mut code);
        }
        // The root package's own.
        gather(&root.join("tests"), &mut code);
        let mut names = BTreeSet::new();
        for mutant in &list.mutant {
            let name = &mutant.name;
            assert!(names.insert(name), "two sabotages are called {name}");
            assert_ne!(mutant.find, mutant.replace, "{name}");
            sound(mutant, &root).unwrap_or_else(|why| panic!("{name}: {why}"));
            let function = mutant.test.rsplit("::").next().unwrap();
            assert!(code.contains(&format!("fn {function}(")), "{name}: there is no test {function}");
        }
    }

    fn gather(folder: &Path, code: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                gather(&path, code);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                code.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }
}
