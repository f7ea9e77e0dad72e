//! What squeue prints for credvend, where a pretend one must answer for more nodes than a test cluster has.

/// The headings and widths that credvend asks for; it refuses an answer of another form.
const COLUMNS: [(&str, usize); 8] = [
    ("JOBID", 12),
    ("RESTART_COUNT", 16),
    ("UID", 12),
    ("STATE", 24),
    ("USER", 129),
    ("ACCOUNT", 256),
    ("PARTITION", 129),
    ("SUBMIT_TIME", 24),
];

/// The line of headings.
pub fn heading() -> String {
    line(COLUMNS.map(|(heading, _)| heading), "NODELIST")
}

/// The line of a job that runs, with its nodes as Slurm folds them (`n[1-3]`).
pub fn running(job: u32, uid: u32, user: &str, account: &str, nodes: &str) -> String {
    let (job, uid) = (job.to_string(), uid.to_string());
    line([&job, "0", &uid, "RUNNING", user, account, "batch", "2026-01-31T12:00:00"], nodes)
}

fn line(values: [&str; 8], nodes: &str) -> String {
    let mut line: String = values.iter().zip(COLUMNS).map(|(value, (_, width))| format!("{value:<width$}")).collect();
    line.push_str(nodes);
    line.push('\n');
    line
}
