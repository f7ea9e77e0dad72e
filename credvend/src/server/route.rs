//! Method and request target → what is asked for. Pure: no header, no body, no state.

use credd_protocol::endpoint::name_of_segment;
use credd_protocol::node_api::plain_epoch;
use credd_protocol::{ClusterName, PartitionName, ProjectId, SessionId, UserName};
use hyper::Method;

use crate::refusal::Refusal;
use crate::store::{Cursor, OrderId, SessionFilter};

/// No request target is longer.
pub const MAX_TARGET_BYTES: usize = 4096;

/// No query has more pairs.
const MAX_QUERY_PAIRS: usize = 16;

/// What is kept of the caller's `roleSessionName`.
const MAX_CLAIMED_CHARS: usize = 256;

/// Everything that can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// `GET /health`: the process lives.
    Health,
    /// `GET /ready`: it can work.
    Ready,
    /// `POST [/STAGE]/sessions`.
    HeadOpen {
        /// The API stage before the path, such as `prod`; it stands in the answer's URLs again.
        stage: Option<String>,
    },
    /// `PUT [/STAGE]/sessions/{sessionId}[/cluster/{clusterId}]`.
    HeadSetStatus {
        /// The head's id of the session.
        session: String,
        /// The cluster, in the longer form.
        cluster: Option<ClusterName>,
    },
    /// `GET [/STAGE]/sessions/{sessionId}/cluster/{clusterId}/project/{projectId}`.
    SessionCredentials {
        /// The head's id of the session.
        session: String,
        /// The cluster.
        cluster: ClusterName,
        /// The project.
        project: ProjectId,
        /// The caller's `roleSessionName`: for the audit log, and nothing else.
        claimed: Option<String>,
    },
    /// `DELETE [/STAGE]/sessions/users/{userId}`.
    InvalidateUser {
        /// Exactly this user.
        user: UserName,
    },
    /// `POST /node/v1/jobs`.
    NodeAttest,
    /// `POST /node/v1/sessions`.
    NodeOpen {
        /// The partition that the node's record states.
        partition: Option<PartitionName>,
    },
    /// `POST /node/v1/sessions/{uuid}/credentials`.
    NodeCredentials {
        /// Of which session.
        session: SessionId,
    },
    /// `POST /node/v1/sessions/{uuid}/leave`.
    NodeLeave {
        /// Which session.
        session: SessionId,
    },
    /// `GET /node/v1/stream`.
    NodeStream {
        /// The epoch that the node knows, and up to which number it has heard everything.
        known: Option<(String, u64)>,
    },
    /// `POST /node/v1/heard`.
    NodeHeard,
    /// Under `/admin/v1/`.
    Admin(AdminVerb),
}

impl Verb {
    /// Whether only nodes ask for it.
    pub fn is_of_nodes(&self) -> bool {
        matches!(
            self,
            Verb::NodeOpen { .. }
                | Verb::NodeAttest
                | Verb::NodeCredentials { .. }
                | Verb::NodeLeave { .. }
                | Verb::NodeStream { .. }
                | Verb::NodeHeard
        )
    }

    /// A word for the audit log and the metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Verb::Health => "health",
            Verb::Ready => "ready",
            Verb::HeadOpen { .. } => "head-open",
            Verb::HeadSetStatus { .. } => "head-set-status",
            Verb::SessionCredentials { .. } => "session-credentials",
            Verb::InvalidateUser { .. } => "invalidate-user",
            Verb::NodeAttest => "node-attest",
            Verb::NodeOpen { .. } => "node-open",
            Verb::NodeCredentials { .. } => "node-credentials",
            Verb::NodeLeave { .. } => "node-leave",
            Verb::NodeStream { .. } => "node-stream",
            Verb::NodeHeard => "node-heard",
            Verb::Admin(_) => "admin",
        }
    }
}

