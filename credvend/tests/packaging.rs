//! What is shipped fits together: socket units and credd, examples and the guide, `make install` and the files.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "../../tests/shipped/completions.rs"]
mod completions;
#[path = "../../tests/shipped/man_page.rs"]
mod man_page;
#[path = "shipped/man_pages.rs"]
mod man_pages;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every file of packaging/, as a path from the project's root.
fn packaged() -> Vec<String> {
    let (mut folders, mut files) = (vec![root().join("packaging")], vec![]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}

/// The values of a unit's setting.
fn settings<'t>(unit: &'t str, name: &str) -> Vec<&'t str> {
    unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect()
}

#[test]
fn the_sockets_are_there_before_slurmd_and_are_those_that_credd_takes() {
    // credd matches the names that the service manager gives its descriptors.
    let takes = read("credd/src/keeper/listeners.rs");
    let arms = takes.lines().filter_map(|line| line.trim().split_once("\" => put(&mut passed."));
    let taken: BTreeSet<&str> = arms.map(|(name, _)| name.trim_start_matches('"')).collect();
    let tmpfiles = read("packaging/tmpfiles.d/credd.conf");
    let service = read("packaging/systemd/credd.service");
    let mut passed = BTreeSet::new();
    let sockets = packaged().into_iter().filter(|file| file.ends_with(".socket"));
    let units: Vec<(String, String)> = sockets.map(|file| (read(&file), file)).collect();
    assert_eq!(units.len(), 3);
    for (unit, file) in &units {
        let one = |name: &str| match settings(unit, name)[..] {
            [value] => value,
            ref values => panic!("{file}: {name} is there {} times", values.len()),
        };
        assert_eq!(one("Before"), "slurmd.service", "{file}: jobs must not come before it");
        assert_eq!(one("Service"), "credd.service", "{file}");
        assert_eq!(one("WantedBy"), "sockets.target", "{file}");
        let name = one("FileDescriptorName");
        assert_eq!(file, &format!("packaging/systemd/credd-{name}.socket"));
        assert!(passed.insert(name), "{file}: {name} twice");
        let unit_name = file.rsplit('/').next().unwrap();
        assert!(
            settings(&service, "Sockets").iter().any(|line| line.split(' ').any(|socket| socket == unit_name)),
            "credd.service does not take {unit_name}"
        );
        match name {
            "http" => assert_eq!(one("ListenStream"), default_listen(), "{file}"),
            _ => {
                assert_eq!(one("ListenStream"), format!("/run/credd/{name}.sock"), "{file}");
                assert!(tmpfiles.contains("d /run/credd "), "nobody makes the socket's folder");
            }
        }
    }
    assert_eq!(passed, taken, "what the units pass and what credd takes");
}

/// Another process on the port must not make each request at the other sockets a start that fails at once: PID 1 would do
/// nothing else.
#[test]
fn credd_starts_without_its_port_and_stops_with_its_socket() {
    let unit = read("packaging/systemd/credd.service");
    let words = |name: &str| settings(&unit, name).join(" ");
    for strong in ["Requires", "Requisite", "BindsTo"] {
        assert!(!words(strong).contains("credd-http.socket"), "{strong}= makes a start fail while the port is taken");
    }
    assert!(words("Wants").contains("credd-http.socket") && words("PartOf") == "credd-http.socket");
    assert_eq!(words("Requires"), "credd-root.socket credd-user.socket");
    for other in ["root", "user"] {
        let socket = read(&format!("packaging/systemd/credd-{other}.socket"));
        assert_eq!(settings(&socket, "PartOf"), ["credd-http.socket"], "it would start credd again");
    }
}

/// A reload's failure is its exit code: the command waits for the outcome, a signal does not.
#[test]
fn a_reload_waits_for_its_outcome() {
    for program in ["credd", "credvend"] {
        let unit = read(&format!("packaging/systemd/{program}.service"));
        assert_eq!(settings(&unit, "ExecReload"), [format!("/usr/sbin/{program} reload")]);
    }
}

