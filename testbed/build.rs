//! Tells the testbed's own tests what this machine has: `cfg(has_cluster)` where a test cluster can run. Elsewhere those that need
//! one are reported as ignored, and the reason is a warning of the build.
#![forbid(unsafe_code)]

include!("machine.rs");

fn main() {
    tell_cargo("machine.rs");
}