/// What an administrator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminVerb {
    /// `GET sessions`.
    List {
        /// Which ones.
        filter: SessionFilter,
        /// Where the page begins.
        from: Option<Cursor>,
    },
    /// `GET sessions/{uuid}`.
    Show {
        /// Which one.
        session: SessionId,
        /// Where the page of what was issued begins.
        from: Option<Cursor>,
    },
    /// `POST sessions/{uuid}/close`.
    Close(SessionId),
    /// `POST revocations`.
    Revoke,
    /// `GET revocations`.
    Revocations {
        /// Where the page begins.
        from: Option<Cursor>,
    },
    /// `GET revocations/{id}`.
    Revocation(OrderId),
    /// `GET blocks`.
    Blocks,
    /// `POST unblock`.
    Unblock,
    /// `GET identity`: who credvend is in AWS.
    Identity,
    /// `GET projects`.
    Projects,
    /// `POST reload`.
    Reload,
    /// `GET status`.
    Status,
}

/// Reads method and target.
///
/// # Errors
/// [`Refusal::BadRequest`], [`Refusal::NotFound`] or [`Refusal::MethodNotAllowed`].
pub fn route(method: &Method, target: &str) -> Result<Verb, Refusal> {
    if target.len() > MAX_TARGET_BYTES {
        return Err(bad(format!("a path has at most {MAX_TARGET_BYTES} bytes")));
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = path.strip_prefix('/').ok_or_else(|| bad("the path must begin with /"))?;
    let segments = path.split('/').map(decode).collect::<Result<Vec<_>, _>>()?;
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let not_found = || Refusal::NotFound(format!("there is nothing at {:?}", cut(&format!("/{path}"), 200)));
    let allowed = |right: Method, verb: Verb| {
        if *method == right {
            return Ok(verb);
        }
        Err(Refusal::MethodNotAllowed(format!("{} is for {right}, not {method}", cut(&format!("/{path}"), 200))))
    };
    match segments[..] {
        ["health"] => allowed(Method::GET, Verb::Health),
        ["ready"] => allowed(Method::GET, Verb::Ready),
        ["node", "v1", ref rest @ ..] => match rest {
            ["jobs"] => allowed(Method::POST, Verb::NodeAttest),
            ["sessions"] => allowed(Method::POST, Verb::NodeOpen { partition: open_query(query)? }),
            ["sessions", id, "credentials"] => allowed(Method::POST, Verb::NodeCredentials { session: parse(id)? }),
            ["sessions", id, "leave"] => allowed(Method::POST, Verb::NodeLeave { session: parse(id)? }),
            ["stream"] => allowed(Method::GET, Verb::NodeStream { known: stream_query(query)? }),
            ["heard"] => allowed(Method::POST, Verb::NodeHeard),
            _ => Err(not_found()),
        },
        ["admin", "v1", ref rest @ ..] => match rest {
            ["sessions"] => {
                let (filter, from) = list_query(query)?;
                allowed(Method::GET, Verb::Admin(AdminVerb::List { filter, from }))
            }
            ["sessions", id] => {
                let (session, from) = (parse(id)?, page_query(query)?);
                allowed(Method::GET, Verb::Admin(AdminVerb::Show { session, from }))
            }
            ["sessions", id, "close"] => allowed(Method::POST, Verb::Admin(AdminVerb::Close(parse(id)?))),
            ["revocations"] if *method == Method::GET => {
                Ok(Verb::Admin(AdminVerb::Revocations { from: page_query(query)? }))
            }
            ["revocations"] => allowed(Method::POST, Verb::Admin(AdminVerb::Revoke)),
            ["revocations", id] => allowed(Method::GET, Verb::Admin(AdminVerb::Revocation(order_id(id)?))),
            ["blocks"] => allowed(Method::GET, Verb::Admin(AdminVerb::Blocks)),
            ["unblock"] => allowed(Method::POST, Verb::Admin(AdminVerb::Unblock)),
            ["identity"] => allowed(Method::GET, Verb::Admin(AdminVerb::Identity)),
            ["projects"] => allowed(Method::GET, Verb::Admin(AdminVerb::Projects)),
            ["reload"] => allowed(Method::POST, Verb::Admin(AdminVerb::Reload)),
            ["status"] => allowed(Method::GET, Verb::Admin(AdminVerb::Status)),
            _ => Err(not_found()),
        },
        ["sessions", ref rest @ ..] => seed(None, rest, query, &allowed).unwrap_or_else(|| Err(not_found())),
        [stage, "sessions", ref rest @ ..] if is_stage(stage) => {
            seed(Some(stage.to_owned()), rest, query, &allowed).unwrap_or_else(|| Err(not_found()))
        }
        _ => Err(not_found()),
    }
}

/// The paths of the first version, below `sessions`. `None`: no such path.
fn seed(
    stage: Option<String>,
    rest: &[&str],
    query: &str,
    allowed: &dyn Fn(Method, Verb) -> Result<Verb, Refusal>,
) -> Option<Result<Verb, Refusal>> {
    let verb = || {
        Ok(match rest {
            [] => (Method::POST, Verb::HeadOpen { stage }),
            ["users", user] => (Method::DELETE, Verb::InvalidateUser { user: parse(user)? }),
            [session] => (Method::PUT, Verb::HeadSetStatus { session: head_session(session)?, cluster: None }),
            [session, "cluster", cluster] => {
                let (session, cluster) = (head_session(session)?, Some(parse(cluster)?));
                (Method::PUT, Verb::HeadSetStatus { session, cluster })
            }
            [session, "cluster", cluster, "project", project] => {
                let claimed = pairs(query)?.into_iter().find(|(key, _)| key == "roleSessionName");
                let claimed = claimed.map(|(_, name)| cut(&name, MAX_CLAIMED_CHARS));
                let (session, cluster, project) = (head_session(session)?, parse(cluster)?, parse(project)?);
                (Method::GET, Verb::SessionCredentials { session, cluster, project, claimed })
            }
            _ => return Err(None),
        })
    };
    match verb() {
        Ok((method, verb)) => Some(allowed(method, verb)),
        Err(refusal) => refusal.map(Err),
    }
}

/// A head's own session id, as a rule a job id: it becomes a path segment and a part of names, so it is bounded.
///
/// # Errors
/// [`Refusal::BadRequest`].
pub fn head_session(text: &str) -> Result<String, Refusal> {
    let good = |b: u8| b.is_ascii_graphic() && !br#"/?#%"'\<>"#.contains(&b);
    if text.is_empty() || text.len() > 128 || !text.bytes().all(good) || text == "." || text == ".." {
        return Err(bad(format!(
            "session id {:?} must have 1 to 128 visible ASCII characters except / ? # % quotes \\ < >",
            cut(text, 80)
        )));
    }
    Ok(text.to_owned())
}

/// A name as a path segment: what RFC 3986 lets stand there stays, since some SDKs encode a `%` again.
pub fn encode_segment(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!$&()*+,;=:@".contains(&byte) {
            text.push(byte.into());
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

fn is_stage(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

/// `partition=…`, or nothing.
fn open_query(query: &str) -> Result<Option<PartitionName>, Refusal> {
    let mut partition = None;
    for (key, value) in pairs(query)? {
        if key != "partition" || partition.is_some() {
            return Err(bad(format!("a session cannot be opened by {:?}", cut(&key, 40))));
        }
        let name = name_of_segment(&value).ok_or_else(|| bad("a ~ must be followed by two hex digits"))?;
        partition = Some(parse(&name)?);
    }
    Ok(partition)
}

/// `epoch=…&after=…`, or nothing.
fn stream_query(query: &str) -> Result<Option<(String, u64)>, Refusal> {
    let (mut epoch, mut after) = (None, None);
    for (key, value) in pairs(query)? {
        match key.as_str() {
            "epoch" if plain_epoch(&value) => epoch = Some(value),
            "after" => after = Some(value.parse().map_err(|_| bad("after= is the number of an event"))?),
            _ => return Err(bad(format!("a stream cannot begin by {:?}", cut(&key, 40)))),
        }
    }
    match (epoch, after) {
        (Some(epoch), Some(after)) => Ok(Some((epoch, after))),
        (None, None) => Ok(None),
        _ => Err(bad("epoch= and after= belong together")),
    }
}

fn list_query(query: &str) -> Result<(SessionFilter, Option<Cursor>), Refusal> {
    let (mut filter, mut from) = (SessionFilter::default(), None);
    for (key, value) in pairs(query)? {
        match key.as_str() {
            "status" => {
                let status = serde_json::Value::String(value.to_ascii_uppercase());
                filter.status = Some(
                    serde_json::from_value(status)
                        .map_err(|_| bad("a status is ACTIVE, INVALIDATED or COMPLETED".to_owned()))?,
                );
            }
            "cluster" => filter.cluster = Some(parse(&value)?),
            "user" => filter.user = Some(parse(&value)?),
            "project" => filter.project = Some(parse(&value)?),
            "job" => filter.job = Some(parse(&value)?),
            "from" => from = Some(Cursor(value)),
            _ => return Err(bad(format!("sessions cannot be chosen by {:?}", cut(&key, 40)))),
        }
    }
    Ok((filter, from))
}

fn page_query(query: &str) -> Result<Option<Cursor>, Refusal> {
    let mut from = None;
    for (key, value) in pairs(query)? {
        match key.as_str() {
            "from" => from = Some(Cursor(value)),
            _ => return Err(bad(format!("these cannot be chosen by {:?}", cut(&key, 40)))),
        }
    }
    Ok(from)
}

fn order_id(text: &str) -> Result<OrderId, Refusal> {
    uuid::Uuid::try_parse(text).map(OrderId).map_err(|_| bad("a revocation's id is a UUID"))
}

fn pairs(query: &str) -> Result<Vec<(String, String)>, Refusal> {
    let pairs: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty()).take(MAX_QUERY_PAIRS + 1).collect();
    if pairs.len() > MAX_QUERY_PAIRS {
        return Err(bad(format!("a query has at most {MAX_QUERY_PAIRS} pairs")));
    }
    let pair = |text: &str| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        Ok((decode(key)?, decode(value)?))
    };
    pairs.into_iter().map(pair).collect()
}

/// Resolves `%XX`; what comes out is text without control characters.
pub(super) fn decode(text: &str) -> Result<String, Refusal> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let [high, low, tail @ ..] = tail else { return Err(bad("a % must be followed by two hex digits")) };
        let (Some(high), Some(low)) = (digit(*high), digit(*low)) else {
            return Err(bad("a % must be followed by two hex digits"));
        };
        bytes.push(high << 4 | low);
        rest = tail;
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => Ok(text),
        _ => Err(bad("the path and query must be text without control characters")),
    }
}

