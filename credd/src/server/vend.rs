//! Carries out what the cache decides: fetches, waits within the SDK's patience, renews ahead.

use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use credd_protocol::node_api::{CredentialsRequest, CredentialsResponse};
use tokio::time::Instant;

use super::answer::Denial;
use super::cache::{Document, Flight, Key, Silence, Step};
use super::credvend::document_body;
use super::freshness::{Life, Verdict};
use super::jobs::{Run, State};
use super::trouble::Trouble;
use super::{Counted, Load, Server, session};
use crate::control::ToKeeper;

/// With something to fall back on and credvend ailing, a request does not wait for long.
const BRIEFLY: Duration = Duration::from_millis(500);

/// The credentials document for a process of the run's job that has proved to be one.
///
/// # Errors
/// What to tell the process.
pub async fn serve(server: &Rc<Server>, run: &Rc<Run>, load: &Load) -> Result<Bytes, Denial> {
    let job = run.job.job;
    // Nearly every request ends here.
    match next(server, run)? {
        Next::Step(Step::Serve(body), _) => {
            server.metrics.cached();
            Ok(body)
        }
        Next::Step(Step::ServeAndFly(body, flight), Some(key)) => {
            server.metrics.cached();
            tokio::task::spawn_local(fly(server.clone(), key, flight));
            Ok(body)
        }
        first => {
            let limit = server.settings.get().limits.waiting_per_user;
            let Some(_waiting) = Counted::one(&load.waiting, limit) else {
                // A flight that nobody starts would never land.
                start(server, &first);
                return Err(Denial::Crowded(job));
            };
            Box::pin(wait(server, run, first)).await.inspect(|_| server.metrics.waited())
        }
    }
}

enum Next {
    /// The cache's word; the key where a flight may have to be started.
    Step(Step, Option<Key>),
    /// The session is still opening.
    Opening(Option<Trouble>),
}

/// What to do now, by the run's state and the cache.
fn next(server: &Rc<Server>, run: &Run) -> Result<Next, Denial> {
    let job = run.job.job;
    run.with_state(|state| match state {
        State::Open(key) => {
            let step = server.cache.borrow_mut().ask(key, server.clock.now(), silence(server, run));
            let key = (!matches!(step, Step::Serve(_))).then(|| key.clone());
            Ok(Next::Step(step, key))
        }
        State::Opening(trouble) => Ok(Next::Opening(trouble.clone())),
        State::Refused(reason) => Err(Denial::Refused { job, reason: reason.clone() }),
        State::Ended => Err(Denial::JobEnded(job)),
    })
}

/// The node's bound on credvend's silence, or the partition's if it is stricter.
fn silence(server: &Server, run: &Run) -> Silence {
    let own = run.job.options.max_unheard_seconds.map(|s| Duration::from_secs(s.into()));
    let max = [own, server.settings.get().max_unheard].into_iter().flatten().min();
    Silence { heard: server.news.heard(), max }
}

fn start(server: &Rc<Server>, next: &Next) {
    let flight = match next {
        Next::Step(Step::Wait { flight, start: true, .. } | Step::ServeAndFly(_, flight), Some(key)) => (key, flight),
        _ => return,
    };
    tokio::task::spawn_local(fly(server.clone(), flight.0.clone(), flight.1.clone()));
}

/// Waits until there are credentials or the SDK's patience ends.
async fn wait(server: &Rc<Server>, run: &Rc<Run>, mut now: Next) -> Result<Bytes, Denial> {
    let job = run.job.job;
    let deadline = Instant::now() + server.settings.get().patience;
    loop {
        // Made before anything is awaited: no change in between is missed.
        let changed = run.changed.notified();
        start(server, &now);
        match now {
            Next::Step(Step::Serve(body) | Step::ServeAndFly(body, _), _) => return Ok(body),
            Next::Step(Step::Wait { flight, fallback, briefly, .. }, _) => {
                let until = if briefly { deadline.min(Instant::now() + BRIEFLY) } else { deadline };
                let outcome = tokio::select! {
                    // In this order: what was taken back is not fallen back on.
                    biased;
                    outcome = flight.outcome() => outcome,
                    () = changed => None,
                    () = tokio::time::sleep_until(until) => {
                        let slow = "credvend has not answered yet.".to_owned();
                        return fallback.and_then(|it| living(server, it)).ok_or(Denial::NotNow { job, reason: slow });
                    }
                };
                // Between asking and answering the job may have ended or been refused.
                let still_open = run.with_state(|state| matches!(state, State::Open(_)));
                match outcome {
                    Some(Ok(document)) if still_open => {
                        if let Some(body) = living(server, document) {
                            return Ok(body);
                        }
                    }
                    Some(Err(
                        trouble @ (Trouble::No(_) | Trouble::Site(_) | Trouble::Outage(_) | Trouble::Busy(..)),
                    )) if still_open => {
                        if let Some(body) = fallback.and_then(|document| living(server, document)) {
                            return Ok(body);
                        }
                        if let Trouble::No(reason) | Trouble::Site(reason) = trouble {
                            return Err(Denial::RefusedForNow { job, reason });
                        }
                    }
                    _ => {}
                }
            }
            Next::Step(Step::Hold { until, trouble }, _) => match trouble {
                Trouble::No(reason) | Trouble::Site(reason) => return Err(Denial::RefusedForNow { job, reason }),
                Trouble::Never(reason) | Trouble::Over(reason) => return Err(Denial::Refused { job, reason }),
                Trouble::Outage(reason) | Trouble::Gone(reason) | Trouble::Busy(reason, _) => {
                    if until >= deadline {
                        return Err(Denial::NotNow { job, reason });
                    }
                    tokio::select! {
                        () = tokio::time::sleep_until(until) => {}
                        () = changed => {}
                    }
                }
            },
            Next::Opening(trouble) => {
                session::want(server, run);
                if let Some(Trouble::No(reason) | Trouble::Site(reason)) = trouble {
                    return Err(Denial::RefusedForNow { job, reason });
                }
                tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(deadline) => {
                        let slow = "credvend has not answered yet.".to_owned();
                        return Err(Denial::NotNow { job, reason: trouble.map_or(slow, |t| t.reason().to_owned()) });
                    }
                }
            }
        }
        if Instant::now() >= deadline {
            // Only after a state that changed in the very last moment.
            return Err(Denial::NotNow { job, reason: "its state has just changed; ask again.".to_owned() });
        }
        now = next(server, run)?;
    }
}

