//! Volumes of a pod: made ready on the node, shown to containers, kept fresh, taken away.
//!
//! In: the pod's volumes, ConfigMaps, Secrets, claims and tokens from the ledger. Out: a path a
//! volume, and [`Mount`]s a container.
//! Invariants: contents of configMap, secret, projected and downwardAPI volumes change as one
//! (symlink swap); a subPath never leaves its volume; teardown is idempotent and reports all
//! failures.
//! Deliberately absent: storage drivers (CSI), mount helpers, raw devices.

mod claim;
mod content;
mod empty;
mod host;
mod image;
mod modules;
mod nfs;
mod ownership;
pub mod payload;
mod propagation;
mod quota;
mod subpath;
mod sys;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Container, HostPathVolumeSource, Volume};
use nix::mount::{MntFlags, MsFlags};

pub use content::Token;
pub use image::layers as image_layers;
pub use propagation::check as check_propagation;
pub use subpath::read as read_inside;

use super::{env, launch::Refusal, memory, record::Wanted, shared::Shared};
use crate::{
    crash,
    runtime::{Mount, Propagation, reason},
};

/// What all volumes in memory that the node fills may take of the board's memory.
const MEMORY_PERCENT: u32 = 25;
/// How long a mount of a network file system is waited for.
const MOUNT_WAIT: Duration = Duration::from_secs(30);

/// The steps of a mount that upstream's kubelet names.
const PLACE: &str = "NodeAffinity check";
const LOOK: &str = "NewMounter initialization";
const OPTIONS: &str = "MountOptionSupport check";
const SET_UP: &str = "SetUp";

/// A volume that is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    pub path: PathBuf,
    pub read_only: bool,
}

fn dir_of(shared: &Shared, wanted: &Wanted, plugin: &str, volume: &str) -> PathBuf {
    shared.pod_dir(&wanted.uid).join("volumes").join(format!("kubernetes.io~{plugin}")).join(volume)
}

/// Where the contents of a configMap, secret, downwardAPI or projected volume are. A pod that an older daemon
/// has started sees what it was shown on the disk.
fn place(shared: &Shared, wanted: &Wanted, plugin: &str, volume: &str) -> PathBuf {
    let on_disk = dir_of(shared, wanted, plugin, volume);
    match memory_of(shared, &wanted.uid) {
        Some(memory) if content::in_memory(plugin) && !on_disk.exists() => memory.join(plugin).join(volume),
        _ => on_disk,
    }
}

/// The pod's part of the node's memory for volumes.
fn memory_of(shared: &Shared, uid: &str) -> Option<PathBuf> {
    shared.options.memory_volumes.as_ref().map(|root| root.join(uid))
}

/// An error of a call on a path, as Go tells it.
fn at(call: &'static str, path: &Path) -> impl Fn(std::io::Error) -> String {
    move |error| format!("{call} {}: {}", path.display(), reason(&error))
}

/// Why a volume is not ready.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// Nobody knows yet what it is: its claim is not there, or not bound.
    Unresolved(String),
    /// It cannot be had now. What a claim leads to has a name of its own.
    Mount { step: &'static str, name: Option<String>, error: String },
}

/// Makes every volume ready that the pod uses. `tokens` gives service account tokens; `runs` says that
/// the pod is there already.
///
/// # Errors
/// The messages of `FailedMount` events: one volume's failure keeps no other from being tried.
pub async fn set_up(
    shared: &Shared,
    wanted: &Wanted,
    ip: Option<std::net::Ipv4Addr>,
    tokens: &[Token],
    runs: bool,
) -> Result<BTreeMap<String, Mounted>, Vec<String>> {
    let (mut ready, mut failures) = (BTreeMap::new(), BTreeMap::new());
    for volume in wanted.volumes() {
        match one(shared, wanted, volume, ip, tokens, runs).await {
            Ok(mounted) => drop(ready.insert(volume.name.clone(), mounted)),
            Err(failure) => drop(failures.insert(volume.name.as_str(), failure)),
        }
        crash::point(crash::DAEMON);
    }
    if !failures.is_empty() {
        return Err(complaints(&failures));
    }
    if let Err(error) = content::keep(shared, wanted, tokens) {
        tracing::warn!(pod = wanted.full_name(), %error, "keeping tokens for a boot without a master");
    }
    Ok(ready)
}

