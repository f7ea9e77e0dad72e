//! Links libmunge, and tells the tests what this machine has.
#![forbid(unsafe_code)]

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rustc-link-lib=munge");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=PATH");
    println!("cargo:rustc-check-cfg=cfg(has_munged)");
    println!("cargo:rustc-check-cfg=cfg(has_munge_header)");

    let header = Path::new("/usr/include/munge.h");
    println!("cargo:rerun-if-changed={}", header.display());
    if header.exists() {
        println!("cargo:rustc-cfg=has_munge_header");
    }
    // sbin is not in every user's PATH.
    let path = env::var_os("PATH").unwrap_or_default();
    let munged = env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|dir: PathBuf| dir.join("munged"))
        .find(|file| file.is_file());
    if let Some(munged) = munged {
        println!("cargo:rerun-if-changed={}", munged.display());
        println!("cargo:rustc-cfg=has_munged");
        println!("cargo:rustc-env=MUNGED_FOUND={}", munged.display());
    }
}
