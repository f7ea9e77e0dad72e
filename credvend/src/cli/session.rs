//! `credvend session list|show|close`.

use credd_protocol::credentials::rfc3339_z;
use credd_protocol::{ClusterName, JobId, ProjectId, SessionId, UserName};
use hyper::Method;

use super::{call, table};
use crate::config::Config;
use crate::server::admin::{SessionDetail, SessionPage, SessionView};
use crate::server::target::encode_segment;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List sessions, newest first
    List(ListArgs),
    /// Show one session, and which credentials it got
    Show {
        /// Its UUID
        session: SessionId,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// End one session: it gets no more credentials; what it has expires by itself (see `revoke --job`)
    Close {
        /// Its UUID
        session: SessionId,
    },
}

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Only this user's
    #[arg(long)]
    user: Option<UserName>,
    /// Only this project's
    #[arg(long)]
    project: Option<ProjectId>,
    /// Only of this job; of those that a head opened under this number, the newest
    #[arg(long)]
    job: Option<JobId>,
    /// Only of this cluster
    #[arg(long)]
    cluster: Option<ClusterName>,
    /// Only in this state
    #[arg(long, value_parser = ["active", "invalidated", "completed"], ignore_case = true)]
    status: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 1000)]
    limit: usize,
    /// For programs
    #[arg(long)]
    json: bool,
}

pub fn run(config: &Config, command: Command) -> anyhow::Result<()> {
    match command {
        Command::List(args) => list(config, &args),
        Command::Show { session, json } => {
            let detail = whole(config, session)?;
            if json { super::print_json(&detail) } else { show(detail) }
        }
        Command::Close { session } => {
            let path = format!("/admin/v1/sessions/{session}/close");
            let _: serde_json::Value = call::admin(config, Method::POST, &path)?;
            println!("session {session} is closed");
            Ok(())
        }
    }
}

/// A session with all that was issued to it: a long job on many nodes has many pages.
fn whole(config: &Config, session: SessionId) -> anyhow::Result<SessionDetail> {
    let path = format!("/admin/v1/sessions/{session}");
    let mut detail: SessionDetail = call::admin(config, Method::GET, &path)?;
    while let Some(next) = detail.next.take() {
        let from = format!("{path}?from={}", encode_query(&next.0));
        let more: SessionDetail = call::admin(config, Method::GET, &from)?;
        detail.issued.extend(more.issued);
        detail.next = more.next;
    }
    Ok(detail)
}

fn list(config: &Config, args: &ListArgs) -> anyhow::Result<()> {
    let (mut sessions, mut from) = (Vec::<SessionView>::new(), None);
    loop {
        let mut pairs = Vec::new();
        let mut pair = |key: &str, value: Option<&str>| {
            if let Some(value) = value {
                pairs.push(format!("{key}={}", encode_query(value)));
            }
        };
        pair("user", args.user.as_ref().map(UserName::as_str));
        pair("project", args.project.as_ref().map(ProjectId::as_str));
        pair("cluster", args.cluster.as_ref().map(ClusterName::as_str));
        pair("job", args.job.map(|job| job.to_string()).as_deref());
        pair("status", args.status.as_deref());
        pair("from", from.as_deref());
        let path = format!("/admin/v1/sessions?{}", pairs.join("&"));
        let page: SessionPage = call::admin(config, Method::GET, &path)?;
        sessions.extend(page.sessions);
        match page.next {
            Some(next) if sessions.len() < args.limit => from = Some(next.0),
            next => {
                if next.is_some() || sessions.len() > args.limit {
                    sessions.truncate(args.limit);
                    eprintln!("there are more; --limit {} is reached", args.limit);
                }
                break;
            }
        }
    }
    if args.json {
        return super::print_json(&sessions);
    }
    table::print(
        ["SESSION", "STATUS", "CLUSTER", "JOB", "USER", "PROJECT", "OPENED", "ENDED"],
        sessions.into_iter().map(|s| {
            let job = job(&s);
            [
                s.session.to_string(),
                s.status.as_str().to_owned(),
                s.cluster.to_string(),
                job,
                s.user.to_string(),
                s.project.to_string(),
                rfc3339_z::format(s.opened),
                s.ended.map(rfc3339_z::format).unwrap_or_default(),
            ]
        }),
    );
    Ok(())
}

fn show(detail: SessionDetail) -> anyhow::Result<()> {
    let s = detail.session;
    println!("session    {}", s.session);
    println!("status     {}{}", s.status.as_str(), s.why.as_ref().map(|why| format!(": {why:?}")).unwrap_or_default());
    println!("job        {} of cluster {} (opened by {})", job(&s), s.cluster, s.origin);
    println!("user       {}{}", s.user, s.uid.map(|uid| format!(" (uid {uid})")).unwrap_or_default());
    println!("project    {}", s.project);
    if let Some(partition) = &s.partition {
        println!("partition  {partition}");
    }
    if !s.nodes.is_empty() {
        let nodes: Vec<&str> = s.nodes.iter().map(AsRef::as_ref).collect();
        println!("nodes      {}", nodes.join(" "));
    }
    if let Some(submitted) = &s.submitted {
        println!("submitted  {submitted}");
    }
    println!("opened     {}", rfc3339_z::format(s.opened));
    if let Some(ended) = s.ended {
        println!("ended      {}", rfc3339_z::format(ended));
    }
    println!();
    table::print(
        ["ISSUED", "EXPIRES", "ACCESS KEY", "ROLE", "ROLE SESSION NAME", "NODE"],
        detail.issued.into_iter().map(|i| {
            [
                rfc3339_z::format(i.issued),
                rfc3339_z::format(i.expires),
                i.key_id,
                i.role_arn.to_string(),
                // The upstream alone knows what it is called in AWS.
                if i.role_id.is_empty() {
                    format!("{} (asked of the upstream)", i.session_name)
                } else {
                    i.session_name
                },
                i.node.map(|node| node.to_string()).unwrap_or_default(),
            ]
        }),
    );
    Ok(())
}

fn job(session: &SessionView) -> String {
    match (session.job, session.restart) {
        (Some(job), Some(restart)) if restart > 0 => format!("{job} (run {})", restart + 1),
        (Some(job), _) => job.to_string(),
        (None, _) => session.head_session.clone().unwrap_or_default(),
    }
}

/// As a path segment, and without what separates pairs.
pub fn encode_query(value: &str) -> String {
    encode_segment(value).replace('&', "%26").replace('=', "%3D").replace('+', "%2B")
}
