//! `credvend check-config`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::bail;
use hyper::Method;
use nix::unistd::Uid;
use time::OffsetDateTime;

use super::{call, parts};
use crate::attest::command::Commands;
use crate::attest::submit_bounds::{self, Bounds};
use crate::config::{self, Config, ConfigError, ProjectsFrom, StoreKind};
use crate::server::admin::Status;
use crate::server::admin_socket::admin_group;
use crate::server::head_secrets::HeadSecrets;
use crate::server::tls::{Certificates, Files};
use crate::server::visible_group;
use crate::store::sqlite::{SCHEMA, SqliteStore};
use crate::{audit, checks};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also ask Slurm, munged, AWS (or the upstream) and DynamoDB whether they would let jobs have credentials, and
    /// Slurm whether it bounds its users' texts
    #[arg(long)]
    online: bool,
}

pub fn run(path: &Path, args: Args) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    let mut problems = Vec::new();
    let file = config.projects_from == ProjectsFrom::File;
    let projects = file.then(|| parts::projects(&config).map_err(|more| problems.extend(more)).ok()).flatten();
    if let Some(name) = &config.admin_group {
        problems.extend(admin_group(name, service_user(&config)).err());
    }
    if let Err(more) = HeadSecrets::open(parts::secret_files(&config)) {
        problems.extend(more);
    }
    // Its own directory is made at first start.
    if (config.state_dir.exists() || config.audit.path.parent() != Some(&config.state_dir))
        && let Err(why) = audit::check(&config.audit.path)
    {
        problems.push(format!("[audit] path: {}: {why}", config.audit.path.display()));
    }
    let files = Files::named(&config.tls, &config.state_dir);
    let (mut certificate, mut of_files) = (String::new(), Vec::new());
    if config.plain_http {
        certificate.push_str("none, plain HTTP");
    } else if files.made_here && files.fingerprint().is_err() {
        certificate.push_str("is made at first start");
    } else {
        match Certificates::open(files) {
            Ok(certificates) => {
                let live = certificates.live();
                certificate = format!("sha256:{}", live.fingerprint);
                of_files = live.warnings(OffsetDateTime::now_utc());
            }
            Err(error) => problems.push(error.to_string()),
        }
    }
    if !problems.is_empty() {
        return Err(ConfigError { path: path.display().to_string(), problems }.into());
    }
    println!("{} is valid", path.display());
    println!("certificate  {certificate}");
    if let Some(projects) = &projects {
        println!("projects     {}", projects.projects.len());
    }
    if let Some(upstream) = &config.upstream {
        println!("upstream     {} has the roles", upstream.url);
    }
    let of_map = projects.iter().flat_map(|map| parts::map_warnings(&config, map));
    let of_addresses = parts::address_warnings(&config);
    let of_group = config.admin_group.as_deref().and_then(visible_group::hidden);
    let warnings = parts::warnings(&config).into_iter().chain(of_group).chain(of_files);
    for warning in warnings.chain(of_addresses).chain(of_map) {
        println!("warning      {warning}");
    }
    let mut bad = store(&config, args.online)?;
    if args.online {
        bad |= super::block_on(online(&config))??;
        bad |= running(&config);
    }
    if bad {
        bail!("the configuration is valid, but not everything it names works");
    }
    Ok(())
}

/// Whose process will serve: this one's user, or, where root looks, the owner of the state directory.
fn service_user(config: &Config) -> Uid {
    let own = Uid::effective();
    let owner = std::fs::metadata(&config.state_dir).map(|directory| Uid::from_raw(directory.uid()));
    if own.is_root() { owner.unwrap_or(own) } else { own }
}

