//! Image volumes: the files of an image, read-only.
//!
//! The layers are mounted below the pod's folder over an empty one, so that deletions in them count.

use std::{
    fs,
    os::{fd::AsRawFd, unix::fs::symlink},
    path::{Path, PathBuf},
    sync::Mutex,
};

use k8s_openapi::api::core::v1::ImageVolumeSource;
use nix::mount::MsFlags;

use super::{
    super::{
        launch::{self, Refusal},
        record::Wanted,
        shared::Shared,
    },
    Mounted, at, blocking, dir_of, is_mount_point,
};

/// Held while it is looked whether an image is mounted, and it is mounted: two would lie on each other.
static MOUNTING: Mutex<()> = Mutex::new(());

/// Makes an image's files ready, pulled when the policy says so.
///
/// # Errors
/// Why a container that has them cannot be started.
pub async fn ready(
    shared: &Shared,
    wanted: &Wanted,
    volume: &str,
    source: &ImageVolumeSource,
) -> Result<Mounted, Refusal> {
    let path = dir_of(shared, wanted, "image", volume);
    if is_mount_point(&path) {
        return Ok(Mounted { path, read_only: true });
    }
    let reference = source.reference.as_deref().unwrap_or_default();
    let latest =
        !reference.contains('@') && !reference.rsplit('/').next().is_some_and(|name| name.contains(':'));
    let latest = latest || reference.ends_with(":latest");
    let policy = source.pull_policy.as_deref().unwrap_or(if latest { "Always" } else { "IfNotPresent" });
    let of_volume = |refusal| Refusal { image: Some(reference.to_owned()), ..refusal };
    let image = launch::fetch(shared, wanted, None, reference, policy).await.map_err(of_volume)?;
    let (target, layers) = (path.clone(), image.layers.clone());
    blocking(move || mount(&layers, &target)).await.map_err(launch::create_error)?;
    Ok(Mounted { path, read_only: true })
}

/// The layers of the image volumes of a pod, by its folder: one list a volume, the lowest layer first.
pub fn layers(pod_dir: &Path) -> Vec<Vec<PathBuf>> {
    let volumes = fs::read_dir(pod_dir.join("volumes/kubernetes.io~image")).into_iter().flatten().flatten();
    let links = volumes.map(|entry| entry.path()).filter(|p| p.extension().is_some_and(|e| e == "layers"));
    links
        .map(|links| {
            // The topmost is number 0.
            let mut layers: Vec<PathBuf> =
                (0..).map_while(|n: u32| fs::read_link(links.join(n.to_string())).ok()).collect();
            layers.reverse();
            layers
        })
        .collect()
}

/// Mounts layers, the lowest first, at `target`. They are named by short links behind a descriptor,
/// so that many of them fit into mount(2)'s one page.
fn mount(layers: &[PathBuf], target: &Path) -> Result<(), String> {
    // Containers of a pod are made ready side by side.
    let _one = MOUNTING.lock().expect("no holder of the mounting lock panics");
    if is_mount_point(target) {
        return Ok(());
    }
    fs::create_dir_all(target).map_err(at("mkdir", target))?;
    let links = target.with_extension("layers");
    // Of an earlier try.
    let _ = fs::remove_dir_all(&links);
    fs::create_dir_all(links.join("e")).map_err(at("mkdir", &links))?;
    let folder = fs::File::open(&links).map_err(at("open", &links))?;
    let short = format!("/proc/self/fd/{}", folder.as_raw_fd());
    let mut lower = Vec::new();
    for (n, layer) in layers.iter().rev().enumerate() {
        symlink(layer, links.join(n.to_string())).map_err(at("symlink", &links))?;
        lower.push(format!("{short}/{n}"));
    }
    lower.push(format!("{short}/e"));
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let options = format!("lowerdir={}", lower.join(":"));
    nix::mount::mount(Some("overlay"), target, Some("overlay"), flags, Some(options.as_str()))
        .map_err(|error| format!("mounting the image's layers at {}: {error}", target.display()))
}
