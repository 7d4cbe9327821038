//! Keeps the images of this node in bounds: which ones are used, and which go when the disk is full.
//!
//! Every few minutes, as kubelet does (`imageGCPeriod`), and whenever the use of images changes: what was
//! used while the disk was too full goes as soon as it is not.
//! Invariants: an image that a container, a volume or a pod of this node has is in use before it
//! could be removed.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::{record::Wanted, shared::Shared};
use crate::{mqtt::messages::ItemKind, runtime, tasks::CancellationToken};

/// Between two looks at the disk.
const PERIOD: Duration = Duration::from_mins(5);

/// Between two looks at what is used, however many pods start.
const SETTLE: Duration = Duration::from_millis(500);

/// Collects until told to stop.
pub async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut next = Instant::now();
    let mut short = false;
    loop {
        match in_use(&shared).await {
            Err(error) => tracing::error!(%error, "listing containers"),
            Ok(used) => {
                shared.images.set_in_use(used);
                let due = Instant::now() >= next;
                if due || short {
                    short = collect(&shared, due).await;
                }
            }
        }
        if Instant::now() >= next {
            next = Instant::now() + PERIOD;
        }
        // The pause comes after a look, so that the first of many pods is seen at once.
        let changed = async {
            tokio::time::sleep(SETTLE).await;
            shared.images_used.notified().await;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = changed => {}
            () = tokio::time::sleep_until(next) => {}
        }
    }
}

/// The ids of images that something on this node has, or is about to have.
async fn in_use(shared: &Shared) -> Result<BTreeSet<String>, runtime::Error> {
    let containers = shared.runtime.containers().await?;
    let mut trees: BTreeSet<Vec<PathBuf>> =
        containers.into_iter().map(|(spec, _)| spec.layers.clone()).collect();
    let mut used = BTreeSet::new();
    for item in shared.ledger.items(ItemKind::Pod) {
        let Ok(pod) = item.read::<Pod>() else { continue };
        let wanted = Wanted::new(pod);
        trees.extend(super::volumes::image_layers(&shared.pod_dir(&wanted.uid)));
        let containers = wanted.containers().filter_map(|(_, c)| c.image.clone());
        let volumes =
            wanted.spec.volumes.iter().flatten().filter_map(|v| v.image.as_ref()?.reference.clone());
        used.extend(containers.chain(volumes).filter_map(|name| Some(shared.images.find(&name)?.id.clone())));
    }
    // A tag may have moved on: what runs is told by its layers.
    let by_layers = shared.images.list().into_iter().filter(|image| trees.contains(&image.layers));
    used.extend(by_layers.map(|image| image.id.clone()));
    Ok(used)
}

/// Whether less could go than has to; with `tell` an Event says so.
async fn collect(shared: &Shared, tell: bool) -> bool {
    let (high, low) = (shared.options.image_gc_high_percent, shared.options.image_gc_low_percent);
    let say = |reason: &str, message: String| shared.node_event(true, reason, message);
    match shared.images.collect(high, low).await {
        Err(error) => {
            say("ImageGCFailed", error.to_string());
            false
        }
        Ok(done) => {
            if !done.images.is_empty() {
                tracing::info!(images = ?done.images, bytes = done.freed_bytes, "removed unused images: the disk is full");
            }
            let short = done.freed_bytes < done.wanted_bytes;
            if short && tell {
                say(
                    "FreeDiskSpaceFailed",
                    format!(
                        "Failed to garbage collect required amount of images. Attempted to free {} bytes, but only found {} bytes eligible to free.",
                        done.wanted_bytes, done.freed_bytes
                    ),
                );
            }
            short
        }
    }
}
