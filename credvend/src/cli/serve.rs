//! `credvend serve`: puts the parts together, and runs them until SIGTERM.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use sd_notify::NotifyState;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{parts, pin};
use crate::audit::{Event, Log};
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Attest, Config, ConfigError, ProjectsFrom, StoreKind};
use crate::deny::Denier;
use crate::deny::elsewhere::Elsewhere;
use crate::events::Events;
use crate::metrics::Metrics;
use crate::metrics::measured::Measured;
use crate::projects::{ProjectMap, Projects};
use crate::server::admin::{About, Admin};
use crate::server::admin_socket::AdminSocket;
use crate::server::connections::{Bounds, ConnectionLimits};
use crate::server::head_secrets::HeadSecrets;
use crate::server::listen::{STOP_PATIENCE, serve_tcp};
use crate::server::metrics_page;
use crate::server::munge_claim::MungeVerifier;
use crate::server::principal::Authenticator;
use crate::server::tls::{Certificates, Files};
use crate::server::{Server, Settings, visible_group};
use crate::source::Source;
use crate::source::upstream::Upstream;
use crate::store::dynamo::DynamoStore;
use crate::store::{Store, StoreError, archive};
use crate::vending::{Cluster, Parts, Vending};
use background::{Table, Turn, Watched, news, sweep};

mod background;

/// No request takes longer. A revocation waits for IAM.
const REQUEST_PATIENCE: Duration = Duration::from_secs(60);

/// Runs the service.
pub fn run(config: Config) -> anyhow::Result<()> {
    harden()?;
    log(&config);
    rustls::crypto::ring::default_provider().install_default().ok();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(config))
}

/// Before anything secret is in memory: no core dump, no tracer of the same user, no file for others.
fn harden() -> anyhow::Result<()> {
    nix::sys::prctl::set_dumpable(false).context("core dumps cannot be switched off")?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("core dumps cannot be switched off")?;
    umask(Mode::from_bits_truncate(0o077));
    // Every node keeps a stream open.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    Ok(())
}

