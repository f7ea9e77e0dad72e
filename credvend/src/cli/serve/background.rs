//! What runs beside the requests.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use credd_protocol::ClusterName;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::checks;
use crate::cli::parts;
use crate::config::Config;
use crate::projects::Projects;
use crate::refusal::Refusal;
use crate::server::Server;
use crate::source::Source;
use crate::store::dynamo::DynamoStore;
use crate::vending::{Cluster, Vending};

/// The mean pause between sweeps; each is up to a fifth longer or shorter.
const SWEEP_PAUSE: Duration = Duration::from_secs(5);
/// Between two looks at Slurm's settings and at AWS.
const WATCH_PAUSE: Duration = Duration::from_secs(60);
/// So many of these looks to one at what the nodes' names resolve to.
const ADDRESS_ROUNDS: u32 = 15;
/// Between two looks at the store's table of projects.
const PROJECTS_PAUSE: Duration = Duration::from_secs(4);
/// Who holds this lease of the store sweeps.
const SWEEP_LEASE: &str = "sweep";
/// How long a replica that died keeps the others from sweeping.
const TURN: Duration = Duration::from_secs(20);
/// Between two looks of the sweeping replica for ends of which no node was told.
const UNTOLD_PAUSE: Duration = Duration::from_secs(600);
/// A sweep that takes longer is given up; the next one starts over.
const SWEEP_PATIENCE: Duration = Duration::from_secs(120);

/// Whose turn it is to sweep, among replicas. Two that sweep at the same time do no harm, only twice the work.
pub struct Turn {
    holder: String,
    /// When ends were last looked for that no replica has told the nodes of.
    told: Option<Instant>,
}

impl Turn {
    /// This process'.
    pub fn new() -> Self {
        Turn { holder: uuid::Uuid::new_v4().to_string(), told: None }
    }

    /// Whether this replica sweeps now.
    async fn is_ours(&mut self, vending: &Vending) -> bool {
        let now = OffsetDateTime::now_utc();
        let ours = vending.store().lease(SWEEP_LEASE, &self.holder, now, now + TURN).await;
        match ours {
            Ok(true) => {}
            Ok(false) => {
                self.told = None;
                return false;
            }
            // The sweep itself will say what is wrong with the store.
            Err(_) => return true,
        }
        // Another replica may have died between ending a session and saying so, and may never start again.
        if self.told.is_none_or(|at| at.elapsed() > UNTOLD_PAUSE) && vending.tell_untold().await.is_ok() {
            self.told = Some(Instant::now());
        }
        true
    }

    /// Another replica may be luckier.
    async fn give_up(&self, vending: &Vending) {
        let _ = vending.store().release(SWEEP_LEASE, &self.holder).await;
    }
}

/// Closes the sessions of jobs that are over, until the service stops. With other replicas, one of them does.
pub async fn sweep(vending: Arc<Vending>, mut turn: Option<Turn>, mut stopping: watch::Receiver<bool>) {
    let mut last: Option<String> = None;
    loop {
        let pause = SWEEP_PAUSE.mul_f64(0.8 + 0.4 * f64::from(random_byte()) / 255.0);
        tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => {}
            () = tokio::time::sleep(pause) => {}
        }
        if *stopping.borrow() {
            if let Some(turn) = &turn {
                turn.give_up(&vending).await;
            }
            return;
        }
        if let Some(turn) = &mut turn
            && !turn.is_ours(&vending).await
        {
            // Its own failure shows in the store's metrics.
            let _ = vending.count_beside_the_sweep().await;
            // What ended here no other replica knows of for minutes.
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => {}
                denied = tokio::time::timeout(SWEEP_PATIENCE, vending.deny_ended_here()) => {
                    if let Ok(Err(error)) = denied {
                        tracing::warn!("what ended jobs hold is not denied yet: {error}");
                    }
                }
            }
            continue;
        }
        // Cut short, it has closed some sessions; the next one closes the others.
        let begun = Instant::now();
        let swept = tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => return,
            swept = tokio::time::timeout(SWEEP_PATIENCE, vending.sweep()) => swept,
        };
        let swept = swept.unwrap_or_else(|_| Err(Refusal::Unavailable("the sweep took too long".into())));
        let result = swept.as_ref().map(|_| OffsetDateTime::now_utc()).map_err(|_| ());
        vending.metrics().swept(result, begun.elapsed());
        // Its own failure shows in the store's metrics.
        let _ = vending.count_revocations().await;
        let complaint = swept.as_ref().err().map(ToString::to_string);
        if let (Some(turn), Some(_)) = (&turn, &complaint) {
            turn.give_up(&vending).await;
        }
        match (&swept, &complaint) {
            (Ok(closed), _) if *closed > 0 => tracing::info!(closed, "sessions of jobs that are over were closed"),
            // Once, not every few seconds.
            (_, Some(text)) if last != complaint => tracing::error!("the sweep did not finish: {text}"),
            (Ok(_), _) if last.is_some() => tracing::info!("the sweep works again"),
            _ => {}
        }
        last = complaint;
    }
}