/// What is told of volumes that are not ready, in upstream's words (`pkg/kubelet/volumemanager`,
/// `pkg/volume/util/operationexecutor`).
fn complaints(failures: &BTreeMap<&str, Failure>) -> Vec<String> {
    let mut unresolved = (Vec::new(), Vec::new());
    let mut all = Vec::new();
    for (volume, failure) in failures {
        match failure {
            Failure::Unresolved(why) => {
                unresolved.0.push(*volume);
                unresolved.1.push(why.as_str());
            }
            Failure::Mount { step, name, error } => {
                let name = name.as_deref().unwrap_or(volume);
                all.push(format!("MountVolume.{step} failed for volume {name:?} : {error}"));
            }
        }
    }
    let (names, reasons) = unresolved;
    if !names.is_empty() {
        let unmounted: Vec<&str> = failures.keys().copied().collect();
        all.push(format!(
            "Unable to attach or mount volumes: unmounted volumes=[{}], unattached volumes=[], failed to process volumes=[{}]: {}",
            unmounted.join(" "),
            names.join(" "),
            reasons.join("; ")
        ));
    }
    all
}

async fn one(
    shared: &Shared,
    wanted: &Wanted,
    volume: &Volume,
    ip: Option<std::net::Ipv4Addr>,
    tokens: &[Token],
    runs: bool,
) -> Result<Mounted, Failure> {
    let plain = |error: String| Failure::Mount { step: SET_UP, name: None, error };
    let (claim, read_only) = match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => (source.claim_name.clone(), source.read_only == Some(true)),
        (None, Some(_)) => (format!("{}-{}", wanted.name, volume.name), false),
        (None, None) => return own(shared, wanted, volume, ip, tokens, runs).await.map_err(plain),
    };
    let found = claim::find(shared, wanted, volume, &claim, runs).map_err(Failure::Unresolved)?;
    let name = found.name.clone();
    let failed = |step| {
        let name = Some(name.clone());
        move |error| Failure::Mount { step, name, error }
    };
    if !runs {
        claim::belongs(&found, &shared.node()).map_err(failed(PLACE))?;
    }
    claim::look(shared, wanted, &found).await.map_err(failed(LOOK))?;
    claim::takes_options(&found).map_err(failed(OPTIONS))?;
    claim::ready(shared, wanted, found, &claim, read_only).await.map_err(failed(SET_UP))
}

/// A volume that the pod itself describes.
async fn own(
    shared: &Shared,
    wanted: &Wanted,
    volume: &Volume,
    ip: Option<std::net::Ipv4Addr>,
    tokens: &[Token],
    runs: bool,
) -> Result<Mounted, String> {
    if let Some(plugin) = content::plugin(volume) {
        let files = content::files(shared, wanted, volume, ip, tokens)?;
        if !runs && shared.options.memory_volumes.is_some() && content::in_memory(plugin) {
            // Of an older daemon.
            let _ = tokio::fs::remove_dir_all(dir_of(shared, wanted, plugin, &volume.name)).await;
        }
        let path = place(shared, wanted, plugin, &volume.name);
        write(shared, wanted, &volume.name, &path, files).await?;
        return Ok(Mounted { path, read_only: true });
    }
    if let Some(source) = &volume.empty_dir {
        let path = dir_of(shared, wanted, "empty-dir", &volume.name);
        let group = payload::Group::of(wanted).map(payload::Group::always);
        let node_bytes = u64::try_from(shared.memory_capacity()).unwrap_or(0);
        let memory = empty::memory_bytes(source, &wanted.spec, node_bytes);
        let (source, made, spec) = (source.clone(), path.clone(), wanted.spec.clone());
        blocking(move || {
            empty::make(&made, &source, memory, &spec)?;
            group.map_or(Ok(()), |group| payload::own(&made, group, false).map_err(at("lchown", &made)))
        })
        .await?;
        return Ok(Mounted { path, read_only: false });
    }
    if let Some(source) = &volume.host_path {
        let path = PathBuf::from(&source.path);
        host_path(shared, wanted, &volume.name, source.clone()).await?;
        return Ok(Mounted { path, read_only: false });
    }
    if let Some(source) = &volume.nfs {
        let path = dir_of(shared, wanted, "nfs", &volume.name);
        let export = nfs::Export {
            server: source.server.clone(),
            path: source.path.clone(),
            read_only: source.read_only == Some(true),
            options: Vec::new(),
        };
        let read_only = export.read_only;
        mount_nfs(shared, export, &path).await?;
        return Ok(Mounted { path, read_only });
    }
    let given = serde_json::to_value(volume).unwrap_or_default();
    let kind = given.as_object().and_then(|o| o.keys().find(|k| *k != "name").cloned()).unwrap_or_default();
    Err(format!("volumes of type {kind:?} are not supported by Sampan"))
}

