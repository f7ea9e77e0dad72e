//! `credvend audit`: who got which role, from the audit log's files. Works on the files alone, whether the service runs
//! or not.

use std::fs::File;
use std::io::{self, BufRead, BufReader, StdinLock, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use credd_protocol::{ClusterName, JobId, NodeName, ProjectId, SessionId, UserName};
use time::OffsetDateTime;

use crate::audit::KINDS;
use crate::audit::read::{Entry, Filter, Lines, Record, moment, parts};
use crate::config::Config;

/// Rows whose widths the table's columns follow.
const LOOK_AHEAD: usize = 256;
/// How often `--follow` looks.
const LOOK: Duration = Duration::from_millis(250);

const HEADING: [&str; 9] = ["TIME", "EVENT", "CLUSTER", "JOB", "USER", "PROJECT", "NODE", "KEY ID", "WHAT"];

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only of this user
    #[arg(long)]
    user: Option<UserName>,
    /// Only of this project
    #[arg(long)]
    project: Option<ProjectId>,
    /// Only of this job, whether Slurm or a head stated it
    #[arg(long)]
    job: Option<JobId>,
    /// Only of this cluster
    #[arg(long)]
    cluster: Option<ClusterName>,
    /// Only of this node
    #[arg(long)]
    node: Option<NodeName>,
    /// Only of this session (its UUID)
    #[arg(long)]
    session: Option<SessionId>,
    /// Only of this role: its ARN, or its name within the project
    #[arg(long)]
    role: Option<String>,
    /// Only about this access key id, as CloudTrail has it
    #[arg(long, value_name = "ASIA…")]
    key_id: Option<String>,
    /// Only of this role-session name
    #[arg(long, value_name = "NAME")]
    session_name: Option<String>,
    /// Only this kind of event, or several, separated by commas
    #[arg(long, value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(KINDS))]
    event: Vec<String>,
    /// Not earlier: a time (2026-01-31T12:00:00Z) or an age (30m, 2h, 7d)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Earlier than this
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Read this file alone, - for the standard input; may be given several times
    #[arg(long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Go on with what is written from now on
    #[arg(long, conflicts_with_all = ["file", "until"])]
    follow: bool,
    /// The lines as they are
    #[arg(long)]
    json: bool,
}

pub fn run(config: &Config, args: &Args) -> anyhow::Result<()> {
    let mut output = Output::new(args.json);
    let done = show(&config.audit.path, args, &mut output).and_then(|()| Ok(output.flush()?));
    match done {
        // Whoever reads has seen enough.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            Ok(())
        }
        done => done,
    }
}

fn filter(args: &Args) -> anyhow::Result<Filter> {
    let now = OffsetDateTime::now_utc();
    let time =
        |text: &Option<String>| text.as_deref().map(|text| moment(text, now)).transpose().map_err(anyhow::Error::msg);
    let fields = [
        ("user", args.user.as_ref().map(ToString::to_string)),
        ("project", args.project.as_ref().map(ToString::to_string)),
        ("job", args.job.map(|job| job.to_string())),
        ("cluster", args.cluster.as_ref().map(ToString::to_string)),
        ("node", args.node.as_ref().map(ToString::to_string)),
        ("session", args.session.map(|session| session.to_string())),
        ("key-id", args.key_id.clone()),
        ("session-name", args.session_name.clone()),
    ];
    Ok(Filter {
        fields: fields.into_iter().filter_map(|(field, value)| Some((field, value?))).collect(),
        role: args.role.clone(),
        events: args.event.clone(),
        since: time(&args.since)?,
        until: time(&args.until)?,
    })
}

