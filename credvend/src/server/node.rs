//! The nodes' verbs. A node triggers attestation; it states no fact that is believed.

use credd_protocol::node_api::{AttestRequest, CredentialsRequest, HeardRequest, LeaveRequest, MAX_HEARD, OpenRequest};
use credd_protocol::{PartitionName, SessionId};
use serde::de::DeserializeOwned;

use super::Server;
use super::answer::{self, Reply};
use crate::refusal::Refusal;
use crate::vending::Node;

impl Server {
    /// `POST /node/v1/jobs`.
    pub(super) async fn node_attest(&self, node: &Node, body: &[u8]) -> Result<Reply, Refusal> {
        let request: AttestRequest = parse(body)?;
        Ok(answer::json(200, &self.vending.attest_for_node(node, &request).await?))
    }

    /// `POST /node/v1/sessions`.
    pub(super) async fn node_open(
        &self,
        node: &Node,
        partition: Option<PartitionName>,
        body: &[u8],
    ) -> Result<Reply, Refusal> {
        let request = OpenRequest { partition, ..parse(body)? };
        Ok(answer::json(200, &self.vending.open_for_node(node, &request).await?))
    }

    /// `POST /node/v1/sessions/{uuid}/credentials`.
    pub(super) async fn node_credentials(
        &self,
        node: &Node,
        session: SessionId,
        body: &[u8],
    ) -> Result<Reply, Refusal> {
        let request: CredentialsRequest = parse(body)?;
        Ok(answer::json(200, &self.vending.credentials_for_node(node, session, &request).await?))
    }

    /// `POST /node/v1/sessions/{uuid}/leave`.
    pub(super) async fn node_leave(&self, node: &Node, session: SessionId, body: &[u8]) -> Result<Reply, Refusal> {
        let LeaveRequest {} = parse(body)?;
        self.vending.leave(node, session).await?;
        Ok(answer::json(200, &serde_json::json!({})))
    }

    /// `POST /node/v1/heard`.
    pub(super) async fn node_heard(&self, node: &Node, body: &[u8]) -> Result<Reply, Refusal> {
        let heard: HeardRequest = parse(body)?;
        if heard.seqs.len() > MAX_HEARD {
            return Err(Refusal::BadRequest(format!("an answer is to at most {MAX_HEARD} events")));
        }
        self.vending.may_listen(node).await?;
        self.vending.events().heard(&node.cluster, &node.name, &heard).await?;
        Ok(answer::json(200, &serde_json::json!({})))
    }
}

/// A body as JSON. No body here holds a secret, so its error may tell what was found.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|e| {
        let text: String = e.to_string().chars().take(300).collect();
        Refusal::BadRequest(format!("the body is not the expected JSON: {}", text.escape_debug()))
    })
}
