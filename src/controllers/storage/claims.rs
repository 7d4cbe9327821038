//! Claims: from Pending to Bound.
//!
//! Watches: claims, volumes, classes. Observes: all volumes, the claim's class. Both sides of a
//! binding are written before either counts: the volume's reference first, then the claim's
//! volume name with the `bind-completed` mark, so that no volume is ever given twice.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus},
    storage::v1::StorageClass,
};
use serde_json::json;

use super::{
    super::{
        owner,
        plan::{Note, Plan},
        runner::{Controller, Round, Source},
    },
    claim_reference, local_path,
};
use crate::{
    kinds::volumes::{self, BIND_COMPLETED, BOUND_BY_CONTROLLER, SELECTED_NODE},
    objects::Objects,
    store::{Key, Object},
};

const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";

pub struct ClaimController {
    /// Where the built-in provisioner has its folders; `None`: it is off.
    pub local_path: Option<String>,
}

impl Controller for ClaimController {
    fn name(&self) -> &'static str {
        "persistentvolume-controller"
    }

    fn primary(&self) -> &'static str {
        "persistentvolumeclaims"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::new("persistentvolumes", |objects, volume: &Object| {
                let volume = volume.typed::<PersistentVolume>();
                let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.clone());
                match reference.and_then(|r| Some((r.namespace?, r.name?))) {
                    Some((namespace, name)) => vec![Key::new("persistentvolumeclaims", &namespace, &name)],
                    None => unbound(objects),
                }
            }),
            Source::new("storageclasses.storage.k8s.io", |objects, _| unbound(objects)),
        ]
    }

    fn plan(&self, objects: &Objects, key: &Key, round: &Round) -> Plan {
        let Some(claim) = objects.get_typed::<PersistentVolumeClaim>(&key.namespace, &key.name) else {
            return Plan::default();
        };
        let class_name = volumes::claim_class(&claim);
        let selected = owner::annotation(&claim.metadata, SELECTED_NODE);
        let observed = Observed {
            volumes: objects.list_typed(None),
            class: objects.get_typed("", class_name),
            node: selected.and_then(|name| objects.get_typed("", name)),
            local_path: self.local_path.clone(),
        };
        reconcile(&claim, &observed, round.now)
    }
}

/// The claims that wait for a volume.
fn unbound(objects: &Objects) -> Vec<Key> {
    let claims = objects.store().list("persistentvolumeclaims", None).items;
    let waits = |claim: &&Arc<Object>| !is_bound(&claim.typed());
    claims.iter().filter(waits).map(|claim| claim.key.clone()).collect()
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    owner::annotation(&claim.metadata, BIND_COMPLETED).is_some()
}

pub struct Observed {
    pub volumes: Vec<Arc<PersistentVolume>>,
    pub class: Option<Arc<StorageClass>>,
    /// The node that the scheduler has chosen for the claim.
    pub node: Option<Arc<Node>>,
    pub local_path: Option<String>,
}

pub fn reconcile(claim: &PersistentVolumeClaim, observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan::about(claim);
    let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
    let volume = observed.volumes.iter().find(|v| owner::name(&v.metadata) == named);
    match (named.is_empty(), volume) {
        (false, None) if is_bound(claim) => {
            lose(claim, &mut plan, "Bound claim has lost its PersistentVolume. Data on the volume is lost!");
        }
        (false, None) => phase(claim, "Pending", &mut plan),
        (false, Some(volume)) => match volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) {
            None => bind(claim, volume, &mut plan),
            Some(_) if volumes::refers_to(volume, claim) => bind(claim, volume, &mut plan),
            Some(_) if is_bound(claim) => lose(
                claim,
                &mut plan,
                "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
            ),
            Some(_) => {
                plan.event(Note::warning(
                    "FailedBinding",
                    format!("volume {named:?} already bound to a different claim."),
                ));
                phase(claim, "Pending", &mut plan);
            }
        },
        (true, _) if claim.metadata.deletion_timestamp.is_some() => {}
        (true, _) => search(claim, observed, now, &mut plan),
    }
    // Events are said once a state, not once a look.
    if plan.actions.is_empty() && claim.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Pending") {
        plan.events.clear();
    }
    plan
}