/// The whole of it is judged by systemd where it is there; what must not be lost, here.
#[test]
fn the_services_are_confined() {
    let [credd, credvend] = ["credd", "credvend"].map(|program| read(&format!("packaging/systemd/{program}.service")));
    for unit in [&credd, &credvend] {
        assert!(settings(unit, "SystemCallFilter").contains(&"~@privileged @resources"));
        assert_eq!(settings(unit, "ProcSubset"), ["pid"]);
        assert!(settings(unit, "MemoryMax").len() == 1 && settings(unit, "TasksMax").len() == 1);
    }
    // root of a user namespace is nobody to munged and to the records; and the admin socket's group is hidden in one, which
    // would close the socket to the members of `admin-group` where a site upgrades.
    assert!(settings(&credd, "PrivateUsers").is_empty() && settings(&credvend, "PrivateUsers").is_empty());
    assert!(settings(&credd, "IPAddressDeny")[0].contains("169.254.169.254"), "the node's own role");
    // Without these the server process could not confine itself.
    for call in ["seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"] {
        assert!(settings(&credd, "SystemCallFilter").iter().any(|line| line.split(' ').any(|word| word == call)));
    }
}

/// Units that systemd itself finds nothing wrong with; the programs stand in a directory of the test's.
#[test]
#[cfg_attr(not(has_systemd_analyze), ignore = "systemd-analyze is not here (Debian: systemd)")]
fn systemd_finds_nothing_wrong_with_the_units() {
    let dir = tempfile::tempdir().unwrap();
    for file in packaged().iter().filter(|file| file.contains("/systemd/")) {
        let text = read(file).replace("/usr/sbin/credvend", "/bin/true").replace("/usr/sbin/credd", "/bin/true");
        std::fs::write(dir.path().join(file.rsplit('/').next().unwrap()), text).unwrap();
    }
    let units = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    // Manual pages and the units of munge and slurmd are not this project's.
    let run =
        Command::new("systemd-analyze").args(["verify", "--man=no", "--recursive-errors=no"]).args(units).output();
    let run = run.unwrap();
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("cred")).collect();
    assert!(ours.is_empty(), "{}", ours.join("\n"));
}

/// `http.listen` of credd, as its example shows the default.
fn default_listen() -> String {
    let example = read("packaging/credd.toml");
    let (_, http) = example.split_once("\n[http]\n").unwrap();
    let shown = http.lines().find_map(|line| line.strip_prefix("#listen = \"")?.strip_suffix('"')).unwrap();
    assert_eq!(shown, format!("127.0.0.1:{}", credd_protocol::endpoint::DEFAULT_PORT));
    shown.to_owned()
}

/// The page on speed and the bench have the same topics.
#[test]
fn every_topic_of_the_bench_is_in_its_page() {
    let (bench, page) = (read("benches/bench/main.rs"), read("docs/performance.md"));
    let (usage, page_has) =
        (bench.split_once("\ntopics: ").unwrap().1, |name: &str| page.contains(&format!("`{name}`")));
    let topics: Vec<&str> = bench
        .lines()
        .filter(|line| line.trim_end().ends_with("::measure),"))
        .map(|line| line.split('"').nth(1).unwrap())
        .collect();
    assert!(topics.len() >= 10, "{topics:?}");
    for topic in topics {
        assert!(page_has(topic), "docs/performance.md does not name the topic {topic}");
        assert!(usage.lines().next().unwrap().contains(topic), "{topic}");
    }
}

#[test]
fn everything_packaged_is_installed() {
    let run = Command::new("make")
        .args(["--no-print-directory", "-n", "install", "DESTDIR=/nowhere"])
        .current_dir(root())
        // Those of a make that runs this test.
        .env_remove("MAKEFLAGS")
        .env_remove("MFLAGS")
        .env_remove("MAKELEVEL")
        .output()
        .expect("make (Debian: make)");
    let said = String::from_utf8(run.stdout).unwrap();
    assert!(run.status.success(), "{said}{}", String::from_utf8_lossy(&run.stderr));
    let words: Vec<&str> = said.split(|c: char| c.is_whitespace() || c == ';').collect();
    let files = packaged();
    assert!(files.len() > 10, "{files:?}");
    for file in &files {
        let named = |word: &&str| *word == file || word.strip_suffix('*').is_some_and(|begin| file.starts_with(begin));
        assert!(words.iter().any(named), "make install does not install {file}");
    }
    // What the examples and man pages point to is there to be read.
    assert!(words.contains(&"docs/*.md") || words.contains(&"docs/replicas.md"), "make install leaves the guides out");
    let readme = read("README.md");
    for entry in std::fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.ends_with(".md") || readme.contains(&format!("docs/{name}")), "the README does not list {name}");
    }
    // Nor does it name what is not there.
    for word in words.iter().filter(|word| word.starts_with("packaging/")) {
        let there = |file: &String| word.strip_suffix('*').map_or(file == word, |begin| file.starts_with(begin));
        assert!(files.iter().any(there), "make install names {word}, which is not there");
    }
}

