//! credvend: how many sessions it opens and closes durably in a second, and how many credentials it vends against an
//! STS that answers at once. Both over TLS on kept connections, as a head node and its jobs ask in the IAM
//! Credentials API (v1); nothing is attested.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::figure::Figure;
use crate::sample::Sample;
use crate::scratch::{self, Cpu, Process, command, free_port};
use crate::sts;
use crate::wrk::{self, Done, Load};

const SECRET: &str = "bench-head-secret-0123456789abcdef0123456789";
const CALLERS: [usize; 3] = [1, 16, 64];
const ROUNDS: usize = 3;
/// All callers come from one address. A quarter of this are for those who prove nothing but a session's token, as the GETs
/// do, and an eighth may be made anew each second: far more than the callers of any round.
const CONNECTIONS: u32 = 4096;
/// Durable pairs a second, whoever asks at the same time.
pub const PAIRS: f64 = 2000.0;
/// For so many seconds sessions are opened for the GETs of one round, and for so many they are asked for, each once: so
/// nothing is cached.
const OPENING: u32 = 4;
const ASKING: u32 = 1;

/// A credvend with one cluster whose head states its jobs.
pub struct Service {
    port: u16,
    /// What is its own.
    pub dir: PathBuf,
    /// The process.
    pub process: Process,
}

/// Measures both.
pub fn measure() -> Result<Vec<Figure>> {
    wrk::program()?;
    let service = start("credvend")?;
    let mut figures = Vec::new();
    for callers in CALLERS {
        let (mut rates, mut cpu) = (Sample::default(), Sample::default());
        for round in 0..ROUNDS {
            let before = processor_seconds(service.process.pid())?;
            let done = service.pairs(callers, &format!("p{callers}-{round}-"))?;
            // Two requests are a pair.
            rates.push(done.per_second / 2.0);
            cpu.push((processor_seconds(service.process.pid())? - before) * 2e6 / done.answers as f64);
        }
        let name = format!("durable open+close pairs, {callers} caller{}", if callers > 1 { "s" } else { "" });
        let figure = Figure::new(name, rates.median(), "/s");
        // One caller waits for the disk, twice.
        let figure = if callers > 1 { figure.at_least(PAIRS) } else { figure };
        figures.push(figure.detail(format!("{:.0} µs of credvend's processor time a pair", cpu.median())));
    }
    for callers in [16, 64] {
        let (mut rates, mut cpu) = (Sample::default(), Sample::default());
        for round in 0..ROUNDS {
            let list = service.open_many(&format!("g{callers}-{round}-"))?;
            let before = processor_seconds(service.process.pid())?;
            let done = service.gets(callers, &list)?;
            rates.push(done.per_second);
            cpu.push((processor_seconds(service.process.pid())? - before) * 1e6 / done.answers as f64);
        }
        figures.push(
            Figure::new(format!("GETs with an AssumeRole each, {callers} callers"), rates.median(), "/s").detail(
                format!("{:.0} µs of credvend's processor time each; every issuance is stored first", cpu.median()),
            ),
        );
    }
    figures.push(fsync(&service.dir)?);
    Ok(figures)
}

impl Service {
    fn load(&self, script: &str, text: &str, callers: usize, seconds: u32, arguments: Vec<String>) -> Result<Done> {
        let path = self.dir.join(script);
        fs::write(&path, text)?;
        let url = format!("https://127.0.0.1:{}/", self.port);
        let script = Some((&*path, arguments));
        wrk::run(&Load { url: &url, connections: callers, seconds, headers: &[], uid: None, script, cpu: Cpu::Any })
    }

    /// Opens and closes sessions for two seconds.
    pub fn pairs(&self, callers: usize, prefix: &str) -> Result<Done> {
        let arguments = vec![SECRET.to_owned(), prefix.to_owned(), (4 * callers).to_string()];
        let done = self.load("pairs.lua", include_str!("pairs.lua"), callers, 2, arguments)?;
        // On a busy machine a close may overtake the open of its session, and is refused.
        ensure!(done.refused * 1000 <= done.answers && done.broken == 0, "too much was refused: {done:?}");
        Ok(done)
    }

