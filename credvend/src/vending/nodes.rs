//! A node's verbs. A node states nothing that is believed: it makes credvend look.

use std::sync::Arc;

use credd_protocol::SessionId;
use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::node_api::{CredentialsRequest, CredentialsResponse, OpenRequest, OpenResponse};
use credd_protocol::{ProjectId, UserName};
use time::Duration;

use super::attesting::{ATTESTED_FOR, OPENS_FOR};
use super::blocking::Asking;
use super::facts::Word;
use super::issuing::Want;
use super::sweeping::{Verdict, another_run, verdict};
use super::{AddressCheck, ClusterName, Node, Vending, fresh, require_active};
use crate::attest::{Answer, JobFacts, JobState};
use crate::audit::{Event, Refused, To};
use crate::projects::Roles;
use crate::refusal::Refusal;
use crate::store::{OpenRun, Opened, Origin, Run, Session, SessionFilter, StoreError};

/// That Slurm is completing a job is not asked again for this long.
const COMPLETES_FOR: Duration = Duration::seconds(2);

/// The facts of a word that was found good.
pub(super) fn known(word: &Word) -> Result<&JobFacts, Refusal> {
    match &word.answer {
        Answer::Known(facts) => Ok(facts),
        Answer::Absent => Err(Refusal::Internal("a job that Slurm does not know was taken for one that runs".into())),
    }
}

impl Vending {
    /// A node opens or joins the session of a job that Slurm says runs on it.
    ///
    /// # Errors
    /// Every reason why not; see [`Refusal`].
    pub async fn open_for_node(&self, node: &Node, request: &OpenRequest) -> Result<OpenResponse, Refusal> {
        let opened = self.open_or_join(node, request).await;
        match &opened {
            Ok(_) => self.refused.given(&node.cluster),
            Err(refusal @ Refusal::UnknownCluster(_)) => self.refused.at_the_door(refusal, self.now()),
            Err(refusal) => self.refused.refused(&node.cluster, request.job, refusal, self.now()),
        }
        opened.inspect_err(|refusal| {
            // At debug: the server's bounded log has every refusal.
            tracing::debug!(
                job = %request.job, restart = request.restart, uid = %request.uid, account = request.account.as_ref().map(tracing::field::display),
                cluster = %node.cluster, node = %node.name, peer = node.peer.map(tracing::field::display), code = refusal.code(), why = %refusal,
                "session refused to a node"
            );
            self.parts.audit.note(Event::Refused(Refused {
                job: Some(request.job),
                uid: Some(request.uid),
                project: request.account.as_ref(),
                ..refused(node, refusal)
            }));
        })
    }

    async fn open_or_join(&self, node: &Node, request: &OpenRequest) -> Result<OpenResponse, Refusal> {
        let (cluster, attestor) = self.attested_cluster(node)?;
        let mark = self.facts.mark();
        // At once, for the job waits for the slowest only; told in this order, so that an impostor learns nothing of jobs.
        let (address, accounts, word) = tokio::join!(
            self.check_address(node, cluster),
            self.require_accounts(node, cluster),
            self.attest_record(node, attestor, request, (mark, ATTESTED_FOR))
        );
        address?;
        accounts?;
        let mut word = word?;
        let facts = known(&word)?;
        let project = self.project_of(node, facts).ok().map(|(project, _)| project);
        let asking = Asking {
            user: facts.user.as_ref().ok(),
            project: project.as_ref(),
            node: Some((&node.cluster, &node.name)),
            role: None,
        };
        self.require_unblocked(asking).await?;
        // All nodes of a job that starts find no session at the same time: one opens it, the others find it then.
        let opening = self.facts.opening(&node.cluster, request.job);
        let mut turn = None;
        if self.crowds.is_new(&node.cluster, known(&word)?) {
            turn = Some(opening.lock().await);
            if !self.crowds.is_new(&node.cluster, known(&word)?) {
                // Somebody opened it meanwhile: the others join at the same time.
                turn = None;
            }
        }
        // Nearly every node of a large job joins: a read, where opening would be a write.
        let mut joined = self.join(node, known(&word)?).await;
        if !matches!(joined, Ok(Some(_))) && !word.is_after(mark) {
            // Only Slurm's word of now refuses a node, and only one of just now opens a session.
            let opens = joined.is_ok() && self.may_open(node, known(&word)?).is_ok();
            let within = if opens { OPENS_FOR } else { Duration::ZERO };
            word = self.attest_record(node, attestor, request, (mark, within)).await?;
            joined = self.join(node, known(&word)?).await;
        }
        let facts = known(&word)?;
        let run = facts.run();
        let (session, new) = match joined? {
            Some(session) => (session, false),
            None if turn.is_some() => self.open_new(node, facts).await?,
            None => {
                turn = Some(opening.lock().await);
                match self.join(node, facts).await? {
                    Some(session) => (session, false),
                    None => self.open_new(node, facts).await?,
                }
            }
        };
        drop(turn);
        self.parts.events.joined(session.id, &node.name);
        if new {
            self.parts
                .audit
                .record(Event::SessionOpened { session: &session, node: Some(&node.name), peer: node.peer })
                .await?;
            self.end_earlier_runs(&node.cluster, &run).await?;
        } else if !word.names_among(&node.name, &session.nodes) {
            // The job has grown.
            self.parts.store.add_node(session.id, &node.name).await?;
            self.crowds.forget(session.id);
        }
        let (_, roles) = self.project_of(node, facts)?;
        tracing::info!(
            session = %session.id, cluster = %session.cluster, job = %facts.job, restart = facts.restart,
            user = %session.user.field(), uid = %facts.uid, project = %session.project.field(), partition = %facts.partition.field(),
            node = %node.name, nodes = facts.nodes.len(), "session {}", if new { "opened" } else { "joined" }
        );
        Ok(OpenResponse {
            session: session.id,
            cluster: session.cluster.clone(),
            job: facts.job,
            user: session.user.clone(),
            uid: facts.uid,
            project: session.project.clone(),
            partition: session.partition.clone(),
            roles: roles.into_keys().collect(),
        })
    }