/// The image volumes of one container, ready.
///
/// # Errors
/// Why the container cannot be started (`toKubeContainerImageVolumes`).
pub async fn images(
    shared: &Shared,
    wanted: &Wanted,
    container: &Container,
) -> Result<BTreeMap<String, Mounted>, Refusal> {
    let mut ready = BTreeMap::new();
    for volume in wanted.spec.volumes.iter().flatten() {
        let Some(source) = &volume.image else { continue };
        if container.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name) {
            ready.insert(volume.name.clone(), image::ready(shared, wanted, &volume.name, source).await?);
        }
    }
    Ok(ready)
}

/// Mounts an export.
async fn mount_nfs(shared: &Shared, export: nfs::Export, path: &Path) -> Result<(), String> {
    if is_mount_point(path) {
        return Ok(());
    }
    let what = format!("mounting {}:{}", export.server, export.path);
    let (target, undone) = (path.to_owned(), path.to_owned());
    let mount = move || {
        std::fs::create_dir_all(&target).map_err(at("mkdir", &target))?;
        nfs::mount(&export, &target)
    };
    patiently(shared, path, &what, mount, move || {
        // The pod may be gone meanwhile; its next try mounts anew.
        let _ = nix::mount::umount2(&undone, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_dir(&undone);
    })
    .await
}

/// Does what may wait for a file system that is silent. It holds nobody else up: it has a thread of its
/// own, is not begun a second time meanwhile (`key` tells what it is), and is undone when it comes back
/// too late.
async fn patiently(
    shared: &Shared,
    key: &Path,
    what: &str,
    work: impl FnOnce() -> Result<(), String> + Send + 'static,
    undo: impl FnOnce() + Send + 'static,
) -> Result<(), String> {
    let silent =
        || format!("{what} has not come back for {} s: the file system is silent", MOUNT_WAIT.as_secs());
    if !shared.mounting().insert(key.to_owned()) {
        return Err(silent());
    }
    let (sender, done) = tokio::sync::oneshot::channel();
    let (own_key, mounting) = (key.to_owned(), std::sync::Arc::clone(&shared.mounting));
    let begun = std::thread::Builder::new().name("mount".to_owned()).spawn(move || {
        let result = work();
        let worked = result.is_ok();
        if sender.send(result).is_err() && worked {
            undo();
        }
        mounting.lock().expect("no holder of the mounts' lock panics").remove(&own_key);
    });
    if let Err(error) = begun {
        shared.mounting().remove(key);
        return Err(format!("{what}: {error}"));
    }
    match tokio::time::timeout(MOUNT_WAIT, done).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(format!("{what} came to nothing")),
        Err(_) => Err(silent()),
    }
}

/// Makes a path of the host ready.
async fn host_path(
    shared: &Shared,
    wanted: &Wanted,
    name: &str,
    source: HostPathVolumeSource,
) -> Result<(), String> {
    let what = format!("looking at {:?}", source.path);
    let key = dir_of(shared, wanted, "host-path", name);
    patiently(shared, &key, &what, move || host::prepare(&source), || ()).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?
}

async fn write(
    shared: &Shared,
    wanted: &Wanted,
    volume: &str,
    path: &Path,
    files: payload::Files,
) -> Result<bool, String> {
    let (path, group) = (path.to_owned(), payload::Group::of(wanted));
    let memory = shared.options.memory_volumes.clone().filter(|root| path.starts_with(root));
    let below = mounted_below(wanted, volume);
    blocking(move || {
        // The root of a tmpfs has the sticky bit.
        let mode = if memory.is_some() { 0o1777 } else { 0o777 };
        if let Some(root) = memory {
            let options = format!("mode=700,size={MEMORY_PERCENT}%");
            let mount = |options: &str| memory::tmpfs("tmpfs", &root, MsFlags::empty(), options);
            memory::keep(&root, || memory::unswapped(&options, mount)).map_err(at("mount", &root))?;
        }
        for folder in below {
            let folder = path.join(folder);
            std::fs::create_dir_all(&folder).map_err(at("mkdir", &folder))?;
        }
        payload::write(&path, &files, mode, group).map_err(at("write", &path))
    })
    .await
}

