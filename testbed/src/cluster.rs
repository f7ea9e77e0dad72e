//! A whole cluster: brought up in a few seconds, torn down when dropped, and also when the program that owns it dies.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::deadline::wait_for;
use crate::host::Host;
use crate::host_init::HostSpec;
use crate::layout::Layout;
use crate::plan::{Plan, Programs};
use crate::pretend_aws::PretendAws;
use crate::slurm_daemons as daemons;
use crate::users::AsUser;
use crate::{database, host_etc, ours, people, slurm_files, software};

/// How long one daemon may take to be ready.
pub const START_LIMIT: Duration = Duration::from_secs(60);

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    plan: Plan,
    layout: Arc<Layout>,
    hosts: Vec<Host>,
    aws: Option<PretendAws>,
    keeper: Keeper,
}

/// The process that ends everything when its input does.
#[derive(Debug)]
struct Keeper(Child);

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

impl Cluster {
    /// Brings a cluster up. When this returns every node is idle, and everything of ours that the plan wants is ready.
    ///
    /// # Errors
    /// What did not start, with the last lines of every daemon's log.
    pub fn up(plan: Plan) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("a cluster of network namespaces needs root");
        }
        let started = Instant::now();
        let run = make_run_dir()?;
        // From there on the keeper removes it.
        let mut cluster = Self::lay_out(&run, plan).inspect_err(|_| drop(fs::remove_dir_all(&run)))?;
        let outcome = cluster.start_everything();
        if let Err(e) = outcome {
            bail!("the cluster did not come up: {e:#}\n{}", cluster.last_log_lines(15));
        }
        if std::env::var_os("CREDD_TESTBED_VERBOSE").is_some() {
            eprintln!("testbed: {} up in {:?}", cluster.run_dir().display(), started.elapsed());
        }
        Ok(cluster)
    }

    fn lay_out(run: &Path, plan: Plan) -> Result<Self> {
        let layout = Arc::new(Layout::create(run.to_path_buf(), plan.aws)?);
        slurm_files::write(&layout, &plan)?;
        let binds = install(&layout, &plan)?;
        let (keeper, hosts) = start_hosts(&layout, &plan, &binds)?;
        Ok(Cluster { plan, layout, hosts, aws: None, keeper })
    }

    fn start_everything(&mut self) -> Result<()> {
        self.connect()?;
        for host in &self.hosts {
            prepare_run(host)?;
            host.start(&daemons::munged(host))?;
        }
        let (head, plan) = (self.head().clone(), self.plan.clone());
        let aws_host = self.hosts.iter().find(|h| h.name == "aws").cloned();
        self.aws = std::thread::scope(|scope| -> Result<_> {
            let aws = aws_host.map(|host| {
                let roles = &plan.more_roles;
                scope.spawn(move || PretendAws::start(&host, roles))
            });
            let slurm = start_controller(&head, &plan);
            let aws = aws.map(|thread| thread.join().expect("no panic")).transpose()?;
            slurm.map(|()| aws)
        })?;
        if self.plan.backup_controller {
            self.on("backup").start(&daemons::slurmctld(self.on("backup")))?;
        }
        if !self.plan.bare {
            ours::start_credvend(self)?;
            for node in self.nodes() {
                ours::start_credd(self, node)?;
            }
        }
        for node in self.nodes() {
            node.start(&daemons::slurmd(node))?;
        }
        self.wait_idle()
    }

    /// Waits until every node is idle; gives up at once if a slurmd has ended.
    pub fn wait_idle(&self) -> Result<()> {
        let ended = wait_for("every node to be idle", START_LIMIT, || {
            let states = self.head().run_as_root("sinfo -h -N -p \"$(sinfo -h -o %R | head -1)\" -o %T");
            let idle = states.stdout.lines().filter(|line| *line == "idle").count();
            if idle == self.plan.nodes {
                return Some(None);
            }
            self.nodes().iter().find(|node| node.slurmd().ended().is_some()).map(|node| Some(node.name.clone()))
        })?;
        match ended {
            None => Ok(()),
            Some(node) => bail!("slurmd on {node} ended"),
        }
    }

    /// Puts other programs in place, as an upgrade does: the plugin takes effect with the next step, a daemon with its next
    /// start. Those that are not named are the ones that were built with the test.
    pub fn put_programs(&self, programs: &Programs) -> Result<()> {
        put_programs(&self.layout, programs)
    }

    /// Pulls a host's plug out of the network, for all but itself: to Slurm and credvend it is gone.
    pub fn unplug(&self, host: &str) -> Result<()> {
        self.head().ip_batch(&format!("link set to-{host} down\n"))
    }

    /// Plugs a host in again.
    pub fn plug_in(&self, host: &str) -> Result<()> {
        self.head().ip_batch(&format!("link set to-{host} up\n"))
    }

    /// Addresses, and a wire from every host to a bridge on the head. Nothing leaves these namespaces.
    fn connect(&self) -> Result<()> {
        let mut lines = String::from("link set lo up\nlink add br0 type bridge\n");
        for host in &self.hosts[1..] {
            let (name, pid) = (&host.name, host.pid);
            lines.push_str(&format!("link add to-{name} type veth peer name eth0 netns {pid}\n"));
            lines.push_str(&format!("link set to-{name} master br0 up\n"));
        }
        lines.push_str(&format!("addr add {}/16 dev br0\nlink set br0 up\n", slurm_files::HEAD));
        self.head().ip_batch(&lines)?;
        for host in &self.hosts[1..] {
            let address = &host.address;
            host.ip_batch(&format!("link set lo up\naddr add {address}/16 dev eth0\nlink set eth0 up\n"))?;
        }
        Ok(())
    }

    /// Its plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The run directory.
    pub fn run_dir(&self) -> &Path {
        &self.layout.run
    }

    /// The head: slurmctld, slurmdbd, credvend; also where users log in.
    pub fn head(&self) -> &Host {
        &self.hosts[0]
    }

    /// The compute nodes.
    pub fn nodes(&self) -> &[Host] {
        &self.hosts[self.hosts.len() - self.plan.nodes..]
    }

    /// Every host.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// A compute node.
    ///
    /// # Panics
    /// If there is none of that name.
    #[track_caller]
    pub fn node(&self, name: &str) -> &Host {
        self.nodes().iter().find(|n| n.name == name).unwrap_or_else(|| panic!("the cluster has no node {name}"))
    }

    /// Any host: `head`, `aws`, `n1`, …
    ///
    /// # Panics
    /// If there is none of that name.
    #[track_caller]
    pub fn on(&self, name: &str) -> &Host {
        self.hosts.iter().find(|h| h.name == name).unwrap_or_else(|| panic!("the cluster has no host {name}"))
    }

    /// A user logged in on the head.
    pub fn as_user(&self, name: &str) -> AsUser {
        AsUser::new(self.head().clone(), name)
    }

    /// The central service.
    pub fn credvend(&self) -> crate::daemon::Daemon {
        self.head().daemon("credvend")
    }

    /// Where the central service listens.
    pub fn credvend_url(&self) -> String {
        format!("https://{}:{}", slurm_files::HEAD, ours::CREDVEND_PORT)
    }

    /// The pin of its certificate, as it printed it: `sha256:` and 64 hex digits.
    pub fn credvend_pin(&self) -> Result<String> {
        ours::pin(self.head())
    }

    /// The controller.
    pub fn slurmctld(&self) -> crate::daemon::Daemon {
        self.head().daemon("slurmctld")
    }

    /// The pretend AWS.
    ///
    /// # Panics
    /// If the plan wants none.
    #[track_caller]
    pub fn aws(&self) -> &PretendAws {
        self.aws.as_ref().expect("the plan wants no AWS")
    }

    /// A node's state as Slurm has it (`idle`, `allocated`, `drained`, …).
    pub fn node_state(&self, node: &str) -> String {
        self.head()
            .run_as("root", &["sinfo", "-h", "-N", "-n", node, "-o", "%T"])
            .expect_ok()
            .lines()
            .next()
            .unwrap_or("")
            .into()
    }

    /// Checks the rule that nothing of ours ever drains a node.
    ///
    /// # Panics
    /// If a node is drained, draining, down or failing.
    #[track_caller]
    pub fn assert_nodes_healthy(&self) {
        for node in self.nodes() {
            let state = self.node_state(&node.name);
            let sick = ["drain", "down", "fail", "unk"].iter().any(|word| state.contains(word));
            assert!(!sick, "{} is {state}: {}", node.name, self.head().run_as_root("sinfo -R -h").stdout);
        }
    }

    /// The last lines of every daemon's log.
    pub fn last_log_lines(&self, count: usize) -> String {
        let mut logs: Vec<PathBuf> =
            fs::read_dir(self.layout.run.join("log")).into_iter().flatten().flatten().map(|e| e.path()).collect();
        logs.sort();
        let mut text = String::new();
        for path in logs {
            let all = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = all.lines().collect();
            text.push_str(&format!("--- {}\n", path.file_name().unwrap_or_default().to_string_lossy()));
            for line in &lines[lines.len().saturating_sub(count)..] {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }

    /// Prints the daemons' last log lines if the test panics while this is alive: `let _logs = cluster.logs_on_panic();`
    pub fn logs_on_panic(&self) -> LogsOnPanic<'_> {
        LogsOnPanic(self)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.last_log_lines(30));
        }
        // The keeper's own drop follows.
        let _ = &self.keeper;
    }
}

