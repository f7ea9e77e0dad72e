//! `[log]`, `[audit]` and `[metrics]`: what the service tells of itself.

use std::net::SocketAddr;
use std::path::Path;

use super::fields::Section;
use crate::audit::{self, Fsync, OnFailure};

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// `format = "json"` instead of text.
    pub json: bool,
    /// `filter`: as in `RUST_LOG`.
    pub filter: String,
}

pub(super) fn read_log(section: Section<'_, '_>) -> Log {
    let filter = section.text("filter").unwrap_or_else(|| "info".into());
    if let Err(error) = filter.parse::<tracing_subscriber::filter::Targets>() {
        section.problem_at("filter", error);
    }
    let log = Log { json: section.word("format", &[("text", false), ("json", true)]).unwrap_or(false), filter };
    section.finish();
    log
}

/// Whoever reaches the page may read it, and an interface more is one to think about: beyond this host only when said twice.
pub(super) fn read_metrics(section: Section<'_, '_>) -> Option<SocketAddr> {
    let listen: Option<SocketAddr> = section.parsed("listen");
    let beyond = section.boolean("beyond-loopback").unwrap_or(false);
    if listen.is_some_and(|address| !address.ip().to_canonical().is_loopback()) && !beyond {
        section.problem_at("listen", "anybody who reaches it may read it; set beyond-loopback = true if that is meant");
    }
    section.finish();
    listen
}

pub(super) fn read_audit(section: Section<'_, '_>, state_dir: &Path) -> audit::Settings {
    let fsync = [("each", Fsync::Each), ("interval", Fsync::Interval), ("never", Fsync::Never)];
    let settings = audit::Settings {
        path: section.path("path").unwrap_or_else(|| state_dir.join("audit.jsonl")),
        fsync: section.word("fsync", &fsync).unwrap_or_default(),
        on_failure: section
            .word("on-failure", &[("refuse", OnFailure::Refuse), ("continue", OnFailure::Continue)])
            .unwrap_or_default(),
    };
    section.finish();
    settings
}
