//! Changes of `projects.toml` that leave everything else as its author wrote it, comments included.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use credd_protocol::{ClusterName, ProjectId, RoleArn, RoleName};
use toml_edit::{DocumentMut, Item, Table, TableLike, Value};

use super::{Problem, ProjectMap, parse};

/// No site has so many projects; a larger file is another one.
const MAX_BYTES: u64 = 4 << 20;

/// What to write about a role. `None` leaves what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleChange {
    /// Which role.
    pub arn: RoleArn,
    /// How long credentials live, as in the file: `1h`, `90m`.
    pub duration: Option<String>,
    /// Send `SourceIdentity`.
    pub source_identity: Option<bool>,
    /// Send session tags.
    pub session_tags: Option<bool>,
    /// Deny what a session got when it ends.
    pub revoke_on_end: Option<bool>,
    /// The role-session name's template.
    pub session_name: Option<String>,
    /// The project's Slurm account; of the project as a whole.
    pub account: Option<ProjectId>,
    /// The project's clusters; of the project as a whole, and instead of those that it had. Empty leaves what is there.
    pub clusters: Vec<ClusterName>,
}

/// Adds a project or role, or changes one; returns the new text.
///
/// # Errors
/// The text does not read, or would not afterwards.
pub fn set(text: &str, project: &ProjectId, role: &RoleName, change: &RoleChange) -> Result<String, Vec<Problem>> {
    let mut document = document(text)?;
    let projects = child(document.as_table_mut(), "projects", true)?;
    let table = child(projects, project.as_str(), false)?;
    if let Some(account) = &change.account {
        put(table, "account", account.as_str().into());
    }
    if !change.clusters.is_empty() {
        let names: toml_edit::Array = change.clusters.iter().map(ClusterName::as_str).collect();
        put(table, "clusters", names.into());
    }
    let table =
        if *role == RoleName::default() { table } else { child(child(table, "roles", true)?, role.as_str(), false)? };
    put(table, "role-arn", change.arn.as_str().into());
    if let Some(duration) = &change.duration {
        put(table, "duration", duration.as_str().into());
    }
    if let Some(template) = &change.session_name {
        put(table, "session-name", template.as_str().into());
    }
    for (key, value) in [
        ("source-identity", change.source_identity),
        ("session-tags", change.session_tags),
        ("revoke-on-end", change.revoke_on_end),
    ] {
        if let Some(value) = value {
            put(table, key, value.into());
        }
    }
    checked(document)
}

/// Removes a project, or one role of it; returns the new text. The default role goes with its project only.
///
/// # Errors
/// There is no such project or role, or the text does not read.
pub fn remove(text: &str, project: &ProjectId, role: Option<&RoleName>) -> Result<String, Vec<Problem>> {
    let mut document = document(text)?;
    let nothing = |what: String| Err(whole(format!("there is no {what}; nothing is removed")));
    let projects = document.get_mut("projects").and_then(Item::as_table_like_mut);
    let Some(projects) = projects.filter(|p| p.contains_key(project.as_str())) else {
        return nothing(format!("project {project}"));
    };
    match role {
        None => {
            projects.remove(project.as_str());
        }
        Some(role) if *role == RoleName::default() => {
            return Err(whole(format!(
                "project {project} needs its default role; remove the project, or set another ARN"
            )));
        }
        Some(role) => {
            let roles = projects.get_mut(project.as_str()).and_then(|p| p.as_table_like_mut()?.get_mut("roles"));
            if roles.and_then(Item::as_table_like_mut).and_then(|roles| roles.remove(role.as_str())).is_none() {
                return nothing(format!("role {role} of project {project}"));
            }
        }
    }
    checked(document)
}

