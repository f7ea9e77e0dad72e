//! A node in one process: the server, a keeper that signs, a credvend, and jobs that ask.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::time::Duration;

use credd_protocol::local::Response;
use credd_protocol::{JobToken, SessionId, Uid};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::unix::OwnedWriteHalf;

use super::super::clock::fake::{FakeClock, Loaded};
use super::super::jobs::fixture;
use super::super::settings::Settings;
use super::super::whois::{Caller, Kernel, WhoIs};
use super::super::{Listeners, World, serve};
use super::fake_credvend::FakeCredvend;
use crate::config::{Config, Trust};
use crate::control::{Job, RunId, ToKeeper, ToServer};

/// A process of a job is done for after this in any test.
const PATIENCE: Duration = Duration::from_secs(20);

pub fn in_a_house(test: impl AsyncFnOnce()) {
    in_a_house_for(2 * PATIENCE, test);
}

/// For a test that waits for others than the node.
pub fn in_a_house_for(patience: Duration, test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(patience, test()).await.expect("the test hangs");
    });
}

pub fn own_uid() -> u32 {
    nix::unistd::getuid().as_raw()
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// `AccessKeyId`, or the error's code.
    pub fn word(&self) -> String {
        let body: serde_json::Value = serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body));
        body.get("AccessKeyId").or(body.get("Code")).and_then(|v| v.as_str()).unwrap().to_owned()
    }
    pub fn message(&self) -> String {
        let body: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(body["message"], body["Message"]);
        body["message"].as_str().unwrap().to_owned()
    }
}

pub struct House {
    pub credvend: FakeCredvend,
    pub clock: FakeClock,
    pub endpoint: SocketAddr,
    pub said: Rc<RefCell<Vec<ToKeeper>>>,
    pub user_socket: std::path::PathBuf,
    pub server: tokio::task::JoinHandle<anyhow::Result<()>>,
    to_server: OwnedWriteHalf,
    _dir: tempfile::TempDir,
}

pub struct Plan {
    pub settings: Settings,
    pub config: Config,
    pub whois: Box<dyn WhoIs>,
    pub credvend_up: bool,
    /// credvend has said hello before the test begins: what is fetched earlier is asked for twice.
    pub settled: bool,
    pub scanned: bool,
    /// The keeper answers when it is asked to look.
    pub looks: bool,
}

impl House {
    pub async fn new() -> Self {
        Self::with(|_, _| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Plan, &FakeCredvend)) -> Self {
        let clock = FakeClock::new();
        let mut credvend = FakeCredvend::new(clock.clone());
        let text = format!("[credvend]\nurl = \"https://{}\"\npin = \"sha256:{}\"\n", credvend.address, credvend.pin);
        let config = crate::config::parse(&text).expect("a plain configuration");
        let mut settings = Settings::of(&config);
        settings.look = Duration::from_millis(20);
        settings.newcomer_patience = Duration::from_millis(300);
        let whois = Box::new(Kernel::new().unwrap());
        let mut plan = Plan { settings, config, whois, credvend_up: true, settled: true, scanned: true, looks: true };
        change(&mut plan, &credvend);
        if plan.credvend_up {
            credvend.start().await;
        }
        let http = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = http.local_addr().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let user_socket = dir.path().join("user.sock");
        let user = UnixListener::bind(&user_socket).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (read, to_server) = tokio::net::UnixStream::from_std(ours).unwrap().into_split();
        let said = Rc::new(RefCell::new(Vec::new()));
        let world = World { clock: Rc::new(clock.clone()), dice: Rc::new(Loaded(0.5)), whois: plan.whois };
        let (config, settings, settled) = (plan.config, plan.settings, plan.settled && plan.credvend_up);
        let server =
            tokio::task::spawn_local(
                async move { serve(theirs, Listeners { http, user }, &config, settings, world).await },
            );
        let mut house = House { credvend, clock, endpoint, said, user_socket, server, to_server, _dir: dir };
        house.keep(read, plan.looks);
        if plan.scanned {
            house.tell(&ToServer::Scanned).await;
        }
        while settled && house.credvend_problem().await.is_some() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        house
    }

