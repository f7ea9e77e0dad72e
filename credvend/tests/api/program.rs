//! The program itself: `credvend serve` over TLS, with a pretend AWS and a made-up Slurm.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use credvend::attest::squeue::made_up;
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair, SanType};
use tokio::net::{TcpListener, UnixStream};

use super::pretend_aws::PretendAws;
use super::world::{SECRET, authority};

const DEADLINE: Duration = Duration::from_secs(60);

/// Alice's job 7 of project genomics runs on n1 of cluster lab, which has a head, too.
pub struct Program {
    pub dir: tempfile::TempDir,
    pub port: u16,
    /// Plain HTTP on loopback, which leads to the administrators' socket.
    pub admin_port: u16,
    ca: CertifiedIssuer<'static, KeyPair>,
    child: Child,
    relay: tokio::task::JoinHandle<()>,
    _aws: PretendAws,
}

impl Program {
    pub async fn start() -> Self {
        let aws = PretendAws::start().await;
        let service = aws.create_service_user().await;
        let role = aws.create_role("genomics", &service.arn, None).await;
        let dir = tempfile::tempdir().unwrap();
        let ca = authority();
        let at = |name: &str| dir.path().join(name).display().to_string();
        write(&dir.path().join("ca.pem"), &ca.pem());
        write(&dir.path().join("secret"), &format!("{SECRET}\n"));
        write(&dir.path().join("projects.toml"), &format!("[projects.genomics]\nrole-arn = \"{role}\"\n"));
        make_slurm(&dir.path().join("slurm"));
        // Another program may take the port before credvend does; loopback has enough of them.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let endpoint = aws.endpoint();
        let text = format!(
            "listen = \"127.0.0.1:{port}\"\nstate-dir = \"{}\"\nadmin-socket = \"{}\"\nprojects = \"{}\"\n\
             [tls]\nclient-ca = \"{}\"\nnames = [\"localhost\"]\n\
             [aws]\nregion = \"us-east-1\"\nsts-endpoint = \"{endpoint}\"\niam-endpoint = \"{endpoint}\"\nrevoker-roles = [\"{}\"]\n\
             [limits]\nhandshakes-per-address = 1000\n\
             [[cluster]]\nname = \"lab\"\nslurm-bin = \"{}\"\ntrust-unenforced-accounts = true\nnode-address-check = \"off\"\n\
             head-secret-file = \"{}\"\n",
            at("state"),
            at("admin.sock"),
            at("projects.toml"),
            at("ca.pem"),
            PretendAws::revoker(),
            at("slurm"),
            at("secret"),
        );
        write(&dir.path().join("credvend.toml"), &text);
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_credvend"))
            .arg("serve")
            .env_clear()
            .env("CREDVEND_CONFIG", dir.path().join("credvend.toml"))
            .env("AWS_ACCESS_KEY_ID", &service.id)
            .env("AWS_SECRET_ACCESS_KEY", &service.secret)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let (admin_port, relay) = relay_to(dir.path().join("admin.sock")).await;
        let program = Program { dir, port, admin_port, ca, child, relay, _aws: aws };
        let end = Instant::now() + DEADLINE;
        while !program.log().contains(" ready ") {
            assert!(Instant::now() < end, "{}", program.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        program
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    /// A client's certificate and key of this URI, in one file.
    pub fn certificate(&self, uri: &str) -> PathBuf {
        let mut params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        let path = self.path(&format!("{}.pem", uri.replace(':', "-")));
        write(&path, &format!("{}{}", certificate.pem(), key.serialize_pem()));
        path
    }

    /// An HTTPS client, with such a certificate or none.
    pub fn client(&self, certificate: Option<&Path>) -> reqwest::Client {
        let own = reqwest::Certificate::from_pem(&std::fs::read(self.path("state/server.crt")).unwrap()).unwrap();
        let mut builder = reqwest::Client::builder().no_proxy().tls_certs_only([own]).timeout(DEADLINE);
        if let Some(path) = certificate {
            builder = builder.identity(reqwest::Identity::from_pem(&std::fs::read(path).unwrap()).unwrap());
        }
        builder.build().unwrap()
    }

    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    pub fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin_port)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.relay.abort();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A loopback port whose connections lead to a Unix socket, for a client that knows no such sockets.
async fn relay_to(socket: PathBuf) -> (u16, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let socket = socket.clone();
            tokio::spawn(async move {
                let Ok(mut server) = UnixStream::connect(&socket).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (port, task)
}

/// Scripts in place of Slurm's programs.
fn make_slurm(dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    let queue = made_up::header()
        + &made_up::running(7, 1001, "alice", "genomics", "n1")
        + &made_up::running(9, 1009, "zoe", "genomics", "n9");
    write(&dir.join("queue"), &queue);
    // About one job that is not there, Slurm says so in its own words.
    let answer = format!(
        "case \"$*\" in *--jobs=*,*) ;; *--jobs=7*|*--jobs=9*) ;; *--jobs=*) \
         echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1;; esac\ncat {}",
        dir.join("queue").display()
    );
    for (name, body) in [("squeue", answer.as_str()), ("scontrol", "exit 0"), ("sinfo", "exit 1")] {
        std::fs::write(dir.join(name), format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}
