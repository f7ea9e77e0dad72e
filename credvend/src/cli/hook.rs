//! `credvend hook prolog|epilog`, for PrologSlurmctld and EpilogSlurmctld of a site whose head pushes its jobs.
//!
//! Whatever happens, the exit code is 0 within the deadline: slurmctld requeues or holds a job whose hook fails. What
//! went wrong is told on stderr and to syslog.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use credd_protocol::credentials_api_v1::{OpenSession, SessionOpened, SessionStatus, SetStatus};
use credd_protocol::{ClusterName, JobId, ProjectId, Secret, UserName};
use hyper::{Method, Request, Uri, header};
use pinned_tls::{Fingerprint, Seen, Trust};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::net::TcpStream;

use super::call;
use crate::config::secret_file;
use crate::source::upstream::submitted_time;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// When slurmctld runs it
    #[arg(value_enum)]
    when: When,
    /// Where credvend is, and the head's secret
    #[arg(long, value_name = "FILE", default_value = "/etc/credvend/hook.toml")]
    hook_config: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum When {
    /// PrologSlurmctld: open the job's session
    Prolog,
    /// EpilogSlurmctld: complete it
    Epilog,
}

/// `hook.toml`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct HookConfig {
    /// credvend's URL: https, or http on a loopback address.
    url: String,
    /// `sha256:HEX` of its certificate, as `credvend pin` prints it.
    pin: Option<String>,
    /// Or the authority of its certificate, PEM.
    ca: Option<PathBuf>,
    /// The head's secret, one line.
    head_secret_file: PathBuf,
    /// For everything together.
    #[serde(default = "default_deadline")]
    deadline_seconds: u64,
    /// Where the answer of a prolog goes, one file for each job, 0600: three lines `NAME=value` for whatever hands them
    /// to the job. The epilog removes it.
    answer_dir: Option<PathBuf>,
}

fn default_deadline() -> u64 {
    5
}

/// Runs the hook; 0 whatever happens.
pub fn main() -> ExitCode {
    let cli = match super::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Also --help.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
    };
    let super::Command::Hook(args) = cli.command else { return ExitCode::SUCCESS };
    let environment: BTreeMap<String, String> =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
    let result = std::panic::catch_unwind(|| hook(&args, &environment));
    let complaint = match result {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(_) => Some("a defect, please report it".to_owned()),
    };
    if let Some(complaint) = complaint {
        let job = environment.get("SLURM_JOB_ID").map_or("?", String::as_str);
        let text = format!("credvend hook {:?} for job {job:?}: {complaint}", args.when).replace('\n', " ");
        eprintln!("{text}");
        syslog(&text);
    }
    // Not a return: a name look-up that hangs must not hold the process.
    std::process::exit(0)
}

fn hook(args: &Args, environment: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let path = args.hook_config.display();
    let text = crate::config::read_own(&args.hook_config).with_context(|| format!("{path} cannot be read"))?;
    let config: HookConfig = toml::from_str(&text).with_context(|| format!("{path} is not valid"))?;
    let deadline = Duration::from_secs(config.deadline_seconds.clamp(1, 60));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        match args.when {
            When::Prolog => tokio::time::timeout(deadline, prolog(&config, environment)).await,
            When::Epilog => tokio::time::timeout(deadline, epilog(&config, environment)).await,
        }
    });
    runtime.shutdown_background();
    result.with_context(|| format!("no answer within {} s", deadline.as_secs()))?
}

fn variable<T>(environment: &BTreeMap<String, String>, name: &str) -> anyhow::Result<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let value = environment.get(name).with_context(|| format!("{name} is not set: slurmctld runs this command"))?;
    value.parse().with_context(|| format!("{name} is not usable"))
}

