//! The files under the node's run directory ([`credd_protocol::record`]), as root.
//!
//! The directory must be root's own and writable by nobody else: then no path below it can be turned elsewhere by a
//! user, and plain paths are safe. Everything is opened close-on-exec (std does) and never through a symbolic link.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use credd_protocol::late::{LateRecord, MAX_LATE_BYTES};
use credd_protocol::record::{JobRecord, MAX_RECORD_BYTES, OnError, RunDir, RunNames, file};
use credd_protocol::{JobId, secret::JobToken};
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, OFlag, RenameFlags, renameat2};
use nix::unistd::geteuid;

/// A sentence for a user is not longer.
const MAX_SENTENCE_BYTES: usize = 2000;

/// The longest note: a word, a sentence, the line's end.
const MAX_NOTE_BYTES: u64 = MAX_SENTENCE_BYTES as u64 + 16;

/// A record has some seven hundred bytes.
const USUAL_BYTES: usize = 1024;

/// A run directory that has been looked at.
#[derive(Debug, Clone)]
pub struct RunFiles {
    paths: RunDir,
}

/// Why a job has no record although the prolog ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Skipped {
    /// The job was submitted with `--aws=off`.
    Asked,
    /// Its partition is off. Noted only where another partition has `on-error=fail`, so that a step need not believe its
    /// environment in that.
    Off,
    /// The prolog could not write one.
    Failed {
        /// What its partition makes of that.
        on_error: OnError,
        /// A sentence for its user.
        why: String,
    },
}

impl RunFiles {
    /// Looks at the run directory; `None` if it does not exist.
    ///
    /// # Errors
    /// Where it is not a directory of this user's (root's) that nobody else may write to.
    pub fn open(paths: &RunDir) -> io::Result<Option<Self>> {
        let meta = match fs::symlink_metadata(paths.path()) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if !meta.is_dir() || meta.uid() != geteuid().as_raw() || meta.mode() & 0o022 != 0 {
            let why = format!("{} must be a directory of root that only root may write to", paths.path().display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Ok(Some(RunFiles { paths: paths.clone() }))
    }

    /// As [`RunFiles::open`], but makes it and its parts if they are missing. credd or systemd-tmpfiles has as a rule.
    ///
    /// # Errors
    /// Where that fails.
    pub fn open_or_create(paths: &RunDir) -> io::Result<Self> {
        make_dir(paths.path(), 0o755)?;
        let files = Self::open(paths)?.ok_or(io::ErrorKind::NotFound)?;
        make_dir(&paths.jobs(), 0o700)?;
        make_dir(&paths.ended(), 0o700)?;
        Ok(files)
    }

    /// Leaves a job's record and the run's other names, whole or not at all. A directory of the same job id must have been
    /// ended before.
    ///
    /// # Errors
    /// Where a file operation fails.
    pub fn write_record(&self, record: &JobRecord, names: &RunNames) -> io::Result<()> {
        let names = names.to_json();
        let names = names.as_ref().map(|names| (file::NAMES, names.as_slice()));
        self.write_job(record.job, names.into_iter().chain([(file::RECORD, record.to_json().as_slice())]))
    }

    /// Leaves a late record, whole or not at all.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`]: the job has a directory with something in it by now. Otherwise a file operation
    /// failed.
    pub fn write_late(&self, record: &LateRecord) -> io::Result<()> {
        let bytes = record.to_bytes().map_err(io::Error::other)?;
        self.write_job(record.job, [(file::LATE, bytes.as_slice())].into_iter()).map_err(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty => io::ErrorKind::AlreadyExists.into(),
            _ => error,
        })
    }

    fn write_job<'a>(&self, job: JobId, files: impl Iterator<Item = (&'a str, &'a [u8])>) -> io::Result<()> {
        // Not made in `jobs/`, where credd would stumble over it.
        let new = self.new_path(job)?;
        let written = (|| {
            DirBuilder::new().mode(0o700).create(&new)?;
            for (name, bytes) in files {
                create(&new.join(name), 0o600)?.write_all(bytes)?;
            }
            fs::rename(&new, self.paths.job(job))
        })();
        if written.is_err() {
            // What stays all the same is swept by credd.
            let _ = fs::remove_dir_all(&new);
        }
        written
    }

