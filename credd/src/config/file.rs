//! `credd.toml` itself: its options, their defaults and their bounds.

use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use credd_protocol::endpoint::DEFAULT_PORT;
use credd_protocol::record::RUN_DIR;
use credd_protocol::{ClusterName, Secret};
use toml::de::DeTable;

use super::document::{Found, Problem, Section, line_of, shown};
use crate::server::tls;

use super::{Cache, CacheMode, Config, Credvend, Http, Identity, Log, LogFormat, Munge, ProofOfJob, Trust};

const PROOF_OF_JOB: [(&str, ProofOfJob); 3] =
    [("uid", ProofOfJob::Uid), ("cgroup", ProofOfJob::Cgroup), ("off", ProofOfJob::Off)];

/// No configuration and no certificate is longer.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A configuration that is not in order.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read at all.
    #[error("cannot read the configuration {path}: {source}", path = path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is wrong; all problems are listed.
    #[error("{path} is not in order:{list}", path = path.display(), list = listed(problems))]
    Wrong {
        /// Which file.
        path: PathBuf,
        /// Every one.
        problems: Vec<Problem>,
    },
}

fn listed(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

/// Reads and checks the configuration at `path`, and the files it names.
///
/// # Errors
/// [`LoadError`]: every problem at once.
pub fn load(path: &Path) -> Result<Config, LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: path.to_owned(), source };
    let source = read_text(path).map_err(unreadable)?;
    parse(&source).map_err(|problems| LoadError::Wrong { path: path.to_owned(), problems })
}

/// The run directory that a configuration names, which may be out of order otherwise; else the usual one.
pub fn run_dir_of(path: &Path) -> PathBuf {
    let source = read_text(path).unwrap_or_default();
    let (document, _) = DeTable::parse_recoverable(&source);
    let mut root = Section::root(&source, document.get_ref());
    absolute_path(&mut root, "run-dir").map_or_else(|| RUN_DIR.into(), |found| found.value)
}

/// Checks the text of a configuration, and the files it names.
///
/// # Errors
/// Everything that is wrong with it, in the order of its lines.
pub fn parse(source: &str) -> Result<Config, Vec<Problem>> {
    let (document, errors) = DeTable::parse_recoverable(source);
    if !errors.is_empty() {
        let problem = |e: toml::de::Error| Problem {
            line: e.span().map_or(0, |span| line_of(source, span.start)),
            text: e.message().to_owned(),
        };
        return Err(errors.into_iter().take(50).map(problem).collect());
    }
    let mut root = Section::root(source, document.get_ref());
    let mut problems = Vec::new();

    let credvend = credvend(root.section("credvend"), &mut problems);
    let munge = munge(root.section("munge"), &mut problems);
    let http = http(root.section("http"), &mut problems);
    let cache = cache(root.section("cache"), &mut problems);
    let log = log(root.section("log"), &mut problems);
    let metrics = metrics(root.section("metrics"), &mut problems);
    // As Slurm spells it, in the records too.
    let cluster = root.parsed::<ClusterName>("cluster").map(|found| found.value.as_slurm_spells_it());
    let node = root.parsed("node").map(|found| found.value);
    let run_dir = absolute_path(&mut root, "run-dir").map_or_else(|| RUN_DIR.into(), |found| found.value);
    let user = root.text("user").map_or_else(|| "credd".to_owned(), |found| found.value);
    problems.extend(root.finish());
    problems.sort_by_key(|problem| problem.line);

    match credvend {
        Some(credvend) if problems.is_empty() => {
            Ok(Config { cluster, node, run_dir, user, credvend, munge, http, cache, log, metrics })
        }
        _ => Err(problems),
    }
}

