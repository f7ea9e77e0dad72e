//! Whether a job still has a step on this node: the prolog of a job that is running already must not take its token.
//!
//! Seen with 22.05: without `PrologFlags=Alloc`, a slurmd that was killed and started again runs the prolog of a running
//! job once more before the job's next step.

use std::fs;
use std::path::Path;

use credd_protocol::JobId;

/// Looks for a slurmstepd of the job below `proc`: a process of root's with the title `slurmstepd: [ID.STEP]`.
pub fn any(proc: &Path, job: JobId) -> bool {
    let Ok(entries) = fs::read_dir(proc) else { return false };
    let title = format!("slurmstepd: [{job}.");
    entries.filter_map(Result::ok).any(|entry| {
        let is_process = entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit);
        // A user may give a process any title, but not root's uids.
        is_process
            && fs::read(entry.path().join("cmdline")).is_ok_and(|line| line.starts_with(title.as_bytes()))
            && fs::read_to_string(entry.path().join("status")).is_ok_and(|status| is_roots(&status))
    })
}

/// Whether all four uids of a process are root's. The owner of /proc/PID does not say so: the kernel shows every process
/// that is not dumpable as root's, and a user can make its own so.
fn is_roots(status: &str) -> bool {
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uids.is_some_and(|uids| uids.split_whitespace().eq(["0"; 4]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_found_by_its_title() {
        let proc = tempfile::tempdir().unwrap();
        let process = |pid: &str, title: &str, uids: &str| {
            let _ = fs::create_dir(proc.path().join(pid));
            fs::write(proc.path().join(pid).join("cmdline"), title).unwrap();
            let status = format!("Name:\tslurmstepd\nUid:\t{uids}\nGid:\t0\t0\t0\t0\n");
            fs::write(proc.path().join(pid).join("status"), status).unwrap();
        };
        process("1", "init\0", "0\t0\t0\t0");
        process("20", "slurmstepd: [112.batch]\0", "0\t0\t0\t0");
        process("self", "slurmstepd: [12.0]\0", "0\t0\t0\t0");
        let job = JobId::try_from(12).unwrap();
        // A user's process with the title: /proc/PID may well be root's (it is not dumpable), or the process setuid.
        for (pid, uids) in [("21", "1001\t1001\t1001\t1001"), ("22", "1001\t0\t0\t0"), ("23", "0\t1001\t0\t1001")] {
            process(pid, "slurmstepd: [12.extern]\0", uids);
        }
        process("24", "slurmstepd: [12.extern]\0", "");
        fs::remove_file(proc.path().join("24/status")).unwrap();
        assert!(!any(proc.path(), job));
        process("20", "slurmstepd: [12.extern]\0", "0\t0\t0\t0");
        assert!(any(proc.path(), job));
        assert!(!any(Path::new("/nonexistent"), job));
    }
}
