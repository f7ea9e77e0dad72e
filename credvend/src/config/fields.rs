//! Reads a TOML table field by field and gathers every problem with its line, instead of stopping at the first.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use toml_edit::{Item, TableLike, Value};

/// The text being read, and what is wrong with it so far.
pub struct Source<'a> {
    text: &'a str,
    problems: RefCell<Vec<(usize, String)>>,
}

impl<'a> Source<'a> {
    /// Nothing is wrong yet.
    pub fn new(text: &'a str) -> Self {
        Source { text, problems: RefCell::default() }
    }

    /// The 1-based line of a byte offset.
    pub fn line(&self, offset: usize) -> usize {
        1 + self.text.bytes().take(offset).filter(|b| *b == b'\n').count()
    }

    /// Notes a problem.
    pub fn problem(&self, line: usize, text: impl Into<String>) {
        self.problems.borrow_mut().push((line, text.into()));
    }

    /// All problems, in the file's order.
    pub fn into_problems(self) -> Vec<String> {
        let mut problems = self.problems.into_inner();
        problems.sort();
        problems.into_iter().map(|(line, text)| format!("line {line}: {text}")).collect()
    }
}

/// One table of the file.
pub struct Section<'s, 't> {
    source: &'s Source<'t>,
    table: &'s dyn TableLike,
    name: String,
    line: usize,
    known: RefCell<BTreeSet<&'static str>>,
}

impl<'s, 't> Section<'s, 't> {
    /// The file's top level.
    pub fn root(source: &'s Source<'t>, table: &'s dyn TableLike) -> Self {
        Section { source, table, name: String::new(), line: 1, known: RefCell::default() }
    }

    /// Notes a problem of this table as a whole.
    pub fn problem(&self, text: impl Display) {
        self.source.problem(self.line, format!("{}{text}", self.prefix("")));
    }

    /// Notes a problem with one of its keys.
    pub fn problem_at(&self, key: &str, text: impl Display) {
        let line = self.line_of(key);
        self.source.problem(line, format!("{}: {text}", self.prefix(key)));
    }

    fn prefix(&self, key: &str) -> String {
        match (self.name.as_str(), key) {
            ("", key) => key.to_owned(),
            (name, "") => format!("[{name}]: "),
            (name, key) => format!("{name}.{key}"),
        }
    }

    fn line_of(&self, key: &str) -> usize {
        let span = self.table.get_key_value(key).and_then(|(key, item)| key.span().or_else(|| item.span()));
        span.map_or(self.line, |span| self.source.line(span.start))
    }

    fn item(&self, key: &'static str) -> Option<&'s Item> {
        self.known.borrow_mut().insert(key);
        self.table.get(key).filter(|item| !item.is_none())
    }

    fn value<T>(&self, key: &'static str, kind: &str, read: impl Fn(&'s Value) -> Option<T>) -> Option<T> {
        let item = self.item(key)?;
        let value = item.as_value().and_then(read);
        if value.is_none() {
            self.problem_at(key, format!("must be {kind}, not {}", item.type_name()));
        }
        value
    }

    /// A string.
    pub fn text(&self, key: &'static str) -> Option<String> {
        self.value(key, "a string", |v| v.as_str().map(str::to_owned))
    }

    /// A string of a validating type.
    pub fn parsed<T: FromStr<Err: Display>>(&self, key: &'static str) -> Option<T> {
        self.text(key)?.parse().map_err(|e| self.problem_at(key, e)).ok()
    }

    /// An absolute path.
    pub fn path(&self, key: &'static str) -> Option<PathBuf> {
        let text = self.text(key)?;
        self.absolute(key, text)
    }

    fn absolute(&self, key: &'static str, text: String) -> Option<PathBuf> {
        let path = PathBuf::from(text);
        if !path.is_absolute() {
            self.problem_at(key, format!("{path:?} must be an absolute path"));
            return None;
        }
        Some(path)
    }

    /// `true` or `false`.
    pub fn boolean(&self, key: &'static str) -> Option<bool> {
        self.value(key, "true or false", Value::as_bool)
    }

    /// A whole number within bounds.
    pub fn number(&self, key: &'static str, least: u32, most: u32) -> Option<u32> {
        let number = self.value(key, "a whole number", Value::as_integer)?;
        match u32::try_from(number) {
            Ok(number) if (least..=most).contains(&number) => Some(number),
            _ => {
                self.problem_at(key, format!("must be {least} to {most}, not {number}"));
                None
            }
        }
    }

    /// One string, or an array of strings.
    pub fn texts(&self, key: &'static str) -> Option<Vec<String>> {
        self.value(key, "a string or an array of strings", texts_of)
    }

    /// One absolute path, or an array of them.
    pub fn paths(&self, key: &'static str) -> Vec<PathBuf> {
        let texts = self.texts(key).unwrap_or_default();
        texts.into_iter().filter_map(|text| self.absolute(key, text)).collect()
    }

    /// A table whose keys are names: each with one string or an array of strings. Every key counts as known.
    pub fn all_texts(&self) -> Vec<(String, Vec<String>)> {
        let mut all = vec![];
        for (key, item) in self.table.iter().filter(|(_, item)| !item.is_none()) {
            match item.as_value().and_then(texts_of) {
                Some(texts) => all.push((key.to_owned(), texts)),
                None => {
                    self.problem_at(key, format!("must be a string or an array of strings, not {}", item.type_name()))
                }
            }
        }
        all
    }

    /// One of a few words.
    pub fn word<T: Copy>(&self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(key)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            self.problem_at(key, format!("{text:?} must be one of: {}", known.join(", ")));
        }
        found
    }

    /// A table of its own; an absent one reads as empty.
    pub fn section(&self, key: &'static str, empty: &'s dyn TableLike) -> Section<'s, 't> {
        let item = self.item(key);
        let table = item.and_then(Item::as_table_like);
        if item.is_some() && table.is_none() {
            self.problem_at(key, "must be a table");
        }
        self.child(key, table.unwrap_or(empty), self.line_of(key))
    }

    /// An array of tables.
    pub fn sections(&self, key: &'static str) -> Vec<Section<'s, 't>> {
        match self.item(key) {
            None => Vec::new(),
            Some(Item::ArrayOfTables(tables)) => tables
                .iter()
                .map(|table| {
                    let line = table.span().map_or(self.line, |span| self.source.line(span.start));
                    self.child(key, table, line)
                })
                .collect(),
            Some(_) => {
                self.problem_at(key, format!("must be written as [[{key}]]"));
                Vec::new()
            }
        }
    }

    fn child(&self, key: &str, table: &'s dyn TableLike, line: usize) -> Section<'s, 't> {
        Section { source: self.source, table, name: key.to_owned(), line, known: RefCell::default() }
    }

    /// Whether the key is there at all.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Call after the last field: every key that was not asked for is a problem.
    pub fn finish(&self) {
        let known = self.known.borrow();
        for (key, _) in self.table.iter().filter(|(key, item)| !item.is_none() && !known.contains(key)) {
            let names: Vec<_> = known.iter().copied().collect();
            self.problem_at(key, format!("is not an option here; there are: {}", names.join(", ")));
        }
    }
}

fn texts_of(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.value().clone()]),
        Value::Array(array) => array.iter().map(|v| v.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}
