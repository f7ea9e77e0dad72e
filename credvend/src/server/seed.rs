//! The first version's verbs, with its wire format.

use std::net::IpAddr;

use credd_protocol::seed_api::{OpenSession, SessionOpened, SessionStatus, SetStatus};
use credd_protocol::{ClusterName, ProjectId, TokenHash, UserName};

use super::Server;
use super::answer::{self, Reply};
use super::node::parse;
use super::revocations::answer_report;
use super::route::encode_segment;
use crate::refusal::Refusal;
use crate::vending::Head;

impl Server {
    /// `POST /sessions`.
    pub(super) async fn head_open(&self, head: &Head, stage: Option<&str>, body: &[u8]) -> Result<Reply, Refusal> {
        let request: OpenSession = parse(body)?;
        let opened = self.vending.open_for_head(head, &request).await?;
        let path = format!(
            "{}/sessions/{}/cluster/{}/project/{}",
            stage.map(|stage| format!("/{stage}")).unwrap_or_default(),
            encode_segment(&request.session_id),
            encode_segment(request.cluster_name.as_str()),
            encode_segment(request.project_id.as_str()),
        );
        let answer = SessionOpened {
            api_uri: format!("{}{path}", self.settings.public_url),
            // The first version said `localhost`; some SDKs take only the address.
            localhost_uri: format!("http://127.0.0.1:{}{path}", self.settings.localhost_port),
            token: opened.token,
        };
        Ok(answer::json(200, &answer))
    }

    /// Both PUT forms.
    pub(super) async fn head_set_status(
        &self,
        head: &Head,
        session: &str,
        cluster: Option<&ClusterName>,
        body: &[u8],
    ) -> Result<Reply, Refusal> {
        let SetStatus { status } = parse(body)?;
        self.vending.set_status_for_head(head, session, cluster, status).await?;
        Ok(answer::json(200, &serde_json::json!({ "sessionId": session, "status": SessionStatus::as_str(status) })))
    }

    /// The GET with a session token: the document itself.
    pub(super) async fn session_credentials(
        &self,
        token: TokenHash,
        session: &str,
        cluster: &ClusterName,
        project: &ProjectId,
        claimed: Option<&str>,
        peer: Option<IpAddr>,
    ) -> Result<Reply, Refusal> {
        if !self.settings.session_tokens {
            return Err(Refusal::NotAllowed {
                who: "the bearer of a session token".into(),
                why: "credvend's configuration has session-tokens = false; ask the node's credd at 127.0.0.1".into(),
            });
        }
        let answer = self.vending.credentials_for_token(token, session, cluster, project, claimed, peer).await?;
        Ok(answer::json(200, &answer.credentials))
    }

    /// DELETE: 200 when all is done, 202 when the report says what is lacking.
    pub(super) async fn invalidate_user(
        &self,
        by: &str,
        clusters: Option<&[ClusterName]>,
        user: &UserName,
    ) -> Result<Reply, Refusal> {
        Ok(answer_report(&self.vending.invalidate_user(by, clusters, user).await?))
    }
}
