//! The verbs of the IAM Credentials API (v1), with its wire format.

use std::net::IpAddr;

use credd_protocol::credentials::{Credentials, rfc3339_z};
use credd_protocol::credentials_api_v1::{OpenSession, SessionOpened, SessionStatus, SetStatus};
use credd_protocol::{ClusterName, ProjectId, RoleArn, Secret, TokenHash, UserName};
use serde::{Serialize, Serializer};

use super::Server;
use super::answer::{self, Reply};
use super::node::parse;
use super::principal::HeadProof;
use super::revocations::answer_report;
use super::route::{Handling, Invalidator, handling};
use super::target::{Target, bad, cut, encode_segment};
use crate::refusal::Refusal;
use crate::vending::Head;
use crate::vending::heads::wrong_token;

/// The document of the IAM Credentials API (v1). Its node proxy reads `Expiration` with
/// `datetime.fromisoformat(Expiration[:-6])`, which needs a fraction of a second that is three digits long, or six,
/// without the last six characters: eight digits and `Z` do for it in every Python 3, and every SDK takes them, where
/// none takes `+00:00`.
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

/// What is kept of the caller's `roleSessionName`.
const MAX_CLAIMED_CHARS: usize = 256;

/// `POST /sessions`.
pub(super) fn open(target: &Target) -> Result<Handling<Head>, Refusal> {
    let stage = target.stage.clone();
    handling(move |call, head| async move { call.server.head_open(&head, stage.as_deref(), &call.body).await })
}

/// Both PUT forms.
pub(super) fn set_status(target: &Target) -> Result<Handling<Head>, Refusal> {
    let (session, cluster) = (head_session(target)?, target.value_if_there("clusterId")?);
    handling(move |call, head| async move {
        call.server.head_set_status(&head, &session, cluster.as_ref(), &call.body).await
    })
}

/// The GET with a session token.
pub(super) fn credentials(target: &Target) -> Result<Handling<TokenHash>, Refusal> {
    let path = CredentialsPath::of(target)?;
    handling(move |call, token| async move {
        let peer = call.connection.peer().map(|peer| peer.ip().to_canonical());
        let CredentialsPath { session, cluster, project, claimed } = path;
        call.server.session_credentials(token, &session, &cluster, &project, claimed.as_deref(), peer).await
    })
}

/// DELETE of a user's sessions.
pub(super) fn invalidate(target: &Target) -> Result<Handling<Invalidator>, Refusal> {
    let user: UserName = target.value("userId")?;
    handling(move |call, who: Invalidator| async move {
        call.server.invalidate_user(&who.by, who.clusters.as_deref(), &user).await
    })
}

/// What the GET's target says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CredentialsPath {
    pub(super) session: String,
    pub(super) cluster: ClusterName,
    pub(super) project: ProjectId,
    /// The caller's `roleSessionName`: for the audit log, and nothing else.
    pub(super) claimed: Option<String>,
}

impl CredentialsPath {
    pub(super) fn of(target: &Target) -> Result<Self, Refusal> {
        let claimed = target.pairs()?.into_iter().find(|(key, _)| key == "roleSessionName");
        Ok(CredentialsPath {
            session: head_session(target)?,
            cluster: target.value("clusterId")?,
            project: target.value("projectId")?,
            claimed: claimed.map(|(_, name)| cut(&name, MAX_CLAIMED_CHARS)),
        })
    }
}

/// A head's own session id, as a rule a job id: it becomes a path segment and a part of names, so it is bounded.
fn head_session(target: &Target) -> Result<String, Refusal> {
    let text = target.text("sessionId");
    let good = |b: u8| b.is_ascii_graphic() && !br#"/?#%"'\<>"#.contains(&b);
    if text.is_empty() || text.len() > 128 || !text.bytes().all(good) || text == "." || text == ".." {
        return Err(bad(format!(
            "session id {:?} must have 1 to 128 visible ASCII characters except / ? # % quotes \\ < >",
            cut(text, 80)
        )));
    }
    Ok(text.to_owned())
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
            // The IAM Credentials API (v1) said `localhost`; some SDKs take only the address.
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
