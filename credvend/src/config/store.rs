//! `[store]` and where the projects are kept.

use std::path::{Path, PathBuf};

use credd_protocol::Region;

use super::base_url;
use super::fields::Section;

/// `[store]`. What belongs to the other kind may stand there too: `credvend store copy` moves a site from one to the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// `kind`: `sqlite` or `dynamodb`.
    pub kind: StoreKind,
    /// `path`: the SQLite file.
    pub path: PathBuf,
    /// `table-prefix`: before each DynamoDB table's name.
    pub table_prefix: String,
    /// `region`: of the DynamoDB tables; unset, that of `[aws]`.
    pub region: Option<Region>,
    /// `endpoint`: another DynamoDB, as in tests, or a VPC endpoint.
    pub endpoint: Option<String>,
}

/// See [`Store`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum StoreKind {
    /// One file, one credvend.
    Sqlite,
    /// Tables of AWS, any number of credvends.
    Dynamodb,
}

/// Where the projects are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProjectsFrom {
    /// In projects.toml.
    File,
    /// In the DynamoDB store's table of projects, as in the IAM Credentials API (v1).
    Store,
}

pub(super) fn read_store(section: Section<'_, '_>, state_dir: &Path) -> Store {
    let kind = section.word("kind", &[("sqlite", StoreKind::Sqlite), ("dynamodb", StoreKind::Dynamodb)]);
    let prefix = section.text("table-prefix").unwrap_or_else(|| "credvend-".into());
    // With the longest of our names behind it, DynamoDB's 3 to 255 characters.
    if prefix.len() > 128 || !prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
        section.problem_at("table-prefix", format!("{prefix:?} must be at most 128 letters, digits, '_', '.' and '-'"));
    }
    let endpoint = section.text("endpoint");
    if let Some(Err(why)) = endpoint.as_deref().map(base_url) {
        section.problem_at("endpoint", why);
    }
    let store = Store {
        kind: kind.unwrap_or(StoreKind::Sqlite),
        path: section.path("path").unwrap_or_else(|| state_dir.join("credvend.sqlite")),
        table_prefix: prefix,
        region: section.parsed("region"),
        endpoint,
    };
    section.finish();
    store
}
