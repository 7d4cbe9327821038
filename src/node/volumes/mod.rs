//! Volumes of a pod: made ready on the node, shown to containers, kept fresh, taken away.
//!
//! In: the pod's volumes, ConfigMaps, Secrets, claims and tokens from the ledger. Out: a path a
//! volume, and [`Mount`]s a container.
//! Invariants: contents of configMap, secret, projected and downwardAPI volumes change as one
//! (symlink swap); a subPath never leaves its volume; teardown is idempotent and reports all
//! failures.
//! Deliberately absent: storage drivers (CSI), mount helpers.

mod content;
pub mod payload;
mod subpath;
mod sys;

use std::{
    collections::BTreeMap,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, HostPathVolumeSource, PersistentVolume, PersistentVolumeClaim, Volume,
};
use nix::mount::{MntFlags, MsFlags};

pub use content::Token;

use super::{record::Wanted, shared::Shared};
use crate::{
    kinds::quantity::Quantity,
    mqtt::messages::ItemKind,
    runtime::{Mount, Propagation},
};

/// A volume that is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    pub path: PathBuf,
    pub read_only: bool,
}

fn dir_of(shared: &Shared, wanted: &Wanted, plugin: &str, volume: &str) -> PathBuf {
    shared.pod_dir(&wanted.uid).join("volumes").join(format!("kubernetes.io~{plugin}")).join(volume)
}

fn at(path: &Path) -> impl Fn(std::io::Error) -> String {
    move |error| format!("{}: {error}", path.display())
}

/// Makes every volume of the pod ready. `tokens` gives service account tokens.
///
/// # Errors
/// The message of a `FailedMount` event.
pub async fn set_up(
    shared: &Shared,
    wanted: &Wanted,
    ip: Option<std::net::Ipv4Addr>,
    tokens: &[Token],
) -> Result<BTreeMap<String, Mounted>, String> {
    let mut ready = BTreeMap::new();
    for volume in wanted.spec.volumes.iter().flatten() {
        let mounted = one(shared, wanted, volume, ip, tokens)
            .await
            .map_err(|e| format!("MountVolume.SetUp failed for volume {:?} : {e}", volume.name))?;
        ready.insert(volume.name.clone(), mounted);
    }
    Ok(ready)
}

async fn one(
    shared: &Shared,
    wanted: &Wanted,
    volume: &Volume,
    ip: Option<std::net::Ipv4Addr>,
    tokens: &[Token],
) -> Result<Mounted, String> {
    if let Some(plugin) = content::plugin(volume) {
        let path = dir_of(shared, wanted, plugin, &volume.name);
        let files = content::files(shared, wanted, volume, ip, tokens)?;
        write(wanted, &path, files).await?;
        return Ok(Mounted { path, read_only: true });
    }
    if let Some(source) = &volume.empty_dir {
        let path = dir_of(shared, wanted, "empty-dir", &volume.name);
        let group = fs_group(wanted);
        let source = source.clone();
        let made = path.clone();
        blocking(move || {
            empty_dir(&made, &source)?;
            group.map_or(Ok(()), |group| payload::own(&made, group, false).map_err(at(&made)))
        })
        .await?;
        return Ok(Mounted { path, read_only: false });
    }
    if let Some(source) = &volume.host_path {
        let source = source.clone();
        let path = PathBuf::from(&source.path);
        blocking(move || host_path(&source)).await?;
        return Ok(Mounted { path, read_only: false });
    }
    if let Some(source) = &volume.persistent_volume_claim {
        return claim(shared, wanted, &source.claim_name, source.read_only == Some(true)).await;
    }
    if volume.ephemeral.is_some() {
        return claim(shared, wanted, &format!("{}-{}", wanted.name, volume.name), false).await;
    }
    let given = serde_json::to_value(volume).unwrap_or_default();
    let kind = given.as_object().and_then(|o| o.keys().find(|k| *k != "name").cloned()).unwrap_or_default();
    Err(format!("volumes of type {kind:?} are not supported by Sampan"))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?
}

fn fs_group(wanted: &Wanted) -> Option<u32> {
    wanted.spec.security_context.as_ref()?.fs_group.map(|g| g as u32)
}

async fn write(wanted: &Wanted, path: &Path, files: payload::Files) -> Result<bool, String> {
    let (path, group) = (path.to_owned(), fs_group(wanted));
    blocking(move || payload::write(&path, &files, group).map_err(at(&path))).await
}