fn parse<T: std::str::FromStr<Err = credd_protocol::Invalid>>(text: &str) -> Result<T, Refusal> {
    text.parse().map_err(|e: credd_protocol::Invalid| bad(e.to_string()))
}

fn bad(why: impl Into<String>) -> Refusal {
    Refusal::BadRequest(why.into())
}

fn cut(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seed_credentials(stage_and_path: &str) -> Verb {
        route(&Method::GET, stage_and_path).unwrap()
    }

    #[test]
    fn the_first_versions_paths_with_and_without_a_stage() {
        let expected = Verb::SessionCredentials {
            session: "1300".into(),
            cluster: "alpha".parse().unwrap(),
            project: "abc".parse().unwrap(),
            claimed: Some("alpha-user1-n1".into()),
        };
        let path = "/sessions/1300/cluster/alpha/project/abc?roleSessionName=alpha-user1-n1&x=%20";
        assert_eq!(seed_credentials(path), expected);
        assert_eq!(seed_credentials(&format!("/prod{path}")), expected);
        assert_eq!(route(&Method::POST, "/sessions").unwrap(), Verb::HeadOpen { stage: None });
        assert_eq!(route(&Method::POST, "/prod/sessions").unwrap(), Verb::HeadOpen { stage: Some("prod".into()) });
        let put = |cluster| Verb::HeadSetStatus { session: "users".into(), cluster };
        assert_eq!(route(&Method::PUT, "/sessions/users").unwrap(), put(None));
        assert_eq!(route(&Method::PUT, "/p/sessions/users/cluster/c").unwrap(), put(Some("c".parse().unwrap())));
        let delete = Verb::InvalidateUser { user: r"DOM\bob".parse().unwrap() };
        assert_eq!(route(&Method::DELETE, "/sessions/users/DOM%5Cbob").unwrap(), delete);
    }

    #[test]
    fn what_is_not_there_is_told_apart_from_what_is_wrong() {
        for (method, target, status) in [
            (Method::GET, "/", 404),
            (Method::GET, "//sessions", 404),
            (Method::POST, "/a/b/sessions", 404),
            (Method::POST, "/sessions/", 400),
            (Method::POST, "/p.q/sessions", 404),
            (Method::GET, "/sessions", 405),
            (Method::POST, "/node/v1/stream", 405),
            (Method::GET, "/node/v1/heard", 405),
            (Method::GET, "/node/v1/jobs", 405),
            (Method::POST, "/node/v1/sessions?project=a", 400),
            (Method::POST, "/node/v1/sessions?partition=a&partition=a", 400),
            (Method::POST, "/node/v1/sessions?partition=", 400),
            (Method::POST, "/node/v1/sessions?partition=a~2", 400),
            (Method::POST, "/node/v1/sessions?partition=~0a", 400),
            (Method::GET, "/node/v1/stream?epoch=a", 400),
            (Method::GET, "/node/v1/stream?after=7", 400),
            (Method::GET, "/node/v1/stream?epoch=a&after=-7", 400),
            (Method::GET, "/node/v1/stream?epoch=a%20b&after=7", 400),
            (Method::GET, "/node/v1/stream?epoch=a&after=7&x=y", 400),
            (Method::POST, "/prod/node/v1/sessions", 404),
            (Method::POST, "/node/v1/sessions/5/leave", 400),
            (Method::GET, "/sessions/1/cluster/a%E2%80%AEb/project/p", 400),
            (Method::GET, "/sessions/1/cluster/a/project/p%", 400),
            (Method::GET, "/sessions/1/cluster/a/project/%00", 400),
            (Method::GET, "/sessions/1/cluster/a/project/p?roleSessionName=%zz", 400),
            (Method::GET, "/admin/v1/sessions?surprise=1", 400),
            (Method::GET, "/admin/v1/sessions?status=gone", 400),
        ] {
            let refusal = route(&method, target).unwrap_err();
            assert_eq!(refusal.status(), status, "{method} {target}: {refusal}");
        }
        assert_eq!(route(&Method::GET, &format!("/{}", "a".repeat(5000))).unwrap_err().status(), 400);
    }

    #[test]
    fn a_record_states_its_partition() {
        let job = credd_protocol::JobId::try_from(7).unwrap();
        let mut request = credd_protocol::node_api::OpenRequest {
            job,
            restart: 0,
            uid: credd_protocol::Uid(1),
            account: None,
            partition: None,
        };
        for partition in [None, Some("gpu_1.x-y".parse().unwrap())] {
            request.partition = partition.clone();
            assert_eq!(route(&Method::POST, &request.path()).unwrap(), Verb::NodeOpen { partition });
        }
    }

    #[test]
    fn a_stream_begins_where_the_node_left_off() {
        let stream = |known| route(&Method::GET, &credd_protocol::node_api::stream_path(known)).unwrap();
        assert_eq!(stream(Some(("a-1", 7))), Verb::NodeStream { known: Some(("a-1".into(), 7)) });
        assert_eq!(stream(None), Verb::NodeStream { known: None });
    }

    #[test]
    fn a_listing_is_chosen_by_its_query() {
        let verb = route(&Method::GET, "/admin/v1/sessions?status=active&user=bob&job=5&from=x%3Ay").unwrap();
        let Verb::Admin(AdminVerb::List { filter, from }) = verb else { panic!("{verb:?}") };
        assert_eq!(filter.user.unwrap().as_str(), "bob");
        assert_eq!((filter.job.unwrap().get(), from), (5, Some(Cursor("x:y".into()))));
    }

    proptest! {
        #[test]
        fn no_target_panics(target in ".*", method in "(GET|PUT|POST|DELETE|HEAD|BREW)") {
            let _ = route(&method.parse().unwrap(), &target);
            let _ = route(&method.parse().unwrap(), &format!("/sessions/{target}"));
            let _ = route(&method.parse().unwrap(), &format!("/admin/v1/sessions?{target}"));
        }

        #[test]
        fn a_segment_survives_encoding(name in "[ -~é漢]{1,40}") {
            prop_assert_eq!(decode(&encode_segment(&name)).unwrap(), name.clone());
            prop_assert!(!encode_segment(&name).contains(['/', '?', '#']));
        }

        #[test]
        fn every_project_can_be_addressed(project in "[ -~é漢]{1,40}") {
            if let Ok(project) = project.parse::<ProjectId>() {
                let path = format!("/sessions/1/cluster/c/project/{}", encode_segment(project.as_str()));
                match route(&Method::GET, &path).unwrap() {
                    Verb::SessionCredentials { project: read, .. } => prop_assert_eq!(read, project),
                    other => prop_assert!(false, "{:?}", other),
                }
            }
        }
    }
}