/// `None` always comes with a problem.
fn credvend(mut section: Section<'_>, problems: &mut Vec<Problem>) -> Option<Credvend> {
    let url = section.text("url");
    let pin = section.text("pin");
    let ca_file = absolute_path(&mut section, "ca-file");
    let certificate = absolute_path(&mut section, "certificate");
    let key = absolute_path(&mut section, "key");
    let second = Duration::from_secs(1);
    let connect_timeout = section.duration("connect-timeout", Duration::from_millis(100)..=60 * second);
    let request_timeout = section.duration("request-timeout", Duration::from_millis(100)..=300 * second);

    let url = match url {
        None => {
            section.problem(0, "`credvend.url` is missing: where does credvend listen?");
            None
        }
        Some(Found { value, line }) => match checked_url(&value) {
            Ok(plain) => Some((value.trim_end_matches('/').to_owned(), plain)),
            Err(text) => {
                section.problem(line, format!("`credvend.url` is {}: {text}", shown(&value)));
                None
            }
        },
    };
    let trust = match (pin, ca_file) {
        (Some(pin), Some(_)) => {
            section.problem(pin.line, "`credvend.pin` and `credvend.ca-file` are both given: keep one");
            None
        }
        (Some(Found { value, line }), None) => match checked_pin(&value) {
            Some(hex) if hex.bytes().all(|digit| digit == b'0') => {
                section.problem(line, "`credvend.pin` is the example's: put the line here that `credvend pin` prints");
                None
            }
            Some(hex) => Some(Trust::Pin(hex)),
            None => {
                section.problem(line, "`credvend.pin` must be sha256: and 64 hex digits, as credvend prints it");
                None
            }
        },
        (None, Some(file)) => read_pem(&mut section, "ca-file", &file, "CERTIFICATE").map(Trust::CaPem),
        (None, None) if url.as_ref().is_some_and(|(_, plain)| *plain) => Some(Trust::Loopback),
        (None, None) => Some(Trust::System),
    };
    let identity = match (certificate, key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => {
            let certificate_pem = read_pem(&mut section, "certificate", &certificate, "CERTIFICATE");
            let key_pem = read_key(&mut section, &key);
            certificate_pem.zip(key_pem).map(|(certificate_pem, key_pem)| Identity { certificate_pem, key_pem })
        }
        (Some(Found { line, .. }), None) | (None, Some(Found { line, .. })) => {
            section.problem(line, "`credvend.certificate` and `credvend.key` come together: one is missing");
            None
        }
    };
    let plain = url.as_ref().is_some_and(|(_, plain)| *plain);
    if let Some(trust) = trust.as_ref().filter(|_| !plain)
        && let Err(error) = tls::client_config(trust, identity.as_ref(), Default::default())
    {
        section.problem(0, format!("`credvend`: its certificates cannot be used: {error}"));
    }
    problems.extend(section.finish());
    Some(Credvend {
        url: url?.0,
        trust: trust?,
        identity,
        connect_timeout: connect_timeout.unwrap_or(2 * second),
        request_timeout: request_timeout.unwrap_or(15 * second),
    })
}

fn munge(mut section: Section<'_>, problems: &mut Vec<Problem>) -> Munge {
    let socket = absolute_path(&mut section, "socket").map(|found| found.value);
    problems.extend(section.finish());
    Munge { socket }
}

fn http(mut section: Section<'_>, problems: &mut Vec<Problem>) -> Http {
    let default = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DEFAULT_PORT);
    let listen = match section.parsed::<SocketAddr>("listen") {
        None => default,
        Some(Found { value, .. }) if value.ip() == default.ip() && value.port() != 0 => value,
        Some(Found { line, .. }) => {
            // Some SDKs refuse [::1] and 127.0.0.2; any other address would offer the jobs' credentials to other hosts.
            section.problem(line, "`http.listen` must be 127.0.0.1 and a port: SDKs and jobs use no other address");
            default
        }
    };
    let http = Http {
        listen,
        max_connections: section.count("max-connections", 16..=1_000_000, 4096),
        max_connections_per_user: section.count("max-connections-per-user", 1..=1_000_000, 1024),
        max_waiting_per_user: section.count("max-waiting-per-user", 1..=1_000_000, 1024),
        foreign_token: section.word("foreign-token", &PROOF_OF_JOB, ProofOfJob::Uid),
        without_token: section.word("without-token", &PROOF_OF_JOB, ProofOfJob::Uid),
    };
    problems.extend(section.finish());
    http
}

