//! A site whose head states its jobs, as in the IAM Credentials API (v1): `credvend hook prolog|epilog` as slurmctld's
//! own PrologSlurmctld and EpilogSlurmctld, `attest = "head"`, and nothing of ours on the nodes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use testbed::ours::HEAD_SECRET;
use testbed::{Cluster, Partition, Plan, wait_for};

use crate::support::{Answer, SOON, admin, curl, whoami};

/// `deadline-seconds` of the hooks.
const DEADLINE: u64 = 3;

struct Site {
    cluster: Cluster,
    /// Where hooks, their configuration and what they leave behind are.
    dir: PathBuf,
}

static SITE: LazyLock<Mutex<Site>> = LazyLock::new(|| Mutex::new(Site::up()));

fn site() -> MutexGuard<'static, Site> {
    SITE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Site {
    fn up() -> Site {
        let batch = Partition { name: "batch".into(), slurm: String::new(), plugin: None };
        let plan = Plan { nodes: 1, partitions: vec![batch], plugin_options: "default=off".into(), ..Plan::default() }
            .credvend_toml("[[cluster]]\nattest = \"head\"");
        let cluster = Cluster::up(plan).expect("the head's cluster comes up");
        let dir = cluster.run_dir().join("etc/hooks");
        fs::create_dir_all(dir.join("answers")).unwrap();
        let shown = dir.display();
        let config = format!(
            "url = {:?}\npin = {:?}\nhead-secret-file = \"{shown}/secret\"\ndeadline-seconds = {DEADLINE}\n\
             answer-dir = \"{shown}/answers\"\n",
            cluster.credvend_url(),
            cluster.credvend_pin().unwrap(),
        );
        fs::write(dir.join("hook.toml"), config).unwrap();
        fs::write(dir.join("secret"), format!("{HEAD_SECRET}\n")).unwrap();
        for (when, mut conf) in
            [("prolog", String::from("PrologSlurmctld=")), ("epilog", String::from("EpilogSlurmctld="))]
        {
            // The status that credvend ended with is what slurmctld gets, and is noted for the test.
            let script = format!(
                "#!/bin/sh\n{run}/bin/credvend hook {when} --hook-config {shown}/hook.toml 2>>{shown}/said\nstatus=$?\n\
                 echo \"{when} $SLURM_JOB_ID $status\" >>{shown}/ended\nexit $status\n",
                run = cluster.run_dir().display(),
            );
            let path = dir.join(when);
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            conf.push_str(&format!("{}\n", path.display()));
            let slurm_conf = cluster.run_dir().join("etc/slurm/slurm.conf");
            fs::write(&slurm_conf, fs::read_to_string(&slurm_conf).unwrap() + &conf).unwrap();
        }
        let head = cluster.head();
        head.run_as_root(&format!("cd {shown} && chown -R slurm . && chmod 600 secret hook.toml && chmod 700 answers"))
            .expect_ok();
        // Whether there are such hooks at all slurmctld asks itself at its start only, not at `scontrol reconfigure`.
        cluster.slurmctld().restart().expect("slurmctld restarts");
        cluster.wait_idle().expect("the node is idle again");
        Site { cluster, dir }
    }

    /// A batch job that runs until [`Site::release`].
    #[track_caller]
    fn submit(&self, user: &str) -> u32 {
        let script = "echo runs; until [ -e ~/release-$SLURM_JOB_ID ]; do sleep 0.05; done\n";
        self.cluster.as_user(user).sbatch(script, &[]).expect("sbatch accepts the job")
    }

    #[track_caller]
    fn wait_running(&self, user: &str, job: u32) {
        self.cluster.as_user(user).wait_job_output(job, "runs\n", SOON).expect("the job runs");
    }

    /// Lets a job end, and waits until its epilog has.
    #[track_caller]
    fn release(&self, user: &str, job: u32) {
        let owner = self.cluster.as_user(user);
        owner.write_file(&format!("release-{job}"), "").unwrap();
        assert_eq!(owner.wait_job(job, SOON).unwrap(), "COMPLETED");
        self.wait_hook("epilog", job);
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap_or_default()
    }

    /// Waits until a hook of a job has run, and checks that slurmctld got a 0.
    #[track_caller]
    fn wait_hook(&self, when: &str, job: u32) {
        let begins = format!("{when} {job} ");
        let find = || self.file("ended").lines().find_map(|line| line.strip_prefix(&begins).map(str::to_owned));
        let status = wait_for(&format!("the {when} of job {job}"), SOON, find).unwrap();
        assert_eq!(status, "0", "{}", self.file("said"));
    }

    /// What the prolog of a job was told: the lines `NAME=value` of the file it left.
    fn told(&self, job: u32, name: &str) -> Option<String> {
        let text = self.file(&format!("answers/{job}"));
        text.lines().find_map(|line| line.strip_prefix(&format!("{name}=")).map(str::to_owned))
    }

    /// The session that the head opened for a job.
    #[track_caller]
    fn session(&self, user: &str, job: u32) -> Option<Value> {
        let listed = admin(&self.cluster, &["session", "list", "--user", user]);
        let id = job.to_string();
        listed.as_array().unwrap().iter().find(|s| s["head-session"] == id.as_str()).cloned()
    }

    /// The v1 GET from the job's node, as some user there.
    fn get(&self, user: &str, uri: &str, token: &str) -> Answer {
        let uri = format!("{uri}?roleSessionName=lab-root-elsewhere");
        curl(self.cluster.node("n1"), user, &["-k", "-H", &format!("Authorization: {token}"), &uri])
    }
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn the_head_opens_a_session_and_completes_it() {
    let site = site();
    let cluster = &site.cluster;
    let begun = SystemTime::now();
    let job = site.submit("alice");
    site.wait_running("alice", job);
    site.wait_hook("prolog", job);

    let session = site.session("alice", job).expect("the head opened a session");
    assert_eq!((&session["status"], &session["project"]), (&"ACTIVE".into(), &"genomics".into()), "{session}");
    let mode = fs::metadata(site.dir.join("answers").join(job.to_string())).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the answer holds the token");
    let uri = site.told(job, "APIGATEWAY_AWS_CONTAINER_CREDENTIALS_FULL_URI").unwrap();
    let token = site.told(job, "AWS_CONTAINER_AUTHORIZATION_TOKEN").unwrap();
    assert_eq!(uri, format!("https://head:8443/sessions/{job}/cluster/lab/project/genomics"));
    assert_eq!(
        site.told(job, "LOCALHOST_AWS_CONTAINER_CREDENTIALS_FULL_URI").unwrap(),
        format!("http://127.0.0.1:9999/sessions/{job}/cluster/lab/project/genomics")
    );

    // From the job's node, with the session token; what the caller calls itself changes nothing.
    let answer = site.get("alice", &uri, &token);
    assert_eq!(answer.status, 200, "{answer:?}");
    let document = answer.json();
    let text = |key: &str| document[key].as_str().unwrap_or_else(|| panic!("no {key}")).to_owned();
    let keys = [
        ("AWS_ACCESS_KEY_ID", text("AccessKeyId")),
        ("AWS_SECRET_ACCESS_KEY", text("SecretAccessKey")),
        ("AWS_SESSION_TOKEN", text("Token")),
    ];
    let keys: Vec<(&str, &str)> = keys.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let node = cluster.node("n1");
    let me =
        node.run_with("alice", &keys, &["aws", "sts", "get-caller-identity", "--query", "Arn", "--output", "text"]);
    assert_eq!(me.expect_ok().trim(), format!("arn:aws:sts::123456789012:assumed-role/genomics/lab-alice-{job}"));
    let read =
        |bucket: &str| node.run_with("alice", &keys, &["aws", "s3", "cp", &format!("s3://{bucket}/hello.txt"), "-"]);
    assert_eq!(read("genomics-data").expect_ok(), "data of genomics");
    assert!(!read("climate-data").ok());
    let asked = cluster.aws().requests_since(begun).unwrap();
    let names: Vec<_> = asked.iter().filter_map(|r| r.parameter("RoleSessionName")).collect();
    assert_eq!(names, [format!("lab-alice-{job}")]);
    assert_eq!(site.get("alice", &uri, "another-token").status, 401);

    site.release("alice", job);
    let session = site.session("alice", job).unwrap();
    assert_eq!(session["status"], "COMPLETED", "{session}");
    let after = site.get("alice", &uri, &token);
    assert_eq!((after.status, &after.json()["code"]), (403, &"SessionEnded".into()), "{after:?}");
    assert_eq!(site.told(job, "AWS_CONTAINER_AUTHORIZATION_TOKEN"), None, "the epilog leaves no token behind");
    cluster.assert_nodes_healthy();
}

/// A process that is killed when the test ends.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The admin guide's commands for the node proxy of the original IAM Credentials API: the one that starts it, and those that a
/// job's environment needs.
fn guides_proxy_commands() -> (&'static str, String) {
    let guide = include_str!("../../docs/admin-guide.md");
    let block =
        guide.split("```\n").find(|block| block.contains("localhost_proxy.py --hostname")).expect("the guide has it");
    let (start, environment) = block.split_once('\n').unwrap();
    (start, environment.to_owned())
}

/// On a host without a credd, in a time zone far east of UTC.
#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn the_original_apis_node_proxy_works_as_the_guide_starts_it() {
    let site = site();
    let cluster = &site.cluster;
    let job = site.submit("alice");
    site.wait_running("alice", job);
    site.wait_hook("prolog", job);
    let token = site.told(job, "AWS_CONTAINER_AUTHORIZATION_TOKEN").unwrap();
    let uri = site.told(job, "LOCALHOST_AWS_CONTAINER_CREDENTIALS_FULL_URI").unwrap();

    let (start, environment) = guides_proxy_commands();
    let (host, alice) = (cluster.head(), cluster.as_user("alice"));
    alice.write_file("localhost_proxy.py", include_str!("node_proxy.py")).unwrap();
    let start = start.replace("credvend.example.org:8443", &format!("head:{}", testbed::ours::CREDVEND_PORT));
    assert!(start.contains("--hostname head:"), "{start}");
    let log = site.dir.join("proxy.log");
    fs::write(&log, "").unwrap();
    fs::set_permissions(&log, fs::Permissions::from_mode(0o666)).unwrap();
    let line = format!("export TZ=XST-9; cd; exec env {start} >>{} 2>&1", log.display());
    let _proxy = Killed(host.start_as("alice", &["bash", "-c", &line]).unwrap());
    host.wait_tcp(9999, SOON).unwrap_or_else(|e| panic!("{e}: {}", site.file("proxy.log")));

    let environment = environment.replace("/sessions/1300/", &format!("/sessions/{job}/"));
    let environment = environment.replace("TOKEN=...", &format!("TOKEN={token}"));
    assert!(environment.contains(&format!("FULL_URI={uri}\n")), "the guide's URL is the answer's: {environment}");
    for answered in ["asked\n", "asked\ncached\n"] {
        let me = alice.run(&["bash", "-c", &format!("{environment}\n{}", whoami(cluster))]);
        assert_eq!(me.expect_ok().trim(), format!("arn:aws:sts::123456789012:assumed-role/genomics/lab-alice-{job}"));
        let said: String =
            site.file("proxy.log").lines().filter(|l| !l.contains(' ')).map(|l| format!("{l}\n")).collect();
        assert_eq!(said, answered, "{}", site.file("proxy.log"));
    }
    site.release("alice", job);
    cluster.assert_nodes_healthy();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_job_of_a_project_without_roles_runs_without_a_session() {
    let site = site();
    let script = "echo runs\n";
    let owner = site.cluster.as_user("alice");
    let job = owner.sbatch(script, &["--account=unmapped"]).unwrap();
    assert_eq!(owner.wait_job(job, SOON).unwrap(), "COMPLETED");
    site.wait_hook("prolog", job);
    site.wait_hook("epilog", job);
    assert!(site.session("alice", job).is_none());
    let said = site.file("said");
    let line = said.lines().find(|line| line.contains(&format!("\"{job}\""))).unwrap_or_else(|| panic!("{said:?}"));
    assert!(line.contains("unmapped"), "{line}");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn no_job_is_held_whatever_is_away() {
    let site = site();
    let cluster = &site.cluster;
    let credvend = cluster.credvend();
    let config = site.dir.join("hook.toml");
    let good = fs::read_to_string(&config).unwrap();

    // A job that runs when credvend goes: its epilog has nobody to talk to.
    let early = site.submit("bob");
    site.wait_running("bob", early);
    credvend.kill9().unwrap();
    site.release("bob", early);
    let begun = Instant::now();
    let job = site.submit("bob");
    site.wait_running("bob", job);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    site.release("bob", job);

    // One that hangs costs the deadline.
    credvend.start().unwrap();
    cluster.head().wait_tcp(testbed::ours::CREDVEND_PORT, SOON).unwrap();
    credvend.freeze().unwrap();
    let job = site.submit("bob");
    site.wait_running("bob", job);
    site.wait_hook("prolog", job);
    assert!(site.file("said").contains(&format!("no answer within {DEADLINE} s")), "{}", site.file("said"));
    credvend.thaw().unwrap();
    site.release("bob", job);

    fs::write(&config, "url = 7\n").unwrap();
    let job = site.submit("bob");
    site.wait_running("bob", job);
    site.wait_hook("prolog", job);
    site.release("bob", job);
    let said = site.file("said");
    assert!(said.contains("is not valid") && !said.contains(HEAD_SECRET), "{said}");

    // All is well again for the next job.
    fs::write(&config, good).unwrap();
    let job = wait_for("a session", SOON, || {
        let job = site.submit("bob");
        site.wait_running("bob", job);
        site.release("bob", job);
        site.session("bob", job).map(|session| (job, session))
    });
    assert_eq!(job.unwrap().1["status"], "COMPLETED");
    cluster.assert_nodes_healthy();
}
