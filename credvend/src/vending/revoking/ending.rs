//! The ends of a revocation's sessions.

use credd_protocol::seed_api::SessionStatus;
use time::{Duration, OffsetDateTime};
use tokio::task::JoinSet;

use super::reason;
use crate::store::{Ended, Order, OrderId, Session, StoreError};
use crate::vending::Vending;

/// How many ends are written at the same time: they share commits.
const AT_ONCE: usize = 64;

/// Sessions may be opened while others are being ended; a subject that opens faster than this many listings is reported.
const ROUNDS: usize = 100;

/// What is listed at once after an order is there before it, even if another replica's clock says a little later.
const SKEW: Duration = Duration::seconds(2);

impl Vending {
    /// Ends the ACTIVE sessions of an order's subject, until a listing shows none; returns all that the order ended, those
    /// of an earlier attempt included.
    pub(super) async fn end_concerned(&self, order: &Order, again: bool) -> Result<Vec<Session>, StoreError> {
        if again {
            let mut ended = self.end_open(order, order.at).await?;
            let mark = mark(order.id);
            let before = self.concerned(order, Some(SessionStatus::Invalidated), order.at + SKEW).await?;
            let known: Vec<_> = ended.iter().map(|s| s.id).collect();
            let ours = |s: &Session| s.why.as_ref().is_some_and(|why| why.ends_with(&mark)) && !known.contains(&s.id);
            ended.extend(before.into_iter().filter(ours));
            return Ok(ended);
        }
        let mut ended = self.end_listed(order, order.at + SKEW).await?.0;
        ended.extend(self.end_open(order, order.at).await?);
        Ok(ended)
    }

    /// Until there is none.
    pub(super) async fn end_open(&self, order: &Order, opened: OffsetDateTime) -> Result<Vec<Session>, StoreError> {
        let mut ended = vec![];
        for _ in 0..ROUNDS {
            let (some, none_left) = self.end_listed(order, opened).await?;
            ended.extend(some);
            if none_left {
                return Ok(ended);
            }
        }
        Err(StoreError::Unavailable("more and more sessions are opened".into()))
    }

    /// Ends what one listing shows; says whether it showed nothing.
    async fn end_listed(&self, order: &Order, opened: OffsetDateTime) -> Result<(Vec<Session>, bool), StoreError> {
        let open = self.concerned(order, Some(SessionStatus::Active), opened).await?;
        let none_left = open.is_empty();
        let why = format!("{}{}", reason(order), mark(order.id));
        let mut ended = vec![];
        for some in open.chunks(AT_ONCE) {
            let mut ends = JoinSet::new();
            for session in some {
                let (store, id, at, why) = (self.parts.store.clone(), session.id, self.now(), why.clone());
                ends.spawn(async move { store.end(id, SessionStatus::Invalidated, at, &why).await });
            }
            let mut failed = None;
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
        Ok((ended, none_left))
    }
}

/// At the end of a session's `why`: by it an order that is carried out again finds what it ended.
fn mark(order: OrderId) -> String {
    format!(" (revocation {order})")
}
