//! The source seam's second side: a central vending API with the wire format of the IAM Credentials API (v1), which
//! stands between this cluster's credvend and AWS. It may be another credvend, or the original deployment of the IAM
//! Credentials API (v1) behind API Gateway.
//!
//! A session here is a session there: opened with the head's secret when credentials are first asked for, and closed when
//! it ends. The upstream's tokens are in this process' memory and nowhere else; after a restart they are asked for anew.
//!
//! | file | what |
//! |---|---|
//! | `client` | the four verbs over HTTP |
//! | `answer` | what the answers mean |
//! | `ends` | tells the upstream of ends and revocations until it has heard |
//!
//! What of a session is the same on both sides: its id there is the job's number and the beginning of its UUID here, and its
//! `submittedTime` is when it was opened here. So the same question after a restart is the same submission: a credvend gives
//! the same session with another token, or says that it is over. The original deployment of the IAM Credentials API (v1)
//! gives no token twice; there a newer `submittedTime` is sent, and the newest counts.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use credd_protocol::credentials_api_v1::{OpenSession, SessionStatus};
use credd_protocol::{ClusterName, ProjectId, Secret, SessionId, UserName};
use serde::{Deserialize, Serialize};
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{Duration, OffsetDateTime, UtcOffset};

use super::{AssumeRequest, Assumed, Revoked, Source, SourceError};
use crate::clock::Clock;
use crate::projects;
use crate::store::{Origin, Session, Store, StoreError};
use answer::Trouble;
use client::Client;
use ends::Ends;

mod answer;
mod client;
mod ends;

pub use client::{Known, Timeouts};

/// The kind of the notes about sessions that are open at the upstream, by session.
const OPEN: &str = "upstream-session";

/// How often a token that the upstream does not take is replaced for one question: other replicas may open the same session
/// at the same time, and an API Gateway may not yet know the token that was just given.
const TOKENS: u32 = 3;

/// How many submissions are tried for one opening, each a second newer.
const SUBMISSIONS: u32 = 4;

/// The most sessions whose tokens are kept; those of others are asked for anew.
const MAX_HELD: usize = 262_144;

/// An upstream as the configuration has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `https://HOST[:PORT][/STAGE]`.
    pub url: String,
    /// How it is recognized.
    pub known: Known,
    /// The head's secret.
    pub head_secret_file: PathBuf,
    /// The name that the upstream has for the cluster; `None`: the cluster's own.
    pub cluster: Option<ClusterName>,
    /// The clusters that are served here.
    pub clusters: Vec<ClusterName>,
    /// Deadlines.
    pub timeouts: Timeouts,
}

/// What is remembered of a session that may be open at the upstream: enough to end it there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct OpenThere {
    /// Its id there.
    head_session: String,
    cluster: ClusterName,
    user: UserName,
    /// `submittedTime` as it was sent last.
    submitted: String,
}

/// A session's token at the upstream. Whoever holds the lock opens; the others wait for it.
#[derive(Default)]
struct Held {
    token: Option<Secret>,
    /// Counts the tokens.
    number: u64,
}

/// The upstream.
pub struct Upstream {
    client: Client,
    options: Options,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    held: Mutex<HashMap<SessionId, Arc<tokio::sync::Mutex<Held>>>>,
    ends: Ends,
}

