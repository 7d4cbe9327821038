//! hostPath volumes: what is at the path, and what is made there.
//!
//! Source of the words: `pkg/volume/hostpath/host_path.go`.

use std::{
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

use super::at;

/// Checks, and for the `OrCreate` types makes, the path on the host.
///
/// # Errors
/// The message of a `FailedMount` event.
pub fn prepare(source: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let found = std::fs::metadata(path).ok().map(|m| m.file_type());
    let is = |right: bool, what: &str| {
        if right {
            Ok(())
        } else {
            Err(format!("hostPath type check failed: {} is not a {what}", source.path))
        }
    };
    match (kind, found) {
        ("", _) => Ok(()),
        ("DirectoryOrCreate", None) => folder(path),
        ("FileOrCreate", None) => {
            std::fs::File::create_new(path).map_err(at("open", path))?;
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o644)).map_err(at("chmod", path))
        }
        ("DirectoryOrCreate" | "Directory", f) => is(f.is_some_and(|f| f.is_dir()), "directory"),
        ("FileOrCreate" | "File", f) => is(f.is_some_and(|f| f.is_file()), "file"),
        ("Socket", f) => is(f.is_some_and(|f| f.is_socket()), "socket file"),
        ("CharDevice", f) => is(f.is_some_and(|f| f.is_char_device()), "character device"),
        ("BlockDevice", f) => is(f.is_some_and(|f| f.is_block_device()), "block device"),
        (other, _) => Err(format!("{other} is an invalid volume type")),
    }
}

/// What a mount is made of is there: the whole of it becomes a folder where it is not, as containerd makes it;
/// there is no part of what is not.
///
/// # Errors
/// The file system's refusal.
pub fn source(path: &Path, part: bool) -> Result<(), String> {
    match std::fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(error) if part || error.kind() != std::io::ErrorKind::NotFound => Err(at("stat", path)(error)),
        Err(_) => folder(path),
    }
}

fn folder(path: &Path) -> Result<(), String> {
    std::fs::create_dir_all(path).map_err(at("mkdir", path))?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).map_err(at("chmod", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_whole_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let lacks = format!("stat {}: no such file or directory", path.display());
        assert_eq!(source(&path, true), Err(lacks));
        assert_eq!((source(&path, false), path.is_dir()), (Ok(()), true));
        assert_eq!(source(&path, true), Ok(()));
    }

    #[test]
    fn host_paths_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let at = |name: &str, kind: &str| {
            let path = dir.path().join(name).display().to_string();
            prepare(&HostPathVolumeSource { path, type_: Some(kind.into()) })
        };
        for (name, kind, want) in [
            ("none", "Directory", Err("is not a directory")),
            ("none", "File", Err("is not a file")),
            ("made", "DirectoryOrCreate", Ok(())),
            ("made", "Directory", Ok(())),
            ("made", "FileOrCreate", Err("is not a file")),
            ("file", "FileOrCreate", Ok(())),
            ("file", "File", Ok(())),
            ("file", "DirectoryOrCreate", Err("is not a directory")),
            ("file", "Socket", Err("is not a socket file")),
            ("socket", "Socket", Ok(())),
            ("file", "BlockDevice", Err("is not a block device")),
            ("../../../../../../../../dev/null", "CharDevice", Ok(())),
            ("file", "CharDevice", Err("is not a character device")),
            ("plain", "", Ok(())),
            ("plain", "Directory", Err("is not a directory")),
            ("file", "Nonsense", Err("Nonsense is an invalid volume type")),
            ("none/file", "FileOrCreate", Err("/none/file: no such file or directory")),
            ("file/dir", "DirectoryOrCreate", Err("/file/dir: not a directory")),
        ] {
            match (at(name, kind), want) {
                (Ok(()), Ok(())) => {}
                (Err(found), Err(want)) => assert!(found.contains(want), "{name} {kind}: {found}"),
                (found, _) => panic!("{name} {kind}: {found:?}"),
            }
        }
    }
}