/// The document's body, unless it died while it was waited with: this process may have been stopped, or the machine.
fn living(server: &Server, document: Document) -> Option<Bytes> {
    (document.life.verdict(server.clock.now()) != Verdict::Dead).then_some(document.body)
}

/// Carries one flight out.
pub async fn fly(server: Rc<Server>, key: Key, flight: Rc<Flight>) {
    let min_life_seconds = u32::try_from(flight.wanted.as_secs()).unwrap_or(u32::MAX);
    let request = CredentialsRequest { role: key.role.clone(), min_life_seconds, heard: server.news.newest() };
    if flight.is_void() {
        // Taken back before it set out.
        return;
    }
    let answer = server.credvend.credentials(key.session, &request).await;
    server.look_after_credvend();
    let outcome = answer.and_then(|answer| document(&server, answer));
    let trouble = outcome.as_ref().err().cloned();
    server.metrics.fetched(trouble.is_none());
    let now = server.clock.now();
    server.cache.borrow_mut().landed(&key, &flight, outcome, now);
    match trouble {
        None => tracing::debug!(session = %key.session, role = %key.role, "credentials fetched"),
        Some(Trouble::Over(reason)) => server.end_sessions(&HashSet::from([key.session]), &reason),
        Some(Trouble::Never(reason)) => server.refuse_sessions(&HashSet::from([key.session]), &reason),
        Some(Trouble::Gone(reason)) => server.reopen_session(key.session, &reason),
        Some(trouble) => {
            tracing::warn!(session = %key.session, role = %key.role, why = trouble.reason(), "no credentials");
        }
    }
    server.look.notify_one();
}

fn document(server: &Server, answer: CredentialsResponse) -> Result<Document, Trouble> {
    let now = server.clock.now();
    let keys = &answer.credentials;
    if [keys.access_key_id.as_str(), keys.secret_access_key.expose(), keys.token.expose()].contains(&"") {
        return Err(Trouble::Outage(
            "credvend gave credentials with an empty key; is it of another version?".to_owned(),
        ));
    }
    let life = Life::new(answer.issued, answer.credentials.expiration, now, server.dice.roll());
    if life.verdict(now) == Verdict::Dead {
        return Err(Trouble::Outage(format!(
            "credvend gave credentials that expire at {}, and this node's clock says {}; is a clock wrong?",
            credd_protocol::credentials::rfc3339_z::format(life.expires()),
            credd_protocol::credentials::rfc3339_z::format(now.wall),
        )));
    }
    Ok(Document { body: document_body(&answer.credentials), life })
}

/// A prefetch looks so often whether the cache still holds it back: credvend may be back, and a step waits.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Fetches the first credentials of an open run before anybody asks, and tells the keeper when they are there.
pub async fn prefetch(server: Rc<Server>, run: Rc<Run>) {
    let mut told = String::new();
    loop {
        let Ok(next) = next(&server, &run) else { return };
        let trouble = match next {
            Next::Opening(_) => return,
            Next::Step(Step::Serve(_) | Step::ServeAndFly(..), _) => None,
            Next::Step(Step::Wait { flight, start, .. }, key) => {
                if let (true, Some(key)) = (start, key) {
                    fly(server.clone(), key, flight.clone()).await;
                }
                // Taken back before it came: again.
                let Some(outcome) = flight.outcome().await else { continue };
                outcome.err()
            }
            Next::Step(Step::Hold { until, trouble }, _) => {
                tokio::time::sleep_until(until.min(Instant::now() + LOOK_AGAIN)).await;
                Some(trouble)
            }
        };
        let Some(trouble) = trouble else { break };
        if told != trouble.reason() && !run.ended() {
            told = trouble.reason().to_owned();
            server.keeper.tell(ToKeeper::Waiting { run: run.job.run, reason: told.clone() });
        }
    }
    if let State::Open(key) = run.state() {
        server.cache.borrow_mut().unused(&key);
        server.keeper.tell(ToKeeper::Opened { run: run.job.run, session: key.session });
    }
}

/// Renews ahead, for as long as the server lives.
pub async fn renew(server: Rc<Server>) {
    loop {
        let (flights, wait) = server.cache.borrow_mut().due(server.clock.now(), server.settings.get().look);
        for (key, flight) in flights {
            tokio::task::spawn_local(fly(server.clone(), key, flight));
        }
        // What nobody else holds counts nothing.
        server.loads.borrow_mut().retain(|_, load| Rc::strong_count(load) > 1);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = server.look.notified() => {}
        }
    }
}
