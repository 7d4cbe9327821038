//! systemd by its own tool: only it can enable and start a unit.

use std::{os::unix::fs::symlink, path::Path, process::Command};

use super::{
    Error, Role,
    files::{self, Layout},
};

/// Whether this machine runs it (`sd_booted(3)`).
pub fn is_there() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// `systemctl ARGS…`, which has to succeed.
pub fn run(args: &[&str]) -> Result<(), Error> {
    let command = format!("systemctl {}", args.join(" "));
    let output = Command::new("systemctl").args(args).output();
    let output = output.map_err(|source| Error::Run { command: command.clone(), source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Failed { command, stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}

pub fn is_active(role: Role) -> bool {
    run(&["is-active", "--quiet", role.unit()]).is_ok()
}

pub fn is_enabled(role: Role) -> bool {
    run(&["is-enabled", "--quiet", role.unit()]).is_ok()
}

/// What `systemctl enable` does, on a disk that is not running; whether it was not so already.
pub fn enable_offline(layout: &Layout, role: Role) -> Result<bool, Error> {
    let link = layout.wants(role);
    if link.is_symlink() {
        return Ok(false);
    }
    let fail = |source| Error::File { operation: "enable", path: link.clone(), source };
    std::fs::create_dir_all(link.parent().expect("a file in a folder")).map_err(fail)?;
    symlink(format!("/etc/systemd/system/{}", role.unit()), &link).map_err(fail)?;
    Ok(true)
}

pub fn disable_offline(layout: &Layout, role: Role) -> Result<(), Error> {
    files::remove(&layout.wants(role)).map(drop)
}
