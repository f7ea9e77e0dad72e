//! The names under which AWS sees a job: role-session name, source identity, tag values.
//!
//! A role-session name is made by a [`Template`]: parts in braces, and text between them that keeps them apart. Under one
//! template two jobs' places share a name only if they differ in nothing that the template names, so that a Deny by name
//! hits nobody else: in a part's value every character that is not a letter, digit, `_` or `.` is written as `=` and two
//! upper-case hex digits (only the last part keeps its dashes), so that the text after a part, which begins with one of
//! `-+,@`, surely ends it. The form of the IAM Credentials API (v1), `cluster-user-node`, comes out as it always was
//! wherever it is unambiguous. What exceeds AWS' 64 characters keeps its beginning, followed by `=h` and 128 bits of
//! SHA-256 of the whole; no escape begins with `=h`. A node's name of digits alone has its first one escaped: it is no
//! job's number.

use std::fmt;
use std::str::FromStr;

use credd_protocol::{ClusterName, NodeName, ProjectId, UserName, hex};
use sha2::{Digest, Sha256};

use crate::projects::Role;
use crate::store::{Origin, Session};

/// AWS' limit for role-session names and source identities; the least is 2.
const MAX: usize = 64;

/// How much of an overlong name stays readable: the rest is the mark and 32 hex digits.
const KEPT: usize = MAX - 2 - 32;

/// The most characters of a template's own text, so that something of the parts stays readable.
const MAX_TEXT: usize = 24;

/// What a template may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `{cluster}`
    Cluster,
    /// `{user}`
    User,
    /// `{node}`; of a head's session, which has no node that could be proven, the head's session id.
    Node,
    /// `{job}`: Slurm's number, or the head's session id.
    Job,
    /// `{project}`
    Project,
}

const PARTS: [(&str, Part); 5] = [
    ("cluster", Part::Cluster),
    ("user", Part::User),
    ("node", Part::Node),
    ("job", Part::Job),
    ("project", Part::Project),
];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Part(Part),
}

/// How a role-session name is composed, as `session-name` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

/// Why a text is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("session-name {text:?}: {why}")]
pub struct BadTemplate {
    text: String,
    why: String,
}

impl Default for Template {
    /// As in the IAM Credentials API (v1).
    fn default() -> Self {
        Template::joined([Part::Cluster, Part::User, Part::Node])
    }
}

impl FromStr for Template {
    type Err = BadTemplate;

    fn from_str(text: &str) -> Result<Self, BadTemplate> {
        let bad = |why: String| BadTemplate { text: text.chars().take(128).collect(), why };
        let pieces = pieces(text).map_err(bad)?;
        let template = Template(pieces);
        template.check().map_err(bad)?;
        Ok(template)
    }
}

fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('{') {
            let (name, after) = inner.split_once('}').ok_or("a { has no } after it")?;
            let part = PARTS.iter().find(|(known, _)| *known == name).map(|(_, part)| *part).ok_or_else(|| {
                let name: String = name.chars().take(40).collect();
                format!("there is no part {name:?}; there are {{cluster}}, {{user}}, {{node}}, {{job}} and {{project}}")
            })?;
            if pieces.contains(&Piece::Part(part)) {
                return Err(format!("it has {{{name}}} twice"));
            }
            pieces.push(Piece::Part(part));
            rest = after;
        } else {
            let end = rest.find('{').unwrap_or(rest.len());
            pieces.push(Piece::Text(rest[..end].to_owned()));
            rest = &rest[end..];
        }
    }
    Ok(pieces)
}

impl Template {
    fn joined(parts: [Part; 3]) -> Self {
        let mut pieces = Vec::new();
        for part in parts {
            if !pieces.is_empty() {
                pieces.push(Piece::Text("-".into()));
            }
            pieces.push(Piece::Part(part));
        }
        Template(pieces)
    }

    /// Of a job as a whole: `{cluster}-{user}-{job}`.
    pub fn of_jobs() -> Self {
        Template::joined([Part::Cluster, Part::User, Part::Job])
    }

    fn check(&self) -> Result<(), String> {
        if !self.has(Part::User) && !self.has(Part::Job) {
            return Err(
                "it has neither {user} nor {job}: AWS, its logs and a revocation could not tell users apart".into()
            );
        }
        let mut length = 0;
        for (at, piece) in self.0.iter().enumerate() {
            let Piece::Text(text) = piece else {
                if matches!(self.0.get(at + 1), Some(Piece::Part(_))) {
                    return Err("two parts need one of - + , @ between them, or their values would run together".into());
                }
                continue;
            };
            length += text.len();
            if let Some(other) = text.chars().find(|c| !c.is_ascii_alphanumeric() && !"_+,.@-".contains(*c)) {
                return Err(format!(
                    "{other:?} cannot stand there; AWS takes letters, digits and _ + , . @ - (= marks escapes)"
                ));
            }
            let between = at > 0 && at + 1 < self.0.len();
            if between && !text.starts_with(['-', '+', ',', '@']) {
                return Err(format!(
                    "the text {text:?} after a part must begin with one of - + , @, or it could be of the part's value"
                ));
            }
        }
        if length > MAX_TEXT {
            return Err(format!("its own text has {length} characters, {MAX_TEXT} at most leave room for the parts"));
        }
        Ok(())
    }

