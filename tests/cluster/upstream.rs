//! A cluster's credvend before a central one: nodes and jobs notice nothing, and an end here is an end there.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;

use serde_json::Value;
use testbed::ours::HEAD_SECRET;
use testbed::slurm_daemons::as_account;
use testbed::{Cluster, Plan, people, wait_for};

use crate::revocation::{lives, refused, revoke_all, taking};
use crate::support::{SOON, admin, srun, wait_status, whoami};

const CENTRAL_SECRET: &str = "testbed-central-secret-0123456789abcdef";
const PORT: u16 = 8443;

/// The central credvend, beside the pretend AWS. It knows the cluster's head by its secret, and no Slurm.
struct Central<'a> {
    cluster: &'a Cluster,
    dir: PathBuf,
}

impl<'a> Central<'a> {
    fn start(cluster: &'a Cluster) -> Self {
        let dir = cluster.run_dir().join("central");
        fs::create_dir(&dir).unwrap();
        let central = Central { cluster, dir };
        let (host, at) = (cluster.on("aws"), |name: &str| central.dir.join(name).display().to_string());
        let mut projects = String::new();
        for project in people::PROJECTS {
            projects.push_str(&format!("[projects.{project}]\nrole-arn = \"{}\"\n", cluster.aws().role_arn(project)));
        }
        for (name, text) in [("projects.toml", projects), ("secret", CENTRAL_SECRET.to_owned())] {
            central.write(&central.dir.join(name), &text);
        }
        central.write(
            &central.dir.join("credvend.toml"),
            &format!(
                "listen = [\"{address}:{PORT}\"]\nstate-dir = {:?}\nadmin-socket = {:?}\nprojects = {:?}\n\
                 [tls]\nnames = [{address:?}]\n\
                 [aws]\nregion = {:?}\nrevoker-roles = [\"arn:aws:iam::{}:role/{}\"]\n\
                 [[cluster]]\nname = \"lab\"\nattest = \"head\"\nhead-secret-file = {:?}\n",
                at("state"),
                at("admin.sock"),
                at("projects.toml"),
                testbed::layout::REGION,
                testbed::pretend_aws::ACCOUNT,
                testbed::pretend_aws::REVOKER,
                at("secret"),
                address = host.address(),
            ),
        );
        central.write(&central.dir.join("state/.made"), "");
        central.own(&central.dir, 0o755);
        let made = cluster.aws().made();
        let environment = [
            format!("CREDVEND_CONFIG={}", at("credvend.toml")),
            format!("HOME={}", at("state")),
            format!("AWS_ACCESS_KEY_ID={}", made.access_key_id),
            format!("AWS_SECRET_ACCESS_KEY={}", made.secret_access_key),
        ];
        let program = cluster.run_dir().join("bin/credvend").display().to_string();
        let mut argv = vec!["env"];
        argv.extend(environment.iter().map(String::as_str));
        argv.extend([&*program, "serve"]);
        let argv = as_account("credvend", &argv);
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        host.start_service("central", &argv, &[]).unwrap();
        host.wait_tcp(PORT, SOON).unwrap_or_else(|e| panic!("{e}: {}", host.log("central")));
        central
    }

    /// A file of the daemon's account, for nobody else.
    fn write(&self, path: &std::path::Path, text: &str) {
        let dir = path.parent().unwrap();
        if !dir.is_dir() {
            fs::create_dir(dir).unwrap();
            self.own(dir, 0o700);
        }
        fs::write(path, text).unwrap();
        self.own(path, 0o600);
    }

    fn own(&self, path: &std::path::Path, mode: u32) {
        let (uid, gid) = people::ids_of(&self.cluster.run_dir().join("etc"), "credvend").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        chown(path, Some(uid), Some(gid)).unwrap();
    }

    /// `credvend … --json` of this one.
    fn admin(&self, arguments: &[&str]) -> Value {
        let config = self.dir.join("credvend.toml").display().to_string();
        let argv: Vec<&str> = ["credvend"].iter().chain(arguments).chain(&["--json"]).copied().collect();
        let done = self.cluster.on("aws").run_with("root", &[("CREDVEND_CONFIG", &config)], &argv);
        serde_json::from_str(done.expect_ok()).unwrap_or_else(|e| panic!("{e}: {done:?}"))
    }

    /// The status of what a job has there: its sessions are named `JOB-…`.
    fn statuses(&self, job: u32) -> Vec<String> {
        let all = self.admin(&["session", "list"]);
        let theirs = |session: &&Value| {
            session["head-session"].as_str().and_then(|id| id.split('-').next()) == Some(&job.to_string())
        };
        let status = |session: &Value| session["status"].as_str().unwrap_or_default().to_owned();
        all.as_array().unwrap().iter().filter(theirs).map(status).collect()
    }

