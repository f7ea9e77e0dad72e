//! The runs of jobs on this node, as the looks at the records tell. No I/O.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use credd_protocol::{ClusterName, JobId, NodeName};

use super::records::{Found, Look, Traits};
use crate::control::{Job, RunId};

/// An end that credvend has not taken for so long is given up: it looks at Slurm by itself.
const MAX_END_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Ends kept for delivery; beyond, the oldest are given up.
const MAX_ENDS: usize = 10_000;

/// One run and where its directory lies.
#[derive(Debug, Clone)]
pub struct Run {
    /// As told to the server.
    pub job: Job,
    /// Its directory; `None` if it vanished.
    pub path: Option<PathBuf>,
    /// Since when the directory is as it is.
    changed: SystemTime,
    /// As the directory said at the last look.
    pub traits: Traits,
}

/// What a look brought to light.
#[derive(Debug, Default)]
pub struct Changes {
    /// Runs not known before.
    pub new: Vec<RunId>,
    /// Runs that were known as running and are over here.
    pub ended: Vec<RunId>,
    /// Running before, and now without a record: somebody else than the epilog took it away. They are in `ended` too.
    pub vanished: Vec<RunId>,
    /// Undelivered ends that are given up: forgotten here, the directories are the caller's to remove.
    pub given_up: Vec<Run>,
}

/// All runs with a record on this node.
#[derive(Debug, Default)]
pub struct Runs {
    /// Boxed: the tree's leaves are a third empty.
    by_id: BTreeMap<RunId, Box<Run>>,
}

impl Runs {
    /// Takes in a look at `jobs/` and a later one at `ended/`, in this order: a job that ends in between is in both.
    /// With `only`, the looks were for that job alone, and say nothing of others.
    pub fn take(&mut self, jobs: Vec<Found>, ended: Vec<Found>, only: Option<JobId>, now: SystemTime) -> Changes {
        let mut changes = Changes::default();
        let mut present = HashSet::new();
        // Ends first: of a run found twice, the end is the news.
        for Found { path, job, changed, traits } in ended.into_iter().chain(jobs) {
            if !present.insert(job.run) {
                continue;
            }
            match self.by_id.get_mut(&job.run) {
                None => {
                    changes.new.push(job.run);
                    let run = Run { job, path: Some(path), changed, traits };
                    self.by_id.insert(run.job.run, Box::new(run));
                }
                Some(known) => {
                    if job.ended && !known.job.ended {
                        changes.ended.push(job.run);
                    }
                    // What ended stays ended, whatever is moved about in the directories.
                    known.job.ended |= job.ended;
                    known.path = Some(path);
                    known.changed = changed;
                    known.traits = traits;
                }
            }
        }
        for (id, run) in &mut self.by_id {
            let looked_for = only.is_none_or(|job| job == run.job.job);
            if looked_for && !present.contains(id) {
                run.path = None;
                if !run.job.ended {
                    run.job.ended = true;
                    run.changed = now;
                    changes.ended.push(*id);
                    changes.vanished.push(*id);
                }
            }
        }
        changes.given_up = self.give_up(now);
        changes
    }

    fn give_up(&mut self, now: SystemTime) -> Vec<Run> {
        let mut ends: Vec<(SystemTime, RunId)> =
            self.by_id.iter().filter(|(_, run)| run.job.ended).map(|(id, run)| (run.changed, *id)).collect();
        ends.sort();
        let surplus = ends.len().saturating_sub(MAX_ENDS);
        let old = |changed: SystemTime| now.duration_since(changed).is_ok_and(|age| age > MAX_END_AGE);
        let given_up = ends.into_iter().enumerate().filter(|(at, (changed, _))| *at < surplus || old(*changed));
        given_up.filter_map(|(_, (_, id))| self.by_id.remove(&id)).map(|run| *run).collect()
    }

    /// One run.
    pub fn get(&self, id: &RunId) -> Option<&Run> {
        self.by_id.get(id).map(Box::as_ref)
    }

    /// One run, to note what became of it.
    pub fn get_mut(&mut self, id: &RunId) -> Option<&mut Run> {
        self.by_id.get_mut(id).map(Box::as_mut)
    }

    /// Forgets a run.
    pub fn remove(&mut self, id: &RunId) {
        self.by_id.remove(id);
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Run> {
        self.by_id.values().map(Box::as_ref)
    }

    /// How many are running, and how many ends wait to be delivered.
    pub fn counts(&self) -> (usize, usize) {
        let ended = self.all().filter(|run| run.job.ended).count();
        (self.by_id.len() - ended, ended)
    }

    /// Cluster and node as the newest record says.
    pub fn identity(&self) -> Option<(ClusterName, NodeName)> {
        let newest = self.all().max_by_key(|run| (!run.job.ended, run.changed))?;
        Some((newest.job.cluster.clone(), newest.job.node.clone()))
    }
}

/// Splits a look into what is served and what is logged; records of another cluster are among the latter.
pub fn sift(look: Look, cluster: Option<&ClusterName>) -> (Vec<Found>, Vec<(PathBuf, String)>) {
    let Look { found, mut refused, .. } = look;
    let (found, foreign): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|found| cluster.is_none_or(|cluster| *cluster == found.job.cluster));
    refused.extend(foreign.into_iter().map(|found| {
        let text = format!("it is of cluster {}, credd.toml says another", found.job.cluster);
        (found.path, text)
    }));
    (found, refused)
}

