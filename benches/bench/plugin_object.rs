//! The shared object itself: its size, what it needs, and what loading it costs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::figure::Figure;
use crate::sample::Sample;

/// Kilobytes of 1,000 bytes.
const TARGET_KB: f64 = 700.0;
const LOADS: usize = 60;
/// All that a Slurm process has loaded anyway.
const ALLOWED: [&str; 3] = ["libc.so.6", "libgcc_s.so.1", "ld-linux-"];

/// A file that was built with the plugin's profile as an example of slurm-spank.
pub fn example(name: &str) -> Result<PathBuf> {
    let plugin = testbed::software::plugin()?;
    let path = plugin.parent().context("a file is in a directory")?.join("examples").join(name);
    if !path.exists() {
        bail!("{} is missing: cargo build --profile plugin -p slurm-spank --examples", path.display());
    }
    Ok(path)
}

/// Measures it.
pub fn measure() -> Result<Vec<Figure>> {
    let plugin = testbed::software::plugin()?;
    let size = fs::metadata(&plugin)?.len();
    let needed = words(Command::new("readelf").arg("-d").arg(&plugin), |line| {
        line.contains("(NEEDED)").then(|| line.split(['[', ']']).nth(1)).flatten().map(str::to_owned)
    })?;
    let strange = needed.iter().filter(|name| !ALLOWED.iter().any(|known| name.starts_with(known))).count();
    // Without these it cannot start one.
    let threads = words(Command::new("nm").args(["-D", "--undefined-only"]).arg(&plugin), |line| {
        let name = line.split_whitespace().last()?.split('@').next()?;
        ["pthread_create", "thrd_create", "clone", "clone3", "fork", "vfork"].contains(&name).then(|| name.to_owned())
    })?;
    let symbols = words(Command::new("nm").arg(&plugin), |line| Some(line.to_owned()))?.len();
    let stripped = if symbols == 0 { "stripped".to_owned() } else { format!("NOT stripped: {symbols} symbols") };
    let mut figures = vec![
        Figure::new("spank_credd.so", size as f64 / 1000.0, "kB").at_most(TARGET_KB).detail(stripped),
        Figure::new("libraries beyond libc and libgcc_s", strange as f64, "").at_most(0.0).detail(needed.join(" ")),
        Figure::new("functions that start threads or processes", threads.len() as f64, "")
            .at_most(0.0)
            .detail(threads.join(" ")),
    ];
    figures.extend(loading(&plugin)?);
    Ok(figures)
}

/// dlopen in a process that has Slurm's library, which resolves the plugin's symbols as slurmstepd does.
fn loading(plugin: &Path) -> Result<Vec<Figure>> {
    let (loader, empty, slurm) = (example("dlopen_time")?, example("libspank_empty.so")?, slurm_library()?);
    let (mut ours, mut theirs) = (Sample::default(), Sample::default());
    let load = |object: &Path| -> Result<f64> {
        let output = Command::new(&loader).arg(&slurm).arg(object).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let nanoseconds: f64 =
            text.trim().parse().with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        Ok(nanoseconds / 1e6)
    };
    for _ in 0..3 {
        load(plugin)?;
        load(&empty)?;
    }
    for _ in 0..LOADS {
        ours.push(load(plugin)?);
        theirs.push(load(&empty)?);
    }
    Ok(vec![
        Figure::new("its dlopen in a fresh process", ours.median(), "ms").detail(format!(
            "an empty plugin's {:.3} ms; medians of {LOADS}, files in the page cache",
            theirs.median()
        )),
        Figure::new("dlopen, spank_credd.so ÷ empty plugin", ours.median() / theirs.median(), ""),
    ])
}

/// Where Slurm's programs find the functions that plugins call.
fn slurm_library() -> Result<PathBuf> {
    let slurmd = Command::new("sh").args(["-c", "ldd \"$(command -v slurmd)\""]).output()?;
    let text = String::from_utf8_lossy(&slurmd.stdout).into_owned();
    let line = text.lines().find(|line| line.contains("libslurmfull.so")).context("slurmd has no libslurmfull.so")?;
    let path = line.split_whitespace().find(|word| word.starts_with('/')).context("libslurmfull.so is not found")?;
    Ok(path.into())
}

fn words(command: &mut Command, pick: impl Fn(&str) -> Option<String>) -> Result<Vec<String>> {
    let output = command.output().with_context(|| format!("{:?} (binutils)", command.get_program()))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(pick).collect())
}
