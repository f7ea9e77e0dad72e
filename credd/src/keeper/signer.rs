//! Signing for credvend: "this node's root says this, now, once". Nothing here reads what jobs wrote, and what the
//! server process asks for is checked: it can have requests to credvend's node API signed, and nothing else.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use credd_protocol::claim::{Claim, MAX_SKEW_SECONDS};
use credd_protocol::{ClusterName, NodeName, hex};
use munge::{EncodeOptions, Munge};

use super::server_link::ServerLink;
use crate::control::{NOT_NAMED, ToServer};

/// Requests that may wait for munged; more are answered with an error.
const QUEUE: usize = 256;

/// What the server process asked for.
#[derive(Debug)]
pub struct Request {
    /// Comes back with the answer.
    pub id: u64,
    /// `GET` or `POST`.
    pub method: String,
    /// Under `/node/v1/`.
    pub path: String,
    /// SHA-256, lower-case hex.
    pub body: String,
    /// SHA-256, lower-case hex, or empty.
    pub server: String,
    /// Where the answer goes.
    pub link: Arc<ServerLink>,
}

/// In whose name is signed. The configuration goes before the records; they fill in what it leaves open.
#[derive(Debug, Default)]
pub struct Identity {
    inner: Mutex<(Option<ClusterName>, Option<NodeName>)>,
}

impl Identity {
    /// Sets what is known now.
    pub fn set(&self, cluster: Option<ClusterName>, node: Option<NodeName>) {
        *self.inner.lock().unwrap_or_else(PoisonError::into_inner) = (cluster, node);
    }

    /// Cluster and node, or the sentence that says how to name them.
    pub fn get(&self) -> Result<(ClusterName, NodeName), String> {
        match self.inner.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            (Some(cluster), Some(node)) => Ok((cluster, node)),
            _ => Err(NOT_NAMED.to_owned()),
        }
    }
}

/// The queue of a signing thread: munged may keep a caller waiting for seconds, and nobody else shall wait with it.
#[derive(Debug, Clone)]
pub struct Signer {
    queue: SyncSender<Request>,
}

impl Signer {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start(munge: Munge, identity: Arc<Identity>) -> std::io::Result<Self> {
        let (queue, requests) = sync_channel(QUEUE);
        std::thread::Builder::new().name("signer".into()).spawn(move || serve(&requests, &munge, &identity))?;
        Ok(Signer { queue })
    }

    /// Queues a request; its answer goes to the request's link.
    pub fn sign(&self, request: Request) {
        if let Err(TrySendError::Full(request) | TrySendError::Disconnected(request)) = self.queue.try_send(request) {
            answer(&request, Err("munged is too slow: too many requests wait for it".to_owned()));
        }
    }
}

fn serve(requests: &Receiver<Request>, munge: &Munge, identity: &Identity) {
    let mut trouble: Option<String> = None;
    for request in requests {
        let credential = claim(&request, identity, SystemTime::now()).and_then(|claim| {
            let ttl = Duration::from_secs(MAX_SKEW_SECONDS.unsigned_abs());
            munge
                .encode(&claim.to_json(), EncodeOptions { ttl: Some(ttl), only_uid: None })
                .map_err(|error| format!("MUNGE cannot sign: {error}"))
        });
        // Said once for as long as it lasts; the server process says which requests suffer.
        let now = credential.as_ref().err().cloned();
        if let Some(reason) = now.as_ref().filter(|now| trouble.as_ref() != Some(*now)) {
            tracing::warn!(reason, "requests to credvend are not signed");
        }
        trouble = now;
        answer(&request, credential);
    }
}

fn answer(request: &Request, credential: Result<String, String>) {
    // A server that is gone needs no answer; the keeper notices by itself.
    let _ = request.link.send(&ToServer::Signed { id: request.id, credential });
}