    /// The keeper: signs, and remembers everything else.
    fn keep(&mut self, read: tokio::net::unix::OwnedReadHalf, looks: bool) {
        let said = self.said.clone();
        let (answers, mut queue) = tokio::sync::mpsc::unbounded_channel::<ToServer>();
        tokio::task::spawn_local(async move {
            let mut lines = BufReader::new(read).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                match serde_json::from_str(&line).unwrap() {
                    ToKeeper::Sign { id, method, path, body, server } => {
                        let credential = Ok(format!("MUNGE:{id}:{method}:{path}:{body}:{server}:\n"));
                        let _ = answers.send(ToServer::Signed { id, credential });
                    }
                    ToKeeper::Look { id, .. } if looks => drop(answers.send(ToServer::Looked { id })),
                    other => said.borrow_mut().push(other),
                }
            }
        });
        // The write half serves the test and the signatures: a second descriptor of the same socket.
        let socket = self.to_server.as_ref();
        let fd = std::os::fd::AsFd::as_fd(socket).try_clone_to_owned().unwrap();
        let second = tokio::net::UnixStream::from_std(UnixStream::from(fd)).unwrap();
        tokio::task::spawn_local(async move {
            let mut second = second;
            while let Some(answer) = queue.recv().await {
                let mut line = serde_json::to_vec(&answer).unwrap();
                line.push(b'\n');
                if second.write_all(&line).await.is_err() {
                    return;
                }
            }
        });
    }

    pub async fn credvend_problem(&self) -> Option<String> {
        let mut stream = tokio::net::UnixStream::connect(&self.user_socket).await.unwrap();
        stream.write_all(b"{\"op\":\"health\"}\n").await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        match serde_json::from_slice(&all).unwrap() {
            Response::Health(health) => health.credvend_problem,
            other => panic!("{other:?}"),
        }
    }

    /// The keeper's end of the socket pair is shut.
    pub fn keeper_goes(self) -> tokio::task::JoinHandle<anyhow::Result<()>> {
        let socket = std::os::fd::AsFd::as_fd(self.to_server.as_ref()).try_clone_to_owned().unwrap();
        UnixStream::from(socket).shutdown(std::net::Shutdown::Both).unwrap();
        self.server
    }

    pub async fn tell(&mut self, message: &ToServer) {
        let mut line = serde_json::to_vec(message).unwrap();
        line.push(b'\n');
        self.to_server.write_all(&line).await.unwrap();
    }

    pub async fn tell_bytes(&mut self, bytes: &[u8]) {
        self.to_server.write_all(bytes).await.unwrap();
    }

    /// A job of this process' uid starts.
    pub async fn job(&mut self, id: u32) -> (Job, JobToken) {
        self.job_with(id, |_| {}).await
    }

    pub async fn job_with(&mut self, id: u32, change: impl FnOnce(&mut Job)) -> (Job, JobToken) {
        let (mut job, token) = fixture::job(id, own_uid());
        change(&mut job);
        self.tell(&ToServer::Job(Box::new(job.clone()))).await;
        (job, token)
    }

    pub async fn end(&mut self, run: &RunId) {
        self.tell(&ToServer::Ended { run: *run }).await;
    }

    /// Polls until it holds.
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&House) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(tokio::time::Instant::now() < deadline, "never: {what}; keeper heard {:?}", self.said.borrow());
            assert!(!self.server.is_finished(), "the server has ended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn heard(&self, message: &ToKeeper) -> bool {
        self.said.borrow().contains(message)
    }

    pub fn session_of(&self, run: &RunId) -> Option<SessionId> {
        self.said.borrow().iter().find_map(|m| match m {
            ToKeeper::Opened { run: r, session } if r == run => Some(*session),
            _ => None,
        })
    }

    pub fn counts(&self) -> (u32, u32) {
        let script = self.credvend.script.borrow();
        (script.opens, script.credentials)
    }

    pub fn path(job: u32) -> String {
        format!("/sessions/{job}/cluster/lab/project/genomics?roleSessionName=lab-alice-n1")
    }

    pub async fn connect(&self) -> BufReader<TcpStream> {
        BufReader::new(TcpStream::connect(self.endpoint).await.unwrap())
    }

    pub async fn ask(&self, job: u32, token: &JobToken) -> Answer {
        ask_on(&mut self.connect().await, self.endpoint.port(), job, token).await
    }

    /// With exactly these lines after the request line.
    pub async fn raw(&self, request_line: &str, headers: &[String]) -> Answer {
        raw_on(&mut self.connect().await, request_line, headers).await
    }

    pub fn host(&self) -> String {
        format!("Host: 127.0.0.1:{}", self.endpoint.port())
    }
}

pub async fn ask_on(stream: &mut BufReader<TcpStream>, port: u16, job: u32, token: &JobToken) -> Answer {
    let headers = [format!("Host: 127.0.0.1:{port}"), format!("authorization: {}", token.expose())];
    raw_on(stream, &format!("GET {} HTTP/1.1", House::path(job)), &headers).await
}

pub async fn raw_on(stream: &mut BufReader<TcpStream>, request_line: &str, headers: &[String]) -> Answer {
    let text = format!("{request_line}\r\n{}\r\n\r\n", headers.join("\r\n"));
    stream.write_all(text.as_bytes()).await.unwrap();
    read_answer(stream).await
}

pub async fn read_answer(stream: &mut BufReader<TcpStream>) -> Answer {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let read = tokio::time::timeout(PATIENCE, stream.read_line(&mut head)).await.expect("no answer").unwrap();
        assert!(read > 0, "the connection was closed: {head:?}");
    }
    let head = head.to_lowercase();
    let length = head.split("content-length: ").nth(1).map_or(0, |t| t.split("\r\n").next().unwrap().parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    let status = head[9..12].parse().unwrap();
    Answer { status, head, body: String::from_utf8(body).unwrap() }
}

/// The kernel says that everybody is this.
pub struct Everybody(pub Result<Uid, String>);

impl WhoIs for Everybody {
    fn caller(&self, _: SocketAddr, _: SocketAddr) -> Result<Caller, String> {
        self.0.clone().map(|uid| Caller::of(uid.0))
    }
}

pub fn trusting_ca(config: &mut Config, credvend: &FakeCredvend) {
    config.credvend.trust = Trust::CaPem(credvend.certificate_pem.clone());
}
