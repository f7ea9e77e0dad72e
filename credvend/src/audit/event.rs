//! Everything that is put on record, and the line that each event becomes.

use std::net::IpAddr;

use credd_protocol::credentials::rfc3339_z;
use credd_protocol::node_api::CredentialsResponse;
use credd_protocol::{ClusterName, JobId, NodeName, ProjectId, RoleArn, RoleName, SessionId, Uid, UserName};
use time::{OffsetDateTime, UtcOffset};

use crate::refusal::Refusal;
use crate::store::{Block, Issuance, Order, Origin, Session, Subject};

/// The longest text of a field; hostile ones are cut.
const MAX_CHARS: usize = 1024;

/// What happened.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// The service is ready.
    ServiceStarted {
        /// Its host, pid and version.
        what: &'a str,
    },
    /// The service stops, as it was told to.
    ServiceStopped,
    /// So many lines could not be written before this one.
    LinesLost {
        /// How many.
        count: u64,
    },
    /// So many refusals came faster than they are written.
    RefusalsOmitted {
        /// How many.
        count: u64,
        /// Of callers that proved nothing; else of those that did.
        strangers: bool,
    },
    /// A job, or a head's statement, has a session from now on.
    SessionOpened {
        /// Which.
        session: &'a Session,
        /// The node that asked; none for a head's.
        node: Option<&'a NodeName>,
        /// From which address.
        peer: Option<IpAddr>,
    },
    /// A head opened its session again: the bearer's token is another one.
    TokenReplaced {
        /// Which.
        session: &'a Session,
        /// The head's address.
        peer: Option<IpAddr>,
    },
    /// A session is over.
    SessionEnded {
        /// With its status.
        session: &'a Session,
        /// Why.
        why: &'a str,
    },
    /// AWS gave credentials; nobody has them yet.
    CredentialsIssued {
        /// For this session.
        session: &'a Session,
        /// Which.
        issuance: &'a Issuance,
    },
    /// A node, or the bearer of a session token, gets a document: a new one, or one that is kept for all who ask.
    CredentialsDelivered {
        /// Of this session.
        session: &'a Session,
        /// Which role of its project.
        role: &'a RoleName,
        /// To whom.
        to: To<'a>,
        /// What.
        document: &'a CredentialsResponse,
        /// AWS knows the session by the document's name; else an upstream was asked for it, and composed its own.
        named: bool,
    },
    /// Somebody was refused.
    Refused(Refused<'a>),
    /// Somebody ordered a revocation; from now on it goes on until it is done.
    RevocationOrdered {
        /// Whose, by whom, why.
        order: &'a Order,
    },
    /// A revocation is done.
    RevocationDone {
        /// Which.
        order: &'a Order,
        /// Sessions that it ended.
        sessions: usize,
        /// What of the issued AWS denies for it.
        denied: usize,
        /// What it lacks: roles without their Deny, nodes not heard of.
        lacking: usize,
    },
    /// Nothing is opened or vended for a subject any more.
    Blocked {
        /// Whom, by whom, why.
        block: &'a Block,
    },
    /// It is again.
    Unblocked {
        /// Who said so.
        by: &'a str,
        /// Whom.
        subject: &'a Subject,
    },
    /// A role's policy of ours is what the store says, as IAM has taken it.
    DenyInForce {
        /// The role.
        role_arn: &'a RoleArn,
        /// How many entries it has; 0: it is gone.
        entries: usize,
    },
    /// It is not.
    DenyFailed {
        /// The role.
        role_arn: &'a RoleArn,
        /// IAM's reason.
        why: &'a str,
    },
    /// Another projects.toml is in force.
    ProjectsChanged {
        /// Who asked for the reload.
        by: &'a str,
        /// What is new, gone or changed.
        changes: &'a str,
    },
}

/// Who gets a document.
#[derive(Debug, Clone, Copy)]
pub enum To<'a> {
    /// A node, for its part of the job.
    Node {
        /// As it says, and proved as well as it can.
        node: &'a NodeName,
        /// From which address.
        peer: Option<IpAddr>,
    },
    /// Whoever bears a head's session token.
    Bearer {
        /// The `roleSessionName` that they asked for, and did not get.
        claimed: Option<&'a str>,
        /// From which address.
        peer: Option<IpAddr>,
    },
}

