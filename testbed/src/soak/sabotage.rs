//! Does the harness notice? On the same cluster, with the real programs, things are broken behind its back, and each must
//! be found by the check that is there for it.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::clock::now;
use super::invariants::{self, Found, Violation};
use super::observer::Observer;
use super::schedule::Wanted;
use super::{Soak, locked, logs};
use crate::deadline::wait_for;
use crate::ours::HEAD_SECRET;

/// For a sabotage to be noticed.
const NOTICED: Duration = Duration::from_secs(60);

/// All of them, one after the other; gives what was found of each.
///
/// # Errors
/// One that was not noticed.
pub fn all(soak: &Soak<'_>, tell: &(dyn Fn(&str) + Sync)) -> Result<Vec<Violation>> {
    let mut caught = Vec::new();
    for (what, sabotage) in [
        ("a node misses a revocation", missed_revocation as fn(&Soak<'_>) -> Result<Violation>),
        ("a session without a job", session_without_a_job),
        ("a drained node", drained_node),
        ("a token in a log", token_in_a_log),
    ] {
        let violation = sabotage(soak).with_context(|| format!("sabotage: {what}"))?;
        tell(&format!("sabotage: {what}: noticed: {}", violation.what));
        caught.push(violation);
    }
    Ok(caught)
}

/// Looks and judges until the invariant is found broken.
fn noticed(soak: &Soak<'_>, invariant: &str) -> Result<Violation> {
    let mut observer = Observer::new(soak.cluster);
    let mut found = Found::default();
    wait_for(&format!("a violation of {invariant:?}"), NOTICED, || {
        observer.look(&soak.history);
        let history = locked(&soak.history);
        found.add(invariants::meanwhile(&history));
        found.add(logs::check(soak.cluster, &history.secrets));
        found.all().into_iter().find(|violation| violation.invariant == invariant)
    })
    .with_context(|| format!("found was {:?}", found.all()))
}

/// The node's wire is pulled, and nobody tells the harness: its credd, which cannot hear of the revocation, serves on
/// from its cache. Real credentials that should not be served are served.
fn missed_revocation(soak: &Soak<'_>) -> Result<Violation> {
    let (cluster, user) = (soak.cluster, "bob");
    let node = cluster.nodes().first().context("a node")?.name().to_owned();
    let client = soak.client.display();
    let script = format!("{client} soak-client --lasts 60000 --every 300\nexit 0");
    let job = cluster.as_user(user).sbatch(&script, &["-w", &node, "--output=/dev/null"])?;
    let mut observer = Observer::new(cluster);
    let served = |soak: &Soak<'_>| {
        let history = locked(&soak.history);
        history.runs.values().any(|run| run.begin.job == job && run.last.is_some_and(|(_, ok)| ok))
    };
    wait_for("the job to be served", NOTICED, || {
        observer.records(&soak.history);
        served(soak).then_some(())
    })?;
    cluster.unplug(&node)?;
    soak.revoke(Wanted::User(user));
    let caught = noticed(soak, "nobody is served after the revocation");
    cluster.plug_in(&node)?;
    cluster.as_user(user).scancel(job);
    caught
}

/// A head opens a session for a job that there is not.
fn session_without_a_job(soak: &Soak<'_>) -> Result<Violation> {
    let body = serde_json::json!({
        "sessionId": "4000000", "clusterName": soak.cluster.plan().cluster_name, "clusterUser": "alice",
        "projectId": "genomics", "submittedTime": "2026-01-31T12:00:00",
    });
    let url = format!("{}/sessions", soak.cluster.credvend_url());
    let (header, body) = (format!("Authorization: {HEAD_SECRET}"), body.to_string());
    let argv = ["curl", "-sk", "--fail-with-body", "-X", "POST", "-H", &header, "-d", &body, &url];
    let done = soak.cluster.head().run_as("root", &argv);
    ensure!(done.ok(), "{done:?}");
    noticed(soak, "no session is open without a job")
}

fn drained_node(soak: &Soak<'_>) -> Result<Violation> {
    let root = soak.cluster.head();
    let node = soak.cluster.nodes().last().context("a node")?.name().to_owned();
    let update =
        |state: &str| root.run_as_root(&format!("scontrol update nodename={node} state={state} reason=sabotage"));
    update("drain");
    let caught = noticed(soak, "no node is drained");
    update("resume");
    caught
}

/// A line with a token that some job had, in a log of credd's.
fn token_in_a_log(soak: &Soak<'_>) -> Result<Violation> {
    let secret = locked(&soak.history).secrets.first().cloned().context("no client wrote down a secret")?;
    let log = soak.cluster.nodes().first().context("a node")?.log_path("credd");
    writeln!(OpenOptions::new().append(true).open(log)?, "at {} ms: {secret}", now())?;
    noticed(soak, "no secret is in a log")
}