fn log(config: &Config) {
    let format = if config.log.json { daemon_log::Format::Json } else { daemon_log::Format::Text };
    daemon_log::apply(&config.log.filter, format);
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let config_error =
        |problems| ConfigError { path: "credvend.toml names files that cannot be used".into(), problems };
    std::fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("state-dir {} cannot be made", config.state_dir.display()))?;
    let certificates = match config.plain_http {
        true => None,
        false => {
            let files = Files::prepare(&config.tls, &config.state_dir)?;
            Some(Arc::new(Certificates::open(files)?))
        }
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let metrics = Arc::<Metrics>::default();
    let audit = Arc::new(Log::open(&config.audit, clock.clone(), metrics.clone())?);
    let parts::OpenStore { store, dynamo } = parts::store(&config).await?;
    let store: Arc<dyn Store> = Measured::<dyn Store>::new(store, metrics.clone());
    // What will not pass is told now; a store that is out of reach may come back, and until then requests are refused.
    match store.epoch().await {
        Err(StoreError::Unavailable(why)) => tracing::error!("{why}"),
        other => drop(other?),
    }
    if let Ok(Some(_)) = store.get_note(archive::NOTES, archive::UNFINISHED).await {
        anyhow::bail!("a copy into this store was not finished: go on with `credvend store copy --resume`");
    }
    let projects = parts::projects_in_force(&config, dynamo.as_deref()).await.map_err(config_error)?;
    let projects = Arc::new(Projects::new(projects));
    let secrets = HeadSecrets::open(parts::secret_files(&config)).map_err(config_error)?;
    let (stop, stopping) = watch::channel(false);
    let (source, denier) = match parts::upstream(&config) {
        None => parts::aws(&config).await?,
        Some(options) => {
            let denier = Arc::new(Elsewhere::new(&options.url));
            let upstream = Upstream::new(options, store.clone(), clock.clone())?;
            tokio::spawn(upstream.clone().deliver(metrics.clone(), stop.subscribe()));
            (upstream as Arc<dyn Source>, denier as Arc<dyn Denier>)
        }
    };
    let source: Arc<dyn Source> = Measured::<dyn Source>::new(source, metrics.clone());
    let denier: Arc<dyn Denier> = Measured::<dyn Denier>::new(denier, metrics.clone());
    let clusters = parts::clusters(&config, &metrics);
    let asked = |c: &config::Cluster| {
        let attestor = clusters.get(&c.name).and_then(|cluster| cluster.attestor.clone());
        (c.name.clone(), Cluster { attestor, ..parts::cluster(c) })
    };
    let watched = Watched {
        clusters: config.clusters.iter().map(asked).collect(),
        // With certificates, nodes may do without.
        munged: if config.tls.client_ca.is_none() { parts::munge_sockets(&config) } else { vec![] },
        source: source.clone(),
    };
    let limits = config.limits.bounds();
    let vending = Vending::new(Parts {
        store: store.clone(),
        clusters,
        source,
        denier,
        projects: projects.clone(),
        names: config.names.clone(),
        events: Arc::new(Events::new(store.clone(), clock.clone())),
        clock: clock.clone(),
        audit,
        metrics,
    });
    // Whoever allows an address more connections has more nodes behind it.
    let vending = Arc::new(vending.with_questions(limits.handshakes_per_address, limits.per_address));
    let munge = MungeVerifier::new(parts::munge_sockets(&config), store)?;
    let authenticator = Authenticator {
        clusters: config.clusters.iter().map(|c| c.name.clone()).collect(),
        secrets,
        munge,
        head_certificates: config.tls.client_ca.is_some(),
    };
    let mut warnings = parts::warnings(&config);
    warnings.extend(config.admin_group.as_deref().and_then(visible_group::hidden));
    let in_force = {
        let (config, projects, certificates) = (config.clone(), projects.clone(), certificates.clone());
        Arc::new(move || {
            let mut warnings = parts::map_warnings(&config, &projects.current());
            let live = certificates.as_ref().map(|certificates| certificates.live());
            warnings.extend(live.iter().flat_map(|live| live.warnings(OffsetDateTime::now_utc())));
            warnings
        })
    };
    for warning in warnings.iter().chain(&parts::address_warnings(&config)) {
        tracing::warn!("{warning}");
    }
    let server = Arc::new_cyclic(|server: &std::sync::Weak<Server>| {
        let (server, config, certificates) = (server.clone(), config.clone(), certificates.clone());
        let (projects, dynamo) = (projects.clone(), dynamo.clone());
        let attests = |attest| if attest == Attest::Slurm { "slurm" } else { "head" };
        let about = About {
            started: OffsetDateTime::now_utc(),
            clusters: config.clusters.iter().map(|c| (c.name.clone(), attests(c.attest))).collect(),
            warnings,
        };
        let settings = settings(&config);
        let reload = move |by: &str| match server.upgrade() {
            Some(server) => reload(by, &config, &server, &projects, certificates.as_deref(), dynamo.as_deref()),
            None => Ok(()),
        };
        Server {
            vending: vending.clone(),
            authenticator,
            settings,
            admin: Admin {
                reload: Arc::new(reload),
                about,
                in_force,
                not_reloaded: Default::default(),
                observed: Default::default(),
                ready: Default::default(),
            },
            streams: Default::default(),
            refusals: Default::default(),
            clock,
            stopping,
        }
    });
    let table = dynamo.filter(|_| config.projects_from == ProjectsFrom::Store).map(|dynamo| Table { dynamo, projects });
    listen_until_stopped(&config, server, watched, table, certificates, stop).await
}

fn settings(config: &Config) -> Settings {
    Settings {
        public_url: config.public_url.clone(),
        localhost_port: config.localhost_port,
        session_tokens: config.session_tokens,
        request_patience: REQUEST_PATIENCE,
        max_streams_per_node: config.limits.max_streams_per_node as usize,
        host: config.public_url.parse::<hyper::Uri>().ok().and_then(|url| url.host().map(str::to_owned)),
    }
}

