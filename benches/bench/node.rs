//! A node in small: munged with a key of its own, the pretend credvend, records of jobs, and the real credd over them.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use credd_protocol::record::{JobOptions, JobRecord, RunDir, file};
use credd_protocol::{JobId, JobToken, Uid, endpoint};

use crate::scratch::{self, Cpu, Process, command, free_port};
use crate::vending_api;

/// Its cluster's name.
pub const CLUSTER: &str = "bench";
/// The uid of its jobs: no account of the machine is needed.
pub const JOB_UID: u32 = 61_001;

/// A running credd.
pub struct Node {
    /// Where jobs ask.
    pub port: u16,
    /// Its jobs.
    pub jobs: Vec<Job>,
    /// Where its files are.
    pub dir: PathBuf,
    keeper: Process,
    _munged: Process,
    _tmpfs: Tmpfs,
}

/// What a job finds in its environment.
pub struct Job {
    /// Path and query of the URL.
    pub path: String,
    /// Its token.
    pub token: String,
}

/// The run directory lies in memory, as on a node.
struct Tmpfs(PathBuf);

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

impl Node {
    /// Brings one up with this many running jobs.
    pub fn up(name: &str, jobs: u32, cpu: Cpu) -> Result<Self> {
        let dir = scratch::dir(name)?;
        let run = dir.join("run");
        fs::create_dir_all(&run)?;
        let tmpfs = mount_tmpfs(&run)?;
        let run_dir = RunDir::new(&run);
        let jobs = (1..=jobs).map(|id| write_record(&run_dir, id)).collect::<Result<Vec<_>>>()?;

        let (munged, socket) = start_munged(&dir)?;
        let port = free_port()?;
        let config = dir.join("credd.toml");
        fs::write(
            &config,
            format!(
                "cluster = {CLUSTER:?}\nnode = \"n1\"\nrun-dir = {run:?}\nuser = \"nobody\"\n\
                 [credvend]\nurl = \"http://{}\"\n[munge]\nsocket = {socket:?}\n\
                 [http]\nlisten = \"127.0.0.1:{port}\"\n[log]\nlevel = \"warn\"\n",
                vending_api::start()?,
            ),
        )?;
        let log = dir.join("credd.log");
        let program = testbed::software::program("credd")?;
        let mut credd = command(&program, cpu, None);
        // As packaging/systemd/credd.service starts it.
        credd.env("MALLOC_ARENA_MAX", "1").env("MALLOC_TRIM_THRESHOLD_", "65536");
        let mut keeper = Process::start(credd.arg("run").arg("--config").arg(&config), &log)?;
        let endpoint = run_dir.endpoint();
        keeper.wait_ready(&log, || endpoint.exists() && UnixStream::connect(run_dir.root_socket()).is_ok())?;
        Ok(Node { port, jobs, dir, keeper, _munged: munged, _tmpfs: tmpfs })
    }

    /// The keeper's process.
    pub fn keeper(&self) -> u32 {
        self.keeper.pid()
    }

    /// The server's process.
    pub fn server(&self) -> Result<u32> {
        scratch::children_of(self.keeper()).first().copied().context("credd has no server process")
    }

    /// The URL of a job.
    pub fn url(&self, job: &Job) -> String {
        format!("http://127.0.0.1:{}{}", self.port, job.path)
    }
}

fn mount_tmpfs(at: &Path) -> Result<Tmpfs> {
    use nix::mount::{MsFlags, mount};
    mount(Some("credd-bench"), at, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755,size=64m"))
        .with_context(|| format!("mount a tmpfs on {}", at.display()))?;
    Ok(Tmpfs(at.to_owned()))
}

fn write_record(run_dir: &RunDir, id: u32) -> Result<Job> {
    let job = JobId::try_from(id).context("a job id")?;
    let record = JobRecord {
        version: JobRecord::VERSION,
        job,
        restart: 0,
        cluster: CLUSTER.parse()?,
        node: "n1".parse()?,
        user: "alice".parse()?,
        uid: Uid(JOB_UID),
        gid: JOB_UID,
        account: Some("genomics".parse()?),
        partition: "batch".parse()?,
        first_node: true,
        created: std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs(),
        token: JobToken::mint()?,
        options: JobOptions::default(),
    };
    let dir = run_dir.job(job);
    fs::create_dir_all(&dir)?;
    for private in [run_dir.jobs(), dir.clone()] {
        fs::set_permissions(private, fs::Permissions::from_mode(0o700))?;
    }
    let path = dir.join(file::RECORD);
    fs::write(&path, record.to_json())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    let url = endpoint::full_uri(1, job, &record.cluster, record.account.as_ref(), &record.user, &record.node);
    let path = url.strip_prefix("http://127.0.0.1:1").context("the endpoint's form")?.to_owned();
    Ok(Job { path, token: record.token.expose().to_owned() })
}

fn start_munged(dir: &Path) -> Result<(Process, PathBuf)> {
    let mut key = [0u8; 64];
    fs::File::open("/dev/urandom")?.read_exact(&mut key)?;
    let path = |name: &str| dir.join(name);
    fs::write(path("munge.key"), key)?;
    fs::set_permissions(path("munge.key"), fs::Permissions::from_mode(0o600))?;
    let mut munged = command(Path::new("munged"), Cpu::Any, None);
    munged.args(["--foreground", "--force"]);
    for (option, name) in [("key", "munge.key"), ("pid", "munge.pid"), ("log", "munge.log"), ("seed", "munge.seed")] {
        munged.arg(format!("--{option}-file={}", path(name).display()));
    }
    let socket = path("munge.socket");
    munged.arg(format!("--socket={}", socket.display()));
    let log = path("munged.out");
    let mut munged = Process::start(&mut munged, &log)?;
    munged.wait_ready(&log, || UnixStream::connect(&socket).is_ok())?;
    Ok((munged, socket))
}
