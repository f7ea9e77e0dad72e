//! Tells the upstream of what has ended and who is revoked, until it has heard it.
//!
//! The store remembers: a note for each session that may be open there, written before it is opened and removed when its end
//! was taken, and one for each user whose revocation is on its way. So nothing is lost by a restart, or with the replica
//! that died: whoever starts next looks through the notes. Ends and revocations may be told twice; that changes nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::{SessionId, UserName};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::answer::Trouble;
use super::client::random_byte;
use super::{OPEN, OpenThere, Upstream, probe};
use crate::metrics::Metrics;
use crate::source::{Revoked, SourceError};
use crate::store::StoreError;

/// The kind of the notes about users whose revocation the upstream has not taken yet, by user.
const REVOKED: &str = "upstream-revocation";

/// The most ends that wait in memory; what is over it is found again among the notes.
const MAX_WAITING: usize = 100_000;
/// Ends that are told at the same time.
const AT_ONCE: usize = 16;
/// Between two looks through all notes, for what another replica left.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);
/// The pause after trouble: doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The end of a session that the upstream does not know may have overtaken its opening: for so long after the end it is told
/// again, after a pause that is as long as the end is old.
const OVERTAKES: time::Duration = time::Duration::minutes(2);
const OVERTAKEN_PAUSE: Duration = Duration::from_secs(3);

/// What the upstream must hear.
#[derive(Default)]
pub(super) struct Ends {
    state: Mutex<State>,
    wake: Notify,
    /// Held while a user's revocation is told.
    telling: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    ended: HashSet<SessionId>,
    revoked: BTreeSet<UserName>,
    /// Ended, but not known there yet; and when to say so again.
    unknown: HashMap<SessionId, Instant>,
    /// Something is known to the notes alone.
    look: bool,
    /// Revoked there after the answer to who asked for it, by an upstream that may have hit others, too.
    late: BTreeSet<UserName>,
}

impl Ends {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session has ended.
    pub(super) fn add(&self, id: SessionId) {
        let mut state = self.state();
        if state.ended.len() < MAX_WAITING {
            state.ended.insert(id);
        } else {
            state.look = true;
        }
        drop(state);
        self.wake.notify_one();
    }

    /// The session's opening may still be on its way there.
    fn say_again(&self, id: SessionId, pause: Duration) {
        let mut state = self.state();
        if state.unknown.len() < MAX_WAITING {
            state.unknown.insert(id, Instant::now() + pause);
        } else {
            state.look = true;
        }
    }

    /// What is to be said again by now waits with the others; when the next is.
    fn say_again_what_is_due(&self) -> Option<Instant> {
        let mut state = self.state();
        let now = Instant::now();
        let due: Vec<SessionId> = state.unknown.extract_if(|_, at| *at <= now).map(|(id, _)| id).collect();
        state.ended.extend(due);
        state.unknown.values().min().copied()
    }

    /// Takes the users whose revocation arrived late, and may have hit others.
    pub(super) fn revoked_late(&self) -> Vec<UserName> {
        std::mem::take(&mut self.state().late).into_iter().collect()
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        let state = self.state();
        state.ended.len() + state.revoked.len()
    }
}

