//! `projects.toml` to a map, with every problem at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use credd_protocol::{ClusterName, ProjectId, Region, RoleArn, RoleName};
use toml_edit::{Document, Item, TableLike};

use super::{ProjectMap, Role, Roles, foreign_role, upstreams_role};
use crate::session_name::Template;

/// How long credentials live where nothing is said: what AWS allows in every case, chained roles included.
const DURATION: u32 = 3600;
/// AWS' limits for AssumeRole.
const SHORTEST: u32 = 900;
const LONGEST: u32 = 43_200;

/// The most problems that are told; a file of another kind would fill the log.
const MAX_PROBLEMS: usize = 100;

/// What is wrong with the file, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1; 0 where the file as a whole is meant.
    pub line: usize,
    /// What is wrong and what to write instead.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.text),
            line => write!(f, "line {line}: {}", self.text),
        }
    }
}

/// Reads a text.
///
/// # Errors
/// Everything that is wrong with it, by line.
pub fn parse(text: &str) -> Result<ProjectMap, Vec<Problem>> {
    parse_in(text, None)
}

/// Reads a text whose roles must all be of the AWS partition of a region.
///
/// # Errors
/// Everything that is wrong with it, by line.
pub fn parse_in(text: &str, region: Option<&Region>) -> Result<ProjectMap, Vec<Problem>> {
    read(Reader { text, region, upstream: false, problems: vec![] })
}

/// Reads a text whose roles an upstream has: `role-arn` may be absent, and nothing may be said about how credentials are
/// made.
///
/// # Errors
/// Everything that is wrong with it, by line.
pub fn parse_upstream(text: &str) -> Result<ProjectMap, Vec<Problem>> {
    read(Reader { text, region: None, upstream: true, problems: vec![] })
}

fn read(mut reader: Reader<'_>) -> Result<ProjectMap, Vec<Problem>> {
    let document = match Document::parse(reader.text) {
        Ok(document) => document,
        Err(error) => {
            reader.problem(error.span(), format!("this is not TOML: {}", error.message().replace('\n', "; ")));
            return Err(reader.problems);
        }
    };
    let map = reader.file(document.as_table());
    if reader.problems.is_empty() {
        return Ok(map);
    }
    reader.problems.sort_by_key(|p| p.line);
    let more = reader.problems.len().saturating_sub(MAX_PROBLEMS);
    reader.problems.truncate(MAX_PROBLEMS);
    if more > 0 {
        reader.problems.push(Problem { line: 0, text: format!("and {more} problems more") });
    }
    Err(reader.problems)
}

/// A project as the file has it.
struct Read {
    id: ProjectId,
    roles: Roles,
    account: Option<ProjectId>,
    clusters: Option<BTreeSet<ClusterName>>,
}

struct Reader<'t> {
    text: &'t str,
    region: Option<&'t Region>,
    /// An upstream has the roles.
    upstream: bool,
    problems: Vec<Problem>,
}

/// What a role's keys say before it is known whether they suffice.
#[derive(Default)]
struct Fields {
    arn: Option<String>,
    arn_span: Option<Range<usize>>,
    duration: Option<u32>,
    source_identity: bool,
    session_tags: bool,
    revoke_on_end: bool,
    session_name: Option<Template>,
}

