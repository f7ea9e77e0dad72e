//! Reading the log again: line by line, in bounded memory, the rotated siblings first.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// No line of ours is longer; what is longer is damage.
const MAX_LINE: usize = 256 * 1024;

/// The siblings that are looked at, at most.
const MAX_SIBLINGS: usize = 1000;

/// One line.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub struct Record(Map<String, Value>);

impl Record {
    /// A field as text; a number too.
    pub fn text(&self, field: &str) -> Option<String> {
        match self.0.get(field)? {
            Value::String(text) => Some(text.clone()),
            Value::Null => None,
            other => Some(other.to_string()),
        }
    }

    /// When it happened.
    pub fn time(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::parse(self.0.get("time")?.as_str()?, &Rfc3339).ok()
    }

    /// Whether a field has exactly this value.
    pub fn has(&self, field: &str, value: &str) -> bool {
        match self.0.get(field) {
            Some(Value::String(text)) => text == value,
            Some(Value::Number(number)) => number.to_string() == value,
            _ => false,
        }
    }
}

/// What a line of the file is.
#[derive(Debug)]
pub enum Entry {
    /// An event, and its text.
    Event(Record, String),
    /// Not whole, as after a crash or a full disk; its number within the file, and what is wrong.
    Damaged(u64, String),
}

/// Which lines are wanted. All conditions must hold; values are compared exactly.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Field and value.
    pub fields: Vec<(&'static str, String)>,
    /// A role: its ARN, or its name within the project.
    pub role: Option<String>,
    /// Any of these kinds; empty: all.
    pub events: Vec<String>,
    /// Not earlier.
    pub since: Option<OffsetDateTime>,
    /// Earlier than this.
    pub until: Option<OffsetDateTime>,
}

impl Filter {
    /// Whether a line is wanted. One without a readable time is not when a time is asked for.
    pub fn wants(&self, record: &Record) -> bool {
        let in_time = (self.since.is_none() && self.until.is_none())
            || record.time().is_some_and(|at| {
                self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at < until)
            });
        in_time
            && self.fields.iter().all(|(field, value)| {
                // What a head opened has the job's number there.
                record.has(field, value) || (*field == "job" && record.has("head-session", value))
            })
            && self.role.as_ref().is_none_or(|role| record.has("role-arn", role) || record.has("role", role))
            && (self.events.is_empty() || self.events.iter().any(|kind| record.has("event", kind)))
    }
}

/// Lines of one file as they come.
pub struct Lines<R> {
    input: R,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    /// From its beginning.
    pub fn new(input: R) -> Self {
        Lines { input, number: 0 }
    }

    /// What is read.
    pub fn input(&self) -> &R {
        &self.input
    }

    /// The next line; `None` at the end. A last line without its end is damaged, unless `partial` is there, which keeps it
    /// until the rest has come.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn next(&mut self, partial: Option<&mut Vec<u8>>) -> io::Result<Option<Entry>> {
        let mut own = vec![];
        let growing = partial.is_some();
        let line = partial.unwrap_or(&mut own);
        let room = (MAX_LINE + 1).saturating_sub(line.len());
        let read = (&mut self.input).take(room as u64).read_until(b'\n', line)?;
        if read == 0 && (growing || line.is_empty()) {
            return Ok(None);
        }
        let whole = line.last() == Some(&b'\n');
        if !whole && growing && line.len() <= MAX_LINE {
            return Ok(None);
        }
        self.number += 1;
        let mut bytes = std::mem::take(line);
        if !whole && bytes.len() > MAX_LINE {
            skip_line(&mut self.input)?;
            return Ok(Some(Entry::Damaged(self.number, format!("longer than {MAX_LINE} bytes"))));
        }
        if whole {
            bytes.pop();
        }
        let entry = match String::from_utf8(bytes) {
            Err(_) => Entry::Damaged(self.number, "not text".into()),
            Ok(text) => match serde_json::from_str(&text) {
                Ok(record) => Entry::Event(record, text),
                Err(_) if !whole => Entry::Damaged(self.number, "cut off".into()),
                Err(error) if error.is_eof() => Entry::Damaged(self.number, "cut off".into()),
                Err(error) => Entry::Damaged(self.number, format!("no JSON object ({error})")),
            },
        };
        Ok(Some(entry))
    }
}

/// Without keeping it.
fn skip_line(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = input.fill_buf()?;
        let (used, ended) = match buffer.iter().position(|b| *b == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        input.consume(used);
        if ended {
            return Ok(());
        }
    }
}

