//! The administrators' verbs about revocations and blocks, and the types that the command line reads.

use credd_protocol::ClusterName;
use credd_protocol::credentials::rfc3339_z;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::admin::page;
use super::answer::{self, Reply};
use super::node::parse;
use super::route::{Handling, handling};
use super::target::{Target, bad};
use crate::refusal::Refusal;
use crate::store::{Block, Cursor, OrderId, Subject};
use crate::vending::revoking::{Ordered, RevocationReport};

/// What is asked to be revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RevokeRequest {
    /// The name to give it: asked for again, the same order is not carried out twice.
    #[serde(default)]
    pub id: Option<OrderId>,
    /// About whom.
    pub subject: Subject,
    /// Only on these clusters.
    #[serde(default)]
    pub clusters: Option<Vec<ClusterName>>,
    /// Why; at most 512 bytes.
    #[serde(default)]
    pub why: Option<String>,
    /// Deny whole roles.
    #[serde(default)]
    pub wide: bool,
    /// Keep the subject out from now on.
    #[serde(default)]
    pub block: bool,
    /// Change nothing, and say what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

/// Whom to let in again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct UnblockRequest {
    /// About whom.
    pub subject: Subject,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Unblocked {
    /// Whether it was blocked.
    pub was_blocked: bool,
}

/// A revocation in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RevocationLine {
    /// Its name.
    pub id: OrderId,
    /// When it was ordered.
    #[serde(with = "rfc3339_z")]
    pub at: OffsetDateTime,
    /// About whom.
    pub subject: Subject,
    /// Only on these clusters.
    pub clusters: Option<Vec<ClusterName>>,
    /// By whom.
    pub by: String,
    /// Why.
    pub why: Option<String>,
    /// Sessions that it ended.
    pub sessions: usize,
    /// Nodes that may have held something.
    pub nodes: usize,
    /// Those of them that were not heard of in time.
    pub unheard: usize,
    /// Roles of which something is denied.
    pub roles: usize,
    /// What AWS does not deny, and what is not done.
    pub lacking: Vec<String>,
}

impl From<RevocationReport> for RevocationLine {
    fn from(report: RevocationReport) -> Self {
        RevocationLine {
            id: report.id,
            at: report.at,
            subject: report.subject,
            clusters: report.clusters,
            by: report.by,
            why: report.why,
            sessions: report.sessions_total,
            nodes: report.nodes.concerned,
            unheard: report.nodes.concerned - report.nodes.dropped,
            roles: report.roles.len(),
            lacking: report.not_denied.into_iter().chain(report.unfinished).collect(),
        }
    }
}

/// A page of revocations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RevocationPage {
    /// Newest first.
    pub revocations: Vec<RevocationLine>,
    /// Where the next page begins.
    pub next: Option<Cursor>,
}

/// All blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Blocks {
    /// In no order.
    pub blocks: Vec<BlockLine>,
}

/// One block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockLine {
    /// Who is kept out.
    pub subject: Subject,
    /// By whom.
    pub by: String,
    /// Why.
    pub why: Option<String>,
    /// Since when.
    #[serde(with = "rfc3339_z")]
    pub at: OffsetDateTime,
}

impl From<Block> for BlockLine {
    fn from(Block { subject, by, why, at }: Block) -> Self {
        BlockLine { subject, by, why, at }
    }
}

/// `POST /admin/v1/revocations`: 200 when all is done, 202 when the report says what is lacking.
pub(super) fn revoke(_: &Target) -> Result<Handling<String>, Refusal> {
    handling(|call, by| async move {
        let RevokeRequest { id, subject, clusters, why, wide, block, dry_run } = parse(&call.body)?;
        let id = id.unwrap_or_else(OrderId::random);
        let ordered = Ordered { id, subject, clusters, by, why, wide, block };
        if dry_run {
            return Ok(answer::json(200, &call.server.vending.rehearse(ordered).await?));
        }
        Ok(answer_report(&call.server.vending.revoke(ordered).await?))
    })
}

/// `GET /admin/v1/revocations`.
pub(super) fn list(target: &Target) -> Result<Handling<String>, Refusal> {
    let from = page(target)?;
    handling(move |call, _| async move {
        let page = call.server.vending.revocations(from.as_ref()).await?;
        let revocations = page.items.into_iter().map(RevocationLine::from).collect();
        Ok(answer::json(200, &RevocationPage { revocations, next: page.next }))
    })
}

/// `GET /admin/v1/revocations/{id}`.
pub(super) fn show(target: &Target) -> Result<Handling<String>, Refusal> {
    let id = uuid::Uuid::try_parse(target.text("id")).map_err(|_| bad("a revocation's id is a UUID"))?;
    handling(move |call, _| async move { Ok(answer::json(200, &call.server.vending.revocation(OrderId(id)).await?)) })
}

/// `GET /admin/v1/blocks`.
pub(super) fn blocks(_: &Target) -> Result<Handling<String>, Refusal> {
    handling(|call, _| async move {
        let blocks = call.server.vending.store().list_blocks().await?;
        Ok(answer::json(200, &Blocks { blocks: blocks.into_iter().map(BlockLine::from).collect() }))
    })
}

/// `POST /admin/v1/unblock`.
pub(super) fn unblock(_: &Target) -> Result<Handling<String>, Refusal> {
    handling(|call, by: String| async move {
        let UnblockRequest { subject } = parse(&call.body)?;
        Ok(answer::json(200, &Unblocked { was_blocked: call.server.vending.unblock(&by, &subject).await? }))
    })
}

/// A report, and whether everything that it should say is done.
pub(super) fn answer_report(report: &RevocationReport) -> Reply {
    answer::json(if report.complete() { 200 } else { 202 }, report)
}
