//! Answers as squeue writes them, for tests and benchmarks in which a made-up squeue answers: the widths stand here once.

use time::OffsetDateTime;
use time::macros::datetime;

use super::{COLUMNS, LAST};

/// When all jobs were submitted, as squeue writes it.
pub const SUBMITTED: &str = "2026-03-01T11:00:00";
/// The same, as it is read.
pub const SUBMITTED_AT: OffsetDateTime = datetime!(2026-03-01 11:00 UTC);

/// The line of headings.
pub fn header() -> String {
    let fixed: String = COLUMNS.iter().map(|c| format!("{:w$.w$}", c.heading, w = c.width)).collect();
    format!("{fixed}{}\n", LAST.heading)
}

/// One row: job, restart, uid, state, user, account, partition; and the nodes. Cut and padded by bytes.
pub fn row(values: [&str; 7], nodes: &str) -> Vec<u8> {
    row_of(values, SUBMITTED, nodes)
}

/// The same with another submit time.
pub fn row_of(values: [&str; 7], submitted: &str, nodes: &str) -> Vec<u8> {
    let mut row = Vec::new();
    for (value, column) in values.iter().chain([&submitted]).zip(&COLUMNS) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.resize(column.width, b' ');
        row.extend(bytes);
    }
    row.extend(nodes.as_bytes());
    row.push(b'\n');
    row
}

/// The row of a job that runs in partition `batch`, with its nodes as Slurm folds them (`n[1-3]`).
pub fn running(job: u32, uid: u32, user: &str, account: &str, nodes: &str) -> String {
    let (job, uid) = (job.to_string(), uid.to_string());
    let row = row([&job, "0", &uid, "RUNNING", user, account, "batch"], nodes);
    String::from_utf8_lossy(&row).into_owned()
}
