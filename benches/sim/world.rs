//! One credvend over TLS, and all nodes, each with a certificate of its own: credvend knows them by it. MUNGE would prove no
//! more here, where one munged would sign for all.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use credd::server::simulated::Node;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

use crate::run::{BY_JOB, Plan};
use crate::slurm::{Job, Slurm};
use crate::sts::Sts;

pub const CLUSTER: &str = "sim";
/// The large job's project and user; the others are `beside1`, `beside2`, …
pub const HERD: &str = "herd";
const UID: u32 = 62_000;
/// Nodes that come up at the same time.
const AT_ONCE: usize = 100;
const PATIENCE: Duration = Duration::from_secs(120);

/// See the module.
pub struct World {
    pub nodes: Vec<Rc<Node>>,
    pub slurm: Slurm,
    pub sts: Sts,
    _credvend: Credvend,
    _dir: Dir,
}

impl World {
    /// Starts it all, and waits until every node that has a stream has heard hello.
    pub async fn start(plan: &Plan, template: &str, rate: u32) -> Result<Self> {
        let dir = Dir::new()?;
        let (state, bin) = (dir.make("state")?, dir.make("bin")?);
        let names: Vec<String> = (1..=plan.nodes).map(name_of).collect();
        let slurm = Slurm::new(&bin, &jobs(plan), &names)?;
        let sts = Sts::start(plan.throttle)?;

        let mut params = CertificateParams::new(vec!["authority".to_owned()])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let client_ca = dir.write("ca.pem", &authority.pem())?;
        let mut projects = String::new();
        for project in projects_of(plan) {
            projects.push_str(&format!(
                "[projects.{project}]\nrole-arn = \"arn:aws:iam::123456789012:role/sim/{project}\"\n"
            ));
        }
        let (projects, admin) = (dir.write("projects.toml", &projects)?, dir.path().join("admin.sock"));
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        // By default a job of more than 256 nodes has one name; smaller simulations need a smaller bound for the same.
        let names_up_to = if template == BY_JOB { 256.min(plan.nodes - 1) } else { 100_000 };
        let aws = sts.address();
        let config = dir.write(
            "credvend.toml",
            &format!(
                "listen = [\"127.0.0.1:{port}\"]\nstate-dir = {state:?}\nadmin-socket = {admin:?}\nprojects = {projects:?}\n\
                 node-names-up-to = {names_up_to}\n\
                 [tls]\nnames = [\"localhost\"]\nclient-ca = {client_ca:?}\n\
                 [limits]\nmax-connections = 100000\nmax-connections-per-address = 100000\n\
                 [aws]\nregion = \"us-east-1\"\nsts-endpoint = \"http://{aws}\"\niam-endpoint = \"http://{aws}\"\n\
                 [sts]\nrate = {rate}\n\
                 [[cluster]]\nname = {CLUSTER:?}\nslurm-bin = {bin:?}\nnode-address-check = \"require\"\n\
                 [log]\nfilter = \"warn\"\n",
            ),
        )?;
        let mut credvend = Credvend::start(&config, &dir, &state)?;
        let pin = credvend.ready(port, &admin).await?;

        let url = format!("https://127.0.0.1:{port}");
        let mut nodes: Vec<Rc<Node>> = Vec::with_capacity(names.len());
        let streams = plan.streams() as usize;
        for (at, name) in names.iter().enumerate() {
            let (certificate, key) = certificate(&authority, name)?;
            let (certificate, key) = (dir.write("node.crt", &certificate)?, dir.write("node.key", &key)?);
            let text = format!(
                "cluster = {CLUSTER:?}\n[credvend]\nurl = {url:?}\npin = {pin:?}\ncertificate = {certificate:?}\nkey = {key:?}\n"
            );
            let config = credd::config::parse(&text).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
            nodes.push(Rc::new(if at < streams { Node::start(&config)? } else { Node::start_deaf(&config)? }));
            // Not all at once: their streams would time out where both ends share two processors.
            if at % AT_ONCE == AT_ONCE - 1 || at + 1 == names.len() {
                let listening = &nodes[..nodes.len().min(streams)];
                until("the nodes listen", || listening.iter().all(|node| node.listens())).await?;
            }
        }
        Ok(World { nodes, slurm, sts, _credvend: credvend, _dir: dir })
    }
}

