//! A job without Slurm, and a credd of canned answers, for tests.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use credd_protocol::fixtures;
use credd_protocol::record::{JobRecord, RunDir};
use slurm_spank::{Context, Environment, Error, Job, JobOption, Level, StepId, Used};

use crate::run_files::RunFiles;

/// Says what its fields say, remembers what it is told.
pub struct ScriptedJob {
    pub id: u32,
    pub uid: u32,
    pub step: StepId,
    pub node_index: u32,
    pub task_index: u32,
    pub environment: BTreeMap<String, Vec<u8>>,
    log: RefCell<Vec<(Level, String)>>,
}

impl ScriptedJob {
    pub fn new() -> Self {
        ScriptedJob {
            id: 12,
            uid: 1001,
            step: StepId::Batch,
            node_index: 0,
            task_index: 0,
            environment: BTreeMap::new(),
            log: RefCell::default(),
        }
    }

    /// All messages of a level, a line each.
    pub fn said(&self, level: Level) -> String {
        let log = self.log.borrow();
        log.iter().filter(|(l, _)| *l == level).map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n")
    }

    pub fn forget(&self) {
        self.log.borrow_mut().clear();
    }
}

impl Environment for ScriptedJob {
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.environment.get(name).cloned()
    }
    fn set(&mut self, name: &str, value: &[u8]) -> Result<(), Error> {
        self.environment.set(name, value)
    }
    fn unset(&mut self, name: &str) -> Result<(), Error> {
        self.environment.unset(name)
    }
}

impl Job for ScriptedJob {
    fn context(&self) -> Context {
        Context::Remote
    }
    fn id(&self) -> Result<u32, Error> {
        Ok(self.id)
    }
    fn uid(&self) -> Result<u32, Error> {
        Ok(self.uid)
    }
    fn gid(&self) -> Result<u32, Error> {
        Ok(1001)
    }
    fn step(&self) -> Result<StepId, Error> {
        Ok(self.step)
    }
    fn node_index(&self) -> Result<u32, Error> {
        Ok(self.node_index)
    }
    fn task_index(&self) -> Result<u32, Error> {
        Ok(self.task_index)
    }
    fn register(&mut self, _: &JobOption) -> Result<(), Error> {
        Ok(())
    }
    fn used(&mut self, _: &JobOption) -> Result<Option<Used>, Error> {
        Ok(None)
    }
    fn log(&self, level: Level, message: &str) {
        self.log.borrow_mut().push((level, message.to_owned()));
    }
}

/// An empty run directory.
pub fn run_dir() -> (tempfile::TempDir, RunDir) {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("run");
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    (temp, RunDir::new(path))
}

/// A run directory on a tmpfs without room for one byte more, which only this thread of `test` sees.
pub fn on_full_tmpfs(test: impl FnOnce(&RunDir, &RunFiles) + Send + 'static) {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    let alone = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let nothing: Option<&str> = None;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
        let (_temp, paths) = run_dir();
        mount(Some("full"), paths.path(), Some("tmpfs"), MsFlags::empty(), Some("mode=0755,size=64k")).unwrap();
        let files = RunFiles::open_or_create(&paths).unwrap();
        let mut filler = std::fs::File::create(paths.path().join("filler")).unwrap();
        while filler.write_all(&[b'x'; 4096]).is_ok() {}
        test(&paths, &files);
    });
    if let Err(panic) = alone.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The record of [`ScriptedJob::new`]'s job.
pub fn record() -> JobRecord {
    JobRecord { restart: 3, ..fixtures::record(12) }
}

/// What slurmctld hands a prolog for that job.
pub fn prolog_environment() -> BTreeMap<String, Vec<u8>> {
    [
        ("SLURM_JOB_ID", "12"),
        ("SLURM_JOB_UID", "1001"),
        ("SLURM_JOB_USER", "alice"),
        ("SLURM_JOB_ACCOUNT", "genomics"),
        ("SLURM_JOB_PARTITION", "batch"),
        ("SLURM_JOB_RESTART_COUNT", "1"),
        ("SLURM_CLUSTER_NAME", "lab"),
        ("SLURMD_NODENAME", "n1"),
        ("SLURM_NODELIST", "n[1-2]"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
    .collect()
}

/// A credd that gives these answers, one connection each; returns the requests it got.
pub fn answering(paths: &RunDir, answers: Vec<String>) -> JoinHandle<Vec<String>> {
    let listener = UnixListener::bind(paths.root_socket()).unwrap();
    std::thread::spawn(move || {
        let mut requests = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            requests.push(line.trim_end().to_owned());
            // The plugin need not be listening any more.
            let _ = stream.write_all(format!("{answer}\n").as_bytes());
        }
        requests
    })
}
