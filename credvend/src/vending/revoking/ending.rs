//! The ends of a revocation's sessions.

use std::collections::HashSet;

use credd_protocol::SessionId;
use credd_protocol::credentials_api_v1::SessionStatus;
use time::{Duration, OffsetDateTime};
use tokio::task::JoinSet;

use super::concerned::SKEW;
use super::reason;
use crate::store::{Ended, Order, OrderId, Session, StoreError};
use crate::vending::Vending;

/// How many ends are written at the same time: they share commits.
const AT_ONCE: usize = 64;

/// Sessions may be opened while others are being ended; a subject that opens faster than this many listings is reported.
const ROUNDS: usize = 100;

/// An order that is taken up again ends what was opened up to this after it, too: by the clock of another replica that may
/// have been before it. Somebody's job that was begun just then must be begun again, which errs on the safe side.
const AHEAD: Duration = Duration::seconds(10);

impl Vending {
    /// Ends the ACTIVE sessions of an order's subject, until a listing shows none; returns all that the order ended, those
    /// of an earlier attempt included.
    pub(super) async fn end_concerned(&self, order: &Order, again: bool) -> Result<Vec<Session>, StoreError> {
        let mut settled = HashSet::new();
        if again {
            let mut ended = self.end_open(order, order.at + AHEAD, &mut settled).await?;
            let mark = mark(order.id);
            let before = self.concerned(order, Some(SessionStatus::Invalidated), order.at + SKEW).await?;
            let known: HashSet<_> = ended.iter().map(|s| s.id).collect();
            let ours = |s: &Session| s.why.as_ref().is_some_and(|why| why.ends_with(&mark)) && !known.contains(&s.id);
            ended.extend(before.into_iter().filter(ours));
            return Ok(ended);
        }
        // What is there at once after the order is there before it, whatever the clock of the replica that opened it says.
        let mut ended = self.end_found(order, order.at + SKEW, &mut settled).await?.0;
        ended.extend(self.end_open(order, order.at, &mut settled).await?);
        Ok(ended)
    }

    /// Until there is none. The `settled` are known not to be among them; more are added.
    pub(super) async fn end_open(
        &self,
        order: &Order,
        opened: OffsetDateTime,
        settled: &mut HashSet<SessionId>,
    ) -> Result<Vec<Session>, StoreError> {
        let mut ended = vec![];
        for _ in 0..ROUNDS {
            let (some, none_left) = self.end_found(order, opened, settled).await?;
            ended.extend(some);
            if none_left {
                return Ok(ended);
            }
        }
        Err(StoreError::Unavailable("more and more sessions are opened".into()))
    }

    /// Ends what one look shows; says whether it showed nothing.
    async fn end_found(
        &self,
        order: &Order,
        opened: OffsetDateTime,
        settled: &mut HashSet<SessionId>,
    ) -> Result<(Vec<Session>, bool), StoreError> {
        let active = Some(SessionStatus::Active);
        let listed = self.listed(order, active, opened).await?;
        let mut ended = self.end_all(order, &listed).await?;
        settled.extend(listed.iter().map(|session| session.id));
        // Those that must be looked for wait for none of these.
        let others = self.found_otherwise(order, active, opened, settled).await?;
        ended.extend(self.end_all(order, &others).await?);
        settled.extend(others.iter().map(|session| session.id));
        Ok((ended, listed.is_empty() && others.is_empty()))
    }

    async fn end_all(&self, order: &Order, open: &[Session]) -> Result<Vec<Session>, StoreError> {
        let why = format!("{}{}", reason(order), mark(order.id));
        let (mut ended, mut failed) = (vec![], None);
        for some in open.chunks(AT_ONCE) {
            let mut ends = JoinSet::new();
            for session in some {
                let (store, id, at, why) = (self.parts.store.clone(), session.id, self.now(), why.clone());
                ends.spawn(async move { store.end(id, SessionStatus::Invalidated, at, &why).await });
            }
            while let Some(result) = ends.join_next().await {
                match result {
                    Ok(Ok(Ended::Now(session))) => {
                        self.ended(&session, &why);
                        ended.push(session);
                    }
                    Ok(Ok(_)) => {}
                    Ok(Err(e)) => failed = Some(e),
                    Err(e) => failed = Some(StoreError::Broken(e.to_string())),
                }
            }
            if let Some(e) = failed {
                return Err(e);
            }
        }
        Ok(ended)
    }
}

/// At the end of a session's `why`: by it an order that is carried out again finds what it ended.
fn mark(order: OrderId) -> String {
    format!(" (revocation {order})")
}
