//! Tells the tests what this machine has, so that a test that cannot run says *ignored* and why.
#![forbid(unsafe_code)]

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(has_scontrol)");
    println!("cargo:rustc-check-cfg=cfg(has_ministack)");
    println!("cargo:rustc-check-cfg=cfg(has_schemathesis)");
    println!("cargo:rustc-check-cfg=cfg(munge_as_root)");
    println!("cargo:rustc-check-cfg=cfg(has_prometheus)");
    println!("cargo:rerun-if-env-changed=PATH");
    println!("cargo:rerun-if-env-changed=CREDD_MINISTACK");
    if on_path("scontrol").is_some() {
        println!("cargo:rustc-cfg=has_scontrol");
    }
    if ["prometheus", "promtool", "prlimit"].iter().all(|name| on_path(name).is_some()) {
        println!("cargo:rustc-cfg=has_prometheus");
    }
    // Only what root encodes speaks for a node, so those tests need root besides munged(8) and munge(1).
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    let munged = on_path("munged").or_else(|| Some(PathBuf::from("/usr/sbin/munged")).filter(|path| path.is_file()));
    if let (true, Some(munged), Some(_)) = (root, munged, on_path("munge")) {
        println!("cargo:rustc-cfg=munge_as_root");
        println!("cargo:rustc-env=MUNGED_FOUND={}", munged.display());
    }
    println!("cargo:rustc-check-cfg=cfg(has_systemd_analyze)");
    if on_path("systemd-analyze").is_some() {
        println!("cargo:rustc-cfg=has_systemd_analyze");
    }
    // A file system of a test's own needs a mount namespace.
    println!("cargo:rustc-check-cfg=cfg(own_mounts)");
    if root && ["unshare", "nsenter", "mount"].iter().all(|name| on_path(name).is_some()) {
        println!("cargo:rustc-cfg=own_mounts");
    }
    let given = env::var_os("CREDD_MINISTACK").map(PathBuf::from).filter(|path| path.is_file());
    if let Some(ministack) = given.or_else(|| on_path("ministack")) {
        println!("cargo:rustc-cfg=has_ministack");
        println!("cargo:rustc-env=CREDD_MINISTACK_FOUND={}", ministack.display());
        // It asks credvend what its OpenAPI document says; the same requirements install both.
        let schemathesis = ministack.with_file_name("schemathesis");
        if schemathesis.is_file() {
            println!("cargo:rustc-cfg=has_schemathesis");
            println!("cargo:rustc-env=SCHEMATHESIS_FOUND={}", schemathesis.display());
        }
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|candidate| Path::is_file(candidate))
}
