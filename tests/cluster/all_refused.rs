//! What refuses every job of a site although its configuration is valid: `credd health`, `credvend status` and
//! `credvend check-config --online` each say it, and are silent again afterwards.

use std::os::unix::fs::PermissionsExt;

use testbed::{Cluster, Host, Output, Plan};

use crate::support::{SOON, hold_script, scontrol, srun};

/// Asks for credentials once, which opens the job's session.
const ASK: &str = "curl -s -m 30 -o /dev/null -H \"Authorization: $AWS_CONTAINER_AUTHORIZATION_TOKEN\" \
                   \"$AWS_CONTAINER_CREDENTIALS_FULL_URI\"; true";

struct Site {
    cluster: Cluster,
}

impl Site {
    fn head(&self) -> &Host {
        self.cluster.head()
    }

    fn etc(&self, name: &str) -> std::path::PathBuf {
        self.cluster.run_dir().join("etc/credvend").join(name)
    }

    fn health(&self) -> Output {
        self.cluster.node("n1").run_as("root", &["credd", "health"])
    }

    fn status(&self) -> String {
        self.head().run_as("root", &["credvend", "status"]).stdout
    }

    fn check(&self) -> Output {
        let config = self.etc("credvend.toml").display().to_string();
        self.head().run_with("credvend", &[("CREDVEND_CONFIG", &config)], &["credvend", "check-config", "--online"])
    }

    fn restart(&self) {
        self.cluster.credvend().stop().unwrap();
        self.cluster.credvend().start().unwrap();
    }

    fn restart_credd(&self) {
        let credd = self.cluster.node("n1").daemon("credd");
        credd.stop().unwrap();
        credd.start().unwrap();
    }

    /// Jobs that come and go, each of which asks for a session and, if it gets one, for credentials.
    fn jobs(&self, count: usize) {
        for _ in 0..count {
            srun(&self.cluster, "alice", &[], ASK).expect_ok();
        }
    }

    #[track_caller]
    fn told(&self, what: &str, said: impl Fn() -> String, word: &str) {
        testbed::wait_for(what, SOON, || said().contains(word).then_some(())).unwrap_or_else(|e| {
            panic!("{e}: {word:?} is not in:\n{}\nhealth: {:?}\nstatus: {}", said(), self.health(), self.status())
        });
    }

    #[track_caller]
    fn health_says(&self, word: &str) {
        let failing = || {
            let health = self.health();
            if health.ok() { String::new() } else { health.stdout }
        };
        self.told("credd health to fail and to say it", failing, word);
    }

