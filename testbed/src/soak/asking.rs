//! `testbed soak-client`: a job's process that asks for its credentials again and again, as nothing but a socket, and
//! writes down what it is told. An SDK caches, so it would show little of what is served when.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::clock::{Ms, now};
use super::records::{Asked, Begin, FILE, Line};
use super::taken::{self, Taken};
use crate::software::key;

/// As long as the most patient SDK waits.
const PATIENCE: Duration = Duration::from_secs(5);
/// A document or refusal is a few kilobytes.
const MAX_ANSWER: u64 = 64 * 1024;

/// What the client does.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// For so many milliseconds.
    #[arg(long, default_value_t = 3000)]
    lasts: Ms,
    /// A request every so many milliseconds.
    #[arg(long, default_value_t = 500)]
    every: Ms,
    /// Ends earlier when this file is there.
    #[arg(long)]
    until: Option<PathBuf>,
    /// Ends with the first document, and fails without one.
    #[arg(long)]
    once: bool,
    /// Copies every document away, for later.
    #[arg(long)]
    take: bool,
    /// Also asks AWS, with its own command line, who this is.
    #[arg(long)]
    identity: bool,
}

/// Runs it.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut client = Client::new(arguments.take)?;
    client.write(&Line::Begin(client.begin.clone()))?;
    let end = now() + if client.begin.equipped { arguments.lasts } else { 0 };
    let mut served = false;
    if arguments.identity {
        client.identity()?;
    }
    while now() < end && !arguments.until.as_ref().is_some_and(|file| file.exists()) {
        let next = now() + arguments.every;
        let asked = client.ask()?;
        served |= asked.status == 200 && asked.wrong.is_empty();
        client.write(&Line::Asked(asked))?;
        if arguments.once && served {
            break;
        }
        pause(Duration::from_millis(next.saturating_sub(now())));
    }
    client.write(&Line::End { run: client.begin.run.clone(), at: now() })?;
    anyhow::ensure!(served || !arguments.once, "no credentials within {} ms", arguments.lasts);
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a load of requests at a rate; nothing is waited for")]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

struct Client {
    begin: Begin,
    address: SocketAddr,
    request: String,
    file: File,
    /// Whose secrets are written down.
    last_key: String,
    /// Whether documents are copied away.
    takes: bool,
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

impl Client {
    fn new(takes: bool) -> Result<Self> {
        let (uri, mut token) =
            (variable("AWS_CONTAINER_CREDENTIALS_FULL_URI"), variable("AWS_CONTAINER_AUTHORIZATION_TOKEN"));
        let token_file = variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
        if token.is_empty() && !token_file.is_empty() {
            token = std::fs::read_to_string(&token_file).unwrap_or_default().trim().to_owned();
        }
        let rest = uri.strip_prefix("http://").unwrap_or_default();
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let uid = nix::unistd::getuid().as_raw();
        let user = crate::people::USERS.iter().find(|user| user.uid == uid).map_or("?", |user| user.name);
        let begin = Begin {
            run: key(&format!("{token} {}", variable("SLURM_JOB_ID"))),
            job: variable("SLURM_JOB_ID").parse().unwrap_or_default(),
            restart: variable("SLURM_RESTART_COUNT").parse().unwrap_or_default(),
            node: variable("SLURMD_NODENAME"),
            user: user.to_owned(),
            account: variable("SLURM_JOB_ACCOUNT"),
            partition: variable("SLURM_JOB_PARTITION"),
            at: now(),
            equipped: !uri.is_empty() && !token.is_empty(),
        };
        let home = PathBuf::from(variable("HOME"));
        let file = OpenOptions::new().append(true).create(true).open(home.join(FILE)).context("the user's record")?;
        let client = Client {
            begin,
            address: authority.parse().unwrap_or_else(|_| SocketAddr::from(([127, 0, 0, 1], crate::ours::CREDD_PORT))),
            request: format!(
                "GET /{path} HTTP/1.1\r\nHost: {authority}\r\nAuthorization: {token}\r\nConnection: close\r\n\r\n"
            ),
            file,
            last_key: String::new(),
            takes,
        };
        // The token's hex digits: its prefix is no secret.
        let secret = token.rsplit('-').next().unwrap_or_default().to_owned();
        if secret.len() > 20 {
            client.write(&Line::Secrets { texts: vec![secret] })?;
        }
        Ok(client)
    }

    /// One write: lines of several processes do not mix.
    fn write(&self, line: &Line) -> Result<()> {
        let text = serde_json::to_string(line)? + "\n";
        Ok((&self.file).write_all(text.as_bytes())?)
    }

