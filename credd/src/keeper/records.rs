//! The job records on disk: read with suspicion, one bad record never in the way of another.
//!
//! Only root can write below `jobs/` and `ended/`, and still: a directory that is not root's alone, a record that is
//! no plain file, too long, or of another job is refused with a line in the log, and left where it is for the admin.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use credd_protocol::late::{LateRecord, MAX_LATE_BYTES};
use credd_protocol::record::{JobRecord, MAX_RECORD_BYTES, RunDir, RunNames, file};
use credd_protocol::{JobId, SessionId, Uid};
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg, OFlag, RenameFlags, open, openat, renameat, renameat2};
use nix::sys::stat::{Mode, fchmod, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use zeroize::Zeroizing;

use crate::control::{Job, LateJob, RunId};

/// Directories looked at, in each of `jobs/` and `ended/`. A node runs some thousand jobs at most.
pub const MAX_ENTRIES: usize = 32_768;

/// The longest session or refusal that is read back.
const MAX_NOTE_BYTES: u64 = 4096;

/// A job's directory with a record in order.
#[derive(Debug, Clone)]
pub struct Found {
    /// The directory.
    pub path: PathBuf,
    /// What the server is told.
    pub job: Job,
    /// Since when it is as it is: for an ended job, about when it ended.
    pub changed: SystemTime,
    /// What else of it only the keeper needs.
    pub traits: Traits,
}

/// What a job's directory says of the run besides its record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traits {
    /// By Slurm's word the run is over ([`file::OVER`]).
    pub over: bool,
    /// Its record is a completed late one.
    pub was_late: bool,
    /// When the plugin made the record, in seconds since 1970.
    pub created: u64,
}

/// A job's directory with a late record in order, and no other.
#[derive(Debug, Clone)]
pub struct FoundLate {
    /// The directory.
    pub path: PathBuf,
    /// What the server is told.
    pub job: LateJob,
    /// When the plugin made the record, in seconds since 1970.
    pub created: u64,
}

/// One look at `jobs/` or `ended/`.
#[derive(Debug, Default)]
pub struct Look {
    /// The records in order.
    pub found: Vec<Found>,
    /// The late records in order that are not completed.
    pub late: Vec<FoundLate>,
    /// The others, with what is wrong.
    pub refused: Vec<(PathBuf, String)>,
}

/// Why a directory is not served.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is no record: the plugin is at work, or the job has just ended.
    #[error("it has no record")]
    NoRecord,
    /// Something is wrong with it; a sentence.
    #[error("{0}")]
    Wrong(String),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound { Refused::NoRecord } else { Refused::Wrong(error.to_string()) }
    }
}

impl From<nix::Error> for Refused {
    fn from(error: nix::Error) -> Self {
        io::Error::from(error).into()
    }
}

/// Reads every record below `parent`, which is `jobs/` or, with `ended`, `ended/`.
///
/// # Errors
/// The directory itself cannot be read: nothing is known then, and nothing may be concluded.
pub fn look(parent: &Path, ended: bool) -> io::Result<Look> {
    let mut look = Look::default();
    for (count, entry) in fs::read_dir(parent)?.enumerate() {
        let path = entry?.path();
        if count >= MAX_ENTRIES {
            look.refused.push((parent.to_owned(), format!("more than {MAX_ENTRIES} entries: the rest is ignored")));
            break;
        }
        look.put(path, ended);
    }
    Ok(look)
}

/// Looks at one job only: its directory below `jobs/`, and those of its ended runs.
///
/// # Errors
/// As [`look`].
pub fn look_at(run_dir: &RunDir, job: JobId) -> io::Result<(Look, Look)> {
    let mut running = Look::default();
    running.put(run_dir.job(job), false);
    let mut ended = Look::default();
    let prefix = format!("{job}.");
    for entry in fs::read_dir(run_dir.ended())?.take(MAX_ENTRIES) {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
            ended.put(entry.path(), true);
        }
    }
    Ok((running, ended))
}