/// One file of the log.
pub struct Part {
    /// Its path, for messages.
    pub path: PathBuf,
    /// Open from before the first line is shown: a rotation meanwhile moves nothing away.
    pub file: File,
    /// The time of its first line that has one.
    first: Option<OffsetDateTime>,
}

/// The log's files, oldest first, and those that are not read, with the reason: compressed ones, others' ones.
///
/// A sibling is `NAME.1`, `NAME-20260131`, or the like, as logrotate names them; their first lines say how they follow
/// one another. Files that end before `since` are left out.
///
/// # Errors
/// The log itself cannot be opened.
pub fn parts(path: &Path, since: Option<OffsetDateTime>) -> io::Result<(Vec<Part>, Vec<String>)> {
    let (mut parts, mut skipped) = (vec![], vec![]);
    for sibling in siblings(path)? {
        if [".gz", ".xz", ".zst", ".bz2"].iter().any(|end| sibling.to_string_lossy().ends_with(end)) {
            skipped.push(format!(
                "{} is compressed: not read (zcat {} | credvend audit --file -)",
                sibling.display(),
                sibling.display()
            ));
            continue;
        }
        match open(&sibling) {
            Ok(part) => parts.push(part),
            Err(error) => skipped.push(format!("{}: {error}", sibling.display())),
        }
    }
    parts.sort_by_key(|part| part.first);
    match open(path) {
        Ok(part) => parts.push(part),
        // A moment ago it was rotated.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !parts.is_empty() => {}
        Err(error) => return Err(error),
    }
    if let Some(since) = since {
        // Of those that begin before it, only the last may reach beyond it.
        let before = parts.iter().filter(|part| part.first.is_some_and(|first| first <= since)).count();
        parts.drain(..before.saturating_sub(1));
    }
    Ok((parts, skipped))
}

fn siblings(path: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(vec![]) };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found = vec![];
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?.file_name();
        let rest = entry.to_str().and_then(|entry| entry.strip_prefix(name));
        let rotated =
            |rest: &str| rest.strip_prefix(['.', '-']).is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()));
        if rest.is_some_and(rotated) && found.len() < MAX_SIBLINGS {
            found.push(dir.join(entry));
        }
    }
    found.sort();
    Ok(found)
}

fn open(path: &Path) -> io::Result<Part> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut lines = Lines::new(BufReader::new(File::open(path)?.take(4 * MAX_LINE as u64)));
    let mut first = None;
    while let Some(entry) = lines.next(None)? {
        if let Entry::Event(record, _) = entry
            && let Some(at) = record.time()
        {
            first = Some(at);
            break;
        }
    }
    Ok(Part { path: path.to_owned(), file, first })
}

