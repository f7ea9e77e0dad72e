use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use super::search::MAX_READ;

use super::*;

/// A hierarchy of directories in place of the kernel's. On tmpfs, which numbers them in the order in which they are made, as
/// the kernel numbers cgroups.
struct Hierarchy(tempfile::TempDir);

impl Hierarchy {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Hierarchy(dir)
    }

    /// Makes directories; the last one's id.
    fn make(&self, path: &str) -> CgroupId {
        let mut whole = self.0.path().to_owned();
        for part in path.split('/') {
            whole.push(part);
            if !whole.exists() {
                fs::create_dir(&whole).unwrap();
                fs::set_permissions(&whole, fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
        CgroupId(fs::metadata(&whole).unwrap().ino())
    }

    fn verdict(&self, id: CgroupId, job: u32) -> Verdict {
        whole_search(&self.cgroups(), Some(id), numbered(job), &mut Seen::default())
    }

    fn cgroups(&self) -> JobCgroups {
        JobCgroups::at(self.0.path().to_owned(), nix::unistd::geteuid().as_raw())
    }

    fn mode(&self, path: &str, mode: u32) {
        fs::set_permissions(self.0.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
}

fn numbered(job: u32) -> JobName<'static> {
    JobName { node: "n1", job, sluid: None }
}

fn whole_search(cgroups: &JobCgroups, id: Option<CgroupId>, job: JobName<'_>, seen: &mut Seen) -> Verdict {
    let mut slices = std::iter::repeat_with(|| cgroups.made_in(id, job, seen));
    slices.find(|verdict| *verdict != Verdict::Unfinished).unwrap()
}

const SCOPE: &str = "system.slice/slurmstepd.scope";

#[test]
fn every_cgroup_of_a_job_is_in_it_and_no_other() {
    let machine = Hierarchy::new();
    let below = ["", "/step_0", "/step_0/user", "/step_0/user/task_0", "/step_batch/user/task_special/podman/x"];
    let own: Vec<_> = below.iter().map(|below| machine.make(&format!("{SCOPE}/job_7{below}"))).collect();
    let other = machine.make(&format!("{SCOPE}/job_70/step_0/user/task_0"));
    let beside = machine.make("system.slice/slurmd.service");
    let user = machine.make("user.slice/user-1001.slice/job_7/step_0/user/task_0");
    for id in own {
        assert_eq!(machine.verdict(id, 7), Verdict::Inside);
        assert_eq!(machine.verdict(id, 70), Verdict::Outside);
        assert_eq!(machine.verdict(id, 8), Verdict::Outside, "a job without a directory");
    }
    for id in [other, beside, user, CgroupId(0), CgroupId(1), machine.make(SCOPE), machine.make("system.slice")] {
        assert_eq!(machine.verdict(id, 7), Verdict::Outside);
    }
}

#[test]
fn nothing_is_said_where_slurm_keeps_no_cgroup_v2_directories() {
    let machine = Hierarchy::new();
    let id = machine.make("system.slice/slurmd.service");
    assert_eq!(machine.verdict(id, 7), Verdict::NotTracked);
    let job = JobName { node: "n1", job: 7, sluid: None };
    assert_eq!(machine.cgroups().made_in(None, job, &mut Seen::default()), Verdict::NotTracked);
    let none = JobCgroups { root: None, owner: 0, scopes: Mutex::default(), watches: Watches::default() };
    assert_eq!(none.made_in(Some(id), job, &mut Seen::default()), Verdict::NotTracked);
    machine.make(SCOPE);
    assert_eq!(machine.verdict(id, 7), Verdict::Outside, "Slurm tracks its jobs, and this is none of them");
    assert_eq!(machine.cgroups().made_in(None, job, &mut Seen::default()), Verdict::NotTracked);
}

#[test]
fn a_directory_that_others_may_write_in_proves_nothing() {
    for (path, verdict) in [
        ("", Verdict::NotTracked),
        ("system.slice", Verdict::NotTracked),
        (SCOPE, Verdict::NotTracked),
        ("system.slice/slurmstepd.scope/job_7", Verdict::Outside),
    ] {
        for mode in [0o777, 0o775, 0o757] {
            let machine = Hierarchy::new();
            let id = machine.make(&format!("{SCOPE}/job_7/step_0/user/task_0"));
            machine.mode(path, mode);
            assert_eq!(machine.verdict(id, 7), verdict, "{path} {mode:o}");
            machine.mode(path, 0o755);
            assert_eq!(machine.verdict(id, 7), Verdict::Inside);
        }
    }
}

#[test]
fn directories_of_another_owner_prove_nothing_and_delegated_ones_below_a_job_are_its_own() {
    let machine = Hierarchy::new();
    let id = machine.make(&format!("{SCOPE}/job_7/step_0/user/task_0"));
    let stranger = JobCgroups::at(machine.0.path().to_owned(), nix::unistd::geteuid().as_raw() + 1);
    let job = JobName { node: "n1", job: 7, sluid: None };
    assert_eq!(stranger.made_in(Some(id), job, &mut Seen::default()), Verdict::NotTracked);
    machine.mode("system.slice/slurmstepd.scope/job_7/step_0", 0o777);
    assert_eq!(machine.verdict(id, 7), Verdict::Inside);
}

#[test]
fn no_link_leads_to_another_jobs_cgroups() {
    let machine = Hierarchy::new();
    let id = machine.make(&format!("{SCOPE}/job_8/step_0/user/task_0"));
    machine.make(&format!("{SCOPE}/job_7/step_0"));
    let scope = machine.0.path().join(SCOPE);
    symlink(scope.join("job_8/step_0/user"), scope.join("job_7/step_0/user")).unwrap();
    symlink(scope.join("job_8/step_0"), scope.join("job_7/step_1")).unwrap();
    symlink(scope.join("job_8"), scope.join("job_9")).unwrap();
    assert_eq!(machine.verdict(id, 7), Verdict::Outside);
    assert_eq!(machine.verdict(id, 9), Verdict::Outside);
    assert_eq!(machine.verdict(id, 8), Verdict::Inside);
}

#[test]
fn the_directory_may_have_the_runs_sluid_and_slurm_a_slice_or_a_scope_of_its_own() {
    let machine = Hierarchy::new();
    let sluid = "s4HP2WQ8ZK1RT0";
    let id = machine.make(&format!("slurm.slice/n1_slurmstepd.scope/{sluid}/step_0/user/task_0"));
    let made_in =
        |node, job, sluid| machine.cgroups().made_in(Some(id), JobName { node, job, sluid }, &mut Seen::default());
    assert_eq!(made_in("n1", 7, Some(sluid)), Verdict::Inside);
    assert_eq!(made_in("n1", 7, None), Verdict::Outside);
    assert_eq!(made_in("n1", 7, Some("s4HP2WQ8ZK1RT1")), Verdict::Outside);
    for no_name in ["../n1_slurmstepd.scope", "", ".", ".."] {
        assert_eq!(made_in("n1", 7, Some(no_name)), Verdict::Outside, "{no_name:?} is no job's directory");
    }
    assert_eq!(made_in("n2", 7, Some(sluid)), Verdict::NotTracked, "another slurmd's");
    machine.make("slurm.slice/slurmstepd.scope/job_7");
    assert_eq!(made_in("n1", 7, Some(sluid)), Verdict::Inside, "the node's own scope goes before the general one");
    assert_eq!(made_in("n2", 7, Some(sluid)), Verdict::Outside);
}

#[test]
fn a_step_is_read_once_for_all_its_tasks_and_what_is_seen_is_bounded() {
    let machine = Hierarchy::new();
    let tasks: Vec<_> = (0..40).map(|task| machine.make(&format!("{SCOPE}/job_7/step_0/user/task_{task}"))).collect();
    let (cgroups, job) = (machine.cgroups(), JobName { node: "n1", job: 7, sluid: None });
    let mut seen = Seen::default();
    assert_eq!(cgroups.made_in(Some(tasks[3]), job, &mut seen), Verdict::Inside);
    let (own, elsewhere) = (machine.0.path().join(SCOPE).join("job_7"), machine.0.path().join("elsewhere"));
    fs::rename(&own, &elsewhere).unwrap();
    for task in &tasks {
        assert_eq!(cgroups.made_in(Some(*task), job, &mut seen), Verdict::Inside);
    }
    assert_eq!(cgroups.made_in(Some(tasks[0]), job, &mut Seen::default()), Verdict::Outside);
    fs::rename(&elsewhere, &own).unwrap();
    let mut full = Seen { cgroups: (1_000_000..1_000_000 + MAX_SEEN as u64).collect(), ..Seen::default() };
    let late = machine.make(&format!("{SCOPE}/job_7/step_1/user/task_0"));
    assert_eq!(cgroups.made_in(Some(late), job, &mut full), Verdict::Inside);
    assert!(full.has(late) && full.cgroups.len() <= MAX_SEEN);
}

#[test]
fn a_search_goes_on_slice_by_slice_until_it_is_done_or_too_long() {
    let machine = Hierarchy::new();
    for number in 0..MAX_READ / 4 {
        machine.make(&format!("{SCOPE}/job_7/step_0/user/task_0/user_made_{number}/x"));
    }
    let cgroups = machine.cgroups();
    let mut seen = Seen::default();
    assert_eq!(cgroups.made_in(Some(CgroupId(1)), numbered(7), &mut seen), Verdict::Unfinished);
    assert_eq!(whole_search(&cgroups, Some(CgroupId(1)), numbered(7), &mut seen), Verdict::Outside);
    let deep = machine.make(&format!("{SCOPE}/job_7/step_0/user/task_0/first/x/y"));
    assert_eq!(machine.verdict(deep, 7), Verdict::Inside);
    // Another one's search begins anew.
    assert_eq!(cgroups.made_in(Some(CgroupId(1)), numbered(7), &mut seen), Verdict::Unfinished);
    assert_eq!(cgroups.made_in(Some(CgroupId(2)), numbered(7), &mut seen), Verdict::Unfinished);
    assert_eq!(whole_search(&cgroups, Some(CgroupId(1)), numbered(7), &mut seen), Verdict::Outside);
    for number in 0..MAX_READ {
        machine.make(&format!("{SCOPE}/job_7/step_1/user/task_0/user_made_{number}/x"));
    }
    assert_eq!(machine.verdict(CgroupId(1), 7), Verdict::Unread);
}

/// A user's jobs on the machine, and what was seen of each.
struct Jobs {
    cgroups: JobCgroups,
    jobs: Vec<(u32, Seen)>,
}

impl Jobs {
    fn new(machine: &Hierarchy, jobs: impl Iterator<Item = u32>) -> Self {
        Jobs { cgroups: machine.cgroups(), jobs: jobs.map(|job| (job, Seen::default())).collect() }
    }

    fn likely(&mut self, id: CgroupId) -> Option<u32> {
        let mut jobs: Vec<_> = self.jobs.iter_mut().map(|(job, seen)| (numbered(*job), seen)).collect();
        self.cgroups.likely(id, &mut jobs).map(|at| self.jobs[at].0)
    }
}

#[test]
fn a_quick_look_believes_no_more_than_the_search() {
    let machine = Hierarchy::new();
    let id = machine.make(&format!("{SCOPE}/job_7/step_0/user/task_0"));
    machine.mode("system.slice/slurmstepd.scope/job_7", 0o777);
    let mut jobs = Jobs::new(&machine, 7..9);
    assert_eq!(jobs.likely(id), None);
    machine.mode("system.slice/slurmstepd.scope/job_7", 0o755);
    assert_eq!(jobs.likely(id), Some(7));
    let mut stranger = Jobs::new(&machine, 7..9);
    stranger.cgroups = JobCgroups::at(machine.0.path().to_owned(), nix::unistd::geteuid().as_raw() + 1);
    assert_eq!(stranger.likely(id), None);
    // The run's next directory is another one, of which nothing is known. The first one is kept elsewhere: unlike a cgroup's, the
    // inode number of a removed directory is given again.
    fs::rename(machine.0.path().join(SCOPE).join("job_7"), machine.0.path().join("gone")).unwrap();
    let next = machine.make(&format!("{SCOPE}/job_7/step_0/user/task_0"));
    assert_eq!(jobs.likely(next), Some(7));
    assert_eq!(jobs.likely(CgroupId(1)), None);
}

#[test]
fn the_kernel_tells_a_quick_look_which_steps_began_and_ended() {
    let machine = Hierarchy::new();
    let step = |job: u32, step: u32| machine.make(&format!("{SCOPE}/job_{job}/step_{step}/user/task_0"));
    for job in 1..=20 {
        step(job, 0);
    }
    let mut jobs = Jobs::new(&machine, 1..=20);
    for (job, seen) in &mut jobs.jobs {
        assert_eq!(whole_search(&jobs.cgroups, Some(CgroupId(1)), numbered(*job), seen), Verdict::Outside);
    }
    assert_eq!(jobs.likely(CgroupId(1)), None, "from now on they are watched");
    for round in 1..10 {
        for job in [3, 17] {
            let task = step(job, round * 10 + job % 10);
            assert_eq!(jobs.likely(task), Some(job), "round {round}");
            let watched = |seen: &Seen| seen.directory.as_ref().is_some_and(|known| known.watch.is_some());
            let seen = &jobs.jobs.iter().find(|(known, _)| *known == job).unwrap().1;
            assert!(watched(seen) && seen.has(task));
        }
        let (_, seen) = &jobs.jobs[2];
        let before = seen.steps.len();
        fs::remove_dir_all(machine.0.path().join(SCOPE).join(format!("job_3/step_{}", round * 10 + 3))).unwrap();
        assert_eq!(jobs.likely(CgroupId(1)), None);
        assert_eq!(jobs.jobs[2].1.steps.len(), before - 1, "the step has ended");
    }
    // More at once than are kept: the directory is read again.
    let tasks: Vec<_> = (0..200).map(|number| step(5, 1000 + number)).collect();
    assert_eq!(jobs.likely(tasks[199]), Some(5));
    assert_eq!(jobs.likely(tasks[198]), Some(5));
}

#[test]
fn below_another_jobs_directory_and_in_no_job_are_told_apart() {
    let machine = Hierarchy::new();
    let own = machine.make(&format!("{SCOPE}/job_7/step_0/user/task_0"));
    let other = machine.make(&format!("{SCOPE}/job_9/step_0/user/task_0"));
    let by_sluid = machine.make(&format!("{SCOPE}/s4HP2WQ8ZK1RT1/step_0/user/task_0"));
    let ssh = machine.make("user.slice/user-1001.slice/session-3.scope");
    let cgroups = machine.cgroups();
    let known = [numbered(7), JobName { node: "n1", job: 8, sluid: Some("s4HP2WQ8ZK1RT0") }];
    let mut others = cgroups.other_jobs("n1", &known).unwrap();
    others.sort_by_key(JobDirectory::job);
    let names: Vec<_> = others.iter().map(|job| (job.job(), job.sluid())).collect();
    assert_eq!(names, [(None, Some("s4HP2WQ8ZK1RT1")), (Some(9), None)]);
    for (id, below) in [(own, None), (other, Some(1)), (by_sluid, Some(0)), (ssh, None)] {
        let inside = |job| cgroups.made_in_directory(Some(id), "n1", job, &mut Seen::default()) == Verdict::Inside;
        assert_eq!(others.iter().position(inside), below);
    }
    assert_eq!(cgroups.other_jobs("n1", &[]).unwrap().len(), 3);
    let none = JobCgroups { root: None, owner: 0, scopes: Mutex::default(), watches: Watches::default() };
    assert_eq!(none.other_jobs("n1", &known), None);
}

#[test]
fn a_scope_that_slurm_made_anew_is_found() {
    let machine = Hierarchy::new();
    let (cgroups, job) = (machine.cgroups(), JobName { node: "n1", job: 7, sluid: None });
    let scope = machine.0.path().join(SCOPE);
    for _ in 0..3 {
        let task = machine.make(&format!("{SCOPE}/job_7/step_0/user/task_0"));
        assert_eq!(cgroups.made_in(Some(task), job, &mut Seen::default()), Verdict::Inside);
        fs::remove_dir_all(scope.join("job_7")).unwrap();
        assert_eq!(cgroups.made_in(Some(task), job, &mut Seen::default()), Verdict::Outside);
        fs::remove_dir_all(&scope).unwrap();
        assert_eq!(cgroups.made_in(Some(task), job, &mut Seen::default()), Verdict::NotTracked);
    }
}

#[test]
fn the_mount_table_says_where_the_hierarchy_is() {
    let line = |rest: &str| cgroup2_mount(&format!("30 24 0:26 {rest}"));
    let found = Some(PathBuf::from("/sys/fs/cgroup"));
    assert_eq!(line("/ /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"), found);
    assert_eq!(line("/ /sys/fs/cgroup ro - cgroup2 none rw"), found);
    for other in [
        "/ /sys/fs/cgroup rw - tmpfs tmpfs rw",
        "/ /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids",
        "/docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
        "/ /a\\040b rw - cgroup2 cgroup2 rw",
        "/",
        "",
    ] {
        assert_eq!(line(other), None, "{other}");
    }
}

#[test]
fn a_directory_that_a_user_closed_is_not_taken_for_an_empty_one() {
    let machine = Hierarchy::new();
    let inside = machine.make(&format!("{SCOPE}/job_7/step_0/user/task_0/closed/inside"));
    machine.mode(&format!("{SCOPE}/job_7/step_0/user/task_0/closed"), 0);
    // Of a user without privileges, as credd's server process is; for this thread alone.
    let verdict = std::thread::scope(|scope| {
        let search = || {
            nix::unistd::setfsuid(65_534.into());
            machine.verdict(inside, 7)
        };
        scope.spawn(search).join().unwrap()
    });
    assert_eq!(verdict, Verdict::Unread);
}