#[test]
fn the_guide_has_every_option_of_the_examples() {
    let guide = include_str!("../../docs/admin-guide.md");
    // `key`, `table.key` or `key = value`.
    let has = |key: &str| {
        ["`", "."]
            .iter()
            .any(|before| ["`", " = "].iter().any(|after| guide.contains(&format!("{before}{key}{after}"))))
    };
    for file in packaged().into_iter().filter(|file| file.ends_with(".toml")) {
        let text = read(&file);
        let keys: Vec<&str> = text.lines().filter_map(key).collect();
        assert!(keys.len() >= 5, "{file}: {keys:?}");
        for key in keys {
            assert!(has(key), "docs/admin-guide.md does not have {key} of {file}");
        }
    }
}

#[test]
fn the_services_come_back_and_have_a_descriptor_for_each_connection() {
    for file in ["packaging/systemd/credvend.service", "packaging/systemd/credd.service"] {
        assert_eq!(settings(&read(file), "StartLimitIntervalSec"), ["0"], "{file} is given up after a few failures");
    }
    let unit = read("packaging/systemd/credvend.service");
    let [descriptors] = settings(&unit, "LimitNOFILE")[..] else { panic!("LimitNOFILE") };
    let example = read("packaging/credvend.toml");
    let connections = example.lines().find_map(|line| line.strip_prefix("# max-connections = ")).unwrap();
    let number = |text: &str| text.parse::<u32>().unwrap();
    assert!(number(descriptors) > number(connections), "{descriptors} descriptors for {connections} connections");
    assert!(number(connections) >= 2 * 10_000, "two for each of 10,000 nodes");
    let read_of =
        credvend::config::Config::parse("[aws]\nregion = \"us-east-1\"\n[[cluster]]\nname = \"lab\"\n").unwrap();
    assert_eq!(read_of.limits.max_connections, number(connections), "the example shows the default");
}

#[test]
fn completions_are_in_step_and_bash_takes_them() {
    completions::are_in_step("credvend", &credvend::cli::command());
    assert_eq!(completions::bash_offers("credvend", &["rel"]), ["reload"]);
    assert_eq!(completions::bash_offers("credvend", &["session", "sh"]), ["show"]);
    assert_eq!(completions::bash_offers("credvend", &["store", "copy", "--from", "dy"]), ["dynamodb"]);
}

/// What scientists see, as the guides quote it and as the code says it.
#[test]
fn the_guides_quote_what_is_said() {
    let guides = [read("docs/admin-guide.md"), read("docs/user-guide.md")].concat();
    for (quoted, words, file) in [
        ("credvend does not get role … from AWS", "credvend does not get {}", "credvend/src/refusal.rs"),
        (
            "the cluster's plugstack.conf has a mistake in this partition's options",
            "the cluster's plugstack.conf has a mistake in this partition's options",
            "spank-plugin/src/plugstack.rs",
        ),
        (
            "the server's certificate is sha256:…, the pin is",
            "the server's certificate is {shown}, the pin is",
            "pinned-tls/src/lib.rs",
        ),
        ("the caller is not authenticated", "the caller is not authenticated", "credvend/src/refusal.rs"),
    ] {
        assert!(guides.contains(quoted), "no guide quotes {quoted:?}");
        assert!(read(file).contains(words), "{file} does not say {words:?} any more");
    }
    let looked = read("credvend/src/attest/command.rs");
    for dir in ["/usr/bin", "/usr/local/bin", "/opt/slurm/bin", "/usr/local/slurm/bin"] {
        assert!(looked.contains(&format!("\"{dir}\"")) && guides.contains(&format!("`{dir}`")), "{dir}");
    }
}

/// `name` of `name = value`, also where it is commented out.
fn key(line: &str) -> Option<&str> {
    let (name, _) = line.trim_start_matches(['#', ' ']).split_once(" = ")?;
    name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-').then_some(name)
}