/// An unbound claim that names no volume looks for one, or has one made.
fn search(claim: &PersistentVolumeClaim, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    let class = observed.class.as_deref();
    let delayed = class.is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    let selected = owner::annotation(&claim.metadata, SELECTED_NODE);
    // The scheduler chooses among free volumes for a delayed claim, and reserves one.
    let found = volumes::find(observed.volumes.iter(), claim, |_| !delayed)
        .filter(|volume| !delayed || volumes::refers_to(volume, claim));
    if let Some(volume) = found {
        return bind(claim, volume, plan);
    }
    phase(claim, "Pending", plan);
    let class_name = volumes::claim_class(claim);
    let Some(class) = class else {
        plan.event(if class_name.is_empty() {
            Note::normal(
                "FailedBinding",
                "no persistent volumes available for this claim and no storage class is set",
            )
        } else {
            Note::warning(
                "ProvisioningFailed",
                format!("storageclass.storage.k8s.io {class_name:?} not found"),
            )
        });
        return;
    };
    if delayed && selected.is_none() {
        plan.event(Note::normal(
            "WaitForFirstConsumer",
            "waiting for first consumer to be created before binding",
        ));
        return;
    }
    if class.provisioner == NO_PROVISIONER {
        plan.event(Note::normal(
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set",
        ));
        return;
    }
    if let Some(root) =
        observed.local_path.as_deref().filter(|_| class.provisioner == local_path::PROVISIONER)
    {
        match (selected, &observed.node) {
            (Some(_), Some(node)) => local_path::provision(claim, class, node, root, plan),
            (Some(_), None) => {
                // The node is gone: let the scheduler choose another one.
                plan.merge(claim, json!({ "metadata": { "annotations": { SELECTED_NODE: null } } }));
            }
            (None, _) => plan.event(Note::warning(
                "ProvisioningFailed",
                "failed to provision volume: the class must bind with WaitForFirstConsumer, no node was chosen",
            )),
        }
        return;
    }
    let provisioner = &class.provisioner;
    if owner::annotation(&claim.metadata, STORAGE_PROVISIONER) != Some(provisioner) {
        plan.merge(claim, json!({ "metadata": { "annotations": { STORAGE_PROVISIONER: provisioner } } }));
    }
    plan.event(Note::normal(
        "ExternalProvisioning",
        format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
        ),
    ));
    plan.requeue_at(now + jiff::SignedDuration::from_mins(1), now);
}

/// Writes both sides of a binding, as far as they are not written.
fn bind(claim: &PersistentVolumeClaim, volume: &PersistentVolume, plan: &mut Plan) {
    let name = owner::name(&volume.metadata);
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    if reference.and_then(|r| r.uid.as_ref()) != claim.metadata.uid.as_ref() {
        let mut patch = json!({ "spec": { "claimRef": claim_reference(claim) } });
        if reference.is_none() {
            patch["metadata"] = json!({ "annotations": { BOUND_BY_CONTROLLER: "yes" } });
        }
        plan.merge_at(volume, patch);
    }
    let chosen = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()) != Some(name);
    if chosen || !is_bound(claim) {
        let mut annotations = json!({ BIND_COMPLETED: "yes" });
        if chosen {
            annotations[BOUND_BY_CONTROLLER] = "yes".into();
        }
        plan.merge_at(
            claim,
            json!({ "metadata": { "annotations": annotations }, "spec": { "volumeName": name } }),
        );
    }
    let old = claim.status.clone().unwrap_or_default();
    let spec = volume.spec.clone().unwrap_or_default();
    // A claim that asks for more than its volume has is expanded; folders have no size of their own.
    let (wanted, has) = (volumes::claim_size(claim), volumes::volume_size(volume));
    let mut capacity = spec.capacity.clone();
    if wanted > has && local_path::is_own(volume) {
        let size = k8s_openapi::apimachinery::pkg::api::resource::Quantity(wanted.to_string());
        capacity = Some([("storage".to_owned(), size)].into());
        plan.merge(volume, json!({ "spec": { "capacity": capacity } }));
        plan.event(Note::normal("VolumeResizeSuccessful", "Resize volume succeeded"));
    }
    let new = PersistentVolumeClaimStatus {
        phase: Some("Bound".into()),
        access_modes: spec.access_modes,
        capacity,
        ..old
    };
    plan.status(claim, claim.status.as_ref(), &new);
}

fn phase(claim: &PersistentVolumeClaim, phase: &str, plan: &mut Plan) {
    let old = claim.status.clone().unwrap_or_default();
    let new = PersistentVolumeClaimStatus { phase: Some(phase.into()), ..old };
    plan.status(claim, claim.status.as_ref(), &new);
}

fn lose(claim: &PersistentVolumeClaim, plan: &mut Plan, message: &'static str) {
    plan.event(Note::warning("ClaimLost", message));
    phase(claim, "Lost", plan);
}