pub fn name_of(number: u32) -> String {
    format!("n{number:05}")
}

pub fn beside(project: u32) -> String {
    format!("beside{project}")
}

fn projects_of(plan: &Plan) -> Vec<String> {
    (1..=plan.beside).map(beside).chain([HERD.to_owned()]).collect()
}

/// The number of the large job, of its first run or the one with prefetch.
pub fn herd_job(prefetch: bool) -> u32 {
    1 + u32::from(prefetch)
}

/// The number of a project's small job.
pub fn beside_job(project: u32, wave: u32, prefetch: bool) -> u32 {
    1000 * (1 + 2 * project + u32::from(prefetch)) + wave
}

pub fn uid_of(project: u32) -> u32 {
    UID + project
}

/// All jobs of the whole simulation: to Slurm they run from its beginning.
fn jobs(plan: &Plan) -> Vec<Job> {
    let mut jobs = Vec::new();
    for prefetch in [false, true] {
        jobs.push(Job {
            id: herd_job(prefetch),
            uid: uid_of(0),
            user: HERD.into(),
            account: HERD.into(),
            nodes: format!("n[00001-{:05}]", plan.nodes),
        });
        for project in 1..=plan.beside {
            jobs.extend((0..plan.waves).map(|wave| Job {
                id: beside_job(project, wave, prefetch),
                uid: uid_of(project),
                user: beside(project),
                account: beside(project),
                nodes: name_of(project),
            }));
        }
    }
    jobs
}

fn certificate(authority: &CertifiedIssuer<'static, KeyPair>, node: &str) -> Result<(String, String)> {
    let mut params = CertificateParams::new(vec!["node".to_owned()])?;
    params.subject_alt_names.push(SanType::URI(format!("credd:node:{CLUSTER}:{node}").try_into()?));
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, authority)?.pem(), key.serialize_pem()))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        ensure!(Instant::now() < deadline, "never within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// A directory that goes away when this is dropped.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Result<Self> {
        let unique = format!("credd-sim-{}-{}", std::process::id(), Instant::now().elapsed().as_nanos());
        let path = std::env::temp_dir().join(unique);
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        Ok(Dir(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn make(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        fs::create_dir(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        Ok(path)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The process; ended when this is dropped.
struct Credvend {
    child: Child,
    log: PathBuf,
}

impl Credvend {
    fn start(config: &Path, dir: &Dir, home: &Path) -> Result<Self> {
        let log = dir.path().join("credvend.log");
        let file = fs::File::create(&log)?;
        let mut command = Command::new("setpriv");
        // It ends with this program, whatever ends that.
        command.args(["--pdeathsig", "TERM"]).arg(testbed::software::program("credvend")?);
        command.arg("--config").arg(config).arg("serve").stdin(Stdio::null());
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").env("HOME", home);
        let child = command.stdout(file.try_clone()?).stderr(file).spawn().context("credvend")?;
        Ok(Credvend { child, log })
    }

    /// Waits until it serves; its pin.
    async fn ready(&mut self, port: u16, admin: &Path) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = fs::read_to_string(&self.log).unwrap_or_default();
            if let Some(status) = self.child.try_wait()? {
                bail!("credvend ended ({status}): {said}");
            }
            let pin = said.split_whitespace().find(|word| word.starts_with("sha256:"));
            let serves = std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
                && std::os::unix::net::UnixStream::connect(admin).is_ok();
            if let (Some(pin), true) = (pin, serves) {
                return Ok(pin.to_owned());
            }
            ensure!(Instant::now() < deadline, "credvend does not serve: {said}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Credvend {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let _ = kill(pid, Signal::SIGTERM);
        let ended = || matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)).then_some(());
        if testbed::wait_for("credvend to end", Duration::from_secs(10), ended).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::env::var_os("SIM_SHOW_LOG").is_some() {
            eprintln!("{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}
