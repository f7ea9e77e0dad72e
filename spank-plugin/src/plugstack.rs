//! The plugin's arguments in `plugstack.conf`: what each partition gets.
//!
//! ```text
//! required spank_credd.so default=on partition:debug=off partition:gpu=on,prefetch,role=train,on-error=fail
//! ```
//!
//! A partition's list stands alone: nothing is taken over from `default=`. A list with a mistake switches that partition
//! off and is reported; the other partitions work on.
//!
//! Slurm takes nearly every character in a partition's name, and the name ends here at the first `=`. In the argument
//! every character may stand as `%` and two hex digits; a `%`, a `=` and a space must.

use std::fmt;
use std::path::{Component, Path};
use std::time::Duration;

use credd_protocol::late::Policies;
pub use credd_protocol::late::Policy;
use credd_protocol::record::{JobOptions, OnError, RUN_DIR, RunDir};
use credd_protocol::{Invalid, PartitionName, Region};

/// The longest `wait=`: a step's start is delayed by so much at most.
pub const MAX_WAIT: Duration = Duration::from_secs(60);

/// The bounds of `max-unheard=`: a quiet credvend shows life every 15 seconds, and no credentials live longer than 12 hours.
const MAX_UNHEARD: std::ops::RangeInclusive<u32> = 30..=12 * 3600;

/// The longest `run-dir=`: a socket's path has 107 bytes, and a name is added.
const MAX_RUN_DIR_BYTES: usize = 90;

/// The items of a list, for messages.
const KNOWN: &str = "on, off, prefetch, token-file, on-error=continue|fail, role=NAME, region=NAME, metadata=off, \
                     wait=TIME (5s, 500ms) and max-unheard=TIME (60s, 10m)";

/// What a partition's steps are told about the EC2 metadata service, also where the partition is off.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// `metadata=off`: no SDK asks it.
    pub disabled: bool,
    /// `region=`, which an SDK could otherwise ask there.
    pub region: Option<Region>,
}

/// A list, read.
#[derive(Debug, Clone)]
struct Options {
    policy: Policy,
    metadata: Metadata,
}

/// A mistake in `plugstack.conf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The argument's place after the plugin's path, from 1.
    pub position: usize,
    /// The argument as it stands there.
    pub argument: String,
    /// What is wrong.
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "plugstack.conf: argument {} of spank_credd.so, {:?}: {}", self.position, self.argument, self.why)
    }
}

/// The arguments, read.
#[derive(Debug, Clone)]
pub struct Plugstack {
    /// `run-dir=`, by default [`RUN_DIR`].
    pub run_dir: RunDir,
    /// What is wrong, in the order of the arguments.
    pub problems: Vec<Problem>,
    /// What works but may not be meant, a sentence each.
    pub advice: Vec<String>,
    default: Option<Options>,
    partitions: Vec<(PartitionName, Options)>,
}

impl Plugstack {
    /// Reads the arguments; it never fails, mistakes are in [`Plugstack::problems`].
    pub fn parse(arguments: &[String]) -> Self {
        let mut site = Plugstack {
            run_dir: RunDir::new(RUN_DIR),
            problems: Vec::new(),
            advice: Vec::new(),
            default: None,
            partitions: Vec::new(),
        };
        let mut run_dir_seen = false;
        for (index, argument) in arguments.iter().enumerate() {
            let why = match argument.split_once('=') {
                Some(("default", list)) => site.add_default(list),
                Some(("run-dir", _)) if run_dir_seen => Err("it is given twice; the first one counts".into()),
                Some(("run-dir", path)) => {
                    run_dir_seen = true;
                    site.set_run_dir(path)
                }
                Some((key, list)) if key.starts_with("partition:") => {
                    site.add_partition(&key["partition:".len()..], list)
                }
                _ => Err("it is not known; known are default=…, partition:NAME=… and run-dir=PATH".into()),
            };
            if let Err(why) = why {
                site.problems.push(Problem { position: index + 1, argument: shown(argument), why });
            }
        }
        site.advise();
        site
    }

    /// What a partition gets. Without any `default=`, a partition that is not named is on.
    pub fn policy(&self, partition: &str) -> Policy {
        self.options(partition).map_or_else(|| Policy::On(JobOptions::default()), |options| options.policy.clone())
    }