fn claim(request: &Request, identity: &Identity, now: SystemTime) -> Result<Claim, String> {
    let hash = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let path_char = |b: u8| b.is_ascii_alphanumeric() || b"/-._~?=&".contains(&b);
    let refuse = |what: &str| Err(format!("the keeper does not sign this {what}"));
    if !matches!(request.method.as_str(), "GET" | "POST") {
        return refuse("method");
    }
    if !request.path.starts_with("/node/v1/")
        || request.path.len() > 1024
        || !request.path.bytes().all(path_char)
        || request.path.contains("..")
    {
        return refuse("path");
    }
    if !hash(&request.body) {
        return refuse("body's hash");
    }
    if !request.server.is_empty() && !hash(&request.server) {
        return refuse("server's fingerprint");
    }
    let (cluster, node) = identity.get()?;
    let mut bits = [0u8; 16];
    getrandom::fill(&mut bits).map_err(|error| format!("the kernel has no random bits: {error}"))?;
    let nonce = hex::encode(&bits);
    let time = now.duration_since(UNIX_EPOCH).map_err(|_| "the clock is before 1970".to_owned())?.as_secs();
    Ok(Claim {
        version: Claim::VERSION,
        cluster,
        node,
        method: request.method.clone(),
        path: request.path.clone(),
        body: request.body.clone(),
        server: request.server.clone(),
        time: i64::try_from(time).map_err(|_| "the clock is beyond all bounds".to_owned())?,
        nonce,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn request(path: &str) -> Request {
        let (one, _) = UnixStream::pair().unwrap();
        let (body, server) = ("0".repeat(64), String::new());
        Request { id: 1, method: "GET".into(), path: path.into(), body, server, link: Arc::new(ServerLink::new(one)) }
    }

    #[test]
    fn only_the_node_api_is_signed_and_every_claim_is_new() {
        let identity = Identity::default();
        let error = claim(&request("/node/v1/stream"), &identity, SystemTime::now()).unwrap_err();
        assert!(error.contains("`cluster`"), "{error}");
        identity.set(Some("lab".parse().unwrap()), Some("n1".parse().unwrap()));
        let one = claim(&request("/node/v1/stream?since=4"), &identity, SystemTime::now()).unwrap();
        let two = claim(&request("/node/v1/stream?since=4"), &identity, SystemTime::now()).unwrap();
        assert_ne!(one.nonce, two.nonce);
        assert_eq!((one.cluster.as_str(), one.node.as_str(), one.nonce.len()), ("lab", "n1", 32));
        for path in ["/sessions", "/node/v1/../sessions", "/node/v1/ x", "/node/v1/\n", ""] {
            assert!(claim(&request(path), &identity, SystemTime::now()).is_err(), "{path}");
        }
        for change in [
            |r: &mut Request| r.method = "DELETE".into(),
            |r: &mut Request| r.body.clear(),
            |r: &mut Request| r.server = "AB".repeat(32),
        ] {
            let mut request = request("/node/v1/stream");
            change(&mut request);
            assert!(claim(&request, &identity, SystemTime::now()).is_err());
        }
    }

    /// A munged of our own, with a key of our own.
    struct Munged {
        process: std::process::Child,
        dir: tempfile::TempDir,
    }

    impl Munged {
        fn start() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = |name: &str| dir.path().join(name).display().to_string();
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::write(path("key"), [7; 64]).unwrap();
            std::fs::set_permissions(path("key"), std::fs::Permissions::from_mode(0o600)).unwrap();
            let process = std::process::Command::new("munged")
                .args(["--foreground", "--force", "--num-threads=1"])
                .args(["key", "socket", "pid", "log", "seed"].map(|name| format!("--{}={}", option(name), path(name))))
                .stderr(std::process::Stdio::null())
                .spawn()
                .expect("munged is part of these tests: install munge");
            let munged = Munged { process, dir };
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while UnixStream::connect(munged.socket()).is_err() {
                assert!(std::time::Instant::now() < deadline, "munged does not come up");
                #[expect(
                    clippy::disallowed_methods,
                    reason = "a poll with a deadline: munged says nothing when ready"
                )]
                std::thread::sleep(Duration::from_millis(5));
            }
            munged
        }

        fn socket(&self) -> std::path::PathBuf {
            self.dir.path().join("socket")
        }
    }

    impl Drop for Munged {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }

    fn option(name: &str) -> String {
        if name == "socket" { name.to_owned() } else { format!("{name}-file") }
    }

    #[test]
    fn munge_vouches_for_root_and_the_claim() {
        let munged = Munged::start();
        let munge = Munge::new(Some(&munged.socket())).unwrap();
        let identity = Arc::new(Identity::default());
        identity.set(Some("lab".parse().unwrap()), Some("n1".parse().unwrap()));
        let signer = Signer::start(munge.clone(), identity).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut answers = std::io::BufReader::new(theirs);
        let link = Arc::new(ServerLink::new(ours));
        for id in [1, 2] {
            signer.sign(Request { id, link: Arc::clone(&link), ..request("/node/v1/stream") });
            let max = crate::control::MAX_LINE_BYTES;
            let answer = crate::line::receive::<ToServer>(&mut answers, max).unwrap().unwrap();
            let ToServer::Signed { id: answered, credential: Ok(credential) } = answer else { panic!("{answer:?}") };
            let decoded = munge.decode(&credential).unwrap();
            let claim = Claim::from_json(&decoded.payload).unwrap();
            assert_eq!((answered, decoded.uid), (id, nix::unistd::geteuid().as_raw()));
            assert_eq!((claim.method.as_str(), claim.path.as_str()), ("GET", "/node/v1/stream"));
            assert!(decoded.ttl <= Duration::from_secs(60));
        }
    }
}
