//! The one binary: re-executed helpers first, before any thread exists; then the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    sampan::runtime::dispatch_helper().or_else(sampan::demo::dispatch).unwrap_or_else(sampan::cli::main)
}