impl Reader<'_> {
    fn problem(&mut self, at: Option<Range<usize>>, text: impl Into<String>) {
        let line = at.map_or(0, |span| 1 + self.text.as_bytes()[..span.start].iter().filter(|b| **b == b'\n').count());
        self.problems.push(Problem { line, text: text.into() });
    }

    fn file(&mut self, table: &toml_edit::Table) -> ProjectMap {
        let mut map = ProjectMap::default();
        let mut claimed: BTreeMap<ProjectId, (ProjectId, Option<Range<usize>>)> = BTreeMap::new();
        for (key, item) in table.iter() {
            let span = span_of(table, key, item);
            if key != "projects" {
                self.problem(span, format!("{key:?} is not known here; every project is a table [projects.NAME]"));
                continue;
            }
            let Some(projects) = item.as_table_like() else {
                self.problem(span, "projects must be a table: [projects.NAME]");
                continue;
            };
            for (name, item) in projects.iter() {
                let span = span_of(projects, name, item);
                let Some(Read { id, roles, account, clusters }) = self.project(name, item, span.clone()) else {
                    continue;
                };
                if let Some(clusters) = clusters {
                    map.clusters.insert(id.clone(), clusters);
                }
                if let Some(account) = account {
                    if let Some((other, _)) = claimed.get(&account) {
                        let text =
                            format!("projects {other} and {id} both are Slurm's account {account}; only one can be");
                        self.problem(span, text);
                    } else {
                        claimed.insert(account, (id.clone(), span));
                    }
                }
                map.projects.insert(id, roles);
            }
        }
        map.accounts = claimed.into_iter().map(|(account, (id, _))| (account, id)).collect();
        map
    }

    fn project(&mut self, name: &str, item: &Item, span: Option<Range<usize>>) -> Option<Read> {
        let id = self.valid::<ProjectId>(name, span.clone());
        let Some(table) = item.as_table_like() else {
            self.problem(span, format!("project {name:?} must be a table: [projects.{name}]"));
            return None;
        };
        let (mut fields, mut roles, mut account, mut account_said) = (Fields::default(), Roles::new(), None, false);
        let mut clusters = None;
        for (key, item) in table.iter() {
            let at = span_of(table, key, item);
            match key {
                "account" => {
                    account_said = true;
                    account = self.account(item, at);
                }
                "clusters" => clusters = self.clusters(item, at),
                "roles" if self.upstream => {
                    self.problem(at, "an upstream has one role for each project: remove the others");
                }
                "roles" => match item.as_table_like() {
                    Some(table) => self.roles(name, table, &mut roles),
                    None => self.problem(at, format!("roles must be tables: [projects.{name}.roles.NAME]")),
                },
                _ => self.field(&mut fields, key, item, at, "account, clusters, roles, "),
            }
        }
        let what = format!("project {name}");
        if self.upstream && fields.arn.is_none() {
            fields.arn = id.as_ref().map(|id| upstreams_role(id).as_str().to_owned());
        }
        if let Some(role) = self.role(fields, &what, span.clone()) {
            roles.insert(RoleName::default(), role);
        }
        let id = id?;
        if !account_said {
            if id.as_str().bytes().any(|b| b.is_ascii_uppercase()) {
                let lower = id.as_str().to_ascii_lowercase();
                self.problem(
                    span,
                    format!(
                        "project {id} has capitals, but Slurm writes every account in lower case; say which account it is: account = {lower:?}"
                    ),
                );
            } else {
                account = Some(id.clone());
            }
        }
        Some(Read { id, roles, account, clusters })
    }

    /// `["lab", "hpc"]`.
    fn clusters(&mut self, item: &Item, at: Option<Range<usize>>) -> Option<BTreeSet<ClusterName>> {
        let texts: Option<Vec<&str>> = item.as_array().and_then(|array| array.iter().map(|v| v.as_str()).collect());
        let Some(texts) = texts else {
            self.problem(at, "clusters must be an array of names: [\"lab\", \"hpc\"]");
            return None;
        };
        if texts.is_empty() {
            self.problem(
                at,
                "clusters is empty, so the project would be served nowhere: name them, or remove the project",
            );
            return None;
        }
        // All of them are read, so that all problems are told.
        let names: Vec<Option<ClusterName>> = texts.into_iter().map(|text| self.valid(text, at.clone())).collect();
        names.into_iter().collect()
    }

    fn account(&mut self, item: &Item, at: Option<Range<usize>>) -> Option<ProjectId> {
        let Some(text) = item.as_str() else {
            self.problem(at, "account must be a text: the Slurm account's name");
            return None;
        };
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            let lower = text.to_ascii_lowercase();
            self.problem(at, format!("account {text:?} has capitals; Slurm writes it as {lower:?}"));
            return None;
        }
        self.valid(text, at)
    }

    fn roles(&mut self, project: &str, table: &dyn TableLike, roles: &mut Roles) {
        for (name, item) in table.iter() {
            let span = span_of(table, name, item);
            let role_name = self.valid::<RoleName>(name, span.clone());
            if name == RoleName::default().as_str() {
                let text = format!("the role named default is written as role-arn of [projects.{project}] itself");
                self.problem(span, text);
                continue;
            }
            let Some(table) = item.as_table_like() else {
                self.problem(span, format!("role {name:?} must be a table: [projects.{project}.roles.{name}]"));
                continue;
            };
            let mut fields = Fields::default();
            for (key, item) in table.iter() {
                self.field(&mut fields, key, item, span_of(table, key, item), "");
            }
            let role = self.role(fields, &format!("role {name} of project {project}"), span);
            if let (Some(name), Some(role)) = (role_name, role) {
                roles.insert(name, role);
            }
        }
    }

    fn field(&mut self, fields: &mut Fields, key: &str, item: &Item, at: Option<Range<usize>>, also: &str) {
        match key {
            "duration" | "source-identity" | "session-tags" | "revoke-on-end" if self.upstream => {
                self.problem(at, format!("{key} is the upstream's to decide: remove it here"));
            }
            "role-arn" => match item.as_str() {
                Some(text) => (fields.arn, fields.arn_span) = (Some(text.to_owned()), at),
                None => {
                    fields.arn = Some(String::new());
                    self.problem(at, "role-arn must be a text: \"arn:aws:iam::123456789012:role/NAME\"");
                }
            },
            "duration" => match item.as_str().map(duration) {
                Some(Ok(seconds)) => fields.duration = Some(seconds),
                Some(Err(why)) => self.problem(at, why),
                None => self.problem(at, "duration must be a text such as \"1h\" or \"90m\""),
            },
            "source-identity" => fields.source_identity = self.truth(key, item, at),
            "revoke-on-end" => fields.revoke_on_end = self.truth(key, item, at),
            "session-tags" => fields.session_tags = self.truth(key, item, at),
            "session-name" => match item.as_str() {
                Some(text) => fields.session_name = self.valid(text, at),
                None => self.problem(at, "session-name must be a text such as \"{cluster}-{user}-{node}\""),
            },
            _ => self.problem(
                at,
                format!("{key:?} is not known here; there are {also}role-arn, duration, source-identity, session-tags, revoke-on-end, session-name"),
            ),
        }
    }

    fn truth(&mut self, key: &str, item: &Item, at: Option<Range<usize>>) -> bool {
        item.as_bool().unwrap_or_else(|| {
            self.problem(at, format!("{key} must be true or false"));
            false
        })
    }

    fn role(&mut self, fields: Fields, what: &str, span: Option<Range<usize>>) -> Option<Role> {
        let Some(arn) = fields.arn else {
            self.problem(span, format!("{what} has no role-arn"));
            return None;
        };
        if arn.is_empty() && fields.arn_span.is_none() {
            return None; // said already: not a text
        }
        let arn: RoleArn = self.valid(&arn, fields.arn_span.clone())?;
        if let Some(why) = self.region.and_then(|region| foreign_role(&arn, region)) {
            self.problem(fields.arn_span, why);
        }
        Some(Role {
            arn,
            duration_seconds: fields.duration.unwrap_or(DURATION),
            source_identity: fields.source_identity,
            session_tags: fields.session_tags,
            revoke_on_end: fields.revoke_on_end,
            session_name: fields.session_name,
        })
    }

    fn valid<T: FromStr>(&mut self, text: &str, at: Option<Range<usize>>) -> Option<T>
    where
        T::Err: fmt::Display,
    {
        text.parse().map_err(|e: T::Err| self.problem(at, e.to_string())).ok()
    }
}

