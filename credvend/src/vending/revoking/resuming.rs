//! Orders that somebody began and did not bring to an end, and what slipped through while one was carried out.

use std::collections::HashSet;

use time::Duration;

use super::{LEFT_ALONE, lease_of, reason, telling};
use crate::store::{NewsKind, Order, StoreError};
use crate::vending::Vending;

/// Orders given this lately are looked at again: a session that was being opened while they were carried out, at whichever
/// replica, has ended, too. No opening takes so long.
const LATELY: Duration = Duration::minutes(3);

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
            let late = self.end_open(&order, order.at, &mut HashSet::new()).await?;
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

    /// What was carried out lately, by whichever replica: only one of them sweeps.
    async fn lately_done(&self) -> Result<Vec<Order>, StoreError> {
        let mut orders = self.parts.store.orders_since(self.now() - LATELY).await?;
        orders.retain(|order| order.done.is_some());
        Ok(orders)
    }
}