/// Where containers that have this volume mount others below it, relative to it: nothing can be made there
/// any more once it is mounted read-only (`pkg/volume/util/nested_volumes.go`).
fn mounted_below(wanted: &Wanted, volume: &str) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for (_, container) in wanted.containers() {
        let mounts = || container.volume_mounts.iter().flatten();
        let places: BTreeSet<PathBuf> =
            mounts().map(|m| Path::new(&m.mount_path).components().collect()).collect();
        for mount in mounts().filter(|mount| mount.name == volume && mount.sub_path.is_none()) {
            // Parents come before what is in them.
            let mut above: Option<&Path> = None;
            for place in &places {
                let Ok(below) = place.strip_prefix(&mount.mount_path) else { continue };
                let plain = below.components().all(|c| matches!(c, std::path::Component::Normal(_)));
                if below.as_os_str().is_empty()
                    || !plain
                    || above.is_some_and(|above| place.starts_with(above))
                {
                    continue;
                }
                above = Some(place);
                found.insert(below.to_owned());
            }
        }
    }
    found
}

/// Brings the contents of a pod's volumes up to date; says whether anything changed.
///
/// # Errors
/// The messages of `FailedMount` events: what could not be read or written, whose old contents stay.
pub async fn refresh(
    shared: &Shared,
    wanted: &Wanted,
    ip: Option<std::net::Ipv4Addr>,
    tokens: &[Token],
) -> Result<bool, Vec<String>> {
    claim::resize(shared, &wanted.uid).await;
    let (mut changed, mut failures) = (false, BTreeMap::new());
    for volume in wanted.volumes() {
        let Some(plugin) = content::plugin(volume) else { continue };
        let path = place(shared, wanted, plugin, &volume.name);
        let written = match content::files(shared, wanted, volume, ip, tokens) {
            Ok(files) => write(shared, wanted, &volume.name, &path, files).await,
            Err(error) => Err(error),
        };
        match written {
            Ok(more) => changed |= more,
            Err(error) => {
                failures.insert(volume.name.as_str(), Failure::Mount { step: SET_UP, name: None, error });
            }
        }
    }
    if failures.is_empty() { Ok(changed) } else { Err(complaints(&failures)) }
}

/// The tokens that the pod's projected volumes need, with what is on disk already.
pub fn tokens_needed(shared: &Shared, wanted: &Wanted) -> Vec<Token> {
    content::tokens(shared, wanted)
}

/// Whether something is mounted on exactly this folder. Asks the mount table: a stat would wait for
/// a server that is silent.
fn is_mount_point(path: &Path) -> bool {
    mount_points().any(|point| point == path)
}

/// The mount points of this process.
fn mount_points() -> impl Iterator<Item = PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points: Vec<PathBuf> =
        table.lines().filter_map(|line| line.split(' ').nth(4)).map(|p| PathBuf::from(unescape(p))).collect();
    points.into_iter()
}

