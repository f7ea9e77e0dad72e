//! Where things are under the run directory, and what a user's login environment holds.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::people;

/// The endpoint that stands for AWS, as every host reaches it.
pub const AWS_ENDPOINT: &str = "http://10.77.0.2:4566";
/// The region that everything uses.
pub const REGION: &str = "us-east-1";

/// The places of one cluster.
#[derive(Debug)]
pub struct Layout {
    /// The run directory; everything is under it.
    pub run: PathBuf,
    /// Whether there is a pretend AWS.
    pub aws: bool,
}

impl Layout {
    /// Makes the directories that hosts share.
    pub fn create(run: PathBuf, aws: bool) -> io::Result<Self> {
        let layout = Layout { run, aws };
        // Users of the cluster must get to their homes and to slurm.conf.
        fs::set_permissions(&layout.run, Permissions::from_mode(0o755))?;
        for dir in ["etc/slurm", "home", "bin", "lib", "venv", "spool", "hosts", "log"] {
            fs::create_dir_all(layout.run.join(dir))?;
        }
        for private in ["hosts", "log"] {
            fs::set_permissions(layout.run.join(private), Permissions::from_mode(0o700))?;
        }
        people::write(&layout.etc(), &layout.run.join("home"))?;
        Ok(layout)
    }

    /// Files that stand for the hosts' `/etc`.
    pub fn etc(&self) -> PathBuf {
        self.run.join("etc")
    }

    /// The cluster's `slurm.conf`.
    pub fn slurm_conf(&self) -> PathBuf {
        self.etc().join("slurm/slurm.conf")
    }

    /// A directory of the run directory, owned by an account and closed to others.
    pub fn owned_dir(&self, name: &str, account: &str) -> io::Result<PathBuf> {
        let dir = self.run.join(name);
        fs::create_dir_all(&dir)?;
        fs::set_permissions(&dir, Permissions::from_mode(0o700))?;
        self.give(&dir, account)?;
        Ok(dir)
    }

    /// Makes an account the owner of a file.
    pub fn give(&self, path: &Path, account: &str) -> io::Result<()> {
        let (uid, gid) = people::ids_of(&self.etc(), account)?;
        chown(path, Some(uid), Some(gid))
    }

    pub(crate) fn host_dir(&self, host: &str) -> PathBuf {
        self.run.join("hosts").join(host)
    }

    pub(crate) fn init_socket(&self, host: &str) -> PathBuf {
        self.host_dir(host).join("init.sock")
    }

    pub(crate) fn service_file(&self, host: &str, service: &str) -> PathBuf {
        self.host_dir(host).join(format!("{service}.service.json"))
    }

    pub(crate) fn log(&self, host: &str, daemon: &str) -> PathBuf {
        self.run.join("log").join(format!("{host}.{daemon}.log"))
    }

    /// A user's home directory.
    pub fn home_of(&self, user: &str) -> PathBuf {
        if people::USERS.iter().any(|u| u.name == user) { self.run.join("home").join(user) } else { "/".into() }
    }

    /// What a login gives a user. The AWS endpoint stands for the real AWS, which needs none; no credentials are here.
    pub fn login_environment(&self, user: &str) -> Vec<(String, String)> {
        let run = self.run.display();
        let mut environment = vec![
            ("PATH", format!("{run}/bin:{run}/venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin")),
            ("HOME", self.home_of(user).display().to_string()),
            ("USER", user.to_owned()),
            ("LOGNAME", user.to_owned()),
            ("SHELL", "/bin/bash".to_owned()),
            ("LANG", "C.UTF-8".to_owned()),
            ("SLURM_CONF", self.slurm_conf().display().to_string()),
        ];
        if user == "root" {
            let config = self.etc().join("credvend/credvend.toml");
            environment.push(("CREDVEND_CONFIG", config.display().to_string()));
        }
        if self.aws {
            environment.push(("AWS_ENDPOINT_URL", AWS_ENDPOINT.to_owned()));
            environment.push(("AWS_DEFAULT_REGION", REGION.to_owned()));
        }
        environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}