    /// Opens sessions for a few seconds, and leaves them open. Their ids and tokens are in the file.
    pub fn open_many(&self, prefix: &str) -> Result<PathBuf> {
        let list = self.dir.join(format!("{prefix}sessions"));
        let arguments = vec![SECRET.to_owned(), prefix.to_owned(), list.display().to_string()];
        self.load("opens.lua", include_str!("opens.lua"), 64, OPENING, arguments)?.expect_clean()?;
        Ok(list)
    }

    /// So many callers ask for the credentials of each listed session once.
    pub fn gets(&self, callers: usize, list: &Path) -> Result<Done> {
        self.gets_for(ASKING, callers, list)
    }

    /// The same for so many seconds at most.
    pub fn gets_for(&self, seconds: u32, callers: usize, list: &Path) -> Result<Done> {
        let arguments = vec![list.display().to_string()];
        let done = self.load("gets.lua", include_str!("gets.lua"), callers, seconds, arguments)?.expect_clean()?;
        let sessions = fs::read_to_string(list)?.lines().count();
        ensure!(done.answers <= sessions as u64, "{} GETs of {sessions} sessions: some were cached", done.answers);
        Ok(done)
    }
}

/// Starts one in a directory of this name.
pub fn start(name: &str) -> Result<Service> {
    start_with(name, "")
}

/// Starts one with this in its `[store]`; tables of DynamoDB are made.
pub fn start_with(name: &str, store: &str) -> Result<Service> {
    let dir = scratch::dir(name)?;
    let state = dir.join("state");
    fs::create_dir_all(&state)?;
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700))?;
    let port = free_port()?;
    let write = |name: &str, text: &str| -> Result<PathBuf> {
        let path = dir.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(path)
    };
    let secret = write("head-secret", &format!("{SECRET}\n"))?;
    let role = "arn:aws:iam::123456789012:role/projects/genomics";
    let projects = write("projects.toml", &format!("[projects.genomics]\nrole-arn = {role:?}\n"))?;
    let aws = sts::start()?;
    let config = write(
        "credvend.toml",
        &format!(
            "listen = [\"127.0.0.1:{port}\"]\nstate-dir = {state:?}\nadmin-socket = {admin:?}\nprojects = {projects:?}\n\
             [tls]\nnames = [\"localhost\"]\n[limits]\nmax-connections-per-address = {connections}\n[store]\n{store}\
             [sts]\nrate = 10000\nburst = 10000\n\
             [aws]\nregion = \"us-east-1\"\nsts-endpoint = \"http://{aws}\"\niam-endpoint = \"http://{aws}\"\n\
             [[cluster]]\nname = \"bench\"\nattest = \"head\"\nhead-secret-file = {secret:?}\n\
             [log]\nfilter = \"warn\"\n",
            admin = dir.join("admin.sock"),
            connections = CONNECTIONS,
        ),
    )?;
    let log = dir.join("credvend.log");
    if !store.is_empty() {
        let mut init = command(&testbed::software::program("credvend")?, Cpu::Any, None);
        init.arg("--config").arg(&config).args(["store", "init"]).env("HOME", &state);
        let made = init.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    let mut credvend = command(&testbed::software::program("credvend")?, Cpu::Any, None);
    credvend.arg("--config").arg(&config).arg("serve");
    credvend.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").env("HOME", &state);
    let mut process = Process::start(&mut credvend, &log)?;
    process.wait_ready(&log, || TcpStream::connect(("127.0.0.1", port)).is_ok())?;
    Ok(Service { port, dir, process })
}

/// What a process has used of the processors so far.
fn processor_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which may hold anything but a second `)`: state is the third field of all.
    let fields: Vec<&str> = stat.rsplit_once(')').context("a name")?.1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    // USER_HZ, the same on every Linux.
    Ok(ticks / 100.0)
}

/// What durability costs on this disk: one small append and its fsync.
fn fsync(dir: &Path) -> Result<Figure> {
    use std::io::Write;
    let mut file = fs::File::create(dir.join("fsync"))?;
    let mut times = Sample::default();
    for _ in 0..100 {
        file.write_all(&[0; 4096])?;
        let start = std::time::Instant::now();
        file.sync_data()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Figure::new("for comparison: one fdatasync of this disk", times.median(), "ms"))
}
