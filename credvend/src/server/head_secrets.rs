//! The head nodes' secrets: hashes in memory, the text in files, read again whenever a file changes.
//!
//! Every line of a cluster's files is valid, so that the old and the new secret both are while one is replaced. A bad
//! edit keeps what was in force, and says so once.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use credd_protocol::{ClusterName, Secret, TokenHash};
use zeroize::Zeroizing;

use crate::config::secret_file;

/// A shorter secret is refused: it stands alone between the network and every project.
pub const MIN_SECRET_CHARS: usize = 16;

const MAX_FILE_BYTES: u64 = 16 * 1024;

/// All clusters' secrets.
pub struct HeadSecrets {
    files: Vec<(ClusterName, PathBuf)>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stamps: Vec<Stamp>,
    hashes: Vec<(ClusterName, TokenHash)>,
}

/// What changes when a file does.
type Stamp = Option<(u64, u64, i64, i64, i64, i64, u64)>;

impl HeadSecrets {
    /// Reads all files.
    ///
    /// # Errors
    /// Every problem with every file.
    pub fn open(files: Vec<(ClusterName, PathBuf)>) -> Result<Self, Vec<String>> {
        let stamps = files.iter().map(|(_, path)| stamp(path)).collect();
        let hashes = read_all(&files)?;
        Ok(HeadSecrets { files, state: Mutex::new(State { stamps, hashes }) })
    }

    /// The cluster whose head has this secret. Every secret is compared, in constant time, whatever matches before.
    pub fn cluster_of(&self, secret: &Secret) -> Option<ClusterName> {
        let hash = TokenHash::of(secret.expose());
        let mut state = self.lock();
        let stamps: Vec<Stamp> = self.files.iter().map(|(_, path)| stamp(path)).collect();
        if stamps != state.stamps {
            state.stamps = stamps;
            match read_all(&self.files) {
                Ok(hashes) => {
                    state.hashes = hashes;
                    tracing::info!("the head-node secrets were read again");
                }
                Err(problems) => {
                    for problem in problems {
                        tracing::error!("the head-node secrets in force stay, since {problem}");
                    }
                }
            }
        }
        let mut found = None;
        for (cluster, known) in &state.hashes {
            if *known == hash {
                found = Some(cluster.clone());
            }
        }
        found
    }

    /// Whether a head of this cluster has a secret.
    pub fn any_of(&self, cluster: &ClusterName) -> bool {
        self.lock().hashes.iter().any(|(of, _)| of == cluster)
    }

    /// Reads all files now (SIGHUP).
    ///
    /// # Errors
    /// Every problem; what was in force stays.
    pub fn reload(&self) -> Result<(), Vec<String>> {
        let mut state = self.lock();
        state.stamps = self.files.iter().map(|(_, path)| stamp(path)).collect();
        state.hashes = read_all(&self.files)?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stamp(path: &Path) -> Stamp {
    let m = std::fs::metadata(path).ok()?;
    Some((m.dev(), m.ino(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec(), m.len()))
}

fn read_all(files: &[(ClusterName, PathBuf)]) -> Result<Vec<(ClusterName, TokenHash)>, Vec<String>> {
    let (mut hashes, mut problems) = (Vec::<(ClusterName, TokenHash)>::new(), Vec::new());
    for (cluster, path) in files {
        match read(path) {
            Err(problem) => problems.push(problem),
            Ok(secrets) => {
                for hash in secrets {
                    match hashes.iter().find(|(_, known)| *known == hash) {
                        Some((other, _)) if other != cluster => problems.push(format!(
                            "{} has a secret that cluster {other} has too: a head would speak for both",
                            path.display()
                        )),
                        Some(_) => {}
                        None => hashes.push((cluster.clone(), hash)),
                    }
                }
            }
        }
    }
    if problems.is_empty() { Ok(hashes) } else { Err(problems) }
}

fn read(path: &Path) -> Result<Vec<TokenHash>, String> {
    if let Some(problem) = secret_file::problem(path) {
        return Err(problem);
    }
    let shown = path.display();
    let unreadable = |e: std::io::Error| format!("{shown} cannot be read: {e}");
    if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_FILE_BYTES {
        return Err(format!("{shown} is longer than {MAX_FILE_BYTES} bytes"));
    }
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(unreadable)?);
    let mut hashes = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let (line, number) = (line.trim(), number + 1);
        if line.is_empty() {
            continue;
        }
        if line.len() < MIN_SECRET_CHARS {
            return Err(format!("{shown} line {number}: a secret has at least {MIN_SECRET_CHARS} characters"));
        }
        if !line.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(format!("{shown} line {number}: a secret has visible ASCII characters only, and no space"));
        }
        hashes.push(TokenHash::of(line));
    }
    if hashes.is_empty() {
        return Err(format!("{shown} holds no secret"));
    }
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn write(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn secret(text: &str) -> Secret {
        Secret::new(text.into())
    }

    #[test]
    fn old_and_new_are_valid_until_the_old_line_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lab");
        write(&path, "old-old-old-old-old\n");
        let lab: ClusterName = "lab".parse().unwrap();
        let secrets = HeadSecrets::open(vec![(lab.clone(), path.clone())]).unwrap();
        let (old, new) = (secret("old-old-old-old-old"), secret("new-new-new-new-new"));
        assert_eq!((secrets.cluster_of(&old), secrets.cluster_of(&new)), (Some(lab.clone()), None));
        write(&path, "old-old-old-old-old\n\nnew-new-new-new-new\n");
        assert_eq!((secrets.cluster_of(&old), secrets.cluster_of(&new)), (Some(lab.clone()), Some(lab.clone())));
        write(&path, "short\n");
        assert_eq!(secrets.cluster_of(&old), Some(lab.clone()), "a bad edit keeps what was in force");
        write(&path, "new-new-new-new-new");
        assert_eq!((secrets.cluster_of(&old), secrets.cluster_of(&new)), (None, Some(lab)));
        assert_eq!(secrets.cluster_of(&secret("")), None);
    }

    #[test]
    fn two_clusters_do_not_share_a_secret_and_a_file_is_not_for_everybody() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        write(&a, "same-same-same-same\n");
        write(&b, "same-same-same-same\n");
        let files = vec![("a".parse().unwrap(), a.clone()), ("b".parse().unwrap(), b.clone())];
        assert!(HeadSecrets::open(files).is_err());
        std::fs::set_permissions(&a, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(HeadSecrets::open(vec![("a".parse().unwrap(), a)]).is_err());
    }
}
