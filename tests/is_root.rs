//! Build script of the crates some of whose tests need root, a cgroup v2 hierarchy, Prometheus or systemd: they are
//! ignored, with a reason, where another user builds and so presumably runs them, or where it is missing. Nothing but tests
//! looks at it.

use std::os::unix::fs::MetadataExt as _;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(is_root)");
    for changes_with_user in ["USER", "LOGNAME", "HOME"] {
        println!("cargo::rerun-if-env-changed={changes_with_user}");
    }
    println!("cargo::rustc-check-cfg=cfg(has_prometheus, has_cgroup2)");
    println!("cargo::rerun-if-env-changed=PATH");
    let path = std::env::var_os("PATH").unwrap_or_default();
    println!("cargo::rustc-check-cfg=cfg(has_systemd_analyze)");
    for (program, cfg) in [("prometheus", "has_prometheus"), ("systemd-analyze", "has_systemd_analyze")] {
        if std::env::split_paths(&path).any(|dir| dir.join(program).is_file()) {
            println!("cargo::rustc-cfg={cfg}");
        }
    }
    // The directory belongs to the process's effective uid.
    if std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
        println!("cargo::rustc-cfg=is_root");
        // A container's root may be unable to mount.
        let mount = "d=$(mktemp -d) && mount -t cgroup2 none \"$d\"; code=$?; umount \"$d\"; rmdir \"$d\"; exit $code";
        let mut tried = std::process::Command::new("unshare");
        tried.args(["--mount", "sh", "-c", mount]).stderr(std::process::Stdio::null());
        if tried.status().is_ok_and(|status| status.success()) {
            println!("cargo::rustc-cfg=has_cgroup2");
        }
    }
}
