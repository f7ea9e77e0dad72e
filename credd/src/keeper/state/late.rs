//! The runs whose start left no record here: what a step left is completed with what credvend has from Slurm.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use credd_protocol::JobId;
use credd_protocol::late::{Completed, SlurmFacts};
use credd_protocol::local::Outcome;
use credd_protocol::record::file;

use super::{Keeper, records};
use crate::control::{LateJob, RunId, ToServer};
use crate::keeper::records::{FoundLate, Refused};

/// The late records that are not completed.
#[derive(Debug, Default)]
pub struct LateRuns(HashMap<RunId, FoundLate>);

impl LateRuns {
    /// The job of a run.
    pub fn job(&self, run: &RunId) -> Option<JobId> {
        self.0.get(run).map(|late| late.job.job)
    }

    /// Those that get no credentials, for good.
    pub fn refused(&self) -> impl Iterator<Item = &FoundLate> {
        self.0.values().filter(|late| late.job.refused.is_some())
    }

    /// All of them.
    pub fn jobs(&self) -> impl Iterator<Item = &LateJob> {
        self.0.values().map(|late| &late.job)
    }
}

impl Keeper {
    /// Takes in the late records of a look, after its other records.
    pub(super) fn take_late(&mut self, found: Vec<FoundLate>, ended: Vec<FoundLate>, only: Option<JobId>) {
        let present: HashSet<RunId> = found.iter().map(|late| late.job.run).collect();
        let looked_for = |late: &FoundLate| only.is_none_or(|job| job == late.job.job);
        let gone: Vec<RunId> = self
            .late
            .0
            .iter()
            .filter(|(run, late)| looked_for(late) && !present.contains(run))
            .map(|(run, _)| *run)
            .collect();
        for run in gone {
            let Some(late) = self.late.0.remove(&run) else { continue };
            // A completed one is among the other runs by now, under the same name.
            if self.runs.get(&run).is_none() {
                tracing::info!(job = %late.job.job, refused = late.job.refused.is_some(), "a job ended that has a late record only");
                self.parts.desk.board.leave(late.job.job, &run);
                self.tell(&ToServer::Ended { run });
            }
        }
        for late in found {
            if self.late.0.contains_key(&late.job.run) || self.runs.get(&late.job.run).is_some() {
                continue;
            }
            let job = late.job.clone();
            tracing::warn!(job = %job.job, uid = %job.uid, "slurmd ran no prolog for this job here: credvend is asked about it");
            let outcome = match &job.refused {
                Some(reason) => Outcome::Refused { reason: reason.clone() },
                None => Outcome::Opening { reason: None },
            };
            self.parts.desk.board.enter(job.job, &job.run, outcome);
            self.late.0.insert(job.run, late);
            self.tell(&ToServer::Late(Box::new(job)));
        }
        // Of these credvend knows nothing: there is no end to deliver.
        for late in ended {
            self.remove_directory(&late.path, &late.job.run);
        }
    }

    /// To a server that has just started.
    pub(super) fn tell_late(&self) {
        for job in self.late.jobs() {
            self.tell(&ToServer::Late(Box::new(job.clone())));
        }
    }

    /// What credvend has from Slurm about a late record's job.
    pub(super) fn attested(&mut self, id: &RunId, facts: SlurmFacts) {
        let Some(late) = self.late.0.get(id) else { return };
        let (job, path) = (late.job.job, late.path.clone());
        // The record that comes of it is believed about this node's name, under which root signs: the server does not choose it.
        let own = match self.parts.identity.get() {
            Ok((cluster, node)) if (&cluster, &node) == (&facts.cluster, &facts.node) => None,
            Ok(_) => Some("credvend's answer is about another node or cluster; tell your administrator".to_owned()),
            Err(why) => Some(why),
        };
        if let Some(why) = own {
            tracing::error!(%job, cluster = %facts.cluster, node = %facts.node, why, "an answer about a late record is not taken");
            return self.refuse_late(id, why);
        }
        let partition = facts.partition.clone();
        let completed = records::late_record_of(&path, id)
            .and_then(|late| late.complete(facts).map_err(|error| Refused::Wrong(error.to_string())));
        let record = match completed {
            Ok(Completed::Record(record)) => record,
            Ok(Completed::Off) => {
                self.note(Some(path), id, file::OFF, partition.as_str());
                return self.refuse_late(id, format!("they are switched off for partition {partition}"));
            }
            Ok(Completed::Broken(why)) => return self.refuse_late(id, why),
            // It ended meanwhile.
            Err(Refused::NoRecord) => return,
            Err(Refused::Wrong(why)) => return self.late_again(id, &path, &why),
        };
        match records::complete(&path, &record) {
            Ok(()) => drop(self.look(Some(job))),
            Err(Refused::NoRecord) => {}
            Err(Refused::Wrong(why)) => self.late_again(id, &path, &why),
        }
    }

    /// The record could not be completed, for want of room perhaps: the server asks again after a while.
    fn late_again(&self, id: &RunId, path: &PathBuf, why: &str) {
        tracing::error!(?path, why, "a late job record cannot be completed");
        if let Some(late) = self.late.0.get(id) {
            let reason = Some("this node cannot keep what Slurm says of the job; tell your administrator".to_owned());
            self.parts.desk.board.set(late.job.job, id, Outcome::Opening { reason });
            self.tell(&ToServer::Late(Box::new(late.job.clone())));
        }
    }

    /// A late record's job gets no credentials, for good.
    pub(super) fn refuse_late(&mut self, id: &RunId, reason: String) {
        let Some(late) = self.late.0.get_mut(id) else { return };
        late.job.refused = Some(reason.clone());
        let (job, path) = (late.job.clone(), late.path.clone());
        self.note(Some(path), id, file::REFUSED, &reason);
        self.parts.desk.board.set(job.job, id, Outcome::Refused { reason });
        self.tell(&ToServer::Late(Box::new(job)));
    }
}
