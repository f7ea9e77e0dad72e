//! A credvend in this process: TLS, plain loopback HTTP and the admin socket in front of a real store.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use credd_protocol::credentials::Credentials;
use credd_protocol::{JobId, NodeName, ProjectId, RoleArn, Secret, Uid};
use credvend::attest::{Answer, AttestError, Attestor, JobFacts, JobState, Site};
use credvend::clock::SystemClock;
use credvend::config::Tls;
use credvend::deny::{Denier, DenyError};
use credvend::events::Events;
use credvend::metrics::Metrics;
use credvend::metrics::measured::Measured;
use credvend::projects::{ProjectMap, Projects, Role};
use credvend::server::admin::{About, Admin};
use credvend::server::admin_socket::AdminSocket;
use credvend::server::connections::{Bounds, ConnectionLimits};
use credvend::server::head_secrets::HeadSecrets;
use credvend::server::listen::serve_tcp;
use credvend::server::munge_claim::MungeVerifier;
use credvend::server::principal::Authenticator;
use credvend::server::tls::{Certificates, Files};
use credvend::server::{Server, Settings};
use credvend::source::{AssumeRequest, Assumed, Source, SourceError};
use credvend::store::sqlite::SqliteStore;
use credvend::store::{Denied, Revocation, Store};
use credvend::vending::{AddressCheck, Cluster, NodeAddresses, Parts, Vending};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;

pub const SECRET: &str = "head-secret-0123456789";
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Alice's job 7 runs on n1; nothing else does.
pub struct Slurm;

#[async_trait]
impl Attestor for Slurm {
    async fn job(&self, job: JobId) -> Result<Answer, AttestError> {
        Ok(if job.get() == 7 { Answer::Known(job_seven()) } else { Answer::Absent })
    }
    async fn all_jobs(&self) -> Result<Vec<JobFacts>, AttestError> {
        Ok(vec![job_seven()])
    }
    async fn node_addresses(&self) -> Result<HashMap<NodeName, String>, AttestError> {
        Ok(HashMap::new())
    }
    async fn site(&self) -> Result<Site, AttestError> {
        Ok(Site { cluster: "lab".into(), accounts_not_enforced: None, jobs_hidden: None })
    }
}

fn job_seven() -> JobFacts {
    JobFacts {
        job: JobId::try_from(7).unwrap(),
        restart: 0,
        submitted: time::macros::datetime!(2026-03-01 11:00 UTC),
        user: Ok("alice".parse().unwrap()),
        uid: Uid(1001),
        account: Some("genomics".parse().unwrap()),
        partition: "batch".parse().unwrap(),
        nodes: vec!["n1".parse().unwrap()],
        state: JobState::Running,
    }
}

#[derive(Default)]
pub struct Aws {
    pub asked: Mutex<Vec<AssumeRequest>>,
    pub denied: Mutex<Vec<String>>,
    /// IAM does not answer.
    pub iam_down: AtomicBool,
}

#[async_trait]
impl Source for Aws {
    async fn turn(&self, _: &ProjectId) -> Result<(), SourceError> {
        Ok(())
    }

    fn delay(&self, _: &ProjectId) -> Duration {
        Duration::ZERO
    }

    async fn assume(&self, request: &AssumeRequest) -> Result<Assumed, SourceError> {
        self.asked.lock().unwrap().push(request.clone());
        let issued = OffsetDateTime::now_utc();
        Ok(Assumed {
            credentials: Credentials {
                access_key_id: "ASIAEXAMPLE".into(),
                secret_access_key: Secret::new("wire-secret".into()),
                token: Secret::new("wire-token".into()),
                expiration: issued + Duration::from_secs(request.duration_seconds.into()),
                role_arn: request.role_arn.clone(),
                account_id: None,
            },
            role_id: "AROAEXAMPLE".into(),
            issued,
        })
    }
    async fn identity(&self) -> Result<String, SourceError> {
        Ok("arn:aws:iam::123456789012:user/credvend".into())
    }
}

#[async_trait]
impl Denier for Aws {
    async fn project(&self, _: &RoleArn, entries: &[Revocation]) -> Result<(), DenyError> {
        if self.iam_down.load(Ordering::SeqCst) {
            return Err(DenyError::Unavailable("IAM does not answer".into()));
        }
        *self.denied.lock().unwrap() = entries
            .iter()
            .map(|entry| match &entry.whose {
                Denied::SourceIdentity(name) | Denied::UserId(name) => name.clone(),
                Denied::Everyone => "*".into(),
            })
            .collect();
        Ok(())
    }
}