impl Upstream {
    /// Nothing is sent yet. [`Upstream::deliver`] must run beside it.
    ///
    /// # Errors
    /// A URL or authorities that cannot be used.
    pub fn new(options: Options, store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Upstream {
            client: client(&options)?,
            options,
            store,
            clock,
            held: Mutex::default(),
            ends: Ends::default(),
        }))
    }

    /// The lock of a session's token.
    fn held(&self, id: SessionId) -> Arc<tokio::sync::Mutex<Held>> {
        let mut held = self.all_held();
        if held.len() >= MAX_HELD && !held.contains_key(&id) {
            held.retain(|_, of| Arc::strong_count(of) > 1);
        }
        held.entry(id).or_default().clone()
    }

    fn all_held(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<tokio::sync::Mutex<Held>>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cluster<'a>(&'a self, own: &'a ClusterName) -> &'a ClusterName {
        self.options.cluster.as_ref().unwrap_or(own)
    }

    /// One question, with as many openings as it needs.
    async fn ask(&self, request: &AssumeRequest) -> Result<Assumed, SourceError> {
        let session = self.active(request.session).await?;
        let wanted = (!projects::is_upstreams(&request.role_arn)).then_some(&request.role_arn);
        let (cluster, head_session) = (self.cluster(&session.cluster), head_session(&session));
        let held = self.held(session.id);
        let (mut stale, mut why) = (None, String::new());
        for attempt in 0..TOKENS {
            let (token, number) = self.token(&session, &held, stale).await?;
            if attempt > 0 {
                // An API Gateway finds a token a moment after it was given, and denies it for minutes once it did not.
                tokio::time::sleep(std::time::Duration::from_millis(200) * attempt).await;
            }
            let issued = self.clock.now();
            let answer =
                self.client.credentials(&token, &head_session, cluster, &session.project, &request.session_name).await;
            match answer {
                Ok(body) => {
                    let credentials = answer::credentials(&body, wanted, self.clock.now()).map_err(|why| {
                        self.passing(&format!("its answer for project {} cannot be used: {why}", session.project))
                    })?;
                    // Whose session it is in AWS, the upstream alone knows.
                    return Ok(Assumed { credentials, role_id: String::new(), issued });
                }
                Err(Trouble::NotAccepted(text) | Trouble::Unknown(text)) => (stale, why) = (Some(number), text),
                Err(trouble) => return Err(self.explain(&session, trouble)),
            }
        }
        Err(self.passing(&format!("it does not take the session token that it has just given ({why})")))
    }

    async fn active(&self, id: SessionId) -> Result<Session, SourceError> {
        let session = self.store.get(id).await.map_err(unavailable)?;
        session
            .filter(|session| session.status == SessionStatus::Active)
            .ok_or_else(|| SourceError::Unavailable(format!("session {id} has ended here")))
    }

    /// The session's token at the upstream, another one than that of number `stale`.
    async fn token(
        &self,
        session: &Session,
        held: &tokio::sync::Mutex<Held>,
        stale: Option<u64>,
    ) -> Result<(Secret, u64), SourceError> {
        let mut held = held.lock().await;
        if let Some(token) = &held.token
            && stale != Some(held.number)
        {
            return Ok((token.clone(), held.number));
        }
        held.token = None;
        let token = self.open(session).await?;
        held.number += 1;
        held.token = Some(token.clone());
        Ok((token, held.number))
    }

    /// Opens the session there, or opens it again. The note is written first: what may be open there is ended there, whatever
    /// happens here.
    async fn open(&self, session: &Session) -> Result<Secret, SourceError> {
        self.revoked_first(&session.user).await?;
        let key = session.id.to_string();
        let noted = self.store.get_note(OPEN, &key).await.map_err(unavailable)?;
        let mut there = noted.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_else(|| OpenThere {
            head_session: head_session(session),
            cluster: self.cluster(&session.cluster).clone(),
            user: session.user.clone(),
            submitted: submitted_time(session.opened),
        });
        for _ in 0..SUBMISSIONS {
            let text = serde_json::to_string(&there).map_err(|e| SourceError::Unavailable(e.to_string()))?;
            self.store.put_note(OPEN, &key, &text).await.map_err(unavailable)?;
            let request = OpenSession {
                session_id: there.head_session.clone(),
                project_id: session.project.clone(),
                cluster_name: there.cluster.clone(),
                cluster_user: session.user.clone(),
                submitted_time: there.submitted.clone(),
            };
            match self.client.open(&request).await {
                Ok(body) => {
                    let token = answer::token(&body).map_err(|why| self.passing(&why))?;
                    // It may have ended here while it was being opened there, and its end been told before.
                    if let Err(ended) = self.active(session.id).await {
                        self.ends.add(session.id);
                        return Err(ended);
                    }
                    tracing::info!(
                        session = %session.id, cluster = %session.cluster, user = %session.user.field(),
                        project = %session.project.field(), upstream_session = there.head_session,
                        submitted = there.submitted, "session opened at the upstream"
                    );
                    return Ok(token);
                }
                Err(Trouble::Exists(_)) => there.submitted = newer(&there.submitted, self.clock.now()),
                Err(Trouble::NotAccepted(why)) => return Err(self.passing(&self.secret_refused(&why))),
                Err(trouble) => return Err(self.explain(session, trouble)),
            }
        }
        Err(self.passing("it has had every submission of this session already"))
    }

    fn secret_refused(&self, why: &str) -> String {
        format!(
            "it does not take the head secret in {} for cluster {} ({why}); compare it with what the upstream has",
            self.options.head_secret_file.display(),
            self.options.cluster.as_ref().or(self.options.clusters.first()).map_or("?", |name| name.as_str())
        )
    }

    fn explain(&self, session: &Session, trouble: Trouble) -> SourceError {
        let (url, project) = (self.client.url(), &session.project);
        match trouble {
            Trouble::Ended(why) => SourceError::Ended(format!("the upstream {url} has ended it: {why}")),
            Trouble::Passing(why) => self.passing(&why),
            Trouble::NoRoute(why) => SourceError::Refused(format!(
                "the upstream {url} has no such path ({why}); is the stage in [upstream] url right?"
            )),
            Trouble::Refused(why) | Trouble::NotAccepted(why) | Trouble::Unknown(why) | Trouble::Exists(why) => {
                SourceError::Refused(format!(
                    "the upstream {url} gives nothing to project {project}: {why}; its administrators decide that"
                ))
            }
        }
    }

    fn passing(&self, why: &str) -> SourceError {
        SourceError::Unavailable(format!("the upstream {}: {why}", self.client.url()))
    }
}

