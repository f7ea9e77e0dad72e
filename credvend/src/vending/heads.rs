//! The verbs of the IAM Credentials API (v1): a head states a job, sets its status; the bearer of its session token gets
//! its credentials.

use std::net::IpAddr;
use std::sync::Arc;

use credd_protocol::credentials_api_v1::{OpenSession, SessionStatus};
use credd_protocol::node_api::CredentialsResponse;
use credd_protocol::{ClusterName, JobToken, ProjectId, RoleName, Secret, SessionId, TokenHash};

use super::blocking::Asking;
use super::issuing::Want;
use super::nodes::names;
use super::{Head, HeadOpened, Vending, require_active};
use crate::audit::{Event, Refused, To};
use crate::refusal::Refusal;
use crate::store::{Ended, Opened, Origin, Session};

/// Why the earlier session of a head's id ended.
const ANEW: &str = "the head opened this session id anew";

/// A head's ids stand in paths and in role-session names: letters, digits, and these characters.
fn check_text(what: &str, text: &str, max: usize, others: &str) -> Result<(), Refusal> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || others.as_bytes().contains(&b);
    if text.is_empty() || text.len() > max || !text.bytes().all(allowed) {
        let shown: String = text.chars().take(80).collect();
        return Err(Refusal::BadRequest(format!(
            "{what} {shown:?}: it must have 1 to {max} characters: letters, digits, and any of {others:?}"
        )));
    }
    Ok(())
}

impl Vending {
    /// A head states a job (the v1 POST). A session of the same head id that is still ACTIVE is COMPLETED: the
    /// newest one counts. The same submission again, as after an answer that was lost, gets the same session with a new
    /// token in place of the old one, which is kept as a hash only.
    ///
    /// # Errors
    /// Another cluster's name, an unknown project, the same submission with another user or project, or after its end, a
    /// broken store.
    pub async fn open_for_head(&self, head: &Head, request: &OpenSession) -> Result<HeadOpened, Refusal> {
        self.state_for_head(head, request).await.inspect_err(|refusal| {
            self.parts.audit.note(Event::Refused(Refused {
                cluster: Some(&head.cluster),
                by: Some("its head"),
                peer: head.peer.map(|peer| peer.to_string()),
                project: Some(&request.project_id),
                head_session: Some(&request.session_id),
                refusal: Some(refusal),
                ..Refused::default()
            }));
        })
    }

    async fn state_for_head(&self, head: &Head, request: &OpenSession) -> Result<HeadOpened, Refusal> {
        self.require_own(head, &request.cluster_name)?;
        check_text("sessionId", &request.session_id, 128, "._-")?;
        if matches!(&*request.session_id, "." | "..") {
            return Err(Refusal::BadRequest("sessionId must not be . or .., which no path can hold".into()));
        }
        check_text("submittedTime", &request.submitted_time, 64, "._-:+ ")?;
        self.roles_on(&request.project_id, &head.cluster)?;
        let (user, project) = (Some(&request.cluster_user), Some(&request.project_id));
        self.require_unblocked(Asking { user, project, ..Asking::default() }).await?;
        let token = JobToken::mint().map_err(|e| Refusal::Internal(format!("no random bits for a token: {e}")))?;
        let store = &self.parts.store;
        let mut before = store.find_head(std::slice::from_ref(&head.cluster), &request.session_id).await?;
        before = before.filter(|session| session.status == SessionStatus::Active);
        // Before the new one is there: cut off between the two, the head says it again, and would find the new one only.
        if let Some(old) = before.take_if(|old| supersedes(request, old)) {
            self.end(old.id, SessionStatus::Completed, ANEW).await?;
        }
        let opened = self
            .open_noted(Session {
                id: SessionId::random(),
                cluster: head.cluster.clone(),
                user: request.cluster_user.clone(),
                uid: None,
                project: request.project_id.clone(),
                partition: None,
                nodes: vec![],
                origin: Origin::Head {
                    head_session: request.session_id.clone(),
                    submitted: request.submitted_time.clone(),
                    token: token.hash(),
                },
                opened: self.now(),
                ended: None,
                status: SessionStatus::Active,
                why: None,
            })
            .await?;
        let session = match opened {
            Opened::New(session) => session,
            Opened::Existing(session) => {
                self.renew_token(head, &session, request, token.hash()).await?;
                self.parts.audit.record(Event::TokenReplaced { session: &session, peer: head.peer }).await?;
                return Ok(HeadOpened { session: session.id, token: Secret::new(token.expose().to_owned()) });
            }
        };
        self.parts.audit.record(Event::SessionOpened { session: &session, node: None, peer: head.peer }).await?;
        if let Some(before) = before {
            self.end(before.id, SessionStatus::Completed, ANEW).await?;
        }
        tracing::info!(
            session = %session.id, cluster = %session.cluster, head_session = %request.session_id, user = %session.user.field(),
            project = %session.project.field(), "session opened by a head"
        );
        Ok(HeadOpened { session: session.id, token: Secret::new(token.expose().to_owned()) })
    }

    /// The head says once more what it said: only the token is new.
    async fn renew_token(
        &self,
        head: &Head,
        session: &Session,
        request: &OpenSession,
        token: TokenHash,
    ) -> Result<(), Refusal> {
        require_active(session)?;
        if session.user != request.cluster_user || session.project != request.project_id {
            return Err(Refusal::NotAllowed {
                who: format!("the head of cluster {}", head.cluster),
                why: format!(
                    "session {} submitted at {} is open for user {} in project {}; send a newer submittedTime to open another",
                    request.session_id, request.submitted_time, session.user, session.project
                ),
            });
        }
        if self.parts.store.replace_token(session.id, token).await?.is_none() {
            // It ended a moment ago.
            let ended = self.parts.store.get(session.id).await?;
            ended.as_ref().map_or(Ok(()), require_active)?;
            return Err(unknown(&request.session_id));
        }
        tracing::info!(
            session = %session.id, cluster = %session.cluster, head_session = %request.session_id, user = %session.user.field(),
            project = %session.project.field(), "a head opened its session again; it has a new token"
        );
        Ok(())
    }