/// Brings the contents of a pod's volumes up to date; says whether anything changed.
///
/// # Errors
/// What could not be read or written; the old contents stay.
pub async fn refresh(
    shared: &Shared,
    wanted: &Wanted,
    ip: Option<std::net::Ipv4Addr>,
    tokens: &[Token],
) -> Result<bool, String> {
    let mut changed = false;
    for volume in wanted.spec.volumes.iter().flatten() {
        if let Some(plugin) = content::plugin(volume) {
            let files = content::files(shared, wanted, volume, ip, tokens)?;
            changed |= write(wanted, &dir_of(shared, wanted, plugin, &volume.name), files).await?;
        }
    }
    Ok(changed)
}

/// The tokens that the pod's projected volumes need, with what is on disk already.
pub fn tokens_needed(shared: &Shared, wanted: &Wanted) -> Vec<Token> {
    content::tokens(shared, wanted)
}

fn empty_dir(path: &Path, source: &EmptyDirVolumeSource) -> Result<(), String> {
    std::fs::create_dir_all(path).map_err(at(path))?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).map_err(at(path))?;
    match source.medium.as_deref().unwrap_or_default() {
        "" => Ok(()),
        "Memory" if is_mount_point(path) => Ok(()),
        "Memory" => {
            let size = source.size_limit.as_ref().and_then(|q| q.0.parse::<Quantity>().ok());
            let options = match size.map(Quantity::value).filter(|s| *s > 0) {
                Some(bytes) => format!("mode=777,size={bytes}"),
                None => "mode=777".to_owned(),
            };
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))
                .map_err(|e| format!("mount tmpfs at {}: {e}", path.display()))
        }
        other => Err(format!("emptyDir medium {other:?} is not supported by Sampan")),
    }
}

/// Whether something is mounted on exactly this folder.
fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |p: &Path| std::fs::symlink_metadata(p).map(|m| m.dev()).ok();
    match (device(path), path.parent().and_then(device)) {
        (Some(own), Some(parent)) => own != parent,
        _ => false,
    }
}

/// Checks, and for the `OrCreate` types makes, the path on the host.
fn host_path(source: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let failed = |what: &str| Err(format!("hostPath type check failed: {} is not a {what}", source.path));
    let found = std::fs::metadata(path).ok().map(|m| m.file_type());
    match (kind, found) {
        ("", _) => Ok(()),
        ("DirectoryOrCreate", None) => {
            std::fs::create_dir_all(path).map_err(at(path))?;
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).map_err(at(path))
        }
        ("FileOrCreate", None) => {
            std::fs::File::create_new(path).map_err(at(path))?;
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o644)).map_err(at(path))
        }
        ("DirectoryOrCreate" | "Directory", f) => {
            if f.is_some_and(|f| f.is_dir()) {
                Ok(())
            } else {
                failed("directory")
            }
        }
        ("FileOrCreate" | "File", f) => {
            if f.is_some_and(|f| f.is_file()) {
                Ok(())
            } else {
                failed("file")
            }
        }
        ("Socket", f) => {
            if f.is_some_and(|f| f.is_socket()) {
                Ok(())
            } else {
                failed("socket file")
            }
        }
        ("CharDevice", f) => {
            if f.is_some_and(|f| f.is_char_device()) {
                Ok(())
            } else {
                failed("character device")
            }
        }
        ("BlockDevice", f) => {
            if f.is_some_and(|f| f.is_block_device()) {
                Ok(())
            } else {
                failed("block device")
            }
        }
        (other, _) => Err(format!("{other:?} is an invalid volume type")),
    }
}