/// SIGHUP, or an administrator: each part on its own, and all problems at once.
fn reload(
    by: &str,
    config: &Config,
    server: &Server,
    projects: &Projects,
    certificates: Option<&Certificates>,
    dynamo: Option<&DynamoStore>,
) -> Result<(), Vec<String>> {
    let mut problems = Vec::new();
    let audit = server.vending.audit();
    problems.extend(audit.reopen().err());
    // Reloads run on a thread of their own.
    let map = tokio::runtime::Handle::current().block_on(parts::projects_in_force(config, dynamo));
    match map {
        Ok(map) => put_in_force(by, server, projects, map),
        Err(more) => problems.extend(more),
    }
    if let Err(more) = server.authenticator.secrets.reload() {
        problems.extend(more);
    }
    if let Some(Err(error)) = certificates.map(Certificates::reload) {
        problems.push(error.to_string());
    }
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// Replaces the map, and says so in the audit log if it is another one.
fn put_in_force(by: &str, server: &Server, projects: &Projects, map: ProjectMap) {
    let changes = map.changes_since(&projects.current());
    projects.replace(map);
    if !changes.is_empty() {
        server.vending.audit().note(Event::ProjectsChanged { by, changes: &changes });
    }
}

async fn listen_until_stopped(
    config: &Config,
    server: Arc<Server>,
    watched: Watched,
    table: Option<Table>,
    certificates: Option<Arc<Certificates>>,
    stop: watch::Sender<bool>,
) -> anyhow::Result<()> {
    // Before READY: a signal that comes early must not kill the process.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let limits = Arc::new(ConnectionLimits::new(config.limits.bounds()));
    // A revocation keeps one while it goes on, and there may be many of them.
    let admin_limits = Arc::new(ConnectionLimits::new(Bounds::of(256, 256)));
    if let Some(dir) = config.admin_socket.parent() {
        make_socket_dir(dir)?;
    }
    // One that is hidden has been warned of; the service is not to fail for it.
    let group = config.admin_group.as_deref().filter(|group| visible_group::hidden(group).is_none());
    let admin = AdminSocket::bind(&config.admin_socket, group)?;
    let mut tasks = tokio::task::JoinSet::new();
    for address in &config.listen {
        let listener = TcpListener::bind(address).await.with_context(|| format!("listen = {address}"))?;
        let actual = listener.local_addr()?;
        tracing::info!(address = %actual, tls = certificates.is_some(), "listening");
        tasks.spawn(serve_tcp(server.clone(), listener, certificates.clone(), limits.clone()));
    }
    if let Some(address) = config.metrics {
        let listener = TcpListener::bind(address).await.with_context(|| format!("metrics.listen = {address}"))?;
        tracing::info!(address = %listener.local_addr()?, "metrics");
        tasks.spawn(metrics_page::serve(server.clone(), listener, certificates.clone()));
    }
    tasks.spawn(admin.serve(server.clone(), admin_limits.clone()));
    // The only credvend of an SQLite file waits for nobody's turn, a killed predecessor's least of all.
    let turn = (config.store.kind == StoreKind::Dynamodb).then(Turn::new);
    tasks.spawn(sweep(server.vending.clone(), turn, stop.subscribe()));
    tasks.spawn(news(
        server.vending.clone(),
        config.clusters.iter().map(|c| c.name.clone()).collect(),
        stop.subscribe(),
    ));
    tasks.spawn(watched.watch(server.clone()));
    if let Some(table) = table {
        tasks.spawn(table.watch(server.clone(), config.clone()));
    }
    if let Some(certificates) = &certificates {
        println!("certificate pin {}", pin::for_nodes(config, &certificates.live().fingerprint));
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "ready");
    let audit = server.vending.audit().clone();
    audit.note(Event::ServiceStarted { what: &about_this_process() });
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                let server = server.clone();
                match tokio::task::spawn_blocking(move || server.admin.reload("SIGHUP")).await.unwrap_or_else(|e| Err(vec![e.to_string()])) {
                    Ok(()) => tracing::info!("reloaded projects, head secrets and certificate"),
                    Err(problems) => for problem in problems {
                        tracing::error!("not reloaded, what was in force stays: {problem}");
                    },
                }
            }
        }
    }
    tracing::info!("stopping");
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    let _ = stop.send(true);
    while tasks.join_next().await.is_some() {}
    let patience = STOP_PATIENCE + Duration::from_secs(1);
    if !limits.drained(patience).await || !admin_limits.drained(patience).await {
        tracing::warn!("some connections were cut off");
    }
    audit.note(Event::ServiceStopped);
    audit.close();
    Ok(())
}

/// For the audit log: which of several services wrote what follows.
fn about_this_process() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    format!("credvend {} on {host}, pid {}", env!("CARGO_PKG_VERSION"), std::process::id())
}

/// Everybody may pass through to the socket, which has its own mode and asks who calls.
fn make_socket_dir(dir: &std::path::Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if dir.is_dir() {
        return Ok(());
    }
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir);
    made.and_then(|()| std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)))
        .with_context(|| format!("the directory of admin-socket, {}, cannot be made", dir.display()))
}