/// The mounts of one container. `lookup` knows the values of `$(NAME)` in `subPathExpr`.
///
/// # Errors
/// The message of a `CreateContainerConfigError`.
pub async fn mounts(
    shared: &Shared,
    wanted: &Wanted,
    container: &Container,
    mounted: &BTreeMap<String, Mounted>,
    lookup: &(dyn Fn(&str) -> Option<String> + Send + Sync),
) -> Result<Vec<Mount>, String> {
    let mut out = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = mounted.get(&mount.name).ok_or_else(|| {
            format!("volume {:?} of the mount at {} is not there", mount.name, mount.mount_path)
        })?;
        let sub = match mount.sub_path_expr.as_deref().filter(|expr| !expr.is_empty()) {
            Some(expr) => Some(env::expand_path(expr, lookup)?),
            None => mount.sub_path.clone(),
        };
        let pins = shared.pod_dir(&wanted.uid).join("volume-subpaths").join(&mount.name);
        let pin = pins.join(&container.name).join(index.to_string());
        let base = volume.path.clone();
        if is_of_host(shared, wanted, &base) {
            let (what, part) = (format!("looking at {:?}", base.display().to_string()), sub.is_some());
            let base = base.clone();
            patiently(shared, &pin, &what, move || host::source(&base, part), || ()).await?;
        }
        let source = match sub.filter(|s| !s.is_empty()) {
            None => base,
            Some(sub) => {
                check_sub_path(&sub)?;
                blocking(move || {
                    subpath::pin(&base, Path::new(&sub), &pin).map(|()| pin).map_err(|e| e.to_string())
                })
                .await
                .map_err(|error| {
                    tracing::warn!(
                        pod = wanted.full_name(),
                        volume = mount.name,
                        error,
                        "preparing a subPath"
                    );
                    // The node's files are nobody's business in an event.
                    format!(
                        "failed to prepare subPath for volumeMount {:?} of container {:?}",
                        mount.name, container.name
                    )
                })?
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

/// Whether a volume is a path of the host, and no folder of ours.
fn is_of_host(shared: &Shared, wanted: &Wanted, path: &Path) -> bool {
    let memory = memory_of(shared, &wanted.uid);
    !path.starts_with(shared.pod_dir(&wanted.uid)) && memory.is_none_or(|memory| !path.starts_with(memory))
}

/// Refuses a part that is not below its volume (`pkg/kubelet/kubelet_pods.go`, `makeMounts`).
fn check_sub_path(sub: &str) -> Result<(), String> {
    if sub.starts_with('/') {
        return Err(format!("error SubPath `{sub}` must not be an absolute path"));
    }
    if sub.split('/').any(|part| part == "..") {
        return Err(format!("unable to provision SubPath `{sub}`: must not contain '..'"));
    }
    Ok(())
}

/// Unmounts and removes everything below the pod's folder that is not the pod's own data
/// elsewhere. Goes on past failures.
///
/// # Errors
/// All that failed.
pub async fn tear_down(shared: &Shared, uid: &str, remove: bool) -> Result<(), String> {
    let (dir, memory) = (shared.pod_dir(uid), memory_of(shared, uid));
    let done = blocking(move || {
        let mut failures = Vec::new();
        let take_away = |dir: &Path| match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Some(format!("remove {}: {error}", dir.display()))
            }
            _ => None,
        };
        for point in mounts_below(&dir) {
            if let Err(error) = nix::mount::umount2(&point, MntFlags::MNT_DETACH) {
                failures.push(format!("unmount {}: {error}", point.display()));
            }
        }
        crash::point(crash::DAEMON);
        // Nothing is removed through a mount that is still there.
        if remove && failures.is_empty() {
            failures.extend(take_away(&dir));
        }
        failures.extend(memory.and_then(|memory| take_away(&memory)));
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    })
    .await;
    if done.is_ok() && shared.volumes_in_use().remove(uid).is_some() {
        shared.folders_changed.notify_one();
    }
    done
}

/// The mount points below a folder, the deepest first.
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let mut below: Vec<PathBuf> = mount_points().filter(|p| p.starts_with(dir) && p != dir).collect();
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
    fn places_below_a_volume_are_known_before_it_is_read_only() {
        let wanted = Wanted::new(
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
                "spec": {
                    "initContainers": [{"name": "i", "volumeMounts": [
                        {"name": "v", "mountPath": "/etc/app/"}, {"name": "w", "mountPath": "/etc/app/certs"},
                        {"name": "w", "mountPath": "/etc/apples"},
                    ]}],
                    "containers": [{"name": "c", "volumeMounts": [
                        {"name": "w", "mountPath": "/cfg/a/b"}, {"name": "w", "mountPath": "/cfg/a"},
                        {"name": "w", "mountPath": "/cfg/a-b"}, {"name": "v", "mountPath": "/cfg"},
                        {"name": "v", "mountPath": "/part", "subPath": "x"}, {"name": "w", "mountPath": "/part/y"},
                    ]}],
                },
            }))
            .unwrap(),
        );
        let below = |volume| mounted_below(&wanted, volume).into_iter().collect::<Vec<_>>();
        assert_eq!(below("v"), ["a", "a-b", "certs"].map(PathBuf::from));
        assert_eq!(below("w"), ["b"].map(PathBuf::from));
    }

    #[test]
    fn what_cannot_be_mounted_is_told_as_upstream_does() {
        let unresolved = |why: &str| Failure::Unresolved(why.to_owned());
        let set_up = |name: Option<&str>, error: &str| Failure::Mount {
            step: SET_UP,
            name: name.map(str::to_owned),
            error: error.to_owned(),
        };
        let one = BTreeMap::from([("cfg", set_up(None, "configmap \"c\" not found"))]);
        assert_eq!(
            complaints(&one),
            ["MountVolume.SetUp failed for volume \"cfg\" : configmap \"c\" not found"]
        );
        let all = BTreeMap::from([
            ("logs", unresolved("error processing PVC ns/logs: PVC is not bound")),
            ("data", unresolved("error processing PVC ns/data: PVC is being deleted")),
            ("share", set_up(Some("pv-1"), "the file system is silent")),
            (
                "there",
                Failure::Mount { step: LOOK, name: None, error: "path \"/x\" does not exist".to_owned() },
            ),
        ]);
        assert_eq!(
            complaints(&all),
            [
                "MountVolume.SetUp failed for volume \"pv-1\" : the file system is silent",
                "MountVolume.NewMounter initialization failed for volume \"there\" : path \"/x\" does not exist",
                "Unable to attach or mount volumes: unmounted volumes=[data logs share there], unattached volumes=[], \
                 failed to process volumes=[data logs]: error processing PVC ns/data: PVC is being deleted; \
                 error processing PVC ns/logs: PVC is not bound",
            ]
        );
    }
}
