//! `credvend revoke` and `credvend unblock`.

use std::time::Duration;

use anyhow::{Context, bail};
use credd_protocol::credentials::rfc3339_z;
use credd_protocol::{ClusterName, JobId, NodeName, ProjectId, RoleArn, UserName};
use hyper::Method;

use super::call;
use super::session::encode_query;
use crate::config::Config;
use crate::server::admin::{RoleView, SessionPage};
use crate::server::revocations::{RevokeRequest, UnblockRequest, Unblocked};
use crate::store::{Denied, OrderId, Subject};
use crate::vending::revoking::report::RoleReport;
use crate::vending::revoking::{Bystander, RevocationReport};

/// How often it is asked how far the revocation has come.
const LOOK: Duration = Duration::from_secs(1);

/// How long ended sessions stay in the store, in words.
const KEPT: &str = "90 days";

/// How many names of each kind people are shown; `--json` has them all.
const SHOWN: usize = 20;

/// Whom; exactly one.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Whom {
    /// Exactly this user, by login name
    #[arg(long)]
    user: Option<UserName>,
    /// Exactly this project, as in projects.toml
    #[arg(long)]
    project: Option<ProjectId>,
    /// This Slurm job, every run of it so far: CLUSTER/JOB, or JOB with --cluster. A task of an array and a component of a
    /// heterogeneous job are jobs of their own, by their raw ids
    #[arg(long, value_name = "[CLUSTER/]JOB")]
    job: Option<String>,
    /// Every job that has this node: CLUSTER/NODE, or NODE with --cluster
    #[arg(long, value_name = "[CLUSTER/]NODE")]
    node: Option<String>,
    /// Every job of a project that has this role, and whoever was issued its credentials
    #[arg(long, value_name = "ARN")]
    role: Option<RoleArn>,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    whom: Whom,
    /// Only on this cluster; may be repeated
    #[arg(long)]
    cluster: Vec<ClusterName>,
    /// Change nothing, and tell what would happen
    #[arg(long)]
    dry_run: bool,
    /// For the job's user, the audit log and `credvend revocation list`
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
    /// Deny everything that was issued of the roles concerned, to whomever
    #[arg(long)]
    wide: bool,
    /// Keep the user, project, node or role out until `credvend unblock`
    #[arg(long)]
    block: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct UnblockArgs {
    #[command(flatten)]
    whom: Whom,
    /// Of a node
    #[arg(long)]
    cluster: Option<ClusterName>,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// Not everything was reached; the report has said what.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Lacking(String);

pub fn run(config: &Config, args: Args) -> anyhow::Result<()> {
    let (subject, clusters) = subject(config, args.whom, args.cluster)?;
    let id = OrderId::random();
    let request = RevokeRequest {
        id: Some(id),
        subject,
        clusters: (!clusters.is_empty()).then_some(clusters),
        why: args.why,
        wide: args.wide,
        block: args.block,
        dry_run: args.dry_run,
    };
    let body = call::json(&request)?;
    let report: RevocationReport = super::block_on(async {
        let asking = call::ask(config, Method::POST, "/admin/v1/revocations", body);
        tokio::pin!(asking);
        let mut told = 0;
        loop {
            tokio::select! {
                report = &mut asking => return report,
                () = tokio::time::sleep(LOOK), if !request.dry_run => progress(config, id, &mut told).await,
            }
        }
    })??;
    if args.json {
        super::print_json(&report)?;
    } else {
        print!("{}", shown(&report));
    }
    let mut missing: Vec<String> = nobody(config, &report)?.into_iter().collect();
    if report.blocked {
        // Somebody who has had no job yet may well be kept out.
        missing.drain(..).for_each(|nobody| eprintln!("credvend: {nobody}; kept out all the same"));
    }
    if !report.complete() {
        missing.push(lacking(&report));
    }
    if missing.is_empty() { Ok(()) } else { Err(Lacking(missing.join("; ")).into()) }
}

/// What a report about nothing may mean: a name that is mistyped revokes nobody, and must not read as success. `None` if
/// the store or the map knows the name. Of nodes neither is asked: that no job has one now is no mistake.
fn nobody(config: &Config, report: &RevocationReport) -> anyhow::Result<Option<String>> {
    if report.sessions_total > 0 || report.nodes.concerned > 0 || !report.roles.is_empty() {
        return Ok(None);
    }
    let known = |query: String| -> anyhow::Result<bool> {
        let page: SessionPage = call::admin(config, Method::GET, &format!("/admin/v1/sessions?{query}"))?;
        Ok(!page.sessions.is_empty() || page.next.is_some())
    };
    let in_map = |is: &dyn Fn(&RoleView) -> bool| -> anyhow::Result<bool> {
        let roles: Vec<RoleView> = call::admin(config, Method::GET, "/admin/v1/projects")?;
        Ok(roles.iter().any(is))
    };
    let unknown = match &report.subject {
        Subject::User(user) if !known(format!("user={}", encode_query(user.as_str())))? => {
            format!("nobody of the name {user} has had a session here in {KEPT}")
        }
        Subject::Project(project)
            if !in_map(&|role| role.project == *project)?
                && !known(format!("project={}", encode_query(project.as_str())))? =>
        {
            format!("no project {project} is known here, nor has one of that name had a session in {KEPT}")
        }
        Subject::Job(cluster, job) if !known(format!("cluster={}&job={job}", encode_query(cluster.as_str())))? => {
            format!("job {job} of cluster {cluster} has had no session here in {KEPT}")
        }
        Subject::Role(role) if !in_map(&|known| known.role_arn == role.as_str())? => {
            format!("no project has the role {role}, and nothing of it is known to live")
        }
        _ => return Ok(None),
    };
    Ok(Some(format!("{unknown}; check the spelling")))
}

/// Says on stderr how far it has come, if that is news.
async fn progress(config: &Config, id: OrderId, told: &mut u8) {
    let path = format!("/admin/v1/revocations/{id}");
    let Ok(report) = call::ask::<RevocationReport>(config, Method::GET, &path, Default::default()).await else {
        return;
    };
    match report.took.refuse_ms {
        Some(ms) if *told < 1 => {
            *told = 1;
            eprintln!("{} sessions are ended, after {ms} ms; the nodes and AWS are told …", report.sessions_total);
        }
        _ => {}
    }
}

/// What is lacking, in one sentence.
fn lacking(report: &RevocationReport) -> String {
    let mut parts = vec![];
    if let Some(why) = &report.unfinished {
        parts.push(why.clone());
    }
    let unheard = report.nodes.concerned - report.nodes.dropped;
    // A rehearsal tells no node anything.
    if unheard > 0 && !report.dry_run {
        parts.push(format!("{unheard} nodes were not heard of"));
    }
    if !report.not_denied.is_empty() {
        let would = if report.dry_run { "AWS would still accept" } else { "AWS still accepts" };
        parts.push(format!(
            "{would} credentials of these roles until they expire:\n  {}",
            report.not_denied.join("\n  ")
        ));
    }
    parts.join("; ")
}

/// The report, for people.
pub fn shown(report: &RevocationReport) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let mut line = |what: &str, rest: String| {
        let _ = writeln!(text, "{what:<11}{rest}");
    };
    let after = |ms: Option<u64>| ms.map(|ms| format!(", after {ms} ms")).unwrap_or_default();
    let would = if report.dry_run { "would be " } else { "" };
    line(
        "revocation",
        if report.dry_run { "none: a rehearsal, nothing is changed".into() } else { report.id.to_string() },
    );
    let clusters = report.clusters.iter().flatten().map(ClusterName::as_str).collect::<Vec<_>>().join(", ");
    let on = if clusters.is_empty() { String::new() } else { format!(" on {clusters}") };
    line("of", format!("{}{on}", subject_shown(&report.subject)));
    let why = report.why.as_ref().map(|why| format!(": {why:?}")).unwrap_or_default();
    line("ordered", format!("at {} by {}{why}", rfc3339_z::format(report.at), report.by));
    if report.blocked {
        line("blocked", format!("{would}kept out until `credvend unblock`"));
    }
    line("sessions", format!("{} {would}ended{}", report.sessions_total, after(report.took.refuse_ms)));
    let nodes = &report.nodes;
    if report.dry_run {
        line("nodes", format!("{} may hold credentials of them", nodes.concerned));
    } else {
        let took = after(report.took.drop_ms);
        line("nodes", format!("{} of {} dropped what they held{took}", nodes.dropped, nodes.concerned));
    }
    for (cluster, list) in &nodes.dropped_on {
        line("", format!("{list} of {cluster}"));
    }
    for node in nodes.unheard.iter().take(SHOWN) {
        let until = rfc3339_z::format(node.may_serve_until);
        line(
            "",
            format!("{} of {} was not heard of: it may serve what it holds until {until}", node.node, node.cluster),
        );
    }
    if nodes.unheard.len() > SHOWN {
        line("", format!("and {} more", nodes.unheard.len() - SHOWN));
    }
    for role in &report.roles {
        line(
            "role",
            format!("{}{}", role.role_arn, if role.in_force { after(report.took.deny_ms) } else { String::new() }),
        );
        role_shown(role, would, &mut line);
    }
    if report.upstream_gave > 0 {
        let gave = format!("{} sets of credentials are from it", report.upstream_gave);
        let denied = !report.dry_run && report.not_denied.is_empty() && report.unfinished.is_none();
        line(
            "upstream",
            if denied { format!("{gave}, and it has denied them") } else { format!("{gave}, and its to deny") },
        );
    } else if report.roles.is_empty() && report.upstream_hit.is_empty() {
        line("roles", "nothing that was issued lives".into());
    }
    if !report.upstream_hit.is_empty() {
        line("", "it denies every name in which the user's occurs".into());
        bystanders_shown(&report.upstream_hit, report.upstream_hit_total, &mut line);
    }
    text
}