impl Upstream {
    /// Runs until the service stops.
    pub async fn deliver(self: Arc<Self>, metrics: Arc<Metrics>, mut stopping: watch::Receiver<bool>) {
        let (mut look_at, mut pause) = (Instant::now(), None::<Duration>);
        loop {
            let round = async {
                if Instant::now() >= look_at || std::mem::take(&mut self.ends.state().look) {
                    look_at = Instant::now();
                    self.look_through_notes().await.map_err(|e| e.to_string())?;
                    look_at += LOOK_AGAIN;
                }
                self.tell_revocations().await?;
                self.ends.say_again_what_is_due();
                self.tell_ends().await
            };
            let done = tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return,
                done = round => done,
            };
            // Not what waits for its turn while all is well: on a busy site something always does.
            metrics.upstream_ends_waiting(if done.is_err() { self.ends.waiting() } else { 0 });
            let wait = match done {
                Ok(()) => {
                    if pause.take().is_some() {
                        tracing::info!(upstream = self.client.url(), "the upstream hears of ends again");
                    }
                    let next = self.ends.say_again_what_is_due().map_or(look_at, |next| next.min(look_at));
                    next.saturating_duration_since(Instant::now())
                }
                Err(why) => {
                    if pause.is_none() {
                        tracing::warn!(
                            upstream = self.client.url(), %why, waiting = self.ends.waiting(),
                            "the upstream does not hear of ends; it is told again until it does"
                        );
                    }
                    let next = pause.map_or(FIRST_PAUSE, |pause| LONGEST_PAUSE.min(pause * 2));
                    pause = Some(next);
                    next.mul_f64(0.75 + f64::from(random_byte()) / 510.0)
                }
            };
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return,
                // In trouble, another end is no reason to ask sooner.
                () = self.ends.wake.notified(), if pause.is_none() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Finds what was left: revocations that are on their way, and notes of sessions that have ended.
    async fn look_through_notes(&self) -> Result<(), StoreError> {
        let mut from = None;
        loop {
            let page = self.store.list_notes(REVOKED, from.as_ref()).await?;
            self.ends.state().revoked.extend(page.items.iter().filter_map(|(user, _)| user.parse().ok()));
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        loop {
            let page = self.store.list_notes(OPEN, from.as_ref()).await?;
            for id in page.items.iter().filter_map(|(key, _)| key.parse::<SessionId>().ok()) {
                let session = self.store.get(id).await?;
                if session.is_none_or(|session| session.status != SessionStatus::Active) {
                    self.ends.add(id);
                }
            }
            from = page.next;
            if from.is_none() {
                return Ok(());
            }
        }
    }

    async fn tell_revocations(&self) -> Result<(), String> {
        let revoked = self.ends.state().revoked.clone();
        for user in revoked {
            self.tell_revocation_once(&user).await?;
        }
        Ok(())
    }

    /// Tells of a revocation, unless somebody else has told of it meanwhile. `Err`: again later.
    async fn tell_revocation_once(&self, user: &UserName) -> Result<(), String> {
        let _turn = self.ends.telling.lock().await;
        if !self.ends.state().revoked.contains(user) {
            return Ok(());
        }
        match self.tell_revocation(user).await {
            Err(Untold::Again(why)) => Err(why),
            Err(Untold::Lacking(why)) => {
                tracing::warn!(upstream = self.client.url(), user = %user.field(), %why, "the upstream has not revoked everything");
                Ok(())
            }
            Ok(Revoked::OfActive) => {
                self.ends.state().late.insert(user.clone());
                Ok(())
            }
            Ok(Revoked::Everything) => Ok(()),
        }
    }

    /// Tells of all ends that wait; `Err` if some must be told again.
    async fn tell_ends(self: &Arc<Self>) -> Result<(), String> {
        let mut failed = None;
        let waiting: Vec<SessionId> = self.ends.state().ended.drain().collect();
        let (mut waiting, mut telling) = (waiting.into_iter(), JoinSet::new());
        loop {
            while telling.len() < AT_ONCE
                && let Some(id) = waiting.next()
            {
                let upstream = self.clone();
                // Cut off in the middle, it is among the notes still.
                telling.spawn(async move { (id, upstream.tell_end(id).await) });
            }
            match telling.join_next().await {
                None => break,
                Some(Ok((_, Ok(())))) => {}
                Some(Ok((id, Err(why)))) => {
                    self.ends.state().ended.insert(id);
                    failed = Some(why);
                }
                Some(Err(e)) => {
                    self.ends.state().look = true;
                    failed = Some(e.to_string());
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Tells of one end. `Err`: again later.
    async fn tell_end(&self, id: SessionId) -> Result<(), String> {
        let key = id.to_string();
        let Some(text) = self.store.get_note(OPEN, &key).await.map_err(|e| e.to_string())? else { return Ok(()) };
        let there: OpenThere = match serde_json::from_str(&text) {
            Ok(there) => there,
            Err(error) => {
                tracing::error!(session = %id, %error, "a note about a session at the upstream is not understood; it is dropped");
                return self.store.remove_note(OPEN, &key).await.map_err(|e| e.to_string());
            }
        };
        let (status, ended) = match self.store.get(id).await.map_err(|e| e.to_string())? {
            Some(session) if session.status == SessionStatus::Active => return Ok(()),
            Some(session) => (session.status, session.ended),
            None => (SessionStatus::Completed, None),
        };
        if self.ends.state().revoked.contains(&there.user) {
            // The original deployment revokes what ACTIVE sessions have: ended one by one, they would be passed over.
            return Err(format!("the revocation of user {} comes first", there.user));
        }
        match self.client.set_status(&there.head_session, &there.cluster, status).await {
            Err(Trouble::Unknown(_)) if ended.is_some_and(|at| self.clock.now() - at < OVERTAKES) => {
                let since = ended.map_or(Duration::ZERO, |at| (self.clock.now() - at).try_into().unwrap_or_default());
                self.ends.say_again(id, OVERTAKEN_PAUSE.max(since));
                Ok(())
            }
            Ok(()) | Err(Trouble::Ended(_) | Trouble::Unknown(_)) => {
                self.store.remove_note(OPEN, &key).await.map_err(|e| e.to_string())?;
                tracing::info!(
                    session = %id, upstream_session = there.head_session, status = status.as_str(),
                    "session ended at the upstream"
                );
                Ok(())
            }
            Err(Trouble::Passing(why)) => Err(why),
            Err(Trouble::NotAccepted(why)) => Err(self.secret_refused(&why)),
            Err(Trouble::NoRoute(why) | Trouble::Refused(why) | Trouble::Exists(why)) => {
                // The note stays: the next look through all of them tries again.
                tracing::error!(session = %id, upstream_session = there.head_session, %why, "the upstream refuses a session's end");
                Ok(())
            }
        }
    }

    /// Revokes a user there: now if it hears, else as soon as it does.
    pub(super) async fn revoke(&self, user: &UserName) -> Result<Revoked, String> {
        // Before anything is awaited: from now on no end of this user's sessions overtakes it.
        self.ends.state().revoked.insert(user.clone());
        let url = self.client.url();
        let noted = self.store.put_note(REVOKED, user.as_str(), "").await;
        let telling = async {
            let _turn = self.ends.telling.lock().await;
            // An earlier revocation of this user may just have been told; this one is later.
            self.ends.state().revoked.insert(user.clone());
            self.tell_revocation(user).await
        };
        let told = tokio::time::timeout(self.client.timeouts().total, telling).await;
        match told.unwrap_or_else(|_| Err(Untold::Again("it does not answer".into()))) {
            Ok(revoked) => Ok(revoked),
            Err(Untold::Lacking(why)) => Err(format!("the upstream {url} has not revoked all of {user}: {why}")),
            Err(Untold::Again(why)) => {
                self.ends.wake.notify_one();
                let later = match noted {
                    Ok(()) => "it is told as soon as it hears".to_owned(),
                    Err(e) => format!("revoke again, for nobody remembers it: {e}"),
                };
                Err(format!("the upstream {url} has not revoked {user}: {why}; {later}"))
            }
        }
    }

    /// A user's revocation that is on its way must arrive before the user's next session does, or it would hit that too.
    pub(super) async fn revoked_first(&self, user: &UserName) -> Result<(), SourceError> {
        if !self.ends.state().revoked.contains(user) {
            return Ok(());
        }
        self.tell_revocation_once(user)
            .await
            .map_err(|why| self.passing(&format!("it must revoke {user} first: {why}")))
    }

    async fn tell_revocation(&self, user: &UserName) -> Result<Revoked, Untold> {
        let told = match self.client.revoke_user(user).await {
            Ok(body) => revoked(&body),
            Err(Trouble::Passing(why)) => return Err(Untold::Again(why)),
            // API Gateway says the same of a secret that it does not know and of a verb that it does not let the head use.
            Err(Trouble::NotAccepted(why)) => match probe(&self.client, &self.options).await {
                Ok(_) => Err(format!("{why}; it lets this head revoke nobody, so its administrators must do it")),
                Err(_) => return Err(Untold::Again(self.secret_refused(&why))),
            },
            Err(
                Trouble::NoRoute(why)
                | Trouble::Refused(why)
                | Trouble::Ended(why)
                | Trouble::Unknown(why)
                | Trouble::Exists(why),
            ) => Err(format!("{why}; its administrators must do it, asking again does not help")),
        };
        let forgotten = self.store.remove_note(REVOKED, user.as_str()).await;
        forgotten.map_err(|e| Untold::Again(e.to_string()))?;
        self.ends.state().revoked.remove(user);
        // Ends that were held back.
        self.ends.wake.notify_one();
        told.map_err(Untold::Lacking)
    }
}

/// A revocation that the upstream has not carried out as it should.
enum Untold {
    /// It has not heard it.
    Again(String),
    /// It has heard it, and this is lacking.
    Lacking(String),
}

/// What an upstream has revoked, or lacks. Another credvend answers with a report, and says whether it goes on by itself;
/// the original deployment says nothing that tells.
fn revoked(body: &[u8]) -> Result<Revoked, String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Report {
        not_denied: Vec<String>,
    }
    let Ok(report) = serde_json::from_slice::<Report>(body) else { return Ok(Revoked::OfActive) };
    match report.not_denied.join("; ") {
        text if text.is_empty() => Ok(Revoked::Everything),
        text => Err(crate::source::failure::shown(&text)),
    }
}