/// Who credvend is to an upstream, asked with a harmless question: for `check-config`, which has no store.
///
/// # Errors
/// It cannot be reached, or does not take the head's secret.
pub async fn identity(options: &Options) -> Result<String, SourceError> {
    let client = client(options).map_err(|e| SourceError::Refused(format!("{e:#}")))?;
    probe(&client, options).await
}

fn client(options: &Options) -> anyhow::Result<Client> {
    Client::new(&options.url, &options.known, options.head_secret_file.clone(), options.timeouts)
}

/// Says ACTIVE of a session that cannot be: whoever answers that there is none has taken the secret.
async fn probe(client: &Client, options: &Options) -> Result<String, SourceError> {
    let url = client.url();
    let Some(cluster) = options.cluster.as_ref().or(options.clusters.first()) else {
        return Err(SourceError::Refused("no cluster is configured".into()));
    };
    let nobody = format!("probe-{}", uuid::Uuid::new_v4().simple());
    let asked = client.set_status(&nobody, cluster, SessionStatus::Active);
    let answer = tokio::time::timeout(client.timeouts().total, asked).await;
    match answer.unwrap_or_else(|_| Err(Trouble::Passing("it does not answer".into()))) {
        Ok(()) | Err(Trouble::Unknown(_)) => Ok(format!("the head of cluster {cluster} at {url}")),
        Err(Trouble::NotAccepted(why)) => Err(SourceError::Unavailable(format!(
            "the upstream {url} does not take the head secret in {} for cluster {cluster} ({why})",
            options.head_secret_file.display()
        ))),
        Err(Trouble::NoRoute(why)) => Err(SourceError::Unavailable(format!(
            "the upstream {url} has no vending API under this URL ({why}); is its stage in [upstream] url?"
        ))),
        Err(Trouble::Passing(why) | Trouble::Refused(why) | Trouble::Ended(why) | Trouble::Exists(why)) => {
            Err(SourceError::Unavailable(format!("the upstream {url}: {why}")))
        }
    }
}

