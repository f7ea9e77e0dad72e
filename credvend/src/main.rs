//! `credvend`, the central vending service.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    credvend::cli::main()
}
