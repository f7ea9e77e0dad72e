//! The shared cluster, and what most tests do with it.

use std::ops::Deref;
use std::sync::{LazyLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use serde_json::Value;
use testbed::{Cluster, ExtraRole, Host, Output, Plan};

/// Long enough for anything that a loaded two-core machine does; what takes longer is broken.
pub const SOON: Duration = Duration::from_secs(60);

static CLUSTER: LazyLock<RwLock<Cluster>> =
    LazyLock::new(|| RwLock::new(Cluster::up(plan()).expect("the shared cluster comes up")));

/// The usual cluster, and a partition whose jobs get another role of their project.
fn plan() -> Plan {
    let train = ExtraRole { name: "train".into(), project: "genomics".into() };
    // What slurmstepd says while a step runs is in no other log.
    let slurm_conf = "SlurmdLogFile={run}/slurmd-%n.log\n".to_owned();
    Plan { more_roles: vec![train], slurm_conf, ..Plan::default() }
        .partition("train", "", Some("on,role=train,region=eu-west-1"))
        .partition("strict-train", "", Some("on,role=train,on-error=fail,wait=20s"))
        .partition("patient", "", Some("on,on-error=fail,wait=60s"))
        .partition("unheard", "", Some("on,max-unheard=30s"))
        .partition("meta", "", Some("on,metadata=off,region=eu-west-1"))
        .partition("nometa", "", Some("off,metadata=off,region=eu-west-1"))
        .partition("gpu+a100", "", Some("on"))
        .partition("a=b c%", "", Some("on"))
}

/// The cluster in a test's hands. If the test fails, the daemons' last log lines are printed with it.
pub struct Held<G: Deref<Target = Cluster>>(G);

impl<G: Deref<Target = Cluster>> Deref for Held<G> {
    type Target = Cluster;
    fn deref(&self) -> &Cluster {
        &self.0
    }
}

impl<G: Deref<Target = Cluster>> Drop for Held<G> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.0.last_log_lines(120));
        }
    }
}

/// The cluster, for tests that disturb nobody.
pub fn cluster() -> Held<RwLockReadGuard<'static, Cluster>> {
    // A test that failed with the cluster in its hands has left it running.
    let held = Held(CLUSTER.read().unwrap_or_else(PoisonError::into_inner));
    settled(&held);
    held
}

/// The cluster, for a test that stops daemons: it must leave all of them running.
pub fn alone() -> Held<RwLockWriteGuard<'static, Cluster>> {
    let held = Held(CLUSTER.write().unwrap_or_else(PoisonError::into_inner));
    settled(&held);
    held
}

/// Waits until what an earlier test stopped is at work again.
fn settled(cluster: &Cluster) {
    for node in cluster.nodes() {
        testbed::wait_for(&format!("credd on {} to be well", node.name()), SOON, || {
            node.run_as("root", &["credd", "health"]).ok().then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}: {:?}", node.run_as("root", &["credd", "health"])));
    }
}

/// A shell line that prints the caller's ARN, with the login environment spelled out: batch jobs with `--export=NONE`
/// have none.
pub fn whoami(cluster: &Cluster) -> String {
    let run = cluster.run_dir().display();
    format!(
        "PATH={run}/bin:/usr/bin:/bin AWS_ENDPOINT_URL={} AWS_DEFAULT_REGION=us-east-1 \
         aws sts get-caller-identity --query Arn --output text",
        testbed::layout::AWS_ENDPOINT
    )
}

/// What [`whoami`] prints in a job of this project and user on this node.
pub fn arn(project: &str, user: &str, node: &str) -> String {
    format!("arn:aws:sts::123456789012:assumed-role/{project}/lab-{user}-{node}")
}

/// The shell in a job, `srun OPTIONS bash -c SCRIPT`.
pub fn srun(cluster: &Cluster, user: &str, options: &[&str], script: &str) -> Output {
    let mut arguments = options.to_vec();
    arguments.extend(["bash", "-c", script]);
    cluster.as_user(user).srun(&arguments)
}

/// `credvend …` on the head as root, its JSON.
#[track_caller]
pub fn admin(cluster: &Cluster, arguments: &[&str]) -> Value {
    let mut argv = vec!["credvend"];
    argv.extend(arguments);
    argv.push("--json");
    let done = cluster.head().run_as("root", &argv);
    let text = done.expect_ok();
    if text.is_empty() { Value::Null } else { serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {done:?}")) }
}

/// The sessions of a Slurm job, newest first.
#[track_caller]
pub fn sessions(cluster: &Cluster, job: u32) -> Vec<Value> {
    let listed = admin(cluster, &["session", "list", "--job", &job.to_string()]);
    listed.as_array().unwrap_or_else(|| panic!("{listed}")).clone()
}

/// The status of the newest session of a job, or "none".
#[track_caller]
pub fn status(cluster: &Cluster, job: u32) -> String {
    let all = sessions(cluster, job);
    all.first().map_or_else(|| "none".to_owned(), |s| s["status"].as_str().unwrap_or_default().to_owned())
}

/// Waits until the newest session of a job has this status.
#[track_caller]
pub fn wait_status(cluster: &Cluster, job: u32, wanted: &str) {
    testbed::wait_for(&format!("the session of job {job} to be {wanted}"), SOON, || {
        (status(cluster, job) == wanted).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}; it is {:?}", sessions(cluster, job)));
}

/// A batch job that runs until it is let go, and what it found in its environment.
pub struct HeldJob<'a> {
    cluster: &'a Cluster,
    user: String,
    /// The raw job id.
    pub job: u32,
    /// The node that runs its script.
    pub node: String,
    /// `AWS_CONTAINER_CREDENTIALS_FULL_URI`, or empty.
    pub uri: String,
    /// `AWS_CONTAINER_AUTHORIZATION_TOKEN`, or empty.
    pub token: String,
}

/// Starts one. `options` go to sbatch.
#[track_caller]
pub fn hold<'a>(cluster: &'a Cluster, user: &str, options: &[&str]) -> HeldJob<'a> {
    hold_script(cluster, user, options, "")
}

