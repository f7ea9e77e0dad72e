//! What Slurm must say before a node gets anything, and for how long its word is taken.

use std::sync::Arc;

use credd_protocol::node_api::{AttestRequest, OpenRequest, SlurmFacts};
use credd_protocol::{ClusterName, JobId, ProjectId};
use time::Duration;

use super::facts::{Mark, Word};
use super::nodes::{known, refused};
use super::{Node, Vending, fresh};
use crate::attest::{Answer, AttestError, Attestor, JobFacts, JobState};
use crate::audit::{Event, Refused};
use crate::projects::Roles;
use crate::refusal::Refusal;
use crate::store::{Run, Session};

/// What Slurm said about a job serves all of its nodes for this long: so late does a node that left the job, and did not
/// say so, lose access.
pub(super) const ATTESTED_FOR: Duration = Duration::minutes(1);

/// A session is opened, rather than joined, only for a job that Slurm spoke of so lately: one that it no longer has would
/// otherwise get one. The nodes of a job that starts ask within seconds of each other.
pub(super) const OPENS_FOR: Duration = Duration::seconds(5);

/// While Slurm cannot be asked at all, a node named this long ago still counts: without slurmctld no node joins or
/// leaves a job, and an upgrade of Slurm must not cost running jobs their credentials. Ended and invalidated sessions
/// are refused all the same.
const ATTESTED_IN_OUTAGE: Duration = Duration::minutes(15);

/// The job must run, or be in its last moments, and on this node.
fn placed<'w>(node: &Node, job: JobId, word: &'w Word) -> Result<&'w JobFacts, Refusal> {
    let not_running = |why: &str| Refusal::JobNotRunning { job, cluster: node.cluster.clone(), why: why.into() };
    let facts = match &word.answer {
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
    if !word.names(&node.name) {
        return Err(Refusal::NotOnNode { job, node: node.name.clone() });
    }
    Ok(facts)
}