/// See [`Cluster::logs_on_panic`].
#[derive(Debug)]
pub struct LogsOnPanic<'a>(&'a Cluster);

impl Drop for LogsOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0.last_log_lines(30));
        }
    }
}

fn make_run_dir() -> Result<PathBuf> {
    let base = std::env::var_os("CREDD_TESTBED_DIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    fs::create_dir_all(&base)?;
    Ok(tempfile::Builder::new().prefix("credd-testbed-").tempdir_in(base)?.keep())
}

/// Puts programs into the run directory; says what hosts shall show in place of the machine's own files.
fn install(layout: &Layout, plan: &Plan) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut binds = vec![(host_etc::make(layout)?, PathBuf::from("/etc"))];
    if plan.aws {
        binds.push((software::python_environment()?, layout.run.join("venv")));
        software::install_aws_cli(layout)?;
    }
    if !plan.bare {
        put_programs(layout, &plan.programs)?;
    }
    Ok(binds)
}

/// Puts our programs where hosts run them; those that are not named are the ones that were built with the test.
fn put_programs(layout: &Layout, programs: &Programs) -> Result<()> {
    for (name, named) in [("credd", &programs.credd), ("credvend", &programs.credvend)] {
        let built = named.clone().map_or_else(|| software::program(name), Ok)?;
        software::take(&built, &layout.run.join("bin").join(name))?;
    }
    let plugin = programs.plugin.clone().map_or_else(software::plugin, Ok)?;
    software::take(&plugin, &layout.run.join("lib/spank_credd.so"))
}