/// Starts one whose script first does something else.
#[track_caller]
pub fn hold_script<'a>(cluster: &'a Cluster, user: &str, options: &[&str], first: &str) -> HeldJob<'a> {
    let script = format!(
        "{first}\n\
         echo \"node=$SLURMD_NODENAME\"\n\
         echo \"uri=$AWS_CONTAINER_CREDENTIALS_FULL_URI\"\n\
         echo \"token=$AWS_CONTAINER_AUTHORIZATION_TOKEN\"\n\
         echo held\n\
         until [ -e ~/release-$SLURM_JOB_ID ]; do sleep 0.05; done\n\
         echo released\n"
    );
    let user_on_head = cluster.as_user(user);
    let job = user_on_head.sbatch(&script, options).expect("sbatch accepts the job");
    let output = user_on_head.wait_job_output(job, "held\n", SOON).expect("the job runs");
    let value = |name: &str| {
        let line = output.lines().rev().find_map(|l| l.strip_prefix(&format!("{name}=")));
        line.unwrap_or_else(|| panic!("no {name}= in {output:?}")).to_owned()
    };
    let (node, uri, token) = (value("node"), value("uri"), value("token"));
    HeldJob { cluster, user: user.to_owned(), job, node, uri, token }
}

impl HeldJob<'_> {
    /// The host it runs on.
    pub fn host(&self) -> &Host {
        self.cluster.node(&self.node)
    }

    /// Asks the endpoint as some user of the job's node, with the job's URL and token.
    pub fn get_as(&self, user: &str) -> Answer {
        get(self.host(), user, &self.uri, &[&format!("Authorization: {}", self.token)])
    }

    /// Lets it run to its end.
    pub fn release(&self) {
        let user = self.cluster.as_user(&self.user);
        user.write_file(&format!("release-{}", self.job), "").expect("the home is writable");
    }

    /// Lets it run to its end, and waits for that.
    #[track_caller]
    pub fn finish(self) -> u32 {
        self.release();
        let state = self.cluster.as_user(&self.user).wait_job(self.job, SOON).expect("the job ends");
        assert_eq!(state, "COMPLETED");
        self.job
    }
}

impl Drop for HeldJob<'_> {
    fn drop(&mut self) {
        // Also where a test failed: a job that stays would hold its CPU until the end. Harmless for one that has ended.
        self.cluster.as_user(&self.user).scancel(self.job);
    }
}

/// Asks a node's endpoint as a process of the job would, with what a step of it wrote down by [`NOTE`].
pub fn ask_noted(cluster: &Cluster, user: &str, job: u32, node: &str) -> Answer {
    let (uri, token) = noted(cluster, user, job, node).unwrap_or_else(|| panic!("job {job} noted nothing on {node}"));
    get(cluster.node(node), user, &uri, &[&format!("Authorization: {token}")])
}

