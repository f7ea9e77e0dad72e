//! Programs of the previous release together with today's, on a real cluster: a site is upgraded part by part, and back.
//! No job is without credentials, nothing is lost, and what cannot be undone is refused in words.
#![forbid(unsafe_code)]

#[allow(dead_code, reason = "it is the cluster suite's; this one needs a part")]
#[path = "../cluster/support.rs"]
mod support;

use std::collections::BTreeSet;
use std::fs;

use testbed::ours::HEAD_SECRET;
use testbed::{Cluster, Plan, Programs, previous_release, wait_for};

use support::{HeldJob, SOON, admin, arn, curl, hold, records, sessions, srun, wait_status, whoami};

fn old() -> Programs {
    previous_release::programs().expect("the previous release builds")
}

/// A new job on every node has its identity, also where the job would rather fail, or fetches ahead.
#[track_caller]
fn new_jobs_are_served(cluster: &Cluster, when: &str) {
    let me = whoami(cluster);
    for (node, partition) in [("n1", "batch"), ("n2", "strict"), ("n1", "prefetch"), ("n2", "tokenfile")] {
        let done = srun(cluster, "alice", &["-w", node, "-p", partition], &me);
        assert_eq!(done.stdout.trim(), arn("genomics", "alice", node), "{when}: {partition} on {node}: {done:?}");
    }
    cluster.assert_nodes_healthy();
}

