//! Tells the tests what this machine has: `cfg(has_cluster)` where a test cluster can run, `cfg(has_previous_release)` where
//! the checkout's history has the release before this one. Elsewhere those that need it are reported as ignored, and the
//! reason is a warning of the build.
#![forbid(unsafe_code)]

include!("testbed/machine.rs");

mod previous {
    include!("testbed/previous.rs");
}

fn main() {
    tell_cargo("testbed/machine.rs");
    println!("cargo::rustc-check-cfg=cfg(has_previous_release)");
    println!("cargo::rerun-if-changed=testbed/previous.rs");
    if previous::in_history(std::path::Path::new(".")) {
        println!("cargo::rustc-cfg=has_previous_release");
    } else {
        println!("cargo::rerun-if-changed=look-again");
        println!(
            "cargo::warning=tests with the previous release are ignored here: its commit, {}, is not in this checkout's \
             history",
            &previous::COMMIT[..7]
        );
    }
}