/// A shell line by which a step writes its URL and token into the user's home, for each node apart.
pub const NOTE: &str = "n=~/note-$SLURM_JOB_ID-$SLURMD_NODENAME; printf \"%s\\n%s\\n\" \
                        \"$AWS_CONTAINER_CREDENTIALS_FULL_URI\" \"$AWS_CONTAINER_AUTHORIZATION_TOKEN\" > $n.new; mv $n.new $n";

/// What [`NOTE`] wrote, once it is there.
pub fn noted(cluster: &Cluster, user: &str, job: u32, node: &str) -> Option<(String, String)> {
    let note = cluster.run_dir().join(format!("home/{user}/note-{job}-{node}"));
    let text = std::fs::read_to_string(note).ok()?;
    let (uri, token) = text.trim_end().split_once('\n')?;
    Some((uri.to_owned(), token.to_owned()))
}

/// Waits until a step of the job has written its note on each of these nodes.
#[track_caller]
pub fn wait_noted(cluster: &Cluster, user: &str, job: u32, nodes: &[&str]) {
    for node in nodes {
        testbed::wait_for(&format!("the note of job {job} on {node}"), SOON, || {
            noted(cluster, user, job, node).map(drop)
        })
        .unwrap_or_else(|e| panic!("{e}; it printed {:?}", cluster.as_user(user).job_output(job)));
    }
}

/// `scontrol …` as root, which must succeed.
#[track_caller]
pub fn scontrol(cluster: &Cluster, arguments: &str) {
    cluster.head().run_as_root(&format!("scontrol {arguments}")).expect_ok();
}

/// A job of alice's on n1 that was requeued after its first run had its identity. Each run prints `run=`, how often the job
/// was begun anew, and its identity; the second one ends by itself.
#[track_caller]
pub fn requeued(cluster: &Cluster) -> u32 {
    let alice = cluster.as_user("alice");
    let script = format!(
        "echo \"run=$SLURM_RESTART_COUNT $({})\"\n\
         [ -n \"$SLURM_RESTART_COUNT\" ] && exit 0\n\
         until [ -e ~/never-$SLURM_JOB_ID ]; do sleep 0.05; done\n",
        whoami(cluster)
    );
    let job = alice.sbatch(&script, &["--requeue", "-w", "n1", "--open-mode=append"]).unwrap();
    alice.wait_job_output(job, "run= arn", SOON).unwrap();
    scontrol(cluster, &format!("requeue {job}"));
    job
}

/// Waits until slurmctld has saved its state, a running job in it, as it does some seconds after a change. A job that is
/// not in there when slurmctld dies is lost, or pending again; that is Slurm's affair, not what these tests are about.
#[track_caller]
pub fn wait_saved(cluster: &Cluster, job: u32) {
    // What is saved half a second from now has begun to be saved after now.
    let due = std::time::SystemTime::now() + Duration::from_millis(500);
    let saved = || std::fs::metadata(cluster.run_dir().join("state/job_state")).ok()?.modified().ok();
    testbed::wait_for("the job to be in the saved state", SOON, || {
        scontrol(cluster, &format!("update jobid={job} comment=saved"));
        saved().filter(|at| *at > due)
    })
    .unwrap();
}

/// The jobs that have a record on a node.
pub fn records(cluster: &Cluster, node: &str) -> Vec<String> {
    let entries = std::fs::read_dir(cluster.node(node).path("/run/credd/jobs")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// What an HTTP server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status, 0 if there was no answer.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// GET by curl(1) as a user of a host.
pub fn get(host: &Host, user: &str, url: &str, headers: &[&str]) -> Answer {
    let mut arguments = vec![url];
    for header in headers {
        arguments.extend(["-H", header]);
    }
    curl(host, user, &arguments)
}

/// curl(1) with these arguments as a user of a host.
pub fn curl(host: &Host, user: &str, arguments: &[&str]) -> Answer {
    let mut argv = vec!["curl", "-s", "-q", "--noproxy", "*", "--max-time", "20", "-w", "\n%{http_code}"];
    argv.extend(arguments);
    let done = host.run_as(user, &argv);
    let (body, status) = done.stdout.rsplit_once('\n').unwrap_or(("", "0"));
    Answer { status: status.trim().parse().unwrap_or(0), body: body.to_owned() }
}
