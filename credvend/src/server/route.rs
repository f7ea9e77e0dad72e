//! Method and request target → a row of [`ROUTES`], with what the target says. No header, no body, no state.

use std::pin::Pin;
use std::sync::Arc;

use credd_protocol::{ClusterName, TokenHash};
use hyper::Method;
use hyper::body::Bytes;

use super::answer::Reply;
use super::routes::ROUTES;
use super::target::{Target, bad, cut, decode};
use super::{Connection, Server};
use crate::refusal::Refusal;
use crate::vending::{Head, Node};

/// No request target is longer.
pub const MAX_TARGET_BYTES: usize = 4096;

/// One thing that can be asked for.
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path; `{name}` stands for one segment.
    pub path: &'static str,
    /// A word for the audit log and the metrics.
    pub name: &'static str,
    /// Who may ask, and who answers.
    pub handler: Handler,
    /// Whether the server puts a caller that may not ask on record. What gets as far as [`crate::vending::Vending`] is put
    /// on record there, where more is known of it.
    pub recorded: bool,
}

impl Route {
    /// A row of the table.
    pub const fn new(method: Method, path: &'static str, name: &'static str, handler: Handler) -> Self {
        Route { method, path, name, handler, recorded: false }
    }

    /// The server puts callers that may not ask this on record.
    pub const fn recorded(mut self) -> Self {
        self.recorded = true;
        self
    }

    /// Who may ask.
    pub fn callers(&self) -> Callers {
        match self.handler {
            Handler::Everybody(_) => Callers::Everybody,
            Handler::Head(_) => Callers::Head,
            Handler::HeadOrAdmin(_) => Callers::HeadOrAdmin,
            Handler::Bearer(_) => Callers::Bearer,
            Handler::Node(_) => Callers::Node,
            Handler::Admin(_) => Callers::Admin,
        }
    }

    /// The values of this route's placeholders, if its path fits.
    fn values(&self, segments: &[String]) -> Option<Vec<(&'static str, String)>> {
        let mut values = Vec::new();
        let mut own = self.path.split('/').skip(1);
        for segment in segments {
            let pattern = own.next()?;
            match pattern.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
                Some(name) => values.push((name, segment.clone())),
                None if pattern == segment => {}
                None => return None,
            }
        }
        own.next().is_none().then_some(values)
    }
}

/// Who may ask for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// Anybody, without proof.
    Everybody,
    /// A cluster's head.
    Head,
    /// A cluster's head, for its own cluster; an administrator, for all.
    HeadOrAdmin,
    /// Whoever has the session's token.
    Bearer,
    /// A node.
    Node,
    /// An administrator.
    Admin,
}

impl Callers {
    /// Whose verb it is, and how to prove that one is such a caller.
    pub fn proof(self) -> (&'static str, &'static str) {
        match self {
            Callers::Everybody => ("it is for everybody", "ask without proof"),
            Callers::Head => {
                ("it is a head node's verb", "send the head-node secret in Authorization, or use a head certificate")
            }
            Callers::HeadOrAdmin => (
                "it is a head node's or an administrator's verb",
                "send the head-node secret in Authorization, or use the administrators' socket",
            ),
            Callers::Bearer => {
                ("it is for the bearer of the session's token", "send the session token in Authorization")
            }
            Callers::Node => {
                ("it is a node's verb", "prove by MUNGE as root, or by a node certificate, which node you are")
            }
            Callers::Admin => {
                ("it is an administrator's verb", "use the administrators' socket, or an administrator's certificate")
            }
        }
    }
}

/// Reads the target, before anything else is known of the request; what it returns does the work for such a caller.
pub type Prepare<C> = fn(&Target) -> Result<Handling<C>, Refusal>;

/// Does the work for a caller that has proven itself.
pub type Handling<C> = Box<dyn FnOnce(Call, C) -> Pin<Box<dyn Future<Output = Result<Reply, Refusal>> + Send>> + Send>;

/// What reads the target and answers, by who may ask.
pub enum Handler {
    /// Anybody, without proof.
    Everybody(Prepare<()>),
    /// A cluster's head.
    Head(Prepare<Head>),
    /// A cluster's head, or an administrator.
    HeadOrAdmin(Prepare<Invalidator>),
    /// Whoever has the session's token.
    Bearer(Prepare<TokenHash>),
    /// A node.
    Node(Prepare<Node>),
    /// An administrator, by this name.
    Admin(Prepare<String>),
}