fn role_shown(role: &RoleReport, would: &str, line: &mut impl FnMut(&str, String)) {
    let before = rfc3339_z::format(role.issued_before);
    let state = match (&role.why_not, role.in_force) {
        (Some(_), _) => "NOT IN FORCE",
        (None, true) => "in force",
        (None, false) => "not written",
    };
    line(
        "",
        format!(
            "{} sets of credentials {would}denied, issued before {before}, by {} names ({state})",
            role.credentials, role.denied_total
        ),
    );
    for denied in role.denied.iter().take(SHOWN) {
        line(
            "",
            match denied {
                Denied::SourceIdentity(name) => format!("  source identity {name:?}"),
                Denied::UserId(id) => format!("  user id {id:?}"),
                Denied::Everyone => "  everyone".into(),
            },
        );
    }
    if role.denied_total > SHOWN {
        line("", format!("  and {} more", role.denied_total - SHOWN));
    }
    bystanders_shown(&role.bystanders, role.bystanders_total, line);
}

fn bystanders_shown(bystanders: &[Bystander], total: usize, line: &mut impl FnMut(&str, String)) {
    for by in bystanders.iter().take(SHOWN) {
        let job = by.job.map_or_else(|| format!("session {}", by.session), |job| format!("job {job}"));
        let what = if by.active { "gets new credentials" } else { "has ended" };
        line("", format!("  also hit: {} of user {} on {}, which {what}", job, by.user, by.cluster));
    }
    if total > SHOWN {
        line("", format!("  also hit: {} more", total - SHOWN));
    }
}

