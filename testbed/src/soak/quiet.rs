//! The end of a soak: nothing is disturbed any more, and everything must come to rest, each thing within its bound.

use std::time::Duration;

use anyhow::{Context, Result};

use super::clock::{Ms, now};
use super::invariants::Violation;
use super::observer::Observer;
use super::records::FILE;
use super::{Options, Soak, locked, taken};
use crate::deadline::wait_for;
use crate::people;

/// For nodes to answer slurmctld again, also one that it had given up.
const NODES: Duration = Duration::from_secs(90);
/// For every job that runs to be served: the longest wait between two tries of a node is a minute.
const SERVED: Duration = Duration::from_secs(90);
/// What a new job may take to its first document: SDKs would give up earlier, and a revocation of its user may be fresh.
const FIRST: Ms = 30_000;
/// For jobs to end when they are told to, one on a node that slurmctld had lost included.
const ENDED: Duration = Duration::from_secs(90);
/// For sessions to end after their jobs: a sweep or two.
const SWEPT: Duration = Duration::from_secs(25);
/// For a node to tell its last end: it waits a minute at most between two tries.
const TOLD: Duration = Duration::from_secs(75);

/// The file whose appearance ends the survivors.
const LET_GO: &str = "soak-let-go";

/// A job on each node that lives from the beginning to the end, of a user whose credentials are never revoked.
pub fn survivors(soak: &Soak<'_>, options: &Options) -> Result<Vec<u32>> {
    let bobby = soak.cluster.as_user("bobby");
    for user in people::USERS {
        soak.cluster.as_user(user.name).write_file(FILE, "")?;
    }
    let home = bobby.run(&["sh", "-c", "echo $HOME"]).expect_ok().to_owned();
    let lasts = options.lasts.as_millis() + 3_600_000;
    let nodes = soak.cluster.nodes();
    let jobs = nodes.iter().enumerate().map(|(nth, node)| {
        // The last node's has a role that bob has, too.
        let account = if nth + 1 == nodes.len() { "shared" } else { "genomics" };
        let client = soak.client.display();
        let script = format!("{client} soak-client --lasts {lasts} --every 400 --take --until {home}/{LET_GO}\nexit 0");
        bobby.sbatch(&script, &["-w", node.name(), "-A", account, "--output=/dev/null", "--job-name=survivor"])
    });
    let jobs: Vec<u32> = jobs.collect::<Result<_>>()?;
    locked(&soak.history).counts.submitted += jobs.len() as u64;
    Ok(jobs)
}

/// Waits for everything to come to rest; what does not is a violation.
pub fn come_to_rest(
    soak: &Soak<'_>,
    observer: &mut Observer<'_>,
    survivors: &[u32],
    tell: &(dyn Fn(&str) + Sync),
) -> Result<()> {
    let begun = now();
    let mut broken = Vec::new();
    let mut must = |invariant: &'static str, what: Result<()>| {
        if let Err(why) = what {
            let violation = Violation { invariant, subject: "the end".into(), what: format!("{why:#}") };
            tell(&format!("VIOLATION {invariant}: {}", violation.what));
            broken.push(violation);
        }
    };
    must("no daemon ends by itself", daemons_run(soak));
    must("nodes come back by themselves", nodes_are_back(soak));
    // New ones first: they need every part of it.
    must("every job can get credentials again", new_jobs_are_served(soak));
    must("every running job is served again", running_jobs_are_served(soak, observer, begun));
    locked(&soak.found).add(std::mem::take(&mut broken));
    soak.judge(tell);

    let mut must = |invariant: &'static str, what: Result<()>| {
        if let Err(why) = what {
            let violation = Violation { invariant, subject: "the end".into(), what: format!("{why:#}") };
            tell(&format!("VIOLATION {invariant}: {}", violation.what));
            broken.push(violation);
        }
    };
    let (tried, judged) = taken::judge(soak)?;
    locked(&soak.history).counts.tried = tried;
    locked(&soak.found).add(judged);
    must("every job ends", jobs_end(soak, observer, survivors));
    must("every session ends with its job", sessions_end(soak, observer));
    must("no record is left on a node", records_go(soak, observer));
    locked(&soak.found).add(std::mem::take(&mut broken));
    observer.look(&soak.history);
    observer.all_sessions(&soak.history).context("credvend's sessions cannot be read at the end")
}

/// Each was started again; one that does not run has ended by itself.
fn daemons_run(soak: &Soak<'_>) -> Result<()> {
    let cluster = soak.cluster;
    let mut daemons = vec![cluster.credvend(), cluster.slurmctld(), cluster.head().munged()];
    daemons.extend(cluster.nodes().iter().flat_map(|node| [node.credd(), node.slurmd(), node.munged()]));
    let gone: Vec<String> = daemons
        .iter()
        .filter(|daemon| daemon.pid().is_none())
        .map(|daemon| format!("{} on {} ended with {:?}", daemon.name, daemon.host.name(), daemon.ended()))
        .collect();
    anyhow::ensure!(gone.is_empty(), "{}", gone.join("; "));
    Ok(())
}

fn nodes_are_back(soak: &Soak<'_>) -> Result<()> {
    let mut last = String::new();
    wait_for("every node to be up", NODES, || {
        last = soak.cluster.head().run_as_root("timeout 8 sinfo -h -N -p batch -o '%N %T %E'").stdout;
        let up = |line: &&str| {
            ["idle", "mixed", "allocated", "completing"].contains(&line.split(' ').nth(1).unwrap_or_default())
        };
        (last.lines().filter(up).count() == soak.cluster.nodes().len()).then_some(())
    })
    .with_context(|| format!("Slurm says {last:?}"))
}