    /// The session of this run, if it has one.
    async fn join(&self, node: &Node, facts: &JobFacts) -> Result<Option<Arc<Session>>, Refusal> {
        let Some(session) = self.session_of_run(&node.cluster, &facts.run()).await? else { return Ok(None) };
        require_active(&session)?;
        self.same_run(node, &session, &facts.run(), facts)?;
        Ok(Some(session))
    }

    /// Whose session may be opened for the job, in which project.
    fn may_open(&self, node: &Node, facts: &JobFacts) -> Result<(UserName, ProjectId), Refusal> {
        let (project, _) = self.project_of(node, facts)?;
        if facts.state != JobState::Running {
            return Err(Refusal::JobNotRunning {
                job: facts.job,
                cluster: node.cluster.clone(),
                why: "Slurm is completing it; no session is opened any more".into(),
            });
        }
        Ok((facts.user.clone().map_err(Refusal::Unavailable)?, project))
    }

    /// Opens the session of this run, or joins the one that another node has just opened.
    async fn open_new(&self, node: &Node, facts: &JobFacts) -> Result<(Arc<Session>, bool), Refusal> {
        let (user, project) = self.may_open(node, facts)?;
        let session = Session {
            id: SessionId::random(),
            cluster: node.cluster.clone(),
            user,
            uid: Some(facts.uid),
            project,
            partition: Some(facts.partition.clone()),
            nodes: facts.nodes.clone(),
            origin: Origin::Slurm(facts.run()),
            opened: self.now(),
            ended: None,
            status: SessionStatus::Active,
            why: None,
        };
        match self.parts.store.open(session).await? {
            Opened::New(session) => Ok((self.seen(session), true)),
            Opened::Existing(session) => {
                require_active(&session)?;
                self.same_run(node, &session, &facts.run(), facts)?;
                Ok((self.seen(session), false))
            }
        }
    }

    /// Slurm has a new run under this job id, so the earlier ones are over; the sweep would find it out a little later. As a
    /// rule there are none.
    async fn end_earlier_runs(&self, cluster: &ClusterName, now: &Run) -> Result<(), StoreError> {
        let filter = SessionFilter {
            status: Some(SessionStatus::Active),
            cluster: Some(cluster.clone()),
            job: Some(now.job),
            ..Default::default()
        };
        for session in self.parts.store.list(&filter, None).await?.items {
            if let Origin::Slurm(run) = &session.origin
                && run.is_before(now)
            {
                self.end(session.id, SessionStatus::Completed, &another_run(run, now)).await?;
            }
        }
        Ok(())
    }

    /// Credentials of one role for a node's session.
    ///
    /// # Errors
    /// Every reason why not.
    pub async fn credentials_for_node(
        &self,
        node: &Node,
        session: SessionId,
        request: &CredentialsRequest,
    ) -> Result<CredentialsResponse, Refusal> {
        let mut found = None;
        self.vend_to_node(node, session, request, &mut found).await.inspect_err(|refusal| {
            tracing::debug!(
                %session, cluster = %node.cluster, node = %node.name, peer = node.peer.map(tracing::field::display), role = %request.role,
                code = refusal.code(), why = %refusal, "credentials refused to a node"
            );
            let of = found.as_deref();
            self.parts.audit.note(Event::Refused(Refused {
                job: of.and_then(|of| if let Origin::Slurm(run) = of.origin { Some(run.job) } else { None }),
                user: of.map(|of| &of.user),
                uid: of.and_then(|of| of.uid),
                project: of.map(|of| &of.project),
                session: Some(session),
                role: Some(&request.role),
                ..refused(node, refusal)
            }));
        })
    }

