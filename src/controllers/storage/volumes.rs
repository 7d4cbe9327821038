//! Volumes: their phase, and what becomes of them when their claim is gone.
//!
//! Watches: volumes and claims.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};

use serde_json::json;

use super::{
    super::{
        owner,
        plan::{Note, Plan},
        runner::{Controller, Round, Source},
    },
    local_path,
};
use crate::{
    kinds::volumes::{self, BOUND_BY_CONTROLLER, PROVISIONED_BY},
    objects::Objects,
    store::{Key, Object},
};

pub struct VolumeController;

impl Controller for VolumeController {
    fn name(&self) -> &'static str {
        "persistentvolume-controller"
    }

    fn primary(&self) -> &'static str {
        "persistentvolumes"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::new("persistentvolumeclaims", |objects, claim: &Object| {
                let named =
                    claim.typed::<PersistentVolumeClaim>().spec.as_ref().and_then(|s| s.volume_name.clone());
                let refers = |volume: &PersistentVolume| {
                    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
                    reference.is_some_and(|r| {
                        r.name.as_deref() == Some(&claim.key.name)
                            && r.namespace.as_deref() == Some(&claim.key.namespace)
                    })
                };
                let volumes = objects.store().list("persistentvolumes", None).items;
                volumes
                    .iter()
                    .filter(|v| named.as_deref() == Some(&v.key.name) || refers(&v.typed()))
                    .map(|v| v.key.clone())
                    .collect()
            }),
            Source::new("nodes", |objects, node: &Object| {
                if objects.store().get(&node.key).is_some() {
                    return Vec::new();
                }
                let volumes = objects.store().list("persistentvolumes", None).items;
                volumes.iter().filter(|v| v.meta.deleting).map(|v| v.key.clone()).collect()
            }),
        ]
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        let Some(volume) = objects.get_typed::<PersistentVolume>("", &key.name) else {
            return Plan::default();
        };
        let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.clone()).unwrap_or_default();
        let (namespace, name) = (reference.namespace.unwrap_or_default(), reference.name.unwrap_or_default());
        let claim = objects.get_typed::<PersistentVolumeClaim>(&namespace, &name);
        let node_gone = volumes::local_path_node(&volume)
            .is_some_and(|node| objects.get_typed::<Node>("", node).is_none());
        reconcile(&volume, claim.as_deref(), node_gone, round.now)
    }
}

/// Upstream's `syncVolume` (`pkg/controller/volume/persistentvolume/pv_controller.go`).
pub fn reconcile(
    volume: &PersistentVolume,
    claim: Option<&PersistentVolumeClaim>,
    node_gone: bool,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::about(volume);
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    let uid = reference.and_then(|r| r.uid.as_deref()).unwrap_or_default();
    let same = claim.filter(|claim| owner::uid(&claim.metadata) == uid);
    match (reference, same) {
        (None, _) => set_phase(volume, "Available", None, now, &mut plan),
        (Some(_), _) if uid.is_empty() => set_phase(volume, "Available", None, now, &mut plan),
        (Some(_), Some(claim)) => {
            let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
            if named == owner::name(&volume.metadata) {
                set_phase(volume, "Bound", None, now, &mut plan);
            } else if !named.is_empty() {
                bound_elsewhere(volume, now, &mut plan);
            }
        }
        (Some(_), None) => reclaim(volume, now, &mut plan),
    }
    if volume.metadata.deletion_timestamp.is_some() {
        let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
        // Whatever was in the folder is as gone as its node; and what is retained is not removed.
        if node_gone || policy != Some("Delete") {
            local_path::forget(volume, &mut plan);
        }
    }
    plan
}

/// The claim has another volume by now: this one is free again, or of no use.
fn bound_elsewhere(volume: &PersistentVolume, now: Timestamp, plan: &mut Plan) {
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    let provisioned = owner::annotation(&volume.metadata, PROVISIONED_BY).is_some();
    if provisioned && policy == Some("Delete") {
        return reclaim(volume, now, plan);
    }
    if owner::annotation(&volume.metadata, BOUND_BY_CONTROLLER).is_some() {
        plan.merge_at(
            volume,
            json!({ "spec": { "claimRef": null }, "metadata": { "annotations": { BOUND_BY_CONTROLLER: null } } }),
        );
    } else {
        plan.merge_at(volume, json!({ "spec": { "claimRef": { "uid": null, "resourceVersion": null } } }));
    }
    set_phase(volume, "Available", None, now, plan);
}

fn current(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Available")
}

/// The claim is gone: `Retain` keeps the volume as it is, `Delete` has its maker take it away.
fn reclaim(volume: &PersistentVolume, now: Timestamp, plan: &mut Plan) {
    let spec = volume.spec.as_ref();
    let policy = spec.and_then(|s| s.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain");
    let name = owner::name(&volume.metadata);
    match policy {
        "Delete" if volumes::is_local_path(volume) => {
            set_phase(volume, "Released", None, now, plan);
            if volume.metadata.deletion_timestamp.is_none() {
                plan.delete(volume, None, None);
            }
        }
        "Delete" if owner::annotation(&volume.metadata, PROVISIONED_BY).is_some() => {
            // Whoever made it watches for this phase.
            set_phase(volume, "Released", None, now, plan);
        }
        "Delete" => {
            let message = match spec.and_then(|s| s.host_path.as_ref()) {
                Some(host) => {
                    format!("host_path deleter only supports /tmp/.+ but received provided {}", host.path)
                }
                None => format!(
                    "error getting deleter volume plugin for volume {name:?}: no deletable volume plugin matched"
                ),
            };
            fail(volume, "VolumeFailedDelete", message, now, plan);
        }
        "Recycle" => {
            let message = "No recycler plugin found for the volume!".to_owned();
            fail(volume, "VolumeFailedRecycle", message, now, plan);
        }
        _ => set_phase(volume, "Released", None, now, plan),
    }
}

fn fail(volume: &PersistentVolume, reason: &'static str, message: String, now: Timestamp, plan: &mut Plan) {
    if current(volume) != "Failed" {
        plan.event(Note::warning(reason, message.clone()));
    }
    set_phase(volume, "Failed", Some(message), now, plan);
}

fn set_phase(
    volume: &PersistentVolume,
    phase: &str,
    message: Option<String>,
    now: Timestamp,
    plan: &mut Plan,
) {
    let old = volume.status.clone().unwrap_or_default();
    let moved = old.phase.as_deref() != Some(phase);
    let new = PersistentVolumeStatus {
        phase: Some(phase.into()),
        message,
        last_phase_transition_time: if moved { Some(Time(now)) } else { old.last_phase_transition_time },
        reason: None,
    };
    plan.status(volume, volume.status.as_ref(), &new);
}
