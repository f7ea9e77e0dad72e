//! Asks a cluster's slurmctld through Slurm's own commands: squeue(1), sinfo(1), scontrol(1), of Slurm 22.05 and later.
//!
//! The commands speak every release's protocol of the Slurm that they belong to, authenticate as the site is set up to,
//! and fail over to a backup controller; one squeue for one job costs some 4 ms.
//!
//! **Sharing.** Callers put their job into one waiting list. A question takes all that wait when it *starts*, never one
//! that came later, so no caller gets an answer that was asked for before its call. While as many questions run as may,
//! the list grows, and the next takes it whole: no timer, no delay when idle, few questions when many ask.
//!
//! **Absence** is concluded from the one sentence that slurmctld has for an id it does not know, when asked about that id
//! alone. A job that is missing in an answer about several is asked about once more by itself: an answer that a wrapper of
//! squeue cut short between two rows looks whole. Where `PrivateData=jobs` hides jobs from the uid that credvend runs as,
//! that very sentence is a lie; so the setting is looked up after it was heard, and no absence is concluded where it is
//! on. squeue merges an array task that was requeued and waits into the row of its array: absent too, and rightly, as its
//! earlier run is over.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use credd_protocol::{ClusterName, JobId, NodeName, Uid};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::command::{CommandError, Commands, Said};
use super::site::{self, Settings};
use super::{Answer, AttestError, Attestor, JobFacts, Site, squeue};

/// squeue's last words on its standard error, and nothing on its standard output, when it is asked for one id that
/// slurmctld does not know (seen with 22.05.8; exit status 1). Before them may stand warnings, about slurm.conf for one,
/// that every command prints. Of several ids it silently leaves out the unknown ones and exits with 0.
const UNKNOWN_ID: &str = "slurm_load_jobs error: Invalid job id specified";

/// The most jobs in one question: their ids stay well below ARG_MAX.
const BATCH: usize = 1000;
/// The most callers that wait at a time.
const MAX_WAITING: usize = 50_000;
/// The most nodes of one job.
const MAX_NODES: usize = 100_000;
/// The most node names in one listing of all jobs; jobs after that are listed without nodes.
const MAX_LISTED_NODES: usize = 500_000;
/// The most bytes in an answer about single jobs, besides [`squeue::FIXED`] for each.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// The most bytes in a listing of all jobs (some 100,000 of them), or of all nodes.
const LISTING_BYTES: usize = 64 * 1024 * 1024;
/// The most bytes of `scontrol show config`.
const SMALL_BYTES: usize = 1024 * 1024;
/// How long `PrivateData` is remembered where nothing is concluded from it alone.
const SETTINGS_LIVE: Duration = Duration::from_secs(60);

/// How long each kind of question may take. slurmctld answers in milliseconds; commands retry for 9 to 10 s when it is
/// gone or stuck (seen), so these end before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// About single jobs, a node, the settings.
    pub question: Duration,
    /// About all jobs.
    pub listing: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts { question: Duration::from_secs(5), listing: Duration::from_secs(30) }
    }
}

/// How to reach one cluster's Slurm.
#[derive(Debug, Clone)]
pub struct SlurmConfig {
    /// The cluster, for messages.
    pub cluster: ClusterName,
    /// Its slurm.conf; without it Slurm looks by itself (`/etc/slurm/slurm.conf`, or a configless controller).
    pub slurm_conf: Option<PathBuf>,
    /// Where the commands are; without it, the usual directories.
    pub bin_dir: Option<PathBuf>,
    /// How long questions may take.
    pub timeouts: Timeouts,
    /// How many questions about single jobs run at a time. Each is a process of a few milliseconds.
    pub concurrency: usize,
    /// Believe absence although `PrivateData=jobs` is set and credvend runs neither as root nor as SlurmUser: its user
    /// is a Slurm operator (`sacctmgr … AdminLevel=Operator`), who sees all jobs.
    pub sees_private_jobs: bool,
}

impl SlurmConfig {
    /// The cluster with everything else as usual.
    pub fn new(cluster: ClusterName) -> Self {
        SlurmConfig {
            cluster,
            slurm_conf: None,
            bin_dir: None,
            timeouts: Timeouts::default(),
            concurrency: 4,
            sees_private_jobs: false,
        }
    }
}

type Outcome = Result<Answer, AttestError>;

/// Second questions about missing jobs at the same time. There are few, unless a node lies: then they wait for each other,
/// and nobody else does.
const SECOND_QUESTIONS: usize = 2;

/// Questions that credvend asks by itself, at the same time: closing a session must not wait behind what nodes make it ask.
const OWN_QUESTIONS: usize = 1;

/// Callers that wait, and the questions that may run for them. Those of nodes and those of credvend itself are apart, so
/// that neither keeps the other waiting.
struct Lane {
    questions: Arc<Semaphore>,
    second_questions: Semaphore,
    waiting: Mutex<Waiting>,
}

