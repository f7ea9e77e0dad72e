//! What was measured, against what was wanted; as a table and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// What a figure should be.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// It stands for itself.
    None,
    /// Not more.
    AtMost(f64),
    /// Not less.
    AtLeast(f64),
}

/// One figure.
#[derive(Debug, Clone)]
pub struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    target: Target,
    detail: String,
}

impl Figure {
    /// A figure without a target.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Figure { name: name.into(), value, unit, target: Target::None, detail: String::new() }
    }

    /// It should be this at most.
    pub fn at_most(self, bound: f64) -> Self {
        Figure { target: Target::AtMost(bound), ..self }
    }

    /// It should be this at least.
    pub fn at_least(self, bound: f64) -> Self {
        Figure { target: Target::AtLeast(bound), ..self }
    }

    /// From what it was made.
    pub fn detail(self, detail: impl Into<String>) -> Self {
        Figure { detail: detail.into(), ..self }
    }

    /// Measured by wanted; `None` without a target, and where zero is wanted.
    fn ratio(&self) -> Option<f64> {
        match self.target {
            Target::None => None,
            Target::AtMost(bound) | Target::AtLeast(bound) => (bound != 0.0).then(|| self.value / bound),
        }
    }

    fn verdict(&self) -> String {
        let missed = match self.target {
            Target::None => return String::new(),
            Target::AtMost(bound) => self.value > bound,
            Target::AtLeast(bound) => self.value < bound,
        };
        match self.ratio() {
            _ if !missed => "ok".to_owned(),
            Some(ratio) => format!("MISSED by {:.0} %", ((ratio - 1.0).abs() * 100.0).max(1.0)),
            None => "MISSED".to_owned(),
        }
    }

    /// Whether the target was missed.
    pub fn missed(&self) -> bool {
        self.verdict().starts_with("MISSED")
    }

    fn json(&self) -> Value {
        let (bound, direction) = match self.target {
            Target::None => (None, None),
            Target::AtMost(bound) => (Some(bound), Some("at-most")),
            Target::AtLeast(bound) => (Some(bound), Some("at-least")),
        };
        json!({
            "name": self.name, "value": self.value, "unit": self.unit, "target": bound, "direction": direction,
            "ratio-to-target": self.ratio(), "missed": self.missed(), "detail": self.detail,
        })
    }
}

/// All figures of one topic, or why there are none.
pub struct Topic {
    /// Its word on the command line.
    pub name: &'static str,
    /// What it is about.
    pub title: &'static str,
    /// The figures, or what went wrong.
    pub outcome: Result<Vec<Figure>, String>,
}

/// A value with as many digits as mean something.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 || value.fract() == 0.0 => format!("{value:.0}"),
        v if v >= 100.0 => format!("{value:.1}"),
        v if v >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The table for people.
pub fn table(machine: &str, topics: &[Topic]) -> String {
    let mut text = format!("{machine}\n");
    for topic in topics {
        let _ = write!(text, "\n{}\n", topic.title);
        let figures = match &topic.outcome {
            Ok(figures) => figures,
            Err(why) => {
                let _ = writeln!(text, "  not measured: {why}");
                continue;
            }
        };
        for figure in figures {
            let target = match figure.target {
                Target::None => String::new(),
                Target::AtMost(bound) => format!("≤ {bound}"),
                Target::AtLeast(bound) => format!("≥ {bound}"),
            };
            let ratio = figure.ratio().map_or_else(String::new, |ratio| format!("{ratio:.2}×"));
            let value = format!("{} {}", number(figure.value), figure.unit);
            let line = format!(
                "  {:<58} {value:>14}  {target:>8} {ratio:>7}  {:<14} {}",
                figure.name,
                figure.verdict(),
                figure.detail
            );
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    let missed: Vec<&Figure> =
        topics.iter().filter_map(|t| t.outcome.as_ref().ok()).flatten().filter(|f| f.missed()).collect();
    let _ = match missed.len() {
        0 => writeln!(text, "\nNo target was missed."),
        count => writeln!(text, "\n{count} missed: {}", missed.iter().map(|f| &*f.name).collect::<Vec<_>>().join("; ")),
    };
    text
}

/// The same for programs.
pub fn document(machine: &str, topics: &[Topic]) -> Value {
    let topics: Vec<Value> = topics
        .iter()
        .map(|topic| {
            json!({
                "topic": topic.name,
                "figures": topic.outcome.as_ref().map(|f| f.iter().map(Figure::json).collect::<Vec<_>>()).ok(),
                "not-measured": topic.outcome.as_ref().err(),
            })
        })
        .collect();
    json!({ "machine": machine, "topics": topics })
}
