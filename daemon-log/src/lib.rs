//! The log of a daemon: one line for each event, on stderr.
//!
//! Where stderr is the journal (systemd.exec(5), `JOURNAL_STREAM`), each line begins with its priority, as
//! sd-daemon(3) defines it (`<3>` error, `<4>` warning, `<6>` information, `<7>` debug), and text lines carry no
//! time, since the journal has its own. Elsewhere a line has a time and no priority.
#![forbid(unsafe_code)]

use std::fmt;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{LazyLock, OnceLock, RwLock};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object, the event's fields under `fields`.
    Json,
    /// One JSON object, the event's fields beside its level.
    FlatJson,
}

type Handle = reload::Handle<Targets, tracing_subscriber::Registry>;

static LEVEL: OnceLock<Handle> = OnceLock::new();
static FORMAT: RwLock<Format> = RwLock::new(Format::Text);
static JOURNAL: LazyLock<bool> = LazyLock::new(|| {
    let named = std::env::var("JOURNAL_STREAM").ok();
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().map(std::fs::File::from);
    let found = stderr.and_then(|file| file.metadata()).map(|meta| (meta.dev(), meta.ino()));
    is_journal(named.as_deref(), found.ok())
});

/// Starts the log, or changes the form and the level of one that runs. `level` is a filter of tracing-subscriber, such
/// as `info` or `credd=debug`; a filter that does not parse counts as `info`.
pub fn apply(level: &str, format: Format) {
    *FORMAT.write().unwrap_or_else(std::sync::PoisonError::into_inner) = format;
    let targets: Targets = level.parse().unwrap_or_else(|_| Targets::new().with_default(Level::INFO));
    if let Some(running) = LEVEL.get() {
        // It fails only where the subscriber is gone, which lives as long as the process.
        let _ = running.reload(targets);
        return;
    }
    let (filter, handle) = reload::Layer::new(targets);
    let lines = tracing_subscriber::fmt::layer().event_format(Lines).with_ansi(false).with_writer(std::io::stderr);
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        let _ = LEVEL.set(handle);
    }
}

/// Writes an error to stderr before the log runs, or where there is none: a person's terminal, or the journal.
pub fn complain(text: &str) {
    for line in text.lines() {
        eprintln!("{}{line}", if *JOURNAL { priority(Level::ERROR) } else { "" });
    }
}

/// Whether what `JOURNAL_STREAM` names (`DEVICE:INODE`) is what was found.
fn is_journal(named: Option<&str>, found: Option<(u64, u64)>) -> bool {
    let parsed = named.and_then(|text| text.split_once(':'));
    let parsed = parsed.and_then(|(device, inode)| Some((device.parse().ok()?, inode.parse().ok()?)));
    parsed.is_some() && parsed == found
}

fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let form = *FORMAT.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        write_line(context, &mut to, event, form, *JOURNAL)
    }
}

fn without_spans(format: format::Format<format::Json>) -> format::Format<format::Json> {
    format.with_current_span(false).with_span_list(false)
}

fn write_line<S, N>(
    context: &FmtContext<'_, S, N>,
    to: &mut Writer<'_>,
    event: &Event<'_>,
    form: Format,
    journal: bool,
) -> fmt::Result
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let mut line = String::new();
    let writer = Writer::new(&mut line);
    match form {
        // Spans, which only the AWS SDK has, keep their fields as text: these formats would take them for JSON.
        Format::Json => without_spans(format::json()).format_event(context, writer, event),
        Format::FlatJson => without_spans(format::json()).flatten_event(true).format_event(context, writer, event),
        Format::Text if journal => {
            format::format().without_time().with_ansi(false).format_event(context, writer, event)
        }
        Format::Text => format::format().with_ansi(false).format_event(context, writer, event),
    }?;
    if journal {
        to.write_str(priority(*event.metadata().level()))?;
    }
    // A value with a line break must not look like a line of its own.
    let line = line.trim();
    line.chars().try_for_each(|c| to.write_char(if c.is_control() { ' ' } else { c }))?;
    to.write_char('\n')
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    struct Form(Format, bool);

    impl<S, N> FormatEvent<S, N> for Form
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
        N: for<'a> FormatFields<'a> + 'static,
    {
        fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
            write_line(context, &mut to, event, self.0, self.1)
        }
    }

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines_of(form: Format, journal: bool) -> Vec<String> {
        let kept = Kept::default();
        let writer = kept.clone();
        let lines =
            tracing_subscriber::fmt::layer().event_format(Form(form, journal)).with_writer(move || writer.clone());
        let filter = Targets::new().with_default(Level::TRACE);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(filter).with(lines), || {
            tracing::error!(job = 5, why = "no\nrole\u{1b}[2J", "refused");
            tracing::warn!("slow");
            tracing::info!("ready");
            tracing::debug!("asked");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_journal_gets_priorities_and_no_times() {
        let lines = lines_of(Format::Text, true);
        assert_eq!(lines.len(), 4, "{lines:?}");
        for (line, begin) in lines.iter().zip(["<3>ERROR ", "<4>WARN ", "<6>INFO ", "<7>DEBUG "]) {
            assert!(line.starts_with(begin), "{line}");
        }
        assert!(lines[0].ends_with("refused job=5 why=\"no\\nrole\\u{1b}[2J\""), "{}", lines[0]);
        for line in lines_of(Format::FlatJson, true) {
            let (priority, json) = line.split_at(3);
            let entry: serde_json::Value = serde_json::from_str(json).unwrap();
            assert_eq!(priority == "<3>", entry["level"] == "ERROR", "{line}");
        }
    }

    #[test]
    fn a_terminal_gets_times_and_no_priorities() {
        for line in lines_of(Format::Text, false) {
            assert!(line.starts_with("20") && !line.contains('<'), "{line}");
        }
        for (form, field) in [(Format::Json, "/fields/job"), (Format::FlatJson, "/job")] {
            let entry: serde_json::Value = serde_json::from_str(&lines_of(form, false)[0]).unwrap();
            assert_eq!(entry.pointer(field), Some(&5.into()), "{entry}");
        }
    }

    #[test]
    fn only_the_stream_that_systemd_names_is_the_journal() {
        assert!(is_journal(Some("8:12345"), Some((8, 12345))));
        for (named, found) in
            [(None, Some((8, 12345))), (Some("8:12345"), Some((8, 1))), (Some("x"), Some((8, 1))), (Some("x:y"), None)]
        {
            assert!(!is_journal(named, found), "{named:?}");
        }
    }
}
