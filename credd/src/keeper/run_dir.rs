//! The run directory's layout and the files that the keeper writes into it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use credd_protocol::JobId;
use credd_protocol::handshake_ticket::HandshakeTicket;
use credd_protocol::record::RunDir;
use nix::fcntl::{Flock, FlockArg};

/// The file of [`ticket`].
const TICKET: &str = "handshake-ticket";

/// Makes the directories that are missing, and gives all of them the modes they must have.
///
/// # Errors
/// One of them is not a directory of ours, or cannot be made.
pub fn prepare(run_dir: &RunDir) -> io::Result<()> {
    // Job directories may be opened by nobody else; a token file is found by its name, never by listing.
    let layout = [(run_dir.path().to_owned(), 0o755), (run_dir.jobs(), 0o700), (run_dir.ended(), 0o700)];
    for (path, mode) in layout.into_iter().chain([(run_dir.tokens(), 0o711)]) {
        make(&path, mode).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    }
    Ok(())
}

fn make(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let meta = fs::symlink_metadata(path)?;
    if !meta.is_dir() {
        return Err(io::Error::other("it is not a directory"));
    }
    if meta.uid() != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::other(format!("it belongs to uid {}, not to credd's keeper", meta.uid())));
    }
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// What is being written is finished after this long.
const LEFT_OVER: Duration = Duration::from_secs(60);

/// Removes what nobody will finish or fetch: what a plugin that was killed left in `new/`, and the token files of jobs
/// that have no record any more. `tokens/` is listed and removed from by name alone: nothing in it is opened or followed.
///
/// # Errors
/// The directories cannot be read. What cannot be removed is left, and is of no use to anybody.
pub fn sweep(run_dir: &RunDir, now: SystemTime) -> io::Result<()> {
    let old = |meta: &fs::Metadata| {
        meta.modified().is_ok_and(|changed| now.duration_since(changed).is_ok_and(|age| age > LEFT_OVER))
    };
    for entry in listed(&run_dir.unfinished())? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path);
        if meta.as_ref().is_ok_and(|meta| meta.is_dir() && old(meta)) {
            let _ = fs::remove_dir_all(&path);
        } else if meta.as_ref().is_ok_and(old) {
            let _ = fs::remove_file(&path);
        }
    }
    for entry in listed(&run_dir.tokens())? {
        let entry = entry?;
        let job = entry.file_name().to_str().and_then(|name| name.parse::<JobId>().ok());
        let wanted = job.is_some_and(|job| fs::symlink_metadata(run_dir.job(job)).is_ok());
        // A young one may be of a job whose record is about to appear.
        if !wanted && fs::symlink_metadata(entry.path()).as_ref().is_ok_and(old) {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// The first entries of a directory; none if it is missing.
fn listed(path: &Path) -> io::Result<impl Iterator<Item = io::Result<fs::DirEntry>>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => Some(entries),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok(entries.into_iter().flatten().take(super::records::MAX_ENTRIES))
}

/// Whether what lies there stays in memory. On a disk, tokens would outlive the machine's power.
pub fn is_in_memory(run_dir: &RunDir) -> bool {
    use nix::sys::statfs::{TMPFS_MAGIC, statfs};
    statfs(run_dir.path()).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC)
}

/// Held as long as this keeper lives: two of them would take each other's sockets away.
///
/// # Errors
/// Another keeper holds it.
pub fn lock(run_dir: &RunDir) -> io::Result<Flock<File>> {
    let path = run_dir.path().join("keeper.lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC)
        .open(&path)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, _)| io::Error::other(format!("another credd runs here: it holds {}", path.display())))
}

/// Says that the endpoint is ours.
///
/// # Errors
/// The file system's.
pub fn write_endpoint(run_dir: &RunDir, port: u16) -> io::Result<()> {
    replace(&run_dir.endpoint(), 0o644, &port.to_string())
}

/// A new file takes the old one's place, so a reader sees one or the other, whole.
fn replace(path: &Path, mode: u32, line: &str) -> io::Result<()> {
    let temporary = path.with_extension("new");
    remove_if_there(&temporary)?;
    let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&temporary)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    writeln!(file, "{line}")?;
    fs::rename(&temporary, path)
}