pub struct World {
    pub vending: Arc<Vending>,
    pub dir: tempfile::TempDir,
    pub aws: Arc<Aws>,
    pub port: u16,
    pub plain_port: u16,
    pub fingerprint: String,
    /// Answers of the administrator's reload.
    pub reload: Arc<Mutex<Result<(), Vec<String>>>>,
    ca: CertifiedIssuer<'static, KeyPair>,
    certificates: Arc<Certificates>,
    stop: watch::Sender<bool>,
    limits: Arc<ConnectionLimits>,
    tasks: tokio::task::JoinSet<()>,
    pub metrics: Arc<Metrics>,
}

impl World {
    pub async fn start() -> Self {
        Self::with(None, 64).await
    }

    /// With the munged behind this socket, and so many connections of one address.
    pub async fn with(munge_socket: Option<PathBuf>, per_address: u32) -> Self {
        // Tests ask faster than a node does.
        let bounds = Bounds { handshakes_per_address: 1000, ..Bounds::of(64, per_address) };
        Self::bounded(munge_socket, bounds).await
    }

    /// With the munged behind this socket, and these bounds of connections.
    pub async fn bounded(munge_socket: Option<PathBuf>, bounds: Bounds) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = authority();
        let (ca_file, secret_file) = (dir.path().join("ca.pem"), dir.path().join("secret"));
        std::fs::write(&ca_file, ca.pem()).unwrap();
        write_secret(&secret_file, SECRET);
        let crl_file = dir.path().join("crl.pem");
        write_crl(&ca, &crl_file, &[], OffsetDateTime::now_utc() + Duration::from_secs(3600));
        let tls = Tls { client_ca: Some(ca_file), client_crl: vec![crl_file], ..Tls::default() };
        let certificates = Arc::new(Certificates::open(Files::prepare(&tls, dir.path()).unwrap()).unwrap());
        let metrics = Arc::<Metrics>::default();
        let store = Arc::new(SqliteStore::open(&dir.path().join("db")).unwrap());
        let store: Arc<dyn Store> = Measured::<dyn Store>::new(store, metrics.clone());
        let aws = Arc::new(Aws::default());
        let addresses = NodeAddresses { check: AddressCheck::Off, decided: true, ..NodeAddresses::default() };
        let cluster = |attestor| Cluster { attestor, addresses: addresses.clone(), ..Cluster::default() };
        let lab = cluster(Some(Arc::new(Slurm) as Arc<dyn Attestor>));
        let vending = Arc::new(Vending::new(Parts {
            store: store.clone(),
            clusters: HashMap::from([("lab".parse().unwrap(), lab), ("hpc".parse().unwrap(), cluster(None))]),
            source: aws.clone(),
            denier: aws.clone(),
            projects: Arc::new(Projects::new(projects())),
            names: Default::default(),
            audit: credvend::audit::Log::none(),
            metrics: metrics.clone(),
            events: Arc::new(Events::new(store.clone(), Arc::new(SystemClock))),
            clock: Arc::new(SystemClock),
        }));
        let (stop, stopping) = watch::channel(false);
        let reload = Arc::new(Mutex::new(Ok(())));
        let reloaded = reload.clone();
        let socket = munge_socket.unwrap_or_else(|| dir.path().join("no-munged"));
        let server = Arc::new(Server {
            vending: vending.clone(),
            authenticator: Authenticator {
                clusters: ["lab", "hpc"].map(|name| name.parse().unwrap()).into(),
                secrets: HeadSecrets::open(vec![("lab".parse().unwrap(), secret_file)]).unwrap(),
                munge: MungeVerifier::new(vec![("lab".parse().unwrap(), Some(socket))], store.clone()).unwrap(),
                head_certificates: true,
            },
            settings: Settings {
                public_url: "https://credvend.example.org".into(),
                localhost_port: 9999,
                session_tokens: true,
                request_patience: DEADLINE,
                max_streams_per_node: 2,
                host: Some("credvend.example.org".into()),
            },
            admin: Admin {
                reload: Arc::new(move |_| reloaded.lock().unwrap().clone()),
                about: About { started: OffsetDateTime::now_utc(), clusters: vec![], warnings: vec![] },
                in_force: Arc::new(Vec::new),
                not_reloaded: Default::default(),
                observed: Default::default(),
                ready: Default::default(),
            },
            streams: Default::default(),
            refusals: Default::default(),
            clock: Arc::new(SystemClock),
            stopping,
        });
        let limits = Arc::new(ConnectionLimits::new(bounds));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, plain_port) = (listener.local_addr().unwrap().port(), plain.local_addr().unwrap().port());
        let fingerprint = certificates.live().fingerprint.to_string();
        let admin = AdminSocket::bind(&dir.path().join("admin.sock"), None).unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(serve_tcp(server.clone(), listener, Some(certificates.clone()), limits.clone()));
        tasks.spawn(serve_tcp(server.clone(), plain, None, limits.clone()));
        tasks.spawn(admin.serve(server, limits.clone()));
        World {
            vending,
            dir,
            aws,
            port,
            plain_port,
            fingerprint,
            reload,
            ca,
            certificates,
            stop,
            limits,
            tasks,
            metrics,
        }
    }

    /// Stops the service; true if everything ended by itself.
    pub async fn stop(&mut self) -> bool {
        self.stop.send(true).unwrap();
        while self.tasks.join_next().await.is_some() {}
        self.limits.drained(DEADLINE).await
    }

    pub fn replace_secrets(&self, lines: &str) {
        write_secret(&self.dir.path().join("secret"), lines);
    }

    /// A client's certificate of the configured authority, with this URI.
    pub fn certificate(&self, uri: &str) -> Identity {
        identity(&self.ca, uri)
    }

    /// An administrator's reload, as far as it is about certificates.
    pub fn reload_certificates(&self) -> Result<(), String> {
        self.certificates.reload().map_err(|error| error.to_string())
    }

    /// The authority's list says that these are revoked, and ends then; an administrator reloads it.
    pub fn revoke(&self, revoked: &[&Identity], next: OffsetDateTime) {
        write_crl(&self.ca, &self.dir.path().join("crl.pem"), revoked, next);
        self.certificates.reload().unwrap();
    }

    /// One request over TLS, on a connection of its own.
    pub async fn call(&self, as_whom: Option<&Identity>, request: Request<Full<Bytes>>) -> Seen {
        self.try_call(as_whom, request).await.unwrap()
    }

    /// The same, where the handshake may fail.
    pub async fn try_call(&self, as_whom: Option<&Identity>, request: Request<Full<Bytes>>) -> Result<Seen, String> {
        Seen::read(self.open(as_whom, request).await?).await
    }

    /// The response as it begins.
    pub async fn open(
        &self,
        as_whom: Option<&Identity>,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, String> {
        http(self.handshake(as_whom).await?, request).await
    }

    /// A TLS connection on which nothing has been asked yet.
    pub async fn handshake(&self, as_whom: Option<&Identity>) -> Result<TlsStream<TcpStream>, String> {
        self.handshake_with(as_whom, None).await
    }

    /// The same, with the node's ticket.
    pub async fn handshake_with(
        &self,
        as_whom: Option<&Identity>,
        ticket: Option<&str>,
    ) -> Result<TlsStream<TcpStream>, String> {
        let config = self.client(as_whom, ticket);
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.map_err(|e| e.to_string())?;
        let name = ServerName::try_from("localhost").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| e.to_string())
    }

    /// The first message of a handshake, which costs nothing to send again and again.
    pub fn hello(&self) -> Vec<u8> {
        let name = ServerName::try_from("localhost").unwrap();
        let mut begun = rustls::ClientConnection::new(Arc::new(self.client(None, None)), name).unwrap();
        let mut bytes = vec![];
        begun.write_tls(&mut bytes).unwrap();
        bytes
    }

    fn client(&self, as_whom: Option<&Identity>, ticket: Option<&str>) -> rustls::ClientConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        for own in CertificateDer::pem_file_iter(self.dir.path().join("server.crt")).unwrap() {
            roots.add(own.unwrap()).unwrap();
        }
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match as_whom {
            None => builder.with_no_client_auth(),
            Some(Identity { chain, key, .. }) => builder.with_client_auth_cert(chain.clone(), key.clone_key()).unwrap(),
        };
        if let Some(ticket) = ticket {
            config.alpn_protocols = vec![ticket.into(), b"http/1.1".to_vec()];
        }
        config
    }

    /// One request over plain loopback HTTP.
    pub async fn call_plain(&self, request: Request<Full<Bytes>>) -> Seen {
        let stream = TcpStream::connect(("127.0.0.1", self.plain_port)).await.unwrap();
        Seen::read(http(stream, request).await.unwrap()).await.unwrap()
    }

    /// One request over the administrators' socket.
    pub async fn call_admin(&self, request: Request<Full<Bytes>>) -> Seen {
        let stream = UnixStream::connect(self.dir.path().join("admin.sock")).await.unwrap();
        Seen::read(http(stream, request).await.unwrap()).await.unwrap()
    }

    /// A head opens a session; its token.
    pub async fn open_for_head(&self, session: &str, submitted: &str) -> String {
        let seen =
            self.call(None, request(Method::POST, "/sessions", Some(SECRET), &opening(session, submitted))).await;
        assert_eq!(seen.status, 200, "{}", seen.text);
        seen.json()["AWS_CONTAINER_AUTHORIZATION_TOKEN"].as_str().unwrap().to_owned()
    }
}

