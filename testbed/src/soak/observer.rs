//! Looks: at the clients' records, Slurm's jobs and nodes, credvend's sessions, and what the daemons use.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::asking::over_unix;
use super::clock::{Ms, Wall, now};
use super::history::{History, Issued, Job, JobKey, Session, Use};
use super::{locked, records};
use crate::cluster::Cluster;
use crate::daemon::Daemon;
use crate::host::Host;
use crate::people;

/// An administrator's question is answered from the store.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a job must not come to without a cause.
const ODD: [&str; 9] = [
    "FAILED",
    "NODE_FAIL",
    "BOOT_FAIL",
    "CANCELLED",
    "TIMEOUT",
    "OUT_OF_MEMORY",
    "DEADLINE",
    "REQUEUE_HOLD",
    "SPECIAL_EXIT",
];

/// The one who looks.
pub struct Observer<'a> {
    cluster: &'a Cluster,
    wall: Wall,
    /// How much of each user's record was read, and the line that is not complete yet.
    read: HashMap<&'static str, (u64, String)>,
}

impl<'a> Observer<'a> {
    /// Of this cluster.
    pub fn new(cluster: &'a Cluster) -> Self {
        Observer { cluster, wall: Wall::measured(), read: HashMap::new() }
    }

    /// One look at everything. What cannot be seen right now is left as it was.
    pub fn look(&mut self, history: &Mutex<History>) {
        let jobs = self.jobs();
        if let Ok(jobs) = jobs {
            merge_jobs(&mut locked(history), jobs, now());
        }
        self.nodes(history);
        self.records(history);
        if let Some(crowd) = crowd() {
            let mut history = locked(history);
            history.crowds.push((now(), crowd));
        }
        // Errors are credvend's outages, which the checks know.
        let _ = self.sessions(history);
        self.uses(history);
    }

    /// New lines of the clients'.
    pub fn records(&mut self, history: &Mutex<History>) {
        for user in people::USERS {
            let path = self.cluster.run_dir().join("home").join(user.name).join(records::FILE);
            let (offset, rest) = self.read.entry(user.name).or_default();
            let Ok(mut file) = File::open(path) else { continue };
            let mut new = Vec::new();
            if file.seek(SeekFrom::Start(*offset)).is_err() || file.read_to_end(&mut new).is_err() {
                continue;
            }
            *offset += new.len() as u64;
            rest.push_str(&String::from_utf8_lossy(&new));
            let Some(end) = rest.rfind('\n') else { continue };
            let whole: String = rest.drain(..=end).collect();
            let mut history = locked(history);
            for line in whole.lines() {
                match serde_json::from_str(line) {
                    Ok(line) => history.take(line),
                    Err(error) => history.wrong_answers.push(format!("a client wrote {line:?}: {error}")),
                }
            }
        }
    }

    /// All of Slurm's jobs, in one whole answer.
    fn jobs(&self) -> Result<HashMap<JobKey, (String, String, String)>> {
        // Times in seconds; %V is the submission, %r the reason, which no user can choose.
        let asked = "SLURM_TIME_FORMAT=%s timeout 8 squeue -h -a -r -t all -o '%A|%T|%V|%N|%r'";
        let done = self.cluster.head().run_as_root(asked);
        ensure!(done.ok(), "{done:?}");
        let mut jobs: HashMap<JobKey, (String, String, String)> = HashMap::new();
        for line in done.stdout.lines() {
            let fields: Vec<&str> = line.splitn(5, '|').collect();
            let [id, state, submitted, nodes, reason] = fields[..] else { bail!("squeue said {line:?}") };
            let key = (id.trim().parse()?, submitted.trim().parse()?);
            let one = (state.to_owned(), nodes.to_owned(), reason.to_owned());
            // Waiting tasks of an array share an id; the liveliest counts.
            let slot = jobs.entry(key).or_insert_with(|| one.clone());
            if life(&one.0) > life(&slot.0) {
                *slot = one;
            }
        }
        Ok(jobs)
    }