fn show(path: &Path, args: &Args, output: &mut Output) -> anyhow::Result<()> {
    let filter = filter(args)?;
    if !args.file.is_empty() {
        for path in &args.file {
            let input: Box<dyn BufRead> = match path.to_str() {
                Some("-") => Box::new(io::stdin().lock() as StdinLock<'static>),
                _ => Box::new(BufReader::new(File::open(path).with_context(|| path.display().to_string())?)),
            };
            one(&filter, path, &mut Lines::new(input), output)?;
        }
        return Ok(());
    }
    let (files, skipped) = parts(path, filter.since)
        .with_context(|| format!("the audit log {} cannot be read ([audit] path)", path.display()))?;
    for why in skipped {
        eprintln!("credvend: {why}");
    }
    let mut last = None;
    let newest = files.len().saturating_sub(1);
    for (i, part) in files.into_iter().enumerate() {
        let mut lines = Lines::new(BufReader::new(part.file));
        if args.follow && i == newest {
            last = Some(lines);
        } else {
            one(&filter, &part.path, &mut lines, output)?;
        }
    }
    match last {
        Some(lines) => follow(&filter, path, lines, output),
        None => Ok(()),
    }
}

fn one(filter: &Filter, path: &Path, lines: &mut Lines<impl BufRead>, output: &mut Output) -> anyhow::Result<()> {
    while let Some(entry) = lines.next(None).with_context(|| path.display().to_string())? {
        put(filter, path, entry, output)?;
    }
    Ok(())
}

fn put(filter: &Filter, path: &Path, entry: Entry, output: &mut Output) -> io::Result<()> {
    match entry {
        Entry::Event(record, text) if filter.wants(&record) => output.row(&record, &text),
        Entry::Event(..) => Ok(()),
        Entry::Damaged(number, why) => {
            eprintln!("credvend: {}, line {number}: {why}; what it said is not known", path.display());
            Ok(())
        }
    }
}

/// As `tail -F`: a rotated file is read to its end, then the new one from its beginning.
fn follow(filter: &Filter, path: &Path, mut lines: Lines<BufReader<File>>, output: &mut Output) -> anyhow::Result<()> {
    let mut partial = vec![];
    let identity = |file: std::fs::Metadata| (file.dev(), file.ino());
    let mut open = lines.input().get_ref().metadata().map(identity)?;
    loop {
        let elsewhere = std::fs::metadata(path).map(identity).ok().filter(|there| *there != open);
        while let Some(entry) = lines.next(Some(&mut partial))? {
            put(filter, path, entry, output)?;
        }
        output.flush()?;
        if let Some(there) = elsewhere
            && let Ok(file) = File::open(path)
        {
            (open, lines) = (there, Lines::new(BufReader::new(file)));
            partial.clear();
            continue;
        }
        // A file tells nobody that it has grown.
        #[allow(clippy::disallowed_methods)]
        std::thread::sleep(LOOK);
    }
}

/// JSON lines, or a table whose columns are as wide as the first rows need.
struct Output {
    json: bool,
    out: io::BufWriter<io::Stdout>,
    ahead: Vec<[String; 9]>,
    widths: Option<[usize; 9]>,
}

impl Output {
    fn new(json: bool) -> Self {
        Output { json, out: io::BufWriter::new(io::stdout()), ahead: vec![], widths: None }
    }

    fn row(&mut self, record: &Record, text: &str) -> io::Result<()> {
        if self.json {
            return writeln!(self.out, "{text}");
        }
        let row = cells(record);
        if let Some(widths) = self.widths {
            return print(&mut self.out, &row, &widths);
        }
        self.ahead.push(row);
        if self.ahead.len() >= LOOK_AHEAD { self.begin() } else { Ok(()) }
    }

    fn begin(&mut self) -> io::Result<()> {
        let mut widths = HEADING.map(str::len);
        for row in &self.ahead {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        self.widths = Some(widths);
        print(&mut self.out, &HEADING.map(str::to_owned), &widths)?;
        for row in std::mem::take(&mut self.ahead) {
            print(&mut self.out, &row, &widths)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.json && self.widths.is_none() && !self.ahead.is_empty() {
            self.begin()?;
        }
        self.out.flush()
    }
}

fn print(out: &mut impl Write, row: &[String; 9], widths: &[usize; 9]) -> io::Result<()> {
    let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
    writeln!(out, "{}", cells.join("  ").trim_end())
}

/// Nothing of a line reaches the terminal unescaped.
fn cells(record: &Record) -> [String; 9] {
    let clean = |text: String| super::table::clean(&text);
    let field = |name: &str| record.text(name).filter(|text| !text.is_empty()).map_or_else(|| "-".into(), clean);
    let job = match (record.text("job"), record.text("restart")) {
        (Some(job), Some(restart)) if restart != "0" => clean(format!("{job} (restart {restart})")),
        (Some(job), _) => clean(job),
        (None, _) => field("head-session"),
    };
    let time = record.text("time").unwrap_or_default();
    // Whole seconds: the milliseconds are in the JSON.
    let time = match time.split_once('.') {
        Some((seconds, rest)) if rest.ends_with('Z') => format!("{seconds}Z"),
        _ => time,
    };
    [
        clean(time),
        field("event"),
        field("cluster"),
        job,
        field("user"),
        field("project"),
        field("node"),
        field("key-id"),
        clean(what(record)),
    ]
}

/// The rest that matters for this kind, in words.
fn what(record: &Record) -> String {
    let text = |name: &str| record.text(name).unwrap_or_default();
    match record.text("event").as_deref() {
        Some("credentials-issued" | "credentials-delivered") => {
            let again = record.text("count").map(|count| format!(", {count} times more")).unwrap_or_default();
            let claimed =
                record.text("claimed").map(|claimed| format!(", asked for as {claimed:?}")).unwrap_or_default();
            let asked = record.text("asked-name").map(|name| format!("{name} asked of the upstream"));
            let name = asked.unwrap_or_else(|| text("session-name"));
            format!("{} as {name} until {}{claimed}{again}", text("role-arn"), text("expires"))
        }
        Some("session-ended") => format!("{}: {}", text("status"), text("why")),
        Some("refused") => {
            let by = record.text("by").map(|by| format!("{by}: ")).unwrap_or_default();
            format!("{by}{}: {}", text("code"), text("why"))
        }
        _ => ["order", "subject", "by", "role-arn", "status", "count", "sessions", "denied", "lacking", "what", "why"]
            .into_iter()
            .filter_map(|name| Some(format!("{name}={}", record.text(name)?)))
            .collect::<Vec<_>>()
            .join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_does_not_reach_the_terminal() {
        let line = r#"{"time":"2026-01-31T12:00:00.123Z","event":"refused","user":"\u001b[2Jx","by":"\u202egnp","code":"C","why":"a\nb"}"#;
        let row = cells(&serde_json::from_str(line).unwrap());
        assert_eq!(row[0], "2026-01-31T12:00:00Z");
        assert_eq!(row[4], r"\u{1b}[2Jx");
        assert_eq!(row[8], r"\u{202e}gnp: C: a\nb");
        assert!(row.iter().all(|cell| !cell.chars().any(char::is_control)), "{row:?}");
    }
}
