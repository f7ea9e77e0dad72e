//! The `/etc` of the test hosts: a copy of the machine's, with the cluster's accounts, host names and `slurm.conf`.
//!
//! It stands in place of the whole directory. A file that is mounted in place of a single one is lost as soon as the machine
//! replaces that one, as every installation of a package that adds an account does: rename(2) detaches what is mounted on
//! the file it replaces, in all namespaces.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::layout::Layout;
use crate::software;

/// What the hosts have of their own. The copy links to them, so that a change shows at once.
const OURS: [&str; 5] = ["passwd", "group", "nsswitch.conf", "hosts", "slurm"];

/// What is the machine's secret, and of no use to a host.
const SECRETS: [&str; 6] = ["shadow", "shadow-", "gshadow", "gshadow-", "ssh", "ssl/private"];

/// Makes the directory; to be mounted at `/etc`.
pub fn make(layout: &Layout) -> Result<PathBuf> {
    let etc = layout.run.join("host-etc");
    software::run(Command::new("cp").args(["-a", "--reflink=auto", "/etc"]).arg(&etc))?;
    for name in SECRETS {
        remove(&etc.join(name))?;
    }
    for name in OURS {
        let link = etc.join(name);
        remove(&link)?;
        symlink(layout.etc().join(name), &link).with_context(|| link.display().to_string())?;
    }
    Ok(etc)
}

fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(|| path.display().to_string()),
        _ => Ok(()),
    }
}
