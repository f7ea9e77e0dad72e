//! What is known of an order by now.

use super::report::RevocationReport;
use super::{concerned, dying};
use crate::refusal::Refusal;
use crate::store::{Cursor, Order, OrderId, Page};
use crate::vending::Vending;

impl Vending {
    /// An order, with what is known of it by now.
    ///
    /// # Errors
    /// The store; an unknown order.
    pub async fn revocation(&self, id: OrderId) -> Result<RevocationReport, Refusal> {
        let order = self.parts.store.get_order(id).await?;
        let order = order.ok_or_else(|| Refusal::NotFound(format!("there is no revocation {id}")))?;
        Ok(self.told(&order))
    }

    /// Orders, newest first.
    ///
    /// # Errors
    /// The store.
    pub async fn revocations(&self, from: Option<&Cursor>) -> Result<Page<RevocationReport>, Refusal> {
        let page = self.parts.store.list_orders(from).await?;
        Ok(Page { items: page.items.iter().map(|order| self.told(order)).collect(), next: page.next })
    }

    pub(super) fn told(&self, order: &Order) -> RevocationReport {
        let stored = order.report.as_ref().and_then(|text| serde_json::from_str::<RevocationReport>(text).ok());
        let mut report = stored.unwrap_or_else(|| RevocationReport::of(order));
        for role in &mut report.roles {
            // The Deny has a life of its own.
            // The names may come again: once all that the order meant has expired, they are others'.
            let lives = self.now() < order.at + dying::LONGEST_LIFE + concerned::SKEW;
            let left_out = self.denying.left_out(&role.role_arn, &role.denied);
            if role.in_force && left_out > 0 && lives {
                let why = format!(
                    "{}: its inline policies have no room any more for {left_out} of these names, for others were revoked since; what was issued under them lives until it expires; revoke with --wide, which denies the role as a whole",
                    role.role_arn
                );
                role.in_force = false;
                report.not_denied.push(why.clone());
                role.why_not = Some(why);
            } else if !role.in_force
                && role.denied.len() == role.denied_total
                && self.denying.has(&role.role_arn, &role.denied)
            {
                role.in_force = true;
                if let Some(why) = role.why_not.take() {
                    report.not_denied.retain(|lacking| *lacking != why);
                }
            }
        }
        if order.done.is_none() {
            report.unfinished.get_or_insert_with(|| "it is being carried out".into());
        }
        report
    }
}
