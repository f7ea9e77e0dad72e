//! Orders that somebody began and did not bring to an end, and what slipped through while one was carried out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use time::Duration;

use super::{LEFT_ALONE, lease_of, reason, telling};
use crate::store::{NewsKind, Order, StoreError};
use crate::vending::Vending;

/// Orders done this lately are looked at again: a session that was being opened while they were carried out has ended, too.
const LATELY: Duration = Duration::minutes(2);

/// The most of them.
const MAX_LATELY: usize = 1000;

/// Orders that were carried out a moment ago.
#[derive(Default)]
pub(in crate::vending) struct Lately {
    orders: Mutex<Vec<Order>>,
    looked: AtomicBool,
}

impl Lately {
    fn orders(&self) -> MutexGuard<'_, Vec<Order>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, more: impl IntoIterator<Item = Order>) {
        let mut orders = self.orders();
        orders.extend(more);
        let excess = orders.len().saturating_sub(MAX_LATELY);
        orders.drain(..excess);
    }
}

impl Vending {
    /// Orders that somebody began and did not bring to an end, and sessions that slipped through while one was carried
    /// out.
    pub(in crate::vending) async fn resume_orders(&self) -> Result<(), StoreError> {
        let store = &self.parts.store;
        for order in store.open_orders().await? {
            let now = self.now();
            let holder = self.holder("sweep");
            if store.lease(&lease_of(order.id), &holder, now, now + LEFT_ALONE).await? {
                self.carry_out(order, true, &holder).await;
            }
        }
        for order in self.lately_done().await? {
            let late = self.end_open(&order, order.at).await?;
            if !late.is_empty() {
                let issued = self.issued_to(&order, &late).await?;
                let holders = telling::holders(&late, &issued);
                self.tell(NewsKind::Invalidated, &late, &reason(&order), Some(order.id), &holders).await;
                let theirs = late.iter().map(|s| s.id).chain(issued.iter().map(|i| i.session)).collect();
                self.deny_all(&order, &issued, &theirs).await?;
            }
        }
        Ok(())
    }

    /// What this process carried out lately; at first also what others did, who may have been killed since.
    async fn lately_done(&self) -> Result<Vec<Order>, StoreError> {
        let since = self.now() - LATELY;
        let lately = |order: &Order| order.done.is_some_and(|done| done >= since);
        if !self.lately.looked.load(Ordering::SeqCst) {
            let found = self.parts.store.list_orders(None).await?.items;
            self.lately.add(found.into_iter().filter(|order| lately(order)));
            self.lately.looked.store(true, Ordering::SeqCst);
        }
        let mut orders = self.lately.orders();
        orders.retain(lately);
        Ok(orders.clone())
    }
}
