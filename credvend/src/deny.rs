//! The denier seam: kills in AWS what was issued, by an inline Deny on the role. AWS alone can do that: SDKs keep using
//! cached credentials after the endpoint denies them.

use async_trait::async_trait;
use credd_protocol::RoleArn;

use crate::store::Revocation;

pub mod elsewhere;
pub mod iam;
pub mod policy;

/// Why a role's policy could not be brought up to date.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DenyError {
    /// A permission is missing, or the role is gone: names the role and the remedy.
    #[error("{0}")]
    Refused(String),
    /// May work later.
    #[error("{0}")]
    Unavailable(String),
    /// The entries do not fit one inline policy of 10,240 characters.
    #[error("{0}")]
    TooLarge(String),
}

/// Brings a role's Deny policy in line with the store.
#[async_trait]
pub trait Denier: Send + Sync + 'static {
    /// Makes the inline policy `credd-revocations` of the role deny exactly `entries` (merged: one statement per
    /// `issued_before`, exact user ids only), or deletes it if there are none. Idempotent.
    async fn project(&self, role: &RoleArn, entries: &[Revocation]) -> Result<(), DenyError>;
}
