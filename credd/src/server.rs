//! The server process: HTTP for the jobs, the users' socket, the cache, and the way to credvend. It has no powers.
//!
//! One thread, one [`Server`] that all tasks share. [`cache`], [`freshness`], [`gate`] and [`jobs`] decide and do no I/O;
//! [`session`], [`vend`] and [`news`] carry out; [`http`], [`users`], [`keeper`] and [`credvend`] are the four faces.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use peer::CgroupId;
use tokio::io::BufReader;
use tokio::sync::{Notify, Semaphore, mpsc};

use crate::config::Config;
use crate::control::{ToKeeper, ToServer};
use crate::{logging, sandbox};

mod answer;
mod backoff;
mod cache;
mod clock;
mod credvend;
mod denials;
mod freshness;
mod gate;
mod http;
mod jobs;
mod keeper;
mod last_asked;
mod late;
mod metrics;
mod newcomer;
mod news;
mod no_own_job;
mod own;
mod proof;
mod refusals;
mod session;
mod settings;
pub mod simulated;
mod status;
mod trouble;
mod users;
mod vend;
mod watch;
mod whois;

pub(crate) use credvend::tls;

#[cfg(test)]
mod tests;

/// The sockets that the keeper hands over, bound and listening.
#[derive(Debug)]
pub struct Listeners {
    /// For the jobs' SDKs: `[http] listen`.
    pub http: TcpListener,
    /// For `credd status` of ordinary users.
    pub user: UnixListener,
}

/// How long a stop waits for answers under way.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// What all tasks share.
struct Server {
    settings: settings::InForce,
    keeper: Rc<keeper::Keeper>,
    credvend: credvend::Credvend,
    clock: Rc<dyn clock::Clock>,
    dice: Rc<dyn clock::Dice>,
    whois: Box<dyn whois::WhoIs>,
    hosts: gate::Hosts,
    jobs: RefCell<jobs::Jobs>,
    late: RefCell<late::Late>,
    cache: RefCell<cache::Cache>,
    loads: RefCell<HashMap<u32, Rc<Load>>>,
    denials: RefCell<denials::DenialLog>,
    news: news::News,
    /// The cache has changed: when to renew next may have, too.
    look: Notify,
    /// Ends told to credvend at a time.
    leaving: Semaphore,
    /// The connections of the endpoint, and those of the users' socket.
    watch: Rc<watch::Watch>,
    user_watch: Rc<watch::Watch>,
    metrics: metrics::Metrics,
}

/// What one user has of this process right now.
#[derive(Debug)]
struct Load {
    endpoint: Rc<watch::Holder>,
    user_socket: Rc<watch::Holder>,
    waiting: Cell<usize>,
    /// Only one of its processes at a time is looked for in the cgroups.
    searching: tokio::sync::Mutex<()>,
    /// Cgroups that were found to be of no job, the latest ones.
    outside_jobs: RefCell<VecDeque<CgroupId>>,
}

/// Cgroups of no job that are remembered of one user: one for each ssh session.
const MAX_OUTSIDE_JOBS: usize = 32;

impl Load {
    fn of(uid: u32) -> Rc<Self> {
        let holder = || watch::Holder::new(uid);
        Rc::new(Load {
            endpoint: holder(),
            user_socket: holder(),
            waiting: Cell::default(),
            searching: tokio::sync::Mutex::default(),
            outside_jobs: RefCell::default(),
        })
    }

    /// A cgroup is of no job. The oldest one that is remembered makes room.
    fn note_outside_jobs(&self, cgroup: CgroupId) {
        let mut outside = self.outside_jobs.borrow_mut();
        if outside.len() >= MAX_OUTSIDE_JOBS {
            outside.pop_front();
        }
        outside.push_back(cgroup);
    }
}

/// One more of something, until dropped.
struct Counted<'a>(&'a Cell<usize>);