/// Every fact of a node's record, compared with Slurm's.
fn agrees(node: &Node, record: &OpenRequest, facts: &JobFacts) -> Result<(), Refusal> {
    let contradicted = |what: String| Err(Refusal::Contradicted { job: record.job, node: node.name.clone(), what });
    if record.restart != facts.restart {
        return contradicted(format!("restart count {} (Slurm: {})", record.restart, facts.restart));
    }
    if record.uid != facts.uid {
        return contradicted(format!("uid {} (Slurm: {})", record.uid, facts.uid));
    }
    // Its options chose the role, and a prolog that runs at srun's launch has the name from srun.
    if let Some(stated) = record.partition.as_ref().filter(|stated| **stated != facts.partition) {
        return contradicted(format!("partition {stated} (Slurm: {})", facts.partition));
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
    Ok(())
}

impl Vending {
    /// The roles of a project for a cluster.
    pub(super) fn roles_on(&self, project: &ProjectId, cluster: &ClusterName) -> Result<Roles, Refusal> {
        let map = self.parts.projects.current();
        let roles = map.by_id(project).ok_or_else(|| Refusal::UnknownProject { project: project.clone() })?;
        match map.why_not_on(project, cluster) {
            None => Ok(roles.clone()),
            Some(why) => Err(Refusal::ProjectElsewhere { project: project.clone(), cluster: cluster.clone(), why }),
        }
    }

    /// The project of a job of the node's cluster and its roles.
    pub(super) fn project_of(&self, node: &Node, facts: &JobFacts) -> Result<(ProjectId, Roles), Refusal> {
        let account = facts.account.as_ref().ok_or(Refusal::NoAccount { job: facts.job })?;
        let map = self.parts.projects.current();
        let (project, _) =
            map.by_account(account).ok_or_else(|| Refusal::UnknownProject { project: account.clone() })?;
        Ok((project.clone(), self.roles_on(project, &node.cluster)?))
    }

    /// What Slurm said about a job at most `within` ago, if that satisfies `check`; else what it says now.
    async fn word(
        &self,
        node: &Node,
        attestor: &Arc<dyn Attestor>,
        job: JobId,
        (mark, within): (Mark, Duration),
        check: impl Fn(&JobFacts) -> Result<(), Refusal>,
    ) -> Result<Result<Arc<Word>, Refusal>, AttestError> {
        let checked = |word: &Word| placed(node, job, word).and_then(&check);
        let good = |word: &Word| fresh(word.asked, self.now(), within) && checked(word).is_ok();
        let word = self.facts.ask(attestor, (node, job), mark, good).await?;
        Ok(checked(&word).map(|()| word))
    }

    /// Slurm's word about a job that a node has a record of, with every fact of that record compared.
    pub(super) async fn attest_record(
        &self,
        node: &Node,
        attestor: &Arc<dyn Attestor>,
        record: &OpenRequest,
        when: (Mark, Duration),
    ) -> Result<Arc<Word>, Refusal> {
        self.word(node, attestor, record.job, when, |facts| agrees(node, record, facts)).await?
    }

    /// What Slurm says, now, of a job that runs on a node which knows its uid and nothing else.
    ///
    /// # Errors
    /// Every reason why not; see [`Refusal`].
    pub async fn attest_for_node(&self, node: &Node, request: &AttestRequest) -> Result<SlurmFacts, Refusal> {
        self.attest_job(node, request).await.inspect_err(|refusal| {
            tracing::debug!(
                job = %request.job, uid = %request.uid, cluster = %node.cluster, node = %node.name, peer = ?node.peer,
                code = refusal.code(), why = %refusal, "job not attested to a node"
            );
            self.parts.audit.note(Event::Refused(Refused {
                job: Some(request.job),
                uid: Some(request.uid),
                ..refused(node, refusal)
            }));
        })
    }

    async fn attest_job(&self, node: &Node, request: &AttestRequest) -> Result<SlurmFacts, Refusal> {
        let (cluster, attestor) = self.attested_cluster(node)?;
        let check = |facts: &JobFacts| {
            if facts.uid != request.uid {
                let what = format!("uid {} (Slurm: {})", request.uid, facts.uid);
                return Err(Refusal::Contradicted { job: request.job, node: node.name.clone(), what });
            }
            match facts.state {
                JobState::Running => Ok(()),
                // Its step has just begun there.
                _ => Err(Refusal::Unavailable(format!("Slurm does not say yet that job {} runs", request.job))),
            }
        };
        // What is kept may be of an earlier run of the same user's: the restart count is what is asked for.
        let mark = self.facts.mark();
        let asking = self.word(node, attestor, request.job, (mark, Duration::ZERO), check);
        let (address, word) = tokio::join!(self.check_address(node, cluster), asking);
        address?;
        let word = word??;
        let facts = known(&word)?;
        Ok(SlurmFacts {
            cluster: node.cluster.clone(),
            node: node.name.clone(),
            restart: facts.restart,
            user: facts.user.clone().map_err(Refusal::Unavailable)?,
            account: facts.account.clone(),
            partition: facts.partition.clone(),
        })
    }

    /// A node may have a session's credentials if Slurm named it as one of the job's a short while ago, or does so now.
    pub(super) async fn require_attested(
        &self,
        node: &Node,
        attestor: &Arc<dyn Attestor>,
        session: &Session,
        run: &Run,
    ) -> Result<(), Refusal> {
        let (job, mark) = (run.job, self.facts.mark());
        let same = |facts: &JobFacts| self.same_run(node, session, run, facts);
        match self.word(node, attestor, job, (mark, ATTESTED_FOR), same).await {
            Ok(checked) => checked.map(|_| ()),
            // Slurm is there: an old word must not count only because the node makes credvend ask too often.
            Err(e @ AttestError::TooOften { .. }) => Err(e.into()),
            Err(e) => {
                let last = self.facts.kept(&node.cluster, job, &node.name);
                let last = last.filter(|word| fresh(word.asked, self.now(), ATTESTED_IN_OUTAGE));
                if last.is_some_and(|word| placed(node, job, &word).and_then(same).is_ok()) {
                    tracing::warn!(%job, node = %node.name, session = %session.id, why = %e, "Slurm is away; its last word about this node counts");
                    return Ok(());
                }
                Err(e.into())
            }
        }
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
