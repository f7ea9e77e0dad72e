//! The object that Slurm loads: what it exports, needs and weighs. `CREDD_PLUGIN_SO` names it; else it is built here.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const MAX_BYTES: u64 = 700_000;

fn shared_object() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(path) = std::env::var_os("CREDD_PLUGIN_SO") {
            return path.into();
        }
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("tmp lies in the target directory");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--profile", "plugin", "-p", "spank-plugin", "--target-dir"])
            .arg(target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(built.is_ok_and(|status| status.success()), "the plugin does not build");
        target.join("plugin/libspank_credd.so")
    })
}

/// What a program of binutils says about the object.
fn output(program: &str, arguments: &[&str]) -> String {
    let run = Command::new(program).args(arguments).arg(shared_object()).output();
    let run = run.unwrap_or_else(|error| panic!("{program} (Debian: binutils): {error}"));
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap()
}

/// Kind and name of what the object wants from elsewhere.
fn undefined() -> Vec<(String, String)> {
    let text = output("nm", &["-D", "--undefined-only"]);
    text.lines().filter_map(|line| line.trim().split_once(' ')).map(|(k, s)| (k.into(), s.into())).collect()
}

#[test]
fn it_exports_the_hooks_and_nothing_else() {
    let text = output("nm", &["-D", "--defined-only"]);
    let exported: BTreeSet<&str> = text.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    let expected = [
        "plugin_name",
        "plugin_type",
        "plugin_version",
        "slurm_spank_init",
        "slurm_spank_init_post_opt",
        "slurm_spank_job_epilog",
        "slurm_spank_job_prolog",
        "slurm_spank_task_init_privileged",
        "slurm_spank_user_init",
    ];
    assert_eq!(exported, BTreeSet::from(expected));
}

#[test]
fn it_needs_libc_libgcc_and_slurm_only() {
    let text = output("readelf", &["-d"]);
    for line in text.lines().filter(|line| line.contains("(NEEDED)")) {
        let name = line.split(['[', ']']).nth(1).unwrap_or(line);
        // The dynamic loader is part of libc.
        let known = ["libc.so.", "libgcc_s.so.", "ld-linux"].iter().any(|prefix| name.starts_with(prefix));
        assert!(known, "{name}");
    }
    // What carries no version is found in the program that loads the plugin: Slurm's functions, and nothing but them.
    for (kind, symbol) in undefined() {
        let known = symbol.contains('@') || kind == "w" || symbol.starts_with("spank_") || symbol.starts_with("slurm_");
        assert!(known, "{symbol}");
    }
}

#[test]
fn it_starts_no_thread_and_no_program_and_resolves_no_name() {
    for (_, symbol) in undefined() {
        let name = symbol.split('@').next().unwrap_or_default();
        let forbidden = ["pthread_create", "getaddrinfo", "fork", "vfork", "execve", "execvp", "posix_spawn"];
        assert!(!forbidden.contains(&name), "{name}");
    }
}

#[test]
fn it_is_small() {
    let bytes = std::fs::metadata(shared_object()).unwrap().len();
    assert!(bytes <= MAX_BYTES, "{bytes} bytes, allowed are {MAX_BYTES}");
}
