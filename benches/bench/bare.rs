//! What credd's endpoint is compared with: hyper on the same kind of runtime with one thread, sending the same headers
//! and the same body, and asking nobody anything.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use crate::loopback;

/// The word on the command line that makes this program the bare server: `bare-server PORT FILE`, the file holding an
/// answer as it came from credd.
pub const WORD: &str = "bare-server";

/// Serves that answer to every request.
pub fn main(port: &str, file: &str) -> Result<()> {
    let answer = fs::read(file)?;
    let (headers, body) = parse(&answer).context("the file is not an HTTP answer")?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port.parse()?)))?;
    loopback::run(listener, move |_| {
        let mut response = Response::new(Full::new(body.clone()));
        *response.headers_mut() = headers.clone();
        async move { Ok(response) }
    })
}

/// The headers, without those that hyper makes itself, and the body.
fn parse(answer: &[u8]) -> Option<(HeaderMap, Bytes)> {
    let at = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let mut headers = HeaderMap::new();
    for line in std::str::from_utf8(&answer[..at]).ok()?.split("\r\n").skip(1) {
        let (name, value) = line.split_once(": ")?;
        if !["date", "content-length", "connection"].contains(&name.to_ascii_lowercase().as_str()) {
            headers.insert(name.parse::<HeaderName>().ok()?, value.parse::<HeaderValue>().ok()?);
        }
    }
    Some((headers, Bytes::copy_from_slice(&answer[at + 4..])))
}

/// The word that makes this program ask once and print the answer: `ask PORT PATH TOKEN`, run as the job's user.
pub const ASK: &str = "ask";

/// Asks once on a connection that the server closes.
pub fn ask(port: &str, path: &str, token: &str) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port.parse()?))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: {token}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    std::io::stdout().write_all(&answer)?;
    Ok(())
}

/// Has the answer of a server fetched as a user, and keeps it in `file`. Fails unless it is a 200.
pub fn fetch(program: &Path, uid: u32, port: u16, path: &str, token: &str, file: &Path) -> Result<usize> {
    let mut command = crate::scratch::command(program, crate::scratch::Cpu::Any, Some(uid));
    let output = command.args([ASK, &port.to_string(), path, token]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.starts_with("HTTP/1.1 200"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    fs::write(file, &output.stdout)?;
    Ok(output.stdout.len())
}
