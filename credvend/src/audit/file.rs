//! The file that lines go to.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::disk;

/// What the writer writes to; tests have one that fills up.
pub trait Medium: Send {
    /// Appends what it can; how many bytes.
    ///
    /// # Errors
    /// The system's.
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// To the disk.
    ///
    /// # Errors
    /// The system's.
    fn sync(&mut self) -> io::Result<()>;

    /// Whether the path names another file by now, or none: it was rotated or removed.
    fn is_elsewhere(&self) -> bool;

    /// Opens the path anew. On an error the file opened before stays.
    ///
    /// # Errors
    /// As [`LogFile::open`].
    fn reopen(&mut self) -> io::Result<()>;
}

/// An open file, appended to.
pub struct LogFile {
    file: File,
    path: PathBuf,
    identity: (u64, u64),
}

impl LogFile {
    /// Opens or makes it: mode 0600, never through a symbolic link. A line that a crash cut is ended, so that the next one
    /// begins on its own.
    ///
    /// # Errors
    /// Not a regular file, another's, readable by everybody or writable by others, or the system's reason.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let open = |read| {
            OpenOptions::new().append(true).read(read).create(true).mode(0o600).custom_flags(flags.bits()).open(path)
        };
        // Reading is for the last byte alone; where only appending is allowed, that does.
        let mut file = open(true).or_else(|_| open(false))?;
        let metadata = file.metadata()?;
        sound(&metadata).map_err(io::Error::other)?;
        let own = nix::unistd::geteuid();
        if metadata.uid() != own.as_raw() && metadata.uid() != 0 {
            return Err(io::Error::other(format!("it belongs to uid {}, not to credvend's {own}", metadata.uid())));
        }
        if metadata.len() > 0 && cut(&mut file) {
            file.write_all(b"\n")?;
        }
        Ok(LogFile { file, path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) })
    }
}

/// What is wrong with a file for a log of this kind, whoever it belongs to.
fn sound(metadata: &Metadata) -> Result<(), String> {
    if !metadata.is_file() {
        return Err("it is not a regular file".into());
    }
    if metadata.nlink() > 1 {
        return Err("it has other names (hard links)".into());
    }
    if metadata.mode() & 0o027 != 0 {
        return Err(format!(
            "others may use it (mode {:o}): at most its group may read it, chmod 0600 or 0640",
            metadata.mode() & 0o7777
        ));
    }
    Ok(())
}

/// Whether [`LogFile::open`] would take this path, as far as that can be told without making or changing anything.
///
/// # Errors
/// Why not.
pub fn check(path: &Path) -> Result<(), String> {
    let there = match std::fs::symlink_metadata(path) {
        Ok(metadata) => {
            sound(&metadata)?;
            path
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => match path.parent() {
            Some(directory) if !directory.is_dir() => {
                return Err(format!("{} is not a directory", directory.display()));
            }
            Some(directory) => directory,
            None => return Ok(()),
        },
        Err(error) => return Err(error.to_string()),
    };
    disk::why_not_writable(there).map_or(Ok(()), Err)
}

impl Medium for LogFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn is_elsewhere(&self) -> bool {
        match std::fs::symlink_metadata(&self.path) {
            Ok(there) => (there.dev(), there.ino()) != self.identity,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        *self = LogFile::open(&self.path)?;
        Ok(())
    }
}

/// Whether the last line has no end.
fn cut(file: &mut File) -> bool {
    let mut last = [b'\n'];
    file.seek(SeekFrom::End(-1)).and_then(|_| file.read_exact(&mut last)).is_ok_and(|()| last[0] != b'\n')
}
