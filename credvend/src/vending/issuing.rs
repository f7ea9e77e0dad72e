//! One AssumeRole for however many ask at the same time, recorded before anybody gets its answer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration as Wait;

use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::node_api::CredentialsResponse;
use credd_protocol::{ClusterName, ProjectId, RoleArn, RoleName, SessionId, UserName};
use time::{Duration, OffsetDateTime};
use tokio::time::Instant;

use super::blocking::Asking;
use super::revoking::dying::{alive_from, may_kill, names_of};
use super::role_answers::RoleAnswers;
use super::{NO_REASON, Parts, Vending, fresh, require_active};
use crate::audit::{Event, To};
use crate::clock::Clock;
use crate::projects::Role;
use crate::refusal::Refusal;
use crate::session_name::{self, Named};
use crate::source::{AssumeRequest, Source, SourceError};
use crate::store::{Issuance, Origin, Session, Store, StoreError};

/// The most documents that are kept for repeated questions (about 2 KB each): a job of 10,000 nodes that have names of
/// their own, and others beside it.
const MAX_KEPT: usize = 32_768;

/// So long a caller waits for an answer. Then it is told when to come again: an SDK waits for 2 s as a rule, and credd, which
/// stands between, has others who wait for the same.
const PATIENCE: Wait = Wait::from_millis(1500);

/// Who waited longer for a turn looks whether it is still worth while.
const LONG: Wait = Wait::from_secs(1);

/// A refusal is not asked for again for this long, however many jobs the user has: a misconfigured project must not storm.
const REFUSED_FOR: Duration = Duration::seconds(10);

/// AWS' clock, as its expiries tell it, is believed within this distance from ours.
const SKEW: Duration = Duration::minutes(5);

/// The most refusals that are remembered.
const MAX_REFUSED: usize = 1024;

/// Whose credentials are wanted.
pub(super) struct Want {
    pub(super) session: Arc<Session>,
    pub(super) role: RoleName,
    pub(super) config: Role,
    /// Its name in AWS. Nodes that share one share what is issued under it.
    pub(super) named: Named,
    pub(super) min_life_seconds: u32,
}

pub(super) struct Issuing {
    source: Arc<dyn Source>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    audit: Arc<crate::audit::Log>,
    kept: Mutex<Kept>,
    refused: Mutex<HashMap<Refusee, (OffsetDateTime, String)>>,
    role_answers: Arc<RoleAnswers>,
}

type Place = (RoleName, String);

/// Whom a refusal is about. Not the role alone: an upstream may keep one user out, and a trust policy may ask for one's source
/// identity, tags or name; what is said of one is neither true of the others nor meant for them.
type Refusee = (RoleArn, ClusterName, UserName, ProjectId);

fn refusee(want: &Want) -> Refusee {
    let session = &want.session;
    (want.config.arn.clone(), session.cluster.clone(), session.user.clone(), session.project.clone())
}

#[derive(Default)]
struct Kept {
    sessions: HashMap<SessionId, HashMap<Place, Arc<Slot>>>,
    count: usize,
}

/// What is known of one (session, role, name). Whoever holds `last` asks; the others wait for it.
#[derive(Default)]
pub(super) struct Slot {
    attempts: AtomicU64,
    /// When the turn of the one who asks will probably come.
    expected: Mutex<Option<Instant>>,
    last: tokio::sync::Mutex<Option<Result<(Role, CredentialsResponse), Failure>>>,
}

impl Slot {
    fn expected(&self) -> MutexGuard<'_, Option<Instant>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is no answer yet.
    fn busy(&self, role: &RoleArn) -> Refusal {
        let turn = self.expected().map_or(Wait::ZERO, |at| at.saturating_duration_since(Instant::now()));
        // AWS needs a moment, too.
        let again_in = turn + Wait::from_secs(1);
        let why = if turn.is_zero() {
            format!("AWS STS has been asked for credentials of {role} and has not answered yet; ask again in a moment")
        } else {
            let seconds = again_in.as_secs();
            format!("the request for credentials of {role} waits for its turn at AWS STS; ask again in {seconds} s")
        };
        Refusal::Busy { why, again_in }
    }
}