    #[track_caller]
    fn well(&self) {
        // A refusal is over with the first job that is not refused.
        self.jobs(1);
        testbed::wait_for("a well node", SOON, || self.health().ok().then_some(()))
            .unwrap_or_else(|e| panic!("{e}: {:?}", self.health()));
    }
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn what_refuses_every_job_is_green_nowhere() {
    let cluster = Cluster::up(Plan { nodes: 1, ..Plan::default() }).expect("the cluster comes up");
    let site = Site { cluster };
    let _logs = site.cluster.logs_on_panic();
    site.well();
    let fine = site.status();
    for word in ["refused", "no projects", "MUNGE", "PrivateData"] {
        assert!(!fine.contains(word), "{fine}");
    }
    no_role_trusts_credvend(&site);
    no_projects(&site);
    munged_is_down(&site);
    jobs_are_private(&site);
    a_head_is_to_state_the_jobs(&site);
    the_store_is_gone(&site);
    site.cluster.assert_nodes_healthy();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn what_is_wrong_on_a_node_fails_its_health() {
    let cluster = Cluster::up(Plan { nodes: 1, ..Plan::default() }).expect("the cluster comes up");
    let site = Site { cluster };
    let _logs = site.cluster.logs_on_panic();
    site.well();
    the_node_is_misconfigured(&site);
    the_nodes_munged_is_down(&site);
    site.cluster.assert_nodes_healthy();
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
#[cfg_attr(not(has_faketime), ignore = "needs libfaketime: run `make deps` as root")]
fn a_wrong_clock_on_a_node_fails_its_health() {
    let cluster = Cluster::up(Plan { nodes: 1, ..Plan::default() }).expect("the cluster comes up");
    let site = Site { cluster };
    let _logs = site.cluster.logs_on_panic();
    site.well();
    the_nodes_clock_is_wrong(&site);
    site.cluster.assert_nodes_healthy();
}

fn no_role_trusts_credvend(site: &Site) {
    let path = site.etc("projects.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, good.replace("role/projects/genomics", "role/projects/locked")).unwrap();
    site.restart();
    site.jobs(1);
    site.told("status to say it", || site.status(), "credvend was refused every role that jobs asked for");
    site.told("status to say why", || site.status(), "trust policy");
    site.jobs(2);
    site.health_says("refusals: ");
    let check = site.check();
    assert!(check.stdout.contains("service      warning: credvend was refused every role"), "{check:?}");
    std::fs::write(&path, good).unwrap();
    site.restart();
    site.well();
    assert!(!site.status().contains("refused"), "{}", site.status());
}

fn no_projects(site: &Site) {
    let path = site.etc("projects.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    site.head().run_as("root", &["credvend", "reload"]).expect_ok();
    assert!(site.status().contains("there are no projects"), "{}", site.status());
    assert!(site.check().stdout.contains("there are no projects"), "{:?}", site.check());
    site.jobs(3);
    site.health_says("refusals: ");
    site.told("status to say of the jobs", || site.status(), "the last jobs that asked for a session were all refused");
    std::fs::write(&path, good).unwrap();
    site.head().run_as("root", &["credvend", "reload"]).expect_ok();
    site.well();
}

fn munged_is_down(site: &Site) {
    let munged = site.head().daemon("munged");
    munged.stop().unwrap();
    site.restart();
    let word = "no node can prove itself by MUNGE here";
    site.told("status to say it", || site.status(), word);
    site.health_says("credvend: ");
    let check = site.check();
    assert!(!check.ok() && check.stdout.contains(word), "{check:?}");
    munged.start().unwrap();
    site.restart();
    site.well();
    assert!(!site.status().contains(word), "{}", site.status());
}

fn jobs_are_private(site: &Site) {
    let conf = site.cluster.run_dir().join("etc/slurm/slurm.conf");
    let before = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(&conf, format!("{before}PrivateData=jobs\n")).unwrap();
    scontrol(&site.cluster, "reconfigure");
    site.restart();
    let word = "PrivateData=jobs hides";
    site.told("status to say it", || site.status(), word);
    let check = site.check();
    assert!(!check.ok() && check.stdout.contains(word), "{check:?}");
    let held = hold_script(&site.cluster, "alice", &[], ASK);
    site.health_says(&format!("credvend: job {} has no session: ", held.job));
    let health_of = |user: &str| site.cluster.node("n1").run_as(user, &["credd", "health"]).stdout;
    let number = format!("job {}", held.job);
    site.told("alice to be told", || health_of("alice"), &format!("credvend: {number} has no session: "));
    let told_to_bob = || {
        let said = health_of("bob");
        assert!(!said.contains(&number), "{said}");
        said
    };
    site.told("bob not to be told of which job", told_to_bob, "credvend: a job of another user has no session");
    std::fs::write(&conf, before).unwrap();
    scontrol(&site.cluster, "reconfigure");
    site.restart();
    site.well();
    held.finish();
    assert!(!site.status().contains(word), "{}", site.status());
}

fn a_head_is_to_state_the_jobs(site: &Site) {
    let path = site.etc("credvend.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    let from = &good[good.find("[[cluster]]").unwrap()..];
    let cluster = &from[..from.find("\n[").map_or(from.len(), |end| end + 1)];
    let without = |key: &str| -> String {
        cluster.lines().filter(|line| !line.starts_with(key)).map(|line| format!("{line}\n")).collect()
    };
    let heads = without("slurm-conf").replace("attest = \"slurm\"", "attest = \"head\"");
    std::fs::write(&path, good.replace(cluster, &heads)).unwrap();
    site.restart();
    site.health_says("no configured cluster uses MUNGE");

    // Beside a cluster whose nodes attest.
    let another = without("head-secret-file").replace("\"lab\"", "\"another\"");
    std::fs::write(&path, good.replace(cluster, &format!("{heads}{another}"))).unwrap();
    site.restart();
    site.jobs(3);
    site.health_says("refusals: ");
    site.health_says("its head states its jobs");
    site.told("status to say it", || site.status(), "were all refused: its head states its jobs");
    let check = site.check();
    assert!(check.stdout.contains("its head states the jobs"), "{check:?}");
    std::fs::write(&path, good).unwrap();
    site.restart();
    site.well();
    assert!(!site.status().contains("refused"), "{}", site.status());
}

fn the_store_is_gone(site: &Site) {
    let names = ["credvend.sqlite", "credvend.sqlite-wal", "credvend.sqlite-shm"];
    let state = site.cluster.run_dir().join("credvend");
    let aside = site.cluster.run_dir().join("aside");
    std::fs::create_dir(&aside).unwrap();
    let moved = |from: &std::path::Path, to: &std::path::Path| {
        for name in names {
            std::fs::rename(from.join(name), to.join(name)).unwrap();
        }
    };
    moved(&state, &aside);
    let word = "was deleted";
    site.told("status to say it", || site.status(), word);
    let check = site.check();
    assert!(!check.ok() && check.stdout.contains(word), "{check:?}");
    site.jobs(1);
    site.health_says("credvend: ");
    moved(&aside, &state);
    site.well();
    assert!(!site.status().contains(word), "{}", site.status());
}

/// What is wrong in the node's own credd.toml.
fn the_node_is_misconfigured(site: &Site) {
    let path = site.cluster.run_dir().join("etc/credd-n1.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    let at = good.find("sha256:").unwrap() + "sha256:".len();
    let pin = &good[at..at + 64];
    for (right, wrong, word) in [
        (pin, "1".repeat(64).as_str(), "the pin is sha256:1111"),
        (":8443", ":8444", ":8444 cannot be reached"),
        ("node = \"n1\"", "node = \"n9\"", "does not run on node n9"),
    ] {
        let bad = good.replace(right, wrong);
        assert_ne!(bad, good);
        std::fs::write(&path, bad).unwrap();
        site.restart_credd();
        site.jobs(3);
        site.health_says(word);
    }
    std::fs::write(&path, good).unwrap();
    site.restart_credd();
    site.well();
}

/// credd cannot sign: nothing that it asks is answered.
fn the_nodes_munged_is_down(site: &Site) {
    let munged = site.cluster.node("n1").munged();
    munged.stop().unwrap();
    site.restart_credd();
    site.health_says("credvend: MUNGE cannot sign");
    munged.start().unwrap();
    site.well();
}

/// What its munged signs is an hour old when it is made.
fn the_nodes_clock_is_wrong(site: &Site) {
    let munged = site.cluster.node("n1").munged();
    munged.stop().unwrap();
    // Under another program's name, since the library may not be in a process that changes its user, as the daemon's start does.
    let dir = site.cluster.run_dir().join("etc/an-hour-ago");
    std::fs::create_dir(&dir).unwrap();
    let library = testbed::machine::faketime().expect("the test is ignored without it");
    let library = library.display();
    let script = format!("#!/bin/sh\nexec env LD_PRELOAD={library} FAKETIME=-1h /usr/sbin/munged \"$@\"\n");
    std::fs::write(dir.join("munged"), script).unwrap();
    std::fs::set_permissions(dir.join("munged"), PermissionsExt::from_mode(0o755)).unwrap();
    let usual = "/usr/sbin:/usr/bin:/sbin:/bin";
    munged.start_with(&[("PATH", &format!("{}:{usual}", dir.display()))]).unwrap();
    site.restart_credd();
    site.health_says("credvend: ");
    site.health_says("not authenticated");
    site.told("status to say it", || site.status(), "failed authentication");
    munged.stop().unwrap();
    munged.start_with(&[("PATH", usual)]).unwrap();
    site.restart_credd();
    site.well();
}
