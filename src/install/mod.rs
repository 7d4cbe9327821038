//! `sampan install` and `sampan uninstall`: what a board with systemd has of Sampan on its disk.
//!
//! In: a role, a binary, a root folder (`/`, or the mounted card of another board). Out: the binary,
//! the unit, kernel settings and a configuration file, each written only where it differs; and who is
//! to be told. Invariants: a file is replaced whole or not at all, also when the plug is pulled; the
//! binary that is replaced is kept, and put back when the new one does not start; a configuration
//! that is there is never rewritten, but for the keys that are given. Deliberately absent: packages,
//! downloads, other inits (the binary needs none of this to run).

mod binary;
pub mod configuration;
mod files;
mod systemd;

use std::path::{Path, PathBuf};

pub use binary::rollback;
pub use files::{Change, Layout, modules};

/// What this board is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Server,
    Agent,
}

impl Role {
    const ALL: [Self; 2] = [Self::Server, Self::Agent];

    /// The name of its unit.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Server => "sampan.service",
            Self::Agent => "sampan-agent.service",
        }
    }

    /// The verb it runs.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Agent => "agent",
        }
    }

    fn unit_text(self) -> &'static str {
        match self {
            Self::Server => include_str!("../../systemd/sampan.service"),
            Self::Agent => include_str!("../../systemd/sampan-agent.service"),
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Server => Self::Agent,
            Self::Agent => Self::Server,
        }
    }
}

/// Why it is not installed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{operation} {path}: {source}")]
    File { operation: &'static str, path: PathBuf, source: std::io::Error },
    #[error("run {command}: {source}")]
    Run { command: String, source: std::io::Error },
    #[error("{command} failed: {stderr}")]
    Failed { command: String, stderr: String },
    #[error("there is no earlier binary at {0}")]
    NoPrevious(PathBuf),
    #[error("{unit} does not start with the new binary, the earlier one is back: {reason}")]
    RolledBack { unit: &'static str, reason: String },
}

/// What is asked for.
#[derive(Debug)]
pub struct Wanted<'a> {
    pub role: Role,
    /// The binary to install.
    pub binary: &'a Path,
    /// The text of `config.yaml`, when it is to be written.
    pub config: Option<String>,
    /// Kernel modules this board has; loaded at boot.
    pub modules: Vec<&'a str>,
    /// Whether to start the daemon now.
    pub start: bool,
}

