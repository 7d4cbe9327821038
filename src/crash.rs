//! Places where a test makes a process end as if it were killed, in builds for development only.
//!
//! In: a number in the environment, or the path of a file with one, which a test may write while the
//! process runs. Out: SIGKILL to oneself at the place of that number, counted from 1 as places are
//! passed. Release builds have no such places.

/// The variable for a daemon, and the one for shims with what they start.
pub const DAEMON: &str = "SAMPAN_TEST_DAEMON_DIES_AT";
pub const SHIM: &str = "SAMPAN_TEST_SHIM_DIES_AT";
/// For whoever writes a node's ledger, and for whoever unpacks, records or removes images.
pub const LEDGER: &str = "SAMPAN_TEST_LEDGER_DIES_AT";
pub const IMAGES: &str = "SAMPAN_TEST_IMAGES_DIES_AT";

#[cfg(debug_assertions)]
mod places {
    use std::{
        env, fs,
        sync::atomic::{AtomicU32, Ordering},
    };

    use nix::{
        sys::signal::{Signal, kill},
        unistd::{Pid, pause},
    };

    static PASSED: AtomicU32 = AtomicU32::new(0);

    fn asked(variable: &str) -> Option<u32> {
        env::var(variable).ok()?.parse().ok()
    }

    /// Counts the number in a file down; `true` at its last place, when the file goes.
    fn comes(path: &str) -> bool {
        let Some(left) = fs::read_to_string(path).ok().and_then(|text| text.parse::<u32>().ok()) else {
            return false;
        };
        let _ = if left > 1 { fs::write(path, (left - 1).to_string()) } else { fs::remove_file(path) };
        left <= 1
    }

    /// A place; `variable` says whose.
    pub fn point(variable: &str) {
        let dies = match env::var(variable) {
            Err(_) => return,
            Ok(path) if path.starts_with('/') => comes(&path),
            Ok(_) => Some(PASSED.fetch_add(1, Ordering::Relaxed) + 1) == asked(variable),
        };
        if dies {
            let _ = kill(Pid::this(), Signal::SIGKILL);
            pause();
        }
    }

    /// Leaves these numbers to the places of another process, which passed the same ones so far.
    pub fn skip(places: u32) {
        PASSED.fetch_add(places, Ordering::Relaxed);
    }
}

#[cfg(not(debug_assertions))]
mod places {
    pub fn point(_: &str) {}

    pub fn skip(_: u32) {}
}

pub use places::{point, skip};
