//! The programs of the release before this one, built once from the repository's own history and kept in the cache.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::plan::Programs;
use crate::software;

include!("../previous.rs");

/// What is kept of a build.
const BUILT: [&str; 3] = ["credd", "credvend", "libspank_credd.so"];

/// Its programs: debug builds, as the tests' own are.
///
/// # Errors
/// Its commit is not in the history, or it does not build.
pub fn programs() -> Result<Programs> {
    let dir = software::cached(&format!("previous-release-{}", &COMMIT[..12]), build)?;
    Ok(Programs {
        credd: Some(dir.join("credd")),
        credvend: Some(dir.join("credvend")),
        plugin: Some(dir.join("libspank_credd.so")),
    })
}

/// Fills a directory with the programs.
fn build(dir: &Path) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    ensure!(in_history(&root), "the previous release's commit, {COMMIT}, is not in this checkout's history");
    let (source, target) = (dir.join("source"), dir.join("target"));
    check_out(&root, &source)?;
    // What both releases have in common is there already; without it the build takes some minutes more.
    if let Err(error) = seed(&software::bin_dir()?, &target.join("debug")) {
        eprintln!("testbed: the previous release is built from nothing: {error:#}");
    }
    eprintln!("testbed: building the previous release (once)");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    software::run(
        Command::new(cargo)
            // The whole workspace, as `make build` does: the same features, so the same libraries.
            .args(["build", "--locked", "--workspace", "--bins", "--lib"])
            .current_dir(&source)
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_INCREMENTAL", "0"),
    )?;
    for name in BUILT {
        fs::copy(target.join("debug").join(name), dir.join(name)).with_context(|| name.to_owned())?;
    }
    fs::remove_dir_all(&target)?;
    Ok(fs::remove_dir_all(&source)?)
}

fn check_out(root: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let mut archive = Command::new("git")
        .args(["-c", "safe.directory=*", "-C"])
        .arg(root)
        .args(["archive", "--format=tar", COMMIT])
        .stdout(Stdio::piped())
        .spawn()
        .context("git")?;
    let tar = archive.stdout.take().context("piped")?;
    let unpacked = Command::new("tar").args(["-x", "-C"]).arg(to).stdin(tar).status().context("tar")?;
    ensure!(archive.wait()?.success() && unpacked.success(), "the previous release could not be checked out");
    Ok(())
}

/// Links what this build has compiled into another target directory, and copies cargo's own notes about it, which cargo
/// writes in place. Compiled files are replaced, never written in place.
fn seed(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let copy = |options: &str, part: &str| software::run(Command::new("cp").arg(options).arg(from.join(part)).arg(to));
    copy("-al", "deps")?;
    copy("-a", ".fingerprint")?;
    copy("-a", "build")
}