/// Jobs that began before are served, and their sessions are the ones that they had.
#[track_caller]
fn held_jobs_are_served(cluster: &Cluster, when: &str, held: &[(HeldJob<'_>, String)]) {
    for (job, session) in held {
        let answer = wait_for("an answer to a job that runs", SOON, || {
            Some(job.get_as("alice")).filter(|answer| !matches!(answer.status, 0 | 503))
        });
        let answer = answer.unwrap_or_else(|e| panic!("{when}: {e}"));
        assert_eq!(answer.status, 200, "{when}: job {} on {}: {answer:?}", job.job, job.node);
        let its = sessions(cluster, job.job);
        assert_eq!(its.len(), 1, "{when}: {its:?}");
        assert_eq!(its[0]["session"].as_str(), Some(session.as_str()), "{when}: {its:?}");
    }
}

/// A job that runs on, and its session.
fn held<'a>(cluster: &'a Cluster, node: &str) -> (HeldJob<'a>, String) {
    let job = hold(cluster, "alice", &["-w", node]);
    assert_eq!(job.get_as("alice").status, 200);
    let session = sessions(cluster, job.job)[0]["session"].as_str().expect("a UUID").to_owned();
    (job, session)
}

fn restart_credd(cluster: &Cluster, node: &str) {
    cluster.node(node).credd().restart().expect("credd restarts");
    wait_for("credd to be well", SOON, || cluster.node(node).run_as("root", &["credd", "health"]).ok().then_some(()))
        .unwrap_or_else(|e| panic!("{e}: {:?}", cluster.node(node).run_as("root", &["credd", "health"])));
}

/// Stops credvend and starts what is in its place now; gives what it said before it ended, if it did.
fn restart_credvend(cluster: &Cluster) -> Option<String> {
    let credvend = cluster.credvend();
    if credvend.pid().is_some() {
        credvend.stop().expect("credvend stops");
    }
    let said_before = credvend.log().len();
    credvend.start().expect("credvend starts");
    let answers = || cluster.head().run_as("root", &["credvend", "session", "list"]).ok();
    let ended = wait_for("credvend to answer, or to end", SOON, || match credvend.ended() {
        Some(_) => Some(true),
        None => answers().then_some(false),
    });
    ended.unwrap().then(|| credvend.log()[said_before..].to_owned())
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
#[cfg_attr(not(has_previous_release), ignore = "the previous release's commit is not in this checkout's history")]
fn a_site_is_upgraded_part_by_part_and_no_job_notices() {
    let previous = old();
    let cluster =
        Cluster::up(Plan { programs: previous.clone(), ..Plan::default() }).expect("the old release comes up");
    let _logs = cluster.logs_on_panic();
    new_jobs_are_served(&cluster, "all old");
    let mut jobs = vec![held(&cluster, "n1"), held(&cluster, "n2")];

    // credvend first, as the guide says, then each node's credd, then the plugin.
    let mut now = Programs { credvend: None, ..previous.clone() };
    cluster.put_programs(&now).unwrap();
    assert_eq!(restart_credvend(&cluster), None, "today's credvend takes the old store");
    held_jobs_are_served(&cluster, "new credvend", &jobs);
    new_jobs_are_served(&cluster, "new credvend, old credd and plugin");
    revocations_are_heard(&cluster, "new credvend, old credd");

    now.credd = None;
    cluster.put_programs(&now).unwrap();
    for (node, when) in [("n1", "new credd on n1 alone"), ("n2", "new credd on all nodes")] {
        restart_credd(&cluster, node);
        held_jobs_are_served(&cluster, when, &jobs);
        new_jobs_are_served(&cluster, when);
    }
    jobs.push(held(&cluster, "n1"));

    now.plugin = None;
    cluster.put_programs(&now).unwrap();
    held_jobs_are_served(&cluster, "all new", &jobs);
    new_jobs_are_served(&cluster, "all new");
    revocations_are_heard(&cluster, "all new");

    // Records of the old plugin end by the new one's epilog.
    for (job, session) in jobs {
        let node = job.node.clone();
        let job = job.finish();
        wait_status(&cluster, job, "COMPLETED");
        assert_eq!(sessions(&cluster, job)[0]["session"].as_str(), Some(session.as_str()));
        let id = job.to_string();
        wait_for("the record to go", SOON, || (!records(&cluster, &node).contains(&id)).then_some(())).unwrap();
    }
    back_again(&cluster, &previous);
}

fn session_ids(cluster: &Cluster) -> BTreeSet<String> {
    let list = admin(cluster, &["session", "list", "--limit", "1000"]);
    list.as_array().unwrap().iter().map(|session| session["session"].as_str().unwrap().to_owned()).collect()
}

/// Downgrades what has run with today's programs. The nodes' programs go back without a loss; a credvend that cannot read
/// the store says so and leaves it as it is.
fn back_again(cluster: &Cluster, previous: &Programs) {
    let jobs = vec![held(cluster, "n1"), held(cluster, "n2")];
    let mut now = Programs { plugin: previous.plugin.clone(), ..Programs::default() };
    cluster.put_programs(&now).unwrap();
    held_jobs_are_served(cluster, "back to the old plugin", &jobs);
    new_jobs_are_served(cluster, "back to the old plugin");

    now.credd.clone_from(&previous.credd);
    cluster.put_programs(&now).unwrap();
    for node in ["n1", "n2"] {
        restart_credd(cluster, node);
    }
    // What the new plugin recorded for an ordinary job, an old credd reads.
    held_jobs_are_served(cluster, "back to the old credd", &jobs);
    new_jobs_are_served(cluster, "back to the old credd");

    let before = session_ids(cluster);
    cluster.put_programs(previous).unwrap();
    match restart_credvend(cluster) {
        None => {
            held_jobs_are_served(cluster, "back to the old credvend", &jobs);
            new_jobs_are_served(cluster, "back to the old credvend");
        }
        Some(said) => assert!(said.contains("was written by a newer credvend than this one"), "{said}"),
    }
    a_newer_store_is_refused_in_words(cluster);
    cluster.put_programs(&now).unwrap();
    assert_eq!(restart_credvend(cluster), None, "and today's again");
    held_jobs_are_served(cluster, "credvend new again", &jobs);
    assert!(before.is_subset(&session_ids(cluster)), "sessions were lost");
}

/// The old credvend, on a store whose schema is beyond today's: whatever is in it, it is neither read nor changed.
fn a_newer_store_is_refused_in_words(cluster: &Cluster) {
    let store = cluster.run_dir().join("credvend/credvend.sqlite");
    let schema = |set: &str| {
        let script = "import sqlite3, sys\nstore = sqlite3.connect(sys.argv[1])\n\
                      print(store.execute('PRAGMA user_version' + sys.argv[2]).fetchone() or '')\nstore.commit()";
        let store = store.display().to_string();
        cluster.head().run_as("credvend", &["/usr/bin/python3", "-c", script, &store, set]).expect_ok().to_owned()
    };
    if cluster.credvend().pid().is_some() {
        cluster.credvend().stop().expect("credvend stops");
    }
    let is = schema("");
    let number = is.trim_matches(|c: char| !c.is_ascii_digit()).to_owned();
    schema(" = 9999");
    let said_before = cluster.credvend().log().len();
    cluster.credvend().start().expect("it is started");
    wait_for("the old credvend to end", SOON, || cluster.credvend().ended()).unwrap();
    let said = cluster.credvend().log()[said_before..].to_owned();
    assert!(said.contains("was written by a newer credvend than this one"), "{said}");
    assert!(schema("").contains("9999"), "it has changed the store");
    schema(&format!(" = {number}"));
    assert_eq!(schema(""), is);
}

/// A running job of bob's is cut off by a revocation, at once, whatever the two sides' releases are.
#[track_caller]
fn revocations_are_heard(cluster: &Cluster, when: &str) {
    let job = hold(cluster, "bob", &[]);
    // Names that were revoked shortly before rest for a while.
    wait_for("the job to be served", SOON, || (job.get_as("bob").status == 200).then_some(()))
        .unwrap_or_else(|e| panic!("{when}: {e}: {:?}", job.get_as("bob")));
    cluster.head().run_as("root", &["credvend", "revoke", "--user", "bob", "--why", "upgrade"]).expect_ok();
    let answer = wait_for("the revocation to be heard", SOON, || {
        Some(job.get_as("bob")).filter(|answer| answer.status != 200 && answer.status != 503)
    });
    assert_eq!(answer.unwrap_or_else(|e| panic!("{when}: {e}")).status, 403, "{when}");
    job.finish();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
#[cfg_attr(not(has_previous_release), ignore = "the previous release's commit is not in this checkout's history")]
fn a_plugin_that_is_upgraded_before_credd_costs_no_job_its_credentials() {
    let programs = Programs { credd: old().credd, ..Programs::default() };
    let cluster = Cluster::up(Plan { programs, ..Plan::default() }).expect("the cluster comes up");
    let _logs = cluster.logs_on_panic();
    let jobs = [held(&cluster, "n1"), held(&cluster, "n2")];
    new_jobs_are_served(&cluster, "old credd, new plugin");

    // The second component's prolog has more to say than an old record holds.
    let (alice, me) = (cluster.as_user("alice"), whoami(&cluster));
    let (uri, token) = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN");
    let script = format!(
        "#SBATCH -N1 -w n1\n#SBATCH hetjob\n#SBATCH -N1 -w n2\n\
         export U=${uri} T=${token}\n\
         srun --het-group=0,1 bash -c '{me}'\n\
         echo held\n\
         until [ -e ~/release-$SLURM_JOB_ID ]; do sleep 0.05; done\n\
         srun --het-group=1 bash -c 'export {uri}=$U {token}=$T; {me}'\n"
    );
    let leader = alice.sbatch(&script, &[]).unwrap();
    let output = alice.wait_job_output(leader, "held\n", SOON).unwrap();
    for node in ["n1", "n2"] {
        assert!(output.contains(&arn("genomics", "alice", node)), "{output}");
    }
    let names = cluster.node("n2").run_as_root("cat /run/credd/jobs/*/names");
    assert_eq!(names.expect_ok(), format!("{{\"het-leader\":{leader}}}"), "{names:?}");

    // Then credd: it reads what the plugin left before, and serves the component with its leader's environment.
    cluster.put_programs(&Programs::default()).unwrap();
    for node in ["n1", "n2"] {
        restart_credd(&cluster, node);
    }
    held_jobs_are_served(&cluster, "then credd, too", &jobs);
    alice.write_file(&format!("release-{leader}"), "").unwrap();
    assert_eq!(alice.wait_job(leader, SOON).unwrap(), "COMPLETED", "{}", alice.job_output(leader));
    let after = alice.job_output(leader).split_once("held\n").expect("its mark").1.to_owned();
    assert_eq!(after.trim(), arn("genomics", "alice", "n2"));
    new_jobs_are_served(&cluster, "then credd, too");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
#[cfg_attr(not(has_previous_release), ignore = "the previous release's commit is not in this checkout's history")]
fn nodes_that_are_upgraded_first_are_served_by_the_old_credvend() {
    let programs = Programs { credvend: old().credvend, ..Programs::default() };
    let cluster = Cluster::up(Plan { programs, ..Plan::default() }).expect("the cluster comes up");
    let _logs = cluster.logs_on_panic();
    let jobs = [held(&cluster, "n1"), held(&cluster, "n2")];
    new_jobs_are_served(&cluster, "old credvend, new nodes");
    revocations_are_heard(&cluster, "old credvend, new nodes");
    cluster.put_programs(&Programs::default()).unwrap();
    assert_eq!(restart_credvend(&cluster), None);
    held_jobs_are_served(&cluster, "then credvend, too", &jobs);
    new_jobs_are_served(&cluster, "then credvend, too");
}

/// Has credvend, which is stopped, keep its store in DynamoDB; the administrator makes the tables and allows it their use.
fn move_to_dynamodb(cluster: &Cluster) {
    let path = cluster.run_dir().join("etc/credvend/credvend.toml");
    let config = fs::read_to_string(&path).unwrap();
    let (top, tables) = config.split_once("\n[").expect("tables follow");
    let endpoint = cluster.aws().endpoint();
    let dynamodb = format!("[store]\nkind = \"dynamodb\"\nendpoint = {endpoint:?}\n");
    fs::write(&path, format!("{top}\n{dynamodb}[{tables}")).unwrap();
    let path = path.display().to_string();
    let account = &cluster.aws().made().account;
    let store = |arguments: &[&str]| {
        let program = cluster.run_dir().join("bin/credvend").display().to_string();
        let env = [("CREDVEND_CONFIG", &*path), ("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")];
        cluster.head().run_with("root", &env, &[&[&*program, "store"], arguments].concat()).expect_ok().to_owned()
    };
    store(&["init"]);
    let policy = store(&["policy", "--account", account]);
    let user = cluster.aws().made().service_arn.rsplit('/').next().unwrap().to_owned();
    let put = ["iam", "put-user-policy", "--user-name", &user, "--policy-name", "store", "--policy-document", &policy];
    cluster.aws().cli(&put).expect_ok();
}

/// Replicas share such a store, so for a while an old and a new credvend write in turn what the other one reads.
#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
#[cfg_attr(not(has_previous_release), ignore = "the previous release's commit is not in this checkout's history")]
fn a_store_in_dynamodb_is_of_both_releases() {
    let programs = Programs { credvend: old().credvend, ..Programs::default() };
    let cluster = Cluster::up(Plan { programs: programs.clone(), ..Plan::default() }).expect("the cluster comes up");
    let _logs = cluster.logs_on_panic();
    cluster.credvend().stop().unwrap();
    move_to_dynamodb(&cluster);
    assert_eq!(restart_credvend(&cluster), None);
    let mut jobs = vec![held(&cluster, "n1")];
    new_jobs_are_served(&cluster, "old credvend");
    revocations_are_heard(&cluster, "old credvend");
    let mut known = session_ids(&cluster);
    for (when, which) in [
        ("today's credvend", Programs::default()),
        ("the old one again", programs),
        ("today's again", Programs::default()),
    ] {
        cluster.put_programs(&which).unwrap();
        assert_eq!(restart_credvend(&cluster), None, "{when}");
        held_jobs_are_served(&cluster, when, &jobs);
        new_jobs_are_served(&cluster, when);
        revocations_are_heard(&cluster, when);
        let now = session_ids(&cluster);
        assert!(known.is_subset(&now), "{when}: sessions were lost");
        known = now;
        jobs.push(held(&cluster, "n2"));
    }
    for (job, session) in jobs {
        let job = job.finish();
        wait_status(&cluster, job, "COMPLETED");
        assert_eq!(sessions(&cluster, job)[0]["session"].as_str(), Some(session.as_str()));
    }
}

/// A head's hooks are on another host than credvend, so either may be the older one.
#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
#[cfg_attr(not(has_previous_release), ignore = "the previous release's commit is not in this checkout's history")]
fn a_heads_hooks_and_credvend_may_be_of_different_releases() {
    let (older, newer) = (Programs { credvend: old().credvend, ..Programs::default() }, Programs::default());
    for (when, service, hook) in [("old hook", &newer, &older), ("new hook", &older, &newer)] {
        let plan =
            Plan { programs: service.clone(), nodes: 1, plugin_options: "default=off".into(), ..Plan::default() };
        let cluster = Cluster::up(plan.credvend_toml("[[cluster]]\nattest = \"head\"")).expect("the cluster comes up");
        let _logs = cluster.logs_on_panic();
        let dir = cluster.run_dir().join("etc/hooks");
        let shown = dir.display();
        fs::create_dir_all(dir.join("answers")).unwrap();
        let config = format!(
            "url = {:?}\npin = {:?}\nhead-secret-file = \"{shown}/secret\"\nanswer-dir = \"{shown}/answers\"\n",
            cluster.credvend_url(),
            cluster.credvend_pin().unwrap(),
        );
        fs::write(dir.join("hook.toml"), config).unwrap();
        fs::write(dir.join("secret"), format!("{HEAD_SECRET}\n")).unwrap();
        cluster.head().run_as_root(&format!("chmod -R go-rwx {shown}")).expect_ok();

        let run = |which: &str| {
            cluster.put_programs(hook).unwrap();
            let job = "SLURM_JOB_ID=7 SLURM_JOB_USER=alice SLURM_JOB_ACCOUNT=genomics SLURM_CLUSTER_NAME=lab";
            let program = cluster.run_dir().join("bin/credvend");
            let command = format!("{job} {} hook {which} --hook-config {shown}/hook.toml", program.display());
            let done = cluster.head().run_as_root(&command);
            cluster.put_programs(service).unwrap();
            assert!(done.ok() && done.stderr.is_empty(), "{when}: {which}: {done:?}");
        };
        let status = || admin(&cluster, &["session", "list", "--user", "alice"])[0]["status"].clone();
        run("prolog");
        assert_eq!(status(), "ACTIVE", "{when}");
        let answer = fs::read_to_string(dir.join("answers/7")).unwrap();
        let told = |name: &str| {
            let line = answer.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
            line.unwrap_or_else(|| panic!("{when}: no {name} in {answer}")).to_owned()
        };
        let authorization = format!("Authorization: {}", told("AWS_CONTAINER_AUTHORIZATION_TOKEN"));
        let uri = told("APIGATEWAY_AWS_CONTAINER_CREDENTIALS_FULL_URI");
        let got = curl(cluster.node("n1"), "alice", &["-k", "-H", &authorization, &uri]);
        assert!(got.status == 200 && got.json()["AccessKeyId"].is_string(), "{when}: {got:?}");
        run("epilog");
        assert_eq!(status(), "COMPLETED", "{when}");
        assert!(!dir.join("answers/7").exists(), "{when}: the epilog leaves no token behind");
        cluster.assert_nodes_healthy();
    }
}
