//! A file that root owns and that one user may read: how a job gets its token as a file.
//!
//! A file that belongs to its reader could be made writable by that user, and be grown until the tmpfs is full, or be
//! mounted upon (fusermount asks for write access to the mount point), so that nobody could remove it. This one gives its
//! reader nothing but `r`, by an entry of its POSIX access ACL.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{OFlags, XattrFlags, fsetxattr};
use rustix::io::Errno;

/// Where the kernel keeps the ACL.
const ACCESS_ACL: &str = "system.posix_acl_access";

// linux/posix_acl_xattr.h and linux/posix_acl.h.
const VERSION: u32 = 2;
const READ: u16 = 4;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const UNDEFINED_ID: u32 = u32::MAX;

/// Writes `contents` to `path`, whole or not at all: the caller's own file, readable to `uid` besides. What was at `path`
/// is replaced. The directory must be one that only the caller may write to.
///
/// # Errors
/// A file operation failed, or the file system has no POSIX ACLs; then `path` is as it was.
pub fn write(path: &Path, contents: &[u8], uid: u32) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other("the path has no file name"))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = path.with_file_name(temporary);
    // Left by a process of the same number that was killed here.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = write_new(&temporary, contents, uid).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_new(path: &Path, contents: &[u8], uid: u32) -> io::Result<()> {
    let flags = i32::try_from(OFlags::NOFOLLOW.bits()).expect("a flag of open(2)");
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).custom_flags(flags).open(path)?;
    // Whatever the umask.
    file.set_permissions(fs::Permissions::from_mode(0o400))?;
    file.write_all(contents)?;
    let_read(&file, uid)
}

/// Gives `uid` read access. The mask that the kernel wants makes ls(1) show mode 0440 and a `+`; the group has nothing.
fn let_read(file: &File, uid: u32) -> io::Result<()> {
    fsetxattr(file, ACCESS_ACL, &acl(uid), XattrFlags::empty()).map_err(|error| match error {
        Errno::OPNOTSUPP => io::Error::new(io::ErrorKind::Unsupported, "the file system has no POSIX ACLs"),
        error => error.into(),
    })
}

/// `user::r--,user:UID:r--,group::---,mask::r--,other::---`, as the kernel reads it: little-endian, in this order.
fn acl(uid: u32) -> Vec<u8> {
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (USER_OBJ, READ, UNDEFINED_ID),
        (USER, READ, uid),
        (GROUP_OBJ, 0, UNDEFINED_ID),
        (MASK, READ, UNDEFINED_ID),
        (OTHER, 0, UNDEFINED_ID),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const READER: u32 = 1001;

    /// Whether a shell line succeeds as this user.
    fn sh(uid: u32, script: &str) -> bool {
        use std::os::unix::process::CommandExt;
        std::process::Command::new("sh").arg("-c").arg(script).uid(uid).gid(uid).output().unwrap().status.success()
    }

    #[test]
    #[cfg_attr(not(is_root), ignore = "gives a file to another uid: run this test as root")]
    fn its_reader_can_read_it_and_nothing_else() {
        let dir = tempfile::Builder::new().prefix("token-file-").tempdir_in("/dev/shm").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let path = dir.path().join("7");
        write(&path, b"old", READER).unwrap();
        write(&path, b"secret", READER).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o7777), (0, 0o440), "the mask stands where the group's bits are");
        let shown = path.display();
        assert!(sh(READER, &format!("[ \"$(cat {shown})\" = secret ]")));
        for attempt in [
            format!("echo more >> {shown}"),
            format!("chmod u+w {shown}"),
            format!("setfattr -x system.posix_acl_access {shown}"),
            format!("rm -f {shown}; ! [ -e {shown} ]"),
            format!("touch {}/other", dir.path().display()),
            format!("ls {}", dir.path().display()),
        ] {
            assert!(!sh(READER, &attempt), "{attempt}");
        }
        assert!(!sh(READER + 1, &format!("cat {shown}")), "another user reads it");
        assert_eq!(fs::read(&path).unwrap(), b"secret");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn what_cannot_be_put_in_place_leaves_nothing() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("7");
        fs::create_dir_all(path.join("in the way")).unwrap();
        assert!(write(&path, b"secret", READER).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write(Path::new("/proc/no/such"), b"secret", READER).is_err());
    }
}
