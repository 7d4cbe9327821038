//! Parts of a volume, bound to a place of their own before a container sees them.
//!
//! The part is opened once, without ever leaving the volume, and bound through its descriptor: a
//! pod that swaps a folder for a symlink meanwhile gains nothing (CVE-2017-1002101, CVE-2021-25741).

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Component, Path},
};

use nix::mount::MsFlags;

use super::sys::open_beneath;

/// Binds `sub` of the volume at `base` to `pin`; a part that is missing is made a folder.
///
/// # Errors
/// The part leads outside of the volume, or the file system refuses.
pub fn pin(base: &Path, sub: &Path, pin: &Path) -> io::Result<()> {
    if !sub.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "must not contain '..' or be absolute"));
    }
    let root: OwnedFd = fs::File::open(base)?.into();
    let part = match open_beneath(&root, sub) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => make(&root, sub)?,
        other => other?,
    };
    let shown = format!("/proc/self/fd/{}", part.as_raw_fd());
    let is_dir = fs::metadata(&shown)?.is_dir();
    if let Some(parent) = pin.parent() {
        fs::create_dir_all(parent)?;
    }
    // A pin of an earlier attempt of this container.
    let _ = nix::mount::umount2(pin, nix::mount::MntFlags::MNT_DETACH);
    if is_dir {
        fs::create_dir_all(pin)?;
    } else if !pin.exists() {
        fs::write(pin, "")?;
    }
    nix::mount::mount(
        Some(shown.as_str()),
        pin,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .map_err(io::Error::from)
}

/// The text of a file of the volume at `base`, at most `max` bytes; `None` when it is not there.
///
/// # Errors
/// The file leads outside of the volume, is too long, or cannot be read.
pub fn read(base: &Path, file: &Path, max: u64) -> io::Result<Option<String>> {
    let root: OwnedFd = fs::File::open(base)?.into();
    let place = match open_beneath(&root, file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let shown = format!("/proc/self/fd/{}", place.as_raw_fd());
    let meta = fs::metadata(&shown)?;
    if !meta.is_file() || meta.len() > max {
        return Err(io::Error::other(format!("not a file of at most {max} bytes")));
    }
    fs::read_to_string(&shown).map(Some)
}

/// Makes the missing folders of a part, each inside of the one before it. The last one is as the volume's root
/// is (`doSafeMakeDir` of `pkg/volume/util/subpath`): whoever may write there may write here.
fn make(root: &OwnedFd, sub: &Path) -> io::Result<OwnedFd> {
    let by_number = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let permissions = fs::metadata(by_number(root))?.permissions();
    let mut here = root.try_clone()?;
    for part in sub.components().filter(|c| matches!(c, Component::Normal(_))) {
        let name = Path::new(part.as_os_str());
        here = match open_beneath(&here, name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let mode = nix::sys::stat::Mode::from_bits_truncate(permissions.mode());
                nix::sys::stat::mkdirat(Some(here.as_raw_fd()), name, mode)?;
                open_beneath(&here, name)?
            }
            other => other?,
        };
    }
    fs::set_permissions(by_number(&here), permissions)?;
    Ok(here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_leads_outside_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("volume");
        fs::create_dir(&base).unwrap();
        std::os::unix::fs::symlink("/etc", base.join("out")).unwrap();
        std::os::unix::fs::symlink("..", base.join("up")).unwrap();
        for bad in ["../x", "/etc", "out/passwd", "up"] {
            assert!(pin(&base, Path::new(bad), &dir.path().join("pin")).is_err(), "{bad}");
        }
        let root: OwnedFd = fs::File::open(&base).unwrap().into();
        fs::set_permissions(&base, PermissionsExt::from_mode(0o3777)).unwrap();
        make(&root, Path::new("a/b")).unwrap();
        assert_eq!(fs::metadata(base.join("a/b")).unwrap().permissions().mode(), 0o43777);
        fs::write(base.join("a/f"), "x").unwrap();
        assert_eq!(read(&base, Path::new("a/f"), 9).unwrap().as_deref(), Some("x"));
        assert_eq!(read(&base, Path::new("a/g"), 9).unwrap(), None);
        assert!(read(&base, Path::new("out/passwd"), 1 << 20).is_err());
    }
}
