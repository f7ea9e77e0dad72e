//! slurmctld is away, or its answers are not whole: no session is closed on a guess, new ones wait or are refused as their
//! partition says, and when Slurm can be believed again exactly those are closed whose jobs ended meanwhile.

use testbed::{Cluster, Plan, wait_for};

use crate::support::{
    HeldJob, NOTE, SOON, ask_noted, hold, hold_script, scontrol, sessions, srun, status, wait_noted, wait_saved,
    wait_status,
};

/// A squeue between credvend and Slurm's own, which does as `{run}/etc/mood` says.
const SQUEUE: &str = "#!/bin/sh
case \"$(cat {run}/etc/mood 2>/dev/null)\" in
    between-rows) /usr/bin/squeue \"$@\" | head -n 1;;
    one-row) /usr/bin/squeue \"$@\" | head -n 2;;
    in-a-row) /usr/bin/squeue \"$@\" | head -c 700;;
    warns) echo 'squeue: warning: slurm.conf has an outdated line' >&2; exec /usr/bin/squeue \"$@\";;
    *) exec /usr/bin/squeue \"$@\";;
esac
";

const GUESS: &str = "nothing is closed on a guess";

struct World {
    cluster: Cluster,
}

impl World {
    fn mood(&self, mood: &str) {
        let file = self.cluster.run_dir().join("etc/mood");
        std::fs::write(&file, mood).unwrap();
    }

    /// So many sweeps fail.
    fn sweeps_fail(&self, count: usize) {
        let credvend = self.cluster.credvend();
        let lines = || credvend.log().matches(GUESS).count();
        let before = lines();
        wait_for("sweeps to fail", SOON, || (lines() >= before + count).then_some(())).unwrap();
    }

    /// A job of bob's on n2 that has asked for credentials.
    fn asked(&self) -> HeldJob<'_> {
        let job = hold(&self.cluster, "bob", &["-w", "n2"]);
        assert_eq!(job.get_as("bob").status, 200);
        job
    }
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs a test cluster: run `make deps` as root")]
fn nothing_is_closed_on_a_guess_and_recovery_closes_what_ended() {
    let plan = Plan::default()
        .script("slurm-bin/squeue", SQUEUE)
        .script("slurm-bin/sinfo", "#!/bin/sh\nexec /usr/bin/sinfo \"$@\"\n")
        .script("slurm-bin/scontrol", "#!/bin/sh\nexec /usr/bin/scontrol \"$@\"\n")
        .credvend_toml("[[cluster]]\nslurm-bin = \"{run}/etc/slurm-bin\"");
    let cluster = Cluster::up(plan).expect("the cluster comes up");
    let world = World { cluster };
    let _logs = world.cluster.logs_on_panic();

    // It lives through everything, and its second node asks for the first time in the midst of it.
    let step = format!("srun -k bash -c '{NOTE}; exec sleep 600' &");
    let long = hold_script(&world.cluster, "alice", &["-N2", "-w", "n1,n2"], &step);
    wait_noted(&world.cluster, "alice", long.job, &["n1", "n2"]);
    assert_eq!(long.get_as("alice").status, 200);
    let session = sessions(&world.cluster, long.job)[0]["session"].clone();

    answers_in_part(&world, &long);
    slurmctld_away(&world, &long);
    jobs_become_private(&world, &long);

    let all = sessions(&world.cluster, long.job);
    assert_eq!((all.len(), &all[0]["session"], &all[0]["status"]), (1, &session, &"ACTIVE".into()));
    let id = long.finish();
    wait_status(&world.cluster, id, "COMPLETED");
    world.cluster.assert_nodes_healthy();
}

