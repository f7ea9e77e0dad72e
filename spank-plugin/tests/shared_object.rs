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

/// The number in the installed `slurm/slurm_version.h`; where there is none, what the build fell back on.
fn slurm_version() -> u32 {
    if std::env::var_os("CREDD_SLURM_VERSION").is_some() {
        return slurm_spank::SLURM_VERSION_NUMBER;
    }
    let named = std::env::var("CREDD_SLURM_INCLUDE");
    let usual = ["/usr/include", "/usr/local/include", "/opt/slurm/include"];
    let places = named.as_deref().map_or(usual.to_vec(), |named| vec![named]);
    let headers = places.iter().map(|include| Path::new(include).join("slurm/slurm_version.h"));
    let Some(header) = headers.filter_map(|header| std::fs::read_to_string(header).ok()).next() else {
        return slurm_spank::SLURM_VERSION_NUMBER;
    };
    let line = header.lines().find_map(|line| line.strip_prefix("#define SLURM_VERSION_NUMBER 0x")).unwrap();
    u32::from_str_radix(line.trim(), 16).unwrap()
}

#[test]
fn it_is_for_the_installed_slurm() {
    let symbols = output("nm", &["-D", "--defined-only"]);
    let line = symbols.lines().find(|line| line.ends_with(" plugin_version")).unwrap();
    let start = u64::from_str_radix(line.split_whitespace().next().unwrap(), 16).unwrap();
    let (from, to) = (format!("--start-address={start}"), format!("--stop-address={}", start + 4));
    let dump = output("objdump", &["-s", &from, &to]);
    // ` 8a3f0 08051600                             ....`
    let bytes = dump.lines().last().unwrap().split_whitespace().nth(1).unwrap();
    let number = u32::from_str_radix(bytes, 16).unwrap();
    let number = if cfg!(target_endian = "little") { number.swap_bytes() } else { number };
    // Slurm refuses a plugin of another major.minor, and says so in its log only.
    assert_eq!(format!("{number:#x}"), format!("{:#x}", slurm_version()));
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
        let slurms = symbol.starts_with("spank_") || symbol.starts_with("slurm_");
        let named = include_str!("../../docs/licensing.md").contains(&format!("`{symbol}`"));
        assert!(!slurms || named, "docs/licensing.md does not say that {symbol} is called");
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