impl<'a> Counted<'a> {
    /// `None` if there are `most` already.
    fn one(cell: &'a Cell<usize>, most: usize) -> Option<Self> {
        (cell.get() < most).then(|| {
            cell.set(cell.get() + 1);
            Counted(cell)
        })
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// What tests replace.
struct World {
    clock: Rc<dyn clock::Clock>,
    dice: Rc<dyn clock::Dice>,
    whois: Box<dyn whois::WhoIs>,
}

impl World {
    /// The real one, which this process can no longer leave.
    fn real() -> anyhow::Result<Self> {
        let kernel = whois::Kernel::new().context("the kernel cannot be asked who calls (SOCK_DIAG)")?;
        let cgroups = kernel.cgroups().map(Path::to_owned);
        // Jobs are served without it, too: it is the second line.
        match sandbox::enter(cgroups.as_deref()) {
            Ok(files) => tracing::debug!(?files, "the server process is confined"),
            Err(error) => tracing::error!(%error, "the server process is not confined as it should be"),
        }
        Ok(World {
            clock: Rc::new(clock::SystemClock),
            dice: Rc::new(clock::SystemDice::default()),
            whois: Box::new(kernel),
        })
    }
}

/// Serves until the keeper says stop or goes away.
///
/// # Errors
/// What made serving impossible; the keeper starts another server after a pause.
pub fn run(control: UnixStream, listeners: Listeners, config: Config) -> anyhow::Result<()> {
    // First: the sandbox counts for threads that are made in it, and nothing of a job or of the network has been read.
    let world = World::real()?;
    // Blocking threads resolve credvend's name, nothing else.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
    let served = tokio::task::LocalSet::new().block_on(&runtime, async {
        let settings = settings::Settings::of(&config);
        serve(control, listeners, &config, settings, world).await
    });
    // A resolver that hangs must not keep the process.
    runtime.shutdown_background();
    served
}

async fn serve(
    control: UnixStream,
    listeners: Listeners,
    config: &Config,
    settings: settings::Settings,
    world: World,
) -> anyhow::Result<()> {
    control.set_nonblocking(true)?;
    listeners.http.set_nonblocking(true)?;
    listeners.user.set_nonblocking(true)?;
    let (from_keeper, to_keeper) = tokio::net::UnixStream::from_std(control)?.into_split();
    let (out, queue) = mpsc::unbounded_channel();
    let http = tokio::net::TcpListener::from_std(listeners.http)?;
    let user = tokio::net::UnixListener::from_std(listeners.user)?;
    let keeper = keeper::Keeper::new(out);
    let credvend = credvend::Credvend::new(wire(config, &keeper)?);
    let server = Server::new(keeper, credvend, http.local_addr()?.port(), settings, world);

    let mut tasks = tokio::task::JoinSet::new();
    let writer = tokio::task::spawn_local(keeper::write_messages(to_keeper, queue));
    let accepting = tokio::task::spawn_local(http::accept(server.clone(), http));
    tasks.spawn_local(users::accept(server.clone(), user));
    tasks.spawn_local(vend::renew(server.clone()));
    let sweeping = server.clone();
    tasks.spawn_local(async move { sweeping.watch.sweep_all(sweeping.settings.get().limits.idle).await });
    tasks.spawn_local(credvend::stream::keep_open(server.clone()));
    tasks.spawn_local(news::answer(server.clone()));
    let mut page = metrics::Listening::at(&server, config.metrics);
    server.keeper.tell(ToKeeper::Ready);

    let mut from_keeper = BufReader::new(from_keeper);
    let mut line = Vec::new();
    let mut config = config.clone();
    while let Some(message) = keeper::next_message(&mut from_keeper, &mut line).await? {
        match message {
            ToServer::Stop => {
                server.stop(accepting).await;
                server.keeper.close();
                let _ = tokio::time::timeout(STOP_PATIENCE, writer).await;
                return Ok(());
            }
            ToServer::Configure { bytes } => {
                let new = keeper::configuration(&mut from_keeper, bytes).await?;
                let outcome = server.configure(&config, &new);
                if outcome.is_ok() {
                    page.move_to(&server, new.metrics);
                    config = new;
                }
                server.keeper.tell(ToKeeper::Configured { problem: outcome.err().map(|error| format!("{error:#}")) });
            }
            message => server.told(message),
        }
    }
    anyhow::bail!("the keeper is gone")
}

/// The way to credvend that a configuration describes.
fn wire(config: &Config, keeper: &Rc<keeper::Keeper>) -> anyhow::Result<Box<dyn credvend::Wire>> {
    Ok(Box::new(credvend::https::Https::new(&config.credvend, keeper.clone())?))
}

impl Server {
    fn new(
        keeper: Rc<keeper::Keeper>,
        credvend: credvend::Credvend,
        port: u16,
        settings: settings::Settings,
        world: World,
    ) -> Rc<Self> {
        Rc::new(Server {
            credvend,
            cache: RefCell::new(cache::Cache::new(settings.cache, world.dice.clone())),
            watch: watch::Watch::new(settings.limits.endpoint),
            user_watch: watch::Watch::new(settings.limits.user_socket),
            settings: settings::InForce::new(settings),
            keeper,
            clock: world.clock,
            dice: world.dice,
            whois: world.whois,
            hosts: gate::Hosts::new(port),
            jobs: RefCell::default(),
            late: RefCell::default(),
            loads: RefCell::default(),
            denials: RefCell::default(),
            news: news::News::default(),
            look: Notify::new(),
            leaving: Semaphore::new(4),
            metrics: metrics::Metrics::default(),
        })
    }

    /// What the keeper says.
    fn told(self: &Rc<Self>, message: ToServer) {
        match message {
            ToServer::Job(job) => {
                late::completed(self, &job.run);
                session::found(self, *job);
            }
            ToServer::Late(job) => late::found(self, *job),
            ToServer::Ended { run } => {
                late::end(self, &run);
                session::end(self, &run);
            }
            ToServer::Scanned => self.jobs.borrow_mut().scan_complete(),
            ToServer::Looked { id } => self.keeper.looked(id),
            ToServer::Signed { id, credential } => self.keeper.signed(id, credential),
            ToServer::Ping { id } => self.keeper.tell(ToKeeper::Here { id }),
            ToServer::Report { id } => {
                self.keeper.tell(ToKeeper::Report {
                    id,
                    health: self.health(status::Reader::Root),
                    jobs: self.jobs_of(None),
                });
            }
            ToServer::Ticket { ticket } => self.credvend.show(ticket),
            // Of the loop that reads these.
            ToServer::Stop | ToServer::Configure { .. } => {}
        }
    }

    /// Works as `new` says from now on; jobs, sessions, open connections and the cached credentials stay.
    fn configure(&self, old: &Config, new: &Config) -> anyhow::Result<()> {
        // What can fail first: all is in force, or nothing is.
        if new.credvend != old.credvend {
            self.credvend.replace(wire(new, &self.keeper)?);
        }
        logging::apply(&new.log);
        let settings = settings::Settings::of(new);
        self.watch.bound(settings.limits.endpoint);
        self.user_watch.bound(settings.limits.user_socket);
        self.cache.borrow_mut().configure(settings.cache);
        self.settings.replace(settings);
        self.look.notify_one();
        Ok(())
    }

    /// What one user has; made when first seen.
    fn load(&self, uid: u32) -> Rc<Load> {
        self.loads.borrow_mut().entry(uid).or_insert_with(|| Load::of(uid)).clone()
    }

    /// Ends every connection after an answer. New ones are accepted meanwhile and get one answer each, so that nobody waits
    /// for those who take their time; who comes later waits in the kernel's queue for the next server.
    async fn stop(&self, accepting: tokio::task::JoinHandle<()>) {
        self.watch.stop();
        let _ = tokio::time::timeout(STOP_PATIENCE, self.watch.earlier_closed()).await;
        accepting.abort();
        let _ = accepting.await;
        let _ = tokio::time::timeout(STOP_PATIENCE, self.watch.emptied()).await;
    }
}