#[cfg(test)]
mod tests {
    use credd_protocol::fixtures::record;
    use credd_protocol::record::{JobRecord, RunDir};

    use super::*;
    use crate::keeper::records::tests::{end, run_dir, start};
    use crate::keeper::records::{self};

    fn take(runs: &mut Runs, run_dir: &RunDir, now: SystemTime) -> Changes {
        let jobs = records::look(&run_dir.jobs(), false).unwrap().found;
        runs.take(jobs, records::look(&run_dir.ended(), true).unwrap().found, None, now)
    }

    #[test]
    fn starts_ends_and_restarts_are_told_apart() {
        let (_dir, run_dir) = run_dir();
        let now = SystemTime::now();
        let mut runs = Runs::default();
        let (first, second) = (record(5), record(5));
        let one = start(&run_dir, &first);
        assert_eq!(take(&mut runs, &run_dir, now).new, vec![one]);
        assert!(take(&mut runs, &run_dir, now).new.is_empty());
        end(&run_dir, &first);
        let two = start(&run_dir, &second);
        let changes = take(&mut runs, &run_dir, now);
        assert_eq!((changes.new, changes.ended), (vec![two], vec![one]));
        assert_eq!(runs.counts(), (1, 1));
        assert_eq!(runs.identity().unwrap().1.as_str(), "n1");

        // A record that vanishes is an end; an end is never taken back.
        let stolen = run_dir.path().join("stolen");
        std::fs::rename(run_dir.job(second.job), &stolen).unwrap();
        let changes = take(&mut runs, &run_dir, now);
        assert_eq!((changes.ended, changes.vanished), (vec![two], vec![two]));
        std::fs::rename(&stolen, run_dir.job(second.job)).unwrap();
        assert!(take(&mut runs, &run_dir, now).new.is_empty());
        assert!(runs.get(&two).unwrap().job.ended);
    }

    #[test]
    fn a_look_for_one_job_ends_no_other() {
        let (_dir, run_dir) = run_dir();
        let now = SystemTime::now();
        let mut runs = Runs::default();
        let (one, other) = (record(5), record(55));
        let (one_run, other_run) = (start(&run_dir, &one), start(&run_dir, &other));
        let mut look = |job: &JobRecord| {
            let (jobs, ended) = records::look_at(&run_dir, job.job).unwrap();
            runs.take(jobs.found, ended.found, Some(job.job), now)
        };
        assert_eq!(look(&one).new, vec![one_run]);
        assert_eq!(look(&other).new, vec![other_run]);
        end(&run_dir, &other);
        let changes = look(&one);
        assert!(changes.ended.is_empty() && changes.new.is_empty());
        assert_eq!(look(&other).ended, vec![other_run]);
        end(&run_dir, &one);
        assert_eq!(look(&one).ended, vec![one_run]);
    }

    #[test]
    fn a_job_that_ends_between_the_looks_has_ended() {
        let (_dir, run_dir) = run_dir();
        let record = record(5);
        let run = start(&run_dir, &record);
        let jobs = records::look(&run_dir.jobs(), false).unwrap().found;
        end(&run_dir, &record);
        let mut runs = Runs::default();
        runs.take(jobs, records::look(&run_dir.ended(), true).unwrap().found, None, SystemTime::now());
        assert!(runs.get(&run).unwrap().job.ended);
    }

    #[test]
    fn an_end_that_nobody_takes_is_given_up_in_time() {
        let (_dir, run_dir) = run_dir();
        let record = record(5);
        start(&run_dir, &record);
        end(&run_dir, &record);
        let mut runs = Runs::default();
        let now = SystemTime::now();
        assert!(take(&mut runs, &run_dir, now).given_up.is_empty());
        let changes = take(&mut runs, &run_dir, now + MAX_END_AGE + Duration::from_secs(60));
        assert_eq!(changes.given_up.len(), 1);
        assert_eq!(runs.counts(), (0, 0));
    }

    #[test]
    fn records_of_another_cluster_are_refused() {
        let (_dir, run_dir) = run_dir();
        start(&run_dir, &record(5));
        let look = || records::look(&run_dir.jobs(), false).unwrap();
        let (found, refused) = sift(look(), Some(&"other".parse().unwrap()));
        assert!(found.is_empty() && refused[0].1.contains("cluster lab"), "{refused:?}");
        assert_eq!(sift(look(), Some(&"lab".parse().unwrap())).0.len(), 1);
        assert_eq!(sift(look(), None).0.len(), 1);
    }
}
