//! hostPath volumes: what is at the path, and what is made there.
//!
//! Source of the words: `pkg/volume/hostpath/host_path.go`.

use std::{
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

use super::at;

/// Checks, and for the `OrCreate` types makes, the path on the host. A path without a type that is
/// not there becomes a folder, as containerd makes it.
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
        ("", Some(_)) => Ok(()),
        ("" | "DirectoryOrCreate", None) => {
            std::fs::create_dir_all(path).map_err(at("mkdir", path))?;
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).map_err(at("chmod", path))
        }
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

#[cfg(test)]
mod tests {
    use super::*;

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
            ("plain", "Directory", Ok(())),
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
