//! `credd`, the node daemon.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    credd::cli::main()
}