    /// A path in `new/` that nobody else has.
    fn new_path(&self, job: JobId) -> io::Result<PathBuf> {
        make_dir(&self.paths.unfinished(), 0o700)?;
        Ok(self.paths.unfinished().join(format!("{job}.{:016x}", nonce()?)))
    }

    /// A running job's record; `None` if there is none.
    ///
    /// # Errors
    /// A sentence: a file that is not root's alone, or is no record.
    pub fn read_record(&self, job: JobId) -> Result<Option<JobRecord>, String> {
        record_in(&self.paths.job(job)).map_err(|error| format!("the record of job {job}: {error}"))
    }

    /// A running job's late record; `None` if there is none.
    ///
    /// # Errors
    /// As [`RunFiles::read_record`].
    pub fn read_late(&self, job: JobId) -> Result<Option<LateRecord>, String> {
        late_in(&self.paths.job(job)).map_err(|error| format!("the record of job {job}: {error}"))
    }

    /// Holds a job's directory until this process, a slurmstepd, ends: by that lock credd sees that a step of the job lives.
    /// Where it cannot be had, credd may end a run too early that gets no credentials anyway.
    pub fn hold(&self, job: JobId) {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let directory = OpenOptions::new().read(true).custom_flags(flags.bits()).open(self.paths.job(job));
        if let Ok(Ok(lock)) = directory.map(|directory| Flock::lock(directory, FlockArg::LockSharedNonblock)) {
            // The kernel closes it. A task's program never has it: it is closed by execve(2).
            std::mem::forget(lock);
        }
    }

    /// Whether Slurm's partition of a job with a late record is off.
    pub fn is_off(&self, job: JobId) -> bool {
        self.paths.job(job).join(file::OFF).exists()
    }

    /// Why credvend refused the job, if it did.
    pub fn refused(&self, job: JobId) -> Option<String> {
        let bytes = read_bounded(open_read(&self.paths.job(job).join(file::REFUSED)).ok()?, MAX_NOTE_BYTES).ok()?;
        let text = String::from_utf8_lossy(&bytes).trim().to_owned();
        Some(if text.is_empty() { "credvend refused the job and gave no reason".into() } else { text })
    }

    /// The endpoint's port, if credd says that the listener is its own.
    pub fn endpoint(&self) -> Option<u16> {
        let bytes = read_bounded(open_read(&self.paths.endpoint()).ok()?, 16).ok()?;
        std::str::from_utf8(&bytes).ok()?.trim().parse().ok().filter(|port| *port != 0)
    }

    /// Whether this is the first call for a job, so that what its user is told once is not told again. `false` where that
    /// cannot be noted.
    pub fn is_first_notice(&self, job: JobId) -> bool {
        create(&self.paths.job(job).join(file::NOTIFIED), 0o600).is_ok()
    }

    /// Whether credvend says, by Slurm's word, that the run is over that a job's record is of.
    pub fn is_over(&self, job: JobId) -> bool {
        self.paths.job(job).join(file::OVER).exists()
    }

    /// Ends the run that has this token here, as [`RunFiles::end`] does, and no other: another step may have done so just
    /// now, and left a record of the new run.
    ///
    /// # Errors
    /// As [`RunFiles::end`]; a record that cannot be read.
    pub fn end_run(&self, job: JobId, token: &JobToken) -> Result<(), String> {
        if is_of(&self.paths.job(job), token)? && self.move_run_to_ended(job, token)? {
            self.remove_left(job);
        }
        Ok(())
    }

    /// The step that was faster may have put the new run's directory in place since it was looked at: that one is put back.
    fn move_run_to_ended(&self, job: JobId, token: &JobToken) -> Result<bool, String> {
        let failed = |error: io::Error| error.to_string();
        let Some(ended) = self.move_to_ended(job).map_err(failed)? else { return Ok(false) };
        if is_of(&ended, token)? {
            return Ok(true);
        }
        renameat2(AT_FDCWD, &ended, AT_FDCWD, &self.paths.job(job), RenameFlags::RENAME_NOREPLACE)
            .map_err(|error| failed(error.into()))?;
        Ok(false)
    }

    /// Ends a job: moves its directory to `ended/`, then removes what else it left. `false` if it had no directory. What
    /// cannot be removed changes nothing: a token whose record has gone from `jobs/` is nobody's.
    ///
    /// # Errors
    /// Where the directory could not be moved.
    pub fn end(&self, job: JobId) -> io::Result<bool> {
        let moved = self.move_to_ended(job);
        self.remove_left(job);
        Ok(moved?.is_some())
    }

