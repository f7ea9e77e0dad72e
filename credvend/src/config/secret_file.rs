//! Files that hold a secret: who may read them.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What is wrong with a secret's file, if anything: it must be a regular file of root or of this process's user, and
/// nobody else may read it, except a group. credvend does not start on one that others read.
pub fn problem(path: &Path) -> Option<String> {
    let shown = path.display();
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => return Some(format!("{shown} cannot be read: {error}")),
    };
    if !metadata.is_file() {
        return Some(format!("{shown} is not a regular file"));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o007 != 0 {
        return Some(format!("{shown} holds a secret, but everybody may access it (mode {mode:04o}); chmod 0600 it"));
    }
    if mode & 0o020 != 0 {
        return Some(format!("{shown} holds a secret, but its group may change it (mode {mode:04o}); chmod 0640 it"));
    }
    let own = nix::unistd::geteuid().as_raw();
    if metadata.uid() != 0 && metadata.uid() != own {
        let owner = metadata.uid();
        let hint =
            if own == 0 { "; if that is credvend's own user, run this as that user, as the service does" } else { "" };
        return Some(format!("{shown} holds a secret, but uid {owner} owns it, not root or uid {own}{hint}"));
    }
    std::fs::File::open(path).err().map(|error| format!("{shown} cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_that_others_read_is_a_problem() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (mode, bad) in [(0o600, false), (0o640, false), (0o400, false), (0o644, true), (0o660, true), (0o604, true)]
        {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(problem(file.path()).is_some(), bad, "{mode:o}");
        }
        assert!(problem(Path::new("/nonexistent")).is_some());
        assert!(problem(Path::new("/dev/null")).is_some());
    }
}
