//! A TOML document read key by key, so that every problem is found in one go and has its line.

use std::collections::HashSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One thing that is wrong with the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Counted from 1; 0 if it belongs to no line.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.text),
            line => write!(f, "line {line}: {}", self.text),
        }
    }
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub struct Found<T> {
    pub value: T,
    pub line: usize,
}

/// One table of the document. Keys that nobody asked for are problems: see [`Section::finish`].
pub struct Section<'d> {
    name: &'static str,
    source: &'d str,
    table: Option<&'d DeTable<'d>>,
    asked: HashSet<&'static str>,
    problems: Vec<Problem>,
}

impl<'d> Section<'d> {
    pub fn root(source: &'d str, table: &'d DeTable<'d>) -> Self {
        Section { name: "", source, table: Some(table), asked: HashSet::new(), problems: Vec::new() }
    }

    /// The table under `key`; an empty one if it is absent.
    pub fn section(&mut self, key: &'static str) -> Section<'d> {
        let table = match self.get(key) {
            None => None,
            Some((DeValue::Table(table), _)) => Some(table),
            Some((_, line)) => {
                self.problem(line, format!("`{key}` must be a table: write [{key}]"));
                None
            }
        };
        Section { name: key, source: self.source, table, asked: HashSet::new(), problems: Vec::new() }
    }

    fn get(&mut self, key: &'static str) -> Option<(&'d DeValue<'d>, usize)> {
        self.asked.insert(key);
        let value: &'d Spanned<DeValue<'d>> = self.table?.get(key)?;
        Some((value.get_ref(), line_of(self.source, value.span().start)))
    }

    pub fn problem(&mut self, line: usize, text: impl Into<String>) {
        self.problems.push(Problem { line, text: text.into() });
    }

    /// `key` as the file's reader knows it.
    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    pub fn text(&mut self, key: &'static str) -> Option<Found<String>> {
        match self.get(key)? {
            (DeValue::String(text), line) => Some(Found { value: text.to_string(), line }),
            (_, line) => {
                let path = self.path(key);
                self.problem(line, format!("`{path}` must be a text in quotes"));
                None
            }
        }
    }

    /// A text that `T` knows how to read.
    pub fn parsed<T: FromStr<Err: fmt::Display>>(&mut self, key: &'static str) -> Option<Found<T>> {
        let Found { value, line } = self.text(key)?;
        match value.parse() {
            Ok(value) => Some(Found { value, line }),
            Err(error) => {
                let path = self.path(key);
                self.problem(line, format!("`{path}`: {error}"));
                None
            }
        }
    }

    /// One of some words.
    pub fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)], default: T) -> T {
        let Some(Found { value, line }) = self.text(key) else { return default };
        if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == value) {
            return *meaning;
        }
        let known: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        let path = self.path(key);
        self.problem(line, format!("`{path}` is {}, it may be {}", shown(&value), known.join(" or ")));
        default
    }

    pub fn count(&mut self, key: &'static str, range: RangeInclusive<usize>, default: usize) -> usize {
        let Some((value, line)) = self.get(key) else { return default };
        let number = match value {
            DeValue::Integer(number) => usize::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        match number {
            Some(number) if range.contains(&number) => number,
            _ => {
                let path = self.path(key);
                self.problem(line, format!("`{path}` must be a number from {} to {}", range.start(), range.end()));
                default
            }
        }
    }

    /// A text such as `500ms`, `10s`, `5m`, `1h`.
    pub fn duration(&mut self, key: &'static str, range: RangeInclusive<Duration>) -> Option<Duration> {
        let Found { value, line } = self.text(key)?;
        match duration(&value) {
            Some(duration) if range.contains(&duration) => Some(duration),
            Some(_) => {
                let path = self.path(key);
                self.problem(line, format!("`{path}` must be from {:?} to {:?}", range.start(), range.end()));
                None
            }
            None => {
                let path = self.path(key);
                self.problem(line, format!("`{path}` must be a time such as \"500ms\", \"10s\", \"5m\" or \"1h\""));
                None
            }
        }
    }

    /// All problems of this table, unknown keys included.
    pub fn finish(mut self) -> Vec<Problem> {
        for (key, _) in self.table.into_iter().flat_map(DeTable::iter) {
            if !self.asked.contains(key.get_ref().as_ref()) {
                let line = line_of(self.source, key.span().start);
                let path = self.path(&shown(key.get_ref()));
                let mut known: Vec<_> = self.asked.iter().copied().collect();
                known.sort_unstable();
                self.problems.push(Problem {
                    line,
                    text: format!("there is no option {path}; known here: {}", known.join(", ")),
                });
            }
        }
        self.problems
    }
}

/// The line, counted from 1, of a byte of the document.
pub fn line_of(source: &str, at: usize) -> usize {
    source.as_bytes()[..at.min(source.len())].iter().filter(|b| **b == b'\n').count() + 1
}

/// A text of the file, escaped and short.
pub fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let milliseconds = match &text[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(milliseconds)?))
}
