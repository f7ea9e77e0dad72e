//! `credd status` and `credd health`: a question over the socket that is the caller's.

use std::fmt::Write as _;
use std::io::{BufReader, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use credd_protocol::local::{Health, JobStatus, MAX_LINE_BYTES, Request, Response};
use credd_protocol::printable::is_printable;
use credd_protocol::record::RunDir;

use crate::line;

/// For the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// credd gives up sooner.
const RELOAD_PATIENCE: Duration = Duration::from_secs(40);

/// Asks the running credd: root over root's socket, others over the users'.
pub fn ask(run_dir: &RunDir, request: &Request) -> anyhow::Result<Response> {
    let path = if nix::unistd::geteuid().is_root() { run_dir.root_socket() } else { run_dir.user_socket() };
    exchange(&path, request, PATIENCE)
}

/// Has the running credd read its configuration again: root alone may.
pub fn reload(run_dir: &RunDir) -> anyhow::Result<Response> {
    exchange(&run_dir.root_socket(), &Request::Reload, RELOAD_PATIENCE)
}

/// Asks the process that serves the jobs, over the users' socket, whoever asks.
pub fn ask_server(run_dir: &RunDir, request: &Request) -> anyhow::Result<Response> {
    exchange(&run_dir.user_socket(), request, PATIENCE)
}

fn exchange(path: &Path, request: &Request, patience: Duration) -> anyhow::Result<Response> {
    let stream = UnixStream::connect(path)
        .with_context(|| format!("credd does not run here: nobody answers at {}", path.display()))?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    line::send(&stream, request, MAX_LINE_BYTES)?;
    match line::receive(&mut BufReader::new(&stream), MAX_LINE_BYTES) {
        Ok(answer) => answer.context("credd closed the connection without an answer"),
        // systemd holds the socket, also while credd does not run.
        Err(error) if error.kind() == ErrorKind::WouldBlock => anyhow::bail!(
            "credd did not answer within {} s at {}: it cannot start, has been stopped, or hangs; see systemctl status credd \
             and journalctl -u credd",
            patience.as_secs(),
            path.display()
        ),
        Err(error) => Err(error).context("credd's answer cannot be read"),
    }
}

/// Whether nothing needs the admin.
pub fn is_well(health: &Health) -> bool {
    health.serving && problems(health).iter().all(|(_, problem)| problem.is_none())
}

fn problems(health: &Health) -> [(&'static str, Option<&str>); 4] {
    [
        ("endpoint", health.endpoint_problem.as_deref()),
        ("credvend", health.credvend_problem.as_deref()),
        ("refusals", health.refusal_problem.as_deref()),
        ("records", health.record_problem.as_deref()),
    ]
}

/// For people.
pub fn sentences(health: &Health) -> String {
    let mut text = format!("credd {}: {}\n", health.version, if health.serving { "serving" } else { "NOT SERVING" });
    for (what, problem) in problems(health) {
        let problem = problem.map_or_else(|| "ok".to_owned(), printable);
        let _ = writeln!(text, "{what}: {problem}");
    }
    if let Some(note) = &health.note {
        let _ = writeln!(text, "note: {}", printable(note));
    }
    let _ = writeln!(text, "jobs: {}, ends not yet taken by credvend: {}", health.jobs, health.undelivered_ends);
    text
}

/// For people: one line a job, columns as wide as their longest value.
pub fn table(jobs: &[JobStatus]) -> String {
    let mut rows = vec![["JOB", "USER", "PROJECT", "STATE", "UNTIL", "REASON"].map(str::to_owned)];
    rows.extend(jobs.iter().map(|job| {
        let or_dash = |value: &Option<String>| value.as_deref().map_or_else(|| "-".to_owned(), printable);
        [
            job.job.to_string(),
            printable(&job.user),
            or_dash(&job.project),
            printable(&job.state),
            or_dash(&job.credentials_until),
            or_dash(&job.reason),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (value, width) in row.iter().zip(widths) {
            let _ = write!(line, "{value:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// What came from elsewhere, harmless on a terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if is_printable(c) { c } else { ' ' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_harmless() {
        let job = JobStatus {
            job: 12.try_into().unwrap(),
            user: "alice".into(),
            uid: 1001,
            project: None,
            state: "refused".into(),
            session: None,
            reason: Some("no\u{1b}[2J\u{202e}role\n".into()),
            credentials_until: None,
        };
        let text = table(&[job]);
        assert_eq!(
            text,
            "JOB  USER   PROJECT  STATE    UNTIL  REASON\n12   alice  -        refused  -      no [2J role\n"
        );
    }

    #[test]
    fn a_socket_at_which_nobody_answers_is_told_with_what_to_look_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.sock");
        let _held = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = exchange(&path, &Request::Health, Duration::from_millis(50)).unwrap_err().to_string();
        assert!(error.contains("did not answer") && error.contains("systemctl status credd"), "{error}");
    }

    #[test]
    fn a_problem_is_not_well() {
        let health = Health {
            serving: true,
            endpoint_problem: None,
            credvend_problem: Some("connection refused".into()),
            refusal_problem: None,
            record_problem: None,
            note: None,
            jobs: 1,
            undelivered_ends: 0,
            version: "1".into(),
        };
        assert!(!is_well(&health));
        assert!(sentences(&health).contains("credvend: connection refused"));
        let idle = Health { credvend_problem: None, note: Some("not asked yet".into()), ..health };
        assert!(is_well(&idle) && sentences(&idle).contains("note: not asked yet"));
        let refused = Health { refusal_problem: Some("unknown cluster".into()), ..idle.clone() };
        assert!(!is_well(&refused) && sentences(&refused).contains("refusals: unknown cluster"));
        let record = Health { record_problem: Some("of another cluster".into()), ..idle };
        assert!(!is_well(&record) && sentences(&record).contains("records: of another cluster"));
    }
}