    fn nodes(&self, history: &Mutex<History>) {
        let states = self.cluster.head().run_as_root("timeout 8 sinfo -h -N -p batch -o '%N|%T|%E'");
        for line in states.stdout.lines().filter(|_| states.ok()) {
            let fields: Vec<&str> = line.splitn(3, '|').collect();
            let [node, state, reason] = fields[..] else { continue };
            if !state.contains("drain") {
                continue;
            }
            if locked(history).is_slurms_own_drain(node, reason) {
                locked(history).counts.slurms_own_drains += 1;
                self.cluster.head().run_as_root(&format!("scontrol update nodename={node} state=resume"));
            } else {
                locked(history).drained.entry(node.to_owned()).or_insert_with(|| format!("{state}: {reason}"));
            }
        }
    }

    fn admin(&self, method: &str, target: &str) -> Result<Value> {
        let socket = self.cluster.head().path("/run/credvend/admin.sock");
        let (status, body) = over_unix(&socket, method, target, PATIENCE)?;
        ensure!(status == 200, "{target}: {status} {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).context("credvend's JSON")
    }

    /// The open sessions; those that are no longer open are looked at once more, with what was issued to them.
    pub fn sessions(&self, history: &Mutex<History>) -> Result<()> {
        let at = now();
        let mut open = HashSet::new();
        let mut from = String::new();
        loop {
            let page = self.admin("GET", &format!("/admin/v1/sessions?status=active{from}"))?;
            for one in page["sessions"].as_array().context("sessions")? {
                let session = self.session(one, at)?;
                open.insert(session.id.clone());
                locked(history).sessions.entry(session.id.clone()).or_insert(session);
            }
            match page["next"].as_str() {
                Some(next) => from = format!("&from={}", encoded(next)),
                None => break,
            }
        }
        let closed: Vec<String> = {
            let history = locked(history);
            let ended = history.sessions.values().filter(|s| s.ended.is_none() && !open.contains(&s.id));
            ended.map(|s| s.id.clone()).collect()
        };
        for id in closed {
            self.whole_session(history, &id)?;
        }
        locked(history).now = at;
        Ok(())
    }

    /// Every session there ever was, with everything that was issued: for the end.
    pub fn all_sessions(&self, history: &Mutex<History>) -> Result<()> {
        let at = now();
        let mut ids = BTreeSet::new();
        let mut from = String::new();
        loop {
            let page = self.admin("GET", &format!("/admin/v1/sessions?{}", from.trim_start_matches('&')))?;
            for one in page["sessions"].as_array().context("sessions")? {
                ids.insert(one["session"].as_str().context("session")?.to_owned());
            }
            match page["next"].as_str() {
                Some(next) => from = format!("&from={}", encoded(next)),
                None => break,
            }
        }
        for id in ids {
            self.whole_session(history, &id)?;
        }
        let mut history = locked(history);
        history.all_issued = true;
        history.now = at;
        Ok(())
    }

    fn whole_session(&self, history: &Mutex<History>, id: &str) -> Result<()> {
        let whole = self.admin("GET", &format!("/admin/v1/sessions/{id}"))?;
        let session = self.session(&whole["session"], now())?;
        let mut history = locked(history);
        for one in whole["issued"].as_array().context("issued")? {
            let text = |name: &str| one[name].as_str().map(str::to_owned);
            let issued = Issued {
                session: id.to_owned(),
                node: text("node"),
                user: text("user").unwrap_or_default(),
                project: text("project").unwrap_or_default(),
            };
            history.issued.insert(text("key-id").context("key-id")?, issued);
        }
        let seen = history.sessions.get(id).map_or(session.seen, |known| known.seen);
        history.sessions.insert(id.to_owned(), Session { seen, ..session });
        Ok(())
    }

    fn session(&self, view: &Value, at: Ms) -> Result<Session> {
        let text = |name: &str| view[name].as_str().unwrap_or_default().to_owned();
        let submitted = time::OffsetDateTime::parse(&text("submitted"), &time::format_description::well_known::Rfc3339);
        Ok(Session {
            id: view["session"].as_str().context("session")?.to_owned(),
            status: text("status"),
            user: text("user"),
            project: text("project"),
            nodes: view["nodes"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|n| Some(n.as_str()?.to_owned()))
                .collect(),
            job: view["job"].as_u64().and_then(|job| u32::try_from(job).ok()),
            restart: view["restart"].as_u64().and_then(|restart| u32::try_from(restart).ok()).unwrap_or_default(),
            submitted: submitted.ok().and_then(|at| u64::try_from(at.unix_timestamp()).ok()).unwrap_or_default(),
            ended: view["ended"].as_str().and_then(|at| self.wall.of_text(at)),
            why: text("why"),
            seen: at,
        })
    }

    /// Our daemons, by host and name, with their processes in the host's numbers.
    fn daemons(&self) -> Vec<(String, &Host, i32)> {
        let mut all = Vec::new();
        let running = |daemon: Daemon| daemon.pid();
        if let Some(pid) = running(self.cluster.credvend()) {
            all.push(("head credvend".to_owned(), self.cluster.head(), pid));
        }
        for node in self.cluster.nodes() {
            let Some(keeper) = running(node.credd()) else { continue };
            all.push((format!("{} credd", node.name()), node, keeper));
            if let Some(server) = super::faults::child_of(node, keeper) {
                all.push((format!("{} credd's server", node.name()), node, server));
            }
        }
        all
    }

    fn uses(&self, history: &Mutex<History>) {
        for (name, host, pid) in self.daemons() {
            let Some(used) = used(host, pid) else { continue };
            let mut history = locked(history);
            let uses = history.uses.entry(name).or_default();
            if uses.early == Use::default() {
                uses.early = used;
            }
            uses.most = Use { rss: uses.most.rss.max(used.rss), fds: uses.most.fds.max(used.fds) };
            uses.last = used;
        }
    }

    /// From now on what is used counts as early: what came before was the start.
    pub fn forget_early(&self, history: &Mutex<History>) {
        locked(history).uses.clear();
        self.uses(history);
    }

    /// What is left of job records, and on which node.
    pub fn left_on_nodes(&self) -> Vec<(String, PathBuf)> {
        let mut left = Vec::new();
        for node in self.cluster.nodes() {
            for dir in ["jobs", "ended", "new", "tokens"] {
                let entries = fs::read_dir(node.path(&format!("/run/credd/{dir}"))).into_iter().flatten().flatten();
                left.extend(entries.map(|entry| (node.name().to_owned(), entry.path())));
            }
        }
        left
    }
}

/// The load of the last minute over four times the number of cores: at 1 each process waits about as long as four others.
fn crowd() -> Option<f64> {
    let load: f64 = fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()?;
    let cores = std::thread::available_parallelism().ok()?.get();
    Some(load / (4 * cores) as f64)
}

/// How lively a state is.
fn life(state: &str) -> u8 {
    match state {
        "RUNNING" | "SUSPENDED" => 3,
        "COMPLETING" => 2,
        "PENDING" | "CONFIGURING" | "REQUEUED" | "REQUEUE_HOLD" => 1,
        _ => 0,
    }
}

/// Takes a whole answer of Slurm's.
fn merge_jobs(history: &mut History, jobs: HashMap<JobKey, (String, String, String)>, at: Ms) {
    for (key, job) in &mut history.jobs {
        if !jobs.contains_key(key) && job.over.is_none() {
            job.over = Some(at);
        }
    }
    for (key, (state, nodes, reason)) in jobs {
        // A requeue shows as a job that waits again, or as another submission under its id. It was the node's doing where
        // it ran, so it is put down to that life.
        let waits = life(&state) == 1;
        for ((id, submitted), job) in &mut history.jobs {
            let again = (*submitted == key.1 && waits) || *submitted < key.1;
            if *id == key.0 && again && life(&job.state) > 1 {
                job.odd.push((at, "requeued".into()));
                job.state = "REQUEUED".into();
            }
        }
        let job = history.jobs.entry(key).or_insert_with(|| Job { seen: at, ..Job::default() });
        if reason.to_ascii_lowercase().contains("held") && job.state != state {
            job.odd.push((at, format!("held: {reason}")));
        }
        if ODD.contains(&state.as_str()) && job.state != state {
            job.odd.push((at, state.clone()));
        }
        if life(&state) > 1 {
            job.alive = at;
        }
        match life(&state) {
            0 => job.over = job.over.or(Some(at)),
            _ => job.over = None,
        }
        // n1, n2 and n[1-3]: fewer than ten nodes.
        let digits = nodes.replace("n[", "").replace([']', 'n'], "");
        for part in digits.split(',').filter(|part| !part.is_empty()) {
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            let range = low.parse::<u32>().unwrap_or(1)..=high.parse::<u32>().unwrap_or(0);
            job.nodes.extend(range.map(|n| format!("n{n}")));
        }
        job.state = state;
    }
}

fn used(host: &Host, pid: i32) -> Option<Use> {
    let status = fs::read_to_string(host.path(&format!("/proc/{pid}/status"))).ok()?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok())?;
    let fds = fs::read_dir(host.path(&format!("/proc/{pid}/fd"))).ok()?.count() as u64;
    Some(Use { rss, fds })
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soak::faults::{Fault, How, Target};
    use crate::soak::history::Span;