/// A failure that all who waited for the attempt share.
#[derive(Debug, Clone)]
enum Failure {
    Source(SourceError),
    Unavailable(String),
    Broken(String),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Failure::Unavailable(error.to_string()),
            _ => Failure::Broken(error.to_string()),
        }
    }
}

impl Failure {
    fn refusal(self, role: &RoleArn) -> Refusal {
        match self {
            Failure::Source(error) => Refusal::from_source(role, error),
            Failure::Unavailable(why) => Refusal::Unavailable(why),
            Failure::Broken(why) => Refusal::Internal(why),
        }
    }
}

impl Vending {
    /// Credentials for an ACTIVE session whose asker was checked.
    pub(super) async fn issue(&self, want: Want, to: To<'_>) -> Result<CredentialsResponse, Refusal> {
        let role = want.role.clone();
        let (session, arn) = (want.session.clone(), want.config.arn.clone());
        let id = session.id;
        let node = match to {
            To::Node { node, .. } => Some((&session.cluster, node)),
            To::Bearer { .. } => None,
        };
        let asking = Asking { user: Some(&session.user), project: Some(&session.project), node, role: Some(&arn) };
        self.require_unblocked(asking).await?;
        let issuing = self.issuing.clone();
        let slot = issuing.slot(&want);
        let asked = slot.clone();
        // A task of its own: a caller that gives up, or is told to come again, wastes no AssumeRole: its next try finds the
        // answer.
        let asking = tokio::spawn(async move { issuing.get(asked, want).await });
        let Ok(response) = tokio::time::timeout(PATIENCE, asking).await else { return Err(slot.busy(&arn)) };
        let response =
            response.map_err(|e| Refusal::Internal(format!("issuing for session {id} ended abnormally: {e}")))?;
        let response = match response {
            Ok(response) => response,
            Err(Failure::Source(SourceError::Ended(why))) => {
                self.end(id, SessionStatus::Invalidated, &why).await?;
                let ended = self.parts.store.get(id).await?;
                ended.as_ref().map_or(Ok(()), require_active)?;
                return Err(Refusal::UnknownSession(id.to_string()));
            }
            Err(failure) => return Err(failure.refusal(&arn)),
        };
        // The issuance is recorded; if the session ended meanwhile, a revocation finds it there, and here nobody gets it.
        let (status, why) = self.status(id).await?.ok_or_else(|| Refusal::UnknownSession(id.to_string()))?;
        if status != SessionStatus::Active {
            self.issuing.forget(id);
            let why = why.unwrap_or_else(|| NO_REASON.into());
            return Err(Refusal::SessionEnded { session: id, status: status.as_str(), why });
        }
        let named = self.parts.source.names_sessions();
        let delivered = Event::CredentialsDelivered { session: &session, role: &role, to, document: &response, named };
        if self.parts.audit.deliver(delivered).await?
            && let To::Bearer { claimed, peer } = to
        {
            tracing::info!(
                session = %id, cluster = %session.cluster, user = %session.user.field(), project = %session.project.field(),
                head_session = session.origin.head_session(), peer = peer.map(tracing::field::display), claimed,
                session_name = response.session_name,
                "credentials served to a session token"
            );
        }
        Ok(response)
    }
}

impl Issuing {
    pub(super) fn new(parts: &Parts, role_answers: Arc<RoleAnswers>) -> Self {
        Issuing {
            role_answers,
            source: parts.source.clone(),
            store: parts.store.clone(),
            clock: parts.clock.clone(),
            audit: parts.audit.clone(),
            kept: Mutex::default(),
            refused: Mutex::default(),
        }
    }

