//! The nodes' verbs. A node triggers attestation; it states no fact that is believed.

use credd_protocol::endpoint::name_of_segment;
use credd_protocol::node_api::{AttestRequest, CredentialsRequest, HeardRequest, LeaveRequest, MAX_HEARD, OpenRequest};
use credd_protocol::{PartitionName, SessionId};
use serde::de::DeserializeOwned;

use super::answer;
use super::route::{Handling, handling};
use super::target::{Target, bad, cut, parse as parse_text};
use crate::refusal::Refusal;
use crate::vending::Node;

/// `POST /node/v1/jobs`.
pub(super) fn attest(_: &Target) -> Result<Handling<Node>, Refusal> {
    handling(|call, node| async move {
        let request: AttestRequest = parse(&call.body)?;
        Ok(answer::json(200, &call.server.vending.attest_for_node(&node, &request).await?))
    })
}

/// `POST /node/v1/sessions`.
pub(super) fn open(target: &Target) -> Result<Handling<Node>, Refusal> {
    let partition = partition(target)?;
    handling(move |call, node| async move {
        let request = OpenRequest { partition, ..parse(&call.body)? };
        Ok(answer::json(200, &call.server.vending.open_for_node(&node, &request).await?))
    })
}

/// `POST /node/v1/sessions/{session}/credentials`.
pub(super) fn credentials(target: &Target) -> Result<Handling<Node>, Refusal> {
    let session: SessionId = target.value("session")?;
    handling(move |call, node| async move {
        let request: CredentialsRequest = parse(&call.body)?;
        Ok(answer::json(200, &call.server.vending.credentials_for_node(&node, session, &request).await?))
    })
}

/// `POST /node/v1/sessions/{session}/leave`.
pub(super) fn leave(target: &Target) -> Result<Handling<Node>, Refusal> {
    let session: SessionId = target.value("session")?;
    handling(move |call, node| async move {
        let LeaveRequest {} = parse(&call.body)?;
        call.server.vending.leave(&node, session).await?;
        Ok(answer::json(200, &serde_json::json!({})))
    })
}

/// `POST /node/v1/heard`.
pub(super) fn heard(_: &Target) -> Result<Handling<Node>, Refusal> {
    handling(|call, node| async move {
        let heard: HeardRequest = parse(&call.body)?;
        if heard.seqs.len() > MAX_HEARD {
            return Err(bad(format!("an answer is to at most {MAX_HEARD} events")));
        }
        let vending = &call.server.vending;
        vending.may_listen(&node).await?;
        vending.events().heard(&node.cluster, &node.name, &heard).await?;
        Ok(answer::json(200, &serde_json::json!({})))
    })
}

/// The partition that the node's record states: `partition=…`, or nothing.
pub(super) fn partition(target: &Target) -> Result<Option<PartitionName>, Refusal> {
    let mut partition = None;
    for (key, value) in target.pairs()? {
        if key != "partition" || partition.is_some() {
            return Err(bad(format!("a session cannot be opened by {:?}", cut(&key, 40))));
        }
        let name = name_of_segment(&value).ok_or_else(|| bad("a ~ must be followed by two hex digits"))?;
        partition = Some(parse_text(&name)?);
    }
    Ok(partition)
}

/// A body as a JSON object. No body here holds a secret, so its error may tell what was found.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    // A derived reader takes an array of the fields in their order, too, which nobody has been promised.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(bad("the body is not the expected JSON: it must be an object"));
    }
    serde_json::from_slice(body).map_err(|e| {
        let text: String = e.to_string().chars().take(300).collect();
        bad(format!("the body is not the expected JSON: {}", text.escape_debug()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_an_object() {
        let request: AttestRequest = parse(b" \n{\"job\":7,\"uid\":1}").unwrap();
        assert_eq!(request.job.get(), 7);
        for body in ["[7,1]", "[]", "", "null", "\"job\"", "\u{feff}{}", "{\"job\":7,\"uid\":1,\"user\":\"root\"}"] {
            assert_eq!(parse::<AttestRequest>(body.as_bytes()).unwrap_err().status(), 400, "{body:?}");
        }
        assert!(parse::<LeaveRequest>(b"[]").is_err() && parse::<LeaveRequest>(b"{}").is_ok());
    }
}