    /// What a partition's steps are told about the metadata service.
    pub fn metadata(&self, partition: &str) -> Metadata {
        self.options(partition).map(|options| options.metadata.clone()).unwrap_or_default()
    }

    fn options(&self, partition: &str) -> Option<&Options> {
        let own = self.partitions.iter().find(|(name, _)| name.as_str() == partition).map(|(_, options)| options);
        own.or(self.default.as_ref())
    }

    fn advise(&mut self) {
        let named = self.partitions.iter().map(|(name, options)| (format!("partition {name}"), options));
        let all = self.default.iter().map(|options| ("default=".to_owned(), options)).chain(named);
        let without_region = all.filter(|(_, options)| options.metadata.disabled && options.metadata.region.is_none());
        self.advice = without_region
            .map(|(what, _)| {
                format!(
                    "plugstack.conf: {what} has metadata=off without region=: SDKs cannot ask the metadata service for \
                     the region, so jobs must set AWS_REGION and AWS_DEFAULT_REGION themselves"
                )
            })
            .collect();
    }

    /// What each partition gets, for a late record.
    pub fn policies(&self) -> Policies {
        let default = self.default.as_ref().map(|options| options.policy.clone());
        let default = default.unwrap_or_else(|| Policy::On(JobOptions::default()));
        let named = self.partitions.iter().map(|(name, options)| (name.clone(), options.policy.clone()));
        let named = named.filter(|(_, policy)| *policy != default).collect();
        Policies { default, named }
    }

    /// Whether any partition has `on-error=fail`.
    pub fn demands_credentials(&self) -> bool {
        let mut all = self.partitions.iter().map(|(_, options)| options).chain(&self.default);
        all.any(|options| matches!(&options.policy, Policy::On(JobOptions { on_error: OnError::Fail, .. })))
    }

    fn add_default(&mut self, list: &str) -> Result<(), String> {
        if self.default.is_some() {
            return Err("it is given twice; the first one counts".into());
        }
        let (options, result) = read(list);
        self.default = Some(options);
        result
    }

    fn add_partition(&mut self, name: &str, list: &str) -> Result<(), String> {
        let name: PartitionName = unescaped(name)?.parse().map_err(|e: Invalid| e.to_string())?;
        if self.partitions.iter().any(|(known, _)| *known == name) {
            return Err(format!("partition {name} is given twice; the first one counts"));
        }
        let (options, result) = read(list);
        self.partitions.push((name, options));
        result
    }

    fn set_run_dir(&mut self, path: &str) -> Result<(), String> {
        let plain = Path::new(path).components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !path.starts_with('/') || !plain || path.len() > MAX_RUN_DIR_BYTES {
            return Err(format!(
                "it must be an absolute path without '..' of at most {MAX_RUN_DIR_BYTES} bytes; {RUN_DIR} is used"
            ));
        }
        self.run_dir = RunDir::new(path);
        Ok(())
    }
}

/// A partition's name as it stands in an argument.
fn unescaped(name: &str) -> Result<String, String> {
    let bad = || "in a partition's name, % must be followed by two hex digits (% itself is %25, = is %3D)".to_owned();
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let (digits, after) = tail.split_at_checked(2).ok_or_else(bad)?;
            let digits = std::str::from_utf8(digits).ok().filter(|two| !two.starts_with('+')).ok_or_else(bad)?;
            bytes.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
            rest = after;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).map_err(|_| "the partition's name is no text".to_owned())
}

/// A list's options, and its mistake if it has one.
fn read(list: &str) -> (Options, Result<(), String>) {
    match read_list(list) {
        Ok(options) => (options, Ok(())),
        Err(why) => {
            let told = format!(
                "the cluster's plugstack.conf has a mistake in this partition's options ({why}); tell your administrator"
            );
            let options = Options { policy: Policy::Broken(told), metadata: Metadata::default() };
            (options, Err(format!("{why}; jobs it is for get no credentials until it is mended")))
        }
    }
}