/// Changes the file: under a lock, checked as a whole, replaced at once, with its mode and owner kept.
///
/// # Errors
/// The file or its change; the old file stays then.
pub fn file(
    path: &Path,
    change: impl FnOnce(&str) -> Result<String, Vec<Problem>>,
) -> Result<ProjectMap, Vec<Problem>> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |what: &str, e: std::io::Error| whole(format!("{}: {what}: {e}", path.display()));
    let lock = File::open(directory).map_err(|e| failed("its directory cannot be opened", e))?;
    lock.lock().map_err(|e| failed("its directory cannot be locked", e))?;
    // What replaces a symbolic link replaces the file it stands for.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let old = match fs::symlink_metadata(&target) {
        Ok(meta) => Some((read(&target)?, meta)),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(failed("it cannot be looked at", e)),
    };
    let text = change(old.as_ref().map_or("", |(text, _)| text))?;
    let map = parse(&text)?;
    let meta = old.as_ref().map(|(_, meta)| meta);
    write(&target, &text, meta).map_err(|e| failed("it cannot be replaced", e))?;
    Ok(map)
}

/// Reads the file.
pub(super) fn read(path: &Path) -> Result<String, Vec<Problem>> {
    let at = path.display();
    let failed = |e: std::io::Error| whole(format!("{at} cannot be read: {e}"));
    let file =
        OpenOptions::new().read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(whole(format!("{at} is not a regular file")));
    }
    // Who can write it decides who may have which role.
    if meta.mode() & 0o002 != 0 {
        return Err(whole(format!("everybody can write {at} (mode {:o}): chmod o-w it", meta.mode() & 0o7777)));
    }
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(whole(format!("{at} is longer than {MAX_BYTES} bytes")));
    }
    Ok(text)
}

fn write(path: &Path, text: &str, old: Option<&fs::Metadata>) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    // Left behind by one that died; the directory's lock is ours.
    match fs::remove_file(&new) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let guard = Unfinished(Some(new.clone()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    match old {
        Some(meta) => {
            // Without the power to give files away this fails, and then the owner is ours already or must stay theirs.
            if meta.uid() != file.metadata()?.uid() || meta.gid() != file.metadata()?.gid() {
                std::os::unix::fs::fchown(&file, Some(meta.uid()), Some(meta.gid()))?;
            }
            file.set_permissions(fs::Permissions::from_mode(meta.mode() & 0o7777))?;
        }
        None => file.set_permissions(fs::Permissions::from_mode(0o644))?,
    }
    file.sync_all()?;
    fs::rename(&new, path)?;
    guard.done();
    File::open(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()
}

/// Removes the new file unless it took the old one's place.
struct Unfinished(Option<PathBuf>);

impl Unfinished {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

fn whole(text: String) -> Vec<Problem> {
    vec![Problem { line: 0, text }]
}

fn document(text: &str) -> Result<DocumentMut, Vec<Problem>> {
    parse(text)?;
    text.parse().map_err(|e: toml_edit::TomlError| whole(e.message().to_owned()))
}

fn checked(document: DocumentMut) -> Result<String, Vec<Problem>> {
    let text = document.to_string();
    parse(&text).map_err(|problems| {
        // Its lines are not those of a file that anybody has seen.
        problems.into_iter().map(|p| Problem { line: 0, text: p.text }).collect::<Vec<_>>()
    })?;
    Ok(text)
}

/// The table under a key; made where there is none. An implicit one has no header of its own.
fn child<'t>(table: &'t mut dyn TableLike, key: &str, implicit: bool) -> Result<&'t mut dyn TableLike, Vec<Problem>> {
    if !table.contains_key(key) {
        let mut new = Table::new();
        new.set_implicit(implicit);
        table.insert(key, Item::Table(new));
    }
    table
        .get_mut(key)
        .and_then(Item::as_table_like_mut)
        .ok_or_else(|| whole(format!("{key:?} cannot become a table where it stands; write it as a table of its own")))
}

/// Sets a value, with the comment behind the old one kept.
fn put(table: &mut dyn TableLike, key: &str, mut value: Value) {
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        None => {
            table.insert(key, Item::Value(value));
        }
    }
}