    fn answer(rows: &[(u32, u64, &str, &str, &str)]) -> HashMap<JobKey, (String, String, String)> {
        let row = |&(id, at, state, nodes, reason): &(u32, u64, &str, &str, &str)| {
            ((id, at), (state.to_owned(), nodes.to_owned(), reason.to_owned()))
        };
        rows.iter().map(row).collect()
    }

    #[test]
    fn jobs_come_run_end_and_vanish() {
        let mut history = History::default();
        merge_jobs(
            &mut history,
            answer(&[(7, 1, "RUNNING", "n[1-2]", "None"), (8, 1, "PENDING", "", "Resources")]),
            10,
        );
        assert_eq!(history.jobs[&(7, 1)].nodes, ["n1", "n2"].map(str::to_owned).into());
        merge_jobs(&mut history, answer(&[(7, 1, "COMPLETED", "n[1-2]", "None")]), 20);
        assert_eq!((history.jobs[&(7, 1)].over, history.jobs[&(7, 1)].alive), (Some(20), 10));
        assert_eq!(history.jobs[&(8, 1)].over, Some(20), "absent from a whole answer");
        assert!(history.jobs.values().all(|job| job.odd.is_empty()));
    }

    #[test]
    fn only_a_killed_slurmctld_explains_a_duplicate_id() {
        let mut history = History::default();
        let span = |how| Span { fault: Fault { target: Target::Slurmctld, how }, from: 0, until: None };
        history.faults.push(span(How::Restart));
        assert!(!history.is_slurms_own_drain("n1", "Duplicate jobid"));
        history.faults.push(span(How::Kill));
        assert!(history.is_slurms_own_drain("n1", "Duplicate jobid"));
        assert!(!history.is_slurms_own_drain("n1", "Prolog error"));
    }