    fn require_own(&self, head: &Head, cluster: &ClusterName) -> Result<(), Refusal> {
        if *cluster == head.cluster {
            return Ok(());
        }
        Err(Refusal::NotAllowed {
            who: format!("the head of cluster {}", head.cluster),
            why: format!("cluster {cluster} is another; its own head speaks for it"),
        })
    }

    /// A head sets a session's status (both v1 forms of PUT). Both ends are final; ACTIVE on an ended session is
    /// refused, on an active one a no-op.
    ///
    /// # Errors
    /// An unknown session, or one that ended otherwise.
    pub async fn set_status_for_head(
        &self,
        head: &Head,
        head_session: &str,
        cluster: Option<&ClusterName>,
        status: SessionStatus,
    ) -> Result<(), Refusal> {
        if let Some(cluster) = cluster {
            self.require_own(head, cluster)?;
        }
        let found = self.parts.store.find_head(std::slice::from_ref(&head.cluster), head_session).await?;
        let session = found.ok_or_else(|| unknown(head_session))?;
        if status == SessionStatus::Active {
            return require_active(&session);
        }
        let why = format!("the head of cluster {} said {}", head.cluster, status.as_str());
        match self.end_as_told(session.id, status, &why).await? {
            Ended::Now(_) => Ok(()),
            Ended::Before(ended) if ended.status == status => Ok(()),
            Ended::Before(ended) => require_active(&ended),
            Ended::Unknown => Err(unknown(head_session)),
        }
    }

    /// The v1 GET: credentials of a head's session for whoever bears its token. `claimed` is the caller's
    /// `roleSessionName`: it goes to the audit log and nowhere else, as does the address of `peer`.
    ///
    /// # Errors
    /// A token that is not that of the session, whether or not there is one; an ended session; AWS.
    pub async fn credentials_for_token(
        &self,
        token: TokenHash,
        head_session: &str,
        cluster: &ClusterName,
        project: &ProjectId,
        claimed: Option<&str>,
        peer: Option<IpAddr>,
    ) -> Result<CredentialsResponse, Refusal> {
        let claimed = claimed.map(|c| c.chars().take(128).collect::<String>());
        let result = self
            .vend_to_bearer(token, head_session, cluster, project, To::Bearer { claimed: claimed.as_deref(), peer })
            .await;
        result.inspect_err(|refusal| {
            // At debug: the server's bounded log has every refusal.
            tracing::debug!(
                head_session, %cluster, project = %project.field(), claimed, code = refusal.code(),
                why = %refusal, "credentials refused to a session token"
            );
            self.parts.audit.note(Event::Refused(Refused {
                // What is said before a token was found to be a session's.
                stranger: matches!(refusal, Refusal::Unauthenticated(_)),
                by: Some("the bearer of a session token"),
                peer: peer.map(|peer| peer.to_string()),
                cluster: Some(cluster),
                project: Some(project),
                head_session: Some(head_session),
                refusal: Some(refusal),
                ..Refused::default()
            }));
        })
    }

    async fn vend_to_bearer(
        &self,
        bearer: TokenHash,
        head_session: &str,
        cluster: &ClusterName,
        project: &ProjectId,
        to: To<'_>,
    ) -> Result<CredentialsResponse, Refusal> {
        let cluster = self.spelled(cluster);
        let Some(session) = self.parts.store.find_head(std::slice::from_ref(&cluster), head_session).await? else {
            return Err(wrong_token(head_session));
        };
        // TokenHash compares in constant time. Nothing about the session is told before it matches.
        if !matches!(&session.origin, Origin::Head { token, .. } if *token == bearer) {
            return Err(wrong_token(head_session));
        }
        if session.project != *project {
            return Err(Refusal::NotAllowed {
                who: format!("the token of session {head_session}"),
                why: format!("the session is of project {}, the path says {project}", session.project),
            });
        }
        require_active(&session)?;
        let roles = self.roles_on(&session.project, &session.cluster)?;
        let role = RoleName::default();
        let config = roles.get(&role).cloned().ok_or_else(|| Refusal::UnknownRole {
            project: session.project.clone(),
            role: role.clone(),
            has: names(&roles),
        })?;
        let named = self.parts.names.of(&session, &config, None);
        self.issue(Want { session: Arc::new(session), role, config, named, min_life_seconds: 0 }, to).await
    }
}

/// Whether the request is surely of a later submission than the session: both are times of the head's own format. An
/// earlier one that comes late must not end what came after it.
fn supersedes(request: &OpenSession, session: &Session) -> bool {
    let Origin::Head { submitted, .. } = &session.origin else { return false };
    submitted.len() == request.submitted_time.len() && *submitted < request.submitted_time
}

/// The one answer to a token that is not that of the session: whether there is such a session, opened by a head or by a
/// node, or such a cluster, is nobody's to learn.
pub(crate) fn wrong_token(head_session: &str) -> Refusal {
    let shown: String = head_session.chars().take(80).collect();
    Refusal::Unauthenticated(format!("the token is not that of session {shown:?}"))
}

fn unknown(head_session: &str) -> Refusal {
    Refusal::UnknownSession(format!("{:?}", head_session.chars().take(80).collect::<String>()))
}
