//! The accounting database: a private MariaDB whose data directory, with Slurm's tables, accounts and users in it, is
//! made once and then copied.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::host::Host;
use crate::layout::Layout;
use crate::people;
use crate::slurm_daemons as daemons;
use crate::software::{self, cached, run};

/// Raised when what the template holds changes.
const FORMAT: u32 = 2;
const FIRST_START: Duration = Duration::from_secs(120);

/// Puts a data directory in place. The first time, this starts and stops the daemons on `head` to make the template.
pub fn prepare(head: &Host, cluster: &str) -> Result<()> {
    let data = head.layout.owned_dir("db", "mysql")?;
    let key = software::key(&format!("{FORMAT} {:?} {:?} {cluster} {}", people::USERS, people::ACCOUNTS, versions()));
    let template = cached(&format!("accounting-{key}"), |fresh| make_template(head, &data, cluster, fresh))?;
    let _ = fs::remove_dir_all(&data);
    copy(&template.join("db"), &data)
}

/// Which MariaDB and slurmdbd these are: another version would convert its data at every start.
fn versions() -> String {
    let changed = |program: &&str| fs::metadata(program).and_then(|meta| Ok((meta.len(), meta.modified()?)));
    format!("{:?}", ["/usr/sbin/mariadbd", "/usr/sbin/slurmdbd"].iter().map(|p| changed(p).ok()).collect::<Vec<_>>())
}

fn make_template(head: &Host, data: &Path, cluster: &str, fresh: &Path) -> Result<()> {
    eprintln!("testbed: making the accounting database (once)");
    run(Command::new("mariadb-install-db")
        .args([
            "--no-defaults",
            "--user=mysql",
            "--auth-root-authentication-method=socket",
            "--skip-test-db",
            "--skip-name-resolve",
        ])
        .args(daemons::MARIADB_SIZES)
        .arg(format!("--datadir={}", data.display())))?;
    let sql = head.layout.run.join("etc/accounting.sql");
    fs::write(
        &sql,
        "CREATE DATABASE slurm_acct_db;\n\
         CREATE USER slurm@localhost IDENTIFIED VIA unix_socket;\n\
         GRANT ALL ON slurm_acct_db.* TO slurm@localhost;\n",
    )?;
    head.start(&daemons::mariadb(head, Some(&sql)))?;
    head.wait_unix(daemons::MARIADB_SOCKET, FIRST_START)?;
    head.start(&daemons::slurmdbd(head))?;
    head.wait_tcp(daemons::SLURMDBD_PORT, FIRST_START)?;

    let mut orders = vec![format!("add cluster {cluster}")];
    for account in people::ACCOUNTS {
        orders.push(format!("add account {account} Cluster={cluster} Description={account} Organization=lab"));
    }
    for user in people::USERS {
        let default = user.accounts[0];
        for account in user.accounts {
            orders.push(format!("add user {} Account={account} DefaultAccount={default} Cluster={cluster}", user.name));
        }
    }
    for order in orders {
        let done = head.run_as_root(&format!("sacctmgr -i -Q {order}"));
        if !done.ok() {
            bail!("{done:?}");
        }
    }
    head.daemon("slurmdbd").stop()?;
    head.daemon("mariadbd").stop()?;
    copy(data, &fresh.join("db"))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").args(["-a", "--reflink=auto", "--sparse=always"]).arg(from).arg(to))
}

impl Layout {
    /// The database's data directory.
    pub(crate) fn database(&self) -> std::path::PathBuf {
        self.run.join("db")
    }
}
