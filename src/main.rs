//! The one binary: re-executed helpers first, before any thread exists; then the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    sampan::cli::main()
}