    /// `found` is the session that it is about, for the record of a refusal.
    async fn vend_to_node(
        &self,
        node: &Node,
        id: SessionId,
        request: &CredentialsRequest,
        found: &mut Option<Arc<Session>>,
    ) -> Result<CredentialsResponse, Refusal> {
        let (cluster, attestor) = self.attested_cluster(node)?;
        self.check_address(node, cluster).await?;
        let session = self.session(id).await?.filter(|s| s.cluster == node.cluster);
        let session = session.ok_or_else(|| Refusal::UnknownSession(id.to_string()))?;
        *found = Some(session.clone());
        let Origin::Slurm(run) = session.origin else {
            return Err(Refusal::NotAllowed {
                who: format!("node {}", node.name),
                why: format!("session {id} was opened by a head; its credentials are for the bearer of its token"),
            });
        };
        require_active(&session)?;
        // What it was told to renew elsewhere is not given to it again from here.
        self.parts.events.caught_up(&node.cluster, request.heard).await?;
        self.require_attested(node, attestor, &session, &run).await?;
        let roles = self.roles_on(&session.project, &node.cluster)?;
        let config = roles.get(&request.role).cloned().ok_or_else(|| Refusal::UnknownRole {
            project: session.project.clone(),
            role: request.role.clone(),
            has: names(&roles),
        })?;
        let named = self.parts.names.of(&session, &config, Some(&node.name));
        let (role, min_life_seconds) = (request.role.clone(), request.min_life_seconds);
        self.issue(
            Want { session, role, config, named, min_life_seconds },
            To::Node { node: &node.name, peer: node.peer },
        )
        .await
    }

    /// Whether a node may hang on the stream of what nodes are told. MUNGE lets root of any node give itself any node's
    /// name; where addresses are required to agree, a liar can neither listen in another's place nor crowd it out.
    ///
    /// # Errors
    /// It is not where Slurm has that node, or Slurm cannot say.
    pub async fn may_listen(&self, node: &Node) -> Result<(), Refusal> {
        // A node whose cluster's head states the jobs gets nothing here: it is told so before its first job.
        let (cluster, _) = self.attested_cluster(node)?;
        match cluster.addresses.check {
            AddressCheck::Require => self.check_address(node, cluster).await,
            // Nothing would come of it but a line in the log, and a question to Slurm for each node that comes back.
            AddressCheck::Warn | AddressCheck::Off => Ok(()),
        }
    }

    /// Whether a node that [may listen](Self::may_listen) is proven to be that one at its address: by its certificate, or
    /// because its address was compared. MUNGE alone lets root of any node take any name.
    pub fn is_where_it_says(&self, node: &Node) -> bool {
        let compared = self.attested_cluster(node).map(|(cluster, _)| cluster.addresses.check == AddressCheck::Require);
        node.certified || compared.unwrap_or(false)
    }

    /// A node says that the job ended there: Slurm is asked, and if it agrees the session is COMPLETED. Stale and
    /// repeated leaves change nothing and succeed.
    ///
    /// # Errors
    /// Only passing ones: the node tells again later.
    pub async fn leave(&self, node: &Node, id: SessionId) -> Result<(), Refusal> {
        let (cluster, attestor) = self.attested_cluster(node)?;
        self.check_address(node, cluster).await?;
        let Some(session) = self.session(id).await?.filter(|s| s.cluster == node.cluster) else {
            tracing::info!(session = %id, cluster = %node.cluster, node = %node.name, "a node left a session that is not known here");
            return Ok(());
        };
        let Origin::Slurm(run) = session.origin else { return Ok(()) };
        let job = run.job;
        self.facts.left(&node.cluster, job, &node.name);
        if session.status != SessionStatus::Active {
            return Ok(());
        }
        self.parts.events.left(id, &node.name, &session.nodes);
        // The nodes of a large job leave together. That Slurm is completing it need not be said to each of them: the next
        // sweep looks again.
        let completing = |word: &Word| {
            fresh(word.asked, self.now(), COMPLETES_FOR)
                && matches!(&word.answer, Answer::Known(facts) if facts.state == JobState::Completing)
        };
        let kept = self.facts.word(&node.cluster, job).filter(|word| completing(word));
        let word = match kept {
            Some(word) => word,
            None => self.facts.ask(attestor, (node, job), self.facts.mark(), completing).await?,
        };
        match verdict(&OpenRun { id, run, uid: session.uid }, &word.answer) {
            Verdict::Over(why) => {
                self.end(id, SessionStatus::Completed, &why).await?;
            }
            // The usual case: epilogs run while Slurm is completing the job. The next sweep looks again.
            Verdict::Ending => {
                tracing::debug!(session = %id, %job, node = %node.name, "a node left; Slurm is completing the job")
            }
            Verdict::Lives => {
                tracing::debug!(session = %id, %job, node = %node.name, "a node left; the job goes on elsewhere")
            }
        }
        Ok(())
    }
}

/// A node's refusal, for the record.
pub(super) fn refused<'a>(node: &'a Node, refusal: &'a Refusal) -> Refused<'a> {
    Refused {
        cluster: Some(&node.cluster),
        node: Some(&node.name),
        peer: node.peer.map(|peer| peer.to_string()),
        refusal: Some(refusal),
        ..Refused::default()
    }
}

/// The roles of a project, for a message.
pub(super) fn names(roles: &Roles) -> String {
    roles.keys().map(|r| r.as_str()).collect::<Vec<_>>().join(", ")
}