/// Who was refused what, as far as it is known.
#[derive(Debug, Clone, Default)]
pub struct Refused<'a> {
    /// They did not prove who they are.
    pub stranger: bool,
    /// Who asked, in words.
    pub by: Option<&'a str>,
    /// From where.
    pub peer: Option<String>,
    /// The caller's cluster.
    pub cluster: Option<&'a ClusterName>,
    /// The calling node.
    pub node: Option<&'a NodeName>,
    /// Which job: the session's, else as the caller says.
    pub job: Option<JobId>,
    /// Whose: the session's user.
    pub user: Option<&'a UserName>,
    /// Which user id: the session's, else as the caller says.
    pub uid: Option<Uid>,
    /// Which project: the session's, else as the caller says.
    pub project: Option<&'a ProjectId>,
    /// Which session.
    pub session: Option<SessionId>,
    /// Which session of a head.
    pub head_session: Option<&'a str>,
    /// Which role.
    pub role: Option<&'a RoleName>,
    /// Which request, where it did not get further.
    pub request: Option<&'a str>,
    /// Why.
    pub refusal: Option<&'a Refusal>,
}

impl Refused<'_> {
    /// Whether anybody who reaches the port can be refused like this, as often as they like.
    pub(super) fn is_of_stranger(&self) -> bool {
        self.stranger || matches!(self.refusal, Some(Refusal::Unauthenticated(_)))
    }
}

/// The kinds of events, as the field `event` has them.
pub const KINDS: &[&str] = &[
    "service-started",
    "service-stopped",
    "lines-lost",
    "refusals-omitted",
    "session-opened",
    "token-replaced",
    "session-ended",
    "credentials-issued",
    "credentials-delivered",
    "refused",
    "revocation-ordered",
    "revocation-done",
    "blocked",
    "unblocked",
    "deny-in-force",
    "deny-failed",
    "projects-changed",
];

/// Every field that a line may have.
pub const FIELDS: &[&str] = &[
    "v",
    "run",
    "seq",
    "time",
    "event",
    "cluster",
    "user",
    "uid",
    "project",
    "job",
    "restart",
    "head-session",
    "session",
    "node",
    "by",
    "peer",
    "request",
    "role",
    "role-arn",
    "role-id",
    "session-name",
    "principal-id",
    "asked-name",
    "source-identity",
    "key-id",
    "issued",
    "expires",
    "claimed",
    "status",
    "code",
    "order",
    "subject",
    "why",
    "what",
    "count",
    "sessions",
    "denied",
    "lacking",
];

