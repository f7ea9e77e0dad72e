//! credd and credvend: their configuration, and how they are started.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cluster::{Cluster, START_LIMIT};
use crate::deadline::wait_for;
use crate::host::Host;
use crate::init_protocol::Listener;
use crate::layout::{AWS_ENDPOINT, REGION};
use crate::overlay::overlaid;
use crate::people;
use crate::pretend_aws;
use crate::slurm_daemons::{as_account, service};
use crate::slurm_files::HEAD;

/// Where credvend listens, on the head.
pub const CREDVEND_PORT: u16 = 8443;
/// Where jobs find their credentials, on every node.
pub const CREDD_PORT: u16 = 9999;

/// Starts the central service on the head.
pub(crate) fn start_credvend(cluster: &Cluster) -> Result<()> {
    let (head, plan) = (cluster.head(), cluster.plan());
    let layout = &head.layout;
    let etc = layout.owned_dir("etc/credvend", "credvend")?;
    let state = layout.owned_dir("credvend", "credvend")?;
    let written = format!(
        "listen = [\"{HEAD}:{CREDVEND_PORT}\"]\n\
         state-dir = {state:?}\n\
         projects = {projects:?}\n\
         [tls]\nnames = [\"head\", \"{HEAD}\"]\n\
         [aws]\nregion = \"{REGION}\"\nrevoker-roles = [\"{revoker}\"]\n\
         [[cluster]]\nname = {name:?}\nattest = \"slurm\"\nslurm-conf = {slurm:?}\nhead-secret-file = {secret:?}\n",
        projects = etc.join("projects.toml"),
        revoker = format_args!("arn:aws:iam::{}:role/{}", pretend_aws::ACCOUNT, pretend_aws::REVOKER),
        name = plan.cluster_name,
        slurm = layout.slurm_conf(),
        secret = etc.join("head-secret"),
    );
    let mut files = vec![
        (
            "credvend.toml",
            overlaid(&written, &plan.credvend_toml.replace("{run}", &layout.run.display().to_string()))
                .context("Plan::credvend_toml")?,
        ),
        ("head-secret", format!("{HEAD_SECRET}\n")),
    ];
    files.push(("projects.toml", projects_toml(cluster)));
    for (name, text) in files {
        let path = etc.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        layout.give(&path, "credvend")?;
    }
    make_run_dir(head, "credvend", "credvend", 0o755)?;

    let program = layout.run.join("bin/credvend");
    let mut credvend = service(head, "credvend", as_account("credvend", &[&program.to_string_lossy(), "serve"]));
    let mut env = vec![
        ("HOME".to_owned(), state.display().to_string()),
        ("CREDVEND_CONFIG".to_owned(), etc.join("credvend.toml").display().to_string()),
    ];
    if plan.aws {
        let made = cluster.aws().made();
        env.push(("AWS_ACCESS_KEY_ID".to_owned(), made.access_key_id.clone()));
        env.push(("AWS_SECRET_ACCESS_KEY".to_owned(), made.secret_access_key.clone()));
        env.push(("AWS_ENDPOINT_URL".to_owned(), AWS_ENDPOINT.to_owned()));
        env.push(("AWS_REGION".to_owned(), REGION.to_owned()));
    }
    env.extend(plan.credvend_env.iter().cloned());
    credvend.env.retain(|(name, _)| !env.iter().any(|(ours, _)| ours == name));
    credvend.env.extend(env);
    head.start(&credvend)?;
    ready(head, "credvend", || head.listens(CREDVEND_PORT))
}

/// The head node's secret of the verbs of the IAM Credentials API (v1).
pub const HEAD_SECRET: &str = "testbed-head-secret-0123456789abcdef";

