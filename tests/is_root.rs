//! Build script of the crates some of whose tests need root: they are ignored, with a reason, where another user builds
//! and so presumably runs them. Nothing but tests looks at it.

use std::os::unix::fs::MetadataExt as _;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(is_root)");
    for changes_with_user in ["USER", "LOGNAME", "HOME"] {
        println!("cargo::rerun-if-env-changed={changes_with_user}");
    }
    // The directory belongs to the process's effective uid.
    if std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
        println!("cargo::rustc-cfg=is_root");
    }
}