async fn prolog(config: &HookConfig, environment: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let job: JobId = variable(environment, "SLURM_JOB_ID")?;
    let project: ProjectId =
        variable(environment, "SLURM_JOB_ACCOUNT").context("the job has no account, so no project")?;
    let request = OpenSession {
        session_id: job.to_string(),
        project_id: project,
        cluster_name: variable::<ClusterName>(environment, "SLURM_CLUSTER_NAME")?,
        cluster_user: variable::<UserName>(environment, "SLURM_JOB_USER")?,
        // A requeued job runs its prolog again, later: another session.
        submitted_time: submitted_time(time::OffsetDateTime::now_utc()),
    };
    let body = send(config, Method::POST, "/sessions", call::json(&request)?).await?;
    let opened: SessionOpened = serde_json::from_slice(&body).context("the answer is not understood")?;
    if let Some(dir) = &config.answer_dir {
        write_answer(dir, job, &opened).with_context(|| format!("the answer cannot be kept in {}", dir.display()))?;
    }
    Ok(())
}

async fn epilog(config: &HookConfig, environment: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let job: JobId = variable(environment, "SLURM_JOB_ID")?;
    let cluster: ClusterName = variable(environment, "SLURM_CLUSTER_NAME")?;
    if let Some(dir) = &config.answer_dir {
        let _ = std::fs::remove_file(dir.join(job.to_string()));
    }
    let path = format!("/sessions/{job}/cluster/{cluster}");
    send(config, Method::PUT, &path, call::json(&SetStatus { status: SessionStatus::Completed })?).await?;
    Ok(())
}

fn write_answer(dir: &Path, job: JobId, opened: &SessionOpened) -> std::io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let path = dir.join(job.to_string());
    let _ = std::fs::remove_file(&path);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "APIGATEWAY_AWS_CONTAINER_CREDENTIALS_FULL_URI={}", opened.api_uri)?;
    writeln!(file, "LOCALHOST_AWS_CONTAINER_CREDENTIALS_FULL_URI={}", opened.localhost_uri)?;
    writeln!(file, "AWS_CONTAINER_AUTHORIZATION_TOKEN={}", opened.token.expose())
}

async fn send(
    config: &HookConfig,
    method: Method,
    path: &str,
    body: http_body_util::Full<hyper::body::Bytes>,
) -> anyhow::Result<hyper::body::Bytes> {
    if let Some(problem) = secret_file::problem(&config.head_secret_file) {
        bail!("{problem}");
    }
    let secret = Secret::new(std::fs::read_to_string(&config.head_secret_file)?);
    // While a secret is being replaced, the last line is the new one.
    let secret = secret.expose().lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    let uri: Uri = config.url.parse().with_context(|| format!("url {:?}", config.url))?;
    let host = uri.host().context("url names no host")?.trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
    let mut authorization = header::HeaderValue::from_str(secret).context("the head's secret is not visible ASCII")?;
    authorization.set_sensitive(true);
    let request = Request::builder()
        .method(method)
        .uri(format!("{}{path}", uri.path().trim_end_matches('/')))
        .header(header::HOST, uri.authority().map_or(host.as_str(), |a| a.as_str()))
        .header(header::AUTHORIZATION, authorization)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)?;
    let connect = async || {
        TcpStream::connect((host.as_str(), port)).await.with_context(|| format!("{host}:{port} cannot be reached"))
    };
    let answer = match uri.scheme_str() {
        Some("https") => {
            let name = ServerName::try_from(host.clone()).with_context(|| format!("{host:?} is no host name"))?;
            let tls = tokio_rustls::TlsConnector::from(Arc::new(tls(config)?));
            let io = tls.connect(name, connect().await?).await.context("the TLS connection is refused")?;
            call::send(io, request).await?
        }
        Some("http") if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) => {
            call::send(connect().await?, request).await?
        }
        _ => bail!("url {:?} must be https, or http on a loopback address", config.url),
    };
    if !answer.status.is_success() {
        let why = serde_json::from_slice::<credd_protocol::node_api::ApiError>(&answer.body);
        bail!("credvend answered {}: {}", answer.status, why.map(|error| error.message).unwrap_or_default());
    }
    Ok(answer.body)
}