fn cache(mut section: Section<'_>, problems: &mut Vec<Problem>) -> Cache {
    let cache = Cache {
        mode: section.word("mode", &[("store", CacheMode::Store), ("off", CacheMode::Off)], CacheMode::Store),
        max_entries: section.count("max-entries", 1..=100_000_000, 1_000_000),
        max_unheard: section.duration("max-unheard", Duration::from_secs(30)..=Duration::from_secs(12 * 3600)),
    };
    problems.extend(section.finish());
    cache
}

fn log(mut section: Section<'_>, problems: &mut Vec<Problem>) -> Log {
    let format = section.word("format", &[("text", LogFormat::Text), ("json", LogFormat::Json)], LogFormat::Text);
    let level = match section.text("level") {
        None => "info".to_owned(),
        Some(Found { value, line }) => {
            if let Err(error) = value.parse::<tracing_subscriber::filter::Targets>() {
                section.problem(line, format!("`log.level`: {error}"));
            }
            value
        }
    };
    problems.extend(section.finish());
    Log { format, level }
}

fn metrics(mut section: Section<'_>, problems: &mut Vec<Problem>) -> Option<SocketAddr> {
    let listen = section.text("listen").and_then(|Found { value, line }| match value.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Some(address),
        Ok(_) => {
            section.problem(
                line,
                "`metrics.listen` must be on loopback; for others, `credd metrics` writes a file for \
                 node_exporter",
            );
            None
        }
        Err(_) => {
            section.problem(line, "`metrics.listen` must be an address and a port, such as 127.0.0.1:9946");
            None
        }
    });
    problems.extend(section.finish());
    listen
}

/// Whether the URL is plain HTTP, which only loopback may be.
fn checked_url(url: &str) -> Result<bool, &'static str> {
    let parsed: reqwest::Url = url.parse().map_err(|_| "it is not a URL")?;
    let more = parsed.query().is_some() || parsed.fragment().is_some() || !parsed.username().is_empty();
    if more || !matches!(parsed.path(), "" | "/") {
        return Err("it must be https://HOST[:PORT] and nothing more");
    }
    // By number: a name is whatever the resolver says.
    let host = parsed.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match parsed.scheme() {
        "https" => Ok(false),
        "http" if loopback => Ok(true),
        "http" => Err("plain http is for 127.0.0.1 and [::1] only: write https"),
        _ => Err("its scheme must be https"),
    }
}

fn checked_pin(text: &str) -> Option<String> {
    let hex: String = text.strip_prefix("sha256:")?.chars().filter(|c| *c != ':').collect();
    (hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())).then(|| hex.to_ascii_lowercase())
}

fn absolute_path(section: &mut Section<'_>, key: &'static str) -> Option<Found<PathBuf>> {
    let Found { value, line } = section.text(key)?;
    let path = PathBuf::from(&value);
    if !path.is_absolute() || value.contains('\0') {
        section.problem(line, format!("`{key}` is {}: it must be an absolute path", shown(&value)));
        return None;
    }
    Some(Found { value: path, line })
}

fn read_pem(section: &mut Section<'_>, key: &'static str, file: &Found<PathBuf>, label: &str) -> Option<String> {
    match read_text(&file.value) {
        Ok(pem) if pem.contains(&format!("-----BEGIN {label}-----")) => Some(pem),
        Ok(_) => {
            section.problem(file.line, format!("`{key}`: {:?} holds no PEM {label}", file.value));
            None
        }
        Err(error) => {
            section.problem(file.line, format!("`{key}`: cannot read {:?}: {error}", file.value));
            None
        }
    }
}

