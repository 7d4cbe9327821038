//! The one line an error ends with: what failed, why, and what its reader can do.

use std::{fmt::Write as _, io::ErrorKind};

/// The error and its causes, each said once, and a remedy where the cause has a usual one.
pub fn line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // Most messages say their source already.
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            let _ = write!(line, ": {text}");
        }
    }
    if let Some(remedy) = error.chain().find_map(remedy) {
        let _ = write!(line, "; {remedy}");
    }
    line
}

fn remedy(cause: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    if let Some(error) = cause.downcast_ref::<std::io::Error>() {
        return of_kind(error.kind());
    }
    of_sqlite(cause.downcast_ref::<rusqlite::Error>()?.sqlite_error_code()?)
}

fn of_kind(kind: ErrorKind) -> Option<&'static str> {
    Some(match kind {
        ErrorKind::AddrInUse => {
            "stop what listens there (`ss -ltnp` shows it) or choose another address (see `sampan server --help`)"
        }
        ErrorKind::AddrNotAvailable => "this machine has no such address (`ip address` shows those it has)",
        ErrorKind::ReadOnlyFilesystem => {
            "the disk is read-only, often after an error (`dmesg` tells): repair and remount it, or choose another folder"
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "the disk is full: free some space (`sampan image ls` shows what images take) or choose another folder"
        }
        ErrorKind::PermissionDenied => "run it as root",
        _ => return None,
    })
}

fn of_sqlite(code: rusqlite::ErrorCode) -> Option<&'static str> {
    use rusqlite::ErrorCode;
    match code {
        ErrorCode::DiskFull => of_kind(ErrorKind::StorageFull),
        ErrorCode::ReadOnly | ErrorCode::CannotOpen => of_kind(ErrorKind::ReadOnlyFilesystem),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
            Some("another daemon uses this folder: stop it or choose another --data-dir")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("listen on 0.0.0.0:6443: {source}")]
    struct Listen {
        source: io::Error,
    }

    #[test]
    fn a_cause_is_said_once_and_with_what_to_do() {
        let source = io::Error::from_raw_os_error(libc::EADDRINUSE);
        let line = line(&Listen { source }.into());
        assert_eq!(line.matches("Address already in use").count(), 1, "{line}");
        assert!(line.starts_with("listen on 0.0.0.0:6443: ") && line.contains("ss -ltnp"), "{line}");
    }

    #[test]
    fn disks_have_their_remedies() {
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        assert!(line(&anyhow::Error::from(full).context("write x")).contains("the disk is full"));
        let read_only = io::Error::from_raw_os_error(libc::EROFS);
        assert!(line(&anyhow::Error::from(read_only)).contains("remount"));
        let failure = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
        let full = Err::<(), _>(rusqlite::Error::SqliteFailure(failure, None)).context("open state.db");
        assert!(line(&full.unwrap_err()).contains("the disk is full"));
        assert_eq!(line(&anyhow::anyhow!("no such pod")), "no such pod");
    }
}
