//! Files that change as one: a symlink `..data` points at the folder of the day.
//!
//! The layout is upstream's (`pkg/volume/util/atomic_writer.go`), as applications watch it:
//! `name -> ..data/name`, `..data -> ..<time>`, `..<time>/name`.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{PermissionsExt, chown, lchown, symlink},
    path::{Component, Path, PathBuf},
};

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

/// Makes the folder show exactly `files`; says whether anything changed.
///
/// # Errors
/// A path that leaves the folder, or the file system's refusal.
pub fn write(dir: &Path, files: &Files, group: Option<u32>) -> io::Result<bool> {
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
    if old.is_some() && same(&data, files) {
        return Ok(false);
    }
    fs::set_permissions(dir, PermissionsExt::from_mode(0o777))?;
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
        own(&fresh, group, true)?;
    }
    let next = dir.join("..data_tmp");
    let _ = fs::remove_file(&next);
    symlink(&now, &next)?;
    fs::rename(&next, &data)?;
    let tops: Vec<&Path> = files.keys().filter_map(|p| p.iter().next().map(Path::new)).collect();
    for top in &tops {
        match symlink(Path::new(DATA).join(top), dir.join(top)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let stays = name == DATA || *name == *now || tops.contains(&Path::new(&name));
        if !stays {
            let path = entry.path();
            if entry.file_type()?.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
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

/// Gives a tree to a group, which may then write (or only read) it; new files inherit the group.
///
/// # Errors
/// The file system's refusal.
pub fn own(path: &Path, group: u32, read_only: bool) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    lchown(path, None, Some(group))?;
    if meta.is_symlink() {
        return Ok(());
    }
    let more = match (meta.is_dir(), read_only) {
        (true, true) => 0o2550,
        (true, false) => 0o2770,
        (false, true) => 0o440,
        (false, false) => 0o660,
    };
    fs::set_permissions(path, PermissionsExt::from_mode(meta.permissions().mode() | more))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            own(&entry?.path(), group, read_only)?;
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
        assert!(write(dir, &files(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert!(!write(dir, &files(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert_eq!(fs::read_to_string(dir.join("d/b")).unwrap(), "2");
        assert_eq!(fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_link(dir.join("a")).unwrap(), Path::new("..data/a"));
        assert!(write(dir, &files(&[("a", "3"), ("c", "")]), None).unwrap());
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|n| !n.starts_with("..2"));
        names.sort();
        assert_eq!(names, ["..data", "a", "c"]);
    }

    #[test]
    fn paths_cannot_leave_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["../x", "/x", "..x", "a/../../x", ""] {
            assert!(write(dir.path(), &files(&[(bad, "")]), None).is_err(), "{bad}");
        }
    }
}