    /// `slurm_drains_a_node_that_still_runs_the_job_it_is_given_again`, of the testbed's own tests, shows it without us.
    #[test]
    fn a_job_that_is_requeued_onto_the_unplugged_node_that_still_runs_it_is_slurms_doing() {
        let reason = "Duplicate jobid";
        let job = |seen, over, nodes: &[&str]| {
            let nodes = nodes.iter().map(|&node| node.to_owned()).collect();
            Job { seen, over, nodes, ..Job::default() }
        };
        let mut history = History { now: 99_000, ..History::default() };
        let unplugged = Fault { target: Target::Network("n1".into()), how: How::Unplug };
        history.faults.push(Span { fault: unplugged, from: 20_000, until: Some(50_000) });
        assert!(!history.is_slurms_own_drain("n1", reason), "no job was requeued");
        history.jobs.insert((7, 1), job(10_000, Some(45_000), &["n1"]));
        assert!(!history.is_slurms_own_drain("n1", reason), "not begun anew");
        history.jobs.insert((7, 2), job(46_000, None, &["n2"]));
        assert!(!history.is_slurms_own_drain("n1", reason), "elsewhere");
        for again in [&["n1"][..], &[]] {
            history.jobs.insert((7, 2), job(46_000, None, again));
            assert!(history.is_slurms_own_drain("n1", reason));
            assert!(!history.is_slurms_own_drain("n2", reason) && !history.is_slurms_own_drain("n1", "Prolog error"));
        }
        history.jobs.insert((7, 1), job(10_000, Some(15_000), &["n1"]));
        assert!(!history.is_slurms_own_drain("n1", reason), "it was over before");
        history.jobs.insert((7, 1), job(10_000, Some(45_000), &["n3"]));
        assert!(!history.is_slurms_own_drain("n1", reason), "it ran elsewhere");
    }