    /// Whether it names a part.
    pub fn has(&self, part: Part) -> bool {
        self.0.contains(&Piece::Part(part))
    }

    /// The name of a place.
    pub fn compose(&self, of: &Place<'_>) -> String {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'.';
        let last = self.0.iter().rposition(|piece| matches!(piece, Piece::Part(_)));
        let mut name = String::with_capacity(MAX);
        for (at, piece) in self.0.iter().enumerate() {
            let (part, dashes) = match piece {
                Piece::Text(text) => {
                    name.push_str(text);
                    continue;
                }
                Piece::Part(part) => (*part, Some(at) == last),
            };
            let mut value = of.value(part);
            if part == Part::Node && of.node.is_some() && value.bytes().all(|b| b.is_ascii_digit()) {
                let first;
                (first, value) = value.split_at(value.len().min(1));
                escape(&mut name, first, |_| false);
            }
            escape(&mut name, value, |b| plain(b) || (dashes && b == b'-'));
        }
        if name.len() < 2 {
            let short = std::mem::take(&mut name);
            escape(&mut name, &short, |_| false);
        }
        shorten(name)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => f.write_str(text)?,
                Piece::Part(part) => {
                    let name = PARTS.iter().find(|(_, known)| known == part).map_or("", |(name, _)| name);
                    write!(f, "{{{name}}}")?;
                }
            }
        }
        Ok(())
    }
}

/// Where something runs, for whom.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The cluster.
    pub cluster: &'a ClusterName,
    /// The user.
    pub user: &'a UserName,
    /// The project.
    pub project: &'a ProjectId,
    /// The job's number, or the head's session id.
    pub job: &'a str,
    /// The node, where there is one.
    pub node: Option<&'a NodeName>,
}

impl Place<'_> {
    fn value(&self, part: Part) -> &str {
        match part {
            Part::Cluster => self.cluster.as_str(),
            Part::User => self.user.as_str(),
            Part::Node => self.node.map_or(self.job, |node| node.as_str()),
            Part::Job => self.job,
            Part::Project => self.project.as_str(),
        }
    }
}

/// How this credvend names sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// `session-name`, where a role has none of its own.
    pub template: Template,
    /// `node-names-up-to`: jobs with more nodes have one name for all of them.
    pub node_names_up_to: u32,
}

impl Default for Names {
    fn default() -> Self {
        Names { template: Template::default(), node_names_up_to: 256 }
    }
}

/// A role-session name, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The name.
    pub name: String,
    /// The one node that has it; `None` if all of the job's nodes share it.
    pub node: Option<NodeName>,
}

impl Names {
    /// The name of a session's credentials of a role, on a node if it is asked for by one. How many nodes the job has was
    /// settled when its session was opened: a name that changed under a running job would surprise whoever waits for it
    /// in a log or a policy.
    pub fn of(&self, session: &Session, role: &Role, node: Option<&NodeName>) -> Named {
        let own = role.session_name.as_ref().unwrap_or(&self.template);
        let of_jobs;
        let crowd = u32::try_from(session.nodes.len()).unwrap_or(u32::MAX) > self.node_names_up_to;
        let template = if crowd && own.has(Part::Node) {
            of_jobs = Template::of_jobs();
            &of_jobs
        } else {
            own
        };
        let number;
        let job = match &session.origin {
            Origin::Slurm(run) => {
                number = run.job.to_string();
                &number
            }
            Origin::Head { head_session, .. } => head_session,
        };
        let (cluster, user, project) = (&session.cluster, &session.user, &session.project);
        let name = template.compose(&Place { cluster, user, project, job, node });
        Named { name, node: node.filter(|_| template.has(Part::Node)).cloned() }
    }
}

/// `SourceIdentity`: the user's name, with what AWS does not take escaped. A name of one letter is escaped too, since AWS
/// wants two characters.
pub fn source_identity(user: &UserName) -> String {
    let single = user.as_str().len() == 1;
    let mut name = String::with_capacity(MAX);
    escape(&mut name, user.as_str(), |b| !single && (b.is_ascii_alphanumeric() || b"_+,.@-".contains(&b)));
    shorten(name)
}

/// A session tag's value: AWS takes letters, digits, spaces and `_.:/=+-@`, 256 at most; our names are shorter than
/// half of that, and three times as long when every character is escaped.
pub fn tag_value(text: &str) -> String {
    let mut value = String::with_capacity(text.len());
    escape(&mut value, text, |b| b.is_ascii_alphanumeric() || b"_.:/+-@".contains(&b));
    if value.len() <= 256 { value } else { hashed(&value, 256 - 34) }
}

fn escape(into: &mut String, text: &str, plain: impl Fn(u8) -> bool) {
    for byte in text.bytes() {
        if plain(byte) {
            into.push(byte.into());
        } else {
            into.push_str(&format!("={byte:02X}"));
        }
    }
}

fn shorten(name: String) -> String {
    if name.len() <= MAX { name } else { hashed(&name, KEPT) }
}

fn hashed(name: &str, kept: usize) -> String {
    let hash = Sha256::digest(name.as_bytes());
    let mut short = name[..kept].to_owned();
    short.push_str("=h");
    hex::push(&mut short, &hash[..16]);
    short
}

#[cfg(test)]
#[path = "session_name_tests.rs"]
mod tests;
