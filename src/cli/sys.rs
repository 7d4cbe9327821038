//! The system calls of the command line that have no safe wrapper.

use std::mem::MaybeUninit;

/// The size of the terminal on standard output as (columns, rows); `None` when it is none.
pub fn terminal_size() -> Option<(u16, u16)> {
    let mut size = MaybeUninit::<libc::winsize>::uninit();
    // SAFETY: TIOCGWINSZ writes a winsize to the pointer, which is valid for that; it is read only
    // after the call said that it did.
    let size = unsafe {
        if libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, size.as_mut_ptr()) != 0 {
            return None;
        }
        size.assume_init()
    };
    (size.ws_col > 0).then_some((size.ws_col, size.ws_row))
}

/// Lets a write to a closed pipe end the process, as `sampan get pods | head` expects of a command;
/// Rust's start-up code has the signal ignored.
pub fn end_at_broken_pipe() {
    // SAFETY: SIG_DFL installs no handler, so nothing of ours runs in signal context.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}