/// Where a key stands: tables that only exist through `[projects.a.roles.b]` have no place of their own.
fn span_of(table: &dyn TableLike, key: &str, item: &Item) -> Option<Range<usize>> {
    table.key(key).and_then(|k| k.span()).or_else(|| item.span())
}

/// `15m` to `12h`: numbers with h, m or s, largest first as a rule, at most once each.
fn duration(text: &str) -> Result<u32, String> {
    let bad = || format!("duration {text:?} must be written with h, m and s: \"1h\", \"90m\", \"1h30m\"");
    let (mut total, mut number, mut seen) = (0u32, String::new(), String::new());
    for c in text.chars() {
        let unit = match c {
            '0'..='9' if number.len() < 6 => {
                number.push(c);
                continue;
            }
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return Err(bad()),
        };
        let n: u32 = number.parse().map_err(|_| bad())?;
        if seen.contains(c) {
            return Err(bad());
        }
        seen.push(c);
        number.clear();
        total = n.checked_mul(unit).and_then(|n| total.checked_add(n)).ok_or_else(bad)?;
    }
    if !number.is_empty() || seen.is_empty() {
        return Err(bad());
    }
    if !(SHORTEST..=LONGEST).contains(&total) {
        return Err(format!("duration {text:?} is out of AWS' bounds: 15m to 12h"));
    }
    Ok(total)
}