fn unavailable(error: StoreError) -> SourceError {
    SourceError::Unavailable(error.to_string())
}

/// A session's id at the upstream: readable in its logs, never that of another session, and of the few characters that the
/// authorizer of the original deployment lets pass.
fn head_session(session: &Session) -> String {
    let own: String = match &session.origin {
        Origin::Slurm(run) => run.job.to_string(),
        Origin::Head { head_session, .. } => {
            head_session.chars().take(64).map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect()
        }
    };
    let uuid = session.id.0.simple().to_string();
    format!("{own}-{}", &uuid[..12])
}

/// The only form that the original IAM Credentials API parses: whole seconds without a zone. UTC.
const SUBMITTED: &[BorrowedFormatItem<'_>] =
    format_description!(version = 2, "[year]-[month]-[day]T[hour]:[minute]:[second]");

/// `submittedTime` as every implementation of the API reads it.
pub(crate) fn submitted_time(at: OffsetDateTime) -> String {
    at.to_offset(UtcOffset::UTC).format(SUBMITTED).unwrap_or_default()
}

/// A submission that counts as newer than `last`, also where the clock was set back.
fn newer(last: &str, now: OffsetDateTime) -> String {
    let last = time::PrimitiveDateTime::parse(last, SUBMITTED).map_or(now, time::PrimitiveDateTime::assume_utc);
    submitted_time(now.max(last + Duration::SECOND))
}

#[async_trait]
impl Source for Upstream {
    /// The upstream limits its own rate, and says so.
    async fn turn(&self, _: &ProjectId) -> Result<(), SourceError> {
        Ok(())
    }

    fn delay(&self, _: &ProjectId) -> std::time::Duration {
        std::time::Duration::ZERO
    }

    async fn assume(&self, request: &AssumeRequest) -> Result<Assumed, SourceError> {
        let total = self.client.timeouts().total;
        let late = |_| Err(self.passing(&format!("it did not answer within {total:?}; it is asked again")));
        tokio::time::timeout(total, self.ask(request)).await.unwrap_or_else(late)
    }

    async fn identity(&self) -> Result<String, SourceError> {
        match (probe(&self.client, &self.options).await, self.ends.waiting()) {
            (Err(SourceError::Unavailable(why)), waiting) if waiting > 0 => Err(SourceError::Unavailable(format!(
                "{why}; {waiting} ended sessions and revoked users wait to be told there"
            ))),
            (result, _) => result,
        }
    }

    fn names_sessions(&self) -> bool {
        false
    }

    fn ended(&self, session: &Session) {
        self.all_held().remove(&session.id);
        self.ends.add(session.id);
    }

    async fn revoke_user(&self, user: &UserName) -> Option<Result<Revoked, String>> {
        Some(self.revoke(user).await)
    }

    fn revoked_by_pattern(&self) -> Vec<UserName> {
        self.ends.revoked_late()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::{T0, of_head, of_job};

    #[test]
    fn a_session_has_an_id_of_its_own_there() {
        let (one, two) = (of_job(4711, 0), of_job(4711, 1));
        assert_ne!(head_session(&one), head_session(&two));
        assert!(head_session(&one).starts_with("4711-"));
        let odd = head_session(&of_head("a_b+c d", "2026-01-01"));
        assert!(odd.starts_with("a-b-c-d-") && odd.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b)));
    }

    #[test]
    fn a_submission_is_whole_seconds_and_ever_newer() {
        assert_eq!(submitted_time(T0), "2026-03-01T12:00:00");
        assert_eq!(newer("2026-03-01T12:00:00", T0), "2026-03-01T12:00:01");
        assert_eq!(newer("2026-03-01T11:00:00", T0), "2026-03-01T12:00:00");
        assert_eq!(newer("2026-03-01T13:00:00", T0), "2026-03-01T13:00:01");
        assert_eq!(newer("nonsense", T0), "2026-03-01T12:00:01");
    }
}
