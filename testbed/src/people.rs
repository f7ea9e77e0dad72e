//! Who exists on the test hosts: the machine's own accounts, four users, and our daemons' accounts. They stand in
//! copies of `passwd` and `group` that only the test hosts see, in an `/etc` of their own ([`crate::host_etc`]).

use std::fs;
use std::io;
use std::path::Path;

/// A login user of the cluster.
#[derive(Debug, Clone, Copy)]
pub struct User {
    /// Login name.
    pub name: &'static str,
    /// uid and gid.
    pub uid: u32,
    /// Slurm accounts, which are the projects; the first one is the default.
    pub accounts: &'static [&'static str],
}

/// The users. `bobby` and `bob-by` are there because `bob` is a part of those names; all three have the project `shared`,
/// and so its role.
pub const USERS: [User; 4] = [
    User { name: "alice", uid: 5001, accounts: &["genomics", "shared", "locked", "unmapped"] },
    User { name: "bob", uid: 5002, accounts: &["climate", "shared"] },
    User { name: "bobby", uid: 5003, accounts: &["genomics", "shared"] },
    User { name: "bob-by", uid: 5004, accounts: &["shared"] },
];

/// Every Slurm account. `locked` has a role that does not trust credvend, `unmapped` has none.
pub const ACCOUNTS: [&str; 5] = ["genomics", "climate", "shared", "locked", "unmapped"];

/// The accounts with a role and a bucket of their own.
pub const PROJECTS: [&str; 3] = ["genomics", "climate", "shared"];

/// The accounts that our daemons run as.
pub const DAEMONS: [(&str, u32); 2] = [("credd", 5901), ("credvend", 5902)];

/// Writes `passwd`, `group` and `nsswitch.conf` into `etc`, and the users' home directories into `home`.
pub fn write(etc: &Path, home: &Path) -> io::Result<()> {
    let mut passwd = without_ours(&fs::read_to_string("/etc/passwd")?);
    let mut group = without_ours(&fs::read_to_string("/etc/group")?);
    for user in USERS {
        let (name, id) = (user.name, user.uid);
        let dir = home.join(name);
        fs::create_dir_all(&dir)?;
        std::os::unix::fs::chown(&dir, Some(id), Some(id))?;
        passwd.push_str(&format!("{name}:x:{id}:{id}::{}:/bin/bash\n", dir.display()));
        group.push_str(&format!("{name}:x:{id}:\n"));
    }
    for (name, id) in DAEMONS {
        passwd.push_str(&format!("{name}:x:{id}:{id}::/nonexistent:/usr/sbin/nologin\n"));
        group.push_str(&format!("{name}:x:{id}:\n"));
    }
    fs::write(etc.join("passwd"), passwd)?;
    fs::write(etc.join("group"), group)?;
    fs::write(etc.join("nsswitch.conf"), "passwd: files\ngroup: files\nshadow: files\nhosts: files\nservices: files\n")
}

/// The uid of a user, of a daemon, or of an account of the machine.
pub fn ids_of(etc: &Path, name: &str) -> io::Result<(u32, u32)> {
    let passwd = fs::read_to_string(etc.join("passwd"))?;
    let found = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then_some(())?;
        Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    found.ok_or_else(|| io::Error::other(format!("there is no account {name:?} on this machine")))
}

/// The machine's own lines, less those that would clash with ours by name or number.
fn without_ours(lines: &str) -> String {
    let names: Vec<&str> = USERS.iter().map(|u| u.name).chain(DAEMONS.iter().map(|d| d.0)).collect();
    let ids: Vec<String> =
        USERS.iter().map(|u| u.uid).chain(DAEMONS.iter().map(|d| d.1)).map(|id| id.to_string()).collect();
    let mut kept = String::new();
    for line in lines.lines() {
        let mut fields = line.split(':');
        let (name, id) = (fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default());
        if !names.contains(&name) && !ids.iter().any(|ours| ours == id) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clashing_lines_of_the_machine_are_left_out() {
        let machine = "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\neve:x:5001:1::/:/bin/sh\n";
        assert_eq!(without_ours(machine), "root:x:0:0:root:/root:/bin/sh\n");
    }
}
