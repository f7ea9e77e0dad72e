//! How MUNGE's, MariaDB's and Slurm's daemons are started.

use std::path::Path;

use crate::host::Host;
use crate::init_protocol::Service;

/// MariaDB's socket on the head.
pub const MARIADB_SOCKET: &str = "/run/mysqld/mysqld.sock";
/// MUNGE's usual socket, on every host.
pub const MUNGE_SOCKET: &str = "/run/munge/munge.socket.2";
/// slurmdbd's port.
pub const SLURMDBD_PORT: u16 = 6819;
/// slurmctld's port.
pub const SLURMCTLD_PORT: u16 = 6817;
/// slurmd's port.
pub const SLURMD_PORT: u16 = 6818;

/// Small files: a data directory is copied for each cluster.
pub const MARIADB_SIZES: [&str; 2] = ["--innodb-log-file-size=8M", "--innodb-buffer-pool-size=32M"];

/// A service whose environment is that of a root login.
pub fn service(host: &Host, name: &str, argv: Vec<String>) -> Service {
    Service {
        name: name.to_owned(),
        argv,
        env: host.layout.login_environment("root"),
        log: host.log_path(name),
        listeners: Vec::new(),
    }
}

/// Prefixes a command with what makes it run as an account.
pub fn as_account(account: &str, argv: &[&str]) -> Vec<String> {
    let mut all = vec!["setpriv".to_owned(), format!("--reuid={account}"), format!("--regid={account}")];
    all.push("--init-groups".to_owned());
    all.extend(argv.iter().map(|&word| word.to_owned()));
    all
}

/// munged with the cluster's key.
pub fn munged(host: &Host) -> Service {
    let key = format!("--key-file={}", host.layout.etc().join("munge.key").display());
    let argv = [
        "munged",
        "--foreground",
        &key,
        &format!("--socket={MUNGE_SOCKET}"),
        "--pid-file=/run/munge/munged.pid",
        "--seed-file=/run/munge/munged.seed",
    ];
    service(host, "munged", as_account("munge", &argv))
}

/// MariaDB on a Unix socket alone. What a crash would lose does not matter here, so nothing is flushed. It names its
/// temporary tables by its process id, which is the same in the process namespace of every head: in a directory that
/// several clusters share, one removes another's, and that one crashes.
pub fn mariadb(host: &Host, init_file: Option<&Path>) -> Service {
    let data = format!("--datadir={}", host.layout.database().display());
    let socket = format!("--socket={MARIADB_SOCKET}");
    let mut argv = vec![
        "mariadbd",
        "--no-defaults",
        "--skip-networking",
        "--skip-name-resolve",
        "--performance-schema=OFF",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-flush-method=nosync",
        "--innodb-buffer-pool-load-at-startup=OFF",
        "--innodb-lock-wait-timeout=900",
        "--pid-file=/run/mysqld/mysqld.pid",
        &data,
        &socket,
        "--tmpdir=/run/mysqld",
    ];
    argv.extend(MARIADB_SIZES);
    let init = init_file.map(|file| format!("--init-file={}", file.display()));
    argv.extend(init.as_deref());
    service(host, "mariadbd", as_account("mysql", &argv))
}

/// slurmdbd in the foreground.
pub fn slurmdbd(host: &Host) -> Service {
    service(host, "slurmdbd", as_account("slurm", &["slurmdbd", "-D"]))
}

/// slurmctld in the foreground.
pub fn slurmctld(host: &Host) -> Service {
    service(host, "slurmctld", as_account("slurm", &["slurmctld", "-D"]))
}

/// slurmd in the foreground, as root. It is named, since the machine's host name may be spelled otherwise somewhere.
pub fn slurmd(host: &Host) -> Service {
    let argv = ["slurmd", "-D", "-N", host.name()];
    service(host, "slurmd", argv.iter().map(|&word| word.to_owned()).collect())
}
