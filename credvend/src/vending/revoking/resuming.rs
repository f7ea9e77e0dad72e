//! Orders that somebody began and did not bring to an end, and what slipped through while one was carried out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use credd_protocol::SessionId;
use time::Duration;
use tokio::task::{JoinHandle, JoinSet};

use super::{LEFT_ALONE, joined, lease_of, reason, telling};
use crate::store::{NewsKind, Order, OrderId, StoreError};
use crate::vending::Vending;

/// Orders given this lately are looked at again: a session that was being opened while they were carried out, at whichever
/// replica, has ended, too. No opening takes so long.
const LATELY: Duration = Duration::minutes(3);

/// So many orders are carried out at the same time.
const AT_ONCE: usize = 4;

/// A sweep waits so long for them; then they go on by themselves, for nodes and IAM may take their time.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

#[derive(Default)]
pub(in crate::vending) struct Resuming {
    under_way: tokio::sync::Mutex<Option<JoinHandle<Result<(), StoreError>>>>,
    /// Who is none of a late order's any more: what ended has ended for good.
    settled: tokio::sync::Mutex<HashMap<OrderId, HashSet<SessionId>>>,
}

impl Vending {
    /// [`Vending::resume_orders`], without holding up the sweep for long.
    pub(in crate::vending) async fn go_on_with_orders(self: &Arc<Self>) -> Result<(), StoreError> {
        let mut under_way = self.resuming.under_way.lock().await;
        if under_way.as_ref().is_some_and(|task| !task.is_finished()) {
            return Ok(());
        }
        if let Some(task) = under_way.take() {
            joined(Some(task.await))?;
        }
        let vending = self.clone();
        let task = under_way.insert(tokio::spawn(async move { vending.resume_orders().await }));
        if let Ok(result) = tokio::time::timeout(PATIENCE, &mut *task).await {
            *under_way = None;
            return joined(Some(result));
        }
        tracing::info!("revocations that were left are carried out, which takes long");
        Ok(())
    }

    /// Orders that somebody began and did not bring to an end, and sessions that slipped through while one was carried
    /// out.
    pub(in crate::vending) async fn resume_orders(self: &Arc<Self>) -> Result<(), StoreError> {
        let (resumed, late) = tokio::join!(self.resume_open(), self.end_late());
        resumed.and(late)
    }

    async fn resume_open(self: &Arc<Self>) -> Result<(), StoreError> {
        let (mut open, mut tasks) = (self.parts.store.open_orders().await?.into_iter(), JoinSet::new());
        let mut result = Ok(());
        loop {
            for order in open.by_ref().take(AT_ONCE - tasks.len()) {
                let vending = self.clone();
                tasks.spawn(async move { vending.resume(order.id).await });
            }
            match tasks.join_next().await {
                None => return result,
                done => result = joined(done).and(result),
            }
        }
    }

    /// An order that was listed as open, if it still is.
    pub(in crate::vending) async fn resume(&self, id: OrderId) -> Result<(), StoreError> {
        let (store, lease) = (&self.parts.store, lease_of(id));
        let (now, holder) = (self.now(), self.holder("sweep"));
        if !store.lease(&lease, &holder, now, now + LEFT_ALONE).await? {
            return Ok(());
        }
        // Whoever held the lease may have brought it to its end since it was listed.
        match store.get_order(id).await?.filter(|order| order.done.is_none()) {
            Some(order) => drop(self.carry_out(order, true, &holder).await),
            None => store.release(&lease, &holder).await?,
        }
        Ok(())
    }

    /// Ends what was being opened while a lately done order was carried out.
    async fn end_late(&self) -> Result<(), StoreError> {
        let orders = self.lately_done().await?;
        let (mut settled, mut result) = (self.resuming.settled.lock().await, Ok(()));
        settled.retain(|id, _| orders.iter().any(|order| order.id == *id));
        for order in orders {
            let id = order.id;
            if let Err(e) = self.end_late_of(&order, settled.entry(id).or_default()).await {
                // Some may have ended, of which nobody has heard: the whole order is carried out again, and finds them.
                settled.remove(&id);
                let _ = self.parts.store.put_order(Order { done: None, ..order }).await;
                result = Err(e);
            }
        }
        result
    }

    async fn end_late_of(&self, order: &Order, settled: &mut HashSet<SessionId>) -> Result<(), StoreError> {
        let late = self.end_open(order, order.at, settled).await?;
        if late.is_empty() {
            return Ok(());
        }
        let issued = self.issued_to(order, &late).await?;
        let holders = telling::holders(&late, &issued);
        self.tell(NewsKind::Invalidated, &late, &reason(order), Some(order.id), &holders).await;
        let theirs = late.iter().map(|s| s.id).chain(issued.iter().map(|i| i.session)).collect();
        self.deny_all(order, &issued, &theirs).await?;
        Ok(())
    }

    /// What was carried out lately, by whichever replica: only one of them sweeps.
    async fn lately_done(&self) -> Result<Vec<Order>, StoreError> {
        let mut orders = self.parts.store.orders_since(self.now() - LATELY).await?;
        orders.retain(|order| order.done.is_some());
        Ok(orders)
    }
}