    /// `slurm_drains_a_node_that_was_cut_off_while_a_step_ended`, of the testbed's own tests, shows it without us.
    #[test]
    fn a_step_that_ended_on_an_unplugged_node_is_slurms_doing() {
        let reason = "Kill task failed";
        let mut history = History { now: 99_000, ..History::default() };
        let job = Job { seen: 10_000, over: Some(19_000), nodes: ["n1".to_owned()].into(), ..Job::default() };
        history.jobs.insert((7, 1), job);
        assert!(!history.is_slurms_own_drain("n1", reason), "the node was not cut off");
        let unplugged = Fault { target: Target::Network("n1".into()), how: How::Unplug };
        history.faults.push(Span { fault: unplugged, from: 20_000, until: Some(50_000) });
        assert!(history.is_slurms_own_drain("n1", reason));
        assert!(!history.is_slurms_own_drain("n2", reason), "another node");
        history.now = 150_000;
        assert!(!history.is_slurms_own_drain("n1", reason), "too long ago");
        history.now = 99_000;
        history.jobs.values_mut().for_each(|job| job.nodes = ["n2".to_owned()].into());
        assert!(!history.is_slurms_own_drain("n1", reason), "no job was there");
    }

    #[test]
    fn requeued_held_and_failed_jobs_are_odd_once() {
        let mut history = History::default();
        merge_jobs(&mut history, answer(&[(7, 1, "RUNNING", "n1,n3", "None")]), 10);
        for at in [20, 30] {
            let held = "launch failed requeued held";
            merge_jobs(&mut history, answer(&[(7, 5, "PENDING", "", held), (9, 1, "FAILED", "n1", "None")]), at);
        }
        assert_eq!(history.jobs[&(7, 1)].nodes, ["n1", "n3"].map(str::to_owned).into());
        assert_eq!(history.jobs[&(7, 1)].over, Some(20));
        let odd = |key| history.jobs[&key].odd.iter().map(|(at, what)| (*at, what.as_str())).collect::<Vec<_>>();
        assert_eq!(odd((7, 1)), [(20, "requeued")]);
        assert_eq!(odd((7, 5)), [(20, "held: launch failed requeued held")]);
        merge_jobs(&mut history, answer(&[(7, 5, "RUNNING", "n1", "None")]), 40);
        merge_jobs(&mut history, answer(&[(7, 5, "PENDING", "", "BeginTime")]), 50);
        assert_eq!(history.jobs[&(7, 5)].odd.last(), Some(&(50, "requeued".to_owned())));
        assert_eq!(history.jobs[&(9, 1)].odd.len(), 1);
    }
}