impl Look {
    fn put(&mut self, path: PathBuf, ended: bool) {
        let late = match read(&path, ended) {
            Ok(found) => return self.found.push(found),
            Err(Refused::NoRecord) => read_late(&path, ended),
            Err(refused) => Err(refused),
        };
        match late {
            Ok(late) => self.late.push(late),
            Err(Refused::NoRecord) => {}
            Err(Refused::Wrong(why)) => self.refused.push((path, why)),
        }
    }
}

/// Reads one job's directory.
///
/// # Errors
/// [`Refused`].
pub fn read(path: &Path, ended: bool) -> Result<Found, Refused> {
    let named = named(path, ended)?;
    let directory = open_directory(path)?;
    let (record, changed) = read_record(&directory)?;
    check(named, record.job, record.uid)?;
    let session = read_note(&directory, file::SESSION)?.and_then(|text| text.trim().parse::<SessionId>().ok());
    let refused = read_note(&directory, file::REFUSED)?;
    let names = RunNames::from_json(&read_note(&directory, file::NAMES)?.unwrap_or_default());
    let traits = Traits {
        over: is_there(&directory, file::OVER),
        // The keeper may have been killed before it renamed the late record.
        was_late: is_there(&directory, file::WAS_LATE) || is_there(&directory, file::LATE),
        created: record.created,
    };
    let token = record.token.hash();
    let job = Job {
        run: RunId::of(token),
        job: record.job,
        restart: record.restart,
        cluster: record.cluster.clone(),
        node: record.node.clone(),
        user: record.user.clone(),
        uid: record.uid,
        account: record.account.clone(),
        partition: record.partition.clone(),
        first_node: record.first_node,
        sluid: names.sluid,
        het_leader: names.het_leader,
        token,
        options: record.options.clone(),
        session,
        refused,
        ended,
    };
    Ok(Found { path: path.to_owned(), job, changed, traits })
}

/// Reads one job's directory that has a late record and no other.
///
/// # Errors
/// [`Refused`].
pub fn read_late(path: &Path, ended: bool) -> Result<FoundLate, Refused> {
    let named = named(path, ended)?;
    let directory = open_directory(path)?;
    let record = late_record(&directory)?;
    check(named, record.job, record.uid)?;
    let token = record.token.hash();
    let refused = read_note(&directory, file::REFUSED)?;
    let job = LateJob { run: RunId::of(token), job: record.job, uid: record.uid, token, refused };
    Ok(FoundLate { path: path.to_owned(), job, created: record.created })
}

/// The late record of this run.
///
/// # Errors
/// [`Refused::NoRecord`] if the directory is of another run, or gone.
pub fn late_record_of(path: &Path, run: &RunId) -> Result<LateRecord, Refused> {
    let record = late_record(&open_directory(path)?)?;
    if RunId::of(record.token.hash()) == *run { Ok(record) } else { Err(Refused::NoRecord) }
}

/// Puts this run's record in the place of its late one.
///
/// # Errors
/// As [`write_note`].
pub fn complete(path: &Path, record: &JobRecord) -> Result<(), Refused> {
    let run = RunId::of(record.token.hash());
    let directory = open_directory(path)?;
    if run_of(&directory)? != run {
        return Err(Refused::NoRecord);
    }
    replace(&directory, file::RECORD, &Zeroizing::new(record.to_json()))?;
    // Where both are, the record counts.
    match renameat(&directory, file::LATE, &directory, file::WAS_LATE) {
        Err(error) if error != nix::Error::ENOENT => Err(error.into()),
        _ => Ok(()),
    }
}

/// Whether a step of the run lives: each holds a shared lock on its job's directory, which the kernel releases when its
/// slurmstepd is gone. Where that cannot be found out, one may.
pub fn has_steps(path: &Path, run: &RunId) -> bool {
    let Ok(directory) = open_directory(path) else { return true };
    if !run_of(&directory).is_ok_and(|of| of == *run) {
        return true;
    }
    // Released at once.
    Flock::lock(directory, FlockArg::LockExclusiveNonblock).is_err()
}

