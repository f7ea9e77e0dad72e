//! Where an upstream gives the credentials, its roles' policies are its own: nothing is denied from here.

use async_trait::async_trait;
use credd_protocol::RoleArn;

use super::{Denier, DenyError};
use crate::store::Revocation;

/// Writes no policy, and says so.
pub struct Elsewhere {
    upstream: String,
}

impl Elsewhere {
    /// The upstream's URL, for messages.
    pub fn new(upstream: &str) -> Self {
        Elsewhere { upstream: upstream.to_owned() }
    }
}

#[async_trait]
impl Denier for Elsewhere {
    async fn project(&self, role: &RoleArn, entries: &[Revocation]) -> Result<(), DenyError> {
        if entries.is_empty() {
            return Ok(());
        }
        Err(DenyError::NotOurs(format!(
            "the Deny policy of {role} is not credvend's to write since the upstream {} gives its credentials; what was issued before that lives until it expires, or is denied by hand",
            self.upstream
        )))
    }
}
