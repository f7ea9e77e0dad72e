//! Whether this process can tell a group's members from others.
//!
//! In a user namespace of its own (`PrivateUsers=yes` of systemd.exec(5), which a site may add to the unit) all users and
//! groups except root and credvend's own look the same, and no file can be given to any of them.

use nix::unistd::{Gid, Group};

/// Why this process cannot tell the members of `admin-group` from others, if it cannot.
pub fn hidden(group: &str) -> Option<String> {
    let gid = Group::from_name(group).ok().flatten()?.gid;
    let map = std::fs::read_to_string("/proc/self/gid_map").ok()?;
    (!has(&map, gid)).then(|| {
        format!(
            "admin-group {group:?} is not in force: the unit hides who is at the admin socket. Set PrivateUsers=no in its \
             [Service] part (systemctl edit credvend), and restart it"
        )
    })
}

/// Whether a map of user_namespaces(7) has the group: lines of the first id inside, the first outside, and how many.
fn has(map: &str, gid: Gid) -> bool {
    map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        matches!(numbers[..], [first, _, count] if (first..first + count).contains(&u64::from(gid.as_raw())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_hidden_where_the_namespace_does_not_have_it() {
        let whole = "         0          0 4294967295\n";
        let private = "         0          0          1\n       998        998          1\n";
        let gid = Gid::from_raw;
        assert!(has(whole, gid(990)) && has(private, gid(998)) && has(private, gid(0)));
        assert!(!has(private, gid(990)) && !has(private, gid(999)) && !has("", gid(0)));
        assert_eq!(hidden("root"), None, "it is in every namespace");
        assert_eq!(hidden("no such group"), None, "that is told elsewhere");
    }
}
