//! Files that change as one: a symlink `..data` points at the folder of the day.
//!
//! The layout is upstream's (`pkg/volume/util/atomic_writer.go`), as applications watch it:
//! `name -> ..data/name`, `..data -> ..<time>`, `..<time>/name`.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink},
    },
    path::{Component, Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use nix::fcntl::{AtFlags, OFlag};

use super::super::record::Wanted;
use crate::crash;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub bytes: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    pub owner: Option<u32>,
}

/// By relative path.
pub type Files = BTreeMap<PathBuf, File>;

const DATA: &str = "..data";

/// Makes the folder, which has this mode, show exactly `files`; says whether anything changed. All of it is the
/// group's to read, where there is one.
///
/// # Errors
/// A path that leaves the folder, or the file system's refusal.
pub fn write(dir: &Path, files: &Files, mode: u32, group: Option<Group>) -> io::Result<bool> {
    for path in files.keys() {
        let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
        let hidden =
            path.components().next().is_some_and(|c| c.as_os_str().as_encoded_bytes().starts_with(b".."));
        if !plain || hidden || path.as_os_str().is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("invalid path {}", path.display()),
            ));
        }
    }
    fs::create_dir_all(dir)?;
    let data = dir.join(DATA);
    let old = fs::read_link(&data).ok();
    let tops: Vec<&Path> = files.keys().filter_map(|p| p.iter().next().map(Path::new)).collect();
    // Who died after the change may have left it without links to it.
    let linked = tops.iter().all(|top| fs::symlink_metadata(dir.join(top)).is_ok());
    if old.is_some() && linked && same(&data, files) {
        return Ok(false);
    }
    fs::set_permissions(dir, PermissionsExt::from_mode(mode))?;
    let now = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string();
    let fresh = dir.join(&now);
    fs::create_dir(&fresh)?;
    fs::set_permissions(&fresh, PermissionsExt::from_mode(0o755))?;
    for (path, file) in files {
        let target = fresh.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, &file.bytes)?;
        fs::set_permissions(&target, PermissionsExt::from_mode(file.mode))?;
        if let Some(owner) = file.owner {
            chown(&target, Some(owner), None)?;
        }
    }
    if let Some(group) = group {
        own(dir, group.always(), true)?;
    }
    let next = dir.join("..data_tmp");
    let _ = fs::remove_file(&next);
    symlink(&now, &next)?;
    crash::point(crash::DAEMON);
    fs::rename(&next, &data)?;
    crash::point(crash::DAEMON);
    for top in &tops {
        match symlink(Path::new(DATA).join(top), dir.join(top)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    // What else is there are folders that volumes below this one are mounted on.
    for entry in fs::read_dir(dir)? {
        let (path, name) = {
            let entry = entry?;
            (entry.path(), entry.file_name())
        };
        if name == DATA || *name == *now || tops.contains(&Path::new(&name)) {
            continue;
        }
        if name.as_encoded_bytes().starts_with(b"..") {
            fs::remove_dir_all(path)?;
        } else if fs::read_link(&path).is_ok_and(|target| target.starts_with(DATA)) {
            fs::remove_file(path)?;
        }
    }
    Ok(true)
}

/// Whether the folder behind `data` holds exactly these files.
fn same(data: &Path, files: &Files) -> bool {
    let mut count = 0;
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                folders.push(entry.path());
            } else {
                count += 1;
            }
        }
    }
    count == files.len()
        && files.iter().all(|(path, f)| fs::read(data.join(path)).is_ok_and(|b| b == f.bytes))
}

/// The group that a pod's volumes are given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    pub id: u32,
    /// A tree whose root is right is left as it is (`fsGroupChangePolicy: OnRootMismatch`).
    pub on_root_mismatch: bool,
}

impl Group {
    /// The `fsGroup` of a pod.
    pub fn of(wanted: &Wanted) -> Option<Self> {
        let context = wanted.spec.security_context.as_ref()?;
        let on_root_mismatch = context.fs_group_change_policy.as_deref() == Some("OnRootMismatch");
        context.fs_group.map(|id| Self { id: id as u32, on_root_mismatch })
    }

    /// The same, whatever the root is like.
    pub fn always(self) -> Self {
        Self { on_root_mismatch: false, ..self }
    }
}