/// The same once the target has been read.
pub enum Work {
    /// Anybody, without proof.
    Everybody(Handling<()>),
    /// A cluster's head.
    Head(Handling<Head>),
    /// A cluster's head, or an administrator.
    HeadOrAdmin(Handling<Invalidator>),
    /// Whoever has the session's token.
    Bearer(Handling<TokenHash>),
    /// A node.
    Node(Handling<Node>),
    /// An administrator, by this name.
    Admin(Handling<String>),
}

impl Handler {
    fn prepare(&self, target: &Target) -> Result<Work, Refusal> {
        Ok(match self {
            Handler::Everybody(prepare) => Work::Everybody(prepare(target)?),
            Handler::Head(prepare) => Work::Head(prepare(target)?),
            Handler::HeadOrAdmin(prepare) => Work::HeadOrAdmin(prepare(target)?),
            Handler::Bearer(prepare) => Work::Bearer(prepare(target)?),
            Handler::Node(prepare) => Work::Node(prepare(target)?),
            Handler::Admin(prepare) => Work::Admin(prepare(target)?),
        })
    }
}

/// Who ends a user's sessions.
pub struct Invalidator {
    /// For the record.
    pub by: String,
    /// On these clusters; `None`: on all.
    pub clusters: Option<Vec<ClusterName>>,
}

impl From<Head> for Invalidator {
    fn from(head: Head) -> Self {
        Invalidator { by: format!("the head of cluster {}", head.cluster), clusters: Some(vec![head.cluster]) }
    }
}

/// What a handler has besides its caller and the target.
pub struct Call {
    /// Everything that a request needs.
    pub server: Arc<Server>,
    /// Where the request came from.
    pub connection: Connection,
    /// The whole body; empty where everybody may ask.
    pub body: Bytes,
}

/// For the end of a [`Prepare`] function.
///
/// # Errors
/// None.
pub fn handling<C, F, W>(work: F) -> Result<Handling<C>, Refusal>
where
    F: FnOnce(Call, C) -> W + Send + 'static,
    W: Future<Output = Result<Reply, Refusal>> + Send + 'static,
{
    Ok(Box::new(move |call, caller| Box::pin(work(call, caller))))
}

/// What a request asks for.
pub struct Found {
    /// The row.
    pub route: &'static Route,
    /// What its handler does, given a caller.
    pub work: Work,
}

/// Finds the row, and lets its handler read the target.
///
/// # Errors
/// [`Refusal::BadRequest`], with the row if it was found, [`Refusal::NotFound`] or [`Refusal::MethodNotAllowed`].
pub fn find(method: &Method, target: &str) -> Result<Found, (Option<&'static Route>, Refusal)> {
    let (route, target) = find_row(method, target).map_err(|refusal| (None, refusal))?;
    let work = route.handler.prepare(&target).map_err(|refusal| (Some(route), refusal))?;
    Ok(Found { route, work })
}

fn find_row(method: &Method, target: &str) -> Result<(&'static Route, Target), Refusal> {
    if target.len() > MAX_TARGET_BYTES {
        return Err(bad(format!("a path has at most {MAX_TARGET_BYTES} bytes")));
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = path.strip_prefix('/').ok_or_else(|| bad("the path must begin with /"))?;
    let mut segments = path.split('/').map(decode).collect::<Result<Vec<_>, _>>()?;
    let shown = || cut(&format!("/{path}"), 200);
    let staged =
        matches!(&segments[..], [stage, api, ..] if stage != "sessions" && api == "sessions" && is_stage(stage));
    let stage = staged.then(|| segments.remove(0));
    let fitting = ROUTES.iter().filter_map(|route| Some((route, route.values(&segments)?)));
    let mut fitting: Vec<_> =
        fitting.map(|(route, values)| (route, Target::new(stage.clone(), values, query))).collect();
    if let Some(right) = fitting.iter().position(|(route, _)| route.method == *method) {
        return Ok(fitting.swap_remove(right));
    }
    let Some((first, target)) = fitting.first() else {
        return Err(Refusal::NotFound(format!("there is nothing at {:?}", shown())));
    };
    // A path that is not valid is told so, whatever is asked of it.
    first.handler.prepare(target)?;
    let allow = fitting.iter().map(|(route, _)| route.method.as_str()).collect::<Vec<_>>().join(", ");
    Err(Refusal::MethodNotAllowed { why: format!("{} is for {allow}, not {method}", shown()), allow })
}

fn is_stage(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

#[cfg(test)]
mod tests;
