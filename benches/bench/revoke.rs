//! From a revocation to the last of a thousand nodes refusing: a real credvend over TLS, and in this process a thousand
//! nodes of credd's own server code, each with its standing stream, its certificate and the job's credentials in its
//! cache. Slurm is a script that says what runs, AWS an STS that answers at once.
//!
//! Each trial is a job of its own on all nodes. The clock runs from before the administrator's request is written until
//! the last node has refused a process of the job; every node asks its cache at the moment it hears.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use credd::control::{Job, RunId};
use credd::server::simulated::{JobHere, Node};
use credd_protocol::record::JobOptions;
use credd_protocol::{JobId, JobToken, Uid};
use credvend::attest::squeue::made_up as squeue;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tokio::task::{JoinSet, LocalSet};

use crate::figure::Figure;
use crate::sample::Sample;
use crate::scratch::{self, Cpu, Process, command, free_port};
use crate::sts;

const NODES: usize = 1000;
const TRIALS: u32 = 100;
const CLUSTER: &str = "bench";
const UID: u32 = 61_001;
/// No part of a trial takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

struct Service {
    url: String,
    pin: String,
    admin: PathBuf,
    dir: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
    _process: Process,
}

/// Measures it.
pub fn measure() -> Result<Vec<Figure>> {
    let service = start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut last, mut median, mut fetched) = (Sample::default(), Sample::default(), Sample::default());
    LocalSet::new().block_on(&runtime, async {
        let nodes = nodes(&service).await?;
        for trial in 1..=TRIALS {
            let begun = Instant::now();
            let jobs = run_job(&service, &nodes, trial).await.with_context(|| format!("trial {trial}"))?;
            fetched.push(begun.elapsed().as_secs_f64());
            let times = revoke(&service, &nodes, jobs, trial).await.with_context(|| format!("trial {trial}"))?;
            last.push(times.quantile(1.0));
            median.push(times.median());
            if trial % 20 == 0 {
                eprintln!("bench: revoke: {trial} of {TRIALS} trials, the longest so far {:.3} s", last.quantile(1.0));
            }
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let detail = format!("{NODES} nodes, {TRIALS} trials; the longest {:.3} s", last.quantile(1.0));
    Ok(vec![
        Figure::new("revoke → the last of 1,000 nodes refuses, p99", last.quantile(0.99), "s")
            .at_most(1.0)
            .detail(detail),
        Figure::new("the same, median of the trials", last.median(), "s"),
        Figure::new("revoke → the median node refuses, median", median.median(), "s"),
        Figure::new("for comparison: a job starts, its 1,000 nodes have credentials", fetched.median(), "s"),
    ])
}

/// All nodes, each with its stream open.
async fn nodes(service: &Service) -> Result<Vec<Rc<Node>>> {
    let mut nodes = Vec::with_capacity(NODES);
    for number in 1..=NODES {
        let (certificate, key) = service.certificate(&name_of(number))?;
        let (certificate, key) =
            (write(&service.dir, "node.crt", &certificate)?, write(&service.dir, "node.key", &key)?);
        let text = format!(
            "cluster = {CLUSTER:?}\n[credvend]\nurl = {:?}\npin = {:?}\ncertificate = {certificate:?}\nkey = {key:?}\n\
             request-timeout = \"30s\"\nconnect-timeout = \"10s\"\n",
            service.url, service.pin
        );
        let config = credd::config::parse(&text).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
        nodes.push(Rc::new(Node::start(&config)?));
    }
    until("all nodes listen", || nodes.iter().all(|node| node.listens())).await?;
    Ok(nodes)
}

/// A job starts on all nodes, and each of them has its credentials.
async fn run_job(service: &Service, nodes: &[Rc<Node>], trial: u32) -> Result<Vec<JobHere>> {
    say_that_it_runs(&service.dir, trial)?;
    let mut waiting = JoinSet::new();
    let mut jobs = vec![];
    for (number, node) in (1..).zip(nodes) {
        let job = node.job(record(trial, number)?)?;
        jobs.push(job.clone());
        let node = node.clone();
        waiting.spawn_local(async move {
            let deadline = Instant::now() + PATIENCE;
            loop {
                match node.credentials(&job).await {
                    Ok(_) => return Ok(()),
                    Err(why) if Instant::now() > deadline => anyhow::bail!("no credentials: {why}"),
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        });
    }
    while let Some(outcome) = waiting.join_next().await {
        outcome??;
    }
    Ok(jobs)
}

/// The job's user is revoked; how long each node still served.
async fn revoke(service: &Service, nodes: &[Rc<Node>], jobs: Vec<JobHere>, trial: u32) -> Result<Sample> {
    let mut waiting = JoinSet::new();
    for (node, job) in nodes.iter().zip(&jobs) {
        let (node, job) = (node.clone(), job.clone());
        waiting.spawn_local(async move {
            node.refused(&job).await;
            (node.credentials(&job).await.is_err(), Instant::now())
        });
    }
    // Every node waits for the word now.
    tokio::task::yield_now().await;
    let admin = service.admin.clone();
    let request = tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        Ok::<_, anyhow::Error>((begun, order(&admin, &user_of(trial))?))
    });
    let all = async {
        let mut refused = vec![];
        while let Some(outcome) = waiting.join_next().await {
            let (refuses, at) = outcome?;
            ensure!(refuses, "a node serves although it has heard");
            refused.push(at);
        }
        Ok(refused)
    };
    let ordered = async { request.await? };
    let (refused, (begun, _)) = tokio::time::timeout(PATIENCE, async { tokio::try_join!(all, ordered) }).await??;
    for (node, job) in nodes.iter().zip(&jobs) {
        node.end(job);
    }
    Ok(refused.into_iter().map(|at| (at - begun).as_secs_f64()).collect())
}

/// Orders the revocation on the administrators' socket, as `credvend revoke --user` does.
fn order(socket: &Path, user: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    let body = format!(r#"{{"subject":{{"user":"{user}"}}}}"#);
    write!(
        stream,
        "POST /admin/v1/revocations HTTP/1.1\r\nHost: credvend\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    // 202: done, but for what needs a revoker role.
    let status = answer.lines().next().unwrap_or_default().to_owned();
    ensure!(status.starts_with("HTTP/1.1 20"), "credvend answered {status}");
    Ok(status)
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        ensure!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn name_of(number: usize) -> String {
    format!("n{number:04}")
}

fn user_of(trial: u32) -> String {
    format!("user{trial}")
}

fn record(trial: u32, number: usize) -> Result<Job> {
    let token = JobToken::mint()?;
    Ok(Job {
        run: RunId::of(token.hash()),
        job: JobId::try_from(trial)?,
        restart: 0,
        cluster: CLUSTER.parse()?,
        node: name_of(number).parse()?,
        user: user_of(trial).parse()?,
        uid: Uid(UID + trial),
        account: Some("genomics".parse()?),
        partition: "batch".parse()?,
        sluid: None,
        het_leader: None,
        first_node: number == 1,
        token: token.hash(),
        options: JobOptions::default(),
        session: None,
        refused: None,
        ended: false,
    })
}

/// What the pretend squeue prints from now on.
fn say_that_it_runs(dir: &Path, trial: u32) -> Result<()> {
    let nodes = format!("n[0001-{NODES:04}]");
    let mut text = squeue::header();
    text.push_str(&squeue::running(trial, UID + trial, &user_of(trial), "genomics", &nodes));
    fs::write(dir.join("queue.new"), text)?;
    fs::rename(dir.join("queue.new"), dir.join("queue"))?;
    Ok(())
}

fn write(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(path)
}

impl Service {
    /// A node's certificate and its key, PEM.
    fn certificate(&self, node: &str) -> Result<(String, String)> {
        let mut params = CertificateParams::new(vec!["node".to_owned()])?;
        params.subject_alt_names.push(SanType::URI(format!("credd:node:{CLUSTER}:{node}").try_into()?));
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.authority)?.pem(), key.serialize_pem()))
    }
}

fn start() -> Result<Service> {
    let dir = scratch::dir("revoke")?;
    let (state, bin) = (dir.join("state"), dir.join("bin"));
    for made in [&state, &bin] {
        fs::create_dir_all(made)?;
        fs::set_permissions(made, fs::Permissions::from_mode(0o700))?;
    }
    let squeue = bin.join("squeue");
    fs::write(&squeue, format!("#!/bin/sh\nexec cat {}\n", dir.join("queue").display()))?;
    fs::set_permissions(&squeue, fs::Permissions::from_mode(0o755))?;
    say_that_it_runs(&dir, 1)?;

    let mut params = CertificateParams::new(vec!["authority".to_owned()])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let client_ca = write(&dir, "ca.pem", &authority.pem())?;
    let role = "arn:aws:iam::123456789012:role/projects/genomics";
    let projects = write(&dir, "projects.toml", &format!("[projects.genomics]\nrole-arn = {role:?}\n"))?;
    let (aws, port, admin) = (sts::start()?, free_port()?, dir.join("admin.sock"));
    let config = write(
        &dir,
        "credvend.toml",
        &format!(
            "listen = [\"127.0.0.1:{port}\"]\nstate-dir = {state:?}\nadmin-socket = {admin:?}\nprojects = {projects:?}\n\
             [tls]\nnames = [\"localhost\"]\nclient-ca = {client_ca:?}\n\
             [limits]\nmax-connections-per-address = 16384\n\
             [aws]\nregion = \"us-east-1\"\nsts-endpoint = \"http://{aws}\"\niam-endpoint = \"http://{aws}\"\n\
             [[cluster]]\nname = {CLUSTER:?}\nattest = \"slurm\"\nslurm-bin = {bin:?}\nnode-address-check = \"off\"\n\
             trust-unenforced-accounts = true\n\
             [log]\nfilter = \"warn\"\n",
        ),
    )?;
    let log = dir.join("credvend.log");
    let mut credvend = command(&testbed::software::program("credvend")?, Cpu::Any, None);
    credvend.arg("--config").arg(&config).arg("serve");
    credvend.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").env("HOME", &state);
    let mut process = Process::start(&mut credvend, &log)?;
    // Printed when it listens.
    let mut pin = None;
    process.wait_ready(&log, || {
        let said = fs::read_to_string(&log).unwrap_or_default();
        let printed = said.lines().find(|line| line.contains("sha256:"));
        pin = printed
            .and_then(|line| line.split_whitespace().find(|word| word.starts_with("sha256:")).map(str::to_owned));
        pin.is_some() && UnixStream::connect(&admin).is_ok()
    })?;
    let (url, pin) = (format!("https://127.0.0.1:{port}"), pin.context("credvend prints its pin")?);
    Ok(Service { url, pin, admin, dir, authority, _process: process })
}