impl Event<'_> {
    /// The word for it.
    pub fn kind(&self) -> &'static str {
        match self {
            Event::ServiceStarted { .. } => "service-started",
            Event::ServiceStopped => "service-stopped",
            Event::LinesLost { .. } => "lines-lost",
            Event::RefusalsOmitted { .. } => "refusals-omitted",
            Event::SessionOpened { .. } => "session-opened",
            Event::TokenReplaced { .. } => "token-replaced",
            Event::SessionEnded { .. } => "session-ended",
            Event::CredentialsIssued { .. } => "credentials-issued",
            Event::CredentialsDelivered { .. } => "credentials-delivered",
            Event::Refused(_) => "refused",
            Event::RevocationOrdered { .. } => "revocation-ordered",
            Event::RevocationDone { .. } => "revocation-done",
            Event::Blocked { .. } => "blocked",
            Event::Unblocked { .. } => "unblocked",
            Event::DenyInForce { .. } => "deny-in-force",
            Event::DenyFailed { .. } => "deny-failed",
            Event::ProjectsChanged { .. } => "projects-changed",
        }
    }

    /// The line's own fields as one JSON object; the writer puts its number before them.
    pub(super) fn to_json(&self, now: OffsetDateTime) -> String {
        timed(&self.body(), now)
    }

    /// The same without its time.
    pub(super) fn body(&self) -> String {
        let mut line = Object::new();
        line.text("event", self.kind());
        match self {
            Event::ServiceStarted { what } => line.text("what", what),
            Event::ServiceStopped => {}
            Event::LinesLost { count } => line.number("count", *count),
            Event::RefusalsOmitted { count, strangers } => {
                line.number("count", *count);
                let whose = if *strangers { "of callers that proved nothing" } else { "of callers that are known" };
                line.text("what", whose);
            }
            Event::SessionOpened { session, node, peer } => {
                line.session(session);
                line.maybe("node", node.map(NodeName::as_str));
                line.peer(*peer);
            }
            Event::TokenReplaced { session, peer } => {
                line.session(session);
                line.peer(*peer);
            }
            Event::SessionEnded { session, why } => {
                line.session(session);
                line.text("status", session.status.as_str());
                line.text("why", why);
            }
            Event::CredentialsIssued { session, issuance } => {
                line.session(session);
                line.maybe("node", issuance.node.as_ref().map(NodeName::as_str));
                line.text("role", issuance.role.as_str());
                line.text("role-arn", issuance.role_arn.as_str());
                if issuance.role_id.is_empty() {
                    // An upstream gave it. Its name in AWS, and so the principal, the upstream alone knows.
                    line.text("asked-name", &issuance.session_name);
                } else {
                    line.text("role-id", &issuance.role_id);
                    line.text("session-name", &issuance.session_name);
                    line.text("principal-id", &format!("{}:{}", issuance.role_id, issuance.session_name));
                }
                line.maybe("source-identity", issuance.source_identity.as_deref());
                line.text("key-id", &issuance.key_id);
                line.text("issued", &rfc3339_z::format(issuance.issued));
                line.text("expires", &rfc3339_z::format(issuance.expires));
            }
            Event::CredentialsDelivered { session, role, to, document, named } => {
                line.session(session);
                match to {
                    To::Node { node, peer } => {
                        line.text("node", node.as_str());
                        line.peer(*peer);
                    }
                    To::Bearer { claimed, peer } => {
                        line.peer(*peer);
                        line.maybe("claimed", *claimed);
                    }
                }
                line.text("role", role.as_str());
                line.text("role-arn", document.credentials.role_arn.as_str());
                line.text(if *named { "session-name" } else { "asked-name" }, &document.session_name);
                line.text("key-id", &document.credentials.access_key_id);
                line.text("issued", &rfc3339_z::format(document.issued));
                line.text("expires", &rfc3339_z::format(document.credentials.expiration));
            }
            Event::Refused(refused) => line.refused(refused),
            Event::RevocationOrdered { order } => {
                line.order(order);
                line.text("by", &order.by);
                line.maybe("why", order.why.as_deref());
            }
            Event::RevocationDone { order, sessions, denied, lacking } => {
                line.order(order);
                line.number("sessions", *sessions as u64);
                line.number("denied", *denied as u64);
                line.number("lacking", *lacking as u64);
            }
            Event::Blocked { block } => {
                line.subject(&block.subject);
                line.text("by", &block.by);
                line.maybe("why", block.why.as_deref());
            }
            Event::Unblocked { by, subject } => {
                line.subject(subject);
                line.text("by", by);
            }
            Event::DenyInForce { role_arn, entries } => {
                line.text("role-arn", role_arn.as_str());
                line.number("count", *entries as u64);
            }
            Event::DenyFailed { role_arn, why } => {
                line.text("role-arn", role_arn.as_str());
                line.text("why", why);
            }
            Event::ProjectsChanged { by, changes } => {
                line.text("by", by);
                line.text("what", changes);
            }
        }
        line.finish()
    }
}

/// A JSON object as it is written, in visible ASCII alone: whatever shows the file as it is shows no control sequence
/// and no reversed text of a user's.
struct Object(String);

impl Object {
    fn new() -> Self {
        Object(String::from("{"))
    }

    fn key(&mut self, key: &'static str) {
        debug_assert!(FIELDS.contains(&key), "{key} is not documented");
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0.push('"');
        self.0.push_str(key);
        self.0.push_str("\":");
    }