/// Tells the nodes what a killed credvend did not, and then what the other replicas say, until the service stops.
pub async fn news(vending: Arc<Vending>, clusters: Vec<ClusterName>, stopping: watch::Receiver<bool>) {
    let untold = async {
        loop {
            match vending.tell_untold().await {
                Ok(0) => return,
                Ok(sessions) => {
                    return tracing::warn!(
                        sessions,
                        "nodes were told of ends that an earlier credvend had left untold"
                    );
                }
                Err(error) => tracing::error!("ends that were left untold cannot be looked up: {error}"),
            }
            tokio::time::sleep(SWEEP_PAUSE).await;
        }
    };
    let keeping_up = vending.events().keep_up(clusters, stopping);
    tokio::pin!(untold, keeping_up);
    let mut looked = false;
    loop {
        tokio::select! {
            () = &mut keeping_up => return,
            () = &mut untold, if !looked => looked = true,
        }
    }
}

/// The projects' table of the store, looked at now and then: another replica, or somebody at AWS, changes it.
pub struct Table {
    /// The store.
    pub dynamo: Arc<DynamoStore>,
    /// The map in force.
    pub projects: Arc<Projects>,
}

impl Table {
    /// Until the service stops. A map that is not valid changes nothing.
    pub async fn watch(self, server: Arc<Server>, config: Config) {
        let (mut stopping, mut trouble) = (server.stopping.clone(), None);
        loop {
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(PROJECTS_PAUSE) => {}
            }
            let complaint = match parts::projects_in_force(&config, Some(&self.dynamo)).await {
                Ok(map) => {
                    if map != *self.projects.current() {
                        tracing::info!(projects = map.projects.len(), "the projects' table has changed");
                        super::put_in_force("the projects' table", &server, &self.projects, map);
                    }
                    None
                }
                Err(problems) => Some(problems.join("; ")),
            };
            // Once, not every few seconds.
            match &complaint {
                Some(text) if trouble != complaint => {
                    tracing::error!("the projects' table is not taken, what was in force stays: {text}");
                }
                None if trouble.is_some() => tracing::info!("the projects' table is good again"),
                _ => {}
            }
            trouble = complaint;
        }
    }
}

/// Whom the service depends on: asked now and then, so that an administrator learns of it before a job's user does.
pub struct Watched {
    /// Their Slurm, and whether it lets jobs have credentials.
    pub clusters: Vec<(ClusterName, Cluster)>,
    /// munged, by the clusters whose nodes prove themselves with it.
    pub munged: Vec<(ClusterName, Option<PathBuf>)>,
    /// AWS must know who credvend is.
    pub source: Arc<dyn Source>,
}

impl Watched {
    /// Until the service stops.
    pub async fn watch(self, server: Arc<Server>) {
        let mut stopping = server.stopping.clone();
        let (mut known, mut round) = (false, 0u32);
        let (mut addresses, mut logged) = (vec![], vec![]);
        loop {
            // Shown by `status` as it is then; the log has each once.
            let in_force = (server.admin.in_force)();
            for warning in in_force.iter().filter(|warning| !logged.contains(*warning)) {
                tracing::warn!("{warning}");
            }
            logged = in_force;
            let warnings = tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return,
                warnings = self.look(&mut known) => warnings,
            };
            // Names are many, and change seldom.
            if round.is_multiple_of(ADDRESS_ROUNDS) {
                addresses = tokio::select! {
                    _ = stopping.wait_for(|stop| *stop) => return,
                    addresses = self.addresses() => addresses,
                };
            }
            round = round.wrapping_add(1);
            for warning in server.admin.observe([warnings, addresses.clone()].concat()) {
                tracing::warn!("{warning}");
            }
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(WATCH_PAUSE) => {}
            }
        }
    }

    async fn look(&self, known: &mut bool) -> Vec<String> {
        let mut warnings = Vec::new();
        for (name, cluster) in &self.clusters {
            warnings.extend(checks::of_slurm(name, cluster).await.findings);
        }
        for (name, socket) in &self.munged {
            warnings.extend(checks::of_munge(name, socket.clone()).await);
        }
        let mut warnings: Vec<String> = warnings.into_iter().map(|finding| finding.text).collect();
        match self.source.identity().await {
            Ok(arn) if !*known => {
                tracing::info!(who = arn, "who credvend is to what gives it credentials");
                *known = true;
            }
            Ok(_) => {}
            Err(error) => warnings.push(error.to_string()),
        }
        warnings
    }

    async fn addresses(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for (name, cluster) in &self.clusters {
            warnings.extend(checks::of_addresses(name, cluster).await.map(|finding| finding.text));
        }
        warnings
    }
}

fn random_byte() -> u8 {
    let mut byte = [0u8];
    let _ = getrandom::fill(&mut byte);
    byte[0]
}
