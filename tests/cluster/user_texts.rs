//! What users write of any length, and Slurm puts into the environment of prologs and epilogs. One string of 128 kB there,
//! and execve(2) fails: slurmd drains the node, since our object has a prolog. The shipped job_submit script refuses it.

use std::process::Command;

use testbed::{Cluster, Plan};

use crate::support::{SOON, arn, srun, whoami};

/// A user's own SPANK plugin, which hands a variable of so many bytes to the job's prolog and epilog.
const PLUGIN: &str = r#"
#include <stdlib.h>
#include <string.h>
#include <slurm/spank.h>
SPANK_PLUGIN(texts, 1);
int slurm_spank_init_post_opt(spank_t sp, int ac, char **av) {
    int bytes = atoi(av[0]);
    char *text = malloc(bytes + 1);
    memset(text, 'x', bytes);
    text[bytes] = 0;
    if (spank_context() == S_CTX_LOCAL || spank_context() == S_CTX_ALLOCATOR)
        spank_job_control_setenv(sp, "TEXT", text, 1);
    return 0;
}
"#;

/// Alice's own slurm.conf, which names her plugin; gives its path.
fn own_plugin(cluster: &Cluster, bytes: usize) -> String {
    let alice = cluster.as_user("alice");
    let home = cluster.run_dir().join("home/alice");
    let object = home.join("texts.so");
    if !object.exists() {
        let source = alice.write_file("texts.c", PLUGIN).unwrap();
        let built = Command::new("gcc").args(["-shared", "-fPIC", "-o"]).arg(&object).arg(source).output();
        let built = built.expect("gcc (Debian: gcc) is there");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    }
    let plugstack = alice.write_file("plugstack.conf", &format!("required {} {bytes}\n", object.display())).unwrap();
    let theirs = std::fs::read_to_string(cluster.run_dir().join("etc/slurm/slurm.conf")).unwrap();
    let lines = theirs.lines().filter(|line| !line.starts_with("PlugStackConfig="));
    let own: String = lines.map(|line| format!("{line}\n")).collect();
    alice.write_file("slurm.conf", &format!("{own}PlugStackConfig={plugstack}\n")).unwrap()
}

fn checked(cluster: &Cluster) -> String {
    let done = cluster.head().run_as_root("runuser -u credvend -- credvend check-config --online");
    [done.stdout, done.stderr].concat()
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn overlong_texts_are_refused_at_submission_and_when_they_are_changed() {
    let script = include_str!("../../packaging/slurm/job_submit_credd.lua");
    let plan = Plan::default().slurm_conf("JobSubmitPlugins=lua").script("slurm/job_submit.lua", script);
    let cluster = Cluster::up(plan).expect("the cluster comes up");
    let _logs = cluster.logs_on_panic();
    let alice = cluster.as_user("alice");
    let said = checked(&cluster);
    assert!(said.contains("cluster lab  bounds its users' texts before they reach a prolog"), "{said}");

    let long = "x".repeat(20_000);
    for (what, wanted) in [(200_000, "a SPANK_ variable has 200005 bytes"), (16_000, "")] {
        let own = own_plugin(&cluster, what);
        for submit in [&["sbatch", "-o", "/dev/null", "--wrap", "true"][..], &["srun", "true"]] {
            let done = alice.run_with(&[("SLURM_CONF", &own)], submit);
            match wanted {
                "" => drop(done.expect_ok()),
                _ => assert!(done.expect_failure().contains(wanted), "{done:?}"),
            }
        }
    }
    for option in ["--comment", "--job-name", "--wckey", "--constraint"] {
        let done = alice.run(&["sbatch", "-o", "/dev/null", &format!("{option}={long}"), "--wrap", "true"]);
        assert!(done.expect_failure().contains("has 20000 bytes; at most 16384 are allowed"), "{option}: {done:?}");
    }

    let job = alice.sbatch("sleep 300", &[]).unwrap();
    for text in ["comment", "name", "wckey", "features"] {
        let word = if text == "name" { "jobname" } else { text };
        alice.run(&["scontrol", "update", &format!("jobid={job}"), &format!("{word}={long}")]).expect_failure();
        let log = cluster.head().log("slurmctld");
        assert!(log.contains(&format!("credd_check_job: refused: {text} has 20000 bytes")), "{text}: {log}");
    }
    alice.run(&["scontrol", "update", &format!("jobid={job}"), "comment=short"]).expect_ok();
    alice.scancel(job).expect_ok();
    alice.wait_job(job, SOON).unwrap();

    assert_eq!(srun(&cluster, "alice", &["-w", "n1"], &whoami(&cluster)).expect_ok(), arn("genomics", "alice", "n1"));
    cluster.wait_idle().unwrap();
    cluster.assert_nodes_healthy();
}

/// What the guide says of a site without it. Not our doing alone: any prolog makes Slurm do so.
#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn where_nothing_bounds_them_the_probe_says_so_and_slurm_drains() {
    let cluster = Cluster::up(Plan { nodes: 1, ..Plan::default() }).expect("the cluster comes up");
    let _logs = cluster.logs_on_panic();
    let said = checked(&cluster);
    assert!(said.contains("a user's overlong text can drain its nodes: its job_submit.lua does not call"), "{said}");
    let own = own_plugin(&cluster, 200_000);
    cluster
        .as_user("alice")
        .run_with(&[("SLURM_CONF", &own)], &["sbatch", "-o", "/dev/null", "--wrap", "true"])
        .expect_ok();
    testbed::wait_for("Slurm to drain the node", SOON, || cluster.node_state("n1").contains("drain").then_some(()))
        .expect("if Slurm no longer does, the guide and the threat model may say so");
}