/// A subject in a word or two.
pub fn subject_shown(subject: &Subject) -> String {
    match subject {
        Subject::User(user) => format!("user {user}"),
        Subject::Project(project) => format!("project {project}"),
        Subject::Job(cluster, job) => format!("job {cluster}/{job}"),
        Subject::Node(cluster, node) => format!("node {cluster}/{node}"),
        Subject::Role(role) => format!("role {role}"),
    }
}

/// The subject, and the clusters to which it is limited.
fn subject(config: &Config, whom: Whom, clusters: Vec<ClusterName>) -> anyhow::Result<(Subject, Vec<ClusterName>)> {
    let of_cluster = |text: &str, what: &str| -> anyhow::Result<(ClusterName, String)> {
        if let Some((cluster, rest)) = text.rsplit_once('/') {
            let cluster: ClusterName = cluster.parse()?;
            if !clusters.is_empty() && clusters.iter().any(|other| *other != cluster) {
                bail!("{what} {text:?} is of cluster {cluster}, and --cluster says otherwise");
            }
            return Ok((cluster, rest.to_owned()));
        }
        match (&clusters[..], &config.clusters[..]) {
            ([one], _) => Ok((one.clone(), text.to_owned())),
            ([], [only]) => Ok((only.name.clone(), text.to_owned())),
            _ => bail!("say of which cluster {what} {text:?} is: CLUSTER/{text}, or --cluster"),
        }
    };
    Ok(match whom {
        Whom { user: Some(user), .. } => (Subject::User(user), clusters),
        Whom { project: Some(project), .. } => (Subject::Project(project), clusters),
        Whom { role: Some(role), .. } => (Subject::Role(role), clusters),
        Whom { job: Some(text), .. } => {
            let (cluster, job) = of_cluster(&text, "job")?;
            (Subject::Job(cluster, job.parse::<JobId>().context("--job")?), vec![])
        }
        Whom { node: Some(text), .. } => {
            let (cluster, node) = of_cluster(&text, "node")?;
            (Subject::Node(cluster, node.parse::<NodeName>().context("--node")?), vec![])
        }
        _ => bail!("say whom: --user, --project, --job, --node or --role"),
    })
}

pub fn unblock(config: &Config, args: UnblockArgs) -> anyhow::Result<()> {
    let (subject, _) = subject(config, args.whom, args.cluster.into_iter().collect())?;
    if matches!(subject, Subject::Job(..)) {
        bail!("jobs are never blocked: what was revoked of one stays revoked, and a requeue of it is let in by itself");
    }
    let name = subject_shown(&subject);
    let done: Unblocked = call::admin_with(config, Method::POST, "/admin/v1/unblock", &UnblockRequest { subject })?;
    if args.json {
        return super::print_json(&done);
    }
    println!("{name} {}", if done.was_blocked { "is let in again" } else { "was not blocked" });
    Ok(())
}