/// The job that a directory's name names.
fn named(path: &Path, ended: bool) -> Result<JobId, Refused> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    job_of_name(name, ended).ok_or_else(|| Refused::Wrong("its name names no job".to_owned()))
}

fn check(named: JobId, job: JobId, uid: Uid) -> Result<(), Refused> {
    if job != named {
        return Err(Refused::Wrong(format!("its record is of job {job}")));
    }
    if uid.0 == u32::MAX {
        return Err(Refused::Wrong("its record has the uid that stands for nobody".to_owned()));
    }
    Ok(())
}

/// Leaves a note (`session`, `refused`) in the directory of this run, and of no other run of the same job: the
/// directory may be moved and another one take its place at any time.
///
/// # Errors
/// [`Refused::NoRecord`] if the directory is of another run, or gone.
pub fn write_note(path: &Path, run: &RunId, name: &str, text: &str) -> Result<(), Refused> {
    let directory = open_directory(path)?;
    if run_of(&directory)? != *run {
        return Err(Refused::NoRecord);
    }
    let mut end = text.len().min(MAX_NOTE_BYTES as usize);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    replace(&directory, name, &text.as_bytes()[..end])
}

/// A file of root's alone in a job's directory, whole or not at all.
fn replace(directory: &OwnedFd, name: &str, bytes: &[u8]) -> Result<(), Refused> {
    let temporary = format!(".{name}.new");
    match unlinkat(directory, temporary.as_str(), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(nix::Error::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(directory, temporary.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
    fchmod(&file, Mode::S_IRUSR | Mode::S_IWUSR)?;
    File::from(file).write_all(bytes)?;
    renameat(directory, temporary.as_str(), directory, name)?;
    Ok(())
}

/// Moves the directory of a run among the ended ones, as its epilog would have. One that is another run's by now is left
/// alone.
///
/// # Errors
/// [`Refused::NoRecord`]: it is gone. [`Refused::Wrong`]: it could not be moved.
pub fn end(path: &Path, ended: &Path, run: &RunId) -> Result<(), Refused> {
    let directory = open_directory(path)?;
    let of = run_of(&directory)?;
    if of != *run {
        return Err(Refused::NoRecord);
    }
    move_away(&directory, path, ended)
}

/// Renames `path`, which `directory` was opened by. A name could have been given to another directory meanwhile (the epilog
/// moves one away, a prolog puts another in its place): then that one is put back.
fn move_away(directory: &OwnedFd, path: &Path, to: &Path) -> Result<(), Refused> {
    fs::rename(path, to)?;
    let (meant, moved) = (fstat(directory)?, fstatat(AT_FDCWD, to, AtFlags::AT_SYMLINK_NOFOLLOW)?);
    if (meant.st_dev, meant.st_ino) == (moved.st_dev, moved.st_ino) {
        return Ok(());
    }
    renameat2(AT_FDCWD, to, AT_FDCWD, path, RenameFlags::RENAME_NOREPLACE).map_err(|error| {
        Refused::Wrong(format!("another run's directory was moved and could not be put back: {error}"))
    })?;
    Err(Refused::NoRecord)
}

/// Removes the directory of an ended run. One that is gone, or is another run's by now, is left alone.
///
/// # Errors
/// [`Refused::Wrong`]: it could not be removed.
pub fn remove(path: &Path, run: &RunId) -> Result<(), Refused> {
    let directory = match open_directory(path) {
        Err(Refused::NoRecord) => return Ok(()),
        directory => directory?,
    };
    if !run_of(&directory).is_ok_and(|of| of == *run) {
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let name = CString::new(entry?.file_name().into_encoded_bytes()).map_err(io::Error::other)?;
        unlinkat(&directory, name.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
    }
    fs::remove_dir(path)?;
    Ok(())
}

/// `ID` below `jobs/`, `ID.RESTART.NONCE` below `ended/`.
fn job_of_name(name: &str, ended: bool) -> Option<JobId> {
    let mut parts = name.split('.');
    let id = parts.next()?;
    let job: JobId = id.parse().ok()?;
    // 007 would be another name for job 7.
    let canonical = job.to_string() == id;
    (canonical && parts.next().is_some() == ended).then_some(job)
}

/// What only root may have touched, as the open descriptor says: a name could be exchanged.
fn open_directory(path: &Path) -> Result<OwnedFd, Refused> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let directory = match open(path, flags, Mode::empty()) {
        Err(nix::Error::ENOTDIR | nix::Error::ELOOP) => {
            return Err(Refused::Wrong("it is no directory".to_owned()));
        }
        directory => directory?,
    };
    check_owner(&directory, "it")?;
    Ok(directory)
}

fn open_file(directory: &OwnedFd, name: &str) -> Result<File, Refused> {
    // O_NONBLOCK: nobody waits for the other end of a FIFO.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let opened = match openat(directory.as_fd(), name, flags, Mode::empty()) {
        Err(nix::Error::ELOOP | nix::Error::ENXIO) => {
            return Err(Refused::Wrong(format!("its {name} is no plain file")));
        }
        opened => File::from(opened?),
    };
    let meta = opened.metadata()?;
    if !meta.is_file() {
        return Err(Refused::Wrong(format!("its {name} is no plain file")));
    }
    check_owner(&opened, &format!("its {name}"))?;
    Ok(opened)
}

fn check_owner(file: &impl AsFd, what: &str) -> Result<(), Refused> {
    let stat = nix::sys::stat::fstat(file)?;
    if stat.st_uid != nix::unistd::geteuid().as_raw() {
        return Err(Refused::Wrong(format!("{what} belongs to uid {}, not to root", stat.st_uid)));
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(Refused::Wrong(format!("{what} can be changed by others (mode {:o})", stat.st_mode & 0o7777)));
    }
    Ok(())
}

fn read_record(directory: &OwnedFd) -> Result<(JobRecord, SystemTime), Refused> {
    let file = open_file(directory, file::RECORD)?;
    let meta = file.metadata()?;
    if meta.mode() & 0o077 != 0 {
        return Err(Refused::Wrong(format!("its record can be read by others (mode {:o})", meta.mode() & 0o7777)));
    }
    let bytes = read_bounded(file, MAX_RECORD_BYTES)?;
    let record = JobRecord::from_json(&bytes).map_err(|error| Refused::Wrong(error.to_string()))?;
    // rename(2) touches the ctime of the directory that it moves.
    let stat = nix::sys::stat::fstat(directory)?;
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(stat.st_ctime.try_into().unwrap_or(0));
    Ok((record, changed))
}

fn late_record(directory: &OwnedFd) -> Result<LateRecord, Refused> {
    let file = open_file(directory, file::LATE)?;
    if file.metadata()?.mode() & 0o077 != 0 {
        return Err(Refused::Wrong("its late record can be read by others".to_owned()));
    }
    LateRecord::from_bytes(&read_bounded(file, MAX_LATE_BYTES)?).map_err(|error| Refused::Wrong(error.to_string()))
}

/// The run whose directory it is.
fn run_of(directory: &OwnedFd) -> Result<RunId, Refused> {
    let token = match read_record(directory) {
        Ok((record, _)) => record.token.hash(),
        Err(Refused::NoRecord) => late_record(directory)?.token.hash(),
        Err(refused) => return Err(refused),
    };
    Ok(RunId::of(token))
}

fn is_there(directory: &OwnedFd, name: &str) -> bool {
    fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
}

fn read_note(directory: &OwnedFd, name: &str) -> Result<Option<String>, Refused> {
    match open_file(directory, name) {
        Ok(file) => {
            let bytes = read_bounded(file, MAX_NOTE_BYTES)?;
            Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
        }
        Err(Refused::NoRecord) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The buffer has its final size from the start: a growing one would leave copies of a token in memory.
fn read_bounded(file: File, max: u64) -> Result<Zeroizing<Vec<u8>>, Refused> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(max as usize + 64));
    file.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(Refused::Wrong(format!("a file in it is longer than {max} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
pub mod tests;