/// `2026-01-31T12:00:00Z`, or how long ago: `90s`, `30m`, `2h`, `7d`.
///
/// # Errors
/// What it must look like.
pub fn moment(text: &str, now: OffsetDateTime) -> Result<OffsetDateTime, String> {
    let wrong = || format!("{text:?} must be a time such as 2026-01-31T12:00:00Z, or an age such as 30m, 2h or 7d");
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(at);
    }
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let count: u32 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    now.checked_sub(time::Duration::seconds(i64::from(count) * seconds)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use time::macros::datetime;

    fn all(bytes: &[u8]) -> Vec<Entry> {
        let mut lines = Lines::new(bytes);
        std::iter::from_fn(|| lines.next(None).unwrap()).collect()
    }

    #[test]
    fn a_damaged_line_costs_itself_alone() {
        let mut bytes = b"{\"event\":\"a\"}\n{\"event\":\"b\n\xff\xfe\n[1]\n".to_vec();
        bytes.extend(vec![b'x'; 3 * MAX_LINE]);
        bytes.extend(b"\n{\"event\":\"c\"}\n{\"event\":\"d");
        let seen: Vec<String> = all(&bytes)
            .iter()
            .map(|entry| match entry {
                Entry::Event(record, _) => record.text("event").unwrap(),
                Entry::Damaged(number, why) => format!("{number}: {}", why.split('(').next().unwrap().trim()),
            })
            .collect();
        assert_eq!(seen[..3], ["a", "2: cut off", "3: not text"]);
        assert_eq!(seen[3..], ["4: no JSON object", "5: longer than 262144 bytes", "c", "7: cut off"]);
    }

    #[test]
    fn a_growing_file_is_read_as_far_as_its_lines_are_whole() {
        let mut partial = vec![];
        let mut one = Lines::new(&b"{\"event\":\"a\"}\n{\"ev"[..]);
        assert!(matches!(one.next(Some(&mut partial)), Ok(Some(Entry::Event(..)))));
        assert!(matches!(one.next(Some(&mut partial)), Ok(None)));
        assert_eq!(partial, b"{\"ev");
        let mut more = Lines::new(&b"ent\":\"b\"}\n"[..]);
        let Ok(Some(Entry::Event(record, text))) = more.next(Some(&mut partial)) else { panic!("{partial:?}") };
        assert!(record.has("event", "b") && text == "{\"event\":\"b\"}" && partial.is_empty());
    }

    #[test]
    fn siblings_are_ordered_by_what_is_in_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let write = |name: &str, day: u8| {
            std::fs::write(dir.path().join(name), format!("cut\n{{\"time\":\"2026-01-{day:02}T00:00:00Z\"}}\n"))
                .unwrap()
        };
        for (name, day) in
            [("audit.jsonl", 9), ("audit.jsonl.1", 7), ("audit.jsonl.10", 1), ("audit.jsonl-20260103", 3)]
        {
            write(name, day);
        }
        write("audit.jsonl.2.gz", 5);
        write("audit.jsonl.bak", 5);
        write("other.jsonl.1", 5);
        let names = |since| -> Vec<String> {
            let (parts, skipped) = parts(&path, since).unwrap();
            assert!(skipped.len() == 1 && skipped[0].contains("zcat"), "{skipped:?}");
            parts.iter().map(|part| part.path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
        };
        let every = ["audit.jsonl.10", "audit.jsonl-20260103", "audit.jsonl.1", "audit.jsonl"];
        assert_eq!(names(None), every);
        assert_eq!(names(Some(datetime!(2026-01-08 0:00 UTC))), every[2..]);
        assert_eq!(names(Some(datetime!(2026-01-20 0:00 UTC))), every[3..]);
        assert_eq!(names(Some(datetime!(2025-01-20 0:00 UTC))), every);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(names(None), every[..3], "it was rotated this moment");
        assert!(super::parts(&dir.path().join("none"), None).is_err());
    }

    #[test]
    fn times_are_moments_or_ages() {
        let now = datetime!(2026-01-31 12:00 UTC);
        assert_eq!(moment("2026-01-31T11:00:00+01:00", now), Ok(datetime!(2026-01-31 10:00 UTC)));
        assert_eq!(moment("90s", now), Ok(datetime!(2026-01-31 11:58:30 UTC)));
        assert_eq!(moment("2h", now), Ok(datetime!(2026-01-31 10:00 UTC)));
        assert_eq!(moment("7d", now), Ok(datetime!(2026-01-24 12:00 UTC)));
        for wrong in ["", "h", "2", "-2h", "2w", "5ü", "2026-01-31", "4000000000d"] {
            assert!(moment(wrong, now).is_err(), "{wrong}");
        }
    }

    #[test]
    fn conditions_are_exact_and_all_hold() {
        let record: Record = serde_json::from_str(
            r#"{"time":"2026-01-31T12:00:00.5Z","event":"e","user":"bob","job":7,"role":"default","role-arn":"arn:x"}"#,
        )
        .unwrap();
        let filter = |fields: &[(&'static str, &str)]| Filter {
            fields: fields.iter().map(|(field, value)| (*field, (*value).to_owned())).collect(),
            ..Filter::default()
        };
        assert!(filter(&[("user", "bob"), ("job", "7")]).wants(&record));
        assert!(!filter(&[("user", "bobby")]).wants(&record) && !filter(&[("user", "bo")]).wants(&record));
        assert!(!filter(&[("node", "n1")]).wants(&record));
        for (role, wanted) in [("default", true), ("arn:x", true), ("arn:xy", false)] {
            assert_eq!(Filter { role: Some(role.into()), ..Filter::default() }.wants(&record), wanted);
        }
        let between = |since, until| Filter { since: Some(since), until: Some(until), ..Filter::default() };
        let at = record.time().unwrap();
        assert!(between(at, at + time::Duration::SECOND).wants(&record));
        assert!(!between(at - time::Duration::SECOND, at).wants(&record));
        assert!(Filter { events: vec!["x".into(), "e".into()], ..Filter::default() }.wants(&record));
        assert!(!Filter { events: vec!["x".into()], ..Filter::default() }.wants(&record));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_every_line_counts(bytes in prop::collection::vec(any::<u8>(), 0..300), age in ".{0,12}") {
            let ends = bytes.iter().filter(|b| **b == b'\n').count();
            let expected = ends + usize::from(bytes.last().is_some_and(|b| *b != b'\n'));
            prop_assert_eq!(all(&bytes).len(), expected);
            let _ = moment(&age, datetime!(2026-01-31 12:00 UTC));
        }
    }
}
