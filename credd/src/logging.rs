//! Logs go to stderr, which is the journal under systemd; the server process inherits it.

use crate::config::{Log, LogFormat};

/// Starts logging, or changes how it is done.
pub fn apply(log: &Log) {
    let format = match log.format {
        LogFormat::Text => daemon_log::Format::Text,
        LogFormat::Json => daemon_log::Format::FlatJson,
    };
    daemon_log::apply(&log.level, format);
}