fn tls(config: &HookConfig) -> anyhow::Result<rustls::ClientConfig> {
    let ca;
    let trust = match (&config.pin, &config.ca) {
        (Some(pin), None) => Trust::Pin(pin.parse::<Fingerprint>()?),
        (None, Some(path)) => {
            ca = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            Trust::CaPem(&ca)
        }
        _ => bail!("exactly one of pin and ca is needed"),
    };
    Ok(pinned_tls::client_config(trust, None, Seen::default())?)
}

/// LOG_DAEMON | LOG_ERR, as syslog(3) writes it; nobody listening is no error.
fn syslog(text: &str) {
    if let Ok(socket) = std::os::unix::net::UnixDatagram::unbound() {
        let _ = socket.set_nonblocking(true);
        let _ = socket.send_to(format!("<27>credvend[{}]: {text}", std::process::id()).as_bytes(), "/dev/log");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_shipped_example_is_valid() {
        let config: HookConfig = toml::from_str(include_str!("../../../packaging/hook.toml")).unwrap();
        assert_eq!(config.deadline_seconds, default_deadline());
        assert!(tls(&config).is_ok());
    }

    /// The handlers of the original IAM Credentials API look up `Authorization`, not `authorization`, and parse a
    /// `submittedTime` of whole seconds without a zone.
    #[tokio::test]
    async fn the_prologs_request_is_one_that_the_original_api_understands() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "head-secret-0123456789\n").unwrap();
        std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let config = HookConfig {
            url: format!("http://{}/prod", listener.local_addr().unwrap()),
            pin: None,
            ca: None,
            head_secret_file: secret,
            deadline_seconds: 60,
            answer_dir: None,
        };
        let job = [("ID", "42"), ("ACCOUNT", "genomics"), ("USER", "alice")];
        let mut environment: BTreeMap<String, String> =
            job.iter().map(|(name, value)| (format!("SLURM_JOB_{name}"), (*value).to_owned())).collect();
        environment.insert("SLURM_CLUSTER_NAME".into(), "lab".into());
        let handler = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\"}") {
                assert!(stream.read_buf(&mut request).await.unwrap() > 0);
            }
            stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            String::from_utf8(request).unwrap()
        };
        let exchange = async { tokio::join!(prolog(&config, &environment), handler) };
        let (outcome, request) = tokio::time::timeout(Duration::from_secs(60), exchange).await.unwrap();
        assert!(outcome.is_err(), "404 is no session");
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /prod/sessions HTTP/1.1\r\n"), "{head}");
        for name in
            ["Authorization: head-secret", "Content-Type: application/json", "Host: 127.0.0.1:", "Content-Length: "]
        {
            assert!(head.contains(&format!("\r\n{name}")), "{name}: {head}");
        }
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let original = time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]");
        let submitted = body["submittedTime"].as_str().unwrap();
        assert!(time::PrimitiveDateTime::parse(submitted, &original).is_ok(), "{submitted}");
    }

    proptest! {
        #[test]
        fn no_hook_toml_panics_and_no_unknown_key_passes(
            text in ".*",
            key in "(url|pin|ca|head-secret-file|deadline-seconds|answer-dir|[a-z_-]{1,12})",
            value in "(0|-?[1-9][0-9]{0,17}|true|\"[ -!#-\\[\\]-~]{0,20}\"|\\[\\]|\\{\\}|1979-05-27)",
        ) {
            let _ = toml::from_str::<HookConfig>(&text);
            let given = "url = \"https://h\"\nhead-secret-file = \"/s\"\n";
            let config = toml::from_str::<HookConfig>(&format!("{given}{key} = {value}\n"));
            match key.as_str() {
                // There already.
                "url" | "head-secret-file" => prop_assert!(config.is_err()),
                "pin" | "ca" | "answer-dir" => prop_assert_eq!(config.is_ok(), value.starts_with('"')),
                "deadline-seconds" => prop_assert_eq!(config.is_ok(), value.parse::<i64>().is_ok_and(|n| n >= 0)),
                _ => prop_assert!(config.is_err(), "{key}"),
            }
            if let Ok(config) = config {
                // No pin, one of another form, an authority that is not there: none means that anybody is believed.
                prop_assert!(tls(&config).is_err());
            }
        }
    }
}