/// Puts everything in its place; on a running system also enables and (re)starts the unit. What was
/// done, a line each; empty when all was so already.
///
/// # Errors
/// The first file that cannot be written, systemd's refusal, a new binary that does not start.
pub fn install(layout: &Layout, wanted: &Wanted<'_>) -> Result<Vec<String>, Error> {
    let mut done = Vec::new();
    let mut note = |change: Change, path: &Path| {
        if change != Change::None {
            done.push(format!("{} {}", change.word(), path.display()));
        }
        change != Change::None
    };
    let new_binary = binary::place(layout, wanted.binary)?;
    note(new_binary, &layout.binary());
    let mut unit_changed = false;
    for (path, text) in files::wanted(layout, wanted.role, &wanted.modules) {
        let change = files::write(&path, text.as_bytes(), 0o644)?;
        unit_changed |= note(change, &path) && path == layout.unit(wanted.role);
    }
    let mut config_changed = false;
    if let Some(text) = &wanted.config {
        // Readable by root alone: it may hold a token.
        let change = files::write(&layout.config(), text.as_bytes(), 0o600)?;
        config_changed = note(change, &layout.config());
    }
    let live = layout.is_running_system() && systemd::is_there();
    let other = layout.unit(wanted.role.other());
    if other.exists() {
        if live {
            systemd::run(&["disable", "--now", wanted.role.other().unit()])?;
        }
        systemd::disable_offline(layout, wanted.role.other())?;
        files::remove(&other)?;
        done.push(format!("removed {}", other.display()));
    }
    if !live {
        if systemd::enable_offline(layout, wanted.role)? {
            done.push(format!("enabled {} for the next boot", wanted.role.unit()));
        }
        return Ok(done);
    }
    if unit_changed || !systemd::is_enabled(wanted.role) {
        systemd::run(&["daemon-reload"])?;
        systemd::run(&["enable", wanted.role.unit()])?;
        done.push(format!("enabled {}", wanted.role.unit()));
    }
    if !done.is_empty() {
        // A module that does not load is no reason to stop: `sampan check` tells which matter.
        let _ = systemd::run(&["restart", "systemd-modules-load.service", "systemd-sysctl.service"]);
    }
    let changed = new_binary != Change::None || unit_changed || config_changed;
    if wanted.start && (changed || !systemd::is_active(wanted.role)) {
        match systemd::run(&["restart", wanted.role.unit()]) {
            Ok(()) => done.push(format!("started {}", wanted.role.unit())),
            Err(error) if new_binary == Change::Replaced => {
                rollback(layout)?;
                let _ = systemd::run(&["restart", wanted.role.unit()]);
                return Err(Error::RolledBack { unit: wanted.role.unit(), reason: error.to_string() });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Starts the daemon again, after a rollback.
///
/// # Errors
/// systemd's refusal.
pub fn restart(layout: &Layout) -> Result<Option<Role>, Error> {
    let Some(role) = installed(layout).filter(|_| layout.is_running_system() && systemd::is_there()) else {
        return Ok(None);
    };
    systemd::run(&["restart", role.unit()])?;
    Ok(Some(role))
}

/// What this board is, by its unit.
pub fn installed(layout: &Layout) -> Option<Role> {
    Role::ALL.into_iter().find(|role| layout.unit(*role).exists())
}

/// Stops the daemon for good; its pods are left to the caller.
///
/// # Errors
/// systemd's refusal.
pub fn stop(layout: &Layout) -> Result<(), Error> {
    for role in Role::ALL.into_iter().filter(|role| layout.unit(*role).exists()) {
        if layout.is_running_system() && systemd::is_there() {
            systemd::run(&["disable", "--now", role.unit()])?;
        }
        systemd::disable_offline(layout, role)?;
    }
    Ok(())
}

/// Removes every file that [`install`] has written; what was removed. Goes on after a failure.
pub fn remove_files(layout: &Layout) -> (Vec<PathBuf>, Vec<Error>) {
    let mut removed = Vec::new();
    let mut failed = Vec::new();
    for path in files::all(layout) {
        match files::remove(&path) {
            Ok(true) => removed.push(path),
            Ok(false) => {}
            Err(error) => failed.push(error),
        }
    }
    let _ = std::fs::remove_dir(layout.config().parent().expect("a file in a folder"));
    if layout.is_running_system() && systemd::is_there() {
        failed.extend(systemd::run(&["daemon-reload"]).err());
    }
    (removed, failed)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn wanted(role: Role, binary: &Path) -> Wanted<'_> {
        Wanted { role, binary, config: None, modules: vec!["veth"], start: false }
    }

    #[test]
    fn a_disk_gets_everything_once_and_loses_it_again() {
        let dir = tempfile::tempdir().unwrap();
        let (root, one, two) = (dir.path().join("card"), dir.path().join("1"), dir.path().join("2"));
        fs::write(&one, "one").unwrap();
        fs::write(&two, "two").unwrap();
        let layout = Layout::new(&root);
        let mut first = wanted(Role::Server, &one);
        first.config = Some("node-name: kitchen\n".to_owned());
        assert_eq!(install(&layout, &first).unwrap().len(), 7);
        assert!(layout.wants(Role::Server).is_symlink());
        let modules = fs::read_to_string(root.join("etc/modules-load.d/sampan.conf")).unwrap();
        assert!(modules.lines().filter(|line| !line.starts_with('#')).eq(["veth"]), "{modules}");
        assert_eq!(install(&layout, &wanted(Role::Server, &one)).unwrap(), Vec::<String>::new());

        let upgraded = install(&layout, &wanted(Role::Server, &two)).unwrap();
        assert_eq!(upgraded, [format!("replaced {}", layout.binary().display())]);
        let binaries = || [layout.binary(), layout.previous()].map(|path| fs::read_to_string(path).unwrap());
        assert_eq!(binaries(), ["two", "one"]);
        rollback(&layout).unwrap();
        assert_eq!(binaries(), ["one", "two"]);

        install(&layout, &wanted(Role::Agent, &one)).unwrap();
        assert_eq!(installed(&layout), Some(Role::Agent));
        assert!(!layout.unit(Role::Server).exists() && !layout.wants(Role::Server).is_symlink());
        assert_eq!(fs::read_to_string(layout.config()).unwrap(), "node-name: kitchen\n");

        let (removed, failed) = remove_files(&layout);
        assert!(failed.is_empty(), "{failed:?}");
        assert_eq!(removed.len(), 8);
        let left: Vec<_> = files::all(&layout).into_iter().filter(|path| path.exists()).collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(matches!(rollback(&layout), Err(Error::NoPrevious(_))));
    }
}
