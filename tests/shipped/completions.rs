//! The shells' completions in `packaging/completions`: generated from the command line itself, and installed as they are.
//! `make completions` writes them; the tests here fail while they are out of date.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap_complete::Shell;

/// The file of a program's completions, from the project's root.
fn file(program: &str, shell: Shell) -> PathBuf {
    let name = match shell {
        Shell::Zsh => format!("_{program}"),
        _ => format!("{program}.{shell}"),
    };
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/completions").join(name)
}

/// The command line without what `--help` does not show: the generators would offer it.
fn shown(program: &'static str, command: &clap::Command) -> clap::Command {
    let visible = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set());
    clap::Command::new(program)
        .disable_help_subcommand(command.is_disable_help_subcommand_set())
        .version(env!("CARGO_PKG_VERSION"))
        .args(command.get_arguments())
        .subcommands(visible)
}

/// Compares the files with what the command line is; writes them instead if `CREDD_WRITE_COMPLETIONS` is set.
pub fn are_in_step(program: &'static str, command: &clap::Command) {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let (mut text, file) = (Vec::new(), file(program, shell));
        clap_complete::generate(shell, &mut shown(program, command), program, &mut text);
        let text = String::from_utf8(text).unwrap();
        // No line of ours ends in a blank.
        let text: String = text.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
        if std::env::var_os("CREDD_WRITE_COMPLETIONS").is_some() {
            std::fs::write(&file, &text).unwrap();
        }
        let written = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(written == text, "{} is out of date: run `make completions`", file.display());
    }
}

/// What bash offers for the last of some words.
pub fn bash_offers(program: &str, words: &[&str]) -> Vec<String> {
    let script = "source \"$1\"; shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
                  \"_$1\" \"$1\" \"${@: -1}\" \"${@: -2:1}\"; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", script, "bash"]).arg(file(program, Shell::Bash)).arg(program).args(words);
    let done = bash.output().unwrap();
    assert!(done.status.success() && done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().lines().map(str::to_owned).collect()
}
