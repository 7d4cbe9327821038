//! Volumes: their phase, and what becomes of them when their claim is gone.
//!
//! Watches: volumes and claims.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    super::{
        owner,
        plan::{Note, Plan},
        runner::{Controller, Round, Source},
    },
    PROVISIONED_BY, local_path,
};
use crate::{
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
        let node_gone =
            local_path::node(&volume).is_some_and(|node| objects.get_typed::<Node>("", node).is_none());
        reconcile(&volume, claim.as_deref(), node_gone, round.now)
    }
}

pub fn reconcile(
    volume: &PersistentVolume,
    claim: Option<&PersistentVolumeClaim>,
    node_gone: bool,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::about(volume);
    if volume.metadata.deletion_timestamp.is_some() {
        if node_gone {
            // Whatever was in the folder is as gone as its node.
            local_path::forget(volume, &mut plan);
        }
        return plan;
    }
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    let uid = reference.and_then(|r| r.uid.as_deref()).unwrap_or_default();
    let same = claim.filter(|claim| owner::uid(&claim.metadata) == uid);
    let (phase, message) = match (reference, same) {
        (None, _) => ("Available", None),
        (Some(_), _) if uid.is_empty() => ("Available", None),
        (Some(_), Some(claim)) => {
            let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
            if named == owner::name(&volume.metadata) { ("Bound", None) } else { (current(volume), None) }
        }
        (Some(_), None) => return reclaim(volume, now, plan),
    };
    set_phase(volume, phase, message, now, &mut plan);
    plan
}

fn current(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Available")
}

/// The claim is gone: `Retain` keeps the volume as it is, `Delete` has its maker take it away.
fn reclaim(volume: &PersistentVolume, now: Timestamp, mut plan: Plan) -> Plan {
    let policy =
        volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain");
    match policy {
        "Delete" if local_path::is_own(volume) => {
            set_phase(volume, "Released", None, now, &mut plan);
            plan.delete(volume, None, None);
        }
        "Delete" if owner::annotation(&volume.metadata, PROVISIONED_BY).is_some() => {
            // Whoever made it watches for this phase.
            set_phase(volume, "Released", None, now, &mut plan);
        }
        "Delete" | "Recycle" => {
            let message = format!(
                "error getting deleter volume plugin for volume {:?}: no volume plugin matched",
                owner::name(&volume.metadata)
            );
            let reason = if policy == "Delete" { "VolumeFailedDelete" } else { "VolumeFailedRecycle" };
            if current(volume) != "Failed" {
                plan.event(Note::warning(reason, message.clone()));
            }
            set_phase(volume, "Failed", Some(message), now, &mut plan);
        }
        _ => set_phase(volume, "Released", None, now, &mut plan),
    }
    plan
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