    fn remove_left(&self, job: JobId) {
        for left in [self.paths.token_file(job), self.paths.skipped(job)] {
            // credd sweeps what stays.
            let _ = fs::remove_file(left);
        }
    }

    /// The directory's new path; `None` if there was none.
    fn move_to_ended(&self, job: JobId) -> io::Result<Option<PathBuf>> {
        let dir = self.paths.job(job);
        if fs::symlink_metadata(&dir).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Ok(None);
        }
        let restart = self.read_record(job).ok().flatten().map_or(0, |record| record.restart);
        make_dir(&self.paths.ended(), 0o700)?;
        let ended = self.paths.ended().join(format!("{job}.{restart}.{:016x}", nonce()?));
        fs::rename(dir, &ended)?;
        Ok(Some(ended))
    }

    /// Writes a job's token file: root's, readable to its user. An older one is replaced.
    ///
    /// # Errors
    /// Where a file operation fails.
    pub fn write_token_file(&self, job: JobId, token: &JobToken, uid: u32) -> io::Result<PathBuf> {
        let path = self.paths.token_file(job);
        // Users may pass to their own file and not list the others'.
        make_dir(&self.paths.tokens(), 0o711)?;
        // No newline: nearly every client would choke on it.
        token_file::write(&path, token.expose().as_bytes(), uid)?;
        Ok(path)
    }

    /// Notes that a job has no record, and why; whole or not at all.
    ///
    /// # Errors
    /// Where a file operation fails.
    pub fn write_skipped(&self, job: JobId, skipped: &Skipped) -> io::Result<()> {
        let path = self.paths.skipped(job);
        make_dir(&self.paths.path().join("skipped"), 0o700)?;
        let new = self.new_path(job)?;
        let written = create(&new, 0o600)
            .and_then(|mut file| file.write_all(skipped.to_text().as_bytes()))
            .and_then(|()| fs::rename(&new, &path));
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }

    /// Why a job has no record, if its prolog noted it. A note that is not whole is none: that a user said off is taken
    /// from the very word alone.
    pub fn skipped(&self, job: JobId) -> Option<Skipped> {
        let bytes = read_bounded(open_read(&self.paths.skipped(job)).ok()?, MAX_NOTE_BYTES).ok()?;
        Skipped::from_text(std::str::from_utf8(&bytes).ok()?)
    }
}

impl Skipped {
    fn to_text(&self) -> String {
        let sentence = |why: &str| {
            let end = (0..=MAX_SENTENCE_BYTES.min(why.len())).rev().find(|at| why.is_char_boundary(*at));
            why[..end.unwrap_or(0)].replace('\n', " ")
        };
        match self {
            Skipped::Asked => "asked\n".to_owned(),
            Skipped::Off => "off\n".to_owned(),
            Skipped::Failed { on_error: OnError::Continue, why } => format!("continue {}\n", sentence(why)),
            Skipped::Failed { on_error: OnError::Fail, why } => format!("fail {}\n", sentence(why)),
        }
    }

    fn from_text(text: &str) -> Option<Self> {
        // The line's end is written last.
        let line = text.strip_suffix('\n')?;
        match line.split_once(' ') {
            Some(("continue", why)) => Some(Skipped::Failed { on_error: OnError::Continue, why: why.into() }),
            Some(("fail", why)) => Some(Skipped::Failed { on_error: OnError::Fail, why: why.into() }),
            None if line == "asked" => Some(Skipped::Asked),
            None if line == "off" => Some(Skipped::Off),
            _ => None,
        }
    }
}

/// Exactly this mode, whatever the umask. An existing directory is left as it is.
fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(mode)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
}

fn create(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path)
}

fn open_read(path: &Path) -> io::Result<File> {
    // O_NONBLOCK: a fifo would hang the job's start.
    OpenOptions::new().read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits()).open(path)
}

/// The record in a job's directory.
fn record_in(dir: &Path) -> Result<Option<JobRecord>, String> {
    let bytes = read_own(&dir.join(file::RECORD), MAX_RECORD_BYTES)?;
    bytes.map(|bytes| JobRecord::from_json(&bytes)).transpose().map_err(|error| error.to_string())
}