async fn claim(shared: &Shared, wanted: &Wanted, name: &str, read_only: bool) -> Result<Mounted, String> {
    let claim: PersistentVolumeClaim = shared
        .ledger
        .object(ItemKind::PersistentVolumeClaim, &wanted.namespace, name)
        .ok_or_else(|| format!("persistentvolumeclaim {name:?} not found"))?;
    let volume_name = claim
        .spec
        .and_then(|s| s.volume_name)
        .filter(|v| !v.is_empty())
        .ok_or_else(|| format!("persistentvolumeclaim {name:?} is not bound to a volume yet"))?;
    let volume: PersistentVolume = shared
        .ledger
        .object(ItemKind::PersistentVolume, "", &volume_name)
        .ok_or_else(|| format!("persistentvolume {volume_name:?} not found"))?;
    let spec = volume.spec.unwrap_or_default();
    let path = if let Some(local) = spec.local {
        let path = PathBuf::from(local.path);
        // The node makes the folder of a volume that was provisioned for it; its parent is there.
        let made = path.clone();
        blocking(move || match std::fs::create_dir(&made) {
            Ok(()) => std::fs::set_permissions(&made, PermissionsExt::from_mode(0o777)).map_err(at(&made)),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(at(&made)(e)),
        })
        .await?;
        path
    } else if let Some(host) = spec.host_path {
        let path = PathBuf::from(&host.path);
        blocking(move || host_path(&host)).await?;
        path
    } else {
        return Err(format!(
            "persistentvolume {volume_name:?}: only local and hostPath volumes are supported by Sampan"
        ));
    };
    if let Some(group) = fs_group(wanted).filter(|_| !read_only) {
        let path = path.clone();
        blocking(move || payload::own(&path, group, false).map_err(at(&path))).await?;
    }
    Ok(Mounted { path, read_only })
}

/// The mounts of one container. `expand` replaces `$(NAME)` in `subPathExpr`.
///
/// # Errors
/// The message of a `CreateContainerConfigError`.
pub async fn mounts(
    shared: &Shared,
    wanted: &Wanted,
    container: &Container,
    mounted: &BTreeMap<String, Mounted>,
    expand: &(dyn Fn(&String) -> String + Send + Sync),
) -> Result<Vec<Mount>, String> {
    let mut out = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = mounted.get(&mount.name).ok_or_else(|| {
            format!("volume {:?} of the mount at {} is not there", mount.name, mount.mount_path)
        })?;
        let sub = mount.sub_path_expr.as_ref().map(expand).or_else(|| mount.sub_path.clone());
        let source = match sub.filter(|s| !s.is_empty()) {
            None => volume.path.clone(),
            Some(sub) => {
                let pins = shared.pod_dir(&wanted.uid).join("volume-subpaths").join(&mount.name);
                let pin = pins.join(&container.name).join(index.to_string());
                let base = volume.path.clone();
                blocking(move || {
                    subpath::pin(&base, Path::new(&sub), &pin)
                        .map(|()| pin)
                        .map_err(|e| format!("failed to prepare subPath {sub:?}: {e}"))
                })
                .await?
            }
        };
        let read_only = volume.read_only || mount.read_only == Some(true);
        let recursive = matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"));
        out.push(Mount {
            source,
            target: Path::new("/").join(&mount.mount_path),
            read_only,
            recursive_read_only: read_only && recursive,
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => Propagation::HostToContainer,
                Some("Bidirectional") => Propagation::Bidirectional,
                _ => Propagation::Private,
            },
        });
    }
    Ok(out)
}

/// Unmounts and removes everything below the pod's folder that is not the pod's own data
/// elsewhere. Goes on past failures.
///
/// # Errors
/// All that failed.
pub async fn tear_down(shared: &Shared, uid: &str, remove: bool) -> Result<(), String> {
    let dir = shared.pod_dir(uid);
    blocking(move || {
        let mut failures = Vec::new();
        for point in mounts_below(&dir) {
            if let Err(error) = nix::mount::umount2(&point, MntFlags::MNT_DETACH) {
                failures.push(format!("unmount {}: {error}", point.display()));
            }
        }
        // Nothing is removed through a mount that is still there.
        if remove
            && failures.is_empty()
            && let Err(error) = std::fs::remove_dir_all(&dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            failures.push(format!("remove {}: {error}", dir.display()));
        }
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    })
    .await
}

/// The mount points below a folder, the deepest first.
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(|p| PathBuf::from(unescape(p)));
    let mut below: Vec<PathBuf> = points.filter(|p| p.starts_with(dir) && p != dir).collect();
    below.reverse();
    below
}

/// Undoes the kernel's octal escapes of blanks in mount tables.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_paths_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, kind: &str| {
            let path = dir.path().join(name).display().to_string();
            host_path(&HostPathVolumeSource { path, type_: Some(kind.into()) })
        };
        assert!(at("none", "").is_ok());
        assert!(at("none", "Directory").unwrap_err().contains("is not a directory"));
        assert!(at("made", "DirectoryOrCreate").is_ok());
        assert!(at("made", "Directory").is_ok());
        assert!(at("file", "FileOrCreate").is_ok());
        assert!(at("file", "File").is_ok());
        assert!(at("file", "Socket").unwrap_err().contains("is not a socket file"));
    }
}