/// Permissions that the group needs (upstream's `pkg/volume/volume_linux.go`).
fn group_mode(is_dir: bool, read_only: bool) -> u32 {
    match (is_dir, read_only) {
        (true, true) => 0o2550,
        (true, false) => 0o2770,
        (false, true) => 0o440,
        (false, false) => 0o660,
    }
}

/// Gives a tree to a group, which may then write (or only read) it; new files inherit the group.
/// A pod that swaps a file for a link meanwhile gains nothing: no link is followed.
///
/// # Errors
/// The file system's refusal.
pub fn own(path: &Path, group: Group, read_only: bool) -> io::Result<()> {
    own_counting(path, group, read_only, &AtomicU64::new(0))
}

/// As [`own`]; `files` says how many are done.
///
/// # Errors
/// The file system's refusal.
pub fn own_counting(path: &Path, group: Group, read_only: bool, files: &AtomicU64) -> io::Result<()> {
    if group.on_root_mismatch {
        let meta = fs::metadata(path)?;
        let more = group_mode(true, read_only);
        if meta.gid() == group.id && meta.permissions().mode() & more == more {
            return Ok(());
        }
    }
    give(&place(path)?, group.id, read_only, files)
}

/// Opens as a place, not following a link at its end.
fn place(path: &Path) -> io::Result<fs::File> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    fs::OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

fn give(place: &fs::File, group: u32, read_only: bool, files: &AtomicU64) -> io::Result<()> {
    files.fetch_add(1, Ordering::Relaxed);
    let meta = place.metadata()?;
    let empty = Path::new("");
    let gid = Some(nix::unistd::Gid::from_raw(group));
    nix::unistd::fchownat(Some(place.as_raw_fd()), empty, None, gid, AtFlags::AT_EMPTY_PATH)?;
    if meta.is_symlink() {
        return Ok(());
    }
    // The way through /proc leads to what was opened, whatever has its name by now.
    let here = PathBuf::from(format!("/proc/self/fd/{}", place.as_raw_fd()));
    let mode = meta.permissions().mode() | group_mode(meta.is_dir(), read_only);
    fs::set_permissions(&here, PermissionsExt::from_mode(mode))?;
    if meta.is_dir() {
        for entry in fs::read_dir(&here)? {
            match self::place(&entry?.path()) {
                Ok(inner) => give(&inner, group, read_only, files)?,
                // Another pod that has the volume too may remove files meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        list.iter()
            .map(|(path, text)| {
                ((*path).into(), File { bytes: text.as_bytes().to_vec(), mode: 0o640, owner: None })
            })
            .collect()
    }

    #[test]
    fn contents_change_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(write(dir, &files(&[("a", "1"), ("d/b", "2")]), 0o777, None).unwrap());
        assert!(!write(dir, &files(&[("a", "1"), ("d/b", "2")]), 0o777, None).unwrap());
        assert_eq!(fs::read_to_string(dir.join("d/b")).unwrap(), "2");
        assert_eq!(fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_link(dir.join("a")).unwrap(), Path::new("..data/a"));
        fs::create_dir(dir.join("below")).unwrap();
        assert!(write(dir, &files(&[("a", "3"), ("c", "")]), 0o777, None).unwrap());
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|n| !n.starts_with("..2"));
        names.sort();
        assert_eq!(names, ["..data", "a", "below", "c"]);
        // Killed before its links were made.
        fs::remove_file(dir.join("c")).unwrap();
        assert!(write(dir, &files(&[("a", "3"), ("c", "")]), 0o777, None).unwrap());
        assert!(dir.join("c").exists());
    }

    #[test]
    fn what_is_given_to_a_group_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/f"), "").unwrap();
        symlink("/", dir.path().join("l")).unwrap();
        let id = fs::metadata(dir.path()).unwrap().gid();
        let done = |on_root_mismatch| {
            let files = AtomicU64::new(0);
            own_counting(dir.path(), Group { id, on_root_mismatch }, false, &files).unwrap();
            files.into_inner()
        };
        assert_eq!((done(false), done(true)), (4, 0));
    }

    #[test]
    fn paths_cannot_leave_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["../x", "/x", "..x", "a/../../x", ""] {
            assert!(write(dir.path(), &files(&[(bad, "")]), 0o777, None).is_err(), "{bad}");
        }
    }
}
