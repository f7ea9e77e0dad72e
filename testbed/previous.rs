// The release before this one, as far as build scripts must know it. Included by the root's build script, which tells the
// tests, and by the testbed itself, which builds it.

/// The commit that is the previous release: its programs, records and store must get along with today's.
pub const COMMIT: &str = "a40cdd241412415963b9c7222be0e581761babea";

/// Whether a checkout's own history has it. A shallow clone's does not, and a tarball has none.
pub fn in_history(root: &std::path::Path) -> bool {
    let object = format!("{COMMIT}^{{commit}}");
    std::process::Command::new("git")
        // Root may well build what belongs to somebody else.
        .args(["-c", "safe.directory=*", "-C"])
        .arg(root)
        .args(["cat-file", "-e", &object])
        .output()
        .is_ok_and(|done| done.status.success())
}