fn read_list(list: &str) -> Result<Options, String> {
    let mut items = list.split(',');
    let on = match items.next() {
        Some("on") => true,
        Some("off") => false,
        other => return Err(format!("it must begin with on or off, not {:?}", shown(other.unwrap_or_default()))),
    };
    let mut options = JobOptions::default();
    let mut metadata = Metadata::default();
    let mut seen: Vec<&str> = Vec::new();
    for (index, item) in items.enumerate() {
        let at = |why: String| format!("item {} {:?}: {why}", index + 2, shown(item));
        let (key, value) = item.split_once('=').map_or((item, None), |(key, value)| (key, Some(value)));
        if seen.contains(&key) {
            return Err(at("it is given twice".into()));
        }
        seen.push(key);
        match (key, value) {
            ("prefetch", None) => options.prefetch = true,
            ("token-file", None) => options.token_file = true,
            ("on-error", Some("continue")) => options.on_error = OnError::Continue,
            ("on-error", Some("fail")) => options.on_error = OnError::Fail,
            ("on-error", _) => return Err(at("it must be on-error=continue or on-error=fail".into())),
            ("role", Some(name)) => options.role = name.parse().map_err(|e: Invalid| at(e.to_string()))?,
            ("region", Some(name)) => {
                options.region = Some(name.parse().map_err(|e: Invalid| at(e.to_string()))?);
            }
            ("metadata", Some("off")) => metadata.disabled = true,
            ("metadata", _) => return Err(at("it must be metadata=off".into())),
            ("wait", Some(time)) => options.wait_ms = milliseconds(time).map_err(at)?,
            ("max-unheard", Some(time)) => options.max_unheard_seconds = Some(seconds(time).map_err(at)?),
            ("prefetch" | "token-file", Some(_)) => return Err(at("it takes no value".into())),
            _ => return Err(at(format!("it is not known; known are {KNOWN}"))),
        }
    }
    metadata.region.clone_from(&options.region);
    // What stands behind `off` is checked too: it comes into force with one word.
    Ok(Options { policy: if on { Policy::On(options) } else { Policy::Off }, metadata })
}

