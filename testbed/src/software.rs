//! Where the programs come from: ours from the build, the pretend AWS and its clients from a cached Python environment.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::layout::Layout;

/// Pinned Python packages.
const REQUIREMENTS: &str = include_str!("../requirements.txt");

/// The directory with our built programs: `CREDD_BIN_DIR`, or where the running program was built.
pub fn bin_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("CREDD_BIN_DIR") {
        return Ok(dir.into());
    }
    let exe = std::env::current_exe()?;
    let dir = exe.parent().context("a program is in a directory")?;
    // Test programs are one level down.
    Ok(if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir }.to_path_buf())
}

/// One of our programs.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = bin_dir()?.join(name);
    if !path.exists() {
        bail!(
            "{} is not built: run `cargo build --workspace --bins` first, or set CREDD_BIN_DIR to where it is",
            path.display()
        );
    }
    Ok(path)
}

/// The built plugin: `CREDD_PLUGIN_SO`, or next to the programs.
pub fn plugin() -> Result<PathBuf> {
    let named = std::env::var_os("CREDD_PLUGIN_SO").map(PathBuf::from);
    let built = bin_dir()?;
    let candidates = match named {
        Some(path) => vec![path],
        None => vec![built.join("spank_credd.so"), built.join("libspank_credd.so")],
    };
    candidates.iter().find(|p| p.exists()).cloned().with_context(|| {
        format!("the plugin is not built ({:?}): run `cargo build -p spank-plugin`, or set CREDD_PLUGIN_SO", candidates)
    })
}

/// Where things that take long are kept between clusters: `CREDD_TESTBED_CACHE`, or in cargo's target directory.
pub fn cache_dir() -> Result<PathBuf> {
    let dir = match std::env::var_os("CREDD_TESTBED_CACHE") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let exe = std::env::current_exe()?;
            let target = exe.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists() || dir.ends_with("target"));
            target.map(Path::to_path_buf).unwrap_or(bin_dir()?).join("testbed-cache")
        }
    };
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// A short name for a text (FNV-1a): another text, another place in the cache.
pub fn key(text: &str) -> String {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

/// Makes something in the cache once: `make` fills a fresh directory, which gets its name only when it is complete.
/// Others who want the same wait.
pub fn cached(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = cache_dir()?;
    let done = cache.join(name);
    if done.exists() {
        return Ok(done);
    }
    let lock = File::create(cache.join(format!("{name}.lock")))?;
    let _held = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e)?;
    if !done.exists() {
        let fresh = cache.join(format!("{name}.new"));
        let _ = fs::remove_dir_all(&fresh);
        fs::create_dir_all(&fresh)?;
        make(&fresh)?;
        fs::rename(&fresh, &done)?;
    }
    Ok(done)
}

/// The Python environment with the pretend AWS, the AWS command line and boto3. Taken from the package index at the
/// first use.
pub fn python_environment() -> Result<PathBuf> {
    let mut child = Command::new("bash")
        .args(["-c", include_str!("../python-environment"), "python-environment"])
        .arg(cache_dir()?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("piped")?.write_all(REQUIREMENTS.as_bytes())?;
    let done = child.wait_with_output()?;
    if !done.status.success() {
        bail!("the Python packages of testbed/requirements.txt could not be installed; pip's reason stands above");
    }
    Ok(PathBuf::from(String::from_utf8(done.stdout)?.trim()))
}

/// Copies or links a file into the run directory, so that it is there whatever the build does meanwhile, and readable
/// by users who cannot get into the build directory. What was there is replaced at one moment.
pub fn take(from: &Path, to: &Path) -> Result<()> {
    let from = fs::canonicalize(from).with_context(|| from.display().to_string())?;
    let new = to.with_extension("new");
    let _ = fs::remove_file(&new);
    if fs::hard_link(&from, &new).is_err() {
        fs::copy(&from, &new).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    }
    // Of two names of one file, rename(2) would keep both.
    if fs::metadata(to).is_ok_and(|there| fs::metadata(&new).is_ok_and(|taken| same_file(&there, &taken))) {
        return Ok(fs::remove_file(&new)?);
    }
    Ok(fs::rename(&new, to)?)
}

fn same_file(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Puts the AWS command line on the users' path. Its own script names the interpreter by the cache's path, which users
/// may be unable to reach.
pub fn install_aws_cli(layout: &Layout) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let script = layout.run.join("bin/aws");
    let python = layout.run.join("venv/bin/python3");
    fs::write(&script, format!("#!/bin/sh\nexec {} -m awscli \"$@\"\n", python.display()))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Runs a command that must succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let done = command.output().with_context(|| format!("{:?}", command.get_program()))?;
    if !done.status.success() {
        let said = [done.stdout, done.stderr].concat();
        bail!("{command:?}: {}\n{}", done.status, String::from_utf8_lossy(&said).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// pip takes nothing whose hash is not in the file; what the file lacks it would not install at all.
    #[test]
    fn every_python_package_that_is_wanted_is_locked() {
        let wanted = include_str!("../requirements.in").lines().filter(|line| !line.starts_with('#'));
        let mut count = 0;
        for package in wanted.filter(|line| !line.is_empty()) {
            count += 1;
            assert!(package.contains("=="), "{package} is not pinned");
            assert!(
                REQUIREMENTS.contains(&format!("\n{package} \\\n    --hash=sha256:")),
                "{package} is not in requirements.txt: run testbed/lock-requirements"
            );
        }
        assert!(count >= 3);
    }
}