fn answers_in_part(world: &World, long: &HeldJob<'_>) {
    let cluster = &world.cluster;
    let [ended, unheard] = [world.asked(), world.asked()];
    // Slurm itself is well: it ends one job and starts others, one of them where credentials are a must.
    world.mood("between-rows");
    ended.release();
    assert_eq!(cluster.as_user("bob").wait_job(ended.job, SOON).unwrap(), "COMPLETED");
    let waiting = hold(cluster, "bobby", &["-w", "n1"]);
    let told = waiting.get_as("bobby");
    assert!(told.status == 503 && told.body.contains("Slurm of cluster lab"), "{told:?}");
    let strict = srun(cluster, "bobby", &["-w", "n1", "-p", "strict"], "echo ran").expect_failure();
    assert!(strict.contains("Slurm of cluster lab") && !strict.contains("ran\n"), "{strict}");
    for mood in ["between-rows", "in-a-row"] {
        world.mood(mood);
        // The first one may have been under way in the mood before.
        world.sweeps_fail(2);
        for job in [long, &ended, &unheard] {
            assert_eq!(status(cluster, job.job), "ACTIVE", "{mood}");
        }
        assert_eq!(long.get_as("alice").status, 200, "{mood}");
    }
    // In its turn everybody gets what he waits for, with no restart of anything.
    world.mood("");
    wait_for("credentials for who waited", SOON, || (waiting.get_as("bobby").status == 200).then_some(())).unwrap();
    wait_status(cluster, ended.job, "COMPLETED");
    drop(waiting);
    // A listing that is cut after its first job; each of the others is asked about, and that answer is whole.
    world.mood("one-row");
    let id = unheard.finish();
    wait_status(cluster, id, "COMPLETED");
    assert_eq!(status(cluster, long.job), "ACTIVE");
    // Who only complains is believed.
    world.mood("warns");
    let id = world.asked().finish();
    wait_status(cluster, id, "COMPLETED");
    world.mood("");
}

fn slurmctld_away(world: &World, long: &HeldJob<'_>) {
    let (cluster, slurmctld) = (&world.cluster, world.cluster.slurmctld());
    // What Slurm said in part has been forgotten: the node asks once more.
    let forgets = || {
        cluster.node("n1").credd().restart().unwrap();
        wait_for("credentials for a node that kept none", SOON, || (long.get_as("alice").status == 200).then_some(()))
            .unwrap();
    };
    forgets();
    for frozen in [true, false] {
        let ended = world.asked();
        wait_saved(cluster, ended.job);
        if frozen { slurmctld.freeze() } else { slurmctld.kill9() }.unwrap();
        ended.release();
        world.sweeps_fail(1);
        for job in [long, &ended] {
            assert_eq!(status(cluster, job.job), "ACTIVE");
        }
        // The node has lost what it had: Slurm's last word about it still counts.
        forgets();
        if frozen { slurmctld.thaw() } else { slurmctld.start() }.unwrap();
        wait_status(cluster, ended.job, "COMPLETED");
        assert_eq!(status(cluster, long.job), "ACTIVE");
    }
    assert_eq!(ask_noted(cluster, "alice", long.job, "n2").status, 200, "a node that asks late");
}

/// Gives slurmctld this slurm.conf, and waits until it says that the setting is in force. The file is replaced as a whole:
/// Slurm's own commands, which credvend runs all the time, and slurmd read it too, and take half a file for all of it.
fn private_data(cluster: &Cluster, text: &str, private: &str) {
    let conf = cluster.run_dir().join("etc/slurm/slurm.conf");
    let aside = conf.with_extension("new");
    std::fs::write(&aside, text).unwrap();
    std::fs::rename(&aside, &conf).unwrap();
    let shown = || cluster.head().run_as_root("scontrol show config");
    wait_for("slurmctld to have the configuration", SOON, || {
        scontrol(cluster, "reconfigure");
        let line = shown().stdout.lines().find(|line| line.starts_with("PrivateData "))?.to_owned();
        (line.rsplit_once("= ")?.1.trim() == private).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", shown()));
}

fn jobs_become_private(world: &World, long: &HeldJob<'_>) {
    let cluster = &world.cluster;
    let conf = cluster.run_dir().join("etc/slurm/slurm.conf");
    let before = std::fs::read_to_string(&conf).unwrap();
    let ended = world.asked();
    // credvend sees nobody's jobs any more: Slurm says of each that there is none.
    private_data(cluster, &format!("{before}PrivateData=jobs\n"), "jobs");
    ended.release();
    world.sweeps_fail(1);
    for job in [long, &ended] {
        assert_eq!(status(cluster, job.job), "ACTIVE");
    }
    assert!(cluster.credvend().log().contains("PrivateData=jobs hides"), "the administrator is told why");
    private_data(cluster, &before, "none");
    wait_status(cluster, ended.job, "COMPLETED");
    assert_eq!(status(cluster, long.job), "ACTIVE");
    assert_eq!(long.get_as("alice").status, 200);
}
