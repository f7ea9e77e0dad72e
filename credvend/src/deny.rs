//! The denier seam: kills in AWS what was issued, by an inline Deny on the role. AWS alone can do that: SDKs keep using
//! cached credentials after the endpoint denies them.

use async_trait::async_trait;
use credd_protocol::RoleArn;

use crate::store::{Denied, Revocation};

pub mod elsewhere;
pub mod iam;
pub mod policy;
mod revoker;

/// Why a role's policy could not be brought up to date.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DenyError {
    /// A permission is missing, or the role is gone: names the role and the remedy.
    #[error("{0}")]
    Refused(String),
    /// May work later.
    #[error("{0}")]
    Unavailable(String),
    /// The role's policy is somebody else's to write for good: nothing is tried again, and nobody is called for it.
    #[error("{0}")]
    NotOurs(String),
    /// Not all entries fit the role's inline policies. Those that do are denied: orders before what
    /// jobs left at their ends, then the newest.
    #[error("{why}")]
    TooLarge {
        /// How many, and the remedy.
        why: String,
        /// What is not denied.
        left_out: Vec<Denied>,
    },
}

/// Brings a role's Deny policy in line with the store.
#[async_trait]
pub trait Denier: Send + Sync + 'static {
    /// Makes the inline policy `credd-revocations` of the role deny exactly `entries` (merged: one statement for each kind
    /// and `issued_before`, exact names only), or deletes it if there are none. Returns when IAM shows it. Idempotent.
    async fn project(&self, role: &RoleArn, entries: &[Revocation]) -> Result<(), DenyError>;

    /// Why this role can never be denied as things are configured, and the remedy; `None` if it can.
    fn lacks(&self, _role: &RoleArn) -> Option<String> {
        None
    }
}