    fn ask(&mut self) -> Result<Asked> {
        let mut asked = Asked { run: self.begin.run.clone(), sent: now(), ..Asked::default() };
        let answer = exchange(&self.address, &self.request);
        asked.got = now();
        match answer.map_err(|error| error.to_string()).and_then(|bytes| split(&bytes)) {
            Ok((status, body)) => {
                asked.status = status;
                let json: Value = serde_json::from_slice(&body).unwrap_or_default();
                if status == 200 {
                    self.look_at(&json, &mut asked)?;
                } else {
                    asked.code = json["code"].as_str().unwrap_or("no code").to_owned();
                }
            }
            Err(why) => asked.code = why,
        }
        Ok(asked)
    }

    /// A 200 is a whole document that is still good, or it is wrong.
    fn look_at(&mut self, document: &Value, asked: &mut Asked) -> Result<()> {
        let text = |name: &str| document[name].as_str().unwrap_or_default();
        asked.key = text("AccessKeyId").to_owned();
        asked.role = text("RoleArn").to_owned();
        let lacking: Vec<&str> = ["AccessKeyId", "SecretAccessKey", "Token", "Expiration", "RoleArn"]
            .into_iter()
            .filter(|name| text(name).is_empty())
            .collect();
        if !lacking.is_empty() {
            asked.wrong = format!("it lacks {}", lacking.join(", "));
            return Ok(());
        }
        let wall = super::clock::Wall::measured();
        match wall.of_text(text("Expiration")) {
            None => asked.wrong = format!("its expiration is {:?}", text("Expiration")),
            Some(until) if until <= asked.got => asked.wrong = format!("it expired at {}", text("Expiration")),
            Some(_) => {}
        }
        if asked.key != self.last_key {
            self.last_key.clone_from(&asked.key);
            let token = text("Token");
            let piece: String = token.chars().skip(token.len() / 3).take(48).collect();
            self.write(&Line::Secrets { texts: vec![text("SecretAccessKey").to_owned(), piece] })?;
            if self.takes {
                self.take(Taken {
                    sent: asked.sent,
                    user: self.begin.user.clone(),
                    account: self.begin.account.clone(),
                    alone_on: (variable("SLURM_JOB_NUM_NODES") == "1").then(|| self.begin.node.clone()),
                    key: asked.key.clone(),
                    secret: text("SecretAccessKey").to_owned(),
                    token: token.to_owned(),
                })?;
            }
        }
        Ok(())
    }

    /// Copies a document away, as a job may.
    fn take(&self, taken: Taken) -> Result<()> {
        let path = PathBuf::from(variable("HOME")).join(taken::FILE);
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        Ok(file.write_all((serde_json::to_string(&taken)? + "\n").as_bytes())?)
    }

    fn identity(&self) -> Result<()> {
        let done = Command::new("aws")
            .args(["sts", "get-caller-identity", "--query", "Arn", "--output", "text"])
            .output()
            .context("the AWS command line")?;
        let said = if done.status.success() { done.stdout } else { done.stderr };
        let arn = String::from_utf8_lossy(&said).trim().to_owned();
        self.write(&Line::Identity { run: self.begin.run.clone(), arn })
    }
}

fn exchange(address: &SocketAddr, request: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    Ok(answer)
}

/// One HTTP request over a Unix socket, for the administrators' side of the harness: status and body.
pub fn over_unix(socket: &Path, method: &str, target: &str, patience: Duration) -> Result<(u16, Vec<u8>)> {
    let mut stream = std::os::unix::net::UnixStream::connect(socket).context("credvend's socket")?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let request =
        format!("{method} {target} HTTP/1.1\r\nHost: admin-socket\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    split(&answer).map_err(anyhow::Error::msg)
}

/// Status and body of a whole HTTP/1.1 answer.
fn split(answer: &[u8]) -> Result<(u16, Vec<u8>), String> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or("the answer broke off")?;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or("it is no HTTP answer")?;
    let body = &answer[end + 4..];
    if head.contains("\r\ntransfer-encoding: chunked") {
        return Ok((status, unchunked(body).ok_or("the body broke off")?));
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    match length {
        Some(length) if body.len() < length => Err("the body broke off".into()),
        Some(length) => Ok((status, body[..length].to_vec())),
        None => Ok((status, body.to_vec())),
    }
}

fn unchunked(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|bytes| bytes == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).ok()?.trim(), 16).ok()?;
        body = &body[end + 2..];
        if size == 0 {
            return Some(whole);
        }
        whole.extend_from_slice(body.get(..size)?);
        body = body.get(size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart_and_broken_ones_noticed() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(split(whole), Ok((200, b"{}".to_vec())));
        assert!(split(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{}").is_err());
        assert!(split(b"HTTP/1.1 200 OK\r\n").is_err());
        assert!(split(b"").is_err());
        let chunked = b"HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
        assert_eq!(split(chunked), Ok((503, b"abcd".to_vec())));
        assert!(split(&chunked[..chunked.len() - 8]).is_err());
    }
}