/// Each user on each node, at the same time.
fn new_jobs_are_served(soak: &Soak<'_>) -> Result<()> {
    let client = soak.client.display().to_string();
    let patience = FIRST.to_string();
    let failed: Vec<String> = std::thread::scope(|scope| {
        let mut asking = Vec::new();
        for node in soak.cluster.nodes() {
            for user in people::USERS {
                let arguments =
                    ["-w", node.name(), &client, "soak-client", "--once", "--every", "500", "--lasts", &patience];
                let arguments = arguments.map(str::to_owned);
                asking.push(scope.spawn(move || {
                    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                    let done = soak.cluster.as_user(user.name).srun(&arguments);
                    (!done.ok()).then(|| format!("{} on {}: {}", user.name, node.name(), done.stderr.trim()))
                }));
            }
        }
        asking.into_iter().filter_map(|thread| thread.join().ok().flatten()).collect()
    });
    locked(&soak.history).counts.submitted += (soak.cluster.nodes().len() * people::USERS.len()) as u64;
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

/// Every client that still asks, and whose user was not revoked since it began, was served since the end began.
fn running_jobs_are_served(soak: &Soak<'_>, observer: &mut Observer<'_>, since: Ms) -> Result<()> {
    let mut without = Vec::new();
    wait_for("every running job to be served", SERVED, || {
        observer.records(&soak.history);
        let history = locked(&soak.history);
        let at = now();
        let unserved = history.runs.values().filter(|run| {
            let asks = run.end.is_none() && run.last.is_some_and(|(last, _)| last + 6_000 > at);
            let revoked = history
                .revocations
                .iter()
                .any(|r| history.concerns(r, run) && r.done.is_none_or(|done| done >= run.begin.at));
            let given_up = history.jobs.iter().any(|((id, _), job)| *id == run.begin.job && job.over.is_some());
            let served = run.last.is_some_and(|(last, ok)| ok && last >= since);
            asks && !revoked && !given_up && !served
        });
        without = unserved.map(|run| format!("{:?}", run.begin)).collect();
        without.is_empty().then_some(())
    })
    .with_context(|| without.join("; "))
}

/// The survivors end by themselves, the others and those that wait to begin again are cancelled.
fn jobs_end(soak: &Soak<'_>, observer: &mut Observer<'_>, survivors: &[u32]) -> Result<()> {
    soak.cluster.as_user("bobby").write_file(LET_GO, "")?;
    let alive = |soak: &Soak<'_>| -> Vec<u32> {
        let history = locked(&soak.history);
        history.jobs.iter().filter(|(_, job)| job.over.is_none()).map(|((id, _), _)| *id).collect()
    };
    observer.look(&soak.history);
    // After its node had failed, Slurm may hold a survivor for ever: "already running, do not launch second copy".
    let waiting = |id: u32| {
        let history = locked(&soak.history);
        let mut runs = history.jobs.iter().filter(|((job, _), seen)| *job == id && seen.over.is_none());
        runs.any(|(_, seen)| seen.state == "PENDING")
    };
    let others: Vec<u32> = alive(soak).into_iter().filter(|job| !survivors.contains(job) || waiting(*job)).collect();
    if !others.is_empty() {
        let ids: Vec<String> = others.iter().map(u32::to_string).collect();
        {
            let mut history = locked(&soak.history);
            history.counts.cancelled += others.len() as u64;
            history.ours.extend(others);
        }
        for id in ids {
            // A task of an array whose first job a killed slurmctld has lost is listed by it for ever, and unknown to it, or
            // to scancel alone.
            let done = soak.cluster.head().run_as_root(&format!("scancel -v {id} 2>&1; scontrol show job {id} 2>&1"));
            if done.stdout.contains("Invalid job id") {
                locked(&soak.history).ghosts.extend(id.parse::<u32>());
            }
        }
    }
    let ghosts = locked(&soak.history).ghosts.clone();
    let alive = |soak: &Soak<'_>| -> Vec<u32> { alive(soak).into_iter().filter(|job| !ghosts.contains(job)).collect() };
    wait_for("every job to end", ENDED, || {
        observer.look(&soak.history);
        alive(soak).is_empty().then_some(())
    })
    .with_context(|| format!("alive: {:?}", alive(soak)))
}

fn sessions_end(soak: &Soak<'_>, observer: &mut Observer<'_>) -> Result<()> {
    let open = || locked(&soak.history).open_sessions().map(|session| session.id.clone()).collect::<Vec<_>>();
    wait_for("every session to end", SWEPT, || {
        observer.sessions(&soak.history).ok()?;
        open().is_empty().then_some(())
    })
    .with_context(|| format!("open: {:?}", open()))
}

/// Those whose epilog Slurm itself has lost are told in the report: they stay until the node restarts.
fn records_go(soak: &Soak<'_>, observer: &Observer<'_>) -> Result<()> {
    let mut lost = std::collections::BTreeSet::new();
    let mut left = Vec::new();
    let done = wait_for("every record on the nodes to go", TOLD, || {
        let history = locked(&soak.history);
        left = observer.left_on_nodes();
        left.retain(|(node, path)| {
            let job = path.file_name().and_then(|name| name.to_str()?.split(['-', '.']).next()?.parse().ok());
            let excused = job.is_some_and(|job| history.lost_epilog(job, node));
            if excused {
                lost.insert((node.clone(), job));
            }
            !excused
        });
        left.is_empty().then_some(())
    });
    locked(&soak.history).counts.lost_epilogs = lost.len();
    done.with_context(|| format!("left: {left:?}"))
}