    /// Drops what is kept for a session.
    pub(super) fn forget(&self, session: SessionId) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = kept.sessions.remove(&session).map_or(0, |places| places.len());
        kept.count -= gone;
    }

    fn slot(&self, want: &Want) -> Arc<Slot> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (want.role.clone(), want.named.name.clone());
        if let Some(slot) = kept.sessions.get(&want.session.id).and_then(|places| places.get(&place)) {
            return slot.clone();
        }
        if kept.count >= MAX_KEPT {
            // Some eighth goes, but nothing that is being asked for: two would ask at once.
            let mut excess = MAX_KEPT / 8;
            kept.sessions.retain(|_, places| {
                places.retain(|_, slot| {
                    let stays = excess == 0 || Arc::strong_count(slot) > 1;
                    excess -= usize::from(!stays);
                    stays
                });
                !places.is_empty()
            });
            kept.count = kept.sessions.values().map(HashMap::len).sum();
        }
        let slot = Arc::new(Slot::default());
        kept.sessions.entry(want.session.id).or_default().insert(place, slot.clone());
        kept.count += 1;
        slot
    }

    async fn get(&self, slot: Arc<Slot>, want: Want) -> Result<CredentialsResponse, Failure> {
        let seen = slot.attempts.load(Ordering::Acquire);
        let mut last = slot.last.lock().await;
        match &*last {
            Some(Ok((config, response))) if self.still_good(&want, config, response) => return Ok(response.clone()),
            // An attempt that ended while we waited for it was ours too.
            Some(Err(failure)) if slot.attempts.load(Ordering::Acquire) > seen => return Err(failure.clone()),
            _ => {}
        }
        let result = self.assume(&slot, &want).await;
        *slot.expected() = None;
        slot.attempts.fetch_add(1, Ordering::AcqRel);
        *last = Some(match &result {
            Ok(response) => Ok((want.config.clone(), response.clone())),
            Err(failure) => Err(failure.clone()),
        });
        result
    }

    /// Whether a kept document does for this question: it has the asked-for life, and at least two thirds of its own, so
    /// that one who refreshes ahead gets a new one. What was issued just now does in any case.
    fn still_good(&self, want: &Want, config: &Role, kept: &CredentialsResponse) -> bool {
        let whole = kept.credentials.expiration - kept.issued;
        let left = kept.credentials.expiration - self.clock.now();
        let asked = Duration::seconds(want.min_life_seconds.into());
        *config == want.config && left >= asked.max(whole * 2 / 3).min(whole * 9 / 10)
    }

    /// Waits for the project's turn, unless it is clear that nothing would come of it.
    async fn turn(&self, slot: &Slot, want: &Want) -> Result<(), Failure> {
        let (session, queued) = (&want.session, Instant::now());
        self.remembered_refusal(want, self.clock.now())?;
        *slot.expected() = Some(queued + self.source.delay(&session.project));
        self.source.turn(&session.project).await.map_err(Failure::Source)?;
        if queued.elapsed() > LONG {
            // Much may have happened. The refusal itself, if there is one, is for the next who asks.
            self.remembered_refusal(want, self.clock.now())?;
            if self.store.status(session.id).await?.is_none_or(|(status, _)| status != SessionStatus::Active) {
                return Err(Failure::Unavailable(format!("session {} ended while it waited for AWS", session.id)));
            }
        }
        Ok(())
    }

    async fn assume(&self, slot: &Slot, want: &Want) -> Result<CredentialsResponse, Failure> {
        let (session, config) = (&want.session, &want.config);
        let session_name = want.named.name.clone();
        self.turn(slot, want).await?;
        let source_identity = config.source_identity.then(|| session_name::source_identity(&session.user));
        let request = AssumeRequest {
            session: session.id,
            project: session.project.clone(),
            role_arn: config.arn.clone(),
            session_name: session_name.clone(),
            duration_seconds: config.duration_seconds,
            source_identity: source_identity.clone(),
            tags: if config.session_tags { tags(session) } else { vec![] },
        };
        let assumed = self.source.assume(&request).await.map_err(|error| {
            if let SourceError::Refused(why) = &error {
                self.remember_refusal(want, why);
                self.role_answers.refused(&session.project, &want.role, self.clock.now(), why);
            }
            Failure::Source(error)
        })?;
        let credentials = assumed.credentials;
        self.role_answers.issued(&session.project, &want.role, self.clock.now());
        if credentials.expiration <= self.clock.now() {
            return Err(Failure::Unavailable(format!(
                "AWS gave credentials of {} that have expired already; compare credvend's clock",
                config.arn
            )));
        }
        // By AWS' own clock, which its Denies go by.
        let by_expiry = credentials.expiration - Duration::seconds(config.duration_seconds.into());
        let issued = if (by_expiry - assumed.issued).abs() <= SKEW { by_expiry } else { assumed.issued };
        let issuance = Issuance {
            session: session.id,
            user: session.user.clone(),
            cluster: session.cluster.clone(),
            project: session.project.clone(),
            role: want.role.clone(),
            role_arn: credentials.role_arn.clone(),
            role_id: assumed.role_id,
            session_name: session_name.clone(),
            source_identity: source_identity.clone(),
            key_id: credentials.access_key_id.clone(),
            node: want.named.node.clone(),
            issued,
            expires: credentials.expiration,
        };
        self.store.record_issuance(issuance.clone()).await?;
        let issued = Event::CredentialsIssued { session, issuance: &issuance };
        self.audit.record(issued).await.map_err(|e| Failure::Unavailable(e.to_string()))?;
        // A revocation that came meanwhile killed these: who gets them would be refused by AWS until its next refresh.
        self.require_alive(&issuance).await?;
        tracing::info!(
            session = %session.id, cluster = %session.cluster, user = %session.user.field(), project = %session.project.field(),
            job = session.origin.job(), restart = session.origin.restart(), head_session = session.origin.head_session(),
            node = want.named.node.as_ref().map(|n| n.as_str()), role = %want.role,
            role_arn = %credentials.role_arn, session_name, key_id = credentials.access_key_id, expires = %credentials.expiration,
            "credentials issued"
        );
        Ok(CredentialsResponse { credentials, session_name, issued: assumed.issued })
    }

    /// A Deny kills what was issued under a name before some moment, which may lie a second or two after the last of what it
    /// was made for. Both are AWS' times.
    async fn require_alive(&self, issuance: &Issuance) -> Result<(), Failure> {
        let entries = self.store.revocations_of(&issuance.role_arn, &names_of(issuance)).await?;
        let until = entries.iter().filter(|entry| may_kill(entry, issuance)).map(alive_from).max();
        match until {
            Some(until) => Err(Failure::Unavailable(format!(
                "what was issued as {} was revoked a moment ago; ask again in {} s",
                issuance.session_name,
                (until - issuance.issued).whole_seconds() + 1
            ))),
            None => Ok(()),
        }
    }

    fn remembered_refusal(&self, want: &Want, now: OffsetDateTime) -> Result<(), Failure> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match refused.get(&refusee(want)) {
            Some((at, why)) if fresh(*at, now, REFUSED_FOR) => Err(Failure::Source(SourceError::Refused(why.clone()))),
            _ => Ok(()),
        }
    }

    fn remember_refusal(&self, want: &Want, why: &str) {
        let now = self.clock.now();
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() >= MAX_REFUSED {
            refused.retain(|_, (at, _)| fresh(*at, now, REFUSED_FOR));
        }
        if refused.len() < MAX_REFUSED {
            refused.insert(refusee(want), (now, why.to_owned()));
        }
    }
}

fn tags(session: &Session) -> Vec<(String, String)> {
    let job = match &session.origin {
        Origin::Slurm(run) => run.job.to_string(),
        Origin::Head { head_session, .. } => head_session.clone(),
    };
    [
        ("cluster", session.cluster.as_str()),
        ("user", session.user.as_str()),
        ("project", session.project.as_str()),
        ("job", &job),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), session_name::tag_value(value)))
    .collect()
}

#[cfg(test)]
impl Issuing {
    /// Some slot, while there is one.
    pub(super) fn any_slot(&self) -> Arc<Slot> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.sessions.values().flat_map(HashMap::values).next().expect("there is one").clone()
    }

    /// How many hold a place's slot: those who ask and those who wait for them.
    pub(super) fn waiting(&self) -> usize {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.sessions.values().flat_map(HashMap::values).map(|slot| Arc::strong_count(slot) - 1).sum()
    }
}