/// The late record in a job's directory.
fn late_in(dir: &Path) -> Result<Option<LateRecord>, String> {
    let bytes = read_own(&dir.join(file::LATE), MAX_LATE_BYTES)?;
    bytes.map(|bytes| LateRecord::from_bytes(&bytes)).transpose().map_err(|error| error.to_string())
}

/// Whether a job's directory is of the run with this token.
fn is_of(dir: &Path, token: &JobToken) -> Result<bool, String> {
    let of = match record_in(dir)? {
        Some(record) => Some(record.token),
        None => late_in(dir)?.map(|late| late.token),
    };
    Ok(of.is_some_and(|of| of == *token))
}

/// A file that is root's alone; `None` if there is none.
fn read_own(path: &Path, max: u64) -> Result<Option<Vec<u8>>, String> {
    let read = open_read(path).and_then(|file| {
        let meta = file.metadata()?;
        if !meta.is_file() || meta.uid() != geteuid().as_raw() || meta.mode() & 0o077 != 0 {
            return Err(io::Error::other("it is not a file of root's alone"));
        }
        read_bounded(file, max + 1)
    });
    match read {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

fn read_bounded(file: File, limit: u64) -> io::Result<Vec<u8>> {
    // Room for what these files hold as a rule, so that they are read at once.
    let mut bytes = Vec::with_capacity(usize::try_from(limit).unwrap_or(USUAL_BYTES).min(USUAL_BYTES));
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Keeps the runs of one job id apart in `ended/`, and what is being written in `new/`.
fn nonce() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted_job::{on_full_tmpfs, record, run_dir};

    #[test]
    fn a_record_is_written_read_and_ended() {
        let (_temp, paths) = run_dir();
        let files = RunFiles::open_or_create(&paths).unwrap();
        let record = record();
        files.write_record(&record, &RunNames::default()).unwrap();
        assert_eq!(files.read_record(record.job).unwrap().unwrap(), record);
        let modes = [paths.job(record.job), paths.job(record.job).join("record")]
            .map(|path| fs::symlink_metadata(path).unwrap().mode() & 0o7777);
        assert_eq!(modes, [0o700, 0o600]);

        assert_eq!(fs::read_dir(paths.unfinished()).unwrap().count(), 0);

        files.write_token_file(record.job, &record.token, 1001).unwrap();
        let path = files.write_token_file(record.job, &record.token, 1001).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), record.token.expose());
        assert_eq!(fs::metadata(&path).unwrap().uid(), geteuid().as_raw(), "it is not the job's user's");
        assert_eq!(fs::metadata(paths.tokens()).unwrap().mode() & 0o7777, 0o711);

        assert!(files.end(record.job).unwrap());
        assert!(!path.exists() && files.read_record(record.job).unwrap().is_none());
        assert!(!files.end(record.job).unwrap());
        let ended: Vec<_> = fs::read_dir(paths.ended()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(ended.len(), 1);
        assert!(ended[0].to_str().unwrap().starts_with("12.3."), "{ended:?}");
    }

    #[test]
    fn what_is_not_roots_alone_is_not_believed() {
        let (_temp, paths) = run_dir();
        let files = RunFiles::open_or_create(&paths).unwrap();
        let record = record();
        files.write_record(&record, &RunNames::default()).unwrap();
        let path = paths.job(record.job).join("record");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(files.read_record(record.job).unwrap_err().contains("root's alone"));
        fs::rename(&path, path.with_extension("real")).unwrap();
        std::os::unix::fs::symlink(path.with_extension("real"), &path).unwrap();
        assert!(files.read_record(record.job).is_err());

        fs::set_permissions(paths.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(RunFiles::open(&paths).is_err());
        assert!(RunFiles::open(&RunDir::new("/nonexistent/run")).unwrap().is_none());
    }

    #[test]
    fn an_end_that_takes_another_runs_directory_puts_it_back() {
        let (_temp, paths) = run_dir();
        let files = RunFiles::open_or_create(&paths).unwrap();
        let (old, new) = (record(), record());
        files.write_record(&new, &RunNames::default()).unwrap();
        // The old run's was looked at, and another step has put the new one in its place since.
        assert_eq!(files.move_run_to_ended(old.job, &old.token), Ok(false));
        assert_eq!(files.read_record(new.job).unwrap().unwrap(), new);
        assert_eq!(fs::read_dir(paths.ended()).unwrap().count(), 0);
        assert_eq!(files.move_run_to_ended(new.job, &new.token), Ok(true));
        assert_eq!(files.move_run_to_ended(new.job, &new.token), Ok(false));
    }

    #[test]
    fn an_end_does_not_depend_on_what_cannot_be_removed() {
        let (_temp, paths) = run_dir();
        let files = RunFiles::open_or_create(&paths).unwrap();
        let record = record();
        files.write_record(&record, &RunNames::default()).unwrap();
        // As unremovable as a mount point.
        fs::create_dir_all(paths.token_file(record.job).join("x")).unwrap();
        fs::create_dir_all(paths.skipped(record.job).join("x")).unwrap();
        assert!(files.end(record.job).unwrap());
        assert!(files.read_record(record.job).unwrap().is_none());
        assert_eq!(fs::read_dir(paths.ended()).unwrap().count(), 1);
    }

    #[test]
    #[cfg_attr(not(is_root), ignore = "mounts a tmpfs: run this test as root")]
    fn a_full_tmpfs_leaves_nothing_half_written() {
        on_full_tmpfs(|paths, files| {
            let record = record();
            assert!(files.write_record(&record, &RunNames::default()).is_err());
            assert!(
                files
                    .write_skipped(record.job, &Skipped::Failed { on_error: OnError::Fail, why: "full".into() })
                    .is_err()
            );
            assert!(files.write_skipped(record.job, &Skipped::Asked).is_err());
            assert!(files.write_token_file(record.job, &record.token, 1001).is_err());
            assert_eq!((files.read_record(record.job).unwrap(), files.skipped(record.job)), (None, None));
            for dir in [paths.unfinished(), paths.jobs(), paths.tokens(), paths.path().join("skipped")] {
                assert_eq!(fs::read_dir(&dir).map_or(0, Iterator::count), 0, "{dir:?}");
            }
        });
    }

    #[test]
    fn only_a_whole_note_counts() {
        let (_temp, paths) = run_dir();
        let files = RunFiles::open_or_create(&paths).unwrap();
        let job = record().job;
        fs::create_dir(paths.path().join("skipped")).unwrap();
        for (text, meant) in [
            ("asked\n", Some(Skipped::Asked)),
            ("off\n", Some(Skipped::Off)),
            ("", None),
            ("asked", None),
            ("ask\n", None),
            ("asked \n", None),
            ("fail", None),
            ("fail disk fu", None),
            ("fail\n", None),
            ("something else\n", None),
            ("asked\nfail\n", None),
        ] {
            fs::write(paths.skipped(job), text).unwrap();
            assert_eq!(files.skipped(job), meant, "{text:?}");
        }
        let long = Skipped::Failed { on_error: OnError::Fail, why: "é".repeat(MAX_SENTENCE_BYTES) };
        files.write_skipped(job, &long).unwrap();
        assert!(matches!(files.skipped(job), Some(Skipped::Failed { on_error: OnError::Fail, .. })));
    }

    #[test]
    fn notes_and_reasons_survive() {
        let (_temp, paths) = run_dir();
        let files = RunFiles::open_or_create(&paths).unwrap();
        let job = record().job;
        assert_eq!((files.skipped(job), files.refused(job), files.endpoint()), (None, None, None));
        for skipped in [
            Skipped::Asked,
            Skipped::Failed { on_error: OnError::Fail, why: "no account is set".into() },
            Skipped::Failed { on_error: OnError::Continue, why: "x".into() },
        ] {
            files.write_skipped(job, &skipped).unwrap();
            assert_eq!(files.skipped(job), Some(skipped));
        }
        for (text, port) in [("9999\n", Some(9999)), ("0", None), ("", None), ("99999", None), ("x", None)] {
            fs::write(paths.endpoint(), text).unwrap();
            assert_eq!(files.endpoint(), port, "{text}");
        }
        fs::create_dir(paths.job(job)).unwrap();
        assert!(files.is_first_notice(job) && !files.is_first_notice(job));
        fs::write(paths.job(job).join("refused"), "no role\n").unwrap();
        assert_eq!(files.refused(job).unwrap(), "no role");
    }
}
