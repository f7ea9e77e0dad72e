//! Sessions open at job start and are COMPLETED at job end, whatever ends them.

use std::time::Duration;

use testbed::wait_for;

use crate::support::{SOON, alone, arn, cluster, hold, sessions, srun, status, wait_status, whoami};

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_session_opens_at_job_start_and_completes_at_job_end() {
    let cluster = cluster();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    // Nobody has asked for credentials yet.
    wait_status(&cluster, job.job, "ACTIVE");
    let id = job.finish();
    wait_status(&cluster, id, "COMPLETED");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn scancel_and_time_limit_complete_it() {
    let cluster = cluster();
    let job = hold(&cluster, "alice", &["-w", "n2"]);
    wait_status(&cluster, job.job, "ACTIVE");
    cluster.as_user("alice").scancel(job.job).expect_ok();
    wait_status(&cluster, job.job, "COMPLETED");

    let limited = hold(&cluster, "alice", &["-w", "n2", "-t", "1"]);
    wait_status(&cluster, limited.job, "ACTIVE");
    // The controller counts in minutes: the limit that is left is taken away.
    let done =
        cluster.head().run_as("root", &["scontrol", "update", &format!("jobid={}", limited.job), "timelimit=0:01"]);
    done.expect_ok();
    testbed::wait_for("the session to complete after the time limit", 3 * SOON, || {
        (status(&cluster, limited.job) == "COMPLETED").then_some(())
    })
    .unwrap();
    assert_eq!(cluster.as_user("alice").wait_job(limited.job, SOON).unwrap(), "TIMEOUT");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_job_that_never_asks_costs_no_aws_call() {
    let cluster = cluster();
    let since = std::time::SystemTime::now();
    let job = hold(&cluster, "bob", &["-w", "n1", "-A", "shared"]);
    wait_status(&cluster, job.job, "ACTIVE");
    let id = job.finish();
    wait_status(&cluster, id, "COMPLETED");
    let asked = cluster.aws().requests_since(since).unwrap();
    assert!(
        !asked
            .iter()
            .any(|r| r.parameters.to_string().contains("lab-bob-n1")
                && r.parameters.to_string().contains("projects/shared")),
        "{asked:#?}"
    );
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn prefetch_has_credentials_before_anybody_asks() {
    let cluster = cluster();
    let job = hold(&cluster, "bobby", &["-w", "n2", "-p", "prefetch"]);
    wait_for("credentials in the cache", SOON, || {
        let status = job.host().run_as("root", &["credd", "status", "--json"]).stdout;
        let all: serde_json::Value = serde_json::from_str(&status).ok()?;
        let mine = all.as_array()?.iter().find(|j| j["job"] == job.job)?;
        mine["credentials-until"].as_str().map(drop)
    })
    .unwrap();
    job.finish();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn slurmd_restarted_or_killed() {
    let cluster = alone();
    for hard in [false, true] {
        let job = hold(&cluster, "alice", &["-w", "n1"]);
        assert_eq!(job.get_as("alice").status, 200);
        let slurmd = cluster.node("n1").slurmd();
        if hard { slurmd.kill9() } else { slurmd.stop() }.unwrap();
        slurmd.start().unwrap();
        assert_eq!(job.get_as("alice").status, 200, "a running job does not notice");
        let id = job.finish();
        wait_status(&cluster, id, "COMPLETED");
    }
    wait_for("a healthy node", SOON, || (cluster.node_state("n1") == "idle").then_some(()))
        .unwrap_or_else(|error| panic!("{error}: {}", cluster.node_state("n1")));
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn credd_killed_loses_no_job_and_no_end() {
    let cluster = alone();
    let survivor = hold(&cluster, "alice", &["-w", "n1"]);
    let ended = hold(&cluster, "bob", &["-w", "n1"]);
    let credd = cluster.node("n1").credd();
    credd.kill9().unwrap();
    // One job ends and another starts while it is away.
    let ended = ended.finish();
    let newcomer = hold(&cluster, "bobby", &["-w", "n1"]);
    assert!(!newcomer.uri.is_empty(), "the step needs no daemon");
    credd.start().unwrap();
    for job in [&survivor, &newcomer] {
        wait_for("service after the restart", SOON, || {
            (job.get_as(if job.job == survivor.job { "alice" } else { "bobby" }).status == 200).then_some(())
        })
        .unwrap();
    }
    wait_status(&cluster, ended, "COMPLETED");
    for id in [survivor.finish(), newcomer.finish()] {
        wait_status(&cluster, id, "COMPLETED");
    }
    wait_for("the journal of ends to be empty", SOON, || {
        std::fs::read_dir(cluster.node("n1").path("/run/credd/ended")).ok()?.next().is_none().then_some(())
    })
    .unwrap();
    cluster.assert_nodes_healthy();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn credvend_killed_loses_no_session_and_no_end() {
    let cluster = alone();
    let job = hold(&cluster, "alice", &["-w", "n1"]);
    assert_eq!(job.get_as("alice").status, 200);
    let ending = hold(&cluster, "bob", &["-w", "n2"]);
    wait_status(&cluster, ending.job, "ACTIVE");
    cluster.credvend().kill9().unwrap();
    assert_eq!(job.get_as("alice").status, 200, "the cache serves through the outage");
    let ended = ending.finish();
    cluster.credvend().start().unwrap();
    wait_for("credvend to answer again", SOON, || {
        cluster.head().run_as("root", &["credvend", "status"]).ok().then_some(())
    })
    .unwrap();
    wait_status(&cluster, ended, "COMPLETED");
    assert_eq!(status(&cluster, job.job), "ACTIVE", "and nothing was closed on a guess");
    let id = job.finish();
    wait_status(&cluster, id, "COMPLETED");
    assert_eq!(sessions(&cluster, id).len(), 1);
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_slurmstepd_killed() {
    let cluster = cluster();
    let job = hold(&cluster, "bobby", &["-w", "n2"]);
    wait_status(&cluster, job.job, "ACTIVE");
    let kill = format!("pkill -9 -f 'slurmstepd: \\[{}\\.batch\\]'", job.job);
    job.host().run_as_root(&kill).expect_ok();
    cluster.as_user("bobby").scancel(job.job);
    wait_status(&cluster, job.job, "COMPLETED");
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_job_whose_node_disappears_is_closed() {
    let cluster = alone();
    let job = hold(&cluster, "alice", &["-w", "n2"]);
    wait_status(&cluster, job.job, "ACTIVE");
    // The node's daemons die without a word: nobody there will say that the job ended.
    let node = cluster.node("n2");
    node.credd().kill9().unwrap();
    node.slurmd().kill9().unwrap();
    cluster.head().run_as("root", &["scontrol", "update", "nodename=n2", "state=down", "reason=test"]).expect_ok();
    testbed::wait_for("the session to be closed by the centre", Duration::from_secs(60), || {
        (status(&cluster, job.job) != "ACTIVE").then_some(())
    })
    .unwrap();
    let closed = sessions(&cluster, job.job).remove(0);
    assert!(closed["status"] == "COMPLETED" && closed["why"].as_str().is_some_and(|why| !why.is_empty()), "{closed}");
    node.run_as_root("pkill -9 slurmstepd; true");
    node.slurmd().start().unwrap();
    node.credd().start().unwrap();
    cluster.head().run_as("root", &["scontrol", "update", "nodename=n2", "state=resume"]);
    wait_for("the node to be back", SOON, || {
        let done = srun(&cluster, "bob", &["-w", "n2", "--immediate=20"], &whoami(&cluster));
        (done.stdout.trim() == arn("climate", "bob", "n2")).then_some(())
    })
    .unwrap();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn a_job_id_that_slurm_gives_again_is_another_session() {
    let cluster = alone();
    let (root, ctld) = (cluster.head(), cluster.slurmctld());
    let answers = || {
        wait_for("slurmctld to answer", SOON, || root.run_as("root", &["scontrol", "ping"]).ok().then_some(()))
            .unwrap();
        wait_for("healthy nodes", SOON, || {
            cluster.nodes().iter().all(|n| cluster.node_state(n.name()) == "idle").then_some(())
        })
        .unwrap();
    };
    // What slurmctld knows before the job, kept to be given back to it: so much does it lose.
    let state = root.run_as_root("scontrol show config | sed -n 's/^StateSaveLocation *= //p'").expect_ok().to_owned();
    ctld.stop().unwrap();
    root.run_as_root(&format!("rm -rf {state}.before && cp -a {state} {state}.before")).expect_ok();
    ctld.start().unwrap();
    answers();
    let old = hold(&cluster, "alice", &["-w", "n1"]);
    wait_status(&cluster, old.job, "ACTIVE");
    assert_eq!(old.get_as("alice").status, 200);
    let first = sessions(&cluster, old.job)[0]["session"].clone();
    ctld.kill9().unwrap();
    root.run_as_root(&format!("rm -rf {state} && mv {state}.before {state}")).expect_ok();
    cluster.as_user("alice").run(&["rm", &format!("job-{}.out", old.job)]).expect_ok();
    ctld.start().unwrap();
    answers();
    // On the other node: where the old one ran, slurmd remembers its number for two minutes and runs no prolog for the new.
    let new = hold(&cluster, "alice", &["-w", "n2"]);
    assert_eq!(new.job, old.job, "the id was given again");
    wait_status(&cluster, new.job, "ACTIVE");
    assert_eq!(new.get_as("alice").status, 200, "the new job has credentials");
    // slurmctld has the job killed that it does not know.
    wait_for("the end of the old one's credentials", SOON, || (old.get_as("alice").status == 403).then_some(()))
        .unwrap();
    let known = || {
        let all = sessions(&cluster, new.job);
        let told = |s: &serde_json::Value| (s["session"].clone(), s["status"].as_str().unwrap().to_owned());
        all.iter().take(2).map(told).collect::<Vec<_>>()
    };
    let second = known()[0].0.clone();
    let both = [(second, "ACTIVE".to_owned()), (first, "COMPLETED".to_owned())];
    assert_eq!(known(), both);

    // What is done to a running job, and to slurmctld while it keeps its state, makes no other run of it.
    let id = new.job;
    let done = format!(
        "scontrol suspend {id} && scontrol resume {id} && scontrol update jobid={id} timelimit=30 comment=x &&
         scontrol reconfigure"
    );
    root.run_as_root(&done).expect_ok();
    ctld.restart().unwrap();
    wait_for("slurmctld to answer", SOON, || root.run_as("root", &["scontrol", "ping"]).ok().then_some(())).unwrap();
    // The node asks credvend anew, which asks Slurm.
    let credd = cluster.node("n2").credd();
    credd.restart().unwrap();
    wait_for("credentials after it all", SOON, || (new.get_as("alice").status == 200).then_some(())).unwrap();
    let other = hold(&cluster, "bob", &["-w", "n1"]).finish();
    wait_status(&cluster, other, "COMPLETED");
    assert_eq!(known(), both);
    let id = new.finish();
    wait_status(&cluster, id, "COMPLETED");
}
