//! The pretend AWS: PyPI's ministack on a host of its own, and the administrator's view of it.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::host::{Host, Output};
use crate::layout::{AWS_ENDPOINT, REGION};
use crate::plan::ExtraRole;
use crate::slurm_daemons::{as_account, service};
use crate::{people, software};

/// The port of [`AWS_ENDPOINT`].
pub const PORT: u16 = 4566;
/// The AWS account that the pretence is.
pub const ACCOUNT: &str = "123456789012";
/// The name of credvend's revoker role there.
pub const REVOKER: &str = "credd-revoker";
const START: Duration = Duration::from_secs(60);

/// What was made in the pretend AWS for this cluster.
#[derive(Clone, Serialize, Deserialize)]
pub struct Made {
    /// The account, twelve digits.
    pub account: String,
    /// credvend's own ARN, which the roles' trust policies name.
    pub service_arn: String,
    /// credvend's own access key.
    pub access_key_id: String,
    /// And its secret.
    pub secret_access_key: String,
    /// Role ARNs by name: each project's, `locked`, and the plan's others.
    pub roles: std::collections::BTreeMap<String, String>,
}

impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Made").field("account", &self.account).field("roles", &self.roles).finish_non_exhaustive()
    }
}

/// One request that the pretend AWS recorded.
#[derive(Debug, Clone, Deserialize)]
pub struct AwsRequest {
    /// `2026-01-31T12:00:00Z`.
    pub time: String,
    /// `sts`, `s3`, `iam`, …
    pub service: String,
    /// `AssumeRole`, `GetCallerIdentity`, `GetObject`, …
    pub action: String,
    /// Whose key signed it.
    pub access_key_id: String,
    /// What it asked for; S3's calls have none.
    pub parameters: serde_json::Value,
    /// What it was about, for S3 among others.
    pub resources: serde_json::Value,
    /// The client.
    pub user_agent: String,
}

impl AwsRequest {
    /// A parameter, if it is a text.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name)?.as_str()
    }
}

/// The administrator's view, with the root key.
#[derive(Debug, Clone)]
pub struct PretendAws {
    pub(crate) host: Host,
    pub(crate) made: Made,
}

impl PretendAws {
    /// Starts it and fills it.
    pub(crate) fn start(host: &Host, more_roles: &[ExtraRole]) -> Result<Self> {
        let home = host.layout.owned_dir("aws", "nobody")?;
        let python = host.layout.run.join("venv/bin/python3");
        let program = home.join("pretend.py");
        std::fs::write(&program, include_str!("../aws/pretend.py"))?;
        let argv = [&*python.to_string_lossy(), &*program.to_string_lossy()];
        let mut ministack = service(host, "ministack", as_account("nobody", &argv));
        ministack.argv[2] = "--regid=nogroup".to_owned();
        ministack.env = [
            ("PATH", "/usr/bin:/bin"),
            ("HOME", &home.to_string_lossy()),
            ("TMPDIR", &home.to_string_lossy()),
            ("AUTH", "true"),
            ("BIND_HOST", "0.0.0.0"),
            ("GATEWAY_PORT", &PORT.to_string()),
            ("CLOUDTRAIL_RECORDING", "1"),
            ("MINISTACK_ACCOUNT_ID", ACCOUNT),
            ("MINISTACK_REGION", REGION),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        host.start(&ministack)?;
        host.wait_tcp(PORT, START)?;
        let asked = serde_json::json!({
            "endpoint": AWS_ENDPOINT, "region": REGION, "projects": people::PROJECTS, "more_roles": more_roles,
        });
        let made = script(host, include_str!("../aws/setup.py"), &[], &asked.to_string())?;
        Ok(PretendAws { host: host.clone(), made: serde_json::from_str(&made).context("what setup.py printed")? })
    }

    /// What was made at the start.
    pub fn made(&self) -> &Made {
        &self.made
    }

    /// The ARN of a project's role, or of another made at the start.
    ///
    /// # Panics
    /// If there is no such role.
    pub fn role_arn(&self, name: &str) -> &str {
        &self.made.roles[name]
    }

    /// Where it listens.
    pub fn endpoint(&self) -> &'static str {
        AWS_ENDPOINT
    }

    /// Runs the AWS command line as the account's root: `["iam", "get-role", …]`.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        let mut argv = vec!["aws"];
        argv.extend(arguments);
        self.host.run_with("root", &[("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")], &argv)
    }

    /// Its service, to stop, freeze and start: an outage of AWS. After a restart it is empty.
    pub fn daemon(&self) -> crate::daemon::Daemon {
        self.host.daemon("ministack")
    }

    /// Every request since the start, oldest first.
    pub fn requests(&self) -> Result<Vec<AwsRequest>> {
        self.requests_since(UNIX_EPOCH)
    }

    /// Every request since a time, oldest first.
    pub fn requests_since(&self, since: SystemTime) -> Result<Vec<AwsRequest>> {
        let since = since.duration_since(UNIX_EPOCH)?.as_secs_f64().to_string();
        let lines = script(&self.host, include_str!("../aws/requests.py"), &[AWS_ENDPOINT, REGION, &since], "")?;
        lines.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

/// Runs a Python script in the environment that has boto3.
fn script(host: &Host, text: &str, arguments: &[&str], input: &str) -> Result<String> {
    let python = software::python_environment()?.join("bin/python3");
    let python = python.to_string_lossy();
    let mut argv = vec![&*python, "-c", text];
    argv.extend(arguments);
    let mut child =
        host.command("root", &argv).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("piped")?.write_all(input.as_bytes())?;
    let done = child.wait_with_output()?;
    if !done.status.success() {
        bail!("the pretend AWS refused its set-up: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(String::from_utf8(done.stdout)?)
}