/// `5s`, `500ms`.
fn milliseconds(text: &str) -> Result<u32, String> {
    let bad = || format!("it must be a time from 1ms to {}s, such as 5s or 500ms", MAX_WAIT.as_secs());
    let (digits, unit) = match text.strip_suffix("ms") {
        Some(digits) => (digits, 1u32),
        None => (text.strip_suffix('s').ok_or_else(bad)?, 1000),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let time = digits.parse::<u32>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(bad)?;
    if time == 0 || u128::from(time) > MAX_WAIT.as_millis() { Err(bad()) } else { Ok(time) }
}

/// `60s`, `10m`, `1h`.
fn seconds(text: &str) -> Result<u32, String> {
    let bad = || format!("it must be a time from {}s to 12h, such as 60s, 10m or 1h", MAX_UNHEARD.start());
    let unit = match text.bytes().last() {
        Some(b's') => 1u32,
        Some(b'm') => 60,
        Some(b'h') => 3600,
        _ => return Err(bad()),
    };
    let digits = &text[..text.len() - 1];
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let time = digits.parse::<u32>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(bad)?;
    if MAX_UNHEARD.contains(&time) { Ok(time) } else { Err(bad()) }
}

/// Cut to what a log line bears.
fn shown(text: &str) -> String {
    let mut cut: String = text.chars().take(120).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(line: &str) -> Plugstack {
        Plugstack::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    fn on(policy: Policy) -> JobOptions {
        match policy {
            Policy::On(options) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_option_is_read() {
        let site = parse(
            "default=off partition:debug=on run-dir=/run/other \
             partition:gpu=on,prefetch,role=train,on-error=fail,region=eu-west-1,token-file,wait=1500ms",
        );
        assert_eq!(site.problems, []);
        assert_eq!(site.run_dir.path(), Path::new("/run/other"));
        assert_eq!(site.policy("batch"), Policy::Off);
        assert_eq!(on(site.policy("debug")), JobOptions::default());
        let gpu = on(site.policy("gpu"));
        assert!(gpu.prefetch && gpu.token_file && gpu.on_error == OnError::Fail && gpu.wait_ms == 1500);
        assert_eq!((gpu.role.as_str(), gpu.region.unwrap().as_str()), ("train", "eu-west-1"));
    }

    #[test]
    fn the_line_without_arguments_switches_every_partition_on() {
        assert_eq!(on(parse("").policy("any")), JobOptions::default());
        assert_eq!(parse("partition:a=off").policy("a"), Policy::Off);
        assert_eq!(on(parse("partition:a=off default=on,wait=2s").policy("b")).wait_ms, 2000);
        for (time, seconds) in [("60s", 60), ("10m", 600), ("12h", 43_200)] {
            let strict = on(parse(&format!("partition:secret=on,max-unheard={time}")).policy("secret"));
            assert_eq!(strict.max_unheard_seconds, Some(seconds));
        }
    }

    #[test]
    fn the_metadata_service_is_for_every_step_of_a_partition_also_where_it_is_off() {
        let site = parse("default=off,metadata=off,region=eu-west-1 partition:a=on partition:b=on,metadata=off");
        assert_eq!(site.problems, []);
        let region = Some("eu-west-1".parse().unwrap());
        assert_eq!(site.metadata("any"), Metadata { disabled: true, region });
        assert_eq!(site.metadata("a"), Metadata::default());
        assert_eq!(site.metadata("b"), Metadata { disabled: true, region: None });
        assert_eq!(parse("").metadata("any"), Metadata::default());
        assert_eq!(site.advice.len(), 1);
        assert!(site.advice[0].contains("partition b has metadata=off without region="), "{:?}", site.advice);
    }

    #[test]
    fn a_partitions_name_may_be_any_that_slurm_takes() {
        for (argument, name) in [
            ("gpu+a100", "gpu+a100"),
            ("a:b,c/d", "a:b,c/d"),
            ("a%3Db%25%20c", "a=b% c"),
            ("é", "é"),
            ("%c3%a9", "é"),
            ("<x>&\"y'", "<x>&\"y'"),
            ("..", ".."),
        ] {
            let site = parse(&format!("default=off partition:{argument}=on,wait=2s"));
            assert_eq!(site.problems, [], "{argument}");
            assert_eq!(on(site.policy(name)).wait_ms, 2000, "{argument}");
        }
        for bad in ["a%", "a%3", "a%zz", "a%+1", "a%ff", "%0a", "%20"] {
            assert_eq!(parse(&format!("partition:{bad}=on")).problems.len(), 1, "{bad}");
        }
    }

    #[test]
    fn a_late_record_gets_every_partitions_policy() {
        let line = "default=on partition:debug=off partition:gpu=on,on-error=fail,wait=7s \
                    partition:like=on partition:bad=on,x partition:short=on,on-error=fail,wait=1s";
        let (site, policies) = (parse(line), parse(line).policies());
        for name in ["debug", "gpu", "like", "bad", "short", "other"] {
            assert_eq!(*policies.of(&name.parse().unwrap()), site.policy(name), "{name}");
        }
        assert_eq!(policies.named.len(), 4, "what is as the default needs no entry");
        assert!(site.demands_credentials() && parse("default=on,on-error=fail").demands_credentials());
        assert!(!parse("default=on partition:a=off,on-error=fail").demands_credentials());
        assert_eq!(*parse("").policies().of(&"any".parse().unwrap()), parse("").policy("any"));
    }

    #[test]
    fn a_mistake_is_reported_with_text_and_position_and_hits_its_partition_only() {
        let site = parse("default=on partition:gpu=on,prefech partition:cpu=on,prefetch wrong");
        let shown: Vec<String> = site.problems.iter().map(Problem::to_string).collect();
        assert_eq!(shown.len(), 2);
        assert!(shown[0].contains(r#"argument 2 of spank_credd.so, "partition:gpu=on,prefech""#), "{}", shown[0]);
        assert!(shown[0].contains(r#"item 2 "prefech""#), "{}", shown[0]);
        assert!(shown[1].contains("argument 4"), "{}", shown[1]);
        assert!(matches!(site.policy("gpu"), Policy::Broken(why) if why.contains("prefech")));
        assert!(on(site.policy("cpu")).prefetch);
        assert_eq!(on(site.policy("other")), JobOptions::default());
    }

    #[test]
    fn each_of_these_is_a_mistake() {
        for bad in [
            "default=",
            "default=yes",
            "default=on default=off",
            "partition:=on",
            "partition:a=on partition:a=off",
            "partition:a",
            "partition:a=on,",
            "partition:a=prefetch",
            "partition:a=on,prefetch=yes",
            "partition:a=on,prefetch,prefetch",
            "partition:a=on,on-error=drain",
            "partition:a=on,metadata=on",
            "partition:a=on,metadata",
            "partition:a=on,metadata=off,metadata=off",
            "partition:a=on,role=",
            "partition:a=on,region=EU",
            "partition:a=off,wait=5",
            "partition:a=on,wait=0s",
            "partition:a=on,wait=61s",
            "partition:a=on,wait=99999999999s",
            "partition:a=on,wait=+5s",
            "partition:a=on,max-unheard=29s",
            "partition:a=on,max-unheard=13h",
            "partition:a=on,max-unheard=60",
            "partition:a=on,max-unheard=500ms",
            "partition:a=on,max-unheard=s",
            "partition:a=on,max-unheard=99999999h",
            "partition:a=on,max-unheard",
            "run-dir=run",
            "run-dir=/run/../etc",
            "run-dir=/run/a run-dir=/run/b",
            "on",
        ] {
            assert_eq!(parse(bad).problems.len(), 1, "{bad}");
        }
    }

    #[test]
    fn the_shipped_example_is_right() {
        let example = include_str!("../../plugstack.conf.example");
        let lines: Vec<_> = example
            .lines()
            .filter_map(|line| line.trim_start_matches("# ").split_once(" spank_credd.so "))
            .filter(|(word, _)| matches!(*word, "optional" | "required"))
            .collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        for (word, arguments) in lines {
            // Where it may be missing, `required` would drain the node; elsewhere `optional` would not stop the job.
            assert_eq!(word == "required", arguments.contains("on-error=fail"), "{arguments}");
            let line = arguments;
            assert_eq!(parse(arguments).problems, [], "{line}");
        }
        for word in [
            "prefetch",
            "role=",
            "region=",
            "metadata=off",
            "token-file",
            "on-error=continue",
            "on-error=fail",
            "wait=",
            "max-unheard=",
            "run-dir=",
        ] {
            assert!(example.contains(&format!("#   {word}")) || example.contains(&format!("# {word}")), "{word}");
        }
    }

    proptest! {
        #[test]
        fn no_arguments_panic_or_grow(arguments in proptest::collection::vec(".{0,200}", 0..8)) {
            let site = Plugstack::parse(&arguments);
            for problem in &site.problems {
                prop_assert!(problem.to_string().len() < 4000);
            }
            let _ = site.policy("a");
        }

        #[test]
        fn every_partition_that_slurm_takes_can_be_named(name in "[ -~é漢]{1,40}", escape_all in any::<bool>()) {
            prop_assume!(!name.ends_with(' '));
            let must = |byte: u8| escape_all || matches!(byte, b'%' | b'=' | b' ');
            let written: Vec<u8> = name
                .bytes()
                .flat_map(|byte| if must(byte) { format!("%{byte:02x}").into_bytes() } else { vec![byte] })
                .collect();
            let argument = format!("partition:{}=on,wait=7s", String::from_utf8(written).unwrap());
            let site = Plugstack::parse(&["default=off".to_owned(), argument]);
            prop_assert_eq!(&site.problems, &vec![]);
            prop_assert_eq!(on(site.policy(&name)).wait_ms, 7000);
        }

        #[test]
        fn a_bad_partition_never_changes_another(list in "[a-z0-9,=:. -]{0,40}") {
            let line = vec!["default=off".to_owned(), format!("partition:bad={list}"), "partition:good=on,role=x".into()];
            let site = Plugstack::parse(&line);
            let good = on(site.policy("good"));
            prop_assert_eq!(good.role.as_str(), "x");
            prop_assert_eq!(site.policy("unnamed"), Policy::Off);
        }

        #[test]
        fn times_within_bounds_are_read_exactly(ms in 1u32..=60_000) {
            prop_assert_eq!(milliseconds(&format!("{ms}ms")).unwrap(), ms);
        }
    }
}
