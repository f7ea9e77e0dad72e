//! The administrators' socket: who may connect to it, and who is at the other end.

use std::ffi::CString;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::{Gid, Group, Uid, User, getegid, getgroups};
use tokio::net::{UnixListener, UnixStream};

use super::connections::ConnectionLimits;
use super::listen::{accept_failed, http};
use super::{Connection, Server};

/// The group of `admin-group`, if a process of `user` can give the socket to it: without privileges one gives a file only
/// to a group that one is in.
///
/// # Errors
/// There is no such group, or the user is not in it; with the command that mends it.
pub fn admin_group(name: &str, user: Uid) -> Result<Gid, String> {
    let found =
        Group::from_name(name).map_err(|error| format!("admin-group: {name:?} cannot be looked up: {error}"))?;
    let Some(group) = found else {
        return Err(format!(
            "admin-group: there is no group {name:?}; make it (groupadd --system {name}), or leave it out"
        ));
    };
    if user.is_root() {
        return Ok(group.gid);
    }
    let listed = User::from_uid(user).ok().flatten();
    let member = listed.as_ref().is_some_and(|user| user.gid == group.gid || in_group(user, group.gid));
    // What this very process may do counts for itself, whatever the user database says now.
    let own = user == Uid::effective();
    let has = own && (getegid() == group.gid || getgroups().is_ok_and(|groups| groups.contains(&group.gid)));
    if has || (member && !own) {
        return Ok(group.gid);
    }
    let who = listed.map_or_else(|| format!("uid {user}"), |user| user.name);
    Err(if member {
        format!(
            "admin-group: {who} was put into group {name} after this process began, so the admin socket cannot be given to \
             it yet; start this anew (systemctl restart credvend)"
        )
    } else {
        format!(
            "admin-group: credvend runs as {who}, who is not in group {name} and so cannot give it the admin socket: \
             `usermod --append --groups {name} {who}`, then start credvend anew"
        )
    })
}

/// The administrators' socket. Its file goes when the service ends.
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    group: Option<Gid>,
}

impl AdminSocket {
    /// Binds `path`, for root, this process's own user, and the members of `group`.
    ///
    /// # Errors
    /// A path that is something else, a service that already listens there, a group that it cannot be given to.
    pub fn bind(path: &Path, group: Option<&str>) -> io::Result<Self> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("admin-socket {}: {error}", path.display()));
        let group = group.map(|name| admin_group(name, Uid::effective())).transpose().map_err(io::Error::other)?;
        if let Ok(metadata) = std::fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(named(io::Error::other("there is something else at this path")));
            }
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(named(io::Error::other("another credvend listens there")));
            }
            std::fs::remove_file(path).map_err(named)?;
        }
        // The caller's umask keeps everybody out until the mode is set.
        let listener = UnixListener::bind(path).map_err(named)?;
        if let Some(group) = group {
            nix::unistd::chown(path, None, Some(group)).map_err(|e| named(e.into()))?;
        }
        let mode = if group.is_some() { 0o660 } else { 0o600 };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(named)?;
        Ok(AdminSocket { listener, path: path.to_owned(), group })
    }

    /// Serves it until the service stops.
    pub async fn serve(self, server: Arc<Server>, limits: Arc<ConnectionLimits>) {
        let mut stopping = server.stopping.clone();
        loop {
            let accepted = tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    accept_failed(&error).await;
                    continue;
                }
            };
            let Ok(place) = limits.enter(IpAddr::from([0, 0, 0, 0])).map(Arc::new) else { continue };
            // Whoever may not use it is sent away before anything is read.
            place.authenticated();
            let (server, group) = (server.clone(), self.group);
            tokio::spawn(async move {
                match admin_caller(&stream, group).await {
                    Ok(name) => {
                        if let Err(error) = http(server, stream, Connection::AdminSocket { name }, place).await {
                            tracing::debug!(%error, "admin connection ended");
                        }
                    }
                    Err(why) => tracing::warn!(why, "a caller of the admin socket was refused"),
                }
            });
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Who is at the other end, if they may administer.
async fn admin_caller(stream: &UnixStream, group: Option<Gid>) -> Result<String, String> {
    let credentials = stream.peer_cred().map_err(|e| format!("its kernel credentials cannot be read: {e}"))?;
    let (uid, gid) = (Uid::from_raw(credentials.uid()), Gid::from_raw(credentials.gid()));
    // Directory services may be slow to answer.
    let look = tokio::task::spawn_blocking(move || {
        let user = User::from_uid(uid).ok().flatten();
        let allowed = uid.is_root()
            || uid == Uid::effective()
            || group.is_some_and(|group| group == gid || user.as_ref().is_some_and(|user| in_group(user, group)));
        let name = user.map_or_else(|| format!("uid {uid}"), |user| user.name);
        if allowed { Ok(name) } else { Err(format!("{name:?} (uid {uid}) is neither root nor in admin-group")) }
    });
    look.await.unwrap_or_else(|_| Err("its user cannot be looked up".into()))
}

fn in_group(user: &User, group: Gid) -> bool {
    let Ok(name) = CString::new(user.name.as_str()) else { return false };
    nix::unistd::getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_bound_once_and_a_stale_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = AdminSocket::bind(&path, None).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(AdminSocket::bind(&path, None).is_err());
        drop(first);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        AdminSocket::bind(&path, None).unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(AdminSocket::bind(&file, None).is_err() && file.exists());
        assert!(AdminSocket::bind(&path, Some("no-such-group-here")).is_err());
    }
}
