//! What Slurm must say before a node gets anything, and for how long its word is taken.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use credd_protocol::node_api::OpenRequest;
use credd_protocol::{JobId, NodeName, ProjectId, SessionId};
use time::{Duration, OffsetDateTime};

use super::{Node, Vending, fresh};
use crate::attest::{Answer, Attestor, JobFacts, JobState};
use crate::projects::Roles;
use crate::refusal::Refusal;
use crate::store::{Run, Session};

/// A node that Slurm named as the job's is not asked about again for this long: so late does a node that left the job
/// lose access.
const ATTESTED_FOR: Duration = Duration::minutes(1);

/// While Slurm cannot be asked at all, a node named this long ago still counts: without slurmctld no node joins or
/// leaves a job, and an upgrade of Slurm must not cost running jobs their credentials. Ended and invalidated sessions
/// are refused all the same.
const ATTESTED_IN_OUTAGE: Duration = Duration::minutes(15);

/// The most (session, node) pairs that are remembered. Without its pair a node costs one more question, no more.
const MAX_PAIRS: usize = 65_536;

/// When Slurm last named a node as one of a session's.
#[derive(Default)]
pub(super) struct Attested(Mutex<Pairs>);

#[derive(Default)]
struct Pairs {
    sessions: HashMap<SessionId, HashMap<NodeName, OffsetDateTime>>,
    count: usize,
}

impl Attested {
    fn at(&self, session: SessionId, node: &NodeName) -> Option<OffsetDateTime> {
        let pairs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pairs.sessions.get(&session)?.get(node).copied()
    }

    pub(super) fn note(&self, session: SessionId, node: &NodeName, at: OffsetDateTime) {
        let mut pairs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pairs.count >= MAX_PAIRS {
            pairs.sessions.retain(|_, nodes| {
                nodes.retain(|_, then| fresh(*then, at, ATTESTED_FOR));
                !nodes.is_empty()
            });
            pairs.count = pairs.sessions.values().map(HashMap::len).sum();
        }
        if pairs.count < MAX_PAIRS && pairs.sessions.entry(session).or_default().insert(node.clone(), at).is_none() {
            pairs.count += 1;
        }
    }

    pub(super) fn forget(&self, session: SessionId) {
        let mut pairs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = pairs.sessions.remove(&session).map_or(0, |nodes| nodes.len());
        pairs.count -= gone;
    }

    pub(super) fn forget_node(&self, session: SessionId, node: &NodeName) {
        let mut pairs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(nodes) = pairs.sessions.get_mut(&session) else { return };
        let (gone, empty) = (nodes.remove(node).is_some(), nodes.is_empty());
        if empty {
            pairs.sessions.remove(&session);
        }
        pairs.count -= usize::from(gone);
    }
}

/// The job must run, or be in its last moments, and on this node.
fn placed(node: &Node, job: JobId, answer: Answer) -> Result<JobFacts, Refusal> {
    let not_running = |why: &str| Refusal::JobNotRunning { job, cluster: node.cluster.clone(), why: why.into() };
    let facts = match answer {
        Answer::Known(facts) if facts.job == job => facts,
        Answer::Known(facts) => {
            return Err(Refusal::Unavailable(format!(
                "Slurm was asked about job {job} and spoke of job {}",
                facts.job
            )));
        }
        Answer::Absent => return Err(not_running("Slurm does not know it, or not any more")),
    };
    match facts.state {
        // Slurm strikes each node off the list when its epilog is done.
        JobState::Running | JobState::Completing => {}
        JobState::Pending => return Err(not_running("Slurm has it waiting for nodes")),
        JobState::Over => return Err(not_running("Slurm says that it is over")),
    }
    if !facts.nodes.contains(&node.name) {
        return Err(Refusal::NotOnNode { job, node: node.name.clone() });
    }
    Ok(facts)
}

impl Vending {
    /// The project of a job and its roles.
    pub(super) fn project_of(&self, facts: &JobFacts) -> Result<(ProjectId, Roles), Refusal> {
        let account = facts.account.as_ref().ok_or(Refusal::NoAccount { job: facts.job })?;
        let map = self.parts.projects.current();
        let (project, roles) =
            map.by_account(account).ok_or_else(|| Refusal::UnknownProject { project: account.clone() })?;
        Ok((project.clone(), roles.clone()))
    }