fn start_hosts(layout: &Arc<Layout>, plan: &Plan, binds: &[(PathBuf, PathBuf)]) -> Result<(Keeper, Vec<Host>)> {
    let mut names = vec![("head".to_owned(), slurm_files::HEAD.to_owned())];
    if plan.aws {
        names.push(("aws".to_owned(), slurm_files::AWS.to_owned()));
    }
    if plan.backup_controller {
        names.push(("backup".to_owned(), slurm_files::BACKUP.to_owned()));
    }
    names.extend((1..).map(slurm_files::node_address).zip(plan.node_names()).map(|(address, name)| (name, address)));

    let mut specs = Vec::new();
    for (name, _) in &names {
        fs::create_dir_all(layout.host_dir(name))?;
        specs.push(HostSpec { name: name.clone(), socket: layout.init_socket(name), binds: binds.to_vec() });
    }
    let mut child = Command::new(software::program("testbed")?)
        .arg("keep")
        .arg(&layout.run)
        .arg(serde_json::to_string(&specs)?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Out of reach of ^C, which is for the program that owns the cluster.
        .process_group(0)
        .spawn()?;
    let lines = BufReader::new(child.stdout.take().context("piped")?);
    let keeper = Keeper(child);
    let mut hosts = Vec::new();
    for ((name, address), line) in names.clone().into_iter().zip(lines.lines()) {
        let line = line?;
        let pid = line.strip_prefix(&format!("{name} ")).with_context(|| format!("the keeper said {line:?}"))?;
        hosts.push(Host { name, address, pid: pid.parse()?, layout: layout.clone() });
    }
    if hosts.len() < names.len() {
        bail!("the hosts did not start; the reason stands above");
    }
    Ok((keeper, hosts))
}

/// Directories that tmpfiles.d makes on a real host.
fn prepare_run(host: &Host) -> Result<()> {
    for (dir, account) in [("munge", "munge"), ("slurm", "slurm"), ("mysqld", "mysql")] {
        let path = host.path(&format!("/run/{dir}"));
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        let (uid, gid) = people::ids_of(&host.layout.etc(), account)?;
        std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
    }
    Ok(())
}

fn start_controller(head: &Host, plan: &Plan) -> Result<()> {
    head.wait_unix(daemons::MUNGE_SOCKET, START_LIMIT)?;
    database::prepare(head, &plan.cluster_name)?;
    head.start(&daemons::mariadb(head, None))?;
    head.wait_unix(daemons::MARIADB_SOCKET, START_LIMIT)?;
    head.start(&daemons::slurmdbd(head))?;
    head.wait_tcp(daemons::SLURMDBD_PORT, START_LIMIT)?;
    head.layout.owned_dir("state", "slurm")?;
    head.start(&daemons::slurmctld(head))?;
    head.wait_tcp(daemons::SLURMCTLD_PORT, START_LIMIT)
}
