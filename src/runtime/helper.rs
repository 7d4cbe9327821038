//! The hidden modes of the binary: `sampan-shim shim|exec|reaper …`.
//!
//! Dispatched by `main` before any thread exists.

use std::process::ExitCode;

use super::{exec_helper, sandbox, shim, wire::HELPER_NAME};

/// Runs the helper that this process was started as; `None` for an ordinary command line.
pub fn dispatch() -> Option<ExitCode> {
    let mut args = std::env::args_os();
    let name = args.next()?;
    if name != HELPER_NAME {
        return None;
    }
    let mut args = args.map(|arg| arg.to_string_lossy().into_owned());
    Some(match args.next()?.as_str() {
        "shim" => shim::run(args),
        "exec" => exec_helper::run(),
        "reaper" => sandbox::run_reaper(args),
        _ => ExitCode::FAILURE,
    })
}