impl Lane {
    fn new(concurrency: usize) -> Self {
        Lane {
            questions: Arc::new(Semaphore::new(concurrency)),
            second_questions: Semaphore::new(SECOND_QUESTIONS),
            waiting: Mutex::default(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For whom a job is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    Nodes,
    Itself,
}

/// Jobs that callers wait for, and whether a task is about to ask.
#[derive(Default)]
struct Waiting {
    jobs: BTreeMap<JobId, Vec<oneshot::Sender<Outcome>>>,
    callers: usize,
    asker_due: bool,
}

/// One cluster's Slurm.
#[derive(Clone)]
pub struct Slurm {
    inner: Arc<Inner>,
}

struct Inner {
    config: SlurmConfig,
    /// Whose eyes slurmctld thinks it is talking to.
    uid: u32,
    commands: Commands,
    for_nodes: Lane,
    for_itself: Lane,
    /// One at a time: they must not keep the questions about jobs waiting.
    about_nodes: Semaphore,
    settings: tokio::sync::Mutex<Option<(Instant, Settings)>>,
}

impl Slurm {
    /// Does not ask anything yet: Slurm may come up after credvend.
    pub fn new(config: SlurmConfig) -> Self {
        Self::read_by(nix::unistd::geteuid().as_raw(), config)
    }

    fn read_by(uid: u32, config: SlurmConfig) -> Self {
        let concurrency = config.concurrency.max(1);
        // Three more places, so that neither a long listing nor a question about nodes or the site has to wait.
        let places = concurrency + OWN_QUESTIONS + 2 * SECOND_QUESTIONS + 3;
        let commands = Commands::new(config.bin_dir.clone(), config.slurm_conf.clone(), places);
        Slurm {
            inner: Arc::new(Inner {
                config,
                uid,
                commands,
                for_nodes: Lane::new(concurrency),
                for_itself: Lane::new(OWN_QUESTIONS),
                about_nodes: Semaphore::new(1),
                settings: tokio::sync::Mutex::default(),
            }),
        }
    }

    /// The settings that bear on trust, asked for now.
    ///
    /// # Errors
    /// No complete answer.
    pub async fn settings(&self) -> Result<Settings, AttestError> {
        self.inner.settings().await
    }
}

impl Inner {
    fn lane(&self, whose: For) -> &Lane {
        match whose {
            For::Nodes => &self.for_nodes,
            For::Itself => &self.for_itself,
        }
    }

    /// Waits for the answer among those who ask at the same time.
    async fn job(self: &Arc<Self>, job: JobId, whose: For) -> Outcome {
        let (send, receive) = oneshot::channel();
        {
            let mut waiting = self.lane(whose).waiting();
            if waiting.callers >= MAX_WAITING {
                return Err(self.unavailable(format!("{MAX_WAITING} questions wait for it already")));
            }
            waiting.callers += 1;
            waiting.jobs.entry(job).or_default().push(send);
            if !waiting.asker_due {
                waiting.asker_due = true;
                self.ask_soon(whose);
            }
        }
        receive.await.unwrap_or_else(|_| Err(self.unavailable("the question was given up")))
    }

    fn unavailable(&self, why: impl ToString) -> AttestError {
        AttestError::Unavailable { cluster: self.config.cluster.clone(), why: why.to_string() }
    }

    fn unreliable(&self, why: impl ToString) -> AttestError {
        AttestError::Unreliable { cluster: self.config.cluster.clone(), why: why.to_string() }
    }

    /// In a task of its own: a caller may go away, those who share its question stay.
    fn ask_soon(self: &Arc<Self>, whose: For) {
        tokio::spawn(Arc::clone(self).ask_for_waiting(whose));
    }

    /// Asks for what waits now, and for what came meanwhile in further rounds.
    async fn ask_for_waiting(self: Arc<Self>, whose: For) {
        let lane = self.lane(whose);
        // Never closed.
        let Ok(turn) = Arc::clone(&lane.questions).acquire_owned().await else { return };
        let taken = {
            let mut waiting = lane.waiting();
            let rest = match waiting.jobs.keys().nth(BATCH).copied() {
                Some(first_left) => waiting.jobs.split_off(&first_left),
                None => BTreeMap::new(),
            };
            let taken = std::mem::replace(&mut waiting.jobs, rest);
            waiting.callers -= taken.values().map(Vec::len).sum::<usize>();
            waiting.asker_due = !waiting.jobs.is_empty();
            if waiting.asker_due {
                self.ask_soon(whose);
            }
            taken
        };
        let ids: Vec<JobId> = taken.keys().copied().collect();
        let mut outcomes = self.ask(&ids).await;
        drop(turn);
        let mut missing = Vec::new();
        for (job, callers) in taken {
            match outcomes.remove(&job) {
                Some(outcome) => tell(callers, &outcome),
                None => missing.push((job, callers)),
            }
        }
        let mut away = None;
        for (job, callers) in missing {
            let outcome = match &away {
                Some(error) => Err(AttestError::clone(error)),
                None => self.ask_again(job, lane).await,
            };
            tell(callers, &outcome);
            away = outcome.err().filter(|error| matches!(error, AttestError::Unavailable { .. }));
        }
    }

    /// One squeue about these jobs. What is not in the answer is missing in the outcomes too, unless it was the only one.
    async fn ask(&self, jobs: &[JobId]) -> BTreeMap<JobId, Outcome> {
        if let [job] = jobs {
            return BTreeMap::from([(*job, self.ask_alone(*job).await)]);
        }
        let said = self.squeue_jobs(jobs).await;
        let rows = match &said {
            Ok(Some(stdout)) => squeue::parse(stdout).map_err(|why| self.unreliable(why)),
            Ok(None) => Err(self.unreliable("squeue speaks of one job where it was asked for several")),
            Err(error) => Err(error.clone()),
        };
        match rows {
            Ok(rows) => jobs.iter().filter_map(|job| Some((*job, self.of_rows(&rows, *job)?))).collect(),
            Err(error) => jobs.iter().map(|job| (*job, Err(error.clone()))).collect(),
        }
    }

    /// A job's row, if there is one. The leader of a het job, and an array's first id, bring their siblings along: only
    /// the raw id counts.
    fn of_rows(&self, rows: &[squeue::Row<'_>], job: JobId) -> Option<Outcome> {
        let mut mine = rows.iter().filter(|row| row.job == job);
        Some(match (mine.next()?, mine.next()) {
            (row, None) => row.facts(MAX_NODES, &is_nobody).map(Answer::Known).map_err(|why| self.unreliable(why)),
            (_, Some(_)) => Err(self.unreliable(format!("squeue has job {job} twice"))),
        })
    }

    async fn ask_again(&self, job: JobId, lane: &Lane) -> Outcome {
        let turn = tokio::time::timeout(self.config.timeouts.question, lane.second_questions.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            return Err(self.unavailable("too many second questions about missing jobs wait for it"));
        };
        self.ask_alone(job).await
    }

    /// One squeue about one job.
    async fn ask_alone(&self, job: JobId) -> Outcome {
        let said = self.squeue_jobs(&[job]).await?;
        let answered = Instant::now();
        let Some(stdout) = said else {
            return self.sees_all_jobs(answered).await.map(|()| Answer::Absent);
        };
        let rows = squeue::parse(&stdout).map_err(|why| self.unreliable(why))?;
        if let Some(outcome) = self.of_rows(&rows, job) {
            return outcome;
        }
        self.sees_all_jobs(answered).await?;
        // A task merged into its array.
        if !rows.is_empty() && rows.iter().all(squeue::Row::waits) {
            return Ok(Answer::Absent);
        }
        Err(self.unreliable(format!("squeue does not say that job {job} is unknown, and shows no row of it")))
    }

    /// squeue's output, or `None` if slurmctld says that it does not know the one id that it was asked for.
    async fn squeue_jobs(&self, jobs: &[JobId]) -> Result<Option<Vec<u8>>, AttestError> {
        let ids: Vec<String> = jobs.iter().map(JobId::to_string).collect();
        let format = format!("--Format={}", squeue::format());
        let jobs_arg = format!("--jobs={}", ids.join(","));
        let most = ANSWER_BYTES + jobs.len() * 4 * squeue::FIXED;
        let said = self
            .commands
            .run(
                "squeue",
                &["--all", "--local", "--states=all", &format, &jobs_arg],
                self.config.timeouts.question,
                most,
            )
            .await
            .map_err(|error| self.unavailable(error))?;
        if said.success {
            return Ok(Some(said.stdout));
        }
        let last_words = said.stderr.trim_ascii().rsplit(|byte| *byte == b'\n').next();
        if jobs.len() == 1 && said.stdout.is_empty() && last_words == Some(UNKNOWN_ID.as_bytes()) {
            return Ok(None);
        }
        Err(self.unavailable(said.complaint()))
    }

    /// Whether this reader sees all jobs, by settings that were asked for no earlier than `since`: an administrator who
    /// turns `PrivateData` on must not close the sessions of all jobs that vanish from sight.
    async fn sees_all_jobs(&self, since: Instant) -> Result<(), AttestError> {
        let uid = self.uid;
        if self.config.sees_private_jobs || uid == 0 {
            return Ok(());
        }
        let mut kept = self.settings.lock().await;
        // That jobs are hidden is asked again each time: an administrator may have mended it.
        if kept.as_ref().is_some_and(|(at, settings)| *at >= since && !settings.hides_jobs_from(uid)) {
            return Ok(());
        }
        let asked = Instant::now();
        let settings = self.settings().await?;
        let hides = settings.hides_jobs_from(uid);
        *kept = Some((asked, settings));
        if hides { Err(self.unreliable(jobs_hidden_from(uid))) } else { Ok(()) }
    }

    async fn settings(&self) -> Result<Settings, AttestError> {
        let said = self.small("scontrol", &["show", "config"]).await?;
        if !said.success {
            return Err(self.unavailable(said.complaint()));
        }
        Settings::parse(&said.stdout).map_err(|why| self.unreliable(why))
    }

    async fn small(&self, name: &'static str, args: &[&str]) -> Result<Said, AttestError> {
        let run = self.commands.run(name, args, self.config.timeouts.question, SMALL_BYTES).await;
        run.map_err(|error: CommandError| self.unavailable(error))
    }
}

fn jobs_hidden_from(uid: u32) -> String {
    format!(
        "PrivateData=jobs hides other users' jobs from uid {uid}, so a missing job may be running; run credvend as \
         SlurmUser or root, or make its user a Slurm operator and set sees-private-jobs = true"
    )
}

/// A caller that has gone away wants no answer.
fn tell(callers: Vec<oneshot::Sender<Outcome>>, outcome: &Outcome) {
    for caller in callers {
        let _ = caller.send(outcome.clone());
    }
}

/// Whether this machine's name of the uid is `nobody`.
fn is_nobody(uid: Uid) -> bool {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid.0));
    matches!(user, Ok(Some(user)) if user.name == "nobody")
}

#[async_trait]
impl Attestor for Slurm {
    async fn job(&self, job: JobId) -> Outcome {
        self.inner.job(job, For::Nodes).await
    }

    async fn job_unasked(&self, job: JobId) -> Outcome {
        self.inner.job(job, For::Itself).await
    }

    /// Unreadable accounts and names do not hide the other jobs: see [`squeue::Row::listed`]. Nodes are left out beyond
    /// 500,000 names in all.
    async fn all_jobs(&self) -> Result<Vec<JobFacts>, AttestError> {
        let format = format!("--Format={}", squeue::format());
        let said = self
            .inner
            .commands
            .run("squeue", &["--all", "--local", &format], self.inner.config.timeouts.listing, LISTING_BYTES)
            .await
            .map_err(|error| self.inner.unavailable(error))?;
        if !said.success {
            return Err(self.inner.unavailable(said.complaint()));
        }
        let rows = squeue::parse(&said.stdout).map_err(|why| self.inner.unreliable(why))?;
        // Nothing is concluded from a listing alone: an older word will do.
        let lately = Instant::now().checked_sub(SETTINGS_LIVE).unwrap_or_else(Instant::now);
        self.inner.sees_all_jobs(lately).await?;
        let mut room = MAX_LISTED_NODES;
        let mut jobs = Vec::with_capacity(rows.len());
        for row in rows {
            let facts = row.listed(room.min(MAX_NODES)).map_err(|why| self.inner.unreliable(why))?;
            room -= facts.nodes.len();
            // Without --states squeue lists what pends, runs or completes; a state that ended meanwhile may slip in.
            if facts.state != super::JobState::Over {
                jobs.push(facts);
            }
        }
        Ok(jobs)
    }

    async fn node_addresses(&self) -> Result<HashMap<NodeName, String>, AttestError> {
        let turn = tokio::time::timeout(self.inner.config.timeouts.question, self.inner.about_nodes.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            return Err(self.inner.unavailable("another question about nodes waits for it"));
        };
        // sinfo, not scontrol: a node's line in scontrol holds free text (Reason, Comment, Extra).
        let format = format!("--Format={}", site::ADDRESS_FORMAT);
        let args = ["--all", "--local", "--Node", &format];
        let said = self.inner.commands.run("sinfo", &args, self.inner.config.timeouts.question, LISTING_BYTES).await;
        let said = said.map_err(|error| self.inner.unavailable(error))?;
        if !said.success {
            return Err(self.inner.unavailable(said.complaint()));
        }
        site::addresses(&said.stdout).map_err(|why| self.inner.unreliable(why))
    }

    async fn site(&self) -> Result<Site, AttestError> {
        let settings = self.inner.settings().await?;
        let hidden = !self.inner.config.sees_private_jobs && settings.hides_jobs_from(self.inner.uid);
        Ok(Site {
            accounts_not_enforced: settings.why_accounts_are_not_enforced(),
            jobs_hidden: hidden.then(|| jobs_hidden_from(self.inner.uid)),
            cluster: settings.cluster,
        })
    }
}

#[cfg(test)]
#[path = "slurm_tests.rs"]
mod tests;