/// Whether something is wrong.
fn store(config: &Config, online: bool) -> anyhow::Result<bool> {
    let place = match config.store.kind {
        StoreKind::Sqlite => config.store.path.display().to_string(),
        StoreKind::Dynamodb => format!("DynamoDB tables {}*", config.store.table_prefix),
    };
    match config.store.kind {
        StoreKind::Sqlite if !config.store.path.exists() => {
            println!("store        {place} is made at first start");
            return Ok(false);
        }
        // Looked at only: the credvend that runs may be an older one, whose schema must stay.
        StoreKind::Sqlite => {
            let looked = SqliteStore::look(&config.store.path);
            match &looked {
                Ok(schema) if *schema < SCHEMA => {
                    println!(
                        "store        {place} is in order; schema {schema} becomes {SCHEMA} when this credvend starts"
                    );
                }
                Ok(schema) => println!("store        {place} is in order, schema {schema}"),
                Err(error) => println!("store        {error}"),
            }
            return Ok(looked.is_err());
        }
        StoreKind::Dynamodb if !online => {
            println!("store        {place}; --online asks whether they work");
            return Ok(false);
        }
        _ => {}
    }
    let result = super::block_on(async {
        let opened = parts::store(config).await?;
        opened.store.check().await?;
        if config.projects_from == ProjectsFrom::Store {
            match parts::projects_in_force(config, opened.dynamo.as_deref()).await {
                Ok(map) => println!("projects     {} in the store's table", map.projects.len()),
                Err(problems) => bail!("{}", problems.join("\n             ")),
            }
        }
        Ok(())
    })?;
    match &result {
        Ok(()) => println!("store        {place} works"),
        Err(error) => println!("store        {error:#}"),
    }
    Ok(result.is_err())
}

/// Whether something is wrong.
async fn online(config: &Config) -> anyhow::Result<bool> {
    let mut bad = false;
    for configured in &config.clusters {
        bad |= cluster(config, configured).await;
    }
    if let Some(options) = parts::upstream(config) {
        match crate::source::upstream::identity(&options).await {
            Ok(who) => println!("upstream     credvend is {who}"),
            Err(error) => {
                bad = true;
                println!("upstream     {error}");
            }
        }
        return Ok(bad);
    }
    let (source, _) = parts::aws(config).await?;
    match source.identity().await {
        Ok(arn) => println!("aws          credvend is {arn}; the projects' roles must trust it (sts:AssumeRole)"),
        Err(error) => {
            bad = true;
            println!("aws          {error}");
        }
    }
    Ok(bad)
}

/// What the service that runs here says of itself, which knows what jobs met. Whether something is wrong with its store.
fn running(config: &Config) -> bool {
    let status: Status = match call::admin(config, Method::GET, "/admin/v1/status") {
        Ok(status) => status,
        Err(_) => {
            println!("service      none answers at {}", config.admin_socket.display());
            return false;
        }
    };
    println!("service      runs here; its store: {}", status.store);
    for warning in status.warnings {
        println!("service      warning: {warning}");
    }
    status.store != "ok"
}

/// Whether users' overlong texts are refused. Not doing so is the site's choice, and no mistake of the configuration.
async fn texts(cluster: &config::Cluster) {
    let commands = Commands::new(cluster.slurm_bin.clone(), cluster.slurm_conf.clone(), 1);
    match submit_bounds::probe(&commands).await {
        Bounds::InForce => println!("cluster {}  bounds its users' texts before they reach a prolog", cluster.name),
        Bounds::Missing(why) => println!(
            "warning      cluster {}: a user's overlong text can drain its nodes: {why}; see \"Bounds for what users write\" in the guide",
            cluster.name
        ),
        Bounds::Unknown(why) => println!(
            "warning      cluster {}: whether a user's overlong text can drain its nodes was not found out: {why}",
            cluster.name
        ),
    }
}

/// Whether something is wrong.
async fn cluster(config: &Config, configured: &config::Cluster) -> bool {
    let (name, cluster) = (&configured.name, parts::cluster(configured));
    if cluster.attestor.is_none() {
        println!("cluster {name}  its head states the jobs");
        return false;
    }
    let slurm = checks::of_slurm(name, &cluster).await;
    let mut findings = slurm.findings;
    if findings.is_empty() {
        findings.extend(checks::of_jobs(&cluster).await);
        findings.extend(checks::of_addresses(name, &cluster).await);
    }
    if !findings.iter().any(|finding| finding.refuses) {
        match slurm.unenforced {
            None => println!("cluster {name}  answers, and enforces accounts"),
            Some(why) => println!("cluster {name}  answers, and does not enforce accounts: {why}"),
        }
    }
    if let Some(mut finding) = checks::of_munge(name, configured.munge_socket.clone()).await {
        // Nodes may have certificates instead.
        finding.refuses = config.tls.client_ca.is_none();
        findings.push(finding);
    }
    for finding in &findings {
        println!("{}      {}", if finding.refuses { "problem" } else { "warning" }, finding.text);
    }
    texts(configured).await;
    findings.iter().any(|finding| finding.refuses)
}
