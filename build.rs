//! Tells the tests what this machine has: `cfg(has_cluster)` where a test cluster can run. Elsewhere the tests that
//! need one are reported as ignored, and the reason is a warning of the build.
#![forbid(unsafe_code)]

include!("testbed/machine.rs");

fn main() {
    println!("cargo::rustc-check-cfg=cfg(has_cluster)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=testbed/machine.rs");
    println!("cargo::rerun-if-env-changed=USER");
    let missing = missing();
    if missing.is_empty() {
        println!("cargo::rustc-cfg=has_cluster");
    } else {
        // Something that never exists: looked at again at every build, until nothing is missing.
        println!("cargo::rerun-if-changed=look-again");
        println!("cargo::warning=tests on a real cluster are ignored here: {}", missing.join("; "));
    }
}