    /// Asks Slurm about a job that a node has a record of, and compares every fact of that record.
    pub(super) async fn attest_record(
        &self,
        node: &Node,
        attestor: &Arc<dyn Attestor>,
        record: &OpenRequest,
    ) -> Result<JobFacts, Refusal> {
        let facts = placed(node, record.job, attestor.job(record.job).await?)?;
        let contradicted = |what: String| Err(Refusal::Contradicted { job: record.job, node: node.name.clone(), what });
        if record.restart != facts.restart {
            return contradicted(format!("restart count {} (Slurm: {})", record.restart, facts.restart));
        }
        if record.uid != facts.uid {
            return contradicted(format!("uid {} (Slurm: {})", record.uid, facts.uid));
        }
        if let Some(stated) = &record.account {
            let told = facts.account.as_ref().map_or("", |a| a.as_str());
            // Slurm lower-cases accounts, but older releases leave the case in a job's environment.
            if !stated.as_str().eq_ignore_ascii_case(told) {
                return contradicted(format!(
                    "account {stated} (Slurm: {told:?}; if it was changed after the job's start, requeue the job)"
                ));
            }
        }
        Ok(facts)
    }

    /// A node may have a session's credentials if Slurm named it as one of the job's a short while ago, or does so now.
    pub(super) async fn require_attested(
        &self,
        node: &Node,
        attestor: &Arc<dyn Attestor>,
        session: &Session,
        run: &Run,
    ) -> Result<(), Refusal> {
        let (asked, job) = (self.now(), run.job);
        let known = self.attested.at(session.id, &node.name);
        if known.is_some_and(|at| fresh(at, asked, ATTESTED_FOR)) {
            return Ok(());
        }
        let answer = match attestor.job(job).await {
            Ok(answer) => answer,
            Err(e) if known.is_some_and(|at| fresh(at, asked, ATTESTED_IN_OUTAGE)) => {
                tracing::warn!(%job, node = %node.name, session = %session.id, why = %e, "Slurm is away; its last word about this node counts");
                return Ok(());
            }
            Err(e) => return Err(e.into()),
        };
        let checked = placed(node, job, answer).and_then(|facts| self.same_run(node, session, run, &facts));
        match checked {
            Ok(()) => self.attested.note(session.id, &node.name, asked),
            Err(_) => self.attested.forget_node(session.id, &node.name),
        }
        checked
    }

    /// The job that Slurm has now must be the run that the session was opened for.
    pub(super) fn same_run(&self, node: &Node, session: &Session, run: &Run, facts: &JobFacts) -> Result<(), Refusal> {
        let now = facts.run();
        if !run.is(&now) {
            let why = if run.restart != now.restart {
                format!("the session is of its restart {}, Slurm is at restart {}", run.restart, now.restart)
            } else {
                format!("the session is of the job submitted at {}, Slurm has one of {}", run.submitted, now.submitted)
            };
            return Err(Refusal::JobNotRunning { job: facts.job, cluster: node.cluster.clone(), why });
        }
        let contradicted = |what: String| Err(Refusal::Contradicted { job: facts.job, node: node.name.clone(), what });
        // By number: a user who is renamed, or whom the user database forgets, is the same to Slurm, and the session keeps
        // the name that it was opened with.
        if let Some(uid) = session.uid.filter(|uid| *uid != facts.uid) {
            return contradicted(format!("uid {uid} (Slurm: {})", facts.uid));
        }
        self.same_project(session, facts)
    }

    /// An account may be changed while the job runs. What the session was opened for is no longer the job's, and what is
    /// the job's now was not there when its processes started: neither is vended.
    fn same_project(&self, session: &Session, facts: &JobFacts) -> Result<(), Refusal> {
        let map = self.parts.projects.current();
        if map.by_id(&session.project).is_none() {
            return Err(Refusal::UnknownProject { project: session.project.clone() });
        }
        let of = facts.account.as_ref().and_then(|account| map.by_account(account)).map(|(project, _)| project);
        if of == Some(&session.project) {
            return Ok(());
        }
        let project = of.map_or("no project".to_owned(), |project| format!("project {project}"));
        let now = match &facts.account {
            Some(account) => format!("account {account}, which is of {project}"),
            None => "no account".to_owned(),
        };
        Err(Refusal::AccountChanged { job: facts.job, opened: session.project.clone(), now })
    }
}
