//! Whether the file system of a path takes writes, without trying one.

use std::path::Path;

use nix::sys::statvfs::{FsFlags, statvfs};

/// Why nothing can be written there: the file system is read-only or full. `None` also where that is not known.
pub fn why_not_writable(path: &Path) -> Option<String> {
    let disk = statvfs(path).ok()?;
    if disk.flags().contains(FsFlags::ST_RDONLY) {
        return Some("its file system is read-only".into());
    }
    (disk.blocks_available() == 0).then(|| "no space is left on its file system; free some".into())
}