/// The v1 POST body.
pub fn opening(session: &str, submitted: &str) -> String {
    serde_json::json!({
        "sessionId": session, "projectId": "genomics", "clusterName": "lab", "clusterUser": "alice",
        "submittedTime": submitted,
    })
    .to_string()
}

/// A request with this `Authorization`.
pub fn request(method: Method, target: &str, authorization: Option<&str>, body: &str) -> Request<Full<Bytes>> {
    let mut builder = Request::builder().method(method).uri(target).header("host", "localhost");
    if let Some(value) = authorization {
        builder = builder.header("authorization", value);
    }
    if builder.method_ref() == Some(&Method::POST) {
        builder = builder.header("content-type", "application/json");
    }
    builder.body(Full::new(Bytes::from(body.to_owned()))).unwrap()
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Seen {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    pub text: String,
}

impl Seen {
    pub async fn read(response: Response<Incoming>) -> Result<Self, String> {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        Ok(Seen { status: parts.status.as_u16(), headers: parts.headers, text })
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {:?}", self.text))
    }

    /// The status and the word for programs.
    pub fn refusal(&self) -> (u16, String) {
        (self.status, self.json()["code"].as_str().unwrap_or("none").to_owned())
    }
}

/// A client's certificate and key.
pub struct Identity {
    serial: u64,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// An authority nobody has configured.
pub fn stranger(uri: &str) -> Identity {
    identity(&authority(), uri)
}

pub fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn identity(ca: &CertifiedIssuer<'static, KeyPair>, uri: &str) -> Identity {
    let mut params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    static SERIAL: AtomicU64 = AtomicU64::new(1);
    let serial = SERIAL.fetch_add(1, Ordering::SeqCst);
    params.serial_number = Some(serial.into());
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, ca).unwrap();
    Identity {
        serial,
        chain: vec![certificate.der().clone()],
        key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    }
}

/// The authority's list of revoked certificates.
fn write_crl(ca: &CertifiedIssuer<'static, KeyPair>, path: &Path, revoked: &[&Identity], next: OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    let revoked = revoked.iter().map(|identity| rcgen::RevokedCertParams {
        serial_number: identity.serial.into(),
        revocation_time: now,
        reason_code: None,
        invalidity_date: None,
    });
    let list = rcgen::CertificateRevocationListParams {
        this_update: now - Duration::from_secs(7200),
        next_update: next,
        crl_number: 1u64.into(),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    std::fs::write(path, list.signed_by(ca).unwrap().pem().unwrap()).unwrap();
}

fn projects() -> ProjectMap {
    let mut map = ProjectMap::default();
    let role = Role {
        arn: "arn:aws:iam::123456789012:role/genomics".parse().unwrap(),
        duration_seconds: 3600,
        source_identity: false,
        session_tags: false,
        revoke_on_end: false,
        session_name: None,
    };
    for project in ["genomics", "climate"] {
        map.projects.insert(project.parse().unwrap(), [("default".parse().unwrap(), role.clone())].into());
    }
    map.accounts.insert("genomics".parse().unwrap(), "genomics".parse().unwrap());
    map
}

fn write_secret(path: &Path, lines: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, lines).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

async fn http(
    io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    tokio::time::timeout(DEADLINE, sender.send_request(request)).await.unwrap().map_err(|e| e.to_string())
}