/// A key that others than its owner and group can read is no secret, and its owner must not be a user.
fn read_key(section: &mut Section<'_>, file: &Found<PathBuf>) -> Option<Secret> {
    let shown = format!("{:?}", file.value);
    let meta = match fs::metadata(&file.value) {
        Ok(meta) => meta,
        Err(error) => {
            section.problem(file.line, format!("`key`: cannot read {shown}: {error}"));
            return None;
        }
    };
    let me = nix::unistd::geteuid().as_raw();
    if meta.mode() & 0o027 != 0 || (meta.uid() != 0 && meta.uid() != me) {
        let text = format!("`key`: {shown} can be read or changed by others: chown root, chmod 600");
        section.problem(file.line, text);
        return None;
    }
    match read_text(&file.value) {
        Ok(pem) if pem.contains("PRIVATE KEY-----") => Some(Secret::new(pem)),
        Ok(_) => {
            section.problem(file.line, format!("`key`: {shown} holds no PEM private key"));
            None
        }
        Err(error) => {
            section.problem(file.line, format!("`key`: cannot read {shown}: {error}"));
            None
        }
    }
}

fn read_text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let file = File::open(path)?;
    let mode = file.metadata()?.mode();
    // Who can change it decides which service the jobs' credentials come from.
    if mode & 0o002 != 0 {
        return Err(std::io::Error::other(format!("everybody can change it (mode {:o}): chmod o-w it", mode & 0o7777)));
    }
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(std::io::Error::other(format!("it is longer than {MAX_FILE_BYTES} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    fn lines(source: &str) -> Vec<String> {
        parse(source).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn two_lines_make_a_configuration() {
        let config = parse(&format!("[credvend]\nurl = \"https://head:8443/\"\npin = \"sha256:{}\"", "AB".repeat(32)));
        let config = config.unwrap();
        assert_eq!(config.credvend.url, "https://head:8443");
        assert_eq!(config.credvend.trust, Trust::Pin("ab".repeat(32)));
        assert_eq!((config.user.as_str(), config.run_dir.to_str()), ("credd", Some("/run/credd")));
        assert_eq!(config.http.listen.to_string(), "127.0.0.1:9999");
        assert_eq!(config.cache.max_entries, 1_000_000);
        // What the server process gets is what was read.
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::to_string(&serde_json::from_str::<Config>(&json).unwrap()).unwrap(), json);
    }

    #[test]
    fn the_shipped_example_is_in_order_and_states_the_defaults() {
        let shipped = include_str!("../../../packaging/credd.toml");
        assert_eq!(lines(shipped).len(), 1, "the pin is the site's");
        let shipped = &shipped.replace(&"0".repeat(64), &"ab".repeat(32));
        let plain = parse(shipped).unwrap();
        let is_option = |line: &str| line.starts_with(|c: char| c.is_ascii_lowercase()) && line.contains(" = ");
        // These have no default, or exclude one another.
        let optional = ["cluster", "node", "ca-file", "certificate", "key", "socket", "max-unheard"];
        let uncommented: Vec<&str> = shipped
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(option) if is_option(option) && !optional.iter().any(|name| option.starts_with(name)) => option,
                _ => line,
            })
            .collect();
        assert!(uncommented.iter().filter(|line| is_option(line)).count() >= 13);
        let full = parse(&uncommented.join("\n")).unwrap();
        assert_eq!(serde_json::to_string(&full).unwrap(), serde_json::to_string(&plain).unwrap());
        // Every option there is stands in the example.
        let unknown = parse(
            "x = 1\n[credvend]\nx = 1\n[munge]\nx = 1\n[http]\nx = 1\n[cache]\nx = 1\n[log]\nx = 1\n[metrics]\nx = 1",
        );
        for problem in unknown.unwrap_err() {
            for name in problem.text.split_once("known here: ").map_or("", |(_, known)| known).split(", ") {
                let here = |line: &str| line.trim_start_matches('#').starts_with(&format!("{name} = "));
                let section = format!("[{name}]");
                assert!(name.is_empty() || shipped.lines().any(|line| here(line) || line == section), "{name}");
            }
        }
    }

    /// The server process would die of them, again and again.
    #[test]
    fn what_the_server_could_not_use_is_refused_here() {
        let dir = tempfile::tempdir().unwrap();
        let authority = dir.path().join("ca.pem");
        fs::write(&authority, "-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n").unwrap();
        let authority = format!("ca-file = {authority:?}");
        for (url, more, why) in [
            ("https://lb.example.org/credvend", "", "nothing more"),
            ("http://localhost:8443", "", "127.0.0.1 and [::1] only"),
            ("http://127.0.0.1.example.org", "", "127.0.0.1 and [::1] only"),
            ("https://head:8443", authority.as_str(), "certificates cannot be used"),
        ] {
            let problems = lines(&format!("[credvend]\nurl = \"{url}\"\n{more}"));
            assert!(problems.len() == 1 && problems[0].contains(why), "{url} {more}: {problems:?}");
        }
        for url in ["http://127.0.0.1:8443", "http://[::1]:8443/"] {
            assert_eq!(parse(&format!("[credvend]\nurl = \"{url}\"")).unwrap().credvend.trust, Trust::Loopback);
        }
    }

    #[test]
    fn a_configuration_that_everybody_can_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credd.toml");
        fs::write(&path, "[credvend]\nurl = \"https://head:8443\"\n").unwrap();
        for (mode, good) in [(0o644, true), (0o664, true), (0o646, false), (0o666, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let loaded = load(&path);
            assert_eq!(loaded.is_ok(), good, "{mode:o}");
            assert!(good || loaded.unwrap_err().to_string().contains("chmod o-w"));
        }
    }

    #[test]
    fn every_problem_is_listed_with_its_line() {
        let found = lines(
            "cluster = \"a\\u0007b\"\nuser = 7\nrun-dir = \"run\"\ncolour = 1\n[credvend]\nurl = \"http://head:1\"\npin = \"x\"\n\
             connect-timeout = \"2 days\"\n[http]\nlisten = \"0.0.0.0:9999\"\nmax-connections = -1\n[cache]\nmode = \"on\"\n\
             max_entries = 3\n[log]\nlevel = \"a=b=c\"\n[extra]\n",
        );
        let expected = [
            (1, "cluster"),
            (2, "user"),
            (3, "run-dir"),
            (4, "colour"),
            (6, "plain http"),
            (7, "pin"),
            (8, "connect-timeout"),
            (10, "127.0.0.1"),
            (11, "max-connections"),
            (13, "\"store\" or \"off\""),
            (14, "max_entries"),
            (16, "level"),
            (17, "extra"),
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (problem, (line, part)) in found.iter().zip(expected) {
            assert!(problem.starts_with(&format!("line {line}:")) && problem.contains(part), "{problem} / {part}");
        }
        assert!(lines("")[0].contains("credvend.url"));
        assert!(lines("a = [\nb = 'x\n").iter().all(|problem| problem.starts_with("line ")));
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        let made = rcgen::generate_simple_self_signed(vec!["n1".to_owned()]).unwrap();
        fs::write(&certificate, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let source =
            format!("[credvend]\nurl = \"https://h\"\ncertificate = {certificate:?}\nkey = {key:?}\nca-file = {key:?}");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let found = lines(&source);
        assert!(found[0].starts_with("line 4:") && found[0].contains("chmod 600"), "{found:?}");
        assert!(found[1].starts_with("line 5:") && found[1].contains("holds no PEM CERTIFICATE"), "{found:?}");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let good = source.replace(&format!("ca-file = {key:?}"), "");
        assert!(parse(&good).unwrap().credvend.identity.is_some());
        assert!(lines(&good.replace("key =", "#"))[0].contains("one is missing"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "([a-z\\-]{1,8}( = |\\.|\\[|\\]|\"|\n|[0-9]|'){0,3}){0,12}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_characters_make_it_panic(text in ".{0,80}") {
            let _ = parse(&text);
        }
    }
}
