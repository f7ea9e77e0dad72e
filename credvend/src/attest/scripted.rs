//! Shell scripts in the place of Slurm's commands, for tests.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Writes a command into `dir` that runs `body`, and waits until it can be executed.
pub fn write(dir: &Path, name: &str, body: &str) {
    let path = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n[ \"$1\" = --probe ] && exit 0\n{body}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    // A process that another test's thread is just forking may hold our descriptor for a moment: "text file busy".
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match Command::new(&path).arg("--probe").status() {
            Ok(status) => return assert!(status.success(), "{}: {status}", path.display()),
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {
                std::thread::yield_now();
            }
            Err(error) => panic!("{} cannot be executed: {error}", path.display()),
        }
    }
}