/// Keeps the node's handshake ticket for the next credd.
///
/// # Errors
/// The file system's.
pub fn write_ticket(run_dir: &RunDir, ticket: &HandshakeTicket) -> io::Result<()> {
    replace(&run_dir.path().join(TICKET), 0o600, ticket.as_str())
}

/// The ticket that an earlier server process, or an earlier credd, was given.
pub fn ticket(run_dir: &RunDir) -> Option<HandshakeTicket> {
    fs::read_to_string(run_dir.path().join(TICKET)).ok()?.trim_end().parse().ok()
}

/// Says that it is not.
///
/// # Errors
/// The file system's.
pub fn remove_endpoint(run_dir: &RunDir) -> io::Result<()> {
    remove_if_there(&run_dir.endpoint())
}

/// Removes a file that may be missing.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_has_its_modes_whatever_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(dir.path().join("credd"));
        fs::create_dir(run_dir.path()).unwrap();
        fs::create_dir(run_dir.jobs()).unwrap();
        fs::set_permissions(run_dir.jobs(), Permissions::from_mode(0o777)).unwrap();
        prepare(&run_dir).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(run_dir.path()), 0o755);
        assert_eq!(mode(&run_dir.jobs()), 0o700);
        assert_eq!(mode(&run_dir.ended()), 0o700);
        assert_eq!(mode(&run_dir.tokens()), 0o711);
        fs::remove_dir(run_dir.jobs()).unwrap();
        std::os::unix::fs::symlink("/tmp", run_dir.jobs()).unwrap();
        assert!(prepare(&run_dir).unwrap_err().to_string().contains("not a directory"));
    }

    #[test]
    fn left_overs_are_swept_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(dir.path().join("credd"));
        let now = SystemTime::now();
        sweep(&run_dir, now).unwrap();
        prepare(&run_dir).unwrap();
        fs::create_dir_all(run_dir.unfinished().join("7.0f/x")).unwrap();
        fs::write(run_dir.unfinished().join("8.0e"), "fail disk").unwrap();
        let id = |id: u32| JobId::try_from(id).unwrap();
        fs::create_dir(run_dir.job(id(1))).unwrap();
        for job in [1, 2] {
            fs::write(run_dir.token_file(id(job)), "token").unwrap();
        }
        fs::write(run_dir.tokens().join(".2.99.new"), "tok").unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir_all(outside.join("x")).unwrap();
        std::os::unix::fs::symlink(&outside, run_dir.unfinished().join("link")).unwrap();
        let count = |path: &Path| fs::read_dir(path).unwrap().count();
        sweep(&run_dir, now).unwrap();
        assert_eq!((count(&run_dir.unfinished()), count(&run_dir.tokens())), (3, 3), "too young");
        sweep(&run_dir, now + LEFT_OVER * 2).unwrap();
        assert_eq!((count(&run_dir.unfinished()), count(&run_dir.tokens())), (0, 1));
        assert!(run_dir.token_file(id(1)).exists() && outside.join("x").exists());
    }

    #[test]
    fn a_ticket_is_kept_for_the_next_one_and_for_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(dir.path());
        assert_eq!(ticket(&run_dir), None);
        for bytes in [[1], [2]] {
            let given = HandshakeTicket::of(&bytes).unwrap();
            write_ticket(&run_dir, &given).unwrap();
            assert_eq!(ticket(&run_dir), Some(given));
        }
        assert_eq!(fs::metadata(dir.path().join(TICKET)).unwrap().mode() & 0o777, 0o600);
        fs::write(dir.path().join(TICKET), "damaged").unwrap();
        assert_eq!(ticket(&run_dir), None);
    }

    #[test]
    fn one_keeper_at_a_time_and_an_endpoint_file() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(dir.path());
        let held = lock(&run_dir).unwrap();
        assert!(lock(&run_dir).unwrap_err().to_string().contains("another credd"));
        drop(held);
        lock(&run_dir).unwrap();
        write_endpoint(&run_dir, 9999).unwrap();
        write_endpoint(&run_dir, 9998).unwrap();
        assert_eq!(fs::read_to_string(run_dir.endpoint()).unwrap(), "9998\n");
        assert_eq!(fs::metadata(run_dir.endpoint()).unwrap().mode() & 0o777, 0o644);
        remove_endpoint(&run_dir).unwrap();
        remove_endpoint(&run_dir).unwrap();
    }
}