/// Starts a node's daemon, and waits until it answers.
pub(crate) fn start_credd(cluster: &Cluster, node: &Host) -> Result<()> {
    let plan = cluster.plan();
    let written = format!(
        "cluster = {:?}\nnode = {:?}\n[credvend]\nurl = \"https://{HEAD}:{CREDVEND_PORT}\"\npin = \"{}\"\n",
        plan.cluster_name,
        node.name(),
        pin(cluster.head())?,
    );
    let etc = node.layout.run.join("etc").join(format!("credd-{}.toml", node.name()));
    fs::write(&etc, overlaid(&written, &plan.credd_toml).context("Plan::credd_toml")?)?;
    for (dir, mode) in [("credd", 0o755), ("credd/jobs", 0o700), ("credd/ended", 0o700), ("credd/tokens", 0o711)] {
        make_run_dir(node, dir, "root", mode)?;
    }

    // What the socket units do on a real node: the port is taken before anything else runs, and stays taken.
    node.listen("http", Listener::Tcp(([127, 0, 0, 1], CREDD_PORT).into()))?;
    for (name, mode) in [("root", 0o600), ("user", 0o666)] {
        node.listen(name, Listener::Unix { path: format!("/run/credd/{name}.sock").into(), mode, owner: (0, 0) })?;
    }
    let program = node.layout.run.join("bin/credd").display().to_string();
    let argv = vec![program, "run".to_owned(), "--config".to_owned(), etc.display().to_string()];
    let mut credd = service(node, "credd", argv);
    credd.env.retain(|(name, _)| !name.starts_with("AWS_"));
    credd.env.extend(plan.credd_env.iter().cloned());
    credd.listeners = ["http", "root", "user"].map(str::to_owned).to_vec();
    node.start(&credd)?;
    let endpoint = node.path("/run/credd/endpoint");
    ready(node, "credd", || endpoint.exists())
}

/// credvend's certificate, as it says it: `sha256:` and 64 hex digits.
pub(crate) fn pin(head: &Host) -> Result<String> {
    let find = |log: &str| {
        log.match_indices("sha256:").find_map(|(at, _)| {
            let hex: String = log[at + 7..].chars().take_while(char::is_ascii_hexdigit).collect();
            (hex.len() == 64).then(|| format!("sha256:{hex}"))
        })
    };
    wait_for("credvend to print its certificate's pin", Duration::from_secs(5), || find(&head.log("credvend")))
}

fn projects_toml(cluster: &Cluster) -> String {
    let plan = cluster.plan();
    if let Some(text) = &plan.projects_toml {
        return text.replace("{account}", crate::pretend_aws::ACCOUNT);
    }
    let role = |name: &str| format!("arn:aws:iam::{}:role/projects/{name}", crate::pretend_aws::ACCOUNT);
    let mut text = String::new();
    for project in people::PROJECTS.iter().chain(&["locked"]) {
        text.push_str(&format!("[projects.{project}]\nrole-arn = \"{}\"\n", role(project)));
        for extra in plan.more_roles.iter().filter(|extra| extra.project == *project) {
            text.push_str(&format!(
                "[projects.{project}.roles.{}]\nrole-arn = \"{}\"\n",
                extra.name,
                role(&extra.name)
            ));
        }
    }
    text
}

fn make_run_dir(host: &Host, name: &str, account: &str, mode: u32) -> Result<()> {
    let path = host.path(&format!("/run/{name}"));
    fs::create_dir_all(&path)?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    let (uid, gid) = people::ids_of(&host.layout.etc(), account)?;
    Ok(std::os::unix::fs::chown(&path, Some(uid), Some(gid))?)
}

/// Waits until a daemon is ready; one that has ended instead is not waited for.
fn ready(host: &Host, name: &str, is_ready: impl Fn() -> bool) -> Result<()> {
    let daemon = host.daemon(name);
    let said = wait_for(&format!("{name} to be ready"), START_LIMIT, || {
        if is_ready() { Some(None) } else { daemon.ended().map(Some) }
    });
    let problem = match said {
        Ok(None) => return Ok(()),
        Ok(Some(status)) => format!("it ended with {status}"),
        Err(e) => format!("{e:#}"),
    };
    bail!("{name} on {} is not ready: {problem}; its log:\n{}", host.name(), host.log(name))
}
