//! `make install`, with programs that only look built: what it puts where, and what copying its tree does to a host.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn succeeds(command: &mut Command) -> Output {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = [done.stdout.as_slice(), &done.stderr].concat();
    assert!(done.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&said));
    done
}

/// A target directory with files that stand for the programs.
fn built(at: &Path) -> PathBuf {
    let target = at.join("target");
    for program in ["plugin/libspank_credd.so", "node/credd", "release/credvend"] {
        let path = target.join(program);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, program).unwrap();
    }
    target
}

/// `make install` on a host that has no cargo.
fn make_install(target: &Path, more: &[String]) -> Command {
    make("install", target, more)
}

/// The same for another goal.
fn make(goal: &str, target: &Path, more: &[String]) -> Command {
    let mut make = Command::new("make");
    make.args(["--no-print-directory", "-C"]).arg(root()).args([goal, "CARGO=/nowhere/cargo"]).args(more);
    // Those of a make that runs this test.
    for name in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL"] {
        make.env_remove(name);
    }
    make.env("CARGO_TARGET_DIR", target);
    make
}

/// A directory like a host's root, whose /lib is a link, with a program that needs the C library.
fn merged_usr(at: &Path) -> PathBuf {
    let host = at.join("host");
    for dir in ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc/credvend", "etc/credd"] {
        fs::create_dir_all(host.join(dir)).unwrap();
    }
    for link in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{link}"), host.join(link)).unwrap();
    }
    let needs = succeeds(Command::new("ldd").arg("/bin/true"));
    let needs = String::from_utf8(needs.stdout).unwrap();
    let libraries = needs.split_whitespace().filter(|word| word.starts_with('/'));
    let files: Vec<&str> = libraries.chain(["/bin/true"]).collect();
    assert!(files.len() >= 2, "/bin/true needs no library: {needs}");
    for file in files {
        let to = host.join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
    for dir in ["", "usr", "usr/sbin", "etc"] {
        fs::set_permissions(host.join(dir), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (file, text) in ADMINS {
        fs::write(host.join(file), text).unwrap();
    }
    host
}

/// What an administrator has written on a host.
const ADMINS: [(&str, &str); 3] = [
    ("etc/credvend/credvend.toml", "# the site's own\n"),
    ("etc/credvend/projects.toml", "# the site's own projects\n"),
    ("etc/credd/credd.toml", "# the site's own pin\n"),
];

/// Ways to bring a tree onto a host; the first is the guide's.
fn copies(tree: &Path, host: &Path) -> Vec<Command> {
    let (tree, host) = (tree.display(), host.display());
    let guides = include_str!("../../docs/admin-guide.md");
    let guided = guides.lines().find(|line| line.starts_with("tar -C")).expect("the guide has a command");
    let guided = guided.split('#').next().unwrap().trim();
    let guided = guided.replace("/srv/node-root", &tree.to_string()).replace("ssh NODE ", "");
    let guided = guided.replace("tar -C / ", &format!("tar -C {host} "));
    assert_eq!(guided.matches(&host.to_string()).count(), 1, "{guided}");
    let scripts = [
        guided,
        format!("rsync -a {tree}/ {host}/"),
        format!("tar -C {tree} -cf - . | tar -C {host} -xf -"),
        format!("cp -a {tree}/. {host}/"),
    ];
    let shell = |script: String| {
        let mut shell = Command::new("bash");
        shell.args(["-o", "pipefail", "-c", &script]);
        shell
    };
    scripts.into_iter().map(shell).collect()
}

#[test]
#[cfg_attr(not(has_cluster), ignore = "needs root: chroot(2)")]
fn a_tree_that_is_copied_onto_a_host_leaves_it_whole() {
    for nth in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        succeeds(&mut make_install(&built(dir.path()), &[format!("DESTDIR={}", tree.display())]));
        let host = merged_usr(dir.path());
        let works = || succeeds(Command::new("chroot").arg(&host).arg("/bin/true"));
        works();
        // Twice: the second time is the upgrade.
        for _ in 0..2 {
            let mut copy = copies(&tree, &host).remove(nth);
            succeeds(&mut copy);
            works();
            for link in ["bin", "sbin", "lib", "lib64"] {
                assert!(host.join(link).is_symlink(), "{copy:?} made a directory of /{link}");
            }
            for (file, text) in ADMINS {
                assert_eq!(fs::read_to_string(host.join(file)).unwrap(), text, "{copy:?} replaced /{file}");
            }
            assert_eq!(fs::read_to_string(host.join("usr/sbin/credd")).unwrap(), "node/credd");
            for dir in ["", "usr", "usr/sbin", "etc"] {
                let mode = fs::metadata(host.join(dir)).unwrap().permissions().mode() & 0o7777;
                assert_eq!(mode, 0o755, "{copy:?} changed the mode of /{dir}");
            }
        }
    }
}

#[test]
fn a_tree_has_configurations_as_examples_only_and_a_host_keeps_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let target = built(dir.path());
    let tree = dir.path().join("tree");
    succeeds(&mut make_install(&target, &[format!("DESTDIR={}", tree.display())]));
    let top: Vec<_> = fs::read_dir(&tree).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(top, ["usr"]);
    for example in ["credd.toml", "credvend.toml", "projects.toml", "credvend.logrotate", "plugstack.conf.example"] {
        assert!(tree.join("usr/share/doc/credd/examples").join(example).exists(), "{example}");
    }
    assert!(tree.join("usr/lib/systemd/system/credd.service").exists());
    for page in ["man5/credd.toml.5", "man5/credvend.toml.5", "man5/projects.toml.5", "man8/credd.8", "man8/credvend.8"]
    {
        assert!(tree.join("usr/share/man").join(page).exists(), "{page}");
    }
    for program in ["credd", "credvend"] {
        let (bash, zsh) =
            (format!("bash-completion/completions/{program}"), format!("zsh/vendor-completions/_{program}"));
        for completions in [bash, zsh, format!("fish/vendor_completions.d/{program}.fish")] {
            let text = fs::read_to_string(tree.join("usr/share").join(&completions)).unwrap_or_default();
            assert!(text.contains(program), "{completions}");
        }
    }

    // Onto the host itself: here a host whose directories are elsewhere.
    let host = dir.path().join("host");
    let places = |name: &str, at: &str| format!("{name}={}/{at}", host.display());
    let here = [places("PREFIX", "usr"), places("SYSCONFDIR", "etc"), places("SLURMLIBDIR", "slurm")];
    fs::create_dir_all(host.join("etc/credd")).unwrap();
    fs::write(host.join("etc/credd/credd.toml"), "# the site's own\n").unwrap();
    succeeds(&mut make_install(&target, &here));
    let read = |file: &str| fs::read_to_string(host.join(file)).unwrap();
    assert_eq!(read("etc/credd/credd.toml"), "# the site's own\n");
    let shipped = |file: &str| fs::read_to_string(root().join("packaging").join(file)).unwrap();
    assert_eq!(read("etc/credvend/projects.toml"), shipped("projects.toml"));
    assert_eq!(read("etc/logrotate.d/credvend"), shipped("logrotate/credvend"));
}

/// Each part is installed alone on some host; licences and notices go with each.
#[test]
fn every_part_has_the_licences_of_what_is_in_it() {
    for part in ["install-plugin", "install-node", "install-service"] {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        succeeds(&mut make(part, &built(dir.path()), &[format!("DESTDIR={}", tree.display())]));
        for file in ["LICENSE", "THIRD-PARTY-NOTICES", "CHANGELOG.md", "SECURITY.md"] {
            assert!(tree.join("usr/share/doc/credd").join(file).exists(), "{part}: {file}");
        }
    }
}

#[test]
fn what_is_not_built_cannot_be_installed_without_cargo() {
    let dir = tempfile::tempdir().unwrap();
    let target = built(dir.path());
    fs::remove_file(target.join("node/credd")).unwrap();
    let done = make_install(&target, &[format!("DESTDIR={}/tree", dir.path().display())]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success() && said.contains("node/credd is not built, and there is no cargo here"), "{said}");
    assert!(!dir.path().join("tree/usr/sbin").exists(), "a part of the programs is worse than none");
}