    fn text(&mut self, key: &'static str, text: &str) {
        self.key(key);
        self.0.push('"');
        for c in text.chars().take(MAX_CHARS) {
            match c {
                '"' | '\\' => self.0.extend(['\\', c]),
                ' '..='~' => self.0.push(c),
                _ => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.0.push_str(&format!("\\u{unit:04x}"));
                    }
                }
            }
        }
        self.0.push('"');
    }

    fn number(&mut self, key: &'static str, number: u64) {
        self.key(key);
        self.0.push_str(&number.to_string());
    }

    fn maybe<T: AsRef<str> + ?Sized>(&mut self, key: &'static str, text: Option<&T>) {
        if let Some(text) = text {
            self.text(key, text.as_ref());
        }
    }

    fn peer(&mut self, peer: Option<IpAddr>) {
        self.maybe("peer", peer.map(|peer| peer.to_canonical().to_string()).as_deref());
    }

    fn session(&mut self, session: &Session) {
        self.text("cluster", session.cluster.as_str());
        self.text("user", session.user.as_str());
        if let Some(uid) = session.uid {
            self.number("uid", uid.0.into());
        }
        self.text("project", session.project.as_str());
        match &session.origin {
            Origin::Slurm(run) => {
                self.number("job", run.job.get().into());
                self.number("restart", run.restart.into());
            }
            Origin::Head { head_session, .. } => self.text("head-session", head_session),
        }
        self.text("session", &session.id.to_string());
    }

    /// In words, and so that a question for a user or a job finds it.
    fn subject(&mut self, subject: &Subject) {
        let place = |cluster: &ClusterName, what: &str, name: &str| format!("{what} {name} of cluster {cluster}");
        let words = match subject {
            Subject::User(user) => {
                self.text("user", user.as_str());
                format!("user {}", user.as_str())
            }
            Subject::Project(project) => {
                self.text("project", project.as_str());
                format!("project {}", project.as_str())
            }
            Subject::Job(cluster, job) => {
                self.text("cluster", cluster.as_str());
                self.number("job", job.get().into());
                place(cluster, "job", &job.to_string())
            }
            Subject::Node(cluster, node) => {
                self.text("cluster", cluster.as_str());
                self.text("node", node.as_str());
                place(cluster, "node", node.as_str())
            }
            Subject::Role(role) => {
                self.text("role-arn", role.as_str());
                format!("role {}", role.as_str())
            }
        };
        self.text("subject", &words);
    }

    fn order(&mut self, order: &Order) {
        self.subject(&order.subject);
        self.text("order", &order.id.to_string());
        if let Some(clusters) = &order.clusters {
            let names: Vec<&str> = clusters.iter().map(ClusterName::as_str).collect();
            self.text("what", &format!("on {} only", names.join(", ")));
        } else if order.wide {
            self.text("what", "wide");
        }
    }

    fn refused(&mut self, of: &Refused<'_>) {
        self.maybe("cluster", of.cluster.map(ClusterName::as_str));
        self.maybe("user", of.user.map(UserName::as_str));
        if let Some(uid) = of.uid {
            self.number("uid", uid.0.into());
        }
        self.maybe("project", of.project.map(ProjectId::as_str));
        if let Some(job) = of.job {
            self.number("job", job.get().into());
        }
        self.maybe("head-session", of.head_session);
        if let Some(session) = of.session {
            self.text("session", &session.to_string());
        }
        self.maybe("node", of.node.map(NodeName::as_str));
        self.maybe("by", of.by);
        self.maybe("peer", of.peer.as_deref());
        self.maybe("request", of.request);
        self.maybe("role", of.role.map(RoleName::as_str));
        if let Some(refusal) = of.refusal {
            self.text("code", refusal.code());
            self.text("why", &refusal.to_string());
        }
    }

    fn finish(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

/// A line of this time.
fn timed(body: &str, now: OffsetDateTime) -> String {
    let rest = body.strip_prefix('{').unwrap_or(body);
    format!("{{\"time\":\"{}\",{rest}", stamp(now))
}

/// The line that says that something happened so many times more.
pub(super) fn again(body: &str, count: u64, now: OffsetDateTime) -> String {
    let mut line = Object(body.strip_suffix('}').unwrap_or(body).to_owned());
    line.number("count", count);
    timed(&line.finish(), now)
}

/// `2026-01-31T12:00:00.123Z`.
fn stamp(at: OffsetDateTime) -> String {
    use time::macros::format_description;
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    at.to_offset(UtcOffset::UTC).format(format).unwrap_or_default()
}
