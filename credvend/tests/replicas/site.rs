//! A site: a pretend AWS, a made-up Slurm, and replicas of the program itself.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::types::AttributeValue;
use credd_protocol::node_api::Event;
use credvend::attest::squeue::made_up;
use serde_json::Value;

use super::munged::Munged;
use super::pretend_aws::{Keys, PretendAws, ServiceUser};

pub const DEADLINE: Duration = Duration::from_secs(60);
pub const SECRET: &str = "head-secret-0123456789";

/// Waits for something that tells nobody, with a deadline.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

struct Replica {
    port: u16,
    process: Option<Child>,
}

pub struct Site {
    dir: tempfile::TempDir,
    replicas: Vec<Replica>,
    http: reqwest::Client,
    keys: (String, String),
    pub aws: PretendAws,
}

/// What a project's role may read, and nobody else.
const BUCKET: &str = "genomics-data";

impl Site {
    /// So many replicas, one role for project genomics; nodes of cluster lab with this munged.
    pub async fn start(replicas: usize, munge: Option<PathBuf>) -> Self {
        Self::with(replicas, munge, true).await
    }

    pub async fn with_projects_in_the_store(replicas: usize) -> Self {
        Self::with(replicas, None, false).await
    }

    async fn with(replicas: usize, munge: Option<PathBuf>, file: bool) -> Self {
        let aws = PretendAws::start().await;
        let service = aws.create_service_user().await;
        let role = aws.create_role("genomics", &service.arn, Some(BUCKET)).await;
        let ServiceUser { id, secret, .. } = service;
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("secret"), &format!("{SECRET}\n"));
        write(&dir.path().join("projects.toml"), &format!("[projects.genomics]\nrole-arn = \"{role}\"\n"));
        std::fs::create_dir(dir.path().join("slurm")).unwrap();
        let mut site = Site {
            dir,
            replicas: vec![],
            http: reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap(),
            keys: (id, secret),
            aws,
        };
        site.make_slurm();
        for number in 0..replicas {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            site.configure(number, port, munge.as_deref(), file);
            site.replicas.push(Replica { port, process: None });
        }
        site.make_tables(0).await;
        for number in 0..replicas {
            site.spawn(number).await;
        }
        site
    }

    /// The administrator's keys make a replica's tables; credvend's own may only use them, and no others.
    pub async fn make_tables(&self, replica: usize) {
        let mut init = self.command(replica, &["store", "init"]);
        let made = init.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let policy = self.json(replica, &["store", "policy", "--account", "000000000000"]);
        self.aws.allow_also(&policy).await;
    }

    fn configure(&self, number: usize, port: u16, munge: Option<&Path>, file: bool) {
        let at = |name: &str| self.path(name).display().to_string();
        let own = |name: &str| at(&format!("{number}/{name}"));
        std::fs::create_dir(self.path(&number.to_string())).unwrap();
        let from = if file { "file" } else { "store" };
        let munge = munge.map(|socket| format!("munge-socket = \"{}\"\n", socket.display())).unwrap_or_default();
        let endpoint = self.aws.endpoint();
        let text = format!(
            "listen = \"127.0.0.1:{port}\"\nplain-http = true\nstate-dir = \"{}\"\nadmin-socket = \"{}\"\n\
             projects = \"{}\"\nprojects-from = \"{from}\"\n\
             [audit]\npath = \"{}\"\n\
             [store]\nkind = \"dynamodb\"\nendpoint = \"{endpoint}\"\npath = \"{}\"\n\
             [aws]\nregion = \"us-east-1\"\nsts-endpoint = \"{endpoint}\"\niam-endpoint = \"{endpoint}\"\n\
             revoker-roles = [\"{}\"]\n\
             [[cluster]]\nname = \"lab\"\nslurm-bin = \"{}\"\ntrust-unenforced-accounts = true\n\
             node-address-check = \"off\"\n{munge}\
             [[cluster]]\nname = \"hpc\"\nattest = \"head\"\nhead-secret-file = \"{}\"\n",
            own("state"),
            own("admin.sock"),
            at("projects.toml"),
            own("audit.jsonl"),
            at("site.sqlite"),
            PretendAws::revoker(),
            at("slurm"),
            at("secret"),
        );
        write(&self.path(&format!("{number}/credvend.toml")), &text);
    }

    /// Changes a replica's configuration; it holds from its next start.
    pub fn reconfigure(&self, replica: usize, from: &str, to: &str) {
        let path = self.path(&format!("{replica}/credvend.toml"));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        write(&path, &text.replace(from, to));
    }

    /// Prints a file, whatever it is asked; the file is replaced at once.
    fn make_slurm(&self) {
        for (name, body) in [("squeue", "cat answer"), ("scontrol", "cat config"), ("sinfo", "exit 1")] {
            let path = self.path(&format!("slurm/{name}"));
            let place = self.path("slurm");
            std::fs::write(&path, format!("#!/bin/sh\ncd {}\n{body}\n", place.display())).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::fs::write(self.path("slurm/config"), "").unwrap();
        self.job_seven_runs(false);
    }

    fn squeue_says(&self, jobs: &[[&str; 2]]) {
        let mut answer = made_up::header().into_bytes();
        // Another job, so that the answer is never empty; and two rows say that nothing was cut off between them.
        answer.extend(made_up::row(["9", "0", "1009", "RUNNING", "zoe", "genomics", "batch"], "n9"));
        for [job, restart] in jobs {
            answer.extend(made_up::row([job, restart, "1001", "RUNNING", "alice", "genomics", "batch"], "n[1-2]"));
        }
        std::fs::write(self.path("slurm/answer.new"), answer).unwrap();
        std::fs::rename(self.path("slurm/answer.new"), self.path("slurm/answer")).unwrap();
        // About one job that is not there, Slurm says so in its own words.
        let known: String = jobs.iter().map(|[job, _]| format!("*--jobs={job}*) ;; ")).collect();
        let script = format!(
            "#!/bin/sh\ncd {}\ncase \"$*\" in {known}*--jobs=*,*) ;; *--jobs=9*) ;; *--jobs=*) \
             echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1;; esac\ncat answer\n",
            self.path("slurm").display()
        );
        let (new, path) = (self.path("slurm/squeue.new"), self.path("slurm/squeue"));
        std::fs::write(&new, script).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    /// Alice's job 7 on n1 and n2.
    pub fn job_seven_runs(&self, runs: bool) {
        self.squeue_says(if runs { &[["7", "0"]] } else { &[] });
    }

    pub fn job_seven_runs_again(&self, restart: u32) {
        self.squeue_says(&[["7", &restart.to_string()]]);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn url(&self, replica: usize) -> String {
        format!("http://127.0.0.1:{}", self.replicas[replica].port)
    }

    pub fn ports(&self) -> Vec<u16> {
        self.replicas.iter().map(|r| r.port).collect()
    }

    pub fn http(&self) -> reqwest::Client {
        self.http.clone()
    }

    fn command(&self, replica: usize, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_credvend"));
        command.args(args).stdin(Stdio::null()).env_clear();
        command.env("CREDVEND_CONFIG", self.path(&format!("{replica}/credvend.toml")));
        command.env("AWS_ACCESS_KEY_ID", &self.keys.0).env("AWS_SECRET_ACCESS_KEY", &self.keys.1);
        command
    }

    pub async fn spawn(&mut self, number: usize) {
        let log = self.path(&format!("{number}/log"));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut command = self.command(number, &["serve"]);
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        self.replicas[number].process = Some(child);
        let port = self.replicas[number].port;
        let end = Instant::now() + DEADLINE;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let said = std::fs::read_to_string(&log).unwrap();
            assert!(Instant::now() < end, "replica {number} did not come up: {said}");
            let process = self.replicas[number].process.as_mut().unwrap();
            assert!(process.try_wait().unwrap().is_none(), "replica {number} ended: {said}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// SIGKILL, as a machine that loses power.
    pub async fn kill_and_restart(&mut self, number: usize) {
        let mut process = self.replicas[number].process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        self.spawn(number).await;
    }

    /// As an administrator stops it.
    pub async fn stop(&mut self, number: usize) {
        let mut process = self.replicas[number].process.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(process.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let ended = ended(&mut process).await;
        assert!(ended.success(), "{ended:?}");
    }

    /// A replica that is expected not to come up: how it ended, and what it said.
    pub async fn refuses_to_serve(&self, replica: usize) -> String {
        let mut process = self.command(replica, &["serve"]).stderr(Stdio::piped()).spawn().unwrap();
        let ended = ended(&mut process).await;
        assert_eq!(ended.code(), Some(1));
        let mut said = String::new();
        process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }

    /// As if much time had passed.
    pub async fn end_all_leases(&self) {
        let dynamodb = self.aws.dynamodb();
        let leases = dynamodb.query().table_name("credvend-state").key_condition_expression("Pk = :leases");
        let leases = leases.expression_attribute_values(":leases", AttributeValue::S("leases".into()));
        for mut lease in leases.send().await.unwrap().items.unwrap_or_default() {
            lease.retain(|name, _| matches!(name.as_str(), "Pk" | "Sk"));
            dynamodb.delete_item().table_name("credvend-state").set_key(Some(lease)).send().await.unwrap();
        }
    }

    /// S3's status when the role's data is read with these keys.
    pub async fn reads(&self, document: &Value) -> u16 {
        let text = |name: &str| document[name].as_str().unwrap();
        let keys = Keys::new(text("AccessKeyId"), text("SecretAccessKey"), Some(text("Token")));
        self.aws.get_object(&keys, BUCKET).await.map_or_else(|status| status, |_| 200)
    }

    pub fn run(&self, replica: usize, args: &[&str]) -> Said {
        let output = self.command(replica, args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Said { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }

    pub fn done(&self, replica: usize, args: &[&str]) -> String {
        let said = self.run(replica, args);
        assert_eq!(said.code, 0, "{args:?}: {}{}", said.out, said.err);
        said.out
    }

    pub fn json(&self, replica: usize, args: &[&str]) -> Value {
        serde_json::from_str(&self.done(replica, args)).unwrap()
    }

    /// A request of the IAM Credentials API (v1); its status and document. It is sent again while the answer says when to
    /// come (`Retry-After`), as clients do.
    pub async fn call(
        &self,
        method: &str,
        url: &str,
        authorization: Option<&str>,
        body: Option<&Value>,
    ) -> (u16, Value) {
        let end = Instant::now() + DEADLINE;
        loop {
            let mut request = self.http.request(method.parse().unwrap(), url);
            if let Some(secret) = authorization {
                request = request.header("authorization", secret);
            }
            if let Some(body) = body {
                request = request.body(body.to_string());
            }
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            let later = status == 503 && answer.headers().contains_key("retry-after");
            let said = answer.text().await.unwrap();
            if !later || Instant::now() > end {
                return (status, serde_json::from_str(&said).unwrap_or_default());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A node's request with this credential.
    pub async fn node(&self, url: &str, method: &str, target: &str, credential: &str, body: &str) -> (u16, String) {
        from_node(&self.http, url, method, target, credential, body).await
    }

    pub async fn stream(&self, url: &str, munged: &Munged, node: &str, target: &str) -> Stream {
        let credential = munged.say(node, "GET", target, "");
        let request = self.http.get(format!("{url}{target}")).header("authorization", format!("Munge {credential}"));
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        Stream { answer, read: vec![] }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for replica in &mut self.replicas {
            if let Some(process) = &mut replica.process {
                let _ = process.kill();
                let _ = process.wait();
            }
        }
        if std::thread::panicking() {
            for number in 0..self.replicas.len() {
                let log = std::fs::read_to_string(self.path(&format!("{number}/log"))).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(15).collect();
                eprintln!("replica {number} said, newest first:\n{}", last.join("\n"));
            }
        }
    }
}

pub struct Stream {
    answer: reqwest::Response,
    read: Vec<u8>,
}

impl Stream {
    /// The next line, but for those that only keep the connection.
    pub async fn next(&mut self) -> Event {
        loop {
            if let Some(end) = self.read.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                match serde_json::from_slice(&line).unwrap() {
                    Event::Ping { .. } => continue,
                    event => return event,
                }
            }
            let more = tokio::time::timeout(DEADLINE, self.answer.chunk()).await.expect("a line").unwrap();
            self.read.extend(more.expect("the stream goes on"));
        }
    }
}

/// See [`Site::node`].
pub async fn from_node(
    http: &reqwest::Client,
    url: &str,
    method: &str,
    target: &str,
    credential: &str,
    body: &str,
) -> (u16, String) {
    let request = http.request(method.parse().unwrap(), format!("{url}{target}"));
    let request = request.header("authorization", format!("Munge {credential}")).body(body.to_owned());
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn ended(process: &mut Child) -> std::process::ExitStatus {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > end {
            let _ = process.kill();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// As an SDK or a head's hook does it: again where the connection broke or the answer is a 5xx, until it is done.
pub async fn retried(
    http: &reqwest::Client,
    retries: &mut u32,
    method: &str,
    url: &str,
    authorization: &str,
    body: Option<Value>,
) -> Value {
    let end = Instant::now() + DEADLINE;
    loop {
        let mut request = http.request(method.parse().unwrap(), url).header("authorization", authorization);
        // A revocation waits for IAM.
        request = request.timeout(Duration::from_secs(30));
        if let Some(body) = &body {
            request = request.body(body.to_string());
        }
        let said = match request.send().await {
            Ok(answer) => {
                let status = answer.status().as_u16();
                let text = answer.text().await;
                match text {
                    Ok(text) if matches!(status, 200 | 202) => return serde_json::from_str(&text).unwrap(),
                    Ok(text) if status < 500 => panic!("{method} {url}: {status} {text}"),
                    other => format!("{status} {other:?}"),
                }
            }
            Err(error) => error.to_string(),
        };
        assert!(Instant::now() < end, "{method} {url} does not get through: {said}");
        *retries += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
