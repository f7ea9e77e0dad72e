//! The first version's verbs, with its wire format.

use std::net::IpAddr;

use credd_protocol::credentials::{Credentials, rfc3339_z};
use credd_protocol::seed_api::{OpenSession, SessionOpened, SessionStatus, SetStatus};
use credd_protocol::{ClusterName, ProjectId, RoleArn, Secret, TokenHash, UserName};
use serde::{Serialize, Serializer};

use super::Server;
use super::answer::{self, Reply};
use super::node::parse;
use super::principal::HeadProof;
use super::revocations::answer_report;
use super::route::encode_segment;
use crate::refusal::Refusal;
use crate::vending::Head;
use crate::vending::heads::wrong_token;

/// The document of the API's first version. Its node proxy reads `Expiration` with `datetime.fromisoformat(Expiration[:-6])`,
/// which needs a fraction of a second that is three digits long, or six, without the last six characters: eight digits and
/// `Z` do for it in every Python 3, and every SDK takes them, where none takes `+00:00`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct V1Document<'a> {
    access_key_id: &'a str,
    #[serde(serialize_with = "exposed")]
    secret_access_key: &'a Secret,
    #[serde(serialize_with = "exposed")]
    token: &'a Secret,
    expiration: String,
    role_arn: &'a RoleArn,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_id: Option<&'a str>,
}

fn exposed<S: Serializer>(secret: &&Secret, serializer: S) -> Result<S::Ok, S::Error> {
    Secret::serialize_exposed(secret, serializer)
}

impl<'a> V1Document<'a> {
    fn of(credentials: &'a Credentials) -> Self {
        let whole = rfc3339_z::format(credentials.expiration);
        V1Document {
            access_key_id: &credentials.access_key_id,
            secret_access_key: &credentials.secret_access_key,
            token: &credentials.token,
            expiration: format!("{}.00000000Z", whole.trim_end_matches('Z')),
            role_arn: &credentials.role_arn,
            account_id: credentials.account_id.as_deref(),
        }
    }
}

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
        // Anybody may ask this, so the store is asked only where the cluster can have such sessions.
        let possible = match self.authenticator.heads_of(cluster) {
            HeadProof::Secret => true,
            HeadProof::Certificate(cluster) => self.vending.may_have_head_sessions(cluster).await,
            HeadProof::None => false,
        };
        if !possible {
            return Err(wrong_token(session));
        }
        let answer = self.vending.credentials_for_token(token, session, cluster, project, claimed, peer).await?;
        Ok(answer::json(200, &V1Document::of(&answer.credentials)))
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
