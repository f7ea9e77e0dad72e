//! Whether the database is still where it was opened.
//!
//! SQLite goes on writing into a file that was deleted, or that another one was moved over, and says that all is well: what
//! it commits is gone with the process. So each commit looks whether the names still mean the files, before it writes and
//! before anybody hears that it has written.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file, whatever its name.
type Inode = (u64, u64);

/// The database and its write-ahead log, as they were opened.
pub(super) struct Place {
    path: PathBuf,
    files: [(PathBuf, Option<Inode>); 2],
}

impl Place {
    /// Remembers what is there now. The log may come later.
    pub(super) fn of(path: &Path) -> Self {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        let remember = |path: PathBuf| {
            let inode = look(&path).ok().flatten();
            (path, inode)
        };
        Place { path: path.to_owned(), files: [remember(path.to_owned()), remember(log.into())] }
    }

    /// What has become of the files, if they are not the ones that were opened.
    pub(super) fn changed(&mut self) -> Option<String> {
        let database = self.path.display();
        for (path, known) in &mut self.files {
            let now = match look(path) {
                Ok(now) => now,
                Err(e) => {
                    return Some(format!(
                        "{} cannot be looked at any more ({e}); look at its directory",
                        path.display()
                    ));
                }
            };
            match (*known, now) {
                (None, now) => *known = now,
                (Some(before), Some(now)) if before == now => {}
                (Some(_), now) => {
                    let what = if now.is_some() { "replaced by another file" } else { "deleted" };
                    return Some(format!(
                        "{} was {what} while credvend had it open, so nothing that it writes would last; before you restart credvend, restore {database} from a backup, or copy what is left of it from /proc/{}/fd",
                        path.display(),
                        std::process::id()
                    ));
                }
            }
        }
        None
    }
}

fn look(path: &Path) -> std::io::Result<Option<Inode>> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some((meta.dev(), meta.ino()))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