    #[track_caller]
    fn wait(&self, job: u32, wanted: &str) {
        wait_for(&format!("job {job} to be {wanted} at the central one"), SOON, || {
            (self.statuses(job) == [wanted]).then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}: {:?}", self.statuses(job)));
    }

    /// Puts the cluster's credvend before this one, which then has no AWS of its own.
    fn put_behind(&self) {
        let etc = self.cluster.run_dir().join("etc/credvend");
        let (path, secret) = (etc.join("credvend.toml"), etc.join("central-secret"));
        self.write(&secret, CENTRAL_SECRET);
        let (mut text, mut aws) = (String::new(), false);
        for line in fs::read_to_string(&path).unwrap().lines() {
            aws = if line.starts_with('[') { line == "[aws]" } else { aws };
            if !aws {
                text.push_str(&format!("{line}\n"));
            }
        }
        let pin = self.admin(&["pin"])["pin"].as_str().unwrap().to_owned();
        let address = self.cluster.on("aws").address();
        text.push_str(&format!(
            "[upstream]\nurl = \"https://{address}:{PORT}\"\npin = {pin:?}\nhead-secret-file = {secret:?}\n"
        ));
        self.write(&path, &text);
        let projects: String = people::PROJECTS.iter().map(|project| format!("[projects.{project}]\n")).collect();
        self.write(&etc.join("projects.toml"), &projects);
        let config = path.display().to_string();
        let check = ["credvend", "check-config", "--online"];
        self.cluster.head().run_with("credvend", &[("CREDVEND_CONFIG", &config)], &check).expect_ok();
        self.cluster.credvend().stop().unwrap();
        // The keys that the testbed gives it are nobody's.
        let nobodys = [("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "none")];
        self.cluster.credvend().start_with(&nobodys).unwrap();
        self.cluster.head().wait_tcp(testbed::ours::CREDVEND_PORT, SOON).unwrap();
        wait_for("the node's stream", SOON, || {
            let status = self.cluster.head().run_as("root", &["credvend", "status", "--json"]);
            let status: Value = serde_json::from_str(&status.stdout).ok()?;
            (status["clusters"][0]["nodes-connected"] == 1).then_some(())
        })
        .unwrap_or_else(|e| panic!("{e}: {}", self.cluster.head().log("credvend")));
    }
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn jobs_of_a_cluster_before_a_central_credvend_have_its_roles_until_they_end_or_are_revoked() {
    let cluster = Cluster::up(Plan { nodes: 1, ..Plan::default() }).expect("the cluster comes up");
    let _logs = cluster.logs_on_panic();
    let central = Central::start(&cluster);
    central.put_behind();

    let read = srun(&cluster, "alice", &[], "echo $SLURM_JOB_ID; aws s3 cp s3://genomics-data/hello.txt -");
    let job: u32 = read.expect_ok().lines().next().unwrap().parse().unwrap();
    assert!(read.stdout.lines().count() > 1, "{read:?}");
    wait_status(&cluster, job, "COMPLETED");
    central.wait(job, "COMPLETED");
    let who = srun(&cluster, "alice", &["-A", "shared"], &format!("echo $SLURM_JOB_ID; {}", whoami(&cluster)));
    let [job, arn] = who.expect_ok().lines().collect::<Vec<_>>()[..] else { panic!("{who:?}") };
    let name = format!(":assumed-role/shared/lab-alice-{job}-");
    assert!(arn.contains(&name), "the central one's name for the session: {arn}");

    let (bobby, bob) = (taking(&cluster, "bobby", &["-A", "shared"]), taking(&cluster, "bob", &["-A", "shared"]));
    assert!(lives(&cluster, "bob", bob.job, "shared") && lives(&cluster, "bobby", bobby.job, "shared"));
    central.wait(bob.job, "ACTIVE");
    let report = revoke_all(&cluster, &["--user", "bob", "--why", "left the lab"]);
    assert!(report["nodes"]["dropped"] == 1 && report["not-denied"].as_array().is_some_and(Vec::is_empty), "{report}");
    refused(&bob, "bob");
    assert!(!lives(&cluster, "bob", bob.job, "shared"), "what bob took still works: {report}");
    central.wait(bob.job, "INVALIDATED");
    assert_eq!(bobby.get_as("bobby").status, 200);
    assert!(lives(&cluster, "bobby", bobby.job, "shared"), "bobby is a bystander: {report}");
    let later = taking(&cluster, "bob", &["-A", "shared"]);
    assert!(lives(&cluster, "bob", later.job, "shared"), "the Deny is about what was issued before");

    // Killed before it could tell of an end, it tells it afterwards.
    cluster.on("aws").daemon("central").freeze().unwrap();
    let (bobby, later, bob) = (bobby.finish(), later.finish(), bob.finish());
    wait_status(&cluster, bobby, "COMPLETED");
    cluster.credvend().kill9().unwrap();
    cluster.on("aws").daemon("central").thaw().unwrap();
    cluster.credvend().start().unwrap();
    for job in [bobby, later] {
        central.wait(job, "COMPLETED");
    }
    central.wait(bob, "INVALIDATED");
    let (head, secrets) = (cluster.head().log("credvend"), [CENTRAL_SECRET, HEAD_SECRET]);
    assert!(!secrets.iter().any(|secret| head.contains(secret)));
    assert_eq!(admin(&cluster, &["session", "list", "--status", "active"]).as_array().map(Vec::len), Some(0));
    cluster.assert_nodes_healthy();
}
