//! Whether a job still has a step on this node: the prolog of a job that is running already must not take its token.
//!
//! Seen with 22.05: without `PrologFlags=Alloc`, a slurmd that was killed and started again runs the prolog of a running
//! job once more before the job's next step.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use credd_protocol::JobId;
use nix::unistd::geteuid;

/// Looks for a slurmstepd of the job below `proc`: a process of root's with the title `slurmstepd: [ID.STEP]`.
pub fn any(proc: &Path, job: JobId) -> bool {
    let Ok(entries) = fs::read_dir(proc) else { return false };
    let title = format!("slurmstepd: [{job}.");
    entries.filter_map(Result::ok).any(|entry| {
        let is_process = entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit);
        // A user may give a process any title, but not root's uid.
        is_process
            && entry.metadata().is_ok_and(|meta| meta.uid() == geteuid().as_raw())
            && fs::read(entry.path().join("cmdline")).is_ok_and(|line| line.starts_with(title.as_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_found_by_its_title() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, title) in [("1", "init\0"), ("20", "slurmstepd: [112.batch]\0"), ("self", "slurmstepd: [12.0]\0")] {
            fs::create_dir(proc.path().join(pid)).unwrap();
            fs::write(proc.path().join(pid).join("cmdline"), title).unwrap();
        }
        let job = JobId::try_from(12).unwrap();
        assert!(!any(proc.path(), job));
        fs::write(proc.path().join("20/cmdline"), "slurmstepd: [12.extern]\0").unwrap();
        assert!(any(proc.path(), job));
        assert!(!any(Path::new("/nonexistent"), job));
    }
}
