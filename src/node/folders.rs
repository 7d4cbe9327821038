//! Folders of `local-path` volumes on this node: made for the first pod that mounts one, held to
//! their size where the file system can, removed when their volume is deleted.
//!
//! In: the PersistentVolumes of the ledger. Out: folders below [`Options::local_volumes`]; a word to the
//! master for each that is gone, on which the volume's finalizer goes.
//! Invariants: only a direct child of the root, named after its volume, is ever removed, and only
//! when no pod uses it; removing is begun anew until the master has heard of it.
//!
//! [`Options::local_volumes`]: super::shared::Options

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};

use super::shared::Shared;
use crate::{
    kinds::volumes,
    mqtt::messages::{Answer, Ask, ItemKind},
    tasks::CancellationToken,
};

/// Between two tries to remove a folder.
const RETRY: Duration = Duration::from_secs(10);

/// Removes folders until told to stop.
pub async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let again = sweep(&shared).await;
        let pause = async {
            if again {
                tokio::time::sleep(RETRY).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.folders_changed.notified() => {}
            () = pause => {}
        }
    }
}

/// Removes what can be removed now; says whether anything has to be tried again.
async fn sweep(shared: &Shared) -> bool {
    let mut again = false;
    for item in shared.ledger.items(ItemKind::PersistentVolume) {
        let Ok(volume) = item.read::<PersistentVolume>() else { continue };
        let ours = volumes::local_path_node(&volume) == Some(&shared.options.node);
        if !ours || !volumes::local_path_doomed(&volume) {
            continue;
        }
        let name = volume.metadata.name.clone().unwrap_or_default();
        if in_use(shared, &name) {
            // The end of the pod is a change that is told.
            continue;
        }
        if let Err(error) = remove(shared, &volume, &name).await {
            shared.node_event(true, "VolumeFailedDelete", format!("volume {name:?}: {error}"));
            again = true;
        }
    }
    again
}

/// Whether a pod of this node has, or is to have, the volume.
fn in_use(shared: &Shared, name: &str) -> bool {
    if shared.volumes_in_use().values().any(|volumes| volumes.contains_key(name)) {
        return true;
    }
    let refers = |namespace: &str, pod: &Pod| {
        let spec = pod.spec.as_ref();
        let claims = spec
            .iter()
            .flat_map(|s| s.volumes.iter().flatten())
            .filter_map(|v| v.persistent_volume_claim.as_ref().map(|c| c.claim_name.as_str()));
        let of = |claim: &str| -> Option<String> {
            let claim: PersistentVolumeClaim =
                shared.ledger.object(ItemKind::PersistentVolumeClaim, namespace, claim)?;
            claim.spec?.volume_name
        };
        claims.filter_map(of).any(|volume| volume == name)
    };
    let pods = shared.ledger.items(ItemKind::Pod);
    pods.iter().any(|item| item.read::<Pod>().is_ok_and(|pod| refers(&item.key.namespace, &pod)))
}

async fn remove(shared: &Shared, volume: &PersistentVolume, name: &str) -> Result<(), String> {
    let path = volume.spec.as_ref().and_then(|s| s.host_path.as_ref()).map(|h| PathBuf::from(&h.path));
    let path = path.ok_or("the volume has no folder")?;
    check(&shared.options.local_volumes, &path, name)?;
    let gone = path.clone();
    let removed = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&gone) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("remove {}: {error}", gone.display()))
        }
        _ => Ok(()),
    });
    removed.await.map_err(|e| e.to_string())??;
    tracing::info!(volume = name, path = %path.display(), "removed the folder of a deleted volume");
    let uid = volume.metadata.uid.clone().unwrap_or_default();
    match shared.asks.ask(Ask::FolderRemoved { volume: name.to_owned(), uid }).await? {
        Answer::Done => Ok(()),
        other => Err(format!("the master answered {other:?}")),
    }
}

/// A folder that may be removed for a volume: a direct child of the root with the volume's name in
/// front. What a user wrote into the object does not matter.
fn check(root: &Path, path: &Path, volume: &str) -> Result<(), String> {
    let named = path
        .file_name()
        .and_then(|n| n.to_str())
        .is_some_and(|n| n.strip_prefix(volume).is_some_and(|rest| rest.is_empty() || rest.starts_with('_')));
    if !volume.is_empty() && named && path.parent() == Some(root) {
        Ok(())
    } else {
        Err(format!("{} is not a folder of volume {volume} below {}", path.display(), root.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_volumes_own_folder_is_removed() {
        let root = Path::new("/data/volumes");
        for (path, volume, allowed) in [
            ("/data/volumes/pvc-1_ns_c", "pvc-1", true),
            ("/data/volumes/pvc-1", "pvc-1", true),
            ("/data/volumes/pvc-12_ns_c", "pvc-1", false),
            ("/data/volumes/pvc-1_x/y", "pvc-1", false),
            ("/data/volumes/../pvc-1", "pvc-1", false),
            ("/data/volumes/pvc-1/..", "pvc-1", false),
            ("/data/volumes", "", false),
            ("/etc", "etc", false),
        ] {
            assert_eq!(check(root, Path::new(path), volume).is_ok(), allowed, "{path}");
        }
    }
}
